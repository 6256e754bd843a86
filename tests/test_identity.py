"""Which settings the runs of one study must share."""

from __future__ import annotations

import pytest
from recipe_files import BASE, load

from hpo_summarize.data import Dialogues
from hpo_summarize.study.identity import differences, identity_of

SPLITS = {"data.train": Dialogues(["a"], [["b"]], ["0"])}


def changes(*overrides: str) -> list[str]:
    before, after = (identity_of(load(BASE, *items), SPLITS) for items in ((), overrides))
    return differences(before, after)


@pytest.mark.parametrize(
    "override",
    [
        "data.seed=7",
        "data.max_dialogue_tokens=99",
        "generation.num_beams=2",
        "training.save_strategy='no'",
        "training.weight_decay=0.5",
        "search.epoch_eval.samples=7",
    ],
)
def test_what_changes_values_belongs_to_a_study(override: str) -> None:
    key, _, _ = override.partition("=")
    assert [line.split(":")[0].strip() for line in changes(override)] == [key]


@pytest.mark.parametrize(
    "override",
    [
        "output_dir=elsewhere",
        "search.n_trials=99",
        "search.timeout=60",
        "training.dataloader_num_workers=2",
        "training.logging_steps=7",
        "training.per_device_eval_batch_size=2",
        "training.report_to=none",
        "training.save_total_limit=2",
    ],
)
def test_what_changes_speed_or_bookkeeping_alone_does_not(override: str) -> None:
    assert changes(override) == []
