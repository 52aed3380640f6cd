//! Configurations of mlx-lm (`mlx_lm.lora --config`).

use super::draft::{Draft, Source};
use super::rules::Rule::{By, No, To};
use super::rules::{self, LOGGING, MASK, TRACKER, Table};
use super::value::{Entry, Value};

/// All keys.
pub(super) const KEYS: &Table = &[
    ("model", By(rules::base)),
    ("train", No("`burnish train` trains")),
    ("test", By(test)),
    ("test_batches", No("all test examples are measured")),
    ("fine_tune_type", By(kind)),
    ("optimizer", By(rules::optimiser)),
    ("optimizer_config.adam.weight_decay", To("train.weight_decay")),
    ("optimizer_config.adamw.weight_decay", To("train.weight_decay")),
    ("optimizer_config.adam.betas", By(betas)),
    ("optimizer_config.adamw.betas", By(betas)),
    ("optimizer_config.adam.eps", No("1e-8 in any case")),
    ("optimizer_config.adamw.eps", No("1e-8 in any case")),
    ("optimizer_config", By(optimiser_settings)),
    ("data", By(data)),
    ("hf_dataset", By(hub_data)),
    ("seed", To("train.seed")),
    ("num_layers", By(last_layers)),
    ("lora_layers", By(last_layers)),
    ("batch_size", To("train.micro_batch_seqs")),
    ("grad_accumulation_steps", To("train.accumulate_steps")),
    ("iters", To("train.max_steps")),
    ("val_batches", By(val_batches)),
    ("learning_rate", By(rate)),
    ("lr_schedule.name", By(schedule)),
    ("lr_schedule.warmup", To("train.warmup_steps")),
    ("lr_schedule.warmup_init", No("a warm-up begins at 0")),
    ("lr_schedule.arguments", By(schedule_arguments)),
    ("lr_schedule", By(no_schedule)),
    ("lora_parameters.rank", To("adapter.rank")),
    ("lora_parameters.alpha", By(old_alpha)),
    ("lora_parameters.scale", By(scale)),
    ("lora_parameters.dropout", To("adapter.dropout")),
    ("lora_parameters.keys", By(rules::targets)),
    ("steps_per_report", No(LOGGING)),
    ("steps_per_eval", By(rules::eval_steps)),
    ("save_every", By(rules::checkpoint_steps)),
    ("resume_adapter_file", By(resumed)),
    ("adapter_path", To("output.dir")),
    ("adapter_file", To("output.dir")),
    ("max_seq_length", To("data.max_seq_tokens")),
    ("grad_checkpoint", By(rules::recompute)),
    ("mask_prompt", By(mask)),
    ("prompt_feature", No("columns are those of the data: `[data.columns]`")),
    ("completion_feature", No("columns are those of the data: `[data.columns]`")),
    ("wandb", No(TRACKER)),
    ("report_to", No(TRACKER)),
    ("project_name", No(TRACKER)),
    ("clear_cache_threshold", No("memory is planned before the run")),
    ("trust_remote_code", No(rules::CODE)),
    ("config", No("the configuration is this file")),
];

/// The values that mlx-lm takes where its configuration says nothing.
pub(super) fn defaults(draft: &mut Draft) {
    let remark = "mlx-lm's default";
    let rank = draft.value_of("lora_parameters.rank").and_then(Value::whole).unwrap_or(8);
    draft.default("data.max_seq_tokens", 2048, remark);
    draft.default("adapter.rank", rank, remark);
    draft.default("adapter.alpha", 20 * rank, "mlx-lm's default: a scale of 20");
    draft.default("adapter.targets", "all-linear", "mlx-lm's default");
    draft.default("train.learning_rate", 1e-5, remark);
    draft.default("train.micro_batch_seqs", 4, remark);
    draft.default("train.max_steps", 1000, remark);
    draft.default("train.eval_steps", 200, remark);
    draft.default("train.schedule", "constant", remark);
}

