"""Every class of encoder-decoder models for text trains and is loaded again, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import transformers
from conftest import make_rows
from datasets import Dataset
from model_families import BART, T5, ids_of, make_recipe
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hpo_summarize import OptunaOptimizer
from hpo_summarize.errors import HpoError, ModelError
from hpo_summarize.models.config import check_lengths
from hpo_summarize.models.families import require_family
from hpo_summarize.models.outputs import OUTPUTS
from hpo_summarize.training.runner import load_trial

GEMMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 32,
}
PROPHET = {
    "hidden_size": 16,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_encoder_attention_heads": 2,
    "num_decoder_attention_heads": 2,
    "max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 4, "expert_capacity": 8}
LED_POSITIONS = {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 48}
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "BigBirdPegasus": ("BigBirdPegasus", {**BART, "block_size": 4, "num_random_blocks": 1}),
    "Blenderbot": ("Blenderbot", BART),
    "BlenderbotSmall": ("BlenderbotSmall", BART),
    "FSMT": ("FSMT", {**BART, "langs": ["en", "ko"]}),
    "LED": ("LED", {**BART, **LED_POSITIONS, "attention_window": [8, 8]}),
    "LongT5": ("LongT5", {**T5, "local_radius": 7}),
    "M2M100": ("M2M100", BART),
    "Marian": ("Marian", BART),
    "Mvp": ("Mvp", BART),
    "NllbMoe": ("NllbMoe", {**BART, **EXPERTS, "encoder_sparse_step": 2, "decoder_sparse_step": 2}),
    "PegasusX": ("PegasusX", {**BART, "num_global_tokens": 4, "block_size": 8}),
    "PLBart": ("PLBart", BART),
    "ProphetNet": ("ProphetNet", PROPHET),
    "SwitchTransformers": (
        "SwitchTransformers",
        {**T5, **EXPERTS, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    ),
    "T5Gemma": ("T5Gemma", {"encoder": GEMMA, "decoder": GEMMA}),
    "UMT5": ("UMT5", T5),
}
FITTING = {"train": "train.csv", "max_dialogue_tokens": 8, "max_summary_tokens": 8}
LORA = {"r": 4, "alpha": 8}
Make = Callable[..., OptunaOptimizer]


def tiny(name: str, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> PreTrainedModel:
    """A random model of two layers a stack."""
    prefix, sizes = SIZES[name]
    ids: dict[str, Any] = {**ids_of(tokenizer), "forced_eos_token_id": None}
    if name == "FSMT":
        ids |= {"src_vocab_size": len(tokenizer), "tgt_vocab_size": len(tokenizer)}
        del ids["vocab_size"]
    if name == "Marian":
        ids["decoder_vocab_size"] = len(tokenizer)
    if name == "T5Gemma":
        of_each = {key: ids[key] for key in ("vocab_size", "pad_token_id", "eos_token_id")}
        sizes = {key: {**part, **of_each} for key, part in sizes.items()}
        ids.pop("forced_eos_token_id")
    config = getattr(transformers, f"{prefix}Config")(**{**ids, **sizes, **changes})
    torch.manual_seed(0)
    kind = f"{prefix}MTModel" if name == "Marian" else f"{prefix}ForConditionalGeneration"
    return getattr(transformers, kind)(config)


@pytest.fixture
def make(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Make:
    """Makes the search of a class, one trial of one epoch on eight rows."""

    def optimizer(name: str, lora: Any = None, new: bool = False, **changes: Any) -> Any:
        sections = {key: changes.pop(key) for key in ("training",) if key in changes}
        own = tokenizer
        if name == "ProphetNet" and "pad_token_id" not in changes:
            # As in its checkpoints: its positions begin at the id of the padding token.
            own = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
            own.add_special_tokens({"pad_token": "<s>", "bos_token": "<pad>", "eos_token": "</s>"})
        tiny(name, own, **changes).save_pretrained(tmp_path / "model")
        own.save_pretrained(tmp_path / "model")
        rows = [Dataset.from_list(make_rows(count, count)) for count in (8, 4)]
        recipe = {
            "model": {"name": str(tmp_path / "model")},
            "lora": lora,
            "data": {
                "max_dialogue_tokens": 40,
                "max_summary_tokens": 30,
                "special_tokens": ["#Person3#"] if new else [],
            },
            "training": {"num_epochs": 1, "batch_size": 4, **sections.get("training", {})},
            "generation": {"num_beams": 2, "max_new_tokens": 6},
            "search": {"n_trials": 1, "pruner": None},
            "space": {"learning_rate": {"type": "float", "low": 1e-3, "high": 1e-2}},
            "output_dir": str(tmp_path / "out"),
        }
        return OptunaOptimizer(recipe, *rows)

    return optimizer


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", SIZES)
def test_a_class_passes_what_is_tried_before_the_first_trial(
    name: str, lora: Any, make: Make
) -> None:
    make(name, lora).prepare()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Blenderbot", "ProphetNet", "T5Gemma"])
def test_a_class_that_failed_in_every_trial_gives_a_result_and_weights(
    name: str, make: Make
) -> None:
    optimizer = make(name, LORA)
    optimizer.prepare()
    trainer = optimizer.trainer
    study = optuna.create_study(study_name=optimizer.studies.name, direction="maximize")
    study.optimize(trainer.run_trial, n_trials=1, catch=())
    assert study.trials[0].state.name == "COMPLETE"
    checkpoint = next(Path(trainer.args.output_dir).glob("*/checkpoint-*"))
    assert (checkpoint / OUTPUTS).is_file()
    load_trial(trainer, study.best_params, checkpoint)  # It refuses another model.


def test_label_smoothing_is_no_loss_of_the_model(make: Make) -> None:
    make("PLBart", init_std=0.5, training={"label_smoothing_factor": 0.1}).prepare()


GROWN = "data.special_tokens: transformers cannot add tokens to a '{}' model"


@pytest.mark.parametrize(
    "name, lora, changes, reason",
    [
        ("FSMT", None, {"new": True}, GROWN.format("fsmt")),
        ("T5Gemma", LORA, {"new": True}, GROWN.format("t5gemma")),
        (
            "Marian",
            LORA,
            {"new": True},
            "does not call .* so peft does not train the embeddings of added tokens",
        ),
        ("ProphetNet", None, {"pad_token_id": 1}, "'prophetnet' model cannot generate"),
        (
            "ProphetNet",
            None,
            {"training": {"label_smoothing_factor": 0.1}},
            "a loss of its own, in which label smoothing has no part .value 0.1",
        ),
        ("PLBart", {**LORA, "modules_to_save": ["shared"]}, {}, "does not call 'shared'"),
        ("PLBart", {**LORA, "target_modules": ["q_proj", "shared"]}, {}, "does not call 'shared'"),
        ("UMT5", {**LORA, "lora_bias": True}, {}, "cannot be merged into a 'umt5' model"),
    ],
)
def test_what_fails_in_every_trial_or_at_the_end_is_refused_before_the_first_one(
    name: str, lora: Any, changes: dict[str, Any], reason: str, make: Make
) -> None:
    with pytest.raises(HpoError, match=reason):
        make(name, lora, **changes).prepare()


@pytest.mark.parametrize("key, limit", [("max_dialogue_tokens", 64), ("max_summary_tokens", 48)])
def test_encoder_and_decoder_of_led_have_limits_of_their_own(
    key: str, limit: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = tiny("LED", tokenizer).config
    check_lengths(config, make_recipe("unused", data={**FITTING, key: limit}))
    with pytest.raises(ModelError, match=f"data.{key} is {limit + 1}, .* has {limit} positions"):
        check_lengths(config, make_recipe("unused", data={**FITTING, key: limit + 1}))


@pytest.mark.parametrize(
    "name, changes",
    [("ProphetNet", {}), ("NllbMoe", {"output_router_logits": True, "router_aux_loss_coef": 0.5})],
)
def test_a_loss_of_its_own_is_trained_with_and_counts_by_tokens(
    name: str, changes: dict[str, Any], make: Make
) -> None:
    trainer = make(name, **changes).trainer
    model = trainer.model.eval()
    assert require_family(model.config).has_own_loss(model)
    rows = [trainer.train_dataset[row] for row in range(4)]
    rows[0] = {**rows[0], "labels": rows[0]["labels"][:3]}
    parts = [trainer.data_collator([dict(row) for row in part]) for part in (rows[:1], rows[1:])]
    tokens = [int((part["labels"] != -100).sum()) for part in parts]
    own = [model(**part).loss.item() for part in parts]
    ours = [trainer.compute_loss(model, dict(p), num_items_in_batch=sum(tokens)) for p in parts]
    assert trainer.compute_loss(model, dict(parts[0])).item() == pytest.approx(own[0])
    expected = sum(one * n for one, n in zip(own, tokens, strict=True)) / sum(tokens)
    assert sum(ours).item() == pytest.approx(expected)
    logits = model(**parts[0]).logits
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), parts[0]["labels"].flatten())
    assert own[0] != pytest.approx(plain.item(), rel=1e-3)
