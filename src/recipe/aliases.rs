//! The names that other programs give to settings: what a newcomer types first, for "did you mean" hints.
//!
//! From the documentation of transformers' `TrainingArguments`, PEFT's `LoraConfig`, TRL, axolotl, LLaMA-Factory and mlx-lm.

/// A key elsewhere, in lower case, and the key here.
pub(super) const FOREIGN_KEYS: &[(&str, &str)] = &[
    ("base_model", "base.model"),
    ("batch_size", "train.micro_batch_seqs"),
    ("bf16", "base.compute"),
    ("cutoff_len", "data.max_seq_tokens"),
    ("dataset", "data.train"),
    ("dataset_text_field", "data.columns.text"),
    ("datasets", "data.train"),
    ("dtype", "base.compute"),
    ("early_stopping_patience", "train.early_stopping.patience_evals"),
    ("eval_dataset", "data.valid"),
    ("eval_file", "data.valid"),
    ("exclude_modules", "adapter.exclude"),
    ("field_instruction", "data.columns.instruction"),
    ("field_messages", "data.columns.messages"),
    ("field_output", "data.columns.output"),
    ("field_system", "data.columns.system"),
    ("fp32", "base.compute"),
    ("grad_accum_steps", "train.accumulate_steps"),
    ("gradient_accumulation", "train.accumulate_steps"),
    ("gradient_accumulation_steps", "train.accumulate_steps"),
    ("gradient_checkpointing", "train.recompute"),
    ("grad_checkpoint", "train.recompute"),
    ("init_lora_weights", "adapter.init"),
    ("iters", "train.max_steps"),
    ("label_smoothing_factor", "train.label_smoothing"),
    ("layers_to_transform", "adapter.layers"),
    ("load_in_4bit", "base.quant"),
    ("load_in_8bit", "base.quant"),
    ("lora", "adapter"),
    ("lora_alpha", "adapter.alpha"),
    ("lora_dropout", "adapter.dropout"),
    ("lora_r", "adapter.rank"),
    ("lora_rank", "adapter.rank"),
    ("lora_target", "adapter.targets"),
    ("lora_target_modules", "adapter.targets"),
    ("lr", "train.learning_rate"),
    ("lr_scheduler", "train.schedule"),
    ("lr_scheduler_type", "train.schedule"),
    ("loraplus_lr_ratio", "train.b_rate_ratio"),
    ("max_length", "data.max_seq_tokens"),
    ("max_new_tokens", "sample.max_tokens"),
    ("max_seq_length", "data.max_seq_tokens"),
    ("micro_batch_size", "train.micro_batch_seqs"),
    ("lora_modules_to_save", "adapter.modules_to_save"),
    ("model_name_or_path", "base.model"),
    ("neftune_noise_alpha", "train.neftune_alpha"),
    ("num_epochs", "train.epochs"),
    ("num_train_epochs", "train.epochs"),
    ("optim", "train.optimiser"),
    ("optimizer", "train.optimiser"),
    ("output_dir", "output.dir"),
    ("peft", "adapter"),
    ("peft_use_rslora", "adapter.rslora"),
    ("peft_init_lora_weights", "adapter.init"),
    ("peft_use_dora", "adapter.dora"),
    ("per_device_train_batch_size", "train.micro_batch_seqs"),
    ("quantization", "base.quant"),
    ("quantization_bit", "base.quant"),
    ("r", "adapter.rank"),
    ("sample_packing", "data.packing"),
    ("sequence_len", "data.max_seq_tokens"),
    ("steps_per_eval", "train.eval_steps"),
    ("target_modules", "adapter.targets"),
    ("test_file", "data.test"),
    ("torch_dtype", "base.compute"),
    ("train_file", "data.train"),
    ("use_dora", "adapter.dora"),
    ("use_rslora", "adapter.rslora"),
    ("val_set_size", "data.valid_fraction"),
    ("val_size", "data.valid_fraction"),
    ("validation_file", "data.valid"),
    ("warmup", "train.warmup_steps"),
    ("warmup_ratio", "train.warmup_share"),
];

/// The key here, a word elsewhere in lower case, and the word here.
pub(super) const FOREIGN_WORDS: &[(&str, &str, &str)] = &[
    ("adapter.targets", "all", "all-linear"),
    ("adapter.targets", "linear", "all-linear"),
    ("adapter.targets", "attn", "attention"),
    ("base.compute", "bfloat16", "bf16"),
    ("base.compute", "float", "f32"),
    ("base.compute", "float32", "f32"),
    ("base.compute", "fp32", "f32"),
    ("base.quant", "4bit", "nf4"),
    ("base.quant", "4-bit", "nf4"),
    ("base.quant", "bnb_4bit", "nf4"),
    ("base.quant", "qlora", "nf4"),
    ("base.quant", "8bit", "int8"),
    ("base.quant", "8-bit", "int8"),
    ("base.quant", "gguf", "keep"),
    ("data.format", "sharegpt", "chat"),
    ("data.format", "messages", "chat"),
    ("data.format", "chat_template", "chat"),
    ("data.format", "completion", "prompt-completion"),
    ("data.format", "instruction", "alpaca"),
    ("train.optimiser", "adamw_torch", "adamw"),
    ("train.optimiser", "adam", "adamw"),
    ("train.optimiser", "lion_32bit", "lion"),
    ("train.recompute", "full", "block"),
    ("train.schedule", "constant_with_warmup", "constant"),
    ("train.schedule", "warmup_stable_decay", "warmup-stable-decay"),
    ("train.schedule", "wsd", "warmup-stable-decay"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alias_leads_to_something() {
        let settings = crate::recipe::settings();
        let is_section = |key: &str| settings.iter().any(|setting| setting.key.starts_with(&format!("{key}.")));
        for (_, ours) in FOREIGN_KEYS {
            assert!(settings.iter().any(|setting| setting.key == *ours) || is_section(ours), "{ours}");
        }
        for (key, _, word) in FOREIGN_WORDS {
            let setting = settings.iter().find(|setting| setting.key == *key).expect("a setting");
            assert!(setting.expected.contains(word), "{key}: {word}");
        }
    }
}
