"""scripts/predict.py: every row in its place, whoever makes it and however often it is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import make_rows
from final_models import read_json, write_recipe
from programs import run_program, run_well, script
from recipe_files import BASE, load

from hpo_summarize.components import Experiment
from hpo_summarize.config.loader import load_recipe
from hpo_summarize.errors import DataError, HpoError
from hpo_summarize.generation import Summaries
from hpo_summarize.predict import Parts, Prediction
from hpo_summarize.summarizer import load_summarizer


@pytest.fixture(scope="module")
def recipe(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with a model in its output folder: the untrained checkpoint, sampling."""
    folder = tmp_path_factory.mktemp("predict") / "p"
    recipe = write_recipe(folder, checkpoint)
    model = Path(shutil.copytree(checkpoint, folder / "out" / "model"))
    decoding = read_json(model / "generation_config.json")
    decoding |= {"do_sample": True, "max_new_tokens": 12, "max_length": None}
    (model / "generation_config.json").write_text(json.dumps(decoding))
    return recipe


def read_rows(path: Path) -> list[dict[str, str]]:
    return pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")


def write_many(path: Path, count: int) -> Path:
    pd.DataFrame(make_rows(count)).drop(columns="summary").to_csv(path, index=False)
    return path


def test_every_row_gets_a_summary_in_its_place_also_an_empty_or_repeated_one(
    recipe: Path, tmp_path: Path
) -> None:
    texts = [row["dialogue"] for row in make_rows(6)]
    source = tmp_path / "in.tsv"
    dialogues = [texts[0], " ", texts[1], texts[0], texts[2], ""]
    frame = pd.DataFrame({"id": ["007", "b", "NA", "d", "d", ""], "text": dialogues})
    frame.assign(summary=["one", "two", "", "", "", ""]).to_csv(source, sep="\t", index=False)
    done = run_well("predict", recipe, "--input", source, "--output", tmp_path / "o.csv")
    rows = read_rows(tmp_path / "o.csv")
    assert list(rows[0]) == ["id", "summary"]
    assert [row["id"] for row in rows] == ["007", "b", "NA", "d", "d", ""]
    assert [bool(row["summary"]) for row in rows] == [True, False, True, True, True, False]
    assert "2 of 6 rows have no dialogue and get an empty summary (row 2, row 6)" in done.stdout
    assert read_json(tmp_path / "o.scores.json")["n_rows"] == 2
    assert "on 2 rows with references" in done.stdout


def test_rows_without_a_name_are_numbered_and_a_file_without_references_has_no_scores(
    recipe: Path, tmp_path: Path
) -> None:
    lines = [json.dumps({"dialog": ["A: hello", "B: good bye"]})] * 3
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    (tmp_path / "o.scores.json").write_text("of an earlier run")
    files = ["--input", tmp_path / "in.jsonl", "--output", tmp_path / "o.csv"]
    done = run_well("predict", recipe, *files, "data.max_rows=2")
    assert [row["fname"] for row in read_rows(tmp_path / "o.csv")] == ["0", "1"]
    assert "only the first 2 of 3 rows are read, by data.max_rows" in done.stdout
    assert not (tmp_path / "o.scores.json").exists()


def test_the_text_of_a_summary_is_written_as_it_is(recipe: Path, tmp_path: Path) -> None:
    """Scored by its text, it must not get a mark that hides a formula from a spreadsheet."""
    prediction = Prediction(load_recipe(recipe), output=str(tmp_path / "o.csv"))
    prediction.prepare()
    parts = Parts(tmp_path / ".o.csv.parts")
    texts = ["=1+1", "+82", "-", '@"a", b', "two\nlines", " ", "", "x", "y", "z"]
    for number in range(3):
        parts.add(number, Summaries(texts[4 * number : 4 * number + 4], n_cut=0))
    prediction.run()
    assert [row["summary"] for row in read_rows(tmp_path / "o.csv")] == texts


def launch(recipe: Path, *arguments: Any) -> list[str]:
    return [sys.executable, script("predict"), str(recipe), *map(str, arguments)]


