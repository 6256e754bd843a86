"""Rebuilds the quick start's corpus and checkpoint, the same every time.

python scripts/build_quickstart.py      # about four minutes
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from quickstart.dialogues import Dialogue, write_corpus
from quickstart.pretrain import write_checkpoint

TARGET = Path(__file__).parents[1] / "recipes" / "quickstart"


def write_csv(path: Path, dialogues: Sequence[Dialogue]) -> None:
    """Writes `fname,dialogue,summary`, one row a dialogue, as UTF-8 with line feeds only."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["fname", "dialogue", "summary"])
        for number, dialogue in enumerate(dialogues):
            writer.writerow([f"{path.stem}_{number}", dialogue.text, dialogue.summary])


def main() -> None:
    """Writes the three splits, then trains the checkpoint on the training split alone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=TARGET)
    folder = parser.parse_intermixed_args().output_dir
    folder.mkdir(parents=True, exist_ok=True)
    corpus = write_corpus()
    for split, dialogues in corpus.items():
        write_csv(folder / f"{split}.csv", dialogues)
    texts = [text for d in corpus["train"] for text in (d.text, d.summary)]
    write_checkpoint(texts, folder / "checkpoint")


if __name__ == "__main__":
    main()
