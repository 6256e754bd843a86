"""Text to token ids to text: what tokenizers lose of it, what is repaired, what is reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from datasets import Dataset
from tokenizer_kinds import KINDS
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hpo_summarize import OptunaOptimizer
from hpo_summarize.components import Experiment
from hpo_summarize.config.loader import parse_recipe
from hpo_summarize.config.schema import DataSection, ModelSection, Recipe
from hpo_summarize.console import print_search_plan
from hpo_summarize.data.dialogues import Dialogues
from hpo_summarize.inspection import inspect_data, print_inspection
from hpo_summarize.models.tokenization import RoundTrip, round_trip
from hpo_summarize.models.tokenizer import add_tokens, keep_in_texts, load_tokenizer, pieces_note
from hpo_summarize.rouge import MEASURES, Rouge

SPEAKERS = ["#Person1#", "#Person2#"]
TEXTS = [
    "#Person1# and Sora meet #Person2#, at the office.",
    "Tom meets #Person2#'s brother and #Person1#은 집에 간다.",
    "#Person1#: Hello Tom, shall we meet at the office?",
]
Saved = Callable[..., Path]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def save(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Writes a tokenizer of the kind, with some tokens as special ones."""

    def save(special: list[str]) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        texts = [text.replace("#Person", "# Person ") for text in TEXTS]
        tokenizer = KINDS[kind](texts * 20)
        own = {"extra_special_tokens": special}
        tokenizer.add_special_tokens(own, replace_extra_special_tokens=False)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def ids_of(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [*tokenizer(TEXTS)["input_ids"], *tokenizer(text_target=TEXTS)["input_ids"]]


def back(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    labels = tokenizer(text_target=TEXTS)["input_ids"]
    texts = tokenizer.batch_decode(labels, skip_special_tokens=True)
    return [text.strip() for text in texts]


def reloaded(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_the_speakers_of_a_recipe_leave_the_spaces_around_them_as_they_are(
    kind: str, save: Saved, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(ModelSection(name=str(save([]))), SPEAKERS)
    for one in (tokenizer, reloaded(tokenizer, tmp_path)):
        assert back(one) == TEXTS
        assert ids_of(one) == ids_of(tokenizer)
    note = pieces_note(tokenizer, SPEAKERS)
    if kind in ("bart", "kobart"):
        assert set(SPEAKERS) <= tokenizer.get_added_vocab().keys() and note is None
    else:
        assert not set(SPEAKERS) & tokenizer.get_vocab().keys()
        assert "#Person1#, #Person2# stay split into pieces" in str(note)


def test_special_tokens_that_texts_are_written_with_are_decoded_and_no_others(
    kind: str, save: Saved, tmp_path: Path
) -> None:
    own = load_tokenizer(ModelSection(name=str(save([*SPEAKERS, "<unused0>"]))))
    assert not any(speaker in text for text in back(own) for speaker in SPEAKERS)
    kept = keep_in_texts(own, [*TEXTS, f"A text may say {own.eos_token} or {own.unk_token}."])
    for tokenizer in (kept, reloaded(kept, tmp_path)):
        assert all(
            text.count("#Person") == TEXTS[row].count("#Person")
            for row, text in enumerate(back(tokenizer))
        )
        assert ids_of(tokenizer) == ids_of(own)
        skipped = [token for token in own.all_special_tokens if token not in SPEAKERS]
        assert tokenizer.all_special_tokens == skipped and "<unused0>" in skipped
        ids = tokenizer.convert_tokens_to_ids(skipped)
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == ""
    if kind == "bart":
        assert back(kept) == TEXTS


def test_a_tokenizer_without_such_tokens_is_left_as_it_is(save: Saved) -> None:
    tokenizer = load_tokenizer(ModelSection(name=str(save([]))))
    assert keep_in_texts(tokenizer, TEXTS) is tokenizer


def test_a_tokenizer_that_cannot_write_a_speaker_in_pieces_gets_it_whole() -> None:
    tokenizer = KINDS["t5"]([text.replace("#", "") for text in TEXTS] * 20)
    add_tokens(tokenizer, SPEAKERS)
    assert set(SPEAKERS) <= tokenizer.get_added_vocab().keys()
    assert back(tokenizer)[0] == "#Person1# and Sora meet#Person2# , at the office."


# What is reported.


def trip_of(tokenizer: PreTrainedTokenizerBase, texts: list[str], limit: int = 99) -> RoundTrip:
    return round_trip(texts, tokenizer(text_target=texts)["input_ids"], tokenizer, Rouge(), limit)


@pytest.fixture(scope="module")
def bart() -> PreTrainedTokenizerBase:
    return KINDS["bart"](TEXTS * 20)


def test_nothing_is_said_of_a_tokenizer_that_gives_every_text_back(
    bart: PreTrainedTokenizerBase,
) -> None:
    trip = trip_of(bart, [*TEXTS, "two\n  lines"])
    assert (trip.rows, trip.changed, trip.cut, trip.note()) == (4, 0, 0, None)
    assert trip.ceiling == dict.fromkeys(MEASURES, 1.0)


def test_a_special_token_that_decoding_drops_is_named_with_the_score_that_is_left() -> None:
    tokenizer = KINDS["bart"](TEXTS * 20)
    tokenizer.add_special_tokens({"extra_special_tokens": ["#Person1#"]})
    texts = [*TEXTS, "Sora waits."]
    trip = trip_of(tokenizer, texts)
    assert (trip.changed, trip.faults) == (3, {"#Person1#": 3})
    assert trip.examples[0][1] == "and Sora meet #Person2#, at the office."
    decoded = [text.replace("#Person1#", "") for text in texts]
    assert trip.ceiling == pytest.approx(Rouge().compute(predictions=decoded, references=texts))
    note = trip.note()
    assert note is not None and note.endswith(
        "the tokenizer changes 3 of 4 references ('#Person1#' in 3)"
    )


def test_characters_and_spaces_that_are_lost_are_named() -> None:
    tokenizer = KINDS["t5"]([text.replace("#Person", "# Person ") for text in TEXTS] * 20)
    tokenizer.add_tokens(["#Person1#"])
    trip = trip_of(tokenizer, ["Sora and #Person1#, Tom", "#Person1# and Ω", "#Person1# met"])
    assert (trip.changed, trip.faults) == (2, {"#Person1#": 1, "Ω": 1})


def test_what_the_length_limit_cuts_off_lowers_the_score_that_is_left(
    bart: PreTrainedTokenizerBase,
) -> None:
    ids = bart(TEXTS)["input_ids"]
    limit = min(map(len, ids)) - 2
    trip = trip_of(bart, TEXTS, limit)
    written = bart.batch_decode([row[:limit] for row in ids], skip_special_tokens=True)
    assert (trip.changed, trip.cut) == (0, 3)
    expected = Rouge().compute(predictions=written, references=TEXTS)
    assert 0.2 < expected["rougeL"] < 0.95
    assert trip.ceiling == pytest.approx(expected)
    assert f"3 of 3 have more than {limit} tokens" in str(trip.note())


def test_of_very_many_rows_some_are_scored(bart: PreTrainedTokenizerBase) -> None:
    texts = [f"{'a ' * (n % 40)}b" for n in range(1200)]
    trip = trip_of(bart, texts, limit=10)
    rows = [bart.decode(bart(text)["input_ids"][:10], skip_special_tokens=True) for text in texts]
    exact = fmean(row["rougeL"] for row in Rouge().score_rows(rows, texts))
    assert trip.ceiling["rougeL"] == pytest.approx(exact, abs=0.02)


# In a run.


@pytest.fixture
def recipe_of(checkpoint_copy: Path, csv_path: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe for a checkpoint that has the first speaker as a special token."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_copy)
    tokenizer.add_special_tokens({"extra_special_tokens": ["#Person1#"]})
    tokenizer.save_pretrained(checkpoint_copy)

    def make(**sections: Any) -> Recipe:
        content = {
            "model": {"name": str(checkpoint_copy)},
            "data": {"train": str(csv_path), "max_dialogue_tokens": 100, "max_summary_tokens": 60},
            "output_dir": str(tmp_path / "out"),
            "space": {"learning_rate": {"type": "float", "low": 1e-4, "high": 1e-3}},
        }
        return parse_recipe({**content, **sections})

    return make


def test_a_speaker_that_the_checkpoint_has_as_special_is_in_the_summaries_of_a_run(
    recipe_of: Callable[..., Recipe],
) -> None:
    experiment = Experiment(recipe_of())
    train, _ = experiment.splits
    labels = experiment.tokenize(train)["labels"]
    assert experiment.decode(list(labels)) == [texts[0] for texts in train.references]
    tokens = {
        name: Dataset.from_dict(
            {
                "input_ids": experiment.tokenizer(split.dialogues)["input_ids"],
                "labels": experiment.tokenize(split)["labels"],
            }
        )
        for name, split in zip("ab", experiment.splits, strict=True)
    }
    given = Experiment(recipe_of(), (tokens["a"], tokens["b"]))
    assert given.splits[0].references == train.references
    assert given.decode(list(labels)) == [texts[0] for texts in train.references]


def test_a_search_says_before_its_first_trial_what_can_be_scored_at_most(
    recipe_of: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    for limit, is_said in ((40, False), (8, True)):
        output_dir = {"output_dir": f"{recipe_of().output_dir}{limit}"}
        optimizer = OptunaOptimizer(recipe_of(generation={"max_new_tokens": limit}, **output_dir))
        optimizer.prepare()
        print_search_plan(optimizer)
        printed = capsys.readouterr().out
        assert (
            "note     validation: a perfect model would score at most rouge1 0." in printed
        ) == is_said
        assert ("3 of 3 have more than 8 tokens" in printed) == is_said


def test_an_inspection_shows_what_does_not_come_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer = KINDS["bart"](TEXTS * 20)
    tokenizer.add_special_tokens({"extra_special_tokens": ["#Person1#"]})
    data = Dialogues(TEXTS, [[text] for text in TEXTS], ["0", "1", "2"])
    inspection = inspect_data({"train": data}, tokenizer, DataSection(train="unused"))
    print_inspection(inspection)
    printed = capsys.readouterr().out
    assert "as tokens 0 of 3 references are decoded unchanged, 0 are cut at 100 tokens" in printed
    assert repr(TEXTS[0]) in printed and "-> 'and Sora meet #Person2#, at the office.'" in printed
    assert any("('#Person1#' in 3)" in warning for warning in inspection.warnings)
