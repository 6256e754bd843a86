"""One pretrained base under the adapters of all trials: the same models, and unchanged."""

from __future__ import annotations

import gc
import itertools
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from model_families import (
    CLASSES,
    WITH_DEPTH,
    batch,
    build_model,
    logits,
    make_recipe,
    train_a_little,
)
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase, TrainerCallback

from hpo_summarize import OptunaOptimizer
from hpo_summarize.errors import ModelError
from hpo_summarize.models.lora import merged
from hpo_summarize.models.shared_base import PretrainedBase
from hpo_summarize.models.tokenizer import load_tokenizer

LORA = {"r": 4, "alpha": 8, "dropout": 0.1}
NEW = ["#Mina#", "#Tae#"]
DEEP = {"encoder_layers": 3, "decoder_layers": 1}
TRIALS: list[dict[str, Any]] = [
    {},
    {"lora_r": 2, "lora_dropout": 0.3, "hidden_dropout": 0.2, "num_beams": 1},
    {"hidden_dropout": 0.0, **DEEP},
    {"encoder_layers": 1, "decoder_layers": 4},
]


def trials_of(family: str) -> list[dict[str, Any]]:
    return TRIALS if family in WITH_DEPTH else TRIALS[:2]


def build(
    recipe: Any, tokenizer: Any, values: Any, base: PretrainedBase | None = None, seed: int = 7
) -> Any:
    torch.manual_seed(seed)
    return build_model(recipe, tokenizer, values, base)


