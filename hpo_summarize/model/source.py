"""Where a model and its tokenizer come from, and what to say when nothing comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpo_summarize.errors import ModelError
from hpo_summarize.recipe import ModelSection

# What torch.load says of a pickle that holds more than tensors.
_CODE_IN_PICKLE = "weights only load failed"


def find_place(what: str, place: str) -> str:
    """The folder at `place`, or `place` itself where it can be the id of a repository on the Hub.

    Raises:
        ModelError: It can only be a folder, and there is none.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists() or place.startswith((".", "/", "~")) or place.count("/") > 1:
        found = "is a file" if path.is_file() else f"does not exist, seen from {Path.cwd()}"
        raise ModelError(
            f"model: the {what} is to come from the folder '{place}', which {found}; "
            "give a folder that save_pretrained wrote, or the id of a repository on the Hub"
        )
    return place


def loading_options(section: ModelSection, place: str) -> dict[str, Any]:
    """The arguments of `from_pretrained`; a revision is one of the model's own repository."""
    options: dict[str, Any] = {"trust_remote_code": section.trust_remote_code}
    if section.revision and place == section.name:
        options["revision"] = section.revision
    return options


def not_loaded(what: str, source: Any, error: Exception) -> ModelError:
    """The error for whatever a loader of transformers raised."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    if _CODE_IN_PICKLE in str(error).lower():
        return ModelError(
            f"model: the weights of '{source}' are a pickle file that holds more than weights "
            "and could run code, so it is not loaded; take a checkpoint in the safetensors format"
        )
    reason = " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
    if not isinstance(source, str):
        return ModelError(f"model.from_config: no model can be made of {source} ({reason})")
    where = f"the folder '{source}'" if Path(source).exists() else f"'{source}'"
    return ModelError(
        f"model: the {what} cannot be loaded from {where} ({reason}). "
        "Give a folder that save_pretrained wrote, or the id of a repository on the Hub"
    )
