"""The faults of the stock search, row by row: each test fails on `Seq2SeqTrainer`, and passes here.

The stock class is expected to fail (strictly: when transformers fixes a fault, its test fails).
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BartForConditionalGeneration,
    GenerationConfig,
    Seq2SeqTrainer,
    TrainerCallback,
)

from hpo_summarize import OptunaPruningCallback, SummarizationTrainer
from hpo_summarize.errors import HpoError, SearchFailed

pytestmark = pytest.mark.slow  # Nearly all of it starts programs or trains.


def stock(*errors: type[BaseException]) -> Any:
    """`Seq2SeqTrainer`, which fails the test, with a failed assertion or one of `errors`."""
    known = (AssertionError, pytest.fail.Exception, *errors)
    return pytest.param(Seq2SeqTrainer, marks=pytest.mark.xfail(strict=True, raises=known))


def both(*errors: type[BaseException]) -> Any:
    return pytest.mark.parametrize("trainer_class", [stock(*errors), SummarizationTrainer])


class Watcher(TrainerCallback):
    """Notes what a training really has: its optimizer, its schedule, its model."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.rates: list[list[float]] = []
        self.losses: list[float] = []
        self.decodings: list[GenerationConfig] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, groups = kwargs["model"], kwargs["optimizer"].param_groups
        embedding = model.get_input_embeddings()
        self.starts.append(
            {
                "weight_decay": groups[0]["weight_decay"],
                "neftune": getattr(embedding, "neftune_noise_alpha", None),
                "generation": model.generation_config,
                "dropout": model.config.dropout,
            }
        )
        self.rates.append([])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates[-1].append(kwargs["optimizer"].param_groups[0]["lr"])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.decodings.append(kwargs["model"].generation_config)


def search(trainer: Any, space: Any, n_trials: int = 2, **kwargs: Any) -> Any:
    options = {"backend": "optuna", "direction": "minimize", **kwargs}
    return trainer.hyperparameter_search(space, n_trials=n_trials, **options)


def storage_of_trials() -> dict[str, Any]:
    storage = optuna.storages.InMemoryStorage()
    return {"storage": storage, "study_name": "study"}


def trials_of(options: dict[str, Any]) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(**options).trials


@both()
def test_row_1_the_objective_is_reported_at_epochs(trainer_class: type, make_trainer: Any) -> None:
    trainer, options = make_trainer(trainer_class, num_train_epochs=2), storage_of_trials()

    def space(trial: optuna.Trial) -> dict[str, Any]:
        name = "per_device_train_batch_size"
        return {name: trial.suggest_categorical(name, [4, 8, 16])}

    search(trainer, space, 3, **options, pruner=optuna.pruners.NopPruner())
    assert [sorted(t.intermediate_values) for t in trials_of(options)] == [[1, 2]] * 3


@both()
def test_row_2_one_report_an_epoch_reaches_optuna_with_a_callback_of_the_user(
    trainer_class: type, make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, steps = make_trainer(trainer_class, num_train_epochs=2), []
    report = optuna.Trial.report

    def counted(trial: optuna.Trial, value: float, step: int) -> None:
        steps.append(step)
        report(trial, value, step)

    def space(trial: optuna.Trial) -> dict[str, Any]:
        trainer.remove_callback(OptunaPruningCallback)
        trainer.add_callback(OptunaPruningCallback(trial, "eval_loss"))
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3)}

    monkeypatch.setattr(optuna.Trial, "report", counted)
    search(trainer, space, 2, pruner=optuna.pruners.NopPruner())
    assert steps == [1, 2, 1, 2]


@both()
def test_row_3_a_misspelt_name_is_refused_before_the_first_trial(
    trainer_class: type, make_trainer: Any
) -> None:
    trainer, options = make_trainer(trainer_class), storage_of_trials()
    with pytest.raises(HpoError, match="did you mean 'learning_rate'"):
        search(trainer, lambda t: {"learnig_rate": t.suggest_float("x", 1e-5, 1e-4)}, **options)
    assert "study" not in optuna.get_all_study_names(options["storage"])


