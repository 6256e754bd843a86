"""The only place that knows what an encoder-decoder is.

A family of models is a class like `EncoderDecoder` and an entry of `FAMILIES`. It says which models
belong to it, how rows become token ids and labels, what `generate` is given, and which fields of a
model's own configuration our hyperparameters set.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import TaskType
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hpo_summarize.config.parameters import DEPTHS
from hpo_summarize.config.schema import DataSection
from hpo_summarize.errors import ModelError

# Our names for fields of a model's configuration, in the order in which they are looked for: BART's
# and its relatives', then T5's.
_FIELDS = {
    "hidden_dropout": ("dropout", "dropout_rate"),
    "attention_dropout": ("attention_dropout",),
    "encoder_layers": ("encoder_layers",),
    "decoder_layers": ("decoder_layers",),
}
_DECODER_INPUTS = ("decoder_input_ids", "decoder_attention_mask")


class EncoderDecoder:
    """BART, mBART, Pegasus, T5, mT5 and the other encoder-decoders for text.

    Attributes:
        task: The value of `task` in conditions of a search space.
        auto_class: Loads a checkpoint with the head that generates.
        task_type: Decides which class of peft wraps a model.
        cross_attention: Whether the cache has the keys and values of an encoded dialogue.
    """

    task = "seq2seq"
    auto_class: Any = AutoModelForSeq2SeqLM
    task_type = TaskType.SEQ_2_SEQ_LM
    cross_attention = True

    def covers(self, config: PretrainedConfig) -> bool:
        """Whether a model with this configuration belongs to the family."""
        return bool(config.is_encoder_decoder)

    # Hyperparameters in the model's configuration.

    def facts(self, config: PretrainedConfig) -> dict[str, Any]:
        """What a search space must know of a model.

        Returns:
            `model_type`, `task`, and the present value of each name of `_FIELDS` that the model has
            a setting for.
        """
        found = {name: getattr(config, field) for name, field in _fields_of(config).items()}
        return {"model_type": config.model_type, "task": self.task, **found}

    def set_values(self, config: PretrainedConfig, values: Mapping[str, Any]) -> None:
        """Writes hyperparameters of the model into its configuration's own fields.

        Args:
            config: Changed in place.
            values: Dropout and depth by our names; depth is left to `with_depth`.

        Raises:
            ModelError: The model has no setting for one of them.
        """
        fields = _fields_of(config)
        for name, value in values.items():
            if name not in fields:
                raise ModelError(
                    f"'{name}' (value {value!r}) cannot act: a model of the type "
                    f"'{config.model_type}' has no setting for it; take it out of the space"
                )
            if name not in DEPTHS:
                setattr(config, fields[name], value)

    def max_input_tokens(self, config: PretrainedConfig) -> int | None:
        """Most tokens of a dialogue; None for T5 and others without a limit."""
        own = getattr(config, "max_encoder_position_embeddings", None)  # LED's encoder reads more.
        return own or self.max_output_tokens(config)

    def max_output_tokens(self, config: PretrainedConfig) -> int | None:
        """Most tokens of a summary; None for T5 and others without a limit."""
        own = getattr(config, "max_decoder_position_embeddings", None)
        return own or getattr(config, "max_position_embeddings", None)

    def set_token_ids(
        self, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, given: Mapping[str, Any]
    ) -> None:
        """Gives a model that is made from a configuration the special tokens of its tokenizer.

        Args:
            config: Changed in place.
            tokenizer: The model's.
            given: What the recipe says of the configuration.
        """
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if getattr(tokenizer, name) is not None:
                setattr(config, name, getattr(tokenizer, name))
        if "decoder_start_token_id" not in given:
            # T5 begins its output with the padding token, BART with the end of the sentence.
            is_t5 = "t5" in config.model_type
            config.decoder_start_token_id = config.pad_token_id if is_t5 else config.eos_token_id
        if "forced_eos_token_id" not in given and getattr(config, "forced_eos_token_id", None):
            config.forced_eos_token_id = config.eos_token_id

    # Training.

    def encode(
        self,
        dialogues: Sequence[str],
        summaries: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        section: DataSection,
    ) -> dict[str, list[list[int]]]:
        """Rows to train on: `input_ids`, `attention_mask` and `labels`, one list of ints a row.

        Args:
            dialogues: One text a row.
            summaries: Likewise.
            tokenizer: The model's.
            section: The section `data`, whose limits no list exceeds.
        """
        limit = section.max_dialogue_tokens
        inputs = tokenizer(list(dialogues), max_length=limit, truncation=True)
        columns = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        labels = self.encode_summaries(summaries, tokenizer, section.max_summary_tokens)
        return {**columns, "labels": labels}

    def encode_summaries(
        self, summaries: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int | None = None
    ) -> list[list[int]]:
        """Token ids of summaries, with the end-of-sequence token.

        KoBART's tokenizer adds no end token: a model that never saw it would never stop.

        Args:
            summaries: One text a row.
            tokenizer: The model's.
            limit: Most tokens of a row; None cuts nothing.
        """
        labels = tokenizer(
            text_target=list(summaries), max_length=limit, truncation=limit is not None
        )["input_ids"]
        end = tokenizer.eos_token_id
        if end is None:
            return labels
        keep = None if limit is None else limit - 1
        # mBART's labels have the language after it.
        return [row if end in row[-2:] else [*row[:keep], end] for row in labels]

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> DataCollatorForSeq2Seq:
        """Pads rows of `encode` to a batch."""
        return DataCollatorForSeq2Seq(tokenizer)

    def decoder_inputs(self, model: Any, labels: torch.Tensor) -> torch.Tensor:
        """The labels of a batch, shifted as the model's own forward shifts them.

        M2M100, NLLB-MoE, Blenderbot and SeamlessM4T of transformers 5.23 lack the public method;
        their forward calls the function `shift_tokens_right` of its module.

        Raises:
            ModelError: The model has neither.
        """
        if hasattr(model, "prepare_decoder_input_ids_from_labels"):
            return model.prepare_decoder_input_ids_from_labels(labels=labels)
        shift = getattr(sys.modules[type(model).__module__], "shift_tokens_right", None)
        if shift is None:
            raise ModelError(
                f"model: a '{model.config.model_type}' model cannot make inputs of its decoder "
                "from labels, so it cannot be trained here; take a BART or T5 model, for example"
            )
        return shift(labels, model.config.pad_token_id, model.config.decoder_start_token_id)

    def has_own_loss(self, model: Any) -> bool:
        """Whether the forward of a model adds to the cross entropy of the next tokens.

        ProphetNet predicts several tokens ahead; NLLB-MoE balances its experts where its config has
        `output_router_logits`.
        """
        balances = getattr(model.config, "output_router_logits", False)
        return bool(balances) or hasattr(model, "_compute_loss")

    def input_embeddings(self, model: PreTrainedModel) -> torch.nn.Module:
        """The module that embeds the dialogue."""
        return model.get_encoder().get_input_embeddings()

    # Generation.

    def set_start(self, config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        """Starts an output with the language, where the labels of the tokenizer do.

        mBART shifts its labels round: the last of them, the language, comes first to its decoder.
        In the labels of mBART-50 the language is first, after the start token that is shifted in.
        Checkpoints are published with another language there, or with none.

        Args:
            config: Changed in place.
            tokenizer: The model's.
        """
        language = language_of(tokenizer)
        if language is None:
            return
        code = tokenizer.convert_tokens_to_ids(language)
        if tokenizer(text_target="")["input_ids"][-1] == code:
            config.decoder_start_token_id = code
        else:
            config.forced_bos_token_id = code

    def generation_inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What of a batch `generate` is given: nothing that was made from the labels.

        With `decoder_input_ids` from a collator, generation would continue the solution. A prefix
        that is given to rows without labels stays.
        """
        labels, prefix = batch.get("labels"), batch.get("decoder_input_ids")
        from_labels = labels is not None and prefix is not None and prefix.shape == labels.shape
        left_out = {"labels", *(_DECODER_INPUTS if from_labels else ())}
        return {key: value for key, value in batch.items() if key not in left_out}


