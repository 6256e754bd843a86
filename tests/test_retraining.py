"""scripts/train.py: schedule, seeds, choice, what is refused, and what a kill leaves."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import optuna
import pandas as pd
import pytest
import torch
from conftest import make_rows
from final_models import paths_within, read_json, search, write_recipe
from programs import run_program, run_well, script
from rouge_score.rouge_scorer import RougeScorer
from safetensors.torch import load_file
from transformers import TrainerCallback

from hpo_summarize.components import Experiment
from hpo_summarize.config.loader import load_recipe
from hpo_summarize.console import print_training_plan
from hpo_summarize.errors import HpoError, StudyError
from hpo_summarize.final_model.retrain import Retraining
from hpo_summarize.final_model.select import choose_candidates, read_candidates
from hpo_summarize.final_model.train import Trained, Training, best_of
from hpo_summarize.study.trials import Candidate

pytestmark = pytest.mark.slow  # Nearly all of it starts programs or trains.


@pytest.fixture(scope="module")
def recipe(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a search of two trials with LoRA."""
    folder = tmp_path_factory.mktemp("searched") / "s"
    return search(folder, checkpoint, lora="{r: 4, alpha: 8}")


@pytest.fixture
def out(recipe: Path, tmp_path: Path) -> Path:
    """An output folder of its own with the results of the search."""
    folder = tmp_path / "out"
    shutil.copytree(recipe.parent / "out", folder)
    return folder


def scores_of(out: Path) -> Any:
    return read_json(out / "model" / "scores.json")


class Rates(TrainerCallback):
    """Notes the learning rate of every optimizer step, and what the arguments are."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.batches: list[tuple[int, int]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates += [group["lr"] for group in kwargs["optimizer"].param_groups[:1]]
        self.batches.append((args.per_device_train_batch_size, args.gradient_accumulation_steps))


def train(
    recipe: Path,
    folder: Path,
    *callbacks: TrainerCallback,
    epoch: float = 2,
    changes: Sequence[str] = (),
) -> Any:
    overrides = ["training.num_epochs=3", "training.warmup_ratio=0.2", f"output_dir={folder}"]
    experiment = Experiment(load_recipe(recipe, [*overrides, *changes]))
    one = Training(Candidate(0, {"learning_rate": 0.02}, epoch, (0.1,), "tiny"), seed=42)
    return one.run(experiment, folder, *experiment.splits, callbacks)


def test_the_learning_rate_of_each_step_is_that_of_a_training_of_all_epochs(
    recipe: Path, tmp_path: Path
) -> None:
    whole, part = Rates(), Rates()
    train(recipe, tmp_path / "whole", whole, epoch=3)
    train(recipe, tmp_path / "part", part, epoch=2)
    assert (len(whole.rates), len(part.rates)) == (18, 12)  # 24 dialogues in batches of 4.
    assert part.rates == whole.rates[:12]
    assert part.rates[-1] > 0.005 > whole.rates[-1]
    assert not (tmp_path / "part" / "checkpoint-12").exists()  # A later run would go past it.


class Evaluations(TrainerCallback):
    """Notes what every evaluation found."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.values.append(kwargs["metrics"]["eval_rougeL"])


def test_evaluations_are_left_out_unless_the_schedule_follows_them(
    checkpoint: Path, tmp_path: Path
) -> None:
    path = write_recipe(tmp_path / "s", checkpoint, beams=2)
    out = tmp_path / "s" / "out"
    plateau = "training.lr_scheduler_kwargs={mode: max, patience: 0, factor: 0.5}"
    cheap = "search.epoch_eval={samples: 4, num_beams: 1}"
    changes = ["training.num_epochs=4", cheap, "search.n_trials=1"]
    for schedule in (["training.scheduler_type=reduce_lr_on_plateau", plateau], []):
        folder = out / str(len(schedule))
        run_well("search", path, "--output_dir", folder, *changes, *schedule)
        experiment = Experiment(load_recipe(path, [f"output_dir={folder}", *changes, *schedule]))
        url, noted = f"sqlite:///{folder / 'study.db'}", Evaluations()
        (trial,) = optuna.load_study(study_name="tiny", storage=url).trials
        one = Training(Candidate(0, trial.params, 4, (0.1,), "tiny"), seed=42)
        one.run(experiment, folder / "t", *experiment.splits, [noted])
        # As in the search, where they are cheap ones.
        values = list(trial.intermediate_values.values()) if schedule else []
        assert noted.values == values and (not values or len(set(values)) > 1)


