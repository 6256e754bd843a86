from __future__ import annotations

import json
import math
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo_summarize.reporting.summary import write_results

START = datetime(2026, 1, 5, 9, 0, 0)
RATE = FloatDistribution(1e-6, 1e-4, log=True)
FILES = ["all_trials.csv", "best_params.json", "study_stats.json"]


def make_trial(
    number: int,
    state: TrialState = TrialState.COMPLETE,
    values: list[float] | None = None,
    params: dict[str, Any] | None = None,
    distributions: dict[str, BaseDistribution] | None = None,
    epochs: dict[int, float] | None = None,
    **attributes: Any,
) -> FrozenTrial:
    """A trial of one minute, started `number` minutes after nine."""
    trial = optuna.trial.create_trial(
        state=state,
        values=values,
        params={"learning_rate": 1e-5} if params is None else params,
        distributions={"learning_rate": RATE} if distributions is None else distributions,
        intermediate_values=epochs or {},
        user_attrs=attributes,
    )
    if trial.datetime_start:
        trial.datetime_start = START + timedelta(minutes=number)
    if trial.datetime_complete:
        trial.datetime_complete = START + timedelta(minutes=number + 1)
    return trial


def make_study(
    *trials: FrozenTrial, directions: tuple[str, ...] = ("maximize",), **attributes: Any
) -> optuna.Study:
    study = optuna.create_study(study_name="kobart", directions=directions)
    study.add_trials(trials)
    for key, value in attributes.items():
        study.set_user_attr(key, value)
    return study


def one_of_each() -> list[FrozenTrial]:
    return [
        make_trial(0, values=[0.4], epochs={1: 0.3, 2: 0.4}, best_epoch=2.0),
        make_trial(1, values=[0.5], epochs={1: 0.5, 2: 0.4}, best_epoch=1.0),
        make_trial(2, TrialState.PRUNED, [0.1], epochs={1: 0.1}),
        make_trial(3, TrialState.PRUNED, epochs={1: 0.9}, failure="out of memory"),
        make_trial(4, TrialState.FAIL, failure="out of memory"),
        make_trial(5, TrialState.FAIL),
        make_trial(6, TrialState.FAIL, interrupted=True),
        make_trial(7, TrialState.RUNNING),
        make_trial(8, TrialState.WAITING, params={}, distributions={}),
    ]


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def read_json(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text(encoding="utf-8"), parse_constant=refuse)


def read_csv(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "all_trials.csv")


def test_the_best_trial_is_written_with_all_its_values_and_its_epoch(tmp_path: Path) -> None:
    best = make_trial(1, values=[0.5], best_epoch=3.0)
    best.set_user_attr("values", {"num_beams": 4, "learning_rate": 1e-5})
    write_results(make_study(make_trial(0, values=[0.4]), best, objectives=["rougeL"]), tmp_path)
    content = read_json(tmp_path, "best_params.json")
    assert list(content["best_params"].items()) == [("learning_rate", 1e-5), ("num_beams", 4)]
    assert content == {
        "best_params": {"learning_rate": 1e-5, "num_beams": 4},
        "best_value": 0.5,
        "best_trial_number": 1,
        "best_epoch": 3,
        "objective": "rougeL",
        "direction": "maximize",
        "n_trials": 2,
        "study_name": "kobart",
    }


def test_without_recorded_values_the_sampled_parameters_are_written(tmp_path: Path) -> None:
    write_results(make_study(make_trial(0, values=[0.4])), tmp_path)
    content = read_json(tmp_path, "best_params.json")
    assert content["best_params"] == {"learning_rate": 1e-5}
    assert content["objective"] == "value"


def test_the_smallest_value_is_best_when_minimizing(tmp_path: Path) -> None:
    trials = [make_trial(i, values=[value]) for i, value in enumerate([2.0, 1.0, 1.0, 3.0])]
    write_results(make_study(*trials, directions=("minimize",)), tmp_path)
    assert read_json(tmp_path, "best_params.json")["best_trial_number"] == 1
    assert read_json(tmp_path, "study_stats.json")["best_value"] == 1.0


def test_several_objectives_give_the_pareto_front_that_optuna_finds(tmp_path: Path) -> None:
    points = [(0.1, 5.0), (0.2, 6.0), (0.2, 6.0), (0.1, 7.0), (0.3, 9.0), (0.2, 8.0)]
    trials = [make_trial(i, values=list(p), best_epoch=2.0) for i, p in enumerate(points)]
    study = make_study(
        *trials, directions=("maximize", "minimize"), objectives=["rougeL", "seconds"]
    )
    write_results(study, tmp_path)
    content = read_json(tmp_path, "best_params.json")
    numbers = [entry["number"] for entry in content["pareto_front"]]
    assert numbers == sorted(trial.number for trial in study.best_trials) == [0, 1, 2, 4]
    assert content["pareto_front"][0] == {
        "number": 0,
        "values": {"rougeL": 0.1, "seconds": 5.0},
        "params": {"learning_rate": 1e-5},
        "epoch": 2,
    }
    assert "best_params" not in content and content["n_trials"] == 6
    stats = read_json(tmp_path, "study_stats.json")
    assert stats["best_values"] == {"rougeL": 0.3, "seconds": 5.0}
    assert stats["directions"] == ["maximize", "minimize"]
    assert read_csv(tmp_path)["value_seconds"].tolist() == [second for _, second in points]


