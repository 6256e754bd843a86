"""An earlier study teaches a new one; its trials neither count nor are the best; baselines."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from recipe_files import BASE, load, messages

from hpo_summarize import OptunaOptimizer
from hpo_summarize.console import print_search_plan, print_search_result
from hpo_summarize.errors import HpoError, RecipeError, StudyError
from hpo_summarize.reporting.outcome import read_study
from hpo_summarize.reporting.plots import copy_study
from hpo_summarize.study.run import run_study
from hpo_summarize.study.storage import build_storage
from hpo_summarize.study.trials import best_trials, finished_trials

CANARY = "canary-2718"
SPACE: dict[str, Any] = {
    "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "num_beams": {"type": "int", "low": 1, "high": 3},
    "length_penalty": {"type": "float", "low": 0.5, "high": 2.0},
}


@pytest.fixture
def make(checkpoint: Path, csv_path: Path, tmp_path: Path) -> Any:
    """Makes an optimizer of a recipe in a folder of its own, with some sections changed."""

    def make_optimizer(name: str, **changes: Any) -> OptunaOptimizer:
        content: dict[str, Any] = {
            "model": {"name": str(checkpoint)},
            "data": {"train": str(csv_path), "max_dialogue_tokens": 64, "max_summary_tokens": 24},
            "generation": {"max_new_tokens": 12},
            "training": {"num_epochs": 1, "batch_size": 16, "learning_rate": 0.001},
            "search": {"n_trials": 3, "study_name": name, "storage": url(tmp_path, name)},
            "space": SPACE,
            "output_dir": str(tmp_path / name),
        }
        for section, values in changes.items():
            content[section] = {**content.get(section, {}), **values}
        (tmp_path / name).mkdir(exist_ok=True)
        return OptunaOptimizer(content)

    return make_optimizer


def measure(trial: optuna.Trial, optimizer: OptunaOptimizer, offset: float = 0.0) -> float:
    values = optimizer.create_search_space(trial)
    for epoch in (1, 2):
        trial.report(values["learning_rate"] * epoch, epoch)
    if values["num_beams"] == 2 and trial.number:
        raise optuna.TrialPruned
    trial.set_user_attr("best_epoch", 2.0)
    return values["learning_rate"] * 2 + offset


def search(optimizer: OptunaOptimizer, n_trials: int, offset: float = 0.0) -> optuna.Study:
    study = optimizer.study
    run_study(study, lambda trial: measure(trial, optimizer, offset), n_trials)
    return study


def url(tmp_path: Path, name: str = "old") -> str:
    return f"journal://{tmp_path / name / 'study.log'}"


def copies(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [trial for trial in study.trials if "earlier" in trial.user_attrs]


def test_earlier_trials_teach_and_neither_count_nor_are_the_best(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = search(make("old"), 12, offset=1.0)  # Better than whatever the new one finds.
    new = make("new", search={"warm_start": url(tmp_path), "n_trials": 4})
    study = search(new, 4)
    taken = copies(study)
    assert len(taken) == 12 and study.trials[0] not in taken  # Trial 0 stays the baseline.
    for each in taken:
        source = old.trials[each.user_attrs["earlier"]["number"]]
        assert (each.params, each.state, each.values, each.intermediate_values) == (
            *(source.params, source.state, source.values, source.intermediate_values),
        )
    assert {trial.state.name for trial in taken} == {"COMPLETE", "PRUNED"}
    assert len(finished_trials(study)) == 4 and len(study.trials) == 16
    best = best_trials(study)[0]
    assert "earlier" not in best.user_attrs and best.value < 1 < max(t.value for t in taken)
    assert new.get_best_value() == best.value

    new.save_results(new.output_dir)
    new.plot_optimization_history(new.output_dir)
    stats = json.loads((new.output_dir / "study_stats.json").read_text(encoding="utf-8"))
    assert (stats["n_trials"], stats["best_trial_number"]) == (4, best.number)
    assert stats["warm_start"] == {
        "storage": url(tmp_path),
        "study_name": "old",
        "n_taken": 12,
        "n_left_out": 0,
    }
    rows = list(csv.DictReader((new.output_dir / "all_trials.csv").open(encoding="utf-8")))
    own = [trial.number for trial in finished_trials(study)]
    assert [int(row["number"]) for row in rows] == own
    drawn = copy_study(read_study(study), [0]).trials
    assert [t.number for t in drawn if t.state.is_finished()] == own
    assert drawn[best.number].value == best.value
    print_search_plan(new)
    print_search_result(new)
    shown = capsys.readouterr().out
    assert f"earlier  12 of 12 trials of 'old' in {url(tmp_path)} warm-start this search" in shown
    assert "study    new" in shown and "4 of 4 trials done" in shown
    assert f"trial {best.number}: rougeL {best.value:.4f}" in shown


def test_the_sampler_and_the_pruner_know_the_earlier_trials(make: Any, tmp_path: Path) -> None:
    old = search(make("old"), 25)
    median = {"name": "median", "n_startup_trials": 5}
    new = make("new", search={"warm_start": url(tmp_path), "pruner": median})
    trial = new.study.ask()  # The baseline.
    trial.report(1e-9, 1)
    assert trial.should_prune()
    drawn = new.create_search_space(new.study.ask())["learning_rate"]
    cold = make("cold")
    cold.study.ask()
    without = cold.create_search_space(cold.study.ask())["learning_rate"]
    best = max(trial.params["learning_rate"] for trial in old.trials)
    # TPE's start-up of ten random trials is behind it: it draws next to what was good.
    assert abs(drawn - best) < abs(without - best)


def test_a_resumed_study_takes_nothing_again_and_needs_the_earlier_one_no_more(
    make: Any, tmp_path: Path
) -> None:
    search(make("old"), 5)
    settings = {"warm_start": url(tmp_path), "warm_start_study": "old"}
    search(make("new", search=settings), 2)
    (tmp_path / "old" / "study.log").unlink()
    study = search(make("new", search=settings), 4)
    assert (len(copies(study)), len(finished_trials(study))) == (5, 4)
    assert len(copies(search(make("new"), 4))) == 5  # Nor does it need the key.
    for other in ({"warm_start": "sqlite:///b.db"}, {**settings, "warm_start_study": "x"}):
        with pytest.raises(StudyError, match="other earlier trials .*those of 'old'.*--study_name"):
            _ = make("new", search=other).study


def test_a_study_begun_without_earlier_trials_does_not_take_them_later(
    make: Any, tmp_path: Path
) -> None:
    search(make("old"), 2)
    search(make("new"), 2)
    with pytest.raises(StudyError, match=r"other earlier trials \(none\)"):
        _ = make("new", search={"warm_start": url(tmp_path)}).study


def test_trials_outside_of_the_new_space_are_left_out_and_counted(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = search(make("old"), 12)
    narrow = {"learning_rate": {"type": "float", "low": 9e-4, "high": 1e-2, "log": True}}
    new = make("new", space=narrow, search={"warm_start": url(tmp_path)})
    fitting = [t.number for t in old.trials if t.params["learning_rate"] >= 9e-4]
    assert 0 < len(fitting) < 12
    assert [t.user_attrs["earlier"]["number"] for t in copies(new.study)] == fitting
    print_search_plan(new)
    shown = capsys.readouterr().out
    assert f"earlier  {len(fitting)} of 12 trials" in shown and "do not fit" in shown


def test_a_failed_trial_is_no_lesson_for_another_machine(make: Any, tmp_path: Path) -> None:
    old = make("old")
    search(old, 2)
    failed = old.study.ask()
    failed.set_user_attr("failure", "out of memory")
    old.create_search_space(failed)
    old.study.tell(failed, state=optuna.trial.TrialState.PRUNED)
    assert len(copies(make("new", search={"warm_start": url(tmp_path)}).study)) == 2


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"search": {"objective": "rouge1"}}, "search.objective: was 'rougeL', now 'rouge1'"),
    ({"search": {"direction": "minimize"}}, "search.direction: was 'maximize', now 'minimize'"),
    ({"data": {"max_rows": 20}}, r"data.train \(content\): was .*, now"),
    ({"training": {"weight_decay": 0.5}}, "training.weight_decay: was 0.0, now 0.5"),
    ({"rouge": {"references": "max"}}, "rouge.references: was 'mean', now 'max'"),
]


@pytest.mark.parametrize(("changes", "difference"), OTHERS, ids=lambda x: str(x)[:40])
def test_a_study_with_another_objective_direction_or_data_is_refused_with_the_difference(
    changes: dict[str, Any], difference: str, make: Any, tmp_path: Path
) -> None:
    search(make("old"), 2)
    settings = {"warm_start": url(tmp_path), **changes.get("search", {})}
    new = make("new", **{**changes, "search": settings})
    with pytest.raises(
        StudyError, match=f"(?s)another recipe.*{difference}.*Only the search space"
    ):
        _ = new.study
    assert optuna.get_all_study_names(build_storage(url(tmp_path, "new"))) == []


def test_a_fixed_value_that_the_space_replaces_may_differ(make: Any, tmp_path: Path) -> None:
    search(make("old"), 2)
    settings = {"search": {"warm_start": url(tmp_path)}, "training": {"learning_rate": 0.002}}
    assert len(copies(make("new", **settings).study)) == 2


def test_earlier_studies_that_cannot_be_used_are_refused(make: Any, tmp_path: Path) -> None:
    search(make("old"), 2)
    storage = url(tmp_path)
    optuna.create_study(storage=build_storage(storage), study_name="plain", direction="maximize")
    other = {"num_epochs": {"type": "int", "low": 1, "high": 2}}
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"warm_start": storage}, {}, "holds 2 studies .*old, plain.*warm_start_study"),
        ({"warm_start": storage, "warm_start_study": "od"}, {}, "no study 'od' .*mean 'old'"),
        ({"warm_start": storage, "warm_start_study": "plain"}, {}, "does not say what it was"),
        ({"warm_start": storage, "warm_start_study": "old"}, other, "none of the 2 .*widen"),
        ({"warm_start": "sqlite:///no/such.db"}, {}, "there is no file for sqlite:///no/such.db"),
        ({"warm_start": "journal:///no/such.log"}, {}, "there is no file for journal://"),
        ({"warm_start": "nonsense"}, {}, "storage nonsense cannot be used"),
    ]
    for number, (settings, space, message) in enumerate(cases):
        new = make(f"new{number}", search=settings, space=space)
        with pytest.raises(HpoError, match=message) as error:
            _ = new.study
        assert error.value.exit_status == 2
    assert not Path("no").exists()


def test_a_password_in_the_url_of_the_earlier_study_is_written_nowhere(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = f"journal://{tmp_path}/old.log?password={CANARY}"
    search(make("old", search={"storage": secret}), 2)
    new = make("new", search={"warm_start": secret})
    new.prepare()
    search(new, 2)
    new.save_results(new.output_dir)
    new.plot_optimization_history(new.output_dir)
    print_search_plan(new)
    with pytest.raises(StudyError) as error:
        _ = make("new", search={"warm_start": secret.replace("old", "gone")}).study
    texts = [capsys.readouterr().out, str(error.value)]
    assert "password=***" in texts[0]
    files = [path for path in new.output_dir.rglob("*") if path.is_file()]
    assert {"recipe.yaml", "report.html", "study.log"} <= {path.name for path in files}
    assert not any(CANARY in text for text in texts)
    assert not any(CANARY.encode() in path.read_bytes() for path in files)


def test_the_name_of_an_earlier_study_needs_its_storage() -> None:
    with pytest.raises(RecipeError, match="warm_start_study is 'x', and warm_start is not set"):
        load(BASE, "search.warm_start_study=x")


# Baselines.


def test_known_good_points_run_after_trial_0_and_take_the_rest_from_it(make: Any) -> None:
    points = [
        {"learning_rate": 0.005},
        {"num_beams": 3, "length_penalty": 2.0},
        {"learning_rate": 0.001},  # What trial 0 runs already.
    ]
    optimizer = make("known", search={"baselines": points})
    trials = search(optimizer, 4).trials
    first = {"learning_rate": 0.001, "num_beams": 1}
    assert trials[0].params == first
    assert trials[1].params == {**first, "learning_rate": 0.005}
    assert trials[2].params == {**first, "num_beams": 3, "length_penalty": 2.0}
    assert trials[3].params["learning_rate"] not in (0.001, 0.005)


def test_a_begun_study_takes_a_known_good_point_that_is_new(make: Any) -> None:
    search(make("known", search={"baselines": [{"learning_rate": 0.005}]}), 3)
    points = [{"learning_rate": 0.005}, {"learning_rate": 0.002}]
    trials = search(make("known", search={"baselines": points}), 5).trials
    rates = [trial.params["learning_rate"] for trial in trials]
    assert rates[:2] == [0.001, 0.005] and rates[3] == 0.002
    assert rates.count(0.005) == 1


@pytest.mark.parametrize(
    ("call", "n_before"),
    [("create_new_trial", n) for n in (0, 1, 4)] + [("set_trial_state_values", 2)],
)
def test_a_beginning_that_was_cut_off_is_finished_by_the_next_run(
    call: str, n_before: int, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo_summarize.study.run.BASELINE_SECONDS", 0.3)
    search(make("old"), 5)
    settings = {"warm_start": url(tmp_path), "baselines": [{"learning_rate": 0.005}]}
    storage, before = optuna.storages.JournalStorage, []
    write = getattr(storage, call)

    def killed(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(before) == n_before:
            raise KeyboardInterrupt
        before.append(args)
        return write(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(storage, call, killed)
        with pytest.raises(KeyboardInterrupt):
            _ = make("new", search=settings).study
    study = make("new", search=settings).study
    assert [copy.user_attrs["earlier"]["number"] for copy in copies(study)] == [0, 1, 2, 3, 4]
    waiting = [t.system_attrs["fixed_params"] for t in study.trials if t not in copies(study)]
    assert [values["learning_rate"] for values in waiting] == [0.001, 0.005]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["journal", "sqlite"])
def test_a_worker_that_is_slow_at_a_warm_start_doubles_no_earlier_trial(
    scheme: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo_summarize.study.run.BASELINE_SECONDS", 0.3)
    search(make("old"), 5)
    storage = f"{scheme}://{'/' if scheme == 'sqlite' else ''}{tmp_path / 'new.file'}"
    settings = {"warm_start": url(tmp_path), "storage": storage}
    add, n_added = optuna.Study.add_trial, []

    def add_slowly(self: Any, trial: Any) -> None:
        n_added.append(trial)
        if len(n_added) == 3:  # Another worker begins, and runs a trial, before it goes on.
            search(make("new", search=settings), 1)
        add(self, trial)

    monkeypatch.setattr(optuna.Study, "add_trial", add_slowly)
    study = search(make("new", search=settings), 3)
    taken = [copy for copy in copies(study) if "surplus" not in copy.user_attrs]
    assert [copy.user_attrs["earlier"]["number"] for copy in taken] == [0, 1, 2, 3, 4]
    assert {copy.state.name for copy in taken} <= {"COMPLETE", "PRUNED"}
    # The third one, which it had looked for before, is known to no sampler and no pruner.
    assert [copy.state.name for copy in copies(study) if copy not in taken] == ["FAIL"]
    assert len(finished_trials(study)) == 3 and study.trials[0].user_attrs.get("earlier") is None
    assert study.user_attrs["warm_start"]["n_taken"] == 5


def test_a_copy_that_a_dead_worker_was_adding_is_withdrawn(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo_summarize.study.recovery.NO_WORKER_SECONDS", 0.2)
    search(make("old"), 3)
    new = make("new", search={"warm_start": url(tmp_path)})
    left = copy.copy(copies(new.study)[1])
    left.state, left.values, left.datetime_complete = optuna.trial.TrialState.RUNNING, None, None
    new.study.add_trial(left)
    study = search(new, 3)
    assert [copy.state.name for copy in copies(study)][-1] == "FAIL"
    assert len(finished_trials(study)) == 3 and len(study.trials) == 7


def test_a_study_that_has_run_trials_takes_no_earlier_ones_also_without_the_mark(
    make: Any, tmp_path: Path
) -> None:
    search(make("old"), 3)
    search(make("new"), 2)
    lines = (tmp_path / "new" / "study.log").read_text().splitlines(True)
    kept = "".join(line for line in lines if '"begun"' not in line)
    (tmp_path / "new" / "study.log").write_text(kept)
    with pytest.raises(StudyError, match="has been begun with other earlier trials"):
        _ = make("new", search={"warm_start": url(tmp_path)}).study


def test_a_point_that_two_workers_have_queued_is_tried_once(make: Any) -> None:
    study = search(make("known"), 1)
    for _ in range(2):
        study.enqueue_trial({"learning_rate": 0.005, "num_beams": 1})
    trials = search(make("known"), 4).trials
    assert [trial.params.get("learning_rate") for trial in trials].count(0.005) == 1
    assert len(finished_trials(study)) == 4


def test_another_recipe_queues_nothing_in_a_study(make: Any) -> None:
    before = len(search(make("known"), 2).trials)
    other = make("known", training={"learning_rate": 0.002, "weight_decay": 0.1})
    with pytest.raises(StudyError, match="made with another recipe"):
        _ = other.study
    assert len(make("known").study.trials) == before


def test_wrong_baselines_are_listed_before_a_study_is_made(make: Any) -> None:
    points = [
        {"learning_rte": 0.001, "learning_rate": 0.5, "num_beams": 2.5},
        {"length_penalty": 1.0, "num_beams": True},
    ]
    optimizer = make("wrong", search={"baselines": points})
    with pytest.raises(RecipeError) as error:
        optimizer.prepare()
    found = messages(error)
    assert found["search.baselines.0.learning_rte"].startswith("is not searched (value 0.001); did")
    assert "must lie between 0.0001 and 0.01, got 0.5" in found["search.baselines.0.learning_rate"]
    assert "must be a whole number, got 2.5" in found["search.baselines.0.num_beams"]
    assert "must be a whole number, got True" in found["search.baselines.1.num_beams"]
    assert "acts only while num_beams is above 1" in found["search.baselines.1.length_penalty"]
    assert not (optimizer.output_dir / "study.log").exists()


def test_the_debug_form_runs_without_baselines_and_earlier_trials() -> None:
    search = {"baselines": [{"num_epochs": 3}], "warm_start": "x", "warm_start_study": "y"}
    search_section = load(f"{BASE}search: {search}\nspace: {SPACE}\n", debug=True).search
    assert (search_section.baselines, search_section.warm_start) == ([], None)
