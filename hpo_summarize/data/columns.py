"""Which columns of a table hold the dialogue, the summaries and the identifier."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hpo_summarize.data.dialogues import Table
from hpo_summarize.errors import DataError, did_you_mean
from hpo_summarize.recipe import DataSection

# Usual names, in the order of looking; the first of each is taken without a word.
_DIALOGUE = ("dialogue", "dialog", "conversation", "text")
_SUMMARY = ("summary", "summaries")
_ID = ("fname", "id")
_NUMBERED_SUMMARY = re.compile(r"summary[ _-]?(\d+)", re.IGNORECASE)
_OTHER_SEPARATORS = ";\t|,"


@dataclass(frozen=True)
class Columns:
    """The columns to read.

    Attributes:
        dialogue: Name of the column with the dialogue.
        summaries: Names of the columns with summaries; empty where there are none.
        identifier: Name of the column that tells the rows apart, if there is one.
        notes: What was guessed.
    """

    dialogue: str
    summaries: list[str]
    identifier: str | None
    notes: list[str]


def find_columns(table: Table, section: DataSection, require_summaries: bool = True) -> Columns:
    """Takes the columns that the recipe names, or the usual ones where it names none.

    Raises:
        DataError: A column that the recipe names is not there, or no usual one is, or one column
            would be both.
    """
    notes: list[str] = []
    dialogue = section.dialogue_column or _guess(table, _DIALOGUE)
    named = section.summary_column
    summaries = [named] if isinstance(named, str) else list(named or _guess_summaries(table))
    if dialogue is None or dialogue not in table.columns:
        raise _missing(table, "dialogue_column", dialogue, _DIALOGUE)
    if not section.dialogue_column and dialogue != _DIALOGUE[0]:
        notes.append(f"{table.name}: the dialogues are read from '{dialogue}'")
    if not require_summaries and not set(summaries) <= set(table.columns) - {dialogue}:
        summaries = []
    elif dialogue in summaries:
        raise DataError(
            f"{table.name}: the dialogues and the summaries are both read from '{dialogue}'; set "
            "data.dialogue_column or data.summary_column to another one of the columns found, "
            f"{', '.join(map(repr, table.columns))}"
        )
    elif wrong := [name for name in summaries if name not in table.columns]:
        raise _missing(table, "summary_column", wrong[0], _SUMMARY)
    elif not summaries and require_summaries:
        raise _missing(table, "summary_column", None, _SUMMARY)
    if not named and summaries and summaries != [_SUMMARY[0]]:
        names = ", ".join(f"'{name}'" for name in summaries)
        notes.append(f"{table.name}: the summaries are read from {names}")
    return Columns(dialogue, summaries, _identifier(table, section), notes)


def _guess(table: Table, names: Sequence[str]) -> str | None:
    for name in names:
        for column in table.columns:
            if column.strip().lower() == name:
                return column
    return None


def _guess_summaries(table: Table) -> list[str]:
    if (column := _guess(table, _SUMMARY)) is not None:
        return [column]
    numbered = [(_NUMBERED_SUMMARY.fullmatch(column.strip()), column) for column in table.columns]
    found = [(int(match[1]), column) for match, column in numbered if match]
    return [column for _, column in sorted(found)]


def _identifier(table: Table, section: DataSection) -> str | None:
    if section.id_column is not None and section.id_column not in table.columns:
        raise _missing(table, "id_column", section.id_column, _ID)
    return section.id_column or _guess(table, _ID)


def _missing(table: Table, key: str, wanted: str | None, usual: Sequence[str]) -> DataError:
    columns = table.columns
    found = f"the columns found are {', '.join(map(repr, columns))}"
    what = f"there is no column '{wanted}'"
    if wanted is None:
        what = f"no column is called {' or '.join(usual)}"
    separators = [s for s in _OTHER_SEPARATORS if len(columns) == 1 and s in columns[0]]
    if separators:
        return DataError(f"{table.name}: {what}; {found}: set data.separator to {separators[0]!r}")
    nearest = did_you_mean(wanted or usual[0], columns)
    return DataError(f"{table.name}: {what}; {found}; set data.{key}{nearest}")
