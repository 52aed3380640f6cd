//! TRL: the YAML files of `trl sft --config` and its siblings, and scripts in Python that use TRL with PEFT.

use super::draft::Draft;
use super::rules::Rule::{By, No, To};
use super::rules::{self, COMPILED, LOADING, MASK, OBJECT, PADDING, Table};
use super::unsloth;
use super::value::{Entry, Value};

/// The keys that differ from those of transformers and PEFT.
pub(super) const KEYS: &Table = &[
    ("from_pretrained.0", By(rules::base)),
    ("get_peft_model.0", No(OBJECT)),
    ("get_peft_model.1", No(OBJECT)),
    ("load_in_4bit", By(four_bits)),
    ("use_bnb_nested_quant", No("`base.quant` is nf4 or nf4-double, by this key and load_in_4bit")),
    ("bnb_4bit_use_double_quant", No("`base.quant` is nf4 or nf4-double, by this key and load_in_4bit")),
    ("dataset_name", By(rules::train_data)),
    ("dataset_config", No("a file is one configuration of a dataset")),
    ("dataset_train_split", No("a file is one split")),
    ("dataset_test_split", No("`data.valid` or `data.valid_fraction` names examples to validate with")),
    ("dataset_streaming", No("the files are read whole")),
    ("datasets", By(mixture)),
    ("streaming", No("the files are read whole")),
    ("test_split_size", By(rules::held_out)),
    ("load_dataset.0", By(unsloth::dataset)),
    ("load_dataset.1", No("a file is one configuration of a dataset")),
    ("data_files", By(unsloth::data_files)),
    ("split", No("a file is one split")),
    ("dataset_text_field", By(text_column)),
    ("dataset_kwargs", No(LOADING)),
    ("dataset_num_proc", No(LOADING)),
    ("dataset_batch_size", No(LOADING)),
    ("shuffle_dataset", No(LOADING)),
    ("chat_template_path", To("data.template")),
    ("eos_token", No("the end token is that of the base")),
    ("pad_token", No(PADDING)),
    ("max_length", To("data.max_seq_tokens")),
    ("max_seq_length", To("data.max_seq_tokens")),
    ("max_prompt_length", No("`data.max_seq_tokens` holds for prompt and answer together")),
    ("max_completion_length", No("`data.max_seq_tokens` holds for prompt and answer together")),
    ("truncation_mode", No("`data.overlong` says what happens to an example that is too long")),
    ("packing", To("data.packing")),
    ("packing_strategy", No("by best fit; attention never crosses from one example to the next")),
    ("eval_packing", No(PADDING)),
    ("padding_free", No(PADDING)),
    ("pad_to_multiple_of", No(PADDING)),
    ("completion_only_loss", No(MASK)),
    ("assistant_only_loss", No(MASK)),
    ("activation_offloading", No("`burnish train --max-memory SIZE` makes a run fit")),
    ("router_aux_loss_coef", No("dense models are trained")),
    ("beta", By(beta)),
    ("loss_type", By(loss)),
    ("loss_weights", No("one objective at a time")),
    ("label_smoothing", To("train.preference_smoothing")),
    ("rpo_alpha", To("train.rpo_alpha")),
    ("simpo_gamma", To("train.target_margin")),
    ("cpo_alpha", No("SimPO without a term for the chosen answers")),
    ("desirable_weight", To("train.desirable_weight")),
    ("undesirable_weight", To("train.undesirable_weight")),
    ("disable_dropout", By(dropout)),
    ("precompute_ref_*", No("the reference is the adapter before the first step, computed once")),
    ("reference_free", No("`train.objective` simpo and orpo have no reference")),
    ("sync_ref_model", No("the reference is the adapter before the first step")),
    ("ref_model*", No("the reference is the adapter before the first step")),
    ("ld_alpha", No("an objective that is not here")),
    ("f_divergence_type", No("an objective that is not here")),
    ("f_alpha_divergence_coef", No("an objective that is not here")),
    ("use_weighting", No("an objective that is not here")),
    ("discopop_tau", No("an objective that is not here")),
    ("ignore_bias_buffers", No("several machines share a run by MPI (docs/distributed.md)")),
    ("gradient_checkpointing_kwargs", No("there is one way: layer by layer")),
    ("use_liger_loss", No(COMPILED)),
    (
        "model",
        By(|draft, entry| match entry.value {
            Value::Text(_) => rules::base(draft, entry),
            _ => draft.leave_out(entry, OBJECT),
        }),
    ),
    ("train_dataset", No(OBJECT)),
    ("eval_dataset", By(unsloth::object_or_data)),
    ("processing_class", No(OBJECT)),
    ("tokenizer", No(OBJECT)),
    ("args", No(OBJECT)),
    ("peft_config", No(OBJECT)),
    ("quantization_config", No(OBJECT)),
    ("callbacks", No(OBJECT)),
    ("compute_metrics", No("`burnish eval` has the measures")),
    ("data_collator", No(PADDING)),
    ("formatting_func", No("the chat template renders the data (docs/data.md lists the shapes)")),
    // Arguments of calls without a name.
    ("0", No(OBJECT)),
    ("1", No(OBJECT)),
    ("2", No(OBJECT)),
];

