"""Where the data are: files, globs, folders, and data sets on the Hub."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, DatasetDict, load_dataset_builder, load_from_disk

from hpo_summarize.config.schema import DataSection
from hpo_summarize.data.dialogues import Table
from hpo_summarize.data.readers import ENDINGS, first_line, numbered, read_file
from hpo_summarize.errors import DataError, did_you_mean

_HUB_URL = re.compile(r"hf://datasets/(?P<id>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<path>.+))?")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

# Rows, or files with their names for messages.
Split: TypeAlias = Dataset | list[tuple[str, Path]]


def open_tables(source: str | Path | Sequence[str], section: DataSection) -> list[Table]:
    """The tables of one split.

    Args:
        source: Names of splits where the recipe names a data set; otherwise files, globs or
            `hf://datasets/...` files. A `Path` is always a file.
        section: The section `data`, which says where to look and how to read it.

    Raises:
        DataError: It does not exist or cannot be read.
    """
    if isinstance(source, Path):
        return [read_file(str(source), source, section)]
    sources = [source] if isinstance(source, str) else source
    if section.name is None:
        return [read_file(*found, section) for one in sources for found in _find_files(one)]
    splits = find_splits(section)
    for name in sources:
        if name not in splits:
            raise DataError(
                f"{section.name}: there is no split '{name}'; it has {', '.join(splits)}"
                f"{did_you_mean(name, splits)}"
            )
    return [table for name in sources for table in _split_tables(name, splits[name], section)]


def _split_tables(name: str, split: Split, section: DataSection) -> list[Table]:
    if isinstance(split, Dataset):
        return [dataset_table(f"{section.name}, split {name}", split)]
    return [read_file(label, path, section) for label, path in split]


def dataset_table(name: str, rows: Dataset) -> Table:
    """A loaded data set as a table.

    Raises:
        DataError: It has no rows.
    """
    if not len(rows):
        raise DataError(f"{name}: there are no rows; give a data set with dialogues")
    return Table(name, rows.to_dict(), numbered("row", len(rows)))


def find_splits(section: DataSection) -> dict[str, Split]:
    """The splits of the folder or the data set on the Hub that a recipe names.

    `datasets` decides which file belongs to which split and to which configuration.

    Raises:
        DataError: It cannot be found, or has no data in a form that can be read.
    """
    name = section.name or ""
    folder = Path(name).expanduser()
    if folder.is_file():
        raise DataError(f"data.name: '{name}' is a file; set data.train to it, and name to null")
    if not folder.is_dir():
        folder = _download_folder(section)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved_splits(folder, name)
    try:
        builder = load_dataset_builder(str(folder), section.config)
        files = {str(split): list(paths) for split, paths in builder.config.data_files.items()}
    except Exception as error:  # Several libraries, each with errors of its own.
        raise DataError(
            f"{name}: `datasets` finds no data there ({first_line(error)}); "
            f"known are {', '.join(ENDINGS)} files, and data.config picks a configuration"
        ) from None
    return {
        split: [(f"{name}: {os.path.relpath(path, folder)}", Path(path)) for path in paths]
        for split, paths in files.items()
    }


def _saved_splits(folder: Path, name: str) -> dict[str, Split]:
    try:
        saved = load_from_disk(str(folder))
    except Exception as error:
        raise DataError(
            f"{name}: the saved data set cannot be opened ({first_line(error)}); "
            "write it again with save_to_disk"
        ) from None
    return dict(saved) if isinstance(saved, DatasetDict) else {"train": saved}


def _download_folder(section: DataSection) -> Path:
    """The data files of a data set on the Hub, kept in the Hub's own cache.

    The whole files are read here, not the Arrow copies that `datasets` makes of them, whose CSV
    reader turns `NA` into a missing value. Without a network, the copy in the cache is used.
    """
    from huggingface_hub import snapshot_download

    name = section.name or ""
    match = _HUB_URL.fullmatch(name)
    if not match and not _HUB_ID.fullmatch(name):
        raise DataError(f"data.name: '{name}' is neither a folder nor the id of a data set")
    return _download(
        name,
        snapshot_download,
        match["id"] if match else name,
        revision=section.revision or (match["revision"] if match else None),
        allow_patterns=["README.md", *(f"*{ending}" for ending in ENDINGS)],
    )


def _download(name: str, fetch: Callable[..., str], *what: str, **options: Any) -> Path:
    try:
        return Path(fetch(*what, repo_type="dataset", **options))
    except Exception as error:
        raise DataError(
            f"{name}: there is no such folder, and it cannot be downloaded from the Hub "
            f"({first_line(error)}); check the name, and set HF_TOKEN to a token if it is private"
        ) from None


def _find_files(source: str) -> list[tuple[str, Path]]:
    if match := _HUB_URL.fullmatch(source):
        from huggingface_hub import hf_hub_download

        if not match["path"]:
            raise DataError(f"{source}: this is a whole data set; set data.name to it")
        what, revision = (match["id"], match["path"]), match["revision"]
        return [(source, _download(source, hf_hub_download, *what, revision=revision))]
    path = Path(source).expanduser()
    if path.is_dir():
        raise DataError(
            f"{source}: this is a folder; set data.name to it and data.train to the name of a "
            f"split (train), or name the files, as in {source.rstrip('/')}/*.csv"
        )
    if path.exists() or not glob.has_magic(source):
        return [(source, path)]
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    if not found:
        raise DataError(f"{source}: no file matches; relative paths start at {Path.cwd()}")
    return [(str(file), file) for file in found]
