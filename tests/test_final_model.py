"""One model, one text: as the search, train.py, predict.py and transformers alone have it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from final_models import paths_within, read_json, search
from huggingface_hub import ModelCard
from model_families import save_checkpoint
from programs import run_well
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from hpo_summarize.rouge import Rouge

LORA = "{r: 4, alpha: 8}"
KINDS: dict[str, dict[str, Any]] = {
    # Depth and new embeddings that the checkpoint has not, and sampled summaries.
    "bart-lora": {
        "lora": LORA,
        "generation": ", do_sample: true, top_k: 20",
        "space": "  encoder_layers: {type: int, low: 3, high: 4}\n"
        "  temperature: {type: float, low: 0.5, high: 1.0}",
    },
    "bart-full": {
        "beams": 2,
        "space": "  length_penalty: {type: float, low: 0.5, high: 2.0}",
    },
    "t5-lora": {"lora": LORA},
    # Its output layer has weights of its own.
    "flan-full": {"generation": ", min_new_tokens: 6"},
}

# A session as a user of the model has it, for several models at once.
PLAIN = """
import csv, json, sys, torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
found = {}
for folder, source in json.load(sys.stdin):
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [row["dialogue"] for row in csv.DictReader(open(source, encoding="utf-8"))]
    summaries = []
    for start in range(0, len(texts), 4):
        batch = texts[start : start + 4]
        inputs = tokenizer(batch, truncation=True, padding=True, return_tensors="pt")
        torch.manual_seed(42)
        ids = model.generate(**inputs)
        summaries += [t.strip() for t in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    found[folder] = summaries
assert "hpo_summarize" not in sys.modules
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def trained(
    checkpoint: Path,
    folders: dict[str, Path],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """The recipe of each kind, after search.py, train.py and predict.py."""
    root = tmp_path_factory.mktemp("final")
    flan = save_checkpoint(root / "flan", "t5", tokenizer, tie_word_embeddings=False)
    models = {"bart": checkpoint, "t5": folders["t5"], "flan": flan}
    recipes = {}
    for kind, changes in KINDS.items():
        recipes[kind] = search(root / kind, models[kind.partition("-")[0]], **changes)
        run_well("train", recipes[kind])
        run_well("predict", recipes[kind])
    return recipes


@pytest.fixture(scope="module")
def plain_summaries(trained: dict[str, Path]) -> dict[str, list[str]]:
    """What transformers alone makes of the test split of each kind."""
    work = [(str(r.parent / "out" / "model"), str(r.parent / "test.csv")) for r in trained.values()]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN],
        input=json.dumps(work),
        env=clean,
        cwd=next(iter(trained.values())).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return {kind: found[folder] for kind, (folder, _) in zip(trained, work, strict=True)}


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_alone_summarises_as_was_measured(
    kind: str, trained: dict[str, Path], plain_summaries: dict[str, list[str]]
) -> None:
    folder = trained[kind].parent
    measured = read_json(folder / "out" / "model" / "scores.json")["scores"]["test"]
    references = pd.read_csv(folder / "test.csv")["summary"].tolist()
    scores = Rouge().compute(predictions=plain_summaries[kind], references=references)
    assert scores == pytest.approx(measured, abs=1e-9)
    assert any(plain_summaries[kind])
    predicted = pd.read_csv(folder / "out" / "predictions.csv", dtype=str, keep_default_na=False)
    assert predicted["summary"].tolist() == plain_summaries[kind]
    written = read_json(folder / "out" / "predictions.scores.json")
    counted = {"rouge_tokenizer": "default", "rouge_lowercase": True}
    assert written.pop("summaries")["n_rows"] == 10
    assert written == {**measured, "n_rows": 10, **counted}


@pytest.mark.parametrize("kind", KINDS)
def test_a_retraining_with_the_seed_of_the_trials_gives_the_weights_that_the_search_kept(
    kind: str, trained: dict[str, Path]
) -> None:
    out = trained[kind].parent / "out"
    best = read_json(out / "best_params.json")
    (kept,) = (out / "trials" / "tiny" / f"trial-{best['best_trial_number']}").glob("checkpoint-*")
    if kind.endswith("full"):
        ours, theirs = load_file(out / "model" / "model.safetensors"), load_file(
            kept / "model.safetensors"
        )
        assert ours.keys() == theirs.keys()
        assert all(ours[name].equal(theirs[name]) for name in theirs)
    if kind != "bart-lora":  # What is sampled during a search cannot be drawn again.
        measured = read_json(out / "model" / "scores.json")["scores"]["validation"]["rougeL"]
        assert measured == pytest.approx(best["best_value"], abs=1e-9)


@pytest.mark.parametrize("kind", ["bart-full", "t5-lora"])
def test_the_kept_weights_of_the_best_trial_summarise_as_in_the_search(
    kind: str, trained: dict[str, Path], tmp_path: Path
) -> None:
    folder = trained[kind].parent
    files = ["--input", folder / "validation.csv", "--output", tmp_path / "v.csv"]
    run_well("predict", trained[kind], "--model", "best", *files)
    scores = read_json(tmp_path / "v.scores.json")
    best = read_json(folder / "out" / "best_params.json")
    assert scores["rougeL"] == pytest.approx(best["best_value"], abs=1e-9)


def test_the_kept_adapter_is_put_on_a_model_of_the_depth_of_its_trial(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    """The retrained model is the trial's, merged, so that both give the same text."""
    recipe = trained["bart-lora"]
    run_well("predict", recipe, "--model", "best", "--output", tmp_path / "p.csv")
    merged = (recipe.parent / "out" / "predictions.csv").read_text()
    assert (tmp_path / "p.csv").read_text() == merged


def test_the_saved_model_brings_depth_vocabulary_decoding_and_length(
    trained: dict[str, Path],
) -> None:
    model = trained["bart-lora"].parent / "out" / "model"
    config, decoding = read_json(model / "config.json"), read_json(model / "generation_config.json")
    params = read_json(model / "scores.json")["params"]
    assert config["encoder_layers"] == params["encoder_layers"] > 2
    assert config["dropout"] == params["hidden_dropout"]
    assert decoding["temperature"] == params["temperature"]
    assert (decoding["do_sample"], decoding["max_new_tokens"]) == (True, 12)
    assert decoding.get("max_length") is None and decoding["use_cache"]
    assert read_json(model / "tokenizer_config.json")["model_max_length"] == 40
    assert not list(model.glob("adapter*"))


def test_no_file_of_a_model_names_a_path_of_this_machine(trained: dict[str, Path]) -> None:
    for recipe in trained.values():
        assert paths_within(recipe.parent / "out" / "model") == []


def test_the_model_card_says_what_the_model_is(trained: dict[str, Path]) -> None:
    model = trained["bart-lora"].parent / "out" / "model"
    card, content = (model / "README.md").read_text(), read_json(model / "scores.json")
    for split, scores in content["scores"].items():
        values = " | ".join(f"{value:.4f}" for value in scores.values())
        assert f"| {split} | {content['n_dialogues'][split]} | {values} |" in card
    assert content["n_dialogues"] == {"train": 24, "validation": 8, "test": 10}
    assert all(f"| {name} | {value} |" in card for name, value in content["params"].items())
    assert "torch.manual_seed(42)" in card and f"| torch | {content['versions']['torch']} |" in card
    assert "\nmodel:\n" in card and "base_model:" not in card  # A folder of this machine.
    results = ModelCard.load(model / "README.md").data.eval_results
    found = {(one.dataset_split, one.metric_name): one.metric_value for one in results}
    assert found == {(s, name): v for s, m in content["scores"].items() for name, v in m.items()}
