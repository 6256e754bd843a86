"""Studies: seeds, resume, totals, interrupts, failures, storages."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from hpo_summarize.config.schema import SearchSection
from hpo_summarize.errors import SearchFailed, StudyError
from hpo_summarize.study.run import open_study, run_study
from hpo_summarize.study.samplers import build_pruner, build_sampler, derive_seed
from hpo_summarize.study.storage import default_storage_url
from hpo_summarize.study.trials import (
    baseline_trial,
    best_trials,
    finished_trials,
    require_complete,
)


def open_at(folder: Path, **search: Any) -> optuna.Study:
    section = SearchSection.model_validate(search)
    return open_study(section, "study", default_storage_url(folder), ["maximize"])


def draw(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0.0, 1.0)


def test_the_same_command_again_goes_on_to_the_same_total(tmp_path: Path) -> None:
    for n_trials in (3, 7, 7):
        run_study(open_at(tmp_path), draw, n_trials)
    study = open_at(tmp_path)
    assert [trial.number for trial in study.trials] == list(range(7))


def test_a_resumed_study_does_not_repeat_its_first_draws(tmp_path: Path) -> None:
    for n_trials in (4, 8):
        run_study(open_at(tmp_path, sampler={"name": "tpe", "seed": 42}), draw, n_trials)
    values = [trial.params["x"] for trial in open_at(tmp_path).trials]
    assert len(set(values)) == 8


def test_two_studies_with_one_seed_draw_the_same_values(tmp_path: Path) -> None:
    drawn = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        study = open_at(tmp_path / name)
        run_study(study, draw, 6)
        drawn.append([trial.params["x"] for trial in study.trials])
    assert drawn[0] == drawn[1]


def test_the_first_worker_starts_with_the_seed_itself_and_the_others_do_not() -> None:
    assert derive_seed(42, worker=0, finished=0) == 42
    derived = {derive_seed(42, worker, finished) for worker in range(4) for finished in range(4)}
    assert len(derived) == 16
    assert derive_seed(None, 1, 3) is None


def test_trials_cut_off_by_the_user_do_not_count_and_are_tried_again(tmp_path: Path) -> None:
    study, seen = open_at(tmp_path), []

    def interrupted(trial: optuna.Trial) -> float:
        seen.append(draw(trial))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return seen[-1]

    with pytest.raises(KeyboardInterrupt):
        run_study(study, interrupted, 5)
    assert len(finished_trials(study)) == 2
    run_study(open_at(tmp_path), interrupted, 5)
    assert len(finished_trials(open_at(tmp_path))) == 5
    assert seen[2] == seen[3]


def test_the_timeout_starts_no_new_trial(tmp_path: Path) -> None:
    study = open_at(tmp_path)

    def slow(trial: optuna.Trial) -> float:
        time.sleep(0.6)
        return draw(trial)

    run_study(study, slow, 50, timeout=0.5)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]


def test_the_baseline_is_trial_0_of_a_new_study_only(tmp_path: Path) -> None:
    for n_trials in (1, 2):
        url = default_storage_url(tmp_path)
        study = open_study(SearchSection(), "study", url, ["maximize"], [{"x": 0.125}])
        run_study(study, draw, n_trials)
    assert [trial.params["x"] == 0.125 for trial in study.trials] == [True, False]


def test_three_failures_in_a_row_with_one_reason_end_the_study(tmp_path: Path) -> None:
    study = open_at(tmp_path)

    def fails(trial: optuna.Trial) -> float:
        trial.set_user_attr("failure", "out of memory")
        raise optuna.TrialPruned

    with pytest.raises(SearchFailed, match="3 trials in a row .* reason: out of memory"):
        run_study(study, fails, 10)
    assert len(study.trials) == 3


def test_a_study_without_a_complete_trial_says_what_became_of_each(tmp_path: Path) -> None:
    study = open_at(tmp_path)

    def prunes(trial: optuna.Trial) -> float:
        raise optuna.TrialPruned

    run_study(study, prunes, 2)
    with pytest.raises(SearchFailed, match="(?s)no trial .* trial 0: pruned\n  trial 1: pruned"):
        require_complete(study)


def test_a_study_that_no_trial_has_ended_in_is_told_from_one_whose_trials_failed(
    tmp_path: Path,
) -> None:
    study = open_at(tmp_path)
    with pytest.raises(SearchFailed, match="'study' has ended yet; .*call optimize"):
        require_complete(study)
    with pytest.raises(SearchFailed, match="timeout of 0.5 seconds .*; give it more time, or none"):
        require_complete(study, timeout=0.5)


def test_the_best_trials_come_best_first_and_the_older_of_equals_before(tmp_path: Path) -> None:
    study, values = open_at(tmp_path), [0.1, 0.4, 0.3, 0.4]
    run_study(study, lambda trial: values[trial.number], 4)
    assert [trial.number for trial in best_trials(study, 3)] == [1, 3, 2]


def test_a_study_made_with_another_direction_is_refused(tmp_path: Path) -> None:
    open_at(tmp_path)
    with pytest.raises(StudyError, match="made with the directions .*choose another --study_name"):
        open_study(SearchSection(), "study", default_storage_url(tmp_path), ["minimize"])


@pytest.mark.parametrize("url", ["nonsense", "mysqlx://host/db", "sqlite:////no/such/folder/x.db"])
def test_a_storage_that_cannot_be_used_is_named_with_a_way_out(url: str) -> None:
    with pytest.raises(StudyError, match="(?s)the storage .* cannot be used: .*Check the URL"):
        open_study(SearchSection(), "study", url, ["maximize"])


def test_the_password_of_a_storage_is_not_in_the_error() -> None:
    url = "postgresql+psycopg://user:canary-secret@127.0.0.1:1/db?password=canary-secret"
    with pytest.raises(StudyError) as caught:
        open_study(SearchSection(), "study", url, ["maximize"])
    assert "canary-secret" not in str(caught.value)


def test_samplers_and_pruners_are_built_by_their_short_names() -> None:
    assert isinstance(build_sampler("tpe", 42), optuna.samplers.TPESampler)
    assert isinstance(build_sampler("random", 42), optuna.samplers.RandomSampler)
    pruner = build_pruner("median", n_startup_trials=5, n_warmup_steps=3, interval_steps=1)
    assert isinstance(pruner, optuna.pruners.MedianPruner)
    assert pruner._n_startup_trials == 5


def test_the_recipes_own_values_are_those_of_a_trial_that_came_to_its_end(tmp_path: Path) -> None:
    def prune_first(trial: optuna.Trial) -> float:
        trial.report(0.3, 1)
        if trial.number == 0:
            raise optuna.TrialPruned
        return draw(trial)

    study = open_at(tmp_path)
    run_study(study, prune_first, 2)
    assert study.trials[0].values == [0.3]  # Of its first epoch.
    assert baseline_trial(study) is None


def test_the_recipes_own_values_are_those_of_the_trial_that_went_on_with_trial_0(
    tmp_path: Path,
) -> None:
    def interrupt_first(trial: optuna.Trial) -> float:
        value = draw(trial)
        if trial.number == 0:
            raise KeyboardInterrupt
        return value

    study = open_at(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, interrupt_first, 2)
    assert baseline_trial(study) is None
    run_study(study, draw, 2)
    found = baseline_trial(study)
    assert found is not None
    assert (found.number, found.value) == (1, study.trials[0].params["x"])