@pytest.mark.slow
def test_a_killed_prediction_goes_on_and_gives_the_file_of_an_undisturbed_one(
    recipe: Path, tmp_path: Path
) -> None:
    source = write_many(tmp_path / "in.csv", 400)
    files = ["--input", source, "--output"]
    process = subprocess.Popen(launch(recipe, *files, tmp_path / "o.csv"))
    parts, deadline = tmp_path / ".o.csv.parts", time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if sum(path.read_text().count("\n") for path in parts.glob("*.jsonl")) >= 3:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "o.csv").exists()
    (cut,) = parts.glob("*.jsonl")
    cut.write_text(cut.read_text() + '{"batch": 99, "summ')  # As a kill in mid-line leaves it.
    finished = len(Parts(parts).read())
    assert 3 <= finished < 100
    done = run_well("predict", recipe, *files, tmp_path / "o.csv")
    assert f"400, of which {4 * finished} are done already" in done.stdout
    run_well("predict", recipe, *files, tmp_path / "calm.csv")
    assert (tmp_path / "o.csv").read_text() == (tmp_path / "calm.csv").read_text()
    assert not parts.exists()


@pytest.mark.slow
def test_two_processes_give_the_file_of_one(recipe: Path, tmp_path: Path) -> None:
    source = write_many(tmp_path / "in.csv", 30)
    files = ["--input", source, "--output"]
    run_well("predict", recipe, *files, tmp_path / "one.csv")
    options = ["--quiet", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *options]
    done = subprocess.run(
        [*launcher, *launch(recipe, *files, tmp_path / "two.csv")[1:]],
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "MASTER_PORT": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout
    assert (tmp_path / "two.csv").read_text() == (tmp_path / "one.csv").read_text()


def test_finished_parts_of_another_model_or_input_are_dropped(recipe: Path, tmp_path: Path) -> None:
    source = write_many(tmp_path / "in.csv", 8)
    parts = Parts(tmp_path / ".o.csv.parts")
    parts.claim({"model": "another"})
    parts.add(0, Summaries(["of another model"] * 4, 0))
    done = run_well("predict", recipe, "--input", source, "--output", tmp_path / "o.csv")
    assert "the finished part of another prediction is dropped" in done.stdout
    assert "rows     8\n" in done.stdout
    assert "of another model" not in (tmp_path / "o.csv").read_text()


def test_batches_that_another_machine_wrote_elsewhere_are_missed(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction = Prediction(load_recipe(recipe), output=str(tmp_path / "o.csv"))
    prediction.prepare()
    monkeypatch.setattr(Parts, "add", lambda *batch: None)
    with pytest.raises(HpoError, match="3 of 3 batches are missing"):
        prediction.run()


def test_a_batch_that_does_not_fit_into_memory_names_the_setting(
    recipe: Path,
) -> None:
    summarizer = load_summarizer(recipe.parent / "out" / "model", load_recipe(recipe))

    def run_out(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("the test has no memory")

    summarizer.model.register_forward_pre_hook(run_out)
    with pytest.raises(HpoError, match="4 dialogues at once; set training.per_device_eval_batch"):
        summarizer.summarize(["A: hello"])


WRONG = [
    (["data.test=null"], "the recipe names no test split (data.test)"),
    (["--model", "nowhere"], "there is no model in nowhere; run scripts/train.py"),
    (["--model", "BROKEN"], "cannot be loaded"),
    (["--model", "best"], "best_params.json; run scripts/search.py with this recipe first"),
    (["--input", "missing.csv"], "missing.csv: this file does not exist"),
    (["--output", "/proc/nothing/o.csv"], "output: the folder /proc/nothing cannot be written"),
    (["--output_dir", "elsewhere"], "there is no model in elsewhere/model"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_what_cannot_be_summarised_ends_with_a_short_message_and_status_2(
    arguments: list[str],
    message: str,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    broken = Path(shutil.copytree(recipe.parent / "out" / "model", tmp_path / "BROKEN"))
    (broken / "model.safetensors").write_bytes(b"nothing")
    done = run_program("predict", recipe, *arguments)
    assert done.status == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 6


def test_a_file_of_the_data_is_not_overwritten(recipe: Path, tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("dialogue\nA: hello\n")
    for arguments in ({"source": str(source)}, {}):
        loaded = load_recipe(recipe, [f"data.test={source}"])
        prediction = Prediction(loaded, output=f"{tmp_path}/./rows.csv", **arguments)
        with pytest.raises(DataError, match="names a file of the data .*name another file"):
            prediction.prepare()
    assert source.read_text() == "dialogue\nA: hello\n"


def test_weights_that_a_gpu_has_trained_need_none_of_its_training_arguments() -> None:
    assert Experiment(load(BASE, "training={fp16: true, seed: 7}")).seed == 7
    assert Experiment(load(BASE)).seed == 42, "that of transformers"