Family = EncoderDecoder  # The union of the classes, when there are more.
ENCODER_DECODER = EncoderDecoder()
FAMILIES: tuple[Family, ...] = (ENCODER_DECODER,)


def family_of(config: PretrainedConfig) -> Family | None:
    """The family of a model by its configuration; None for models that cannot be searched."""
    return next((family for family in FAMILIES if family.covers(config)), None)


def require_family(config: PretrainedConfig) -> Family:
    """The family of a model by its configuration.

    Raises:
        ModelError: It has none.
    """
    family = family_of(config)
    if family is None:
        raise ModelError(
            f"model: a '{config.model_type}' is a decoder-only or encoder-only model, and this "
            "version searches encoder-decoder models (BART, mBART, T5, mT5, Pegasus); "
            "choose one of those"
        )
    return family


def _fields_of(config: PretrainedConfig) -> dict[str, str]:
    """The model's own field for each of our names that it has a setting for."""
    own = config.to_dict()
    candidates = {name: [f for f in fields if f in own] for name, fields in _FIELDS.items()}
    return {name: found[0] for name, found in candidates.items() if found}


def language_codes(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The languages that a tokenizer can mark texts with, as mBART's does; none for most."""
    return list(getattr(tokenizer, "lang_code_to_id", {}))


def language_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The language that a tokenizer marks texts with; None where it marks none."""
    return getattr(tokenizer, "src_lang", None) if language_codes(tokenizer) else None
