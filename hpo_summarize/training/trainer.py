"""`SummarizationTrainer`: `Seq2SeqTrainer` with correct, efficient hyperparameter search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import PreTrainedModel, Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.hyperparameter_search import default_hp_search_backend
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    BestRun,
    EvalLoopOutput,
    HPSearchBackend,
    unwrap_peft_model,
)

from hpo_summarize.launch.processes import on_all
from hpo_summarize.models.families import family_of, require_family
from hpo_summarize.study.trials import best_trials, require_complete, values_of
from hpo_summarize.training import upstream_fixes as fixes
from hpo_summarize.training.arguments import drop_decoding
from hpo_summarize.training.epoch_eval import EpochEvaluation, evaluating
from hpo_summarize.training.evaluation import drop_eval_loaders, run_evaluation
from hpo_summarize.training.planning import HpSpace, open_study
from hpo_summarize.training.runner import TrialRunner
from hpo_summarize.training.trial import TrialRun


class SummarizationTrainer(Seq2SeqTrainer):
    """`Seq2SeqTrainer` with a sound `hyperparameter_search`, and a sound loss for BART and T5.

    Takes the arguments of `Seq2SeqTrainer`. The loss of an encoder-decoder model is the mean over
    all tokens of an optimizer step, whatever the number of accumulated batches and processes; the
    key-value cache is on in generation; predictions reach `compute_metrics` without -100;
    evaluation keeps the order of the data set; a new model is built when the old one is freed.
    `upstream_fixes` says why; `evaluation` says how texts are generated.

    Attributes:
        largest_per_device: Examples that a device takes at once in training; a larger batch of a
            trial is accumulated. None, the default: as many as the arguments put on one.
        prune_after: See `OptunaPruningCallback`.
        trial_decoding: Generation fields of every trial; what `hp_space` returns comes before them.
        epoch_evaluation: What is measured after each epoch; the best epoch of a trial is then
            measured in full. None, the default: every epoch is measured in full.
        n_cut: Rows of the last evaluation that ended at the length limit.
        summaries: `Summaries.describe` of the last evaluation; None where it gave no texts.
    """

    args: Seq2SeqTrainingArguments
    model: Any
    eval_dataset: Any
    compute_loss_func: Any
    largest_per_device: int | None = None
    prune_after: float = 0.0
    trial_decoding: Mapping[str, Any] = {}
    epoch_evaluation: EpochEvaluation | None = None
    n_cut: int = 0
    summaries: dict[str, Any] | None = None
    # Of a trainer that trains one trial: the trial, and the decoding of its model.
    _run: TrialRun | None = None
    _decoding: Mapping[str, Any] | None = None

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: Seq2SeqTrainingArguments | None = None,
        *positional: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, *positional, **kwargs)
        fixes.use_one_gpu(self.args)
        self._train_batch_size = self.args.train_batch_size
        self.add_callback(fixes.EncoderNoise())
        if family_of(self.model.config) is not None and self.compute_loss_func is None:
            self.model_accepts_loss_kwargs = False
            self.compute_loss_func = self._token_mean
            self.label_smoother = None
        if self.model_init is None:
            fixes.put_decoding(self.model, fixes.decoding_of(self.args))

    def call_model_init(self, trial: optuna.trial.BaseTrial | None = None) -> PreTrainedModel:
        """Drops the old model before the new one is built, and sets up the new one's decoding."""
        if self.model is not None:  # Else a trial has been released, or `__init__` is building.
            fixes.release(self)
        model = super().call_model_init(trial)
        given = fixes.decoding_of(self.args) if self._decoding is None else self._decoding
        fixes.put_decoding(model, given)
        return model

    # The loss.

    @property
    def _uses_token_mean(self) -> bool:
        return self.compute_loss_func == self._token_mean

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The mean over the tokens of a step; see `upstream_fixes.token_mean`."""
        if self._uses_token_mean:
            base = unwrap_peft_model(self.accelerator.unwrap_model(model))
            if require_family(base.config).has_own_loss(base):
                loss, outputs = fixes.share_of_own_loss(self, model, inputs, num_items_in_batch)
                return (loss, outputs) if return_outputs else loss
            inputs = fixes.with_decoder_inputs(base, inputs)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _token_mean(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        # Losses with more smoothing are larger for the same model, and trials are compared by them.
        searched = self._run and "label_smoothing_factor" in self._run.plan.spec.training
        smooths = self.model.training or not searched
        smoothing = self.args.label_smoothing_factor if smooths else 0.0
        return fixes.token_mean(outputs, labels, num_items_in_batch, smoothing)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Fails a trial at the first loss that is not finite."""
        loss = super().training_step(*args, **kwargs)
        if self._run is not None:
            self._run.check_loss(loss, self.accelerator)
        return loss

    # Evaluation.

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Generates for every row of `dataloader.dataset`; returns what the parent's loop does."""
        rest = {"ignore_keys": ignore_keys, "metric_key_prefix": metric_key_prefix}
        loop = partial(super().evaluation_loop, description=description, **rest)
        with fixes.decodable_predictions(self):
            return run_evaluation(self, loop, dataloader, prediction_loss_only, metric_key_prefix)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """A loader of the rows that are asked for."""
        drop_eval_loaders(self)
        return super().get_eval_dataloader(eval_dataset)

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates an epoch of a training in the cheap way, and records it in its trial."""
        with evaluating(self, self.epoch_evaluation):
            metrics = super()._evaluate(*args, **kwargs)
        if self._run is not None:
            self._run.record(self.state.epoch, metrics, self.summaries)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Keeps the checkpoint of the epoch with the best objective of a trial.

        The parent goes by `metric_for_best_model`, which may be another metric or direction. Its
        best value stays in `state.best_metric`, where callbacks such as early stopping read it.
        """
        best_step = self.state.best_global_step
        is_new_best = super()._determine_best_metric(metrics, trial)
        if self._run is not None:
            is_new_best = self._run.latest_is_best()
            self.state.best_global_step = self.state.global_step if is_new_best else best_step
        return is_new_best

    # Data and checkpoints.

    def _get_eval_sampler(self, eval_dataset: Sized) -> Sampler | None:
        """Keeps the order of the data set, by which predictions and references are paired."""
        return SequentialSampler(eval_dataset)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler | None:
        return fixes.step_groups(super()._get_train_sampler(*args, **kwargs), self.args)

    def get_batch_samples(
        self, epoch_iterator: Iterator, *args: Any, **kwargs: Any
    ) -> tuple[list, torch.Tensor | int | None]:
        """Masks samples duplicated by accelerate's padding."""
        if self.args.world_size > 1 and self._uses_token_mean:
            batches = epoch_iterator
            epoch_iterator = (fixes.mask_padding_rows(self, batch) for batch in batches)
        return super().get_batch_samples(epoch_iterator, *args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._run is None else self._run.plan.folder

    def _save_rng_state(self, output_dir: str) -> None:
        """Waits for the files of all processes, before the main one writes the trainer's state."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir)
        is_checkpoint = self.args.should_save and folder.name.startswith(PREFIX_CHECKPOINT_DIR)
        # Another loss may belong to a model that shifts its labels otherwise or reads other inputs,
        # and sharded weights give no outputs on one process alone.
        is_sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if is_checkpoint and self._uses_token_mean and not is_sharded:
            fixes.record_outputs(self, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        loaded = self.accelerator.unwrap_model(self.model if model is None else model)
        fixes.check_outputs(Path(resume_from_checkpoint), loaded)

    # The search.

    def hyperparameter_search(
        self,
        hp_space: HpSpace | None = None,
        compute_objective: Callable[[dict[str, float]], float | Sequence[float]] | None = None,
        n_trials: int = 20,
        direction: str | list[str] = "minimize",
        backend: str | HPSearchBackend | None = None,
        hp_name: Callable[[optuna.trial.BaseTrial], str] | None = None,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """Searches with Optuna; for another backend this is the parent's method.

        Every trial gets a fresh trainer, made from this one, with arguments and a model of its own.
        Callbacks are given those; this trainer has the model of the trial, and its own arguments.
        `hp_space` is called first, and what it returns are the values of the trial. `model_init`
        reads them in `trial.params`, or gets them from `trial.suggest_*`, beside what was sampled
        and not returned. Where they differ from the sampled ones, they are recorded as the user
        attribute `values`. The objective is reported once an epoch, at step = epoch, and the value
        of a trial is that of its best epoch.

        Afterwards the trainer has its own arguments, and the model and the state of the last trial;
        the weights of the best trial are in its folder. `eval_loss` is without label smoothing in
        trials whose values set `label_smoothing_factor`.

        Args:
            hp_space: From a trial to values by name: fields of `Seq2SeqTrainingArguments`, of
                `GenerationConfig`, and the names of `hpo_summarize.config.parameters`. Those of the
                model (`lora_r`, `hidden_dropout`, ...) are for `model_init`, which reads
                `trial.params`.
            compute_objective: From the metrics of an evaluation to the objective, or to a sequence
                of them. Default: the loss if there is no other metric, else the sum of all.
            n_trials: Finished trials wanted in the study, those of earlier runs included.
            direction: `"minimize"` or `"maximize"`, or a list of them for several objectives.
            backend: `"optuna"`, `"ray"` or `"wandb"`.
            hp_name: From a trial to the name of a folder of its own below `args.output_dir`.
            **kwargs: With Optuna: the arguments of `optuna.create_study`, or `study` itself;
                `timeout` (seconds) and `callbacks` as in `Study.optimize`; `catch`, the exceptions
                that end a trial and not the search (default all); `keep_trials`, how many of the
                best trials keep their checkpoints (default 1).

        Returns:
            The best trial, or the trials of the Pareto front.

        Raises:
            HpoError: A value has a name that cannot act, or `n_jobs` is not 1.
            SearchFailed: No trial is complete, or three in a row failed for one reason.
        """
        backend = HPSearchBackend(backend or default_hp_search_backend())
        if backend is not HPSearchBackend.OPTUNA:
            return super().hyperparameter_search(
                hp_space, compute_objective, n_trials, direction, backend, hp_name, **kwargs
            )
        self.set_up_search(hp_space, compute_objective, hp_name, kwargs.pop("catch", None))
        options = {k: kwargs.pop(k) for k in ("timeout", "callbacks", "keep_trials") if k in kwargs}
        study = open_study(direction, **kwargs)
        self._runner.search(study, n_trials, **options)
        self._end_search()
        require_complete(study, options.get("timeout"))
        several = len(study.directions) > 1
        runs = [
            BestRun(str(trial.number), trial.values if several else trial.value, values_of(trial))
            for trial in best_trials(study)
        ]
        return runs if several else runs[0]

    def set_up_search(self, *args: Any, **kwargs: Any) -> None:
        """Makes `run_trial` ready, as `hyperparameter_search` does; arguments of `TrialRunner`."""
        self._runner = TrialRunner(self, *args, **kwargs)

    def run_trial(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        """Trains one trial and returns the objective of its best epoch.

        An objective for `study.optimize`; `hyperparameter_search` does the same for every trial.

        Raises:
            optuna.TrialPruned: The pruner stopped the trial, or it failed: then the trial's user
                attribute `failure` holds the reason. As a pruned trial a failed one is known to
                the sampler, which would come back to the same values otherwise.
        """
        return self._runner.run(trial)

    def follow(self) -> None:
        """Trains the trials of the main process, while that one is in `hyperparameter_search`.

        Raises:
            HpoError: The search of the main process has ended in it.
        """
        self._runner.follow()
        self._end_search()

    def for_trial(self, run: TrialRun, args: Seq2SeqTrainingArguments) -> SummarizationTrainer:
        """A fresh trainer for one trial, with the data, functions and callbacks of this one.

        A copy keeps the attributes of a subclass, whose `__init__` may take other arguments, and
        our own makes anew everything that a training reads or changes. It sets the seed and builds
        the model; `train` would do both again, and does not without a `model_init`.
        """
        trainer = fixes.copy_of(self)
        decoding = {**self.trial_decoding, **run.plan.spec.generation}
        trainer._decoding = {**fixes.decoding_of(self.args), **decoding}
        drop_decoding(args, decoding)
        args.use_cache = True  # `Trainer.__init__` writes it into the config, which is saved.
        # `Trainer.__init__` calls it without a trial. It returns where every process has the model.
        build = partial(type(self).call_model_init, trainer, run.trial)
        trainer.__dict__["call_model_init"] = partial(on_all, build)
        SummarizationTrainer.__init__(
            trainer,
            args=args,
            data_collator=trainer.data_collator,
            train_dataset=trainer.train_dataset,
            eval_dataset=trainer.eval_dataset,
            processing_class=trainer.processing_class,
            model_init=trainer.model_init,
            compute_loss_func=None if self._uses_token_mean else trainer.compute_loss_func,
            compute_metrics=trainer.compute_metrics,
            preprocess_logits_for_metrics=trainer.preprocess_logits_for_metrics,
        )
        del trainer.__dict__["call_model_init"]
        trainer.__dict__.update({name: getattr(self, name) for name in fixes.SETTINGS})
        # It creates the accelerator before the model, of which DDP has to know some settings.
        trainer.create_accelerator_and_postprocess()
        trainer.callback_handler.callbacks = list(self.callback_handler.callbacks)
        trainer._run, trainer.summaries, trainer.model_init = run, None, None
        return trainer

    def _end_search(self) -> None:
        self.create_accelerator_and_postprocess()  # The trials' arguments have reset its state.
        if self.model is None:  # The last trial ended before it had one.
            self.model = self.model_wrapped = self.call_model_init()
