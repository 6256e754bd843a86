"""The folder of a final model: what `from_pretrained` needs, written as a whole or not at all."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hpo_summarize.files import delete, write_text
from hpo_summarize.model import merged
from hpo_summarize.recipe.values import last_part

ADAPTER = "adapter"


def write_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    max_dialogue_tokens: int,
    save_adapter: bool = False,
) -> PreTrainedModel:
    """Writes a model that can be used with transformers alone, and returns it.

    Args:
        model: Adapters on it are merged into its weights, in place.
        tokenizer: Stays as it is.
        folder: Is replaced.
        max_dialogue_tokens: Saved as the tokenizer's limit, so that
            `tokenizer(text, truncation=True)` cuts a dialogue where training did.
        save_adapter: Writes the adapters, as they are before merging, into `adapter/`.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if isinstance(model, PeftModel):
        if save_adapter:
            model.save_pretrained(str(partial / ADAPTER))
            # peft's form of a model card, with nothing filled in; the model's own says it all.
            (partial / ADAPTER / "README.md").unlink(missing_ok=True)
            _name_base(partial / ADAPTER / "adapter_config.json")
        model = merged(model)
    model.config.use_cache = True  # Trainer.__init__ has written its own False there.
    model.save_pretrained(partial)
    _with_limit(tokenizer, max_dialogue_tokens).save_pretrained(partial)
    _open_weights(partial)
    replace_folder(partial, folder)
    return model


def _name_base(path: Path) -> None:
    """Names a base that lies in a folder of this machine by the folder's name alone.

    Not in the adapter itself: peft reads the base's vocabulary when it saves an adapter.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    content["base_model_name_or_path"] = last_part(content["base_model_name_or_path"])
    write_text(path, f"{json.dumps(content, indent=2, sort_keys=True)}\n")


def _open_weights(folder: Path) -> None:
    """Lets those read the weights who may read the other files.

    safetensors 0.8 closes its files to everybody but their owner, whatever the umask says.
    """
    mode = (folder / "config.json").stat().st_mode
    for path in folder.rglob("*.safetensors"):
        path.chmod(mode)


def _with_limit(tokenizer: PreTrainedTokenizerBase, limit: int) -> PreTrainedTokenizerBase:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = limit
    # KoBART's tokenizer gives token types, too, which no model here takes: `model.generate(
    # **tokenizer(text))` would be refused.
    names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    if tokenizer.is_fast:  # The settings of its last call would be saved.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def replace_folder(new: Path, folder: Path) -> None:
    """Puts the finished folder `new` in the place of `folder`, which may exist.

    Killed in between, the old one is gone and the new one is still whole where it was.
    """
    old = folder.with_name(f".{folder.name}.old")
    delete(old)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    delete(old)
