"""Settings that cannot work, from a shell: each a short message and status 2, before any trial."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import test_search_command

recipe, run_search = test_search_command.recipe, test_search_command.run_search

WRONG = [
    # What this machine, or this installation, has not.
    (["training.bf16=true"], "training: .*bf16"),
    (["training.fp16=true"], "training.fp16: .*uses the CPU .value True.; drop it"),
    (["training.tf32=true"], "training: .*tf32"),
    (["training.report_to=wandb"], "training: .*wandb"),
    (["training.report_to=foo"], "training: .*foo"),
    (["training.use_liger_kernel=true"], "training.use_liger_kernel: .*no kernels"),
    (["training.optim=adamw_bnb_8bit"], "training: .*bitsandbytes"),
    (["training.optim=galore_adamw"], "training: .*galore"),
    (["training.log_level=loud"], "training: .*loud"),
    (["training.debug=foo"], "training: .*foo"),
    (["training.dataloader_prefetch_factor=2"], "training: .*prefetch_factor"),
    (
        ["training.dataloader_num_workers=1", "training.dataloader_multiprocessing_context=foo"],
        "training: .*multiprocessing_context",
    ),
    # Optimizers and schedules.
    (["training.optim_args=beta1=0.3"], "training.optim_args: 'beta1=0.3' changes nothing"),
    (["training.optim=sgd", "training.optim_args=momentum=much"], "training: .*much"),
    (["training.optim=sgd", "training.optim_args=momentum"], "training: .*unpack"),
    (["training.optim=sgd", "training.adam_beta1=0.5"], "training.adam_beta1: .*sgd"),
    (["training.optim_target_modules=all-linear"], "training.optim_target_modules: "),
    (["training.lr_scheduler_kwargs={foo: 1}"], "training: .*foo"),
    (["training.scheduler_type=warmup_stable_decay"], "training: .*num_decay_steps"),
    (
        ["space.scheduler_type={type: categorical, choices: [linear, warmup_stable_decay]}"],
        "space.scheduler_type: 'warmup_stable_decay' .*num_decay_steps",
    ),
    (
        ["space.optim={type: categorical, choices: [adamw_torch_fused, lion_32bit]}"],
        "space.optim: 'lion_32bit' .*bitsandbytes",
    ),
    # Decoding.
    (["generation.cache_implementation=foo"], "generation: .*cache_implementation"),
    (["generation.stop_strings=abc"], "generation: .*stop"),
    (["generation.forced_bos_token_id=x"], "generation: "),
    (["generation.decoder_start_token_id=99999"], "generation: .*out of range"),
    (
        ["space.cache_implementation={type: categorical, choices: [dynamic, foo]}"],
        "space.cache_implementation: .*fix it under generation",
    ),
    (["generation.temperature=0.5"], "generation.temperature: .*only while do_sample is True"),
    # LoRA.
    (["lora.init_lora_weights=pissa_niter_x"], "lora: .*invalid literal"),
    (["lora.target_modules=[no_such_layer]"], "lora.target_modules: .*no_such_layer"),
    (
        ["space.target_modules={type: categorical, choices: [all-linear, no_such_layer]}"],
        "space.target_modules: 'no_such_layer' .*no_such_layer",
    ),
    (["lora.modules_to_save=[nothing]"], "lora.modules_to_save: .*'nothing'"),
    (["lora.exclude_modules=nothing"], "lora.exclude_modules: .*'nothing'"),
    (["lora.exclude_modules=("], "lora: .*unterminated subpattern"),
    (["lora.ensure_weight_tying=true"], "lora.ensure_weight_tying: .*tied layers"),
    (["lora.rank_pattern={nothing: 3}"], "lora.rank_pattern: .*'nothing'"),
    # The command line and the places that are written to.
    (["--n_trials", "0"], "search.n_trials: .*got 0"),
    (["--timeout", "-1"], "search.timeout: .*got -1"),
    (["--study_name", "../x"], "search.study_name: .*'../x'"),
    (["--storage", "sqlite://"], "search.storage: .*in memory"),
    (["--storage", "sqlite:///:memory:"], "search.storage: .*in memory"),
    (["--storage", "nonsense"], "search.storage: .*postgresql"),
    (["--storage", "oracel://me:canary@host/x"], "search.storage: .*oracel"),
    (["--storage", "sqlite:////no/such/dir/x.db"], "/no/such/dir"),
    (["--storage", "journal:///no/such/dir/x.log"], "/no/such/dir"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG, ids=lambda part: str(part)[:60])
def test_a_setting_that_cannot_work_is_refused_before_anything_is_kept(
    settings: list[str], message: str, recipe: Path, tmp_path: Path, run_search: Any
) -> None:
    done = run_search(recipe, *settings)
    assert done.status == 2, done.stderr + done.stdout
    assert not (tmp_path / "out" / "study.db").exists()
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.splitlines()) <= 6
    assert "canary" not in done.stderr + done.stdout