@both()
def test_row_4_a_value_of_one_trial_does_not_reach_the_next(
    trainer_class: type, make_trainer: Any
) -> None:
    watcher = Watcher()
    trainer = make_trainer(trainer_class, {"callbacks": [watcher]}, weight_decay=0.01)

    def space(trial: optuna.Trial) -> dict[str, Any]:
        return {"weight_decay": 0.3} if trial.number == 0 else {}

    search(trainer, space, 2)
    assert [start["weight_decay"] for start in watcher.starts] == [0.3, 0.01]
    assert trainer.args.weight_decay == 0.01


@both()
def test_row_5_a_warm_up_ratio_warms_up(trainer_class: type, make_trainer: Any) -> None:
    watcher = Watcher()
    trainer = make_trainer(trainer_class, {"callbacks": [watcher]}, learning_rate=1e-3)
    search(trainer, lambda trial: {"warmup_steps": 0.5}, 1)
    assert watcher.rates[0] == pytest.approx([0.0, 5e-4, 1e-3, 5e-4])


@both()
def test_row_6_model_init_sees_the_values_of_its_own_trial(
    trainer_class: type, make_trainer: Any, bart_config: Any
) -> None:
    watcher = Watcher()

    def model_init(trial: optuna.Trial | None) -> BartForConditionalGeneration:
        values = trial.params if trial is not None else {}
        return BartForConditionalGeneration(bart_config(dropout=values.get("dropout", 0.0)))

    def space(trial: optuna.Trial) -> dict[str, Any]:
        trial.suggest_float("dropout", 0.1, 0.5)
        return {}

    trainer = make_trainer(
        trainer_class, {"callbacks": [watcher], "model_init": model_init, "model": None}
    )
    options = storage_of_trials()
    search(trainer, space, 2, **options)
    assert [start["dropout"] for start in watcher.starts] == [
        trial.params["dropout"] for trial in trials_of(options)
    ]


@both()
def test_row_7_label_smoothing_of_a_trial_changes_its_loss(
    trainer_class: type, make_trainer: Any
) -> None:
    watcher = Watcher()
    trainer = make_trainer(
        trainer_class, {"callbacks": [watcher]}, learning_rate=1e-12, logging_strategy="epoch"
    )

    def space(trial: optuna.Trial) -> dict[str, Any]:
        return {"label_smoothing_factor": 0.9 if trial.number else 0.0}

    search(trainer, space, 2)
    assert watcher.losses[0] != pytest.approx(watcher.losses[1], rel=1e-4)


@both()
def test_row_7_neftune_noise_of_a_trial_is_put_on_its_embeddings(
    trainer_class: type, make_trainer: Any
) -> None:
    watcher = Watcher()
    trainer = make_trainer(trainer_class, {"callbacks": [watcher]})
    search(trainer, lambda trial: {"neftune_noise_alpha": 5.0} if trial.number == 0 else {}, 2)
    assert [start["neftune"] for start in watcher.starts] == [5.0, None]


@both()
@pytest.mark.parametrize("lora", [False, True])
def test_neftune_noise_reaches_an_encoder(
    lora: bool, trainer_class: type, make_trainer: Any, bart_config: Any
) -> None:
    def build() -> Any:
        model = BartForConditionalGeneration(bart_config(dropout=0.0))
        return get_peft_model(model, LoraConfig(target_modules="all-linear")) if lora else model

    losses = []
    for alpha in (None, 50.0, None):
        trainer = make_trainer(trainer_class, {"model_init": build}, neftune_noise_alpha=alpha)
        losses.append(trainer.train().training_loss)
    assert losses[0] == losses[2] != losses[1]


@both()
def test_row_7_every_model_gets_the_generation_config_of_the_arguments(
    trainer_class: type, make_trainer: Any
) -> None:
    watcher = Watcher()
    trainer = make_trainer(
        trainer_class,
        {"callbacks": [watcher]},
        generation_config=GenerationConfig(num_beams=3, max_new_tokens=7),
    )
    search(trainer, lambda trial: {}, 2)
    assert [start["generation"].num_beams for start in watcher.starts] == [3, 3]
    assert [start["generation"].decoder_start_token_id for start in watcher.starts] == [2, 2]


@both()
def test_row_8_the_value_of_a_trial_is_that_of_its_best_epoch(
    trainer_class: type, make_trainer: Any
) -> None:
    trainer, options = make_trainer(trainer_class, num_train_epochs=3), storage_of_trials()
    values = {1: 0.2, 2: 0.7, 3: 0.4}
    best = search(
        trainer,
        lambda trial: {},
        1,
        direction="maximize",
        compute_objective=lambda metrics: values[round(metrics["epoch"])],
        **options,
    )
    assert best.objective == 0.7
    assert trials_of(options)[0].user_attrs["best_epoch"] == 2


