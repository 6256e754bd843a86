"""Columns, cells, rows and data sets that cannot be used: refused, or counted where allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset

from hpo_summarize.config.loader import parse_recipe
from hpo_summarize.config.schema import DataSection
from hpo_summarize.data.dialogues import Dialogues, Table, to_dialogues
from hpo_summarize.data.splits import load_splits, read_dialogues
from hpo_summarize.errors import DataError, RecipeError

ROWS = [{"dialogue": f"A: {number}", "summary": "s"} for number in range(10)]


def read(path: Path, content: str, **keys: Any) -> Dialogues:
    path.write_text(content, encoding="utf-8", newline="")
    return read_dialogues(str(path), DataSection(**{"train": "unused", **keys}))


# Columns and cells.


@pytest.mark.parametrize("key", ["dialogue_column", "summary_column", "id_column"])
def test_a_misnamed_column_is_refused_with_those_found(key: str, tmp_path: Path) -> None:
    message = rf"no column 'summry'; .*found are 'dialogue', 'summary'; set data\.{key}; did you"
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.csv", "dialogue,summary\na,b\n", **{key: "summry"})


def test_no_usual_column_is_refused_with_those_found_and_wanted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="called dialogue or dialog or .*found are 'a', 'summary'"):
        read(tmp_path / "a.csv", "a,summary\na,b\n")
    with pytest.raises(DataError, match="no column is called summary or summaries.*summary_column"):
        read(tmp_path / "a.csv", "dialogue,b\na,b\n")


def test_a_doubled_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the column 'summary' occurs more than once"):
        read(tmp_path / "a.csv", "dialogue,summary,summary\na,b,c\n")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_cells_that_look_like_missing_values_or_numbers_stay_text(
    name: str, tmp_path: Path
) -> None:
    words = ["NA", "None", "null", "nan", "007", "1e5", "True", "-"]
    content = "\n".join(["dialogue,summary,fname", *(f"{w},{w},{w}" for w in words)])
    data = read(tmp_path / name, content, separator=",")
    assert data.dialogues == words == data.ids
    assert data.references == [[word] for word in words]


def test_numbers_in_json_become_text_and_other_things_are_refused(tmp_path: Path) -> None:
    assert read(tmp_path / "a.json", '[{"dialogue": 7, "summary": 1.5}]').references == [["1.5"]]
    for cell in ("true", '{"a": 1}', "[[1]]"):
        content = f'[{{"dialogue": "a", "summary": {cell}}}]'
        with pytest.raises(DataError, match="object 1, 'summary': the cell is .*, not a text"):
            read(tmp_path / "a.json", content)
    for turn in ("5", '{"who": "A", "text": "b"}, {"words": "c"}', '{"text": null}'):
        content = f'[{{"dialogue": [{turn}], "summary": "b"}}]'
        with pytest.raises(DataError, match="object 1, 'dialogue': a turn is .*; write a text"):
            read(tmp_path / "a.json", content)


def test_rows_with_more_or_fewer_cells_than_the_header_are_refused(tmp_path: Path) -> None:
    content = 'dialogue,summary\n"a\nb",c\nd\ne,f,g\n'
    with pytest.raises(DataError, match="2 columns, and line 4 has 1, line 5 has 3; put a text"):
        read(tmp_path / "a.csv", content)


@pytest.mark.parametrize("content", ['a,"b\nc,d\n', 'a,"b"c\nd,e\n'])
def test_a_quote_that_would_join_rows_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the row at line 2 cannot be parsed .*a text twice"):
        read(tmp_path / "a.csv", "dialogue,summary\n" + content)


def test_a_cell_of_a_million_characters_is_read_whole(tmp_path: Path) -> None:
    data = read(tmp_path / "a.csv", f"dialogue,summary\n{'x' * 1_000_000},b\n")
    assert len(data.dialogues[0]) == 1_000_000


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    data = read(tmp_path / "a.csv", "dialogue,summary\n\na,b\r\n\r\nc,d\n\n")
    assert data.dialogues == ["a", "c"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_rows_without_a_text_are_refused_or_dropped_and_counted(name: str, tmp_path: Path) -> None:
    rows = [("a", "b"), ("", "c"), ("d", " \n "), ("e", "f")]
    content = pd.DataFrame(rows, columns=["dialogue", "summary"]).to_csv(index=False)
    if name == "a.jsonl":
        content = "\n".join(json.dumps({"dialogue": d or None, "summary": s}) for d, s in rows)
    message = r"1 of 4 rows have no text in the column 'dialogue' \(line \d\); .*empty_rows to drop"
    with pytest.raises(DataError, match=message):
        read(tmp_path / name, content)
    data = read(tmp_path / name, content, empty_rows="drop")
    assert data.dialogues == ["a", "e"]
    assert "2 of 4 rows without a text are dropped (line" in data.notes[0]


def test_a_row_with_a_part_of_its_summaries_counts_and_is_told(tmp_path: Path) -> None:
    content = "dialogue,summary1,summary2,summary3\na,b,,c\nd,e,f,g\nh,, ,\n"
    with pytest.raises(DataError, match="1 of 3 rows have no text in .*summary1, .*line 4"):
        read(tmp_path / "a.csv", content)
    data = read(tmp_path / "a.csv", content, empty_rows="drop")
    assert data.references == [["b", "c"], ["e", "f", "g"]]
    note = "1 of 3 rows lack one of several summaries (line 2); the others are used"
    assert [note in line for line in data.notes].count(True) == 1


def test_dropping_every_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the 1 rows has all its texts"):
        read(tmp_path / "a.csv", "dialogue,summary\na,\n", empty_rows="drop")


# The same dialogue twice.


def test_repeated_dialogues_within_a_split_are_counted(tmp_path: Path) -> None:
    data = read(tmp_path / "a.csv", 'dialogue,summary\na b,s\n"a  b ",t\nc,u\na b,s\n')
    assert len(data) == 4
    assert data.notes == (
        f"{tmp_path / 'a.csv'}: 2 of 4 rows repeat the dialogue of an earlier row",
    )


def test_dialogues_in_both_splits_are_counted_or_refused(tmp_path: Path) -> None:
    for name, rows in (("train", ROWS[:6]), ("dev", ROWS[4:])):
        pd.DataFrame(rows).to_csv(tmp_path / f"{name}.csv", index=False)
    keys = {"train": str(tmp_path / "train.csv"), "validation": str(tmp_path / "dev.csv")}
    validation = load_splits(DataSection(**keys))[1]
    assert any(n.startswith("2 of 6 validation dialogues are in") for n in validation.notes)
    for source in (keys, {"name": str(tmp_path)}):
        with pytest.raises(DataError, match="2 of 6 validation dialogues .* data.leaks to warn"):
            load_splits(DataSection(**source, leaks="refuse"))


# Data sets by name.


def test_a_data_set_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no-such/set: there is no such folder, .*HF_TOKEN"):
        load_splits(DataSection(name="no-such/set"))
    with pytest.raises(DataError, match="'./no such/folder' is neither a folder nor the id"):
        load_splits(DataSection(name="./no such/folder"))
    with pytest.raises(
        DataError, match="hf://datasets/a/b/c.csv: .*it cannot be downloaded from the Hub"
    ):
        load_splits(DataSection(train="hf://datasets/a/b/c.csv"))
    path = tmp_path / "train.csv"
    path.write_text("dialogue,summary\na,b\n")
    with pytest.raises(DataError, match="is a file; set data.train to it, and name to null"):
        load_splits(DataSection(name=str(path)))


def test_a_folder_without_data_or_without_the_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`datasets` finds no data there .*known are .csv"):
        load_splits(DataSection(name=str(tmp_path)))
    (tmp_path / "train.csv").write_text("dialogue,summary\na,b\n")
    with pytest.raises(DataError, match="there is no split 'trian'; it has train; did you mean"):
        load_splits(DataSection(name=str(tmp_path), train="trian"))
    with pytest.raises(DataError, match="`datasets` finds no data .*data.config picks"):
        load_splits(DataSection(name=str(tmp_path), config="absent"))


def test_a_broken_saved_data_set_is_refused(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(DataError, match="the saved data set cannot be opened .*save_to_disk"):
        load_splits(DataSection(name=str(tmp_path)))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "data: neither name nor train is set; set train to a file"),
        ({"train": "a.csv", "revision": "main"}, "data: revision acts on a data set, and name"),
        ({"train": "a.csv", "config": "x"}, "data: config acts on a data set, and name"),
        ({"train": []}, "data.train: must be .*at least 1 item .*got \\[\\]"),
        ({"train": 5}, "data.train: must be text"),
        ({"train": "a.csv", "empty_rows": "keep"}, "data.empty_rows: must be 'refuse' or 'drop'"),
        ({"train": "a.csv", "leaks": "ignore"}, "data.leaks: must be 'warn' or 'refuse'"),
        ({"train": "a.csv", "token": "hf_x"}, "data.token: unknown key"),
    ],
)
def test_a_wrong_data_section_is_refused_with_its_key(keys: dict[str, Any], message: str) -> None:
    content = {"model": {"name": "m"}, "output_dir": "o", "data": keys}
    with pytest.raises(RecipeError, match=message):
        parse_recipe(content)


# Turns as objects.


def read_turns(*turns: Any) -> Dialogues:
    columns = {"dialogue": [[turn] for turn in turns], "summary": ["s"] * len(turns)}
    table = Table("t", columns, ["a row"] * len(turns))
    return to_dialogues(table, DataSection(train="t"))


@pytest.mark.parametrize(
    ("turn", "line"),
    [
        ({"speaker": None, "role": "A", "text": "hello"}, "A: hello"),
        ({"speaker": "", "name": "A", "text": None, "content": "hello"}, "A: hello"),
        ({"speaker": None, "role": None, "text": "hello"}, "hello"),
        ({"speaker": 0, "text": "hello"}, "0: hello"),
        ({"speaker": "A", "text": ""}, "A: "),
        ({"participantID": "P01", "utterance": "hello"}, "P01: hello"),
        ({"Participant": "P01", "Utterance": "hello"}, "P01: hello"),
        ({"participant_id": "P01", "utterance": "hello"}, "P01: hello"),
        ({"speaker_id": "S1", "form": "hello"}, "S1: hello"),
        ({"speakerId": 2, "text": "hello"}, "2: hello"),
        ({"Speaker": "A", "TEXT": "hello"}, "A: hello"),
        ({"user": "A", "text": "hello"}, "A: hello"),
        ({"author": "A", "message": "hello"}, "A: hello"),
        ({"who": "A", "text": "hello"}, "A: hello"),
        ({"from": "human", "value": "hello"}, "human: hello"),
    ],
)
def test_a_turn_keeps_its_speaker_under_each_usual_name(turn: dict[str, Any], line: str) -> None:
    data = read_turns(turn)
    assert (data.dialogues, data.notes) == ([line], ())


def test_of_two_speakers_of_a_turn_one_is_taken_and_the_other_field_is_named() -> None:
    data = read_turns({"speaker_id": 7, "speaker": "Mina", "text": "hello", "content": "hi"})
    assert data.dialogues == ["Mina: hello"]
    assert data.notes == ("t: fields of the turns that are not read: speaker_id, content",)


def test_fields_of_turns_that_are_not_read_are_named_once() -> None:
    turn = {"turnID": "T1", "participantID": "P01", "time": "16:03:00", "note": None}
    turns = [{**turn, "utterance": "hello"}, {**turn, "turnID": "T2", "utterance": "bye"}]
    data = read_turns(*turns)
    assert data.dialogues == ["P01: hello", "P01: bye"]
    assert data.notes == ("t: fields of the turns that are not read: turnID, time",)


def test_turns_whose_speaker_cannot_be_told_say_which_fields_would_be_read() -> None:
    data = read_turns({"persona": "A", "text": "hello"}, {"speaker": {"sex": "f"}, "text": "bye"})
    assert data.dialogues == ["hello", "bye"]
    (note,) = data.notes
    assert note.startswith("t: fields of the turns that are not read: persona, speaker; ")
    assert "2 turns have no speaker, which is a text or a number in speaker, role, name" in note