class OutOfMemoryOnce(TrainerCallback):
    """Runs out of memory at the third step of the first attempt."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1
        if self.steps == 3:
            raise torch.OutOfMemoryError("the test has no memory")


def test_out_of_memory_halves_what_is_on_the_device_and_keeps_the_effective_batch(
    recipe: Path, tmp_path: Path
) -> None:
    noted = Rates()
    train(recipe, tmp_path / "t", noted, OutOfMemoryOnce(), epoch=1)
    assert noted.batches == [(4, 1)] * 2 + [(2, 2)] * 6


def test_the_final_model_is_saved_and_compared_without_mixed_precision(
    recipe: Path, tmp_path: Path
) -> None:
    """Training leaves it around the forward; the model that is loaded from the folder has none."""
    changes = ["training.use_cpu=true", "training.bf16=true"]
    model = train(recipe, tmp_path / "t", epoch=1, changes=changes).eval()
    inputs = {"input_ids": torch.tensor([[5, 9, 2]]), "decoder_input_ids": torch.tensor([[2, 7]])}
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, type(model).forward(model, **inputs).logits)


class Breaks(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise RuntimeError("the test breaks it")


class Spoils(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        next(p for p in kwargs["model"].parameters() if p.requires_grad).data[0] = float("nan")


def test_a_training_that_fails_says_which_and_why(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(HpoError, match=r"trial-0-seed-42: the training failed \(RuntimeError: the"):
        train(recipe, tmp_path / "error", Breaks())
    with pytest.raises(HpoError, match="diverged .non-finite weights.; leave this seed out"):
        train(recipe, tmp_path / "nan", Spoils(), epoch=1)


def test_several_seeds_give_mean_and_deviation_and_the_best_on_validation_is_kept(
    recipe: Path, out: Path
) -> None:
    done = run_well("train", recipe, "--output_dir", out, "train.seeds=[1, 2]")
    content = scores_of(out)
    runs = {run["seed"]: run["scores"] for run in content["trainings"]}
    assert list(runs) == [1, 2] and runs[1] != runs[2]
    for split in ("validation", "test"):
        values = [runs[seed][split]["rougeL"] for seed in (1, 2)]
        spread = {"mean": pytest.approx(mean(values)), "deviation": pytest.approx(stdev(values))}
        assert content["seeds"][split]["rougeL"] == spread
    best = max(runs, key=lambda seed: runs[seed]["validation"]["rougeL"])
    assert (content["seed"], content["scores"]) == (best, runs[best])
    assert "mean and deviation of 2 seeds" in done.stdout
    assert not (out / "training").exists()


def test_the_best_seed_of_the_trial_with_the_best_mean_is_kept() -> None:
    def trained(number: int, seed: int, value: float) -> Trained:
        training = Training(Candidate(number, {}, 1, (0.1,), "s"), seed)
        return Trained(training, Path(), {"validation": {"rougeL": value}}, {})

    runs = [trained(0, 1, 0.9), trained(0, 2, 0.1), trained(1, 1, 0.6), trained(1, 2, 0.7)]
    for maximize, kept in ((True, runs[3]), (False, runs[1])):
        assert best_of(runs, "rougeL", maximize) is kept


def test_the_best_trials_are_trained_and_the_best_of_them_is_kept(recipe: Path, out: Path) -> None:
    run_well("train", recipe, "--output_dir", out, "--top", 2)
    content = scores_of(out)
    values = {run["trial"]: run["scores"]["validation"]["rougeL"] for run in content["trainings"]}
    assert sorted(values) == [0, 1]
    assert values[content["trial"]] == max(values.values())
    other = 1 - read_json(out / "best_params.json")["best_trial_number"]
    run_well("train", recipe, "--output_dir", out, "--trial", other)
    assert scores_of(out)["trial"] == other


def test_the_best_in_the_first_objective_of_a_front_is_trained_or_the_trial_named(
    recipe: Path, tmp_path: Path
) -> None:
    changes = [recipe, "--output_dir", tmp_path, "search.objective=[rouge2, rouge1]"]
    run_well("search", *changes)
    front = read_json(tmp_path / "best_params.json")["pareto_front"]
    done = run_well("train", *changes)
    best = max(front, key=lambda trial: (trial["values"]["rouge2"], -trial["number"]))
    assert scores_of(tmp_path)["trial"] == best["number"]
    assert "best in the first objective" in done.stdout
    found = read_candidates(tmp_path / "best_params.json", maximize=True)
    assert [one.number for one in found][0] == best["number"] and len(found) == len(front)


def test_a_number_of_epochs_with_a_fraction_ends_at_the_step_of_the_search(
    recipe: Path, tmp_path: Path
) -> None:
    changes = [recipe, "--output_dir", tmp_path, "lora=null", "training.num_epochs=0.6"]
    run_well("search", *changes, "search.n_trials=1")
    best = read_json(tmp_path / "best_params.json")
    assert best["best_epoch"] == pytest.approx(4 / 6)  # The Trainer rounds 3.6 steps up.
    run_well("train", *changes, "search.n_trials=1")
    (kept,) = tmp_path.glob("trials/tiny/trial-0/checkpoint-4/model.safetensors")
    found, wanted = load_file(tmp_path / "model" / "model.safetensors"), load_file(kept)
    assert wanted and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_validation_split_can_be_trained_on_and_is_not_measured_then(
    recipe: Path, out: Path
) -> None:
    done = run_well("train", recipe, "--output_dir", out, "train.use_validation=true")
    assert "epochs on 32 dialogues" in done.stdout
    assert list(scores_of(out)["scores"]) == ["test"]
    assert "was trained on, too" in (out / "model" / "README.md").read_text()


def test_the_test_split_is_scored_by_all_references_and_what_it_shares_with_training_is_said(
    recipe: Path, out: Path, tmp_path: Path
) -> None:
    rows = [*make_rows(3, seed=2), *make_rows(1, seed=0)]
    path = tmp_path / "test.csv"
    options = [recipe, "--output_dir", out, f"data.test={path}"]
    pd.DataFrame(rows).to_csv(path, index=False)
    run_well("predict", *options, "--model", "best")
    found = pd.read_csv(out / "predictions.csv", keep_default_na=False)["summary"]
    # The second reference is like what the model says.
    rows = [
        {"dialogue": row["dialogue"], "summary1": row["summary"], "summary2": f"{text} later"}
        for row, text in zip(rows, found, strict=True)
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    done = run_well("train", *options)
    trained_on = set(pd.read_csv(recipe.parent / "train.csv")["dialogue"])
    shared = sum(row["dialogue"] in trained_on for row in rows)
    assert f"{shared} of 4 test dialogues are in the training split, too" in done.stdout
    card = (out / "model" / "README.md").read_text()
    assert "of several references to a dialogue the mean counts" in card
    run_well("predict", *options)
    summaries = pd.read_csv(out / "predictions.csv", keep_default_na=False)["summary"]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for name, value in scores_of(out)["scores"]["test"].items():
        by_row = [
            mean(scorer.score(row[key], text)[name].fmeasure for key in ("summary1", "summary2"))
            for row, text in zip(rows, summaries, strict=True)
        ]
        assert value == pytest.approx(mean(by_row), abs=1e-9) and 0.2 < value < 0.9
    refused = run_program("train", *options, "data.leaks=refuse")
    assert refused.status == 2 and "test dialogues are in the training split" in refused.stderr


def test_a_test_split_without_summaries_gives_a_model_without_test_scores(
    recipe: Path, out: Path, tmp_path: Path
) -> None:
    rows, path = pd.DataFrame(make_rows(4, seed=2)), tmp_path / "test.csv"
    options = [recipe, "--output_dir", out, f"data.test={path}"]
    for summaries, scored in ((None, 0), (["", "", "", ""], 0), (["One.", "", "Two.", ""], 2)):
        table = (
            rows.drop(columns="summary") if summaries is None else rows.assign(summary=summaries)
        )
        table.to_csv(path, index=False)
        printed = run_well("train", *options).stdout
        assert ("no test scores" in printed, "none to test on" in printed) == (not scored,) * 2
        assert ("2 of 4 test dialogues have no summary" in printed) == bool(scored)
        measured = scores_of(out)
        assert ("test" in measured["scores"]) == bool(scored)
        assert measured["n_dialogues"].get("test", 0) == scored
        assert run_well("predict", *options).status == 0


def test_that_another_trial_can_be_named_is_said_where_none_is_named(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["rouge1", "rougeL"]
    front = [
        {
            "number": number,
            "params": {"learning_rate": 0.02, "hidden_dropout": 0.1},
            "epoch": 1,
            "values": dict.fromkeys(names, 0.1),
        }
        for number in (0, 1)
    ]
    content = {"pareto_front": front, "objectives": names, "study_name": "tiny"}
    path = tmp_path / "best_params.json"
    path.write_text(json.dumps(content))
    for trial, said in ((None, True), (0, False), (1, False)):
        retraining = Retraining(load_recipe(recipe), str(path), trial=trial)
        print_training_plan(retraining)
        printed = capsys.readouterr().out
        assert f"trial    {trial or 0} of tiny" in printed
        assert ("--trial names another" in printed) == said


def test_the_recipe_of_the_output_folder_stands_for_the_changes_of_the_search(
    recipe: Path, tmp_path: Path
) -> None:
    out, weights = tmp_path / "out", []
    changes = ["--output_dir", out, "lora.r=2", "search.n_trials=1"]
    run_well("search", recipe, *changes)
    for command in ([out / "recipe.yaml"], [recipe, *changes]):
        run_well("train", *command)
        weights.append(load_file(out / "model" / "model.safetensors"))
        run_well("predict", *command, "--model", "best")
    assert all(weights[0][name].equal(tensor) for name, tensor in weights[1].items())


DEPTH = (
    "  encoder_layers: {type: int, low: 3, high: 4}\n  decoder_layers: {type: int, low: 3, high: 4}"
)


@pytest.mark.parametrize(
    ("space", "overrides", "needs"),
    [
        ("", ["data.special_tokens=[]"], "`, and on nothing else"),
        ("", [], r"` with `vocab_size` \d+, and on nothing else"),
        (
            DEPTH,
            [],
            r"` with `vocab_size` \d+ and `encoder_layers` [34] and `decoder_layers` [34],",
        ),
    ],
)
def test_the_card_says_what_the_adapter_fits_on_and_how(
    space: str,
    overrides: list[str],
    needs: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = write_recipe(tmp_path, checkpoint, lora="{r: 4, alpha: 8}", space=space)
    changes = [*overrides, "train.save_adapter=true", "search.n_trials=1"]
    run_well("search", recipe, *changes)
    run_well("train", recipe, *changes)
    folder = tmp_path / "out" / "model"
    card = (folder / "README.md").read_text()
    assert re.search(f"fits on `{checkpoint.name}{needs}", card)
    assert paths_within(folder) == []
    assert read_json(folder / "adapter" / "adapter_config.json")["base_model_name_or_path"] == (
        checkpoint.name
    )
    plain, adapted = re.findall(r"```python\n(.*?)```", card, re.S)
    names: dict[str, Any] = {"dialogue": make_rows(1)[0]["dialogue"]}
    exec(plain.replace('"."', repr(str(folder))), names)
    exec(adapted.replace(f'"{checkpoint.name}"', repr(str(checkpoint))), names)
    model = names["model"]
    ids = model.generate(**names["inputs"])
    text = names["tokenizer"].batch_decode(ids, skip_special_tokens=True)[0].strip()
    assert capsys.readouterr().out.splitlines()[-1] == text != ""
    changed, saved = model.merge_and_unload().state_dict(), load_file(folder / "model.safetensors")
    assert saved and all(torch.allclose(changed[name], saved[name], atol=1e-6) for name in saved)
    assert sorted(path.suffix for path in (folder / "adapter").iterdir()) == [
        ".json",
        ".safetensors",
    ]


def test_others_may_read_the_model_where_they_may_read_the_rest(recipe: Path, out: Path) -> None:
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            run_well("train", recipe, "--output_dir", out, "train.save_adapter=true")
        finally:
            os.umask(before)
        files = [path for path in (out / "model").rglob("*") if path.is_file()]
        assert {"model.safetensors", "adapter_model.safetensors"} <= {path.name for path in files}
        assert {path.stat().st_mode & 0o777 for path in files} == {mode}


def with_epochs(out: Path, epochs: int) -> Path:
    """A copy of the search's result, without its study, whose best epoch is a later one."""
    content = {**read_json(out / "best_params.json"), "best_epoch": epochs}
    (out / "study.db").unlink()
    path = out.parent / "longer.json"
    path.write_text(json.dumps(content))
    return path