@pytest.mark.parametrize("end", ["complete", "pruned", "failed"])
@both(RuntimeError, ValueError)
def test_row_10_the_last_model_is_gone_when_the_next_is_built(
    trainer_class: type, end: str, make_trainer: Any, bart_config: Any
) -> None:
    built: list[weakref.ref] = []
    alive: list[int] = []

    def model_init() -> BartForConditionalGeneration:
        alive.append(sum(reference() is not None for reference in built))
        model = BartForConditionalGeneration(bart_config())
        built.append(weakref.ref(model))
        return model

    class Breaker(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if end == "failed" and len(built) < 5:
                raise RuntimeError(f"the test breaks model {len(built)}")

    pruner = optuna.pruners.ThresholdPruner(upper=0.0) if end == "pruned" else None
    trainer = make_trainer(
        trainer_class, {"model_init": model_init, "model": None, "callbacks": [Breaker()]}
    )
    if end == "failed":
        search(trainer, lambda trial: {}, 4, catch=(RuntimeError,))
    else:
        outcome = pytest.raises(SearchFailed) if end == "pruned" else None
        if outcome is None:
            search(trainer, lambda trial: {}, 3)
        else:
            with outcome:
                search(trainer, lambda trial: {}, 3, pruner=pruner)
    assert alive == [0] * len(alive)
    assert len(alive) >= 4


@both(torch.OutOfMemoryError)
def test_row_11_a_trial_out_of_memory_is_pruned_and_the_search_continues(
    trainer_class: type, make_trainer: Any, bart_config: Any
) -> None:
    def model_init(trial: optuna.Trial | None) -> BartForConditionalGeneration:
        if trial is not None and trial.number == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return BartForConditionalGeneration(bart_config())

    trainer, options = (
        make_trainer(trainer_class, {"model_init": model_init, "model": None}),
        storage_of_trials(),
    )
    search(trainer, lambda trial: {}, 3, **options)
    states = [trial.state.name for trial in trials_of(options)]
    assert states == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert trials_of(options)[1].user_attrs["failure"] == "out of memory"


@both(TypeError)
def test_row_12_study_callbacks_are_called_after_every_trial(
    trainer_class: type, make_trainer: Any
) -> None:
    seen: list[int] = []
    search(
        make_trainer(trainer_class),
        lambda trial: {},
        2,
        callbacks=[lambda study, trial: seen.append(trial.number)],
    )
    assert seen == [0, 1]


@both()
def test_row_14_only_the_best_trial_keeps_its_checkpoints(
    trainer_class: type, make_trainer: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(trainer_class, save_strategy="epoch", num_train_epochs=2)
    rates = {0: 1e-4, 1: 3e-2, 2: 1e-3}
    best = search(trainer, lambda trial: {"learning_rate": rates[trial.number]}, 3)
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert folders == [f"run-{best.run_id}"]
    assert list((tmp_path / "runs" / folders[0]).glob("checkpoint-*/model.safetensors"))


@both(ValueError)
def test_row_15_a_search_without_a_result_says_what_became_of_each_trial(
    trainer_class: type, make_trainer: Any
) -> None:
    pruner = optuna.pruners.ThresholdPruner(upper=0.0)
    with pytest.raises(SearchFailed, match="(?s)trial 0: pruned.*trial 1: pruned"):
        search(make_trainer(trainer_class), lambda trial: {}, 2, pruner=pruner)


@both()
def test_row_16_threads_that_would_share_one_trainer_are_refused(
    trainer_class: type, make_trainer: Any
) -> None:
    with pytest.raises(HpoError, match="n_jobs must be 1.*several processes"):
        search(make_trainer(trainer_class), lambda trial: {}, 1, n_jobs=2)


class LengthByInput(BartForConditionalGeneration):
    """Writes long summaries for long dialogues, so that batches differ in length."""

    def generate(self, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        new_tokens = 30 if (input_ids != 1).sum(1).max() > 50 else 5
        self.generation_config.max_new_tokens = 40
        limits = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
        return super().generate(input_ids, **{**kwargs, **limits})


@both(OverflowError)
def test_row_19_predictions_of_unequal_batches_can_be_decoded(
    trainer_class: type, make_trainer: Any, bart_config: Any, tokenizer: Any, tokens: Any
) -> None:
    texts: list[str] = []

    def compute_metrics(prediction: Any) -> dict[str, float]:
        ids = prediction.predictions
        assert np.asarray(ids).min() >= 0
        texts.extend(tokenizer.batch_decode(ids, skip_special_tokens=True))
        return {"count": float(len(texts))}

    short = tokenizer("#Person1#: Hi.")["input_ids"]
    long = tokens[0]["input_ids"] * 2
    rows = {"input_ids": [short] * 4 + [long[:100]] * 4, "labels": [[0, 5, 2]] * 8}
    rows["attention_mask"] = [[1] * len(ids) for ids in rows["input_ids"]]
    trainer = make_trainer(
        trainer_class,
        {
            "model": LengthByInput(bart_config()),
            "compute_metrics": compute_metrics,
            "eval_dataset": type(tokens).from_dict(rows),
        },
        predict_with_generate=True,
        per_device_eval_batch_size=4,
    )
    assert trainer.evaluate()["eval_count"] == 8


@both()
def test_row_23_generation_parameters_of_a_trial_reach_its_decoding(
    trainer_class: type, make_trainer: Any
) -> None:
    watcher = Watcher()
    trainer = make_trainer(
        trainer_class,
        {"callbacks": [watcher], "compute_metrics": lambda prediction: {"zero": 0.0}},
        predict_with_generate=True,
        generation_num_beams=1,
        generation_max_length=12,
    )
    values = {"num_beams": 3, "length_penalty": 0.3, "do_sample": True, "temperature": 0.5}
    search(trainer, lambda trial: {**values, "max_new_tokens": 9}, 1)
    used = watcher.decodings[0]
    assert {name: getattr(used, name) for name in values} == values


class Recorder(BartForConditionalGeneration):
    """Notes the number of beams that each generation really has."""

    beams: list[int] = []

    def generate(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.beams.append(kwargs.get("num_beams") or self.generation_config.num_beams)
        return super().generate(*args, **kwargs)


@both()
def test_row_23_generation_parameters_of_a_trial_reach_a_model_with_lora(
    trainer_class: type, make_trainer: Any, bart_config: Any
) -> None:
    Recorder.beams.clear()

    def model_init() -> Any:
        lora = LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q_proj"])
        return get_peft_model(Recorder(bart_config()), lora)

    trainer = make_trainer(
        trainer_class,
        {"model_init": model_init, "model": None, "compute_metrics": lambda prediction: {"n": 0.0}},
        predict_with_generate=True,
    )
    search(trainer, lambda trial: {"num_beams": 3, "max_new_tokens": 5}, 1)
    assert set(Recorder.beams) == {3}


@both()
def test_row_25_generation_uses_the_cache_when_models_share_a_config(
    trainer_class: type, make_trainer: Any, bart_config: Any
) -> None:
    shared, lengths = bart_config(), []

    def model_init() -> BartForConditionalGeneration:
        model = BartForConditionalGeneration(shared)

        def note(module: Any, args: Any, kwargs: Any) -> None:
            if not model.training:
                lengths.append(kwargs["input_ids"].shape[1])

        model.generation_config.min_new_tokens = 8
        model.model.decoder.register_forward_pre_hook(note, with_kwargs=True)
        return model

    trainer = make_trainer(
        trainer_class,
        {"model_init": model_init, "model": None, "compute_metrics": lambda prediction: {"n": 0.0}},
        predict_with_generate=True,
        generation_max_length=9,
    )
    search(trainer, lambda trial: {}, 1)
    generated = [length for length in lengths if length < 10]
    assert len(generated) >= 6
    assert set(generated) == {1}


@both()
def test_the_loss_does_not_grow_with_the_accumulation_steps(
    trainer_class: type, make_trainer: Any, bart_config: Any
) -> None:
    norms = []

    class Norm(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **k: Any) -> None:
            if "grad_norm" in logs:
                norms.append((float(logs["loss"]), float(logs["grad_norm"])))

    for per_device, accumulation in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        trainer = make_trainer(
            trainer_class,
            {
                "model": BartForConditionalGeneration(bart_config(dropout=0.0)),
                "callbacks": [Norm()],
            },
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            logging_steps=1,
            train_sampling_strategy="sequential",
        )
        trainer.train()
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