def whole_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All that a model holds, what it would not save, too."""
    found = itertools.chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )
    return {name: tensor.detach().clone() for name, tensor in found}


def tensors_of(base: PretrainedBase) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in base.weights.items()}


def is_unchanged(base: PretrainedBase, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in base.weights.items())


def shared_names(model: torch.nn.Module, base: PretrainedBase) -> set[str]:
    memory = {tensor.data_ptr() for tensor in base.weights.values()}
    return {name for name, weight in model.named_parameters() if weight.data_ptr() in memory}


@pytest.mark.slow
@pytest.mark.parametrize("special_tokens", [[], NEW])
@pytest.mark.parametrize("family", CLASSES)
def test_a_model_on_the_shared_base_is_the_one_from_disk_to_the_bit(
    family: str, special_tokens: list[str], folders: dict[str, Path]
) -> None:
    recipe = make_recipe(folders[family], lora=LORA)
    tokenizer = load_tokenizer(recipe.model, special_tokens)
    base = PretrainedBase(recipe, tokenizer)
    before, inputs = tensors_of(base), batch(tokenizer)
    trials = trials_of(family)
    for values, seed in zip([*trials, *trials[:1]], (7, 7, 8, 8, 7), strict=False):
        read = build(recipe, tokenizer, values, seed=seed)
        after_reading = torch.get_rng_state()
        shared = build(recipe, tokenizer, values, base, seed)
        assert torch.equal(torch.get_rng_state(), after_reading)
        assert [type(m) for m in shared.modules()] == [type(m) for m in read.modules()]
        assert shared.config.to_dict() == read.config.to_dict()
        assert shared.generation_config.to_dict() == read.generation_config.to_dict()
        assert shared.training == read.training
        expected, found = whole_state(read), whole_state(shared)
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
        for model in (read, shared):
            torch.manual_seed(1)  # Of the dropout.
            train_a_little(model, inputs)
        trained = whole_state(read)
        assert all(torch.equal(t, trained[name]) for name, t in whole_state(shared).items())
        del inputs["labels"]
        assert torch.equal(read.eval().generate(**inputs), shared.eval().generate(**inputs))
        inputs = batch(tokenizer)
        assert is_unchanged(base, before)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_frozen_weights_share_memory_and_trained_ones_do_not(
    family: str, folders: dict[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    recipe = make_recipe(folders[family], lora=LORA)
    base = PretrainedBase(recipe, tokenizer)
    model = build(recipe, tokenizer, {}, base)
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert len(frozen) == len([name for name in base.weights if "final_logits" not in name])
    assert shared_names(model, base) == frozen


TRAINED = [
    {"bias": "all"},
    {"bias": "lora_only"},
    {"trainable_token_indices": [5, 6]},
    {"modules_to_save": ["fc1"]},
    {"modules_to_save": ["embed_positions"]},
    {"init_lora_weights": "olora"},
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "orthogonal"},
    {"use_dora": True},
]


@pytest.mark.parametrize("more", TRAINED, ids=str)
def test_whatever_else_is_trained_leaves_the_base_as_it_was(
    more: dict[str, Any], folders: dict[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    recipe = make_recipe(folders["bart"], lora={**LORA, "target_modules": ["q_proj"], **more})
    base = PretrainedBase(recipe, tokenizer)
    before, inputs = tensors_of(base), batch(tokenizer)
    outputs = []
    for given in (None, base, base):
        model = build(recipe, tokenizer, DEEP, given)
        at_first = whole_state(model)
        torch.manual_seed(1)
        train_a_little(model, inputs)
        outputs.append(logits(model, inputs))
        trained = [n for n, w in model.named_parameters() if w.requires_grad and "lora_" not in n]
        changed = [n for n in trained if not torch.equal(whole_state(model)[n], at_first[n])]
        # What reads a layer or an embedding that the batch does not use gets no gradient.
        assert changed or not trained
        assert is_unchanged(base, before)
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[1], outputs[2])


def test_repeated_layers_share_their_frozen_weights_and_have_adapters_of_their_own(
    folders: dict[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    recipe = make_recipe(folders["bart"], lora=LORA)
    base = PretrainedBase(recipe, tokenizer)
    model = build(recipe, tokenizer, {"encoder_layers": 4}, base)
    layers = model.get_base_model().model.encoder.layers
    first, second = (layer.fc1 for layer in layers[:2])
    assert first.base_layer.weight.data_ptr() == second.base_layer.weight.data_ptr()
    assert first.base_layer.weight is not second.base_layer.weight
    assert [layer.self_attn.q_proj.lora_A["default"] is not None for layer in layers] == [True] * 4
    train_a_little(model, batch(tokenizer))
    adapters = [layer.fc1.lora_B["default"].weight for layer in layers[:2]]
    assert not torch.equal(adapters[0], adapters[1])


@pytest.mark.slow
def test_a_head_of_its_own_is_shared_too(
    folders: dict[str, Path], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """As in mT5 and FLAN-T5; new tokens give it another size."""
    folder = Path(shutil.copytree(folders["t5"], tmp_path / "t5"))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = torch.randn_like(weights["shared.weight"])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    recipe = make_recipe(folder, lora=LORA)
    for given in (tokenizer, load_tokenizer(recipe.model, NEW)):
        base = PretrainedBase(recipe, given)
        assert torch.equal(base.weights["lm_head.weight"], weights["lm_head.weight"])
        read, shared = build(recipe, given, {}), build(recipe, given, {}, base)
        inputs = batch(given)
        for model in (read, shared):
            torch.manual_seed(1)
            train_a_little(model, inputs)
        assert torch.equal(logits(read, inputs), logits(shared, inputs))


def test_nothing_is_read_from_disk_after_the_base(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["bart"], tmp_path / "bart"))
    recipe = make_recipe(folder, lora=LORA)
    tokenizer = load_tokenizer(recipe.model, NEW)
    base = PretrainedBase(recipe, tokenizer)
    shutil.rmtree(folder)
    for values in TRIALS:
        build(recipe, tokenizer, values, base)
    with pytest.raises(ModelError):
        build(recipe, tokenizer, {})


def test_a_model_is_gone_when_nobody_holds_it_and_the_base_stays(
    folders: dict[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    recipe = make_recipe(folders["bart"], lora=LORA)
    base = PretrainedBase(recipe, tokenizer)
    model = build(recipe, tokenizer, DEEP, base)
    held = [weakref.ref(module) for module in model.modules()]
    held += [weakref.ref(weight) for weight in model.parameters()]
    del model
    gc.collect()
    assert not any(reference() is not None for reference in held)
    assert base.weights


@pytest.mark.parametrize("move", [lambda m: m.to(torch.bfloat16), lambda m: m.double()])
def test_a_model_that_moves_to_another_place_or_type_leaves_the_base_behind(
    move: Callable[[Any], Any], folders: dict[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    """A device is changed by the same function of torch, `Module._apply`."""
    recipe = make_recipe(folders["bart"], lora=LORA)
    base = PretrainedBase(recipe, tokenizer)
    before = tensors_of(base)
    move(build(recipe, tokenizer, {}, base))
    assert {tensor.dtype for tensor in base.weights.values()} == {torch.float32}
    assert is_unchanged(base, before)


def test_a_merge_leaves_the_shared_weights_as_they_are(
    folders: dict[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    recipe = make_recipe(folders["bart"], lora=LORA)
    base = PretrainedBase(recipe, tokenizer)
    before, inputs = tensors_of(base), batch(tokenizer)
    model = build(recipe, tokenizer, {}, base)
    train_a_little(model, inputs)
    expected = logits(model, inputs)
    whole = merged(model)
    assert whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    assert torch.allclose(logits(whole, inputs), expected, atol=1e-4)
    assert is_unchanged(base, before)


# Through a whole search.


class Pruner(optuna.pruners.BasePruner):
    """Prunes every second trial after its first epoch."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.number % 2 == 1


