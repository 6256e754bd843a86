"""Adapters on layers that share their weights: one model in memory, kept, merged and reloaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TrainerFactory
from final_models import read_json, write_recipe
from model_families import batch, build_model, logits, make_recipe, save_checkpoint, train_a_little
from peft import PeftModel, PeftModelForSeq2SeqLM
from programs import run_program, run_well
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from hpo_summarize.errors import ModelError
from hpo_summarize.models.lora import load_adapter, merged
from hpo_summarize.models.tokenizer import load_tokenizer
from hpo_summarize.training.trainer import SummarizationTrainer

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("bart", {}),
    "mbart": ("mbart", {}),
    "pegasus": ("pegasus", {}),
    "t5": ("t5", {}),
    "t5-untied": ("t5", {"tie_word_embeddings": False}),
}
SETTINGS: dict[str, dict[str, list[str]]] = {
    "adapter on the head": {"target_modules": ["lm_head"]},
    "adapter on the embeddings": {"target_modules": ["embed_tokens"]},
    "copy of the head": {"modules_to_save": ["lm_head"]},
    "copy of the embeddings": {"modules_to_save": ["embed_tokens"]},
}
NEW = ["#Mina#"]


@pytest.fixture(scope="module")
def tied(
    tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tied")
    return {
        name: save_checkpoint(root / name, family, tokenizer, **changes)
        for name, (family, changes) in FAMILIES.items()
    }


def with_attention(family: str, settings: dict[str, list[str]]) -> dict[str, Any]:
    attention = ["q", "v"] if family.startswith("t5") else ["q_proj", "v_proj"]
    targets = [*attention, *settings.get("target_modules", ())]
    return {"r": 4, "alpha": 8, **settings, "target_modules": targets}


@pytest.mark.parametrize("new", [[], NEW], ids=["no new tokens", "a new token"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_kept_merged_and_reloaded_it_is_the_model_that_was_trained(
    family: str, setting: str, new: list[str], tied: dict[str, Path], tmp_path: Path
) -> None:
    if new and "embeddings" in setting:
        pytest.skip("after a resize encoder and decoder call one module, `shared`")
    recipe = make_recipe(tied[family], lora=with_attention(family, SETTINGS[setting]))
    tokenizer = load_tokenizer(recipe.model, new)
    torch.manual_seed(0)
    model, inputs = build_model(recipe, tokenizer, {}), batch(tokenizer)
    before = logits(model, inputs)
    train_a_little(model, inputs)
    expected = logits(model, inputs)
    assert not torch.allclose(expected, before, atol=1e-2)

    model.save_pretrained(str(tmp_path / "kept"))
    torch.manual_seed(0)
    kept = build_model(recipe, tokenizer, {})
    load_adapter(kept, tmp_path / "kept")
    assert torch.allclose(logits(kept, inputs), expected, atol=1e-5)

    whole = merged(model)
    assert torch.allclose(logits(whole, inputs), expected, atol=1e-4)
    whole.save_pretrained(tmp_path / "merged")
    reloaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(reloaded, inputs), expected, atol=1e-4)


# From the search to the final model.

ADAPTER = "train.save_adapter=true"


@pytest.fixture(scope="module", params=["bart", "t5"])
def searched(
    request: pytest.FixtureRequest,
    tied: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The recipe of a search with adapters on a tied head."""
    family = request.param
    targets = "[q, v, lm_head]" if family == "t5" else "[q_proj, v_proj, lm_head]"
    folder = tmp_path_factory.mktemp(family)
    recipe = write_recipe(folder, tied[family], f"{{r: 4, alpha: 8, target_modules: {targets}}}")
    run_well("search", recipe, ADAPTER)
    return recipe


@pytest.mark.slow
def test_the_score_of_an_adapted_head_is_one_in_the_search_kept_and_as_final_model(
    searched: Path, tmp_path: Path
) -> None:
    out = searched.parent / "out"
    run_well("train", searched, ADAPTER)
    files = ["--input", searched.parent / "validation.csv", "--output", tmp_path / "v.csv"]
    run_well("predict", searched, ADAPTER, "--model", "best", *files)
    value = read_json(out / "best_params.json")["best_value"]
    final = read_json(out / "model" / "scores.json")["scores"]["validation"]
    assert value > 0
    assert read_json(tmp_path / "v.scores.json")["rougeL"] == pytest.approx(value, abs=1e-9)
    assert final["rougeL"] == pytest.approx(value, abs=1e-9)
    head = load_file(out / "model" / "model.safetensors")
    assert not torch.equal(head["lm_head.weight"], head[next(k for k in head if "shared" in k)])


def broken(weights: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {name: -weight if part in name else weight for name, weight in weights.items()}


@pytest.mark.slow
def test_a_merge_that_changes_the_model_is_an_error(
    searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As peft's did, where the adapted head was tied to the embeddings."""

    def merge(model: PeftModel) -> Any:
        whole = merged(model)
        whole.load_state_dict(broken(whole.state_dict(), "lm_head"), strict=False)
        return whole

    monkeypatch.setattr("hpo_summarize.final_model.export.merged", merge)
    done = run_program("train", searched, "train.seeds=[3]")
    assert done.status == 1
    assert "loaded again, is not the one that was trained (the log prob" in done.stderr
    assert "Traceback" not in done.stderr and "--model best" in done.stderr


def test_kept_weights_of_another_model_are_an_error(searched: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(searched.parent / "out", tmp_path / "out"))
    for path in (copy / "trials").glob("*/*/*/adapter_model.safetensors"):
        save_file(broken(load_file(path), "lora_B"), path, metadata={"format": "pt"})
    done = run_program("predict", searched, ADAPTER, f"output_dir={copy}", "--model", "best")
    assert done.status == 2
    assert "do not give the model that the search trained (the log prob" in done.stderr


@pytest.mark.slow
def test_an_adapter_that_does_not_fit_on_its_base_is_an_error(
    searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = PeftModelForSeq2SeqLM.save_pretrained

    def save_broken(self: Any, folder: str, **kwargs: Any) -> None:
        save(self, folder, **kwargs)
        path = Path(folder) / "adapter_model.safetensors"
        if path.parent.name == "adapter":
            save_file(broken(load_file(path), "lora_B"), path, metadata={"format": "pt"})

    monkeypatch.setattr(PeftModelForSeq2SeqLM, "save_pretrained", save_broken)
    for _ in range(2):  # The second time the model is there already.
        done = run_program("train", searched, ADAPTER, "train.seeds=[4]")
        assert done.status == 1
        assert "is not the model that was trained" in done.stderr and "save_adapter" in done.stderr


# A resumed training.


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_resumed_training_comes_to_the_same_weights(
    setting: str, tied: dict[str, Path], make_trainer: TrainerFactory, tmp_path: Path
) -> None:
    recipe = make_recipe(tied["bart"], lora=with_attention("bart", SETTINGS[setting]))
    tokenizer = load_tokenizer(recipe.model)

    def trained(name: str, checkpoint: Path | None = None) -> Any:
        trainer = make_trainer(
            SummarizationTrainer,
            {"model_init": lambda: build_model(recipe, tokenizer, {})},
            output_dir=str(tmp_path / name),
            num_train_epochs=2,
            save_strategy="epoch",
            learning_rate=1e-2,
        )
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        return trainer.model

    whole = trained("whole").state_dict()
    half = tmp_path / "whole" / "checkpoint-4"
    again = trained("again", half).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in whole.items())

    path = half / "adapter_model.safetensors"
    save_file(broken(load_file(path), "lora_B"), path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="do not give the model that was saved .the log prob"):
        trained("other", half)