def test_objectives_without_names_are_numbered(tmp_path: Path) -> None:
    study = make_study(
        make_trial(0, values=[1.0, 2.0]), directions=("maximize",) * 2, objectives=["only one"]
    )
    write_results(study, tmp_path)
    assert read_json(tmp_path, "study_stats.json")["objectives"] == ["value_0", "value_1"]


@pytest.mark.parametrize("directions", [("maximize",), ("maximize", "minimize")])
def test_without_a_complete_trial_a_message_tells_what_happened(
    directions: tuple[str, ...], tmp_path: Path
) -> None:
    pruned = make_trial(2, TrialState.PRUNED)
    write_results(make_study(pruned, *one_of_each()[3:], directions=directions), tmp_path)
    content = read_json(tmp_path, "best_params.json")
    assert content.get("best_params") is None and content.get("best_value") is None
    assert content.get("pareto_front", []) == []
    for part in ("1 pruned", "3 failed", "1 interrupted", "out of memory (2)"):
        assert part in content["message"]


def test_only_pruned_trials_give_the_advice_to_use_a_less_aggressive_pruner(tmp_path: Path) -> None:
    write_results(make_study(make_trial(0, TrialState.PRUNED)), tmp_path)
    assert "Use a less aggressive pruner" in read_json(tmp_path, "best_params.json")["message"]