fn kind(draft: &mut Draft, entry: &Entry) {
    match entry.value.text() {
        Some("dora") => draft.set("adapter.dora", true, entry),
        Some("lora") => draft.leave_out(entry, "an adapter is always trained, and LoRA is its kind"),
        _ => draft.leave_out(entry, "this recipe trains a LoRA adapter, whatever the configuration trains"),
    }
}

fn betas(draft: &mut Draft, entry: &Entry) {
    match &entry.value {
        Value::List(items) if items.len() == 2 && items.iter().all(|item| item.number().is_some()) => {
            let [first, second] = [0, 1].map(|index| items[index].number().unwrap_or_default());
            draft.set("train.beta1", first, entry);
            draft.default("train.beta2", second, "the second of the betas");
        }
        _ => draft.leave_out(entry, "two numbers are expected"),
    }
}

/// The section of the optimisers: that of the one that is used counts.
fn optimiser_settings(draft: &mut Draft, entry: &Entry) {
    let used = draft.value_of("optimizer").and_then(Value::text).unwrap_or("adam").to_owned();
    for of_one in entry.value.entries().iter().map(|one| one.within(&entry.key)) {
        let settings = of_one.value.entries();
        if of_one.name() != used {
            draft.leave_out(&of_one, format!("the settings of another optimiser than {used}"));
        } else if settings.is_empty() {
            draft.leave_out(&of_one, "nothing is set");
        } else {
            let settings: Vec<Entry> = settings.iter().map(|one| one.within(&of_one.key)).collect();
            rules::apply(&settings, &[KEYS], false, draft);
        }
    }
    if entry.value.entries().is_empty() {
        draft.leave_out(entry, "nothing is set");
    }
}

/// A folder with train.jsonl, valid.jsonl and test.jsonl, or a dataset of the hub.
fn data(draft: &mut Draft, entry: &Entry) {
    let Some(name) = entry.value.text() else { return draft.leave_out(entry, "names no data") };
    let name = name.trim_end_matches('/');
    let is_of_hub =
        name.matches('/').count() == 1 && !name.starts_with(['.', '/', '~']) && !std::path::Path::new(name).exists();
    if is_of_hub {
        return draft.add_source(rules::source(name, entry));
    }
    let source = rules::source(&format!("{name}/train.jsonl"), entry);
    draft.add_source(source);
    draft.default("data.valid", format!("{name}/valid.jsonl"), "of the same folder");
    if draft.value_of("test").and_then(Value::truth) == Some(true) {
        draft.default("data.test", format!("{name}/test.jsonl"), "of the same folder");
    }
}

fn test(draft: &mut Draft, entry: &Entry) {
    match entry.value.truth() {
        Some(true) => draft.leave_out(entry, "`data.test` names the examples, if `data` is a folder"),
        _ => draft.leave_out(entry, "no test examples, as without the key"),
    }
}

/// The columns of a dataset of the hub, with the keys of the shapes.
const FEATURES: &[(&str, &str)] = &[
    ("prompt_feature", "prompt"),
    ("completion_feature", "completion"),
    ("text_feature", "text"),
    ("chat_feature", "messages"),
];

fn hub_data(draft: &mut Draft, entry: &Entry) {
    let datasets: Vec<Value> = match &entry.value {
        Value::List(items) => items.clone(),
        value => vec![value.clone()],
    };
    for (index, dataset) in datasets.iter().enumerate() {
        let place = format!("{}[{index}]", entry.key);
        let keys: Vec<Entry> = dataset.entries().iter().map(|one| one.within(&place)).collect();
        let named = keys.iter().find(|one| matches!(one.name(), "path" | "name") && one.value.text().is_some());
        let Some(named) = named else {
            draft.leave_out(&Entry { key: place, line: entry.line, value: dataset.clone() }, "names no data");
            continue;
        };
        let mut source: Source = rules::source(named.value.text().unwrap_or_default(), named);
        for key in keys.iter().filter(|key| *key != named) {
            let feature = FEATURES.iter().find(|(theirs, _)| *theirs == key.name());
            match (feature, key.value.text()) {
                (Some((_, ours)), Some(_)) => source.columns.push((*ours, (*key).clone())),
                _ => draft.leave_out(key, "a file is one split, read whole"),
            }
        }
        draft.add_source(source);
    }
}

