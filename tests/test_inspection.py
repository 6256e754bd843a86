"""What the inspection of a data set measures, warns of and prints."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from transformers import PreTrainedTokenizerBase

from hpo_summarize.config.schema import DataSection
from hpo_summarize.data.dialogues import Dialogues
from hpo_summarize.inspection import inspect_data, print_inspection
from hpo_summarize.models.tokenization import tokenize

SECTION = DataSection(train="unused")


def dialogues(rows: list[dict[str, str]]) -> Dialogues:
    summaries = [[row["summary"]] for row in rows]
    return Dialogues([row["dialogue"] for row in rows], summaries, [row["fname"] for row in rows])


def test_lengths_and_losses_are_those_of_the_tokens_a_model_gets(
    rows: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase
) -> None:
    data = dialogues(rows)
    whole = tokenize(data, tokenizer, SECTION)
    limits = DataSection(train="unused", max_dialogue_tokens=20, max_summary_tokens=8)
    cut = tokenize(data, tokenizer, limits)
    facts = inspect_data({"train": data}, tokenizer, limits).splits["train"]
    for lengths, column in zip(facts.lengths, ("input_ids", "labels"), strict=True):
        before, after = sum(map(len, whole[column])), sum(map(len, cut[column]))
        assert lengths.lost == pytest.approx(1 - after / before)
        assert lengths.cut_rows == sum(len(row) > lengths.limit for row in whole[column])
        assert lengths.percentiles[100] == max(map(len, whole[column]))
        assert lengths.percentiles[5] <= lengths.percentiles[50] <= lengths.percentiles[95]


def test_a_limit_that_cuts_more_than_a_hundredth_is_warned_of_with_the_one_that_does_not(
    rows: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase
) -> None:
    splits = {"train": dialogues(rows)}
    assert inspect_data(splits, tokenizer, SECTION).warnings == []
    longest = inspect_data(splits, tokenizer, SECTION).splits["train"].lengths[0].percentiles[100]
    tight = DataSection(train="unused", max_dialogue_tokens=longest - 10)
    (warning,) = inspect_data(splits, tokenizer, tight).warnings
    assert warning.startswith(f"train: data.max_dialogue_tokens of {longest - 10} cuts off ")
    assert f"nothing is lost at {longest}" in warning


def test_unknown_tokens_are_counted_and_warned_of(tokenizer: PreTrainedTokenizerBase) -> None:
    word = Dialogues([f"a {tokenizer.unk_token}"], [["b"]], ["0"])
    inspection = inspect_data({"train": word}, tokenizer, SECTION)
    length = len(tokenizer(word.dialogues[0])["input_ids"])
    assert inspection.splits["train"].lengths[0].unknown == pytest.approx(1 / length)
    assert "of the dialogue tokens are unknown to the tokenizer" in inspection.warnings[0]


def test_speakers_and_markers_are_found_and_told_apart(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "#Person1#: Call #PhoneNumber#.\nMina: At 10:30?\n민수：네.\n#Person1#: Yes, <name>."
    data = Dialogues([text], [["#Person1# calls."]], ["0"])
    inspection = inspect_data({"train": data}, tokenizer, SECTION)
    facts = inspection.splits["train"]
    assert facts.speakers == {"#Person1#": 1, "Mina": 1, "민수": 1}
    assert facts.markers == {"#Person1#": 3, "#PhoneNumber#": 1, "<name>": 1}
    assert inspection.whole_markers == {"#Person1#"}


def test_repetitions_and_leaks_between_all_splits_are_counted(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    one = Dialogues(["a", "b", "a"], [["s"]] * 3, ["0", "1", "2"])
    two, three = one.rows([1]), Dialogues(["c", "b "], [["s"]] * 2, ["0", "1"])
    splits = {"train": one, "validation": two, "test": three}
    inspection = inspect_data(splits, tokenizer, SECTION)
    assert [facts.repeated for facts in inspection.splits.values()] == [1, 0, 0]
    assert inspection.leaks == {
        ("train", "validation"): 1,
        ("train", "test"): 1,
        ("validation", "test"): 1,
    }
    assert "1 of 2 dialogues of test are in train, too" in inspection.warnings[1]


def test_examples_are_cut_as_the_model_will_see_them(
    rows: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase
) -> None:
    tight = DataSection(train="unused", max_dialogue_tokens=8)
    inspection = inspect_data({"train": dialogues(rows)}, tokenizer, tight)
    assert [name for name, _, _ in inspection.examples] == ["row_0", "row_1", "row_2"]
    _, dialogue, summary = inspection.examples[0]
    assert len(tokenizer.tokenize(dialogue)) == 8
    assert summary == f"<s>{rows[0]['summary']}</s>"


def test_a_split_without_summaries_is_inspected_and_printed(
    tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Dialogues(["A: hello", "B: bye"], [[], ["s", "t"]], ["x", "y"])
    inspection = inspect_data({"test": data}, tokenizer, SECTION)
    assert [lengths.kind for lengths in inspection.splits["test"].lengths] == ["dialogue"]
    print_inspection(inspection)
    printed = capsys.readouterr().out
    assert "test: 2 rows, references a row: 0 to 2, repeated: 0" in printed
    assert "x, as the model will see it\n<s>A: hello</s>" in printed


def test_the_script_prints_every_split_and_ends_with_the_status_of_the_data(
    csv_path: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"model: {{name: {checkpoint}}}\noutput_dir: {tmp_path / 'out'}\n"
        f"data: {{train: {csv_path}, test: {csv_path}, max_dialogue_tokens: 16}}\n"
    )
    command = [str(REPOSITORY / "scripts" / "inspect_data.py"), str(recipe)]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(command[0], run_name="__main__")
    printed = capsys.readouterr().out
    for wanted in ("train: 29 rows", "validation: 3 rows", "test: 32 rows", "warning: train: data"):
        assert wanted in printed
    monkeypatch.setattr(sys, "argv", [*command, "data.train=a.csv"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(command[0], run_name="__main__")
    assert ended.value.code == 2
    assert "error: a.csv: this file does not exist" in capsys.readouterr().err
