"""What is left of an interrupted trial, and what a finished one keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from hpo_summarize import SummarizationTrainer
from hpo_summarize.search_space import TrialSpec
from hpo_summarize.training.checkpoints import (
    evaluations,
    last_checkpoint,
    read_state,
    slim,
    take_over,
)
from hpo_summarize.training.ddp import FollowedTrial
from hpo_summarize.training.trial import TrialFailed, TrialPlan, TrialRun


def make_checkpoint(folder: Path, step: int, best: str | None = None) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    history = [{"loss": 2.0, "step": 4}, {"eval_loss": 1.5, "epoch": 1.0, "step": 4}]
    state = {"log_history": history, "best_model_checkpoint": best}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    (checkpoint / "model.safetensors").write_bytes(b"x")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({}, checkpoint / name)
    return checkpoint


def test_the_last_whole_checkpoint_is_taken_over_and_half_ones_are_deleted(tmp_path: Path) -> None:
    old, new = tmp_path / "trial-1", tmp_path / "trial-5"
    make_checkpoint(old, 4)
    make_checkpoint(old, 8, best=str(old / "checkpoint-4"))
    (make_checkpoint(old, 12) / "trainer_state.json").write_text('{"log_hist')
    taken = take_over(old, new, world_size=1)
    assert taken == new / "checkpoint-8"
    assert not old.exists()
    assert sorted(path.name for path in new.iterdir()) == ["checkpoint-4", "checkpoint-8"]
    assert (read_state(taken) or {})["best_model_checkpoint"] == str(new / "checkpoint-4")


def test_a_checkpoint_that_was_slimmed_already_is_not_gone_on_with(tmp_path: Path) -> None:
    old, new = tmp_path / "trial-1", tmp_path / "trial-5"
    best = make_checkpoint(old, 4)
    make_checkpoint(old, 8)
    slim(old, str(best))
    assert take_over(old, new, world_size=1) is None
    assert list(new.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("missing", [True, False])
def test_a_checkpoint_without_a_part_or_with_half_of_it_is_not_gone_on_with(
    part: str, missing: bool, make_trainer: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(SummarizationTrainer, save_strategy="epoch", eval_strategy="no")
    trainer.train()
    (checkpoint,) = (tmp_path / "runs").iterdir()
    assert last_checkpoint(tmp_path / "runs", world_size=1) == checkpoint
    content = (checkpoint / part).read_bytes()
    (checkpoint / part).unlink()
    if not missing:
        (checkpoint / part).write_bytes(content[: len(content) // 2])
    assert last_checkpoint(tmp_path / "runs", world_size=1) is None
    assert not checkpoint.exists()


@pytest.mark.parametrize("ranks, whole", [((0, 1), True), ((0,), False), ((1,), False)])
def test_a_checkpoint_of_two_processes_has_the_random_numbers_of_both(
    ranks: tuple[int, ...], whole: bool, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path, 4)
    for rank in ranks:
        torch.save({}, checkpoint / f"rng_state_{rank}.pth")
    assert last_checkpoint(tmp_path, world_size=2) == (checkpoint if whole else None)


def test_a_trial_without_a_folder_starts_from_the_beginning(tmp_path: Path) -> None:
    assert take_over(tmp_path / "missing", tmp_path / "new", world_size=1) is None


def test_past_evaluations_come_without_the_step_that_the_log_adds(tmp_path: Path) -> None:
    assert evaluations(make_checkpoint(tmp_path, 4)) == [{"eval_loss": 1.5, "epoch": 1.0}]


def test_a_finished_trial_keeps_the_weights_of_its_best_epoch_alone(tmp_path: Path) -> None:
    best = make_checkpoint(tmp_path, 4)
    make_checkpoint(tmp_path, 8)
    slim(tmp_path, str(best))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]
    assert sorted(p.name for p in best.iterdir()) == ["model.safetensors", "trainer_state.json"]


def test_a_followed_trial_knows_its_values_before_it_is_asked() -> None:
    values = {"lora_r": 8, "hidden_dropout": 0.2}
    assert FollowedTrial(TrialSpec.of(values), 3, {"k": 3}).params == {"k": 3, **values}


def plan(**changes: Any) -> TrialPlan:
    known = {"number": 0, "sampled": {}, "n_objectives": 1, "folder": "run-0"}
    return TrialPlan(**{**known, "spec": TrialSpec.of({}), **changes})


def objective(metrics: dict[str, Any]) -> Any:
    return metrics["value"]


def test_the_best_epoch_of_several_objectives_is_the_best_in_the_first() -> None:
    run = TrialRun(optuna.trial.FixedTrial({}), plan(n_objectives=2, maximize=True), objective)
    for epoch, value in ((1, [0.2, 0.9]), (2, [0.5, 0.1]), (3, [float("nan"), 1.0])):
        run.record(epoch, {"value": value})
    assert run.best_epoch().epoch == 2
    assert run.best_epoch().value == (0.5, 0.1)


def test_a_trial_without_a_finite_value_fails() -> None:
    run = TrialRun(optuna.trial.FixedTrial({}), plan(maximize=False), objective)
    run.record(1, {"value": float("nan")})
    with pytest.raises(TrialFailed, match="never a finite number"):
        run.best_epoch()


def test_the_evaluation_sets_of_one_step_are_one_evaluation(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, 4)
    sets = [{f"eval_{name}_loss": 1.5, "epoch": 1.0, "step": 4} for name in ("a", "b")]
    (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": sets}))
    together = {"eval_a_loss": 1.5, "eval_b_loss": 1.5, "epoch": 1.0}
    assert evaluations(checkpoint) == [together]
