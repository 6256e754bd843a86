"""The final model in its folder and on the Hub, and the adapter beside it."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from hpo_summarize.components import Experiment
from hpo_summarize.config.loader import last_part
from hpo_summarize.config.parameters import DEPTHS
from hpo_summarize.errors import HpoError, ModelError
from hpo_summarize.io import delete, write_text
from hpo_summarize.models.depth import with_depth
from hpo_summarize.models.lora import merged
from hpo_summarize.models.outputs import difference_from
from hpo_summarize.models.shared_base import load_plain

ADAPTER = "adapter"  # Folder below that of a model.


def changes_of_base(experiment: Experiment, folder: Path) -> dict[str, int]:
    """What the recipe's checkpoint is given before the adapter of a model is put on it.

    Args:
        experiment: Names the checkpoint.
        folder: Folder of the model.

    Returns:
        Those of `vocab_size`, `encoder_layers` and `decoder_layers` that are not the checkpoint's.
    """
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = experiment.model_config
    names = [name for name in ("vocab_size", *DEPTHS) if name in saved]
    return {name: saved[name] for name in names if saved[name] != getattr(own, name, None)}


def check_adapter(experiment: Experiment, folder: Path, outputs: Path) -> None:
    """Puts the adapter in the folder of a model, if there is one, on its base as the card says.

    Args:
        experiment: Names the base.
        folder: Folder of the model.
        outputs: What the model in memory gave for a few rows, from `write_outputs`.

    Raises:
        HpoError: The two together are not the model that was trained.
    """
    if not (folder / ADAPTER).is_dir():
        return
    depth, base = changes_of_base(experiment, folder), load_plain(experiment.recipe.model)
    if vocabulary := depth.pop("vocab_size", None):
        base.resize_token_embeddings(vocabulary)
    if depth:
        base = with_depth(base, **depth)
    try:
        differs = difference_from(outputs, PeftModel.from_pretrained(base, str(folder / ADAPTER)))
    except Exception as error:  # peft 0.21: a KeyError for new tokens with an lm_head of its own.
        differs = f"{type(error).__name__}: {error}"
    if differs:
        raise HpoError(
            f"the adapter in {folder / ADAPTER}, put on '{experiment.recipe.model.name}' again, is "
            f"not the model that was trained ({differs}); set train.save_adapter to false, or "
            "leave the keys of lora beside r, alpha, dropout and target_modules out"
        )


def write_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    max_dialogue_tokens: int,
    save_adapter: bool = False,
) -> None:
    """Writes a model that can be used with transformers alone.

    Args:
        model: Adapters on it are merged into its weights, in place.
        tokenizer: Stays as it is.
        folder: Must not exist; is there as a whole or not at all.
        max_dialogue_tokens: Saved as the tokenizer's limit, so that
            `tokenizer(text, truncation=True)` cuts a dialogue where training did.
        save_adapter: Writes the adapters, as they are before merging, into `adapter/`.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if isinstance(model, PeftModel):
        if save_adapter:
            model.save_pretrained(str(partial / ADAPTER))
            # peft's own model card is an empty template.
            (partial / ADAPTER / "README.md").unlink(missing_ok=True)
            _name_base(partial / ADAPTER / "adapter_config.json")
        model = merged(model)
    model.config.use_cache = True  # `Trainer.__init__` sets it to False.
    model.save_pretrained(partial)
    _with_limit(tokenizer, max_dialogue_tokens).save_pretrained(partial)
    _open_weights(partial)
    partial.rename(folder)


def _name_base(path: Path) -> None:
    """Names a base that lies in a folder of this machine by the folder's name alone.

    Not in the adapter itself: peft reads the base's vocabulary when it saves an adapter.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    content["base_model_name_or_path"] = last_part(content["base_model_name_or_path"])
    write_text(path, f"{json.dumps(content, indent=2, sort_keys=True)}\n")


def _open_weights(folder: Path) -> None:
    """Gives the weights the mode of the other files: safetensors 0.8 writes them with mode 600."""
    mode = (folder / "config.json").stat().st_mode
    for path in folder.rglob("*.safetensors"):
        path.chmod(mode)


def _with_limit(tokenizer: PreTrainedTokenizerBase, limit: int) -> PreTrainedTokenizerBase:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = limit
    # `generate(**tokenizer(text))` of BART refuses the token types of KoBART's tokenizer.
    names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    if tokenizer.is_fast:  # The settings of its last call would be saved.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def replace_folder(new: Path, folder: Path) -> None:
    """Puts the finished folder `new` in place of `folder`, which may exist.

    If the process is killed in between, there is no `folder`, and `new` is complete where it was.
    """
    old = folder.with_name(f".{folder.name}.old")
    delete(old)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    delete(old)


def make_repository(name: str) -> None:
    """Makes a private repository for a model, if there is none of that name.

    Called before the training, so that a missing token is an error there and not after it.

    Raises:
        ModelError: The Hub refuses, or cannot be reached.
    """
    try:
        HfApi().create_repo(name, private=True, exist_ok=True)
        # An existing repository may be one that this token can only read.
        HfApi().auth_check(name, write=True)
    except Exception as error:  # requests' and the Hub's own errors.
        raise ModelError(
            f"train.push_to_hub: the Hub does not let '{name}' be written ({_reason(error)}); put "
            "a token with the right to write into HF_TOKEN, or set push_to_hub to null"
        ) from None


def upload(folder: Path, name: str) -> str:
    """Uploads the files of a model as one commit, and returns its address.

    Raises:
        HpoError: It did not work; the folder is still there.
    """
    try:
        commit = HfApi().upload_folder(
            repo_id=name, folder_path=folder, commit_message="Add the model and its scores"
        )
    except Exception as error:
        raise HpoError(
            f"the model is in {folder}, but was not uploaded to '{name}' ({_reason(error)}); "
            f"the same command tries only that again, as does: hf upload {name} {folder}"
        ) from None
    return commit.commit_url


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