def test_a_study_without_trials_gives_three_files_that_say_so(tmp_path: Path) -> None:
    write_results(make_study(), tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert read_json(folder, "best_params.json")["message"] == "The study has no trial yet."
    assert read_json(folder, "study_stats.json")["first_start"] is None
    assert read_csv(folder).empty


def test_every_trial_is_counted_by_what_became_of_it(tmp_path: Path) -> None:
    write_results(make_study(*one_of_each(), objectives=["rougeL"]), tmp_path)
    assert read_json(tmp_path, "study_stats.json") == {
        "study_name": "kobart",
        "n_trials": 6,
        "n_completed": 2,
        "n_pruned": 1,
        "n_failed": 3,
        "n_interrupted": 1,
        "n_running": 1,
        "n_waiting": 1,
        "best_value": 0.5,
        "best_trial_number": 1,
        "objective": "rougeL",
        "direction": "maximize",
        "failures": {"out of memory": 2, "no reason recorded": 1},
        "total_seconds": 7 * 60,
        "first_start": "2026-01-05T09:00:00.000000",
        "last_complete": "2026-01-05T09:07:00.000000",
    }


def test_the_table_has_a_row_for_every_trial_in_a_fixed_order_of_columns(tmp_path: Path) -> None:
    write_results(make_study(*one_of_each()), tmp_path)
    table = read_csv(tmp_path)
    assert list(table.columns) == [
        *("number", "state", "value", "datetime_start", "datetime_complete", "duration_seconds"),
        *("params_learning_rate", "best_epoch", "failure"),
        *("epoch_1", "epoch_2"),
    ]
    assert table["number"].tolist() == list(range(9))
    states = ["COMPLETE", "COMPLETE", "PRUNED", "FAIL", "FAIL", "FAIL"]
    assert table["state"].tolist() == [*states, "INTERRUPTED", "RUNNING", "WAITING"]
    assert table["value"].dropna().tolist() == [0.4, 0.5]
    assert table["failure"][3] == "out of memory" and table["failure"].isna()[2]


def test_pandas_reads_the_table_back_without_loss(tmp_path: Path) -> None:
    rate, size = 1.2345678901234567e-05, CategoricalDistribution([-8, 16])
    distributions = {"size": size, "learning_rate": RATE}
    text = 'a "quoted", comma\nand 한국어'
    full = make_trial(
        0,
        values=[-0.1 - 0.2],
        params={"size": -8, "learning_rate": rate},
        distributions=distributions,
        epochs={10: math.nan, 2: -math.inf, 1: 0.1 + 0.2},
    )
    failed = make_trial(1, TrialState.PRUNED, failure=text)
    write_results(make_study(full, failed), tmp_path)
    table = read_csv(tmp_path)
    assert list(table.columns)[-3:] == ["epoch_1", "epoch_2", "epoch_10"]
    row = table.iloc[0]
    # The file has all digits; older versions of pandas read the last one wrongly.
    assert repr(rate) in (tmp_path / "all_trials.csv").read_text(encoding="utf-8")
    numbers = row[["value", "params_learning_rate", "params_size", "epoch_1"]]
    assert numbers.tolist() == pytest.approx([-0.1 - 0.2, rate, -8, 0.1 + 0.2], rel=1e-15)
    assert row["epoch_2"] == -math.inf and math.isnan(row["epoch_10"])
    assert math.isnan(table["params_size"][1]) and table["failure"][1] == text
    assert pd.to_datetime(table["datetime_start"]).tolist() == [START, START + timedelta(minutes=1)]


def test_text_that_a_spreadsheet_would_run_is_made_harmless(tmp_path: Path) -> None:
    starts = ["=1+1", "+1", "-1", "@sum", "plain"]
    trials = [make_trial(i, TrialState.PRUNED, failure=text) for i, text in enumerate(starts)]
    write_results(make_study(*trials), tmp_path)
    cells = pd.read_csv(tmp_path / "all_trials.csv", dtype=str)["failure"].tolist()
    assert cells == ["'=1+1", "'+1", "'-1", "'@sum", "plain"]


def test_lists_none_and_truth_values_stay_apart_in_the_table(tmp_path: Path) -> None:
    trials = [make_trial(0, values=[0.1]), make_trial(1, values=[0.1])]
    trials[0].set_user_attr("values", {"a": [1, 2], "b": None, "c": True})
    trials[1].set_user_attr("values", {})
    write_results(make_study(*trials), tmp_path)
    table = pd.read_csv(tmp_path / "all_trials.csv", dtype=str, keep_default_na=False)
    assert table[["params_a", "params_b", "params_c"]].to_numpy().tolist() == [
        ["[1, 2]", "None", "True"],
        ["", "", ""],
    ]


def test_values_that_are_not_finite_become_null_and_are_never_best(tmp_path: Path) -> None:
    trials = [make_trial(0, values=[math.inf]), make_trial(1, values=[0.2], best_epoch=math.nan)]
    trials[1].set_user_attr("values", {"a": math.nan, "b": [math.inf]})
    write_results(make_study(*trials), tmp_path)
    content = read_json(tmp_path, "best_params.json")
    assert content["best_trial_number"] == 1
    assert content["best_params"] == {"a": None, "b": [None]} and content["best_epoch"] is None


def test_two_searches_with_one_seed_give_the_same_files_but_for_the_times(tmp_path: Path) -> None:
    def objective(trial: optuna.Trial) -> float:
        names = ["b", "a"] if trial.number % 2 else ["a", "b"]
        values = {name: trial.suggest_float(name, 0, 1) for name in names}
        trial.report(values["a"], 1)
        return values["a"] - values["b"]

    contents = []
    for folder in (tmp_path / "1", tmp_path / "2"):
        study = optuna.create_study(study_name="s", sampler=optuna.samplers.TPESampler(seed=3))
        study.optimize(objective, n_trials=15)
        write_results(study, folder)
        stats = read_json(folder, "study_stats.json")
        for key in ("total_seconds", "first_start", "last_complete"):
            del stats[key]
        table = read_csv(folder)
        times = [name for name in table if name.startswith("datetime") or "seconds" in name]
        best = (folder / "best_params.json").read_bytes()
        contents.append((best, json.dumps(stats), table.drop(columns=times).to_csv()))
    assert contents[0] == contents[1]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    study = make_study(*[make_trial(i, values=[i / 50]) for i in range(50)])
    write_results(study, tmp_path)
    stop, reads = threading.Event(), []

    def read_on() -> None:
        while not stop.is_set():
            reads.append(
                (read_json(tmp_path, "best_params.json")["n_trials"], len(read_csv(tmp_path)))
            )

    reader = threading.Thread(target=read_on)
    reader.start()
    for _ in range(60):
        write_results(study, tmp_path)
    stop.set()
    reader.join()
    assert len(reads) > 5 and set(reads) == {(50, 50)}
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


def test_a_write_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "best_params.json").mkdir()
    with pytest.raises(OSError, match="best_params.json"):
        write_results(make_study(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best_params.json"]


def test_no_result_file_holds_a_password(tmp_path: Path) -> None:
    secret = "postgresql://me:s3cret@db/x?sslpassword=s3cret"
    failed = make_trial(0, TrialState.PRUNED, failure=f"cannot reach {secret}")
    done = make_trial(1, values=[0.1])
    done.set_user_attr("values", {"url": [secret], secret: 1})
    study = optuna.create_study(study_name=secret)
    study.add_trials([failed, done])
    study.set_user_attr("objectives", [secret])
    write_results(study, tmp_path)
    for name in FILES:
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "s3cret" not in text and "***" in text


def test_two_hundred_trials_are_written_in_a_fraction_of_a_second(tmp_path: Path) -> None:
    names = [f"parameter_{i}" for i in range(15)]
    trials = [
        make_trial(
            number,
            values=[number / 200],
            params=dict.fromkeys(names, 1e-5),
            distributions=dict.fromkeys(names, RATE),
            epochs={epoch: epoch / 10 for epoch in range(1, 11)},
        )
        for number in range(200)
    ]
    study, seconds = make_study(*trials), []
    for _ in range(3):
        start = time.perf_counter()
        write_results(study, tmp_path)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5  # About 0.02 s on a quiet machine.