def kill_when(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline and not happened():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_killed_training_goes_on_and_ends_with_the_weights_of_an_undisturbed_one(
    recipe: Path, out: Path, tmp_path: Path
) -> None:
    longer = with_epochs(out, 6)
    common = [str(recipe), "training.num_epochs=8", "--best_params", str(longer), "--output_dir"]
    process = subprocess.Popen([sys.executable, script("train"), *common, str(out)])
    kill_when(process, lambda: any(out.glob("training/*/checkpoint-*/trainer_state.json")))
    assert not (out / "model").exists()
    done = run_well("train", *common, out)
    assert "epoch 1/8" not in done.stdout and "epoch 6/8" in done.stdout
    assert "epoch 7/8" not in done.stdout
    run_well("train", *common, tmp_path / "calm")
    calm, disturbed = (
        load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "calm", out)
    )
    assert all(torch.equal(calm[name], disturbed[name]) for name in calm)


WRONG = [
    (["--best_params", "nothing.json"], "there is no file nothing.json; run scripts/search.py"),
    (["--best_params", "BROKEN"], "is no best_params.json of a search (JSONDecodeError"),
    (["--best_params", "EMPTY"], "is no best_params.json of a search (KeyError"),
    (["--best_params", "LIST"], "is no best_params.json of a search (AttributeError"),
    (["--best_params", "FRONT"], "the search has no result yet"),
    (["--best_params", "NONE"], "the search has no result yet. Nothing came of it"),
    (
        ["space.learning_rate.low=0.0499", "training.learning_rate=0.0499"],
        "learning_rate: must lie",
    ),
    (
        ["space={learning_rate: {type: float, low: 1e-2, high: 5e-2}}"],
        "hidden_dropout: is not searched",
    ),
    (["space.num_beams={type: int, low: 1, high: 2}"], "num_beams: this recipe searches it, and"),
    (
        ["training.num_epochs=0.5"],
        "best_epoch: must be above 0 and at most the 0.5 epochs of the trial, rounded",
    ),
    (["--top", "0"], "--top: must be at least 1, got 0"),
    (["--top", "3"], "the 3 best trials are wanted, and the study 'tiny' has 2"),
    (["--trial", "7"], "trial 7 is not complete in the study 'tiny'"),
    (["--trial", "7", "search.storage=sqlite:///OUT/x.db"], "there is no study 'tiny' in sqlite"),
    (
        ["--trial", "7", "search.storage=sqlite:////proc/x/y.db"],
        "there is no study 'tiny' in sqlite",
    ),
    (
        ["--trial", "7", "search.storage=sqlite:///OUT/BROKEN"],
        "cannot be used: file is not a database",
    ),
    (["--output_dir", "/proc/nothing"], "cannot be written"),
    (["--top", "2", "train.use_validation=true"], "leaves nothing to choose among trials"),
    (["train.seeds=[1, 1]"], "every value must differ, and 1 is in"),
    (
        ["train.seeds=[1, 2]", "train.use_validation=true"],
        "leaves nothing to choose among 2 seeds",
    ),
    (["lora=null", "train.save_adapter=true"], "train.save_adapter: this recipe trains without"),
    (
        ["model={from_config: {model_type: bart, d_model: 16}}", "train.save_adapter=true"],
        "train.save_adapter: the adapter would fit on nothing but random weights",
    ),
    (
        ["lora.init_lora_weights=pissa", "train.save_adapter=true"],
        "train.save_adapter: an adapter with init_lora_weights 'pissa' changes the weights",
    ),
    (["train.push_to_hub=mine"], "train.push_to_hub: must match pattern"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_what_cannot_be_trained_ends_with_a_short_message_and_status_2(
    arguments: list[str], message: str, recipe: Path, out: Path
) -> None:
    good = read_json(out / "best_params.json")
    files = {
        "BROKEN": json.dumps(good)[:-20],
        "EMPTY": "{}",
        "LIST": "[1]",
        "FRONT": json.dumps({"pareto_front": [], "study_name": "tiny"}),
        "NONE": json.dumps({**good, "best_params": None, "message": "Nothing came of it."}),
    }
    for name, text in files.items():
        (out / name).write_text(text)
    given = [str(out / a) if a in files else a.replace("OUT", str(out)) for a in arguments]
    done = run_program("train", recipe, "--output_dir", out, *given)
    assert done.status == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 6
    assert not (out / "model").exists()


def test_values_of_another_type_or_that_cannot_act_are_refused(
    recipe: Path, out: Path, tmp_path: Path
) -> None:
    overrides = [
        "space.num_beams={type: int, low: 1, high: 2}",
        "space.length_penalty={type: float, low: 0.5, high: 2.0}",
        "space.do_sample={type: categorical, choices: [false, true]}",
    ]
    experiment = Experiment(load_recipe(recipe, overrides))
    content = read_json(out / "best_params.json")
    path = tmp_path / "b.json"

    def refused(**params: Any) -> str:
        wrong = {**content["best_params"], **params}
        path.write_text(json.dumps({**content, "best_params": wrong}))
        with pytest.raises(HpoError) as error:
            choose_candidates(experiment, path)
        return str(error.value)

    text = refused(num_beams=1.5, do_sample=1, length_penalty=1.0)
    assert "num_beams: must be a whole number, got 1.5" in text
    assert "do_sample: must be one of [False, True], got 1" in text
    text = refused(num_beams=1, do_sample=False, length_penalty=1.0)
    assert "length_penalty: acts only while num_beams is above 1" in text
    with pytest.raises(StudyError, match="is no best_params.json of a search .IsADirectoryError"):
        read_candidates(tmp_path, maximize=True)


CHANGED = [
    "lora.alpha=16",
    "model.tokenizer=CHECKPOINT",
    "training.weight_decay=0.1",
    "generation.no_repeat_ngram_size=2",
    "space.hidden_dropout.high=0.3",
    "data.max_dialogue_tokens=20",
]


def test_a_recipe_that_is_not_that_of_the_search_is_refused(
    recipe: Path, out: Path, checkpoint: Path
) -> None:
    changes = [change.replace("CHECKPOINT", str(checkpoint)) for change in CHANGED]
    for program, *options in (["train"], ["train", "--trial", 1], ["predict", "--model", "best"]):
        done = run_program(program, recipe, "--output_dir", out, *options, *changes)
        assert done.status == 2, done.stderr
        assert "the study 'tiny' was made with another recipe" in done.stderr
        for change in changes:
            assert f"\n  {change.partition('=')[0]}: was " in done.stderr
        assert "  lora.alpha: was 8, now 16\n" in done.stderr
        assert "\nUse the recipe that the search ran with" in done.stderr
    assert not (out / "model").exists()


def test_data_scoring_and_what_changes_no_weights_may_differ_from_the_search(
    recipe: Path, out: Path, tmp_path: Path
) -> None:
    shutil.copy(recipe.parent / "test.csv", tmp_path / "other.csv")
    other = f"data.validation={tmp_path / 'other.csv'}"
    free = ["rouge.references=max", "training.per_device_eval_batch_size=2", "search.n_trials=9"]
    run_well("train", recipe, "--output_dir", out, other, *free)
    run_well("predict", recipe, "--output_dir", out, "--model", "best", other, *free)


@pytest.mark.parametrize("storage", [[], ["search.storage=sqlite:////proc/x/y.db"]])
def test_a_result_without_a_study_that_can_be_read_is_taken_as_it_is(
    storage: list[str], recipe: Path, out: Path
) -> None:
    if not storage:
        (out / "study.db").unlink()
    options = ["--output_dir", out, "training.weight_decay=0.1", *storage]
    for program in (["train"], ["predict", "--model", "best"]):
        printed = run_well(program[0], recipe, *options, *program[1:]).stdout
        assert "note     the recipe is not compared with the one of the search" in printed
    assert (out / "model").is_dir() and (out / "study.db").exists() == bool(storage)


def test_weights_that_are_not_there_or_of_another_recipe_are_refused(
    recipe: Path, out: Path
) -> None:
    options = ["--output_dir", out, "--model", "best"]
    (out / "study.db").unlink()  # It would tell before the weights are read.
    other = run_program("predict", recipe, *options, "lora.r=2")
    assert other.status == 2 and "do not fit this recipe" in other.stderr
    targets = run_program("predict", recipe, *options, "lora.target_modules=[q_proj]")
    assert targets.status == 2 and "of them are unknown" in targets.stderr
    shutil.rmtree(out / "trials")
    gone = run_program("predict", recipe, *options)
    assert gone.status == 2 and "the search has kept no weights of trial" in gone.stderr


def test_a_debug_run_goes_on_with_the_results_of_a_debug_search(
    recipe: Path, tmp_path: Path
) -> None:
    options = [recipe, "--output_dir", tmp_path, "--debug"]
    for name in ("search", "train", "predict"):
        run_well(name, *options)
    written = {path.name for path in (tmp_path / "debug").iterdir()}
    assert {"best_params.json", "model", "predictions.csv"} <= written
