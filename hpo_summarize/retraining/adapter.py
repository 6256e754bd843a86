"""What a saved adapter belongs to: the part of a model card that says how it is used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpo_summarize import names
from hpo_summarize.experiment import Experiment
from hpo_summarize.recipe.values import last_part
from hpo_summarize.retraining.folder import ADAPTER


def adapter_usage(experiment: Experiment, folder: Path) -> str:
    """How the adapter in the folder of a model is put on its base, as Markdown; "" without one.

    The base is the recipe's checkpoint with the depth and the vocabulary that the trial gave it.
    """
    if not (folder / ADAPTER).is_dir():
        return ""
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    base, section = experiment.model_config, experiment.recipe.model
    depth = {name: saved[name] for name in names.DEPTHS if _differ(base, saved, name)}
    grown = _differ(base, saved, "vocab_size")
    needs = [
        *([f"embeddings for {saved['vocab_size']} tokens"] if grown else ()),
        *(f"`{name}` {count}" for name, count in depth.items()),
    ]
    given = f" with {' and '.join(needs)}" if needs else ""
    name = last_part(str(section.name))
    code = "\n".join(_code(name, section.revision, saved, grown, depth))
    return (
        f"The LoRA adapter in `{ADAPTER}/`, which is merged into the weights above, fits on "
        f"`{name}`{given}, and on nothing else:\n\n```python\n{code}\n```\n"
    )


def _differ(base: Any, saved: dict[str, Any], name: str) -> bool:
    return name in saved and getattr(base, name, None) != saved[name]


def _code(
    name: str, revision: str | None, saved: dict[str, Any], grown: bool, depth: dict[str, int]
) -> Iterator[str]:
    yield "from peft import PeftModel"
    yield "from transformers import GenerationConfig"
    if depth:
        yield "from hpo_summarize.model.depth import with_depth"
    yield ""
    place = json.dumps(name)
    if revision is not None:
        place += f", revision={json.dumps(revision)}"
    yield f"base = AutoModelForSeq2SeqLM.from_pretrained({place})"
    if grown:
        yield f"base.resize_token_embeddings({saved['vocab_size']})"
    if depth:
        layers = ", ".join(f"{name}={count}" for name, count in depth.items())
        yield f"base = with_depth(base, {layers})"
    yield "base.generation_config = GenerationConfig.from_pretrained(folder)"
    yield f'model = PeftModel.from_pretrained(base, f"{{folder}}/{ADAPTER}")'
