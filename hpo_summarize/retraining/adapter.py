"""What a saved adapter belongs to: how a model card says it is used, and whether that holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import PeftModel

from hpo_summarize import names
from hpo_summarize.errors import HpoError
from hpo_summarize.experiment import Experiment
from hpo_summarize.model import difference_from, load_plain, with_depth
from hpo_summarize.recipe.values import last_part
from hpo_summarize.retraining.folder import ADAPTER


def adapter_usage(experiment: Experiment, folder: Path) -> str:
    """How the adapter in the folder of a model is put on its base, as Markdown; "" without one.

    The base is the recipe's checkpoint with the depth and the vocabulary that the trial gave it.
    """
    if not (folder / ADAPTER).is_dir():
        return ""
    section = experiment.recipe.model
    saved, depth, grown = _changes(experiment, folder)
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


def check_adapter(experiment: Experiment, folder: Path, outputs: Path) -> None:
    """Puts the adapter in the folder of a model on its base as the card says.

    Args:
        experiment: Names the base.
        folder: Folder of the model.
        outputs: What the model in memory said of a few rows, from `write_outputs`.

    Raises:
        HpoError: The two together are not the model that was trained.
    """
    if not (folder / ADAPTER).is_dir():
        return
    saved, depth, grown = _changes(experiment, folder)
    base = load_plain(experiment.recipe.model)
    if grown:
        base.resize_token_embeddings(saved["vocab_size"])
    if depth:
        base = with_depth(base, **depth)
    model = PeftModel.from_pretrained(base, str(folder / ADAPTER))
    if differs := difference_from(outputs, model):
        raise HpoError(
            f"the adapter in {folder / ADAPTER}, put on '{experiment.recipe.model.name}' again, is "
            f"not the model that was trained ({differs}); set train.save_adapter to false, or "
            "leave the keys of lora beside r, alpha, dropout and target_modules out"
        )


def _changes(experiment: Experiment, folder: Path) -> tuple[dict[str, Any], dict[str, int], bool]:
    """The saved config, the depth that is not the checkpoint's, and whether embeddings came to."""
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    base = experiment.model_config
    depth = {name: saved[name] for name in names.DEPTHS if _differ(base, saved, name)}
    return saved, depth, _differ(base, saved, "vocab_size")


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
