"""Run by tests/test_ddp.py under a launcher: trains or searches, and writes what came of it.

ddp_driver.py MODE CHECKPOINT CSV OUTPUT_DIR
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartForConditionalGeneration,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from hpo_summarize import OptunaPruningCallback, SummarizationTrainer
from hpo_summarize.cli import run
from hpo_summarize.errors import HpoError
from hpo_summarize.launch.processes import join_group
from hpo_summarize.rouge import Rouge
from hpo_summarize.training.callbacks import find_metric

BATCHES = {"8x1": (8, 1), "4x2": (4, 2), "2x4": (2, 4), "2p4x1": (4, 1), "2p2x2": (2, 2)}
N_TRAIN = 22  # No multiple of the effective batch: the last step of an epoch has 6 rows.
N_EVAL = 5


class PruneAt(optuna.pruners.BasePruner):
    """Prunes every trial but the first at one epoch."""

    def __init__(self, step: int) -> None:
        self.step = step

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.number > 0 and trial.last_step == self.step


class BreakOn(TrainerCallback):
    """Breaks trial 1 in its second epoch on one process."""

    def __init__(self, rank: int, error: type[Exception] = RuntimeError) -> None:
        self.rank = rank
        self.error = error

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.process_index == self.rank and state.epoch and args.learning_rate > 1:
            raise self.error("the test breaks this process")


class OutOfMemoryOn(BartForConditionalGeneration):
    """Runs out of memory in training with more than 2 examples at once, on some processes."""

    ranks = (0, 1)

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **kwargs: Any
    ) -> Any:
        here = PartialState().process_index in self.ranks
        if here and self.training and input_ids.shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return super().forward(input_ids, attention_mask, labels=labels, **kwargs)


class CountingTrainer(SummarizationTrainer):
    """Counts the rows that this process decodes."""

    decoded = 0

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.decoded, generate = 0, self.model.generate

        def counted(input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
            self.decoded += len(input_ids)
            return generate(input_ids=input_ids, **options)

        self.model.generate = counted
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            del self.model.generate


class LateSaver(SummarizationTrainer):
    """Its second process comes late to the saving of a checkpoint."""

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        super().save_model(*args, **kwargs)
        time.sleep(self.args.process_index)


class NoteFiles(TrainerCallback):
    """Keeps what is in a checkpoint when the main process holds it for whole."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        (checkpoint,) = Path(args.output_dir).glob("checkpoint-*")
        self.names = sorted(path.name for path in checkpoint.iterdir())


