"""The final model on disk and on the Hub, and the base that a saved adapter belongs to."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hpo_summarize.components import Experiment
from hpo_summarize.config.loader import last_part
from hpo_summarize.config.parameters import DEPTHS
from hpo_summarize.errors import HpoError, ModelError
from hpo_summarize.io import delete, write_text
from hpo_summarize.models.depth import with_depth
from hpo_summarize.models.lora import merged
from hpo_summarize.models.outputs import difference_from
from hpo_summarize.models.shared_base import load_plain


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
    depth = {name: saved[name] for name in DEPTHS if _differ(base, saved, name)}
    return saved, depth, _differ(base, saved, "vocab_size")


def _differ(base: Any, saved: dict[str, Any], name: str) -> bool:
    return name in saved and getattr(base, name, None) != saved[name]


def _code(
    name: str, revision: str | None, saved: dict[str, Any], grown: bool, depth: dict[str, int]
) -> Iterator[str]:
    yield "from peft import PeftModel"
    yield "from transformers import GenerationConfig"
    if depth:
        yield "from hpo_summarize.models.depth import with_depth"
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


def make_repository(name: str) -> None:
    """Makes a private repository for a model, if there is none of that name.

    Called before the training, so that a missing token does not come to light after it.

    Raises:
        ModelError: The Hub refuses, or cannot be reached.
    """
    try:
        HfApi().create_repo(name, private=True, exist_ok=True)
        # For one that exists the line above is content with the right to read it.
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
