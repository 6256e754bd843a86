"""Time of a trial of a large model outside of the model itself."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarking.clocks import Time, now
from benchmarking.observation import wrapped
from datasets import Dataset
from tokenizers import Tokenizer
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hpo_summarize.config.loader import load_recipe
from hpo_summarize.models.tokenizer import train_tokenizer
from hpo_summarize.optimizer import OptunaOptimizer

_VOCABULARY = 30000  # KoBART's; with BART-base's shape it makes 124 million parameters.
_KOBART = Path(__file__).parents[2] / "recipes" / "kobart.yaml"
_ROWS = [
    {
        "dialogue": f"#Person1#: Shall we meet at {hour}?\n#Person2#: Yes, at {hour} please.",
        "summary": f"They meet at {hour}.",
    }
    for hour in ("one", "two", "three", "four", "five", "six", "seven", "eight")
]


class Cycles(TrainerCallback):
    """Measures each trial, from the start of its training to that of the next one.

    The model's own time is that of the optimizer steps (forward, backward, step) and of the
    prediction steps (generation, and the loss where one is asked for).

    Attributes:
        cycles: Time of each trial but the last one without the model's own.
    """

    def __init__(self) -> None:
        self.cycles: list[Time] = []
        self._began: Time | None = None
        self._own = Time()
        self._step = Time()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends the cycle before."""
        if self._began is not None:
            self.cycles.append(now() - self._began - self._own)
        self._began, self._own = now(), Time()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the model's clock."""
        self._step = now()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stops it."""
        self._own += now() - self._step

    def watch(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs a prediction step."""
        began = now()
        try:
            return call(*args, **kwargs)
        finally:
            self._own += now() - began


def measure_overhead(n_trials: int = 6, **shape: Any) -> dict[str, float]:
    """Runs trials of one optimizer step on a BART of 124 million random weights with LoRA.

    Args:
        n_trials: At least 2; the last one is not measured.
        **shape: Fields of the model's configuration that replace those of BART-base.

    Returns:
        `parameters`; the median over the trials of the seconds that are not the model's own:
        `wall_seconds` and `cpu_seconds`; and `prepare_cpu_seconds` until the first trial can start,
        with the space of recipes/kobart.yaml: loading the model and the dry run.
    """
    rows, cycles = Dataset.from_list(_ROWS), Cycles()
    with tempfile.TemporaryDirectory() as folder:
        parameters = _write_checkpoint(Path(folder) / "model", **shape)
        optimizer = OptunaOptimizer(_recipe(Path(folder)), rows, rows, n_trials=n_trials)
        with wrapped(Seq2SeqTrainer, "prediction_step", cycles.watch):
            optimizer.prepare()
            optimizer.trainer.add_callback(cycles)
            optimizer.optimize()
        space = {"space": load_recipe(_KOBART, needs_data=False).model_dump()["space"]}
        content = {**_recipe(Path(folder)), **space, "training": {}, "generation": {}}
        began = now()
        OptunaOptimizer(content, rows, rows, output_dir=f"{folder}/kobart").prepare()
        prepared = now() - began
    return {
        "parameters": parameters,
        "wall_seconds": median(cycle.wall for cycle in cycles.cycles),
        "cpu_seconds": median(cycle.cpu for cycle in cycles.cycles),
        "prepare_cpu_seconds": prepared.cpu,
    }


def _recipe(folder: Path) -> dict[str, Any]:
    return {
        "model": {"name": str(folder / "model")},
        "lora": {"r": 16, "alpha": 32, "target_modules": "all-linear"},
        "data": {"max_dialogue_tokens": 64, "max_summary_tokens": 16},
        "training": {"num_epochs": 1, "batch_size": len(_ROWS)},
        "generation": {"num_beams": 1, "max_new_tokens": 8},
        "search": {"pruner": None},
        "space": {"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True}},
        "output_dir": str(folder / "output"),
    }


def _write_checkpoint(folder: Path, **shape: Any) -> int:
    """Writes random weights and a tokenizer of their size; returns the number of parameters."""
    tokenizer = _build_tokenizer()
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    layers = {"encoder_layers": 6, "decoder_layers": 6, "d_model": 768}
    width = {"encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072}
    fields = {**layers, **width, **ids, "forced_eos_token_id": 2, **shape}
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(vocab_size=_VOCABULARY, **fields))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of few words, filled up to the size of the model's vocabulary."""
    small: Any = train_tokenizer([text for row in _ROWS for text in row.values()], 300)
    content = json.loads(small.backend_tokenizer.to_str())
    words = content["model"]["vocab"]
    words |= {f"unused{number}": number for number in range(len(words), _VOCABULARY)}
    core = Tokenizer.from_str(json.dumps(content))
    roles = {name: getattr(small, name) for name in ("bos_token", "pad_token", "eos_token")}
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **roles)
