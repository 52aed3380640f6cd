//! Unsloth: scripts in Python, and the YAML files of `unsloth train --config`.

use super::draft::Draft;
use super::rules::Rule::{By, No, To};
use super::rules::{self, CODE, COMPILED, LOADING, LOGGING, MASK, OBJECT, PADDING, TRACKER, Table, UPLOAD};
use super::value::{Entry, Value};

/// Keys of both, by their last part; those of transformers, TRL and PEFT aside.
pub(super) const KEYS: &Table = &[
    ("model", By(model)),
    ("from_pretrained.0", By(rules::base)),
    ("model_name", By(rules::base)),
    ("load_in_4bit", By(|draft, entry| rules::four_bits(draft, entry, true))),
    ("load_in_16bit", No("the base is not packed, as by default here")),
    ("load_in_fp8", No("`base.quant` is nf4, nf4-double, int8 or keep")),
    ("full_finetuning", No("this recipe trains an adapter, whatever the script trains")),
    ("training_type", By(kind)),
    ("token", No("`HF_TOKEN` gives access to the hub")),
    ("hf_token", No("`HF_TOKEN` gives access to the hub")),
    ("rope_scaling", No("the positions are those of the base")),
    ("fix_tokenizer", No("the tokenizer is that of the base")),
    ("fast_inference", No("no answers are drawn while training")),
    ("gpu_memory_utilization", No("`burnish train --max-memory SIZE` makes a run fit")),
    ("float8_kv_cache", No("training keeps no cache of keys and values")),
    ("max_lora_rank", No("`adapter.rank` is the rank")),
    ("disable_log_stats", No(LOGGING)),
    ("resize_model_vocab", No("`adapter.new_tokens` adds and trains tokens")),
    ("use_exact_model_name", No("the name is taken as it stands")),
    ("get_peft_model.0", No(OBJECT)),
    ("use_gradient_checkpointing", By(rules::recompute)),
    ("random_state", No("`train.seed` decides the first values; it follows from the seed of the training")),
    ("random_seed", To("train.seed")),
    ("max_seq_length", To("data.max_seq_tokens")),
    ("max_length", To("data.max_seq_tokens")),
    ("temporary_location", No("memory is planned before the run")),
    ("finetune_language_layers", No("`adapter.targets` names the modules")),
    ("finetune_attention_modules", No("`adapter.targets` names the modules")),
    ("finetune_mlp_modules", No("`adapter.targets` names the modules")),
    ("finetune_vision_layers", By(rules::tower)),
    ("vision_all_linear", By(rules::tower)),
    ("get_chat_template.0", No(OBJECT)),
    ("get_chat_template.1", By(rules::template)),
    ("chat_template", By(rules::template)),
    ("mapping", No("ShareGPT's names of roles and turns are known (docs/data.md)")),
    ("map_eos_token", No("the end token is trained by its position")),
    ("instruction_part", No(MASK)),
    ("response_part", No(MASK)),
    ("train_on_responses_only.0", No(OBJECT)),
    ("train_on_completions", No(MASK)),
    ("load_dataset.0", By(dataset)),
    ("load_dataset.1", No("a file is one configuration of a dataset")),
    ("data_files", By(data_files)),
    ("split", No("a file is one split")),
    ("dataset", By(rules::train_data)),
    ("local_dataset", By(rules::train_data)),
    ("eval_dataset", By(object_or_data)),
    ("format_type", By(format)),
    ("dataset_slice_*", No("a file is read whole")),
    ("SFTTrainer.train_dataset", No(OBJECT)),
    ("train_dataset", No(OBJECT)),
    ("num_epochs", By(rules::epochs)),
    ("batch_size", To("train.micro_batch_seqs")),
    ("embedding_learning_rate", No("one rate, and `train.b_rate_ratio` for B")),
    ("log_frequency", No(LOGGING)),
    ("enable_wandb", No(TRACKER)),
    ("wandb_*", No(TRACKER)),
    ("enable_tensorboard", No(TRACKER)),
    ("tensorboard_dir", No(TRACKER)),
    ("tokenizer", No(OBJECT)),
    ("processing_class", No(OBJECT)),
    ("args", No(OBJECT)),
    ("peft_config", No(OBJECT)),
    ("callbacks", No(OBJECT)),
    ("compute_metrics", No("`burnish eval` has the measures")),
    ("data_collator", No(PADDING)),
    ("formatting_func", No("the chat template renders the data (docs/data.md lists the shapes)")),
    ("dataset_num_proc", No(LOADING)),
    ("padding_side", No(PADDING)),
    ("use_fast_inference", No(COMPILED)),
    ("custom_tokens", No("`adapter.new_tokens` adds and trains tokens")),
    ("trust_remote_code", No(CODE)),
    ("push_to_hub_*", No(UPLOAD)),
    ("SFTTrainer.0", No(OBJECT)),
    ("quantization_config", No(OBJECT)),
    ("bnb_4bit_use_double_quant", No("`base.quant` is nf4 or nf4-double, by this key and load_in_4bit")),
];