class NoteBatches(TrainerCallback):
    """Keeps the per-device batch, the accumulation and the steps of every whole training."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        sizes = (args.per_device_train_batch_size, args.gradient_accumulation_steps)
        self.seen.append((*sizes, state.global_step))


class NoteRate(TrainerCallback):
    """Keeps the learning rate of the training that runs."""

    rate = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rate = args.learning_rate


def load_rows(path: str) -> list[dict[str, str]]:
    import pandas as pd

    return pd.read_csv(path, dtype=str).to_dict("records")


def make_trainer(mode: str, checkpoint: str, csv: str, out: Path, **args: Any) -> Any:
    trainer_class = LateSaver if mode == "save" else CountingTrainer
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    rows = load_rows(csv)
    inputs = tokenizer([row["dialogue"] for row in rows])
    labels = tokenizer([row["summary"] for row in rows])["input_ids"]
    data = Dataset.from_dict(
        {
            "input_ids": inputs["input_ids"],
            "attention_mask": inputs["attention_mask"],
            "labels": labels,
        }
    )

    training = NoteRate()

    def compute_metrics(prediction: Any) -> dict[str, float]:
        rank = PartialState().process_index
        if kind == "metric" and str(rank) == detail and training.rate > 1:
            raise HpoError("the test lets this process have no metric")
        texts = tokenizer.batch_decode(prediction.predictions, skip_special_tokens=True)
        (out / f"texts-{rank}.json").write_text(json.dumps(texts))
        references = [row["summary"] for row in rows[:N_EVAL]]
        return Rouge().compute(predictions=texts, references=references)

    kind, _, detail = mode.partition(":")
    OutOfMemoryOn.ranks = tuple(map(int, detail.split(","))) if kind == "memory" else ()
    model_class = OutOfMemoryOn if kind == "memory" else AutoModelForSeq2SeqLM

    def model_init() -> Any:
        return model_class.from_pretrained(checkpoint, dropout=0.0)

    fields = {
        "output_dir": str(out / "runs"),
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "num_train_epochs": 3,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "per_device_eval_batch_size": 2,
        "predict_with_generate": True,
        "report_to": "none",
        "disable_tqdm": True,
        "generation_max_length": 20,
    }
    trainer = trainer_class(
        args=Seq2SeqTrainingArguments(**{**fields, **args}),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        train_dataset=data.select(range(N_TRAIN)),
        eval_dataset=data.select(range(N_EVAL)),
        processing_class=tokenizer,
        model_init=model_init,
        compute_metrics=compute_metrics,
        callbacks=[training],
    )
    return trainer


def train(mode: str, checkpoint: str, csv: str, out: Path) -> None:
    batches, _, strategy = mode.partition(":")
    per_device, accumulation = BATCHES[batches]
    trainer = make_trainer(
        mode,
        checkpoint,
        csv,
        out,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        logging_steps=1,
        num_train_epochs=2,
        train_sampling_strategy=strategy,
    )
    trainer.train()
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        torch.save(trainer.model.state_dict(), out / "weights.pt")
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        rouge = {key: metrics[key] for key in ("eval_rouge1", "eval_rougeL")}
        result = {"losses": losses, "rouge": rouge, "world_size": trainer.args.world_size}
        result["decoded"] = trainer.decoded
        (out / "result.json").write_text(json.dumps(result))


def save(mode: str, checkpoint: str, csv: str, out: Path) -> None:
    """Trains one epoch and writes a checkpoint."""
    files = NoteFiles()
    trainer = make_trainer(mode, checkpoint, csv, out, save_strategy="epoch", num_train_epochs=1)
    trainer.add_callback(files)
    trainer.train()
    if trainer.is_world_process_zero():
        (out / "result.json").write_text(json.dumps(files.names))


def integrate(mode: str, checkpoint: str, csv: str, out: Path) -> None:
    """Trains with the pruning callback, and a trial that every process or the main one has."""
    from optuna_integration import TorchDistributedTrial

    study = optuna.create_study(pruner=PruneAt(2), direction="maximize")
    study.add_trial(optuna.trial.create_trial(value=0.0))  # `PruneAt` leaves the first one alone.
    ends = []
    for is_distributed in (True, False):
        trainer = make_trainer(mode, checkpoint, csv, out, per_device_train_batch_size=4)
        trial: Any = study.ask() if PartialState().is_main_process else None
        if is_distributed:
            trial = TorchDistributedTrial(trial)
        trainer.add_callback(OptunaPruningCallback(trial, "rougeL"))
        try:
            trainer.train()
            ends.append("trained")
        except optuna.TrialPruned as pruned:
            ends.append(str(pruned))
    ends = gather_object([ends])
    if PartialState().is_main_process:
        steps = [list(trial.intermediate_values) for trial in study.trials[1:]]
        result = {"ends": ends, "steps": steps, "world_size": PartialState().num_processes}
        (out / "result.json").write_text(json.dumps(result))


def search(mode: str, checkpoint: str, csv: str, out: Path) -> None:
    kind, _, detail = mode.partition(":")
    trainer = make_trainer(mode, checkpoint, csv, out, per_device_train_batch_size=4)
    world_size = trainer.args.world_size
    rates = {"nan": 1e30, "break": 2.0, "refuse": 2.0, "metric": 2.0}
    bad = rates.get(kind, 1e-3)
    if kind in ("break", "refuse"):
        trainer.add_callback(BreakOn(int(detail), RuntimeError if kind == "break" else HpoError))

    def objective(metrics: dict[str, float]) -> float:
        return find_metric(metrics, "rougeX" if kind == "missing" else "rougeL")

    def space(trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        choices = [1e-2] if trial.number != 1 or kind == "memory" else [bad]
        return {"learning_rate": trial.suggest_categorical(f"rate_{choices[0]}", choices)}

    if not PartialState().is_main_process:
        trainer.set_up_search(space, objective)
        trainer.follow()
        return
    pruner = PruneAt(int(detail)) if kind == "prune" else optuna.pruners.NopPruner()
    study = optuna.create_study(
        storage=f"sqlite:///{out / 'study.db'}",
        study_name="s",
        direction="maximize",
        pruner=pruner,
        load_if_exists=True,
    )
    batches = NoteBatches()
    trainer.add_callback(batches)
    trainer.hyperparameter_search(
        space,
        objective,
        n_trials=100 if kind == "timeout" else 3,
        direction="maximize",
        backend="optuna",
        study=study,
        timeout=2 if kind == "timeout" else None,
    )
    states = [trial.state.name for trial in study.trials]
    steps = [trial.last_step for trial in study.trials]
    result = {"states": states, "steps": steps, "world_size": world_size}
    result["batches"] = batches.seen
    result["failures"] = [trial.user_attrs.get("failure") for trial in study.trials]
    (out / "result.json").write_text(json.dumps(result))


def main() -> None:
    mode, checkpoint, csv, folder = sys.argv[1:]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if mode.startswith("device:"):
        join_with_gpus(*map(int, mode.split(":")[1:]))
    else:
        kinds = {**dict.fromkeys(BATCHES, train), "save": save, "integrate": integrate}
        kinds.get(mode.partition(":")[0], search)(mode, checkpoint, csv, Path(folder))


def join_with_gpus(rank: int, count: int) -> None:
    """Joins the group; one process takes itself for one on a machine with so many GPUs."""
    if os.environ["RANK"] == str(rank):
        del os.environ["ACCELERATE_USE_CPU"]
        torch.accelerator.is_available = lambda: True
        torch.accelerator.current_accelerator = lambda: torch.device("cuda")
        torch.accelerator.device_count = lambda: count
    join_group()


if __name__ == "__main__":
    run(main)
