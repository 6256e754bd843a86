"""Files that are broken, or not what their name says: refused with the place and the remedy."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hpo_summarize.config.schema import DataSection
from hpo_summarize.data.dialogues import Dialogues
from hpo_summarize.data.splits import read_dialogues, read_every_row
from hpo_summarize.errors import DataError

KOREAN = "fname,dialogue,summary\nr0,#Person1#: 안녕하세요,인사를 한다\n"


def read(path: Path, content: str | bytes, **keys: Any) -> Dialogues:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_dialogues(str(path), DataSection(**{"train": "unused", **keys}))


# Encodings.


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949", "utf-16", "utf-16-le"])
def test_a_file_in_the_encoding_that_the_recipe_names_is_read(
    encoding: str, tmp_path: Path
) -> None:
    named = encoding if encoding != "utf-8-sig" else "utf-8"
    data = read(tmp_path / "a.csv", KOREAN.encode(encoding), encoding=named)
    assert data.dialogues == ["#Person1#: 안녕하세요"]
    assert data.references == [["인사를 한다"]] and data.ids == ["r0"]


def test_a_byte_order_mark_does_not_hide_the_first_column(tmp_path: Path) -> None:
    content = "\ufeffdialogue,summary\na,b\n".encode()
    assert read(tmp_path / "a.csv", content).dialogues == ["a"]
    assert read(tmp_path / "a.json", b'\xef\xbb\xbf[{"dialogue": "a", "summary": "b"}]').ids == [
        "0"
    ]


@pytest.mark.parametrize("encoding", ["cp949", "utf-16"])
def test_another_encoding_is_refused_with_the_byte_and_the_common_ones(
    encoding: str, tmp_path: Path
) -> None:
    content = KOREAN.encode(encoding)
    byte = 0 if encoding == "utf-16" else KOREAN.index("안")
    message = rf"a.csv: byte {byte} is not utf-8; set data.encoding .*{encoding}"
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.csv", content)


def test_utf8_read_as_cp949_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not cp949; set data.encoding \(utf-8, "):
        read(tmp_path / "a.csv", KOREAN + "r1,가뷁,ㅎ\n", encoding="cp949")


def test_an_unknown_encoding_is_an_error_of_the_recipe() -> None:
    for name in ("utf-9", "base64"):
        with pytest.raises(ValueError, match=f"there is no encoding '{name}'; common are utf-8"):
            DataSection(train="a.csv", encoding=name)


# Files that are not what their name says.


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl"])
def test_a_nul_character_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{name}: there is a NUL character in line 2; .*UTF-16"):
        read(tmp_path / name, b"dialogue,summary\na\0b,c\n")


def test_a_nul_character_that_json_writes_as_an_escape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1, 'dialogue': the text has a NUL character"):
        read(tmp_path / "a.jsonl", '{"dialogue": "a\\u0000", "summary": "b"}')


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="line 1, 'summary': character 1 is half of a surrogate pair"
    ):
        read(tmp_path / "a.jsonl", '{"dialogue": "a", "summary": "b\\ud83d"}')


@pytest.mark.parametrize(("ending", "separator"), [("csv", ";"), ("csv", "\t"), ("tsv", ",")])
def test_another_separator_is_refused_with_the_key_and_read_with_it(
    ending: str, separator: str, tmp_path: Path
) -> None:
    path, content = tmp_path / f"a.{ending}", separator.join(["dialogue", "summary\nd", "s\n"])
    with pytest.raises(DataError, match=r"found are 'dialogue.*set data\.separator to '"):
        read(path, content)
    assert read(path, content, separator=separator).dialogues == ["d"]


# Quotes as marks around a text, and as characters of it.

AWKWARD = [
    {"dialogue": 'A: "Hi", Tom,\nB:\tbye; "so" ', "summary": '"'},
    {"dialogue": '"A: hi"', "summary": "s\n\nt"},
    {"dialogue": "A: hi; ho", "summary": '5" and "6"'},
]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_pandas_writes_is_read_as_it_was(separator: str, quoting: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    pd.DataFrame(AWKWARD).to_csv(path, index=False, sep=separator, quoting=quoting)
    data = read_dialogues(path, DataSection(train="unused", separator=separator))
    assert data.dialogues == [row["dialogue"] for row in AWKWARD]
    assert data.references == [[row["summary"]] for row in AWKWARD]
    assert data.notes == ()


@pytest.mark.parametrize("separator", [";", "\t"])
@pytest.mark.parametrize(
    "rows",
    [
        [("A: yes", '"s'), ("B: no", 't"'), ("C", "u"), ("D", "v")],
        [('"A: yes', "s"), ('B: no"', "t"), ("C", "u"), ("D", "v")],
        [('"A" yes', "s"), ("B: no", '"t')],
        [('"A: yes."', "s"), ("B", 'says "no"')],
    ],
)
def test_quotes_that_are_characters_of_a_text_join_no_rows(
    rows: list[tuple[str, str]], separator: str, tmp_path: Path
) -> None:
    lines = [separator.join(row) for row in [("dialogue", "summary"), *rows]]
    data = read(tmp_path / "a.tsv", "\n".join(lines), separator=separator)
    assert [*zip(data.dialogues, data.references)] == [(d, [s]) for d, s in rows]
    (note,) = data.notes
    assert "a.tsv: quotes are read as characters of the texts (line 2" in note


def test_texts_of_several_lines_in_a_tsv_of_one_column_stay_whole(tmp_path: Path) -> None:
    dialogues = ["A: a\nB: b", "A: c", 'A: "d"\nB: e']
    pd.DataFrame({"dialogue": dialogues}).to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    data, _ = read_every_row(tmp_path / "a.tsv", DataSection(train="unused"))
    assert data.dialogues == dialogues


def test_quotes_inside_of_texts_need_no_note(tmp_path: Path) -> None:
    data = read(tmp_path / "a.tsv", 'dialogue\tsummary\nA: a "b" c\tsays "d"\n')
    assert (data.dialogues, data.notes) == (['A: a "b" c'], ())


def test_rows_of_several_lines_that_could_be_rows_themselves_are_named(tmp_path: Path) -> None:
    two_ways = 'fname,dialogue,summary\nr0,"A: Hi, Tom\nB: Hi, Ann",greetings\n'
    data = read(tmp_path / "a.csv", two_ways)
    assert data.dialogues == ["A: Hi, Tom\nB: Hi, Ann"]
    (note,) = data.notes
    assert "1 row in quotes over several lines that could each be a row (lines 2 to 3)" in note
    for name, separator in (("a.tsv", "\t"), ("b.csv", ",")):
        mixed = 'dialogue|summary\na|"s\nb|t"\n"c\nd\ne"|u\n'.replace("|", separator)
        data = read(tmp_path / name, mixed)
        assert data.dialogues == ["a", "c\nd\ne"]
        assert "(lines 2 to 3)" in data.notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('d\ts\n"A" b\tc\nd\te\tf\n', "line 2 cannot be parsed"),
        ('d\ts\na\t"b\nc\td\te\n', "line 2 cannot be parsed"),
        (
            'd\ts\n"a\nb"\tc\td\n',
            "2 columns, and line 2 has 3",
        ),
    ],
)
def test_quotes_that_make_sense_in_no_way_are_refused_with_their_line(
    content: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"a.tsv: .*{message}"):
        read(tmp_path / "a.tsv", content)


@pytest.mark.parametrize("separator", ["ab", "", '"', "\n", " "])
def test_a_separator_is_one_character_that_can_separate(separator: str) -> None:
    with pytest.raises(ValueError, match="separator"):
        DataSection(train="a.csv", separator=separator)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.parquet"])
def test_zero_bytes_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{name}: (the file has no rows|this is no Parquet file)"):
        read(tmp_path / name, b"")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "dialogue,summary\n"), ("a.json", "[]"), ("a.jsonl", "\n\n"), ("b.csv", "\n")],
)
def test_a_file_without_rows_is_refused(name: str, content: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{name}: the file has no rows"):
        read(tmp_path / name, content)


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"dialogue": [], "summary": []}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="the file has no rows of data"):
        read_dialogues(tmp_path / "a.parquet", DataSection(train="unused"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.csv", "this file does not exist; relative paths start at"),
        ("folder.csv", r"this is a folder; set data.name to it"),
        ("a.xlsx", r"the ending '.xlsx' is unknown; known are .csv, .tsv, .json, .jsonl, .parquet"),
        ("pipe.csv", "this file is no regular file"),
        ("*.tsv", "no file matches; relative paths start at"),
        ("hf://datasets/user/repo", "this is a whole data set; set data.name to it"),
    ],
)
def test_a_source_that_is_no_data_file_is_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    os.mkfifo(tmp_path / "pipe.csv")
    source = name if name.startswith("hf:") else str(tmp_path / name)
    with pytest.raises(DataError, match=message):
        read_dialogues(source, DataSection(train="unused"))


def test_a_file_that_may_not_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # File modes do not bind the root user.
    with pytest.raises(DataError, match=r"a.csv: the file cannot be read \(Permission denied\)"):
        read(tmp_path / "a.csv", KOREAN)


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a.parquet: this is no Parquet file .*correct its ending"):
        read(tmp_path / "a.parquet", KOREAN)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"dialogue": "a"\n', "line 1 is not valid JSON"),
        ("[" * 100_000, "the file is not valid JSON"),
        ('{"dialogue": NaN, "summary": "b"}', "1 of 1 rows have no text in the column 'dialogue'"),
        ('{"dialogue": "a", "dialogue": "b"}', "a key occurs twice among dialogue, dialogue"),
        ('{"dialogue": "a", "summary": "b"}\n\n"c"', "line 3 is a str, not an object"),
        ('[{"dialogue": "a", "summary": "b"}, 5]', "object 2 is a int, not an object"),
    ],
)
def test_json_that_is_no_list_of_objects_is_refused(
    content: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"a.json: .*{message}"):
        read(tmp_path / "a.json", content)
