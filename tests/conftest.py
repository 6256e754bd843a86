"""A tiny model, tokenizer and data set, made here and now, for every test."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Sums depend on the number of threads: a process that a test starts must come to the same weights.
os.environ["OMP_NUM_THREADS"] = "1"

import optuna  # noqa: E402
import pandas as pd  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from model_families import CLASSES, save_checkpoint  # noqa: E402
from transformers import (  # noqa: E402
    BartConfig,
    BartForConditionalGeneration,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
)

from hpo_summarize.models.tokenizer import train_tokenizer  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent
NAMES = ["Mina", "Jun", "Sora", "Tae", "Yuri", "Hana"]
PLACES = ["station", "library", "museum", "park", "office"]
HOURS = ["two", "three", "four", "five", "six"]


@pytest.fixture(scope="session", autouse=True)
def _settle() -> None:
    torch.set_num_threads(1)
    gc.freeze()  # Garbage collections, several a trial, need not look through the libraries.


@pytest.fixture(autouse=True)
def _default_signals() -> None:
    """A program that ends ignores signals, and what a later test starts would ignore them, too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def make_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Short dialogues about a meeting, with summaries."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        who, where, hour = draw.choice(NAMES), draw.choice(PLACES), draw.choice(HOURS)
        dialogue = (
            f"#Person1#: Hello {who}, shall we meet at the {where}?\n"
            f"#Person2#: Yes, at {hour} please.\n#Person1#: See you at {hour}."
        )
        summary = f"#Person1# and {who} meet at the {where} at {hour}."
        rows.append({"fname": f"row_{number}", "dialogue": dialogue, "summary": summary})
    return rows


@pytest.fixture(scope="session")
def rows() -> list[dict[str, str]]:
    return make_rows(32)


@pytest.fixture(scope="session")
def csv_path(rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def tokenizer(rows: list[dict[str, str]]) -> PreTrainedTokenizerBase:
    texts = [text for row in rows for text in (row["dialogue"], row["summary"])]
    return train_tokenizer(texts, 400, ["#Person1#", "#Person2#"])


@pytest.fixture(scope="session")
def bart_config(tokenizer: PreTrainedTokenizerBase) -> Callable[..., BartConfig]:
    """Makes the configuration of a BART of some 20,000 parameters."""

    def make(**changes: Any) -> BartConfig:
        fields = {
            "vocab_size": len(tokenizer),
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_position_embeddings": 128,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "decoder_start_token_id": tokenizer.eos_token_id,
            "forced_eos_token_id": None,
        }
        return BartConfig(**{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def checkpoint(
    bart_config: Callable[..., BartConfig],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with a BART of two layers a stack and its tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    model = BartForConditionalGeneration(bart_config(encoder_layers=2, decoder_layers=2))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint_copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be spoiled."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Refuses connections and lists those that were tried."""
    tried: list[Any] = []

    def refuse(*args: Any, **kwargs: Any) -> Any:
        tried.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tried


@pytest.fixture(scope="session")
def folders(
    tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A checkpoint of each family of models, by its model type."""
    root = tmp_path_factory.mktemp("families")
    return {family: save_checkpoint(root / family, family, tokenizer) for family in CLASSES}


@pytest.fixture(scope="session")
def tokens(rows: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    inputs = tokenizer([row["dialogue"] for row in rows])
    labels = tokenizer([row["summary"] for row in rows])["input_ids"]
    columns = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    return Dataset.from_dict({**columns, "labels": labels})


TrainerFactory = Callable[..., Any]


@pytest.fixture
def make_trainer(
    tmp_path: Path,
    tokens: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    bart_config: Callable[..., BartConfig],
) -> TrainerFactory:
    """Makes a trainer of the given class on the tiny model, with arguments changed at will."""

    def make(trainer_class: type, trainer: dict[str, Any] | None = None, **args: Any) -> Any:
        fields = {
            "output_dir": str(tmp_path / "runs"),
            "eval_strategy": "epoch",
            "save_strategy": "no",
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        options = {
            "args": Seq2SeqTrainingArguments(**{**fields, **args}),
            "data_collator": DataCollatorForSeq2Seq(tokenizer),
            "train_dataset": tokens,
            "eval_dataset": tokens.select(range(10)),
            "processing_class": tokenizer,
        }
        if "model" not in (trainer or {}):
            options["model_init"] = lambda: BartForConditionalGeneration(bart_config())
        return trainer_class(**{**options, **(trainer or {})})

    return make
