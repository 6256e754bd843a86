"""Summaries that are all equal, empty or cut off are named, whatever they score."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from conftest import make_rows
from final_models import read_json, write_recipe
from programs import run_well
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, TrainerCallback

from hpo_summarize import OptunaOptimizer, SummarizationTrainer
from hpo_summarize.config.loader import load_recipe
from hpo_summarize.generation import Summaries, count_cut, degenerate_note
from hpo_summarize.study.user_attrs import BEST_EPOCH, EPOCH_VALUE, FAILURE, SUMMARIES
from hpo_summarize.training.epoch_eval import MIN_FULL
from hpo_summarize.training.evaluation import TEXTS as TEXTS_KEY

# More than a few steps of training can outweigh.
_STRONG = 100.0


@pytest.fixture(scope="module")
def parrot(checkpoint: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that writes `meet meet` for every dialogue."""
    folder = tmp_path_factory.mktemp("parrot")
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint)
    (word,) = tokenizer(" meet", add_special_tokens=False)["input_ids"]
    model.final_logits_bias[0, word] = 2 * _STRONG
    model.final_logits_bias[0, tokenizer.eos_token_id] = _STRONG
    model.generation_config.update(no_repeat_ngram_size=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_model_that_writes_one_sentence_is_named_at_every_step(
    parrot: Path, tmp_path: Path
) -> None:
    recipe, out = write_recipe(tmp_path, parrot), tmp_path / "out"
    lines = run_well("search", recipe).stdout.splitlines()
    note = "all 8 summaries are the same text"
    trials = [line for line in lines if re.match(r"trial +\d+ \(", line)]
    assert len(trials) == 2 and all(line.endswith(f"note: {note}") for line in trials)
    assert "summaries 1 distinct of 8, 0 empty, 0 cut at the length limit" in lines
    assert f"note     {note}: 'meet meet'" in lines
    described = read_json(out / "best_params.json")["summaries"]
    assert described == {
        "n_rows": 8,
        "n_distinct": 1,
        "n_empty": 0,
        "n_cut": 0,
        "examples": ["meet meet"],
    }
    report = (out / "report.html").read_text()
    assert report.count(note) == 3, "below the best values, and in the row of each trial"
    assert "<li>meet meet</li>" in report and "1 of 8" in report

    done = run_well("train", recipe)
    assert "all 10 summaries are the same text: 'meet meet'" in done.stdout
    card = (out / "model" / "README.md").read_text()
    assert f"**Note: {note}.**" in card and "all 10 summaries are the same text" in card
    del described["examples"]  # The folder may be published.
    assert read_json(out / "model" / "scores.json")["summaries"]["validation"] == described
    assert not any(b"meet meet" in path.read_bytes() for path in (out / "model").iterdir())

    said = run_well("predict", recipe).stdout
    assert "summaries 1 distinct of 10, 0 empty, 0 cut at the length limit" in said
    assert "note     all 10 summaries are the same text: 'meet meet'" in said
    assert read_json(out / "predictions.scores.json")["summaries"]["n_distinct"] == 1


def build(model: Path, csv: Path, folder: Path, **search: Any) -> OptunaOptimizer:
    sizes = {"max_dialogue_tokens": 100, "max_summary_tokens": 30}
    return OptunaOptimizer(
        {
            "model": {"name": str(model)},
            "data": {"train": str(csv), "validation_fraction": 0.4, **sizes},
            "training": {"num_epochs": 3, "batch_size": 8, "learning_rate": 1e-3},
            "generation": {"num_beams": 2, "max_new_tokens": 12},
            "search": {"n_trials": 1, "pruner": None, "study_name": "s", **search},
            "space": {"learning_rate": {"type": "float", "low": 1e-3, "high": 2e-3}},
            "output_dir": str(folder),
        }
    )


@pytest.mark.slow
def test_the_full_measurement_counts_all_rows_and_a_beaten_trial_those_of_its_best_epoch(
    parrot: Path, csv_path: Path, tmp_path: Path
) -> None:
    cheap = {"epoch_eval": {"samples": 5, "num_beams": 1}}
    optimizer = build(parrot, csv_path, tmp_path / "full", **cheap)
    (full,) = optimizer.optimize().trials
    assert full.user_attrs[SUMMARIES]["n_rows"] == len(optimizer.experiment.splits[1]) == 11

    optimizer = build(parrot, csv_path, tmp_path / "beaten", **{**cheap, "n_trials": 6})
    optimizer.prepare()
    known = {EPOCH_VALUE: 0.98, BEST_EPOCH: 1}
    for _ in range(MIN_FULL):
        optimizer.study.add_trial(optuna.trial.create_trial(value=0.99, user_attrs=known))
    beaten = optimizer.optimize().trials[0]
    assert beaten.state.name == "PRUNED"
    assert beaten.user_attrs[SUMMARIES]["n_rows"] == 5
    assert degenerate_note(beaten.user_attrs[SUMMARIES]) == "all 5 summaries are the same text"


def test_a_trial_that_is_pruned_after_its_first_epoch_says_what_it_wrote(
    parrot: Path, csv_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pruner = {"name": "threshold", "lower": 2.0, "n_warmup_steps": 0}
    optimizer = build(parrot, csv_path, tmp_path, pruner=pruner)
    optimizer.trainer.prune_after = 0.0
    with pytest.raises(Exception, match="came to its end"):
        optimizer.optimize()
    (trial,) = optimizer.study.trials
    assert FAILURE not in trial.user_attrs and trial.last_step == 1
    assert trial.user_attrs[SUMMARIES]["n_distinct"] == 1
    assert "note: all 11 summaries are the same text" in capsys.readouterr().out


class PrunesSecond(TrainerCallback):
    """Prunes the second training before its first evaluation."""

    n_begun = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.n_begun += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.n_begun == 2:
            raise optuna.TrialPruned("the test has seen enough")


def test_a_trial_that_is_pruned_before_it_wrote_anything_has_no_summaries(
    make_trainer: Any,
) -> None:
    parts = {
        "callbacks": [PrunesSecond()],
        "compute_metrics": lambda p: {"score": 1.0, TEXTS_KEY: ["a"] * len(p.predictions)},
    }
    trainer = make_trainer(SummarizationTrainer, parts, predict_with_generate=True)
    study = optuna.create_study(direction="maximize")
    trainer.hyperparameter_search(lambda trial: {}, backend="optuna", n_trials=2, study=study)
    assert [SUMMARIES in trial.user_attrs for trial in study.trials] == [True, False]


class InterruptsSecondEpoch(TrainerCallback):
    n_begun = 0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.n_begun += 1
        if self.n_begun == 2:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_resumed_trial_knows_the_summaries_of_an_earlier_epoch(
    parrot: Path, csv_path: Path, tmp_path: Path
) -> None:
    whole = {"epoch_eval": {"samples": 500, "num_beams": 2}}  # Nothing is scored a second time.
    optimizer = build(parrot, csv_path, tmp_path, **whole)
    optimizer.trainer.add_callback(InterruptsSecondEpoch())
    with pytest.raises(KeyboardInterrupt):
        optimizer.optimize()
    # A constant summary scores the same after every epoch, so that the first one stays the best.
    _, trial = build(parrot, csv_path, tmp_path, **whole).optimize().trials
    assert trial.user_attrs[BEST_EPOCH] == 1
    assert trial.user_attrs[SUMMARIES]["n_distinct"] == 1


TEXTS = ["a b", "a  b\n", "c", ""]


def test_summaries_are_counted_by_their_words() -> None:
    described = Summaries(TEXTS, n_cut=1).describe()
    counts = {"n_rows": 4, "n_distinct": 3, "n_empty": 1, "n_cut": 1}
    assert described == {**counts, "examples": ["a b", "c"]}


@pytest.mark.parametrize(
    ("texts", "n_cut", "note"),
    [
        (TEXTS, 1, None),
        (["a"], 0, None),
        (["a", "a "], 0, "all 2 summaries are the same text"),
        (["", " "], 0, "all 2 summaries are empty"),
        ([""], 0, "all 1 summaries are empty"),
        (["a"] * 39 + ["b"], 0, "only 2 distinct summaries for 40 dialogues"),
        (["a"] * 38 + ["b"], 0, None),
        (["a", "b", "c", "d"], 2, "2 of 4 summaries are cut at the length limit"),
        (["a"] * 3, 3, "all 3 summaries are the same text; 3 of 3 summaries are cut at the length"),
        ([], 0, None),
    ],
)
def test_what_is_wrong_with_summaries_as_a_whole(
    texts: list[str], n_cut: int, note: str | None
) -> None:
    found = degenerate_note(Summaries(texts, n_cut).describe())
    assert found == note if note is None else found is not None and found.startswith(note)


def test_a_trial_of_an_older_version_has_no_note() -> None:
    assert degenerate_note(None) is None


@pytest.mark.parametrize("forced", [False, True])
def test_a_summary_is_cut_where_generate_stopped_and_not_the_model(
    checkpoint: Path, tokenizer: Any, forced: bool
) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint)
    end = tokenizer.eos_token_id
    model.generation_config.update(
        max_new_tokens=6, max_length=None, forced_eos_token_id=end if forced else None
    )
    inputs = tokenizer([row["dialogue"] for row in make_rows(4)], padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    for bias, cut in ((-_STRONG, 4), (_STRONG, 0)):
        model.final_logits_bias[0, end] = bias
        with torch.no_grad():
            ids = model.generate(**inputs).numpy()
        assert (ids[:, -1] == end).all() == (forced or not cut)
        assert count_cut(ids, model.generation_config) == cut


def test_rows_that_end_by_themselves_are_not_cut_beside_one_that_is() -> None:
    config = GenerationConfig(eos_token_id=[2, 9], pad_token_id=1, max_new_tokens=4)
    ids = np.array([[2, 5, 2, 1, 1], [2, 5, 6, 7, 8], [2, 9, 1, 1, 1], [2, 5, 6, 7, 2]])
    assert count_cut(ids, config) == 1
    config.forced_eos_token_id = 2
    assert count_cut(ids, config) == 2
    no_end = GenerationConfig(max_new_tokens=4)
    assert count_cut(ids, no_end) == 4


def test_the_results_of_a_study_without_counts_are_written(parrot: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, parrot))
    optimizer = OptunaOptimizer(recipe)
    optimizer.prepare()
    optimizer.study.add_trial(optuna.trial.create_trial(value=0.5, user_attrs={BEST_EPOCH: 1.0}))
    optimizer.save_results(tmp_path / "old")
    optimizer.plot_optimization_history(tmp_path / "old")
    assert "summaries" not in read_json(tmp_path / "old" / "best_params.json")