def make_optimizer(folder: Path, checkpoint: Path, csv_path: Path, n_trials: int) -> Any:
    content: dict[str, Any] = {
        "model": {"name": str(checkpoint)},
        "lora": LORA,
        "data": {
            "train": str(csv_path),
            "validation_fraction": 0.25,
            "max_dialogue_tokens": 64,
            "max_summary_tokens": 24,
            "special_tokens": NEW,
        },
        "training": {"num_epochs": 2, "batch_size": 8, "learning_rate": 0.01},
        "generation": {"max_new_tokens": 12, "num_beams": 1},
        "search": {"n_trials": n_trials, "keep_trials": n_trials},
        "space": {
            "lora_r": {"type": "categorical", "choices": [2, 4]},
            "hidden_dropout": {"type": "float", "low": 0.0, "high": 0.3},
            "encoder_layers": {"type": "int", "low": 1, "high": 3},
            "learning_rate": {"type": "float", "low": 1e-3, "high": 3e-2, "log": True},
        },
        "output_dir": str(folder),
    }
    folder.mkdir()
    optimizer = OptunaOptimizer(content)
    optimizer.study.pruner = Pruner()
    return optimizer


@pytest.mark.slow
def test_a_search_on_the_shared_base_gives_the_values_and_weights_of_one_from_disk(
    checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    studies = []
    for name in ("disk", "shared"):
        optimizer = make_optimizer(tmp_path / name, checkpoint, csv_path, 4)
        if name == "disk":
            optimizer.experiment.base = None
        studies.append(optimizer.optimize())
        assert (optimizer.experiment.base is None) == (name == "disk")
    for read, shared in zip(*(study.trials for study in studies), strict=True):
        assert (read.state, read.params, read.values) == (
            shared.state,
            shared.params,
            shared.values,
        )
        assert read.intermediate_values == shared.intermediate_values
    assert [trial.state.name for trial in studies[0].trials] == ["COMPLETE", "PRUNED"] * 2
    files = sorted(
        path.relative_to(tmp_path / "disk") for path in tmp_path.rglob("disk/**/*.safetensors")
    )
    assert len(files) == 2
    for name in files:
        read, shared = (load_file(tmp_path / run / name) for run in ("disk", "shared"))
        assert read.keys() == shared.keys()
        assert all(torch.equal(tensor, shared[key]) for key, tensor in read.items())


class Watcher(TrainerCallback):
    """Breaks the third training; records at the start of each what the one before has left."""

    def __init__(self, base: PretrainedBase) -> None:
        self._base, self._before = base, tensors_of(base)
        self._models: list[weakref.ref] = []
        self.unchanged: list[bool] = []
        self.alive: list[int] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.record()
        self._models.append(weakref.ref(kwargs["model"]))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if len(self._models) == 3:
            raise RuntimeError("the test breaks the third training")

    def record(self) -> None:
        self.unchanged.append(is_unchanged(self._base, self._before))
        self.alive.append(sum(reference() is not None for reference in self._models))


@pytest.mark.slow
def test_the_base_is_read_once_and_whole_after_a_normal_a_pruned_and_a_failed_trial(
    checkpoint_copy: Path, csv_path: Path, tmp_path: Path
) -> None:
    optimizer = make_optimizer(tmp_path / "out", checkpoint_copy, csv_path, 4)
    optimizer.prepare()
    watcher = Watcher(optimizer.experiment.base)
    optimizer.trainer.add_callback(watcher)
    (checkpoint_copy / "model.safetensors").unlink()
    study = optimizer.optimize()
    watcher.record()
    assert [trial.user_attrs.get("failure") for trial in study.trials] == [
        *(None, None, "RuntimeError: the test breaks the third training", None)
    ]
    assert [trial.state.name for trial in study.trials] == [
        "COMPLETE",
        "PRUNED",
        "PRUNED",
        "PRUNED",
    ]
    assert watcher.unchanged == [True] * 5
    assert watcher.alive == [0, 0, 0, 0, 1]  # The trainer keeps the model of the last trial.
