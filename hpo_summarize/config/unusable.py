"""Fields of Hugging Face's classes that a recipe cannot set, and why."""

from __future__ import annotations

# What a recipe sets by another key, or nowhere.
OTHER_NAMES = {
    "hub_token": "the environment variable HF_TOKEN, so that it is written nowhere",
    "output_dir": "output_dir, at the top of the recipe",
    "generation_config": "the section generation",
    "predict_with_generate": "nowhere; summaries are always generated",
    "num_return_sequences": "nowhere; each dialogue gets one summary",
    "return_dict_in_generate": "nowhere; only the summaries are used",
    "use_cache": "nowhere; generation always uses the key-value cache, and training never",
    "max_length": "generation.max_new_tokens",
    "generation_max_length": "generation.max_new_tokens",
    "generation_num_beams": "generation.num_beams",
    # Names of transformers 4, and those that it will remove in 6.
    "group_by_length": "training.train_sampling_strategy=group_by_length",
    "no_cuda": "training.use_cpu",
}
# Fields that are silently without effect here, or that break a search, by the reason. A value that
# is the field's default is accepted.
_UNUSABLE = (
    (
        """eval_steps save_steps eval_on_start load_best_model_at_end save_only_model do_train
        do_eval do_predict resume_from_checkpoint ignore_data_skip enable_jit_checkpoint local_rank
        restore_callback_states_from_checkpoint prediction_loss_only batch_eval_metrics
        eval_do_concat_batches eval_use_gather_object include_for_metrics""",
        "when to evaluate, save, stop and resume is decided by the search; drop it",
    ),
    ("max_steps", "a trial is as long as its epochs; set num_epochs, which may be a fraction"),
    (
        "metric_for_best_model greater_is_better",
        "it follows search.objective and search.direction; set those",
    ),
    (
        "accelerator_config auto_find_batch_size average_tokens_across_devices",
        "batch_size alone is the examples of a step, on any number of devices; drop it",
    ),
    (
        "parallelism_config fsdp fsdp_config deepspeed",
        "a model is trained whole on each device; drop it, or use search.parallel: ddp",
    ),
    (
        "label_names remove_unused_columns length_column_name dataloader_drop_last",
        "all rows of the tokenised dialogues are used, and no other columns; drop it",
    ),
    ("sortish_sampler", "transformers ignores it; set train_sampling_strategy: group_by_length"),
    (
        "push_to_hub hub_model_id hub_strategy hub_private_repo hub_always_push hub_revision",
        "a search pushes nothing to the Hub; set train.push_to_hub",
    ),
    ("bf16_full_eval fp16_full_eval", "evaluations during a training ignore it; set bf16 or fp16"),
    (
        "use_liger_kernel liger_kernel_config",
        "Liger has no kernels for BART, T5 and their like; drop it",
    ),
    (
        """use_mtp is_assistant assistant_confidence_threshold assistant_early_exit
        assistant_ensemble_weight assistant_lookbehind num_assistant_tokens
        num_assistant_tokens_schedule target_lookbehind prompt_lookup_num_tokens
        max_matching_ngram_size speculation_type token_healing""",
        "summaries are decoded in batches, without an assistant model; drop it",
    ),
    (
        """output_attentions output_hidden_states output_logits output_scores low_memory
        prefill_chunk_size max_cache_len cache_config continuous_batching_config""",
        "it changes nothing in the summaries of an encoder-decoder; drop it",
    ),
    (
        "constraints diversity_penalty dola_layers force_words_ids num_beam_groups penalty_alpha",
        "transformers runs this form of decoding only with code from the Hub; drop it",
    ),
    ("ensure_weight_tying", "tied layers are untied before they get an adapter; drop it"),
    ("max_time", "summaries would depend on the speed of the machine; set max_new_tokens"),
    (
        """auto_mapping base_model_name_or_path inference_mode peft_type peft_version revision
        runtime_config task_type fan_in_fan_out megatron_config megatron_core use_qalora
        qalora_group_size""",
        "it follows from the model of the recipe, whose adapters are made for training; drop it",
    ),
)
UNUSABLE = {name: reason for names, reason in _UNUSABLE for name in names.split()}
