"""The figures of the benchmark: from hand-made records, and from a trainer that is watched."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarking.observation import ELSE, EVALUATION, SAVING, TRAINING, Observation
from benchmarking.overhead import measure_overhead
from benchmarking.report import write_benchmark
from benchmarking.summary import (
    NEVER,
    curve,
    rank_correlation,
    stock_faults,
    summarise,
    table_rows,
    time_to,
)
from benchmarking.winners import Constant, Winners, best_constant
from transformers import BartForConditionalGeneration, Seq2SeqTrainer, Trainer

from hpo_summarize import SummarizationTrainer
from hpo_summarize.config.loader import parse_recipe
from hpo_summarize.errors import HpoError
from hpo_summarize.generation import Summaries
from hpo_summarize.rouge import Rouge


def trial(
    value: float | None, wall: float, epoch_value: float | None = None, **more: Any
) -> dict[str, Any]:
    end = {"wall": wall, "cpu": wall / 2}
    state = "PRUNED" if value is None else "COMPLETE"
    known = {"state": state, "value": value, "end": end, "epoch_value": epoch_value}
    return {**known, "reports": {}, "params": {}, **more}


def record(method: str, seed: int, trials: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    best = max(t["value"] for t in trials if t["value"] is not None)
    spent = {"training": {"wall": 40.0, "cpu": 20.0}, "evaluation": {"wall": 50.0, "cpu": 25.0}}
    figures = {"wall_seconds": 100.0, "cpu_seconds": 50.0, "n_evaluations": 4}
    figures |= {"n_generated_tokens": 10, "megabytes_peak": 700.0, "megabytes_before": 500.0}
    figures |= {"most_models_alive": 1, "most_optimizers_alive": 1, "best_value": best}
    figures |= {
        "trainings": [{"n_steps": 9, "warmup_steps": 0}],
        "machine": {"processor": "p"},
        "date": "2026-11-27T10:00",
    }
    scores = {"validation": {"rougeL": best}, "test": {"rougeL": best - 0.1}}
    summaries = {"summaries": Summaries(["one", "two"] * 2, n_cut=0).describe()}
    return {"method": method, "seed": seed, "trials": trials, "spent": spent, **figures} | {
        **scores,
        **summaries,
        **more,
    }


TRIALS = [trial(0.2, 30.0), trial(None, 35.0), trial(0.5, 90.0), trial(0.4, 60.0)]


def test_the_best_value_so_far_goes_by_the_end_of_the_trials_and_skips_pruned_ones() -> None:
    run = record("joint", 1, TRIALS)
    assert curve(run, "wall") == [(30.0, 0.2), (60.0, 0.4), (90.0, 0.5)]
    assert curve(run, "cpu") == [(15.0, 0.2), (30.0, 0.4), (45.0, 0.5)]
    assert curve(run, "wall", maximize=False) == [(30.0, 0.2)]


def test_the_time_to_a_value_is_that_of_the_first_trial_that_is_as_good() -> None:
    run = record("joint", 1, TRIALS)
    assert time_to(run, 0.4, "wall") == 60.0
    assert time_to(run, 0.41, "cpu") == 45.0
    assert time_to(run, 0.51, "wall") == NEVER
    assert time_to(run, 0.1, "wall", maximize=False) == NEVER


def test_the_figures_are_compared_seed_by_seed_with_the_stock_search() -> None:
    records = [
        record("stock", 1, [trial(0.3, 80.0)]),
        record("stock", 2, [trial(0.5, 60.0)]),
        record("joint", 1, [trial(0.4, 20.0)]),
        record("joint", 2, [trial(0.4, 20.0)]),
    ]
    summary = summarise(records, "rougeL")
    reached = summary["to the best value of stock, wall s"]
    assert reached["stock"]["values"] == {"1": 80.0, "2": 60.0}
    assert reached["joint"]["values"] == {"1": 20.0, "2": None}
    assert (reached["joint"]["never"], reached["joint"]["median"]) == (1, None)
    gain = summary["to the best value of stock, stock / this, wall"]["joint"]
    assert (gain["median"], gain["low"], gain["high"]) == (2.0, 0.0, 4.0)
    head, *rows = table_rows(summary)
    assert head == ["", "stock", "joint"]
    cells = {title: figures for title, *figures in rows}
    assert cells["to the best value of stock, wall s"][1] == "never (20 to never)"
    assert cells["whole search / its training, CPU"] == ["2.50 (2.50 to 2.50)"] * 2
    assert cells["rank correlation, cheap with full value"] == ["-", "-"]


def test_without_a_stock_search_there_is_nothing_to_compare_with() -> None:
    summary = summarise([record("joint", 1, TRIALS)], "rougeL")
    assert summary["to the best value of stock, wall s"]["joint"]["median"] is None
    rows = table_rows(summary)
    assert sum(row[1] == "-" for row in rows) == 5


def test_the_best_constant_summary_is_drawn_from_texts_and_given_ones() -> None:
    references = [["the cat sat"], ["the cat ran"], ["a dog ran", "the cat ran off"]]
    drawn = [["a dog", "nothing"], ["the cat"]]
    found = best_constant(Rouge(), "rougeL", references, drawn)
    assert found.text == "the cat"
    scores = Rouge().compute(predictions=["the cat"] * 3, references=references)
    assert found.score == scores["rougeL"]
    better = best_constant(Rouge(), "rougeL", references, drawn, ["the cat ran"])
    assert better.text == "the cat ran" and better.score > found.score


def write(winners: Winners, folder: Path) -> tuple[str, str, dict[str, Any]]:
    """The text, the page and the JSON of a benchmark."""
    content = {"model": {"name": "a/b"}, "data": {"train": "t.csv"}, "output_dir": "out"}
    text = write_benchmark(parse_recipe(content), winners, folder)
    assert (folder / "table.md").read_text() == text + "\n"
    page = (folder / "benchmark.html").read_text()
    return text, page, json.loads((folder / "benchmark.json").read_text())


def test_a_winner_that_is_not_above_the_best_constant_summary_is_not_counted(
    tmp_path: Path,
) -> None:
    same = {"summaries": Summaries(["it is", "it  is"], n_cut=2).describe()}
    records = [
        record("stock", 1, [trial(0.3, 80.0)], **same),
        record("stock", 2, [trial(0.5, 60.0)]),
        record("joint", 1, [trial(0.4, 20.0)]),
        record("joint", 2, [trial(0.6, 20.0)]),
    ]
    winners = Winners(records, Constant("it is", records[0]["test"]["rougeL"]), "rougeL")
    assert [(r["method"], r["seed"]) for r in winners.counted] == [
        ("stock", 2),
        ("joint", 1),
        ("joint", 2),
    ]
    winners.require_one()
    text, page, content = write(winners, tmp_path)
    assert "| stock, seed 1 | 0.2000 | 0.2000 | 1 of 2 | no |" in text
    assert "| joint, seed 2 | 0.5000 | 0.2000 | 2 of 4 | yes |" in text
    refused = "stock, seed 1 is not counted: rougeL 0.2000 on test is not above the 0.2000"
    note = "stock, seed 1: all 2 summaries are the same text; 2 of 2 summaries are cut"
    assert refused in text and note in text and "constant summary is 'it is'" in text
    assert refused in page and "<td>1 of 2</td>" in page and "nothing can be" not in page
    assert page.count("Plotly.newPlot(") == 2
    assert "src=" not in page.split("</script>")[-1]
    values = content["summary"]["rougeL of the winner, on test"]["stock"]["values"]
    assert values == {"2": 0.4}
    gains = content["summary"]["to the best value of stock, stock / this, wall"]["joint"]
    assert gains["values"] == {"1": None, "2": 3.0}
    assert content["best_constant"] == {"text": "it is", "score": pytest.approx(0.2)}


def test_where_no_winner_counts_nothing_is_compared(tmp_path: Path) -> None:
    records = [record("stock", 1, TRIALS), record("joint", 1, TRIALS)]
    winners = Winners(records, Constant("it is", 0.9), "rougeL")
    text, page, content = write(winners, tmp_path)
    nothing = "nothing can be compared: no winner is above the best constant summary"
    assert nothing in text and nothing in page
    assert "stock / this" not in text + page and "whole search" not in text + page
    assert text.count("| 2 of 4 | no |") == 2
    assert len(content["runs"]) == 2
    with pytest.raises(HpoError, match=nothing) as end:
        winners.require_one()
    assert end.value.exit_status == 1


def test_the_rank_correlation_is_spearmans_with_ties_shared() -> None:
    def correlation(*pairs: tuple[float | None, float]) -> float | None:
        trials = [trial(full, 1.0, cheap) for cheap, full in pairs]
        return rank_correlation(record("joint", 1, trials))

    assert correlation((1, 0.1), (2, 0.2), (30, 0.3)) == pytest.approx(1.0)
    assert correlation((3, 0.1), (2, 0.2), (1, 0.3), (None, 9.0)) == pytest.approx(-1.0)
    # Ranks 1, 2.5, 2.5, 4 with 1, 3, 2, 4: 4.5 / sqrt(4.5 * 5).
    assert correlation((1, 0.1), (2, 0.3), (2, 0.2), (3, 0.4)) == pytest.approx(0.9486833)
    assert correlation((1, 0.1), (2, 0.2)) is None
    assert correlation((1, 0.1), (1, 0.2), (1, 0.3)) is None


def test_the_faults_of_a_stock_search_are_counted() -> None:
    trials = [
        trial(0.1, 1.0, reports={"10": 0.1, "20": 0.1}, params={"warmup_ratio": 0.2}),
        trial(0.1, 2.0, reports={"5": 0.1, "10": 0.1}, params={"warmup_ratio": 0.1}),
    ]
    trainings = [
        {"n_steps": 20, "steps_taken": 20, "warmup_steps": 0},
        {"n_steps": 10, "steps_taken": 10, "warmup_steps": 0},
    ]
    warm_up, pruning = stock_faults([record("stock", 1, trials, trainings=trainings)])
    assert "asked for 1 to 4 steps of it, 5 in all, and ran 0" in warm_up
    assert "was reported as step 5, 10 (optimizer steps); 3 of 4 reports met no" in pruning


@pytest.mark.parametrize("trainer_class", [Seq2SeqTrainer, SummarizationTrainer])
def test_an_observation_sees_what_a_trainer_really_does(
    trainer_class: type, make_trainer: Any, bart_config: Any
) -> None:
    evaluate = Trainer.evaluate
    with Observation() as observation:
        trainer = make_trainer(
            trainer_class,
            {"model": BartForConditionalGeneration(bart_config()), "callbacks": [observation]},
            num_train_epochs=2,
            save_strategy="epoch",
            warmup_steps=0.5,
            predict_with_generate=True,
        )
        trainer.train()
        time.sleep(0.3)
    assert Trainer.evaluate is evaluate
    (training,) = observation.trainings
    assert training.n_steps == len(training.rates) == 8
    assert training.warmup_steps == 4
    assert observation.n_evaluations == 2
    assert (observation.most_models, observation.most_optimizers) == (1, 1)
    spent = observation.spent
    assert all(spent[part].wall > 0 for part in (TRAINING, EVALUATION, SAVING))
    assert spent[ELSE].wall >= 0.3
    assert observation.samples.peak_memory >= observation.samples.memory_before > 50
    assert observation.samples.at(time.time()).cpu == pytest.approx(observation.total.cpu, abs=0.3)


def test_an_observation_counts_tokens_and_notices_generation_without_the_cache(
    bart_config: Any, tokens: Any
) -> None:
    model = BartForConditionalGeneration(bart_config())
    inputs = torch.tensor([tokens[0]["input_ids"]] * 3)
    padding = model.config.pad_token_id
    lengths = {"min_new_tokens": 4, "max_new_tokens": 4, "suppress_tokens": [padding]}
    with Observation() as observation:
        model.generate(input_ids=inputs, **lengths)
        model.generate(input_ids=inputs, use_cache=False, **lengths)
    assert observation.n_tokens == 2 * 3 * 4
    assert observation.without_cache == 1
    assert observation.spent[EVALUATION].wall > 0
    assert observation.n_evaluations == 0


@pytest.mark.slow
def test_the_overhead_of_a_trial_is_measured_on_a_model_of_any_size() -> None:
    small = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16}
    width = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    found = measure_overhead(n_trials=3, **small, **width)
    assert found["parameters"] > 30000 * 16
    assert 0 < found["cpu_seconds"] < 30
    assert 0 < found["prepare_cpu_seconds"] < 60
    assert 0 < found["wall_seconds"] < 300