fn last_layers(draft: &mut Draft, entry: &Entry) {
    match entry.value.whole() {
        Some(-1) => draft.leave_out(entry, "all layers, as by default here"),
        _ => {
            draft.leave_out(entry, "the last layers; `adapter.layers` lists layers by number, and all are the default")
        }
    }
}

fn val_batches(draft: &mut Draft, entry: &Entry) {
    let batch = draft.value_of("batch_size").and_then(Value::whole).unwrap_or(4);
    match entry.value.whole() {
        Some(batches) if batches > 0 => {
            draft.set_with("eval.max_examples", batches.saturating_mul(batch), entry, "times the batch size");
        }
        _ => draft.leave_out(entry, "all validation examples, as by default here"),
    }
}

/// The rate, unless the schedule has one of its own.
fn rate(draft: &mut Draft, entry: &Entry) {
    match draft.value_of("lr_schedule.arguments") {
        Some(_) => draft.leave_out(entry, "the arguments of lr_schedule have the rate"),
        None => match entry.value.toml() {
            Some(rate) => draft.set("train.learning_rate", rate, entry),
            None => draft.leave_out(entry, "no number"),
        },
    }
}

fn no_schedule(draft: &mut Draft, entry: &Entry) {
    match entry.value.entries() {
        [] => draft.leave_out(entry, "the rate is constant"),
        inner => {
            let inner: Vec<Entry> = inner.iter().map(|one| one.within(&entry.key)).collect();
            rules::apply(&inner, &[KEYS], false, draft);
        }
    }
}

fn schedule(draft: &mut Draft, entry: &Entry) {
    match entry.value.text() {
        Some("cosine_decay") => draft.set("train.schedule", "cosine", entry),
        Some("linear_schedule") => draft.set("train.schedule", "linear", entry),
        _ => draft.leave_out(entry, "`train.schedule` is constant, linear, cosine or warmup-stable-decay"),
    }
}

/// The first argument of every schedule is the rate that it begins with.
fn schedule_arguments(draft: &mut Draft, entry: &Entry) {
    let first = match &entry.value {
        Value::List(items) => items.first().and_then(Value::number),
        _ => None,
    };
    match first {
        Some(rate) => {
            draft.set_with("train.learning_rate", rate, entry, "the first; a schedule falls to 0 at the last step")
        }
        None => draft.leave_out(entry, "a list of numbers is expected"),
    }
}

/// The scale of the update, which is alpha over rank here.
fn scale(draft: &mut Draft, entry: &Entry) {
    let rank = draft.value_of("lora_parameters.rank").and_then(Value::whole).unwrap_or(8);
    match entry.value.number() {
        Some(scale) => draft.set_with("adapter.alpha", scale * rank as f64, entry, "times the rank"),
        None => draft.leave_out(entry, "no number"),
    }
}

fn old_alpha(draft: &mut Draft, entry: &Entry) {
    draft.leave_out(entry, "not read by mlx-lm, which scales by `scale`");
}

fn resumed(draft: &mut Draft, entry: &Entry) {
    match entry.value.text() {
        Some(file) => {
            let folder = std::path::Path::new(file).parent().map(|folder| folder.display().to_string());
            let folder = folder.filter(|folder| !folder.is_empty()).unwrap_or_else(|| ".".to_owned());
            draft.set_with("adapter.from", folder, entry, "the folder of the file");
        }
        None => draft.leave_out(entry, "nothing is set"),
    }
}

fn mask(draft: &mut Draft, entry: &Entry) {
    match entry.value.truth() {
        Some(true) => draft.leave_out(entry, "as always here"),
        _ => draft.leave_out(entry, MASK),
    }
}