/// The values that Unsloth takes where nothing is said.
pub(super) fn defaults(draft: &mut Draft) {
    let remark = "Unsloth's default";
    let packs = draft.value_of("load_in_4bit").is_none() && draft.value_of("load_in_8bit").is_none();
    if packs && draft.value_of("full_finetuning").and_then(Value::truth) != Some(true) {
        draft.default("base.quant", "nf4-double", "Unsloth's default");
    }
    draft.default("data.max_seq_tokens", 2048, remark);
    draft.default("adapter.rank", 16, remark);
    draft.default("adapter.alpha", 16, remark);
    draft.default("adapter.targets", "all-linear", remark);
    super::trl::training_defaults(draft);
}

/// A base by its name in YAML; in a script, an object.
fn model(draft: &mut Draft, entry: &Entry) {
    match entry.value {
        Value::Text(_) => rules::base(draft, entry),
        _ => draft.leave_out(entry, OBJECT),
    }
}

fn kind(draft: &mut Draft, entry: &Entry) {
    match entry.value.text() {
        Some("lora") => draft.leave_out(entry, "an adapter is always trained, and LoRA is its kind"),
        _ => draft.leave_out(entry, "this recipe trains a LoRA adapter, whatever the configuration trains"),
    }
}

/// The dataset of `load_dataset`: of the hub, or the kind of the files that are named beside it.
pub(super) fn dataset(draft: &mut Draft, entry: &Entry) {
    match entry.value.text() {
        Some("json" | "csv" | "parquet" | "text") => draft.leave_out(entry, "the ending of the file says its kind"),
        Some(_) if draft.has_sources() => {
            draft.leave_out(
                entry,
                "a second dataset: `data.train` takes a list, `data.valid` the examples to validate with",
            );
        }
        Some(_) => rules::train_data(draft, entry),
        None => draft.leave_out(entry, OBJECT),
    }
}

pub(super) fn data_files(draft: &mut Draft, entry: &Entry) {
    let splits = entry.value.entries();
    if splits.is_empty() {
        return rules::train_data(draft, entry);
    }
    for split in splits.iter().map(|split| split.within(&entry.key)) {
        match split.name() {
            "train" => rules::train_data(draft, &split),
            "validation" | "valid" | "test" | "eval" => rules::valid_data(draft, &split),
            _ => draft.leave_out(&split, "`data.train` and `data.valid` are the splits of a run"),
        }
    }
}

pub(super) fn object_or_data(draft: &mut Draft, entry: &Entry) {
    match entry.value {
        Value::Text(_) => rules::valid_data(draft, entry),
        _ => draft.leave_out(
            entry,
            "an object of the script: `data.valid` or `data.valid_fraction` names examples to validate with",
        ),
    }
}

fn format(draft: &mut Draft, entry: &Entry) {
    match entry.value.text() {
        Some("auto") => draft.set("data.format", "auto", entry),
        Some("alpaca") => draft.set("data.format", "alpaca", entry),
        Some("chatml" | "sharegpt") => draft.set("data.format", "chat", entry),
        _ => draft.leave_out(entry, "`data.format` is auto, alpaca, chat, prompt-completion, text or preference"),
    }
}