/// The values that TRL takes where nothing is said; in a script, the pair's are those of PEFT.
pub(super) fn defaults(draft: &mut Draft, is_script: bool) {
    let (rank, alpha, dropout, whose) =
        if is_script { (8, 8, 0.0, "PEFT's default") } else { (16, 32, 0.05, "TRL's default") };
    draft.default("data.max_seq_tokens", 1024, "TRL's default");
    draft.default("adapter.rank", rank, whose);
    draft.default("adapter.alpha", alpha, whose);
    draft.default("adapter.dropout", dropout, whose);
    training_defaults(draft);
}

/// The values of TRL's configurations of a training.
pub(super) fn training_defaults(draft: &mut Draft) {
    let is_of_preferences = draft.has("train.objective") && !draft.is("train.objective", "sft");
    let rate = if is_of_preferences { 1e-6 } else { 2e-5 };
    draft.default("train.learning_rate", rate, "TRL's default");
    draft.default("train.epochs", 3, "the default of transformers");
    draft.default("train.micro_batch_seqs", 8, "the default of transformers");
    draft.default("train.schedule", "linear", "the default of transformers");
}

fn four_bits(draft: &mut Draft, entry: &Entry) {
    let nested = ["use_bnb_nested_quant", "bnb_4bit_use_double_quant"];
    let is_double = nested.iter().any(|key| draft.value_of(key).and_then(Value::truth) == Some(true));
    rules::four_bits(draft, entry, is_double);
}

fn text_column(draft: &mut Draft, entry: &Entry) {
    match entry.value.text() {
        Some("text") => draft.leave_out(entry, "the name of the column here too"),
        Some(column) => draft.set("data.columns.text", column, entry),
        None => draft.leave_out(entry, "nothing is set"),
    }
}

/// Datasets that are mixed: each with a path.
fn mixture(draft: &mut Draft, entry: &Entry) {
    let Value::List(items) = &entry.value else { return draft.leave_out(entry, "names no data") };
    for (index, item) in items.iter().enumerate() {
        let place = format!("{}[{index}]", entry.key);
        let keys: Vec<Entry> = item.entries().iter().map(|one| one.within(&place)).collect();
        for key in &keys {
            match (key.name(), key.value.text()) {
                ("path", Some(_)) => rules::train_data(draft, key),
                _ => draft.leave_out(key, "a file is one split, read whole"),
            }
        }
    }
}

/// `beta` is one of the trainers for preferences.
fn beta(draft: &mut Draft, entry: &Entry) {
    match entry.value.number() {
        Some(beta) => draft.set("train.beta", beta, entry),
        None => return draft.leave_out(entry, "no number"),
    }
    if draft.value_of("loss_type").is_none() {
        let objective = objective_of(std::slice::from_ref(entry)).unwrap_or("dpo");
        draft.default("train.objective", objective, "the trainer that has a beta; without a name, dpo");
    }
}

fn loss(draft: &mut Draft, entry: &Entry) {
    const LOSSES: &[(&str, &str)] = &[
        ("sigmoid", "dpo"),
        ("sigmoid_norm", "dpo"),
        ("ipo", "ipo"),
        ("simpo", "simpo"),
        ("kto", "kto"),
        ("nll", "sft"),
    ];
    let word = match &entry.value {
        Value::List(items) if items.len() == 1 => items[0].text(),
        value => value.text(),
    };
    match LOSSES.iter().find(|(theirs, _)| Some(*theirs) == word) {
        Some((theirs, ours)) => {
            draft.set("train.objective", *ours, entry);
            if *theirs == "sigmoid_norm" {
                draft.default("train.length_normalised", true, "sigmoid_norm");
            }
        }
        None => draft.leave_out(entry, "`train.objective` is sft, dpo, ipo, orpo, kto or simpo"),
    }
}

fn dropout(draft: &mut Draft, entry: &Entry) {
    match entry.value.truth() {
        Some(true) => draft.set("adapter.dropout", 0.0, entry),
        _ => draft.leave_out(entry, "`adapter.dropout` says how much"),
    }
}

/// The objective of a script, by the trainer or the configuration that it calls.
pub(super) fn objective_of(entries: &[Entry]) -> Option<&'static str> {
    entries.iter().find_map(|entry| match entry.key.split('.').next().unwrap_or_default() {
        "DPOTrainer" | "DPOConfig" => Some("dpo"),
        "KTOTrainer" | "KTOConfig" => Some("kto"),
        "ORPOTrainer" | "ORPOConfig" => Some("orpo"),
        "CPOTrainer" | "CPOConfig" => Some("simpo"),
        _ => None,
    })
}
