"""Where data come from, in which layouts, and how they are split and tokenised."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import make_rows
from datasets import Dataset, DatasetDict

from hpo_summarize.config.schema import DataSection
from hpo_summarize.data.dialogues import Dialogues
from hpo_summarize.data.splits import count_leaks, load_splits, read_dialogues, split
from hpo_summarize.errors import DataError

DIALOGSUM = Path("/work/shared/data/dialogsum")
ROWS = make_rows(12, seed=3)
TEXTS = [row["dialogue"] for row in ROWS]
SUMMARIES = [[row["summary"]] for row in ROWS]


def section(**keys: Any) -> DataSection:
    return DataSection(**{"train": "unused", **keys})


def write_csv(path: Path, rows: list[dict[str, Any]] = ROWS, **options: Any) -> str:
    pd.DataFrame(rows).to_csv(path, index=False, **options)
    return str(path)


def write_json(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return str(path)


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    pd.DataFrame(rows).to_parquet(path)
    return str(path)


FORMATS: dict[str, Callable[..., str]] = {
    "rows.csv": write_csv,
    "rows.tsv": lambda path, rows: write_csv(path, rows, sep="\t"),
    "rows.json": write_json,
    "lines.json": write_json_lines,
    "rows.jsonl": write_json_lines,
    "rows.parquet": write_parquet,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    data = read_dialogues(FORMATS[name](tmp_path / name, ROWS), section())
    assert (data.dialogues, data.references) == (TEXTS, SUMMARIES)
    assert data.ids == [row["fname"] for row in ROWS]


def test_json_lines_may_hold_characters_that_break_lines_elsewhere(tmp_path: Path) -> None:
    rows = [{"dialogue": "one\u2028two\x85three", "summary": "s"}]
    data = read_dialogues(write_json_lines(tmp_path / "a.jsonl", rows), section())
    assert data.dialogues == ["one\u2028two\x85three"]


def test_windows_line_ends_become_plain_ones_and_nothing_else_changes(tmp_path: Path) -> None:
    rows = [{"dialogue": ' A: "Hi",\r\nB:\tbye ', "summary": "s"}]
    data = read_dialogues(write_json(tmp_path / "a.json", rows), section())
    assert data.dialogues == [' A: "Hi",\nB:\tbye ']


def test_a_glob_and_a_list_join_files_and_a_glob_sorts_them(tmp_path: Path) -> None:
    parts = [write_csv(tmp_path / f"part{i}.csv", ROWS[i * 6 : i * 6 + 6]) for i in (1, 0)]
    by_glob = read_dialogues(str(tmp_path / "part*.csv"), section())
    by_list = read_dialogues(parts, section())
    assert by_glob.dialogues == TEXTS
    assert by_list.dialogues == TEXTS[6:] + TEXTS[:6]


def test_a_file_whose_name_looks_like_a_glob_is_read(tmp_path: Path) -> None:
    assert len(read_dialogues(write_csv(tmp_path / "a[1].csv"), section())) == 12


def test_a_folder_gives_its_splits_by_the_names_of_its_files(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ROWS[:8])
    write_csv(tmp_path / "dev.csv", ROWS[8:])
    write_csv(tmp_path / "sample_submission.csv", ROWS[:1])
    train, validation = load_splits(DataSection(name=str(tmp_path)))
    assert (train.dialogues, validation.dialogues) == (TEXTS[:8], TEXTS[8:])


def test_a_folder_without_a_validation_split_is_split(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv")
    train, validation = load_splits(DataSection(name=str(tmp_path), validation_fraction=0.25))
    assert sorted(train.dialogues + validation.dialogues) == sorted(TEXTS)
    assert len(validation) < len(train)


def test_a_configuration_chooses_among_the_files_of_a_folder(tmp_path: Path) -> None:
    for name, rows in (("short", ROWS[:4]), ("long", ROWS[4:])):
        write_csv(tmp_path / f"{name}.csv", rows)
    configs = [f"- config_name: {n}\n  data_files: {n}.csv\n" for n in ("short", "long")]
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    data = read_dialogues("train", DataSection(name=str(tmp_path), config="long"))
    assert data.dialogues == TEXTS[4:]


def test_a_saved_data_set_is_read_with_its_splits(tmp_path: Path) -> None:
    parts = {"train": Dataset.from_list(ROWS[:8]), "dev": Dataset.from_list(ROWS[8:])}
    DatasetDict(parts).save_to_disk(tmp_path / "both")
    parts["train"].save_to_disk(tmp_path / "one")
    train, validation = load_splits(DataSection(name=str(tmp_path / "both")))
    assert (train.dialogues, validation.dialogues) == (TEXTS[:8], TEXTS[8:])
    assert read_dialogues("train", DataSection(name=str(tmp_path / "one"))).dialogues == TEXTS[:8]


def test_several_splits_of_a_data_set_can_train_and_a_path_is_a_file(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ROWS[:6])
    write_csv(tmp_path / "test.csv", ROWS[6:])
    keys = DataSection(name=str(tmp_path), train=["train", "test"])
    assert read_dialogues(["train", "test"], keys).dialogues == TEXTS
    assert read_dialogues(tmp_path / "test.csv", keys).dialogues == TEXTS[6:]


def test_the_korean_competition_layout_and_samsum_load_without_a_setting(tmp_path: Path) -> None:
    row = {"dialogue": "#Person1#: 안녕하세요, 오늘 몇 시에 만날까요?", "summary": "시간을 정한다."}
    korean = write_csv(tmp_path / "k.csv", [{"fname": "train_0", **row, "topic": "약속"}])
    samsum = write_json(tmp_path / "s.json", [{"id": "138", **row}])
    for path, name in ((korean, "train_0"), (samsum, "138")):
        data = read_dialogues(path, section())
        assert (data.ids, data.notes) == ([name], ())
        assert data.references == [["시간을 정한다."]]


def test_numbered_summaries_are_references_in_their_order_and_this_is_said(tmp_path: Path) -> None:
    row = {"dialogue": "d", **{f"summary{i}": str(i) for i in (10, 2, 1)}, "topic1": "t"}
    data = read_dialogues(write_csv(tmp_path / "a.csv", [row]), section())
    assert data.references == [["1", "2", "10"]]
    assert "read from 'summary1', 'summary2', 'summary10'" in data.notes[0]


def test_a_usual_name_is_guessed_and_said_and_a_key_comes_before_it(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"Dialog": "a", "summaries": "b", "x": "c", "y": "7"}])
    guessed = read_dialogues(path, section())
    assert (guessed.dialogues, guessed.references) == (["a"], [["b"]])
    assert len(guessed.notes) == 2 and "read from 'Dialog'" in guessed.notes[0]
    keys = section(dialogue_column="x", summary_column=["y", "summaries"], id_column="y")
    named = read_dialogues(path, keys)
    assert (named.dialogues, named.references, named.ids) == (["c"], [["7", "b"]], ["7"])
    assert named.notes == ()


@pytest.mark.parametrize(
    "keys",
    [{"dialogue_column": "summary"}, {"summary_column": ["summary", "dialogue"]}],
)
def test_a_column_cannot_be_dialogue_and_summary_at_once(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    path = write_csv(tmp_path / "a.csv")
    with pytest.raises(DataError, match="both read from '(summary|dialogue)'.*set data.dialogue_c"):
        read_dialogues(path, section(**keys))
    unscored = read_dialogues(path, section(**keys), require_summaries=False)
    assert not any(unscored.references)


@pytest.mark.parametrize("write", [write_json, write_parquet])
def test_turns_in_a_list_become_lines(write: Callable[..., str], tmp_path: Path) -> None:
    turns = [{"speaker": "Mina", "text": "Hi."}, {"speaker": "Jun", "text": "Bye."}]
    path = tmp_path / ("a.json" if write is write_json else "a.parquet")
    data = read_dialogues(write(path, [{"dialogue": turns, "summary": ["s", "t"]}]), section())
    assert data.dialogues == ["Mina: Hi.\nJun: Bye."]
    assert data.references == [["s", "t"]]


def test_turns_that_are_plain_texts_become_lines(tmp_path: Path) -> None:
    rows = [{"dialogue": ["Mina: Hi.", "Jun: Bye."], "summary": "s"}]
    data = read_dialogues(write_json(tmp_path / "a.json", rows), section())
    assert data.dialogues == ["Mina: Hi.\nJun: Bye."]


def test_summaries_may_be_missing_where_they_are_not_required(tmp_path: Path) -> None:
    without = write_csv(tmp_path / "a.csv", [{"fname": "f", "dialogue": "d"}])
    blank = write_csv(tmp_path / "b.csv", [{"dialogue": "d", "summary": ""}])
    for path in (without, blank):
        assert read_dialogues(path, section(), require_summaries=False).references == [[]]
        with pytest.raises(DataError, match="summary"):
            read_dialogues(path, section())


def test_a_split_is_seeded_and_keeps_equal_dialogues_together() -> None:
    data = Dialogues(TEXTS * 2, SUMMARIES * 2, [str(number) for number in range(24)])
    train, validation = split(data, 0.25, seed=1)
    assert count_leaks(train, validation) == 0
    assert sorted(train.ids + validation.ids) == sorted(data.ids)
    assert split(data, 0.25, seed=1)[1].ids == validation.ids
    assert split(data, 0.25, seed=2)[1].ids != validation.ids


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_both_parts_of_a_split_have_rows_whatever_the_fraction(fraction: float) -> None:
    train, validation = split(Dialogues(["a", "b"], [["s"], ["t"]], ["0", "1"]), fraction, 0)
    assert (len(train), len(validation)) == (1, 1)


def test_one_dialogue_cannot_be_split() -> None:
    with pytest.raises(DataError, match="1 different dialogue in 2 rows, and a split needs two"):
        split(Dialogues(["a", "a "], [["s"], ["t"]], ["0", "1"]), 0.5, 0)


def test_max_rows_limits_each_split_after_the_split_is_made(tmp_path: Path) -> None:
    keys = {"train": write_csv(tmp_path / "a.csv"), "validation_fraction": 0.3}
    whole = load_splits(DataSection(**keys))
    cut = load_splits(DataSection(**keys, max_rows=2))
    assert [len(part) for part in cut] == [2, 2]
    assert [part.ids for part in cut] == [part.ids[:2] for part in whole]
    assert len(read_dialogues(keys["train"], DataSection(**keys, max_rows=5))) == 5


def test_the_test_split_is_not_opened_by_load_splits(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_bytes(b"\0 not a table")
    keys = {"train": write_csv(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv")}
    assert sum(map(len, load_splits(DataSection(**keys)))) == 12
    assert sum(map(len, load_splits(DataSection(name=str(tmp_path))))) == 12


def test_real_dialogsum_files_load_without_a_setting() -> None:
    if not DIALOGSUM.is_dir():
        pytest.skip(f"the real DialogSum files are not in {DIALOGSUM}")
    train, validation = load_splits(DataSection(train=str(DIALOGSUM / "dev.csv")))
    assert (len(train) + len(validation), count_leaks(train, validation)) == (500, 0)
    test = read_dialogues(str(DIALOGSUM / "test.csv"), section())
    assert {len(texts) for texts in test.references} == {3}
