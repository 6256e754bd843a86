"""Which settings the runs of one study must share."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from recipe_files import BASE, load

from hpo_summarize import __version__
from hpo_summarize.data.dialogues import Dialogues
from hpo_summarize.errors import StudyError
from hpo_summarize.study.fingerprint import (
    check_fingerprint,
    check_result,
    differences,
    fingerprint_of,
)

SPLITS = {"data.train": Dialogues(["a"], [["b"]], ["0"])}


def changes(*overrides: str) -> list[str]:
    before, after = (fingerprint_of(load(BASE, *items), SPLITS) for items in ((), overrides))
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


SPACE = "space: {learning_rate: {type: float, low: 1.0e-5, high: 1.0e-4}}\n"
# Keys as an earlier version could lack them, with a value other than the default.
SINCE = [
    ("data.seed", 42, "data.seed=7"),
    ("search.epoch_eval.samples", 128, "search.epoch_eval.samples=9"),
    ("training.weight_decay", 0.0, "training.weight_decay=0.1"),
    ("rouge.references", "mean", "rouge.references=max"),
    ("space.learning_rate.log", False, "space.learning_rate.log=true"),
]


@pytest.mark.parametrize("key, default, other", SINCE)
def test_a_key_that_is_new_since_the_study_counts_as_its_default(
    key: str, default: Any, other: str
) -> None:
    text = BASE + SPACE
    known = fingerprint_of(load(text), SPLITS)
    assert known.pop(key) == default
    assert differences(known, fingerprint_of(load(text), SPLITS)) == []
    (line,) = differences(known, fingerprint_of(load(text, other), SPLITS))
    assert line.startswith(f"  {key}: was {default!r}, now ")


def test_a_whole_section_that_is_new_since_the_study_counts_as_its_defaults() -> None:
    identity = fingerprint_of(load(BASE), SPLITS)
    known = {key: v for key, v in identity.items() if not key.startswith("search.epoch_eval")}
    assert len(known) < len(identity) and differences(known, identity) == []


@pytest.mark.parametrize(
    "key, value",
    [
        *(("data.gone", 8), ("rouge.gone", None), ("gone.key", 4)),
        ("training.logging_steps", 7),  # As one that has become neutral.
    ],
)
def test_a_recorded_key_that_does_not_exist_any_more_does_not_count(key: str, value: Any) -> None:
    identity = fingerprint_of(load(BASE + SPACE, "lora={}"), SPLITS)
    assert differences({**identity, key: value}, identity) == []


@pytest.mark.parametrize(
    "before, after, expected",
    [
        (BASE, BASE + "lora: {}\n", "  lora.alpha: was not set, now 16"),
        (BASE + "lora: {}\n", BASE, "  lora.alpha: was 16, now not set"),
        (BASE + "training: {optim: sgd}\n", BASE, "  training.optim: was 'sgd', now not set"),
        (BASE, BASE + "generation: {num_beams: 4}\n", "  generation.num_beams: was not set, now 4"),
        (BASE + SPACE, BASE, "  space.learning_rate.high: was 0.0001, now not set"),
        (BASE, BASE + SPACE, "  space.learning_rate.high: was not set, now 0.0001"),
    ],
)
def test_what_a_recipe_gives_or_leaves_out_differs_still(
    before: str, after: str, expected: str
) -> None:
    known, identity = (fingerprint_of(load(text), SPLITS) for text in (before, after))
    assert expected in differences(known, identity)


def test_a_study_of_an_earlier_version_is_continued_and_keeps_its_defaults() -> None:
    study, identity = optuna.create_study(), fingerprint_of(load(BASE), SPLITS)
    record = {**identity, "data.gone": 1, "version": "0.0.1"}
    del record["data.seed"]
    study.set_user_attr("identity", record)
    check_result(study, load(BASE))
    check_fingerprint(study, identity)
    assert study.user_attrs["identity"] == {**record, "data.seed": 42}
    with pytest.raises(StudyError, match=r"by version 0\.0\.1 .*\n  data.seed: was 42, now 7\n"):
        check_fingerprint(study, fingerprint_of(load(BASE, "data.seed=7"), SPLITS))
    new = optuna.create_study()
    check_fingerprint(new, identity)
    assert new.user_attrs["identity"] == {**identity, "version": __version__}
