"""What cannot be loaded is refused with what to do."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from model_families import batch, build_model, logits, make_recipe
from safetensors.torch import load_file
from transformers import (
    BartForConditionalGeneration,
    BertConfig,
    GPT2Config,
    PreTrainedTokenizerBase,
)

from hpo_summarize.config.schema import ModelSection
from hpo_summarize.errors import ModelError
from hpo_summarize.models.config import load_config
from hpo_summarize.models.families import family_of, require_family
from hpo_summarize.models.tokenizer import load_tokenizer


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# What cannot be loaded.


@pytest.mark.parametrize("place", ["./folder", "/no/such/folder", "a/b/c/d", "~/no-such", "../x"])
def test_a_folder_that_does_not_exist_is_not_looked_for_on_the_network(
    place: str, no_network: list[Any]
) -> None:
    for load in (load_config, load_tokenizer):
        with pytest.raises(ModelError, match="the folder '.*', which does not exist") as caught:
            load(ModelSection(name=place))
        assert caught.value.exit_status == 2
        assert "Hub" in str(caught.value)
    assert no_network == []


def test_a_file_in_the_place_of_a_folder_is_refused(checkpoint_copy: Path) -> None:
    with pytest.raises(ModelError, match="config.json', which is a file; give a folder"):
        load_config(make_recipe(checkpoint_copy / "config.json").model)


def test_a_folder_below_the_home_folder_is_found(
    checkpoint_copy: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(checkpoint_copy.parent))
    recipe = make_recipe("~/copy")
    assert len(load_tokenizer(recipe.model)) == len(tokenizer)
    assert build_model(recipe, tokenizer, {}).config.d_model == 16


def test_a_repository_that_cannot_be_reached_is_named(no_network: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(ModelError, match="cannot be loaded from 'someone/none'.*Hub"):
            load_config(make_recipe("someone/none").model)


@pytest.mark.parametrize(
    "file, content",
    [("config.json", None), ("config.json", b"{"), ("config.json", b"{}")],
)
def test_a_folder_without_a_readable_configuration_is_refused(
    file: str, content: bytes | None, checkpoint_copy: Path
) -> None:
    (
        (checkpoint_copy / file).unlink()
        if content is None
        else (checkpoint_copy / file).write_bytes(content)
    )
    with pytest.raises(ModelError, match="the model cannot be loaded from the folder"):
        load_config(make_recipe(checkpoint_copy).model)


@pytest.mark.parametrize("spoil", ["no weights", "zeros", "half"])
def test_missing_and_corrupt_weights_are_refused(
    spoil: str, checkpoint_copy: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = checkpoint_copy / "model.safetensors"
    whole = path.read_bytes()
    if spoil == "no weights":
        path.unlink()
    else:
        path.write_bytes(bytes(100) if spoil == "zeros" else whole[: len(whole) // 2])
    with pytest.raises(
        ModelError, match="the model cannot be loaded from the folder .*safetens|hea"
    ):
        build_model(make_recipe(checkpoint_copy), tokenizer, {})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"d_model": 32}, "the model cannot be loaded"),
        ({"encoder_layers": 4}, r"lacks 32 weights .*encoder.layers.2.*complete checkpoint"),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(
    fields: dict[str, int], message: str, checkpoint_copy: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    edit_config(checkpoint_copy, **fields)
    with pytest.raises(ModelError, match=message):
        build_model(make_recipe(checkpoint_copy), tokenizer, {})


def test_a_checkpoint_of_the_bare_model_is_whole(
    checkpoint_copy: Path, checkpoint: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """KoBART's was saved without the class that generates."""
    whole = BartForConditionalGeneration.from_pretrained(checkpoint)
    whole.model.save_pretrained(checkpoint_copy)
    model = build_model(make_recipe(checkpoint_copy), tokenizer, {})
    assert torch.equal(logits(model, batch(tokenizer)), logits(whole, batch(tokenizer)))


@pytest.mark.parametrize("config", [GPT2Config(), BertConfig()])
def test_a_model_without_encoder_and_decoder_is_refused(config: Any, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    loaded = load_config(make_recipe(tmp_path).model)
    with pytest.raises(
        ModelError, match=f"'{config.model_type}' is .*.BART, mBART, T5, mT5, Pegasus.; choose"
    ):
        require_family(loaded)
    assert family_of(loaded) is None


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_plain_pickled_weights_are_loaded_and_code_in_them_never_runs(
    checkpoint_copy: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    inputs = batch(tokenizer)
    expected = logits(build_model(make_recipe(checkpoint_copy), tokenizer, {}), inputs)
    weights = load_file(checkpoint_copy / "model.safetensors")
    (checkpoint_copy / "model.safetensors").unlink()
    torch.save(weights, checkpoint_copy / "pytorch_model.bin")
    assert torch.equal(
        logits(build_model(make_recipe(checkpoint_copy), tokenizer, {}), inputs), expected
    )
    torch.save({**weights, "x": Touch(tmp_path / "ran")}, checkpoint_copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickle .* could run code, .* safetensors"):
        build_model(make_recipe(checkpoint_copy), tokenizer, {})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("trusted", [False, True])
def test_code_of_a_checkpoint_runs_only_where_the_recipe_says_so_and_nobody_is_asked(
    trusted: bool, checkpoint_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_config(checkpoint_copy, model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})
    ran = tmp_path / "ran"
    code = f"""
        import os
        from transformers import BartConfig
        os.mkdir({str(ran)!r})
        class OwnConfig(BartConfig):
            model_type = "own"
    """
    (checkpoint_copy / "own.py").write_text(inspect.cleandoc(code))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    section = make_recipe({"name": str(checkpoint_copy), "trust_remote_code": trusted}).model
    if trusted:
        assert load_config(section).model_type == "own"
    else:
        with pytest.raises(ModelError, match="custom code"):
            load_config(section)
    assert ran.exists() is trusted
