//! The rules by which keys become settings, and those that several programs share.

use super::draft::{Draft, Source};
use super::value::{Entry, Value};

/// The treatment of a key.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rule {
    /// The value is that of a setting.
    To(&'static str),
    /// The value is a word, and words have equals; any other is left out.
    Words(&'static str, &'static [(&'static str, &'static str)]),
    /// A function decides.
    By(fn(&mut Draft, &Entry)),
    /// There is no equal, for this reason.
    No(&'static str),
}

/// Keys with their rules. A key that ends with `*` stands for all that begin so; the first rule that fits counts.
pub(super) type Table = [(&'static str, Rule)];

/// Applies the rules of some tables to every entry; a section without a rule is entered. With `by_name`, the last part of a key may
/// have a rule as well.
pub(super) fn apply(entries: &[Entry], tables: &[&Table], by_name: bool, draft: &mut Draft) {
    for entry in entries {
        let rule = rule_of(&entry.key, tables).or_else(|| rule_of(entry.name(), tables).filter(|_| by_name));
        match (rule, &entry.value) {
            (Some(rule), _) => apply_rule(rule, entry, draft),
            (None, Value::Table(inner)) if !inner.is_empty() => {
                let inner: Vec<Entry> = inner.iter().map(|one| one.within(&entry.key)).collect();
                apply(&inner, tables, by_name, draft);
            }
            (None, _) => draft.leave_out(entry, "not a key that this import knows"),
        }
    }
}

fn rule_of(key: &str, tables: &[&Table]) -> Option<Rule> {
    let fits = |pattern: &str| match pattern.strip_suffix('*') {
        Some(beginning) => key.starts_with(beginning),
        None => key == pattern,
    };
    tables.iter().copied().flatten().find(|(pattern, _)| fits(pattern)).map(|(_, rule)| *rule)
}

fn apply_rule(rule: Rule, entry: &Entry, draft: &mut Draft) {
    match (rule, &entry.value) {
        (Rule::No(reason), Value::Expression(_)) => draft.leave_out(entry, reason),
        (_, Value::Expression(_)) => draft.leave_out(entry, "an expression of Python, which is not run"),
        (Rule::By(decide), _) => decide(draft, entry),
        (Rule::No(reason), value) if value.is_off() => {
            draft.leave_out(entry, format!("off, as always here ({reason})"))
        }
        (Rule::No(reason), _) => draft.leave_out(entry, reason),
        (_, Value::Null) => draft.leave_out(entry, "nothing is set"),
        (Rule::To(key), value) => match value.toml() {
            Some(value) => draft.set(key, value, entry),
            None => draft.leave_out(entry, format!("no value for `{key}`")),
        },
        (Rule::Words(key, words), value) => {
            let word = value.text().map(str::to_ascii_lowercase).unwrap_or_default();
            match words.iter().find(|(other, _)| *other == word) {
                Some((_, ours)) => draft.set(key, *ours, entry),
                None => {
                    let known: Vec<&str> = words.iter().map(|(other, _)| *other).collect();
                    draft.leave_out(entry, format!("`{key}` has an equal for {} alone", known.join(", ")));
                }
            }
        }
    }
}

pub(super) const ATTENTION: &str = "attention is always computed in blocks, within one sequence of a packed row";
pub(super) const TRACKER: &str =
    "`burnish train --log-to COMMAND` gives a tracker its lines, `burnish report` writes TensorBoard files";
pub(super) const UPLOAD: &str = "nothing is uploaded: the run folder is one that `hf upload` takes";
pub(super) const PROCESSES: &str = "several machines share a run by MPI (docs/distributed.md)";
pub(super) const LOADING: &str = "the data is read, kept and shuffled in one way, on all cores";
pub(super) const LOGGING: &str = "every step is a line of metrics.jsonl";
pub(super) const PICTURES: &str = "pictures become what the base's preprocessor_config.json says (docs/pictures.md)";
pub(super) const PICTURE_PATHS: &str = "paths of pictures are relative to the data file (docs/pictures.md)";
pub(super) const VIDEO_AND_SOUND: &str = "burnish reads neither video nor sound";
pub(super) const GENERATION: &str = "`burnish generate` and `burnish eval --generate` have arguments for it";
pub(super) const COMPILED: &str = "kernels are compiled in";
pub(super) const MASK: &str = "the loss is on answers; rows with `text` alone are learned whole";
pub(super) const OBJECT: &str = "an object of the script, read where it is made";
pub(super) const CODE: &str = "a base brings no code that is run";
pub(super) const PADDING: &str = "sequences lie end to end, and nothing is padded";

/// A base: `org/name` of the hub, or a path.
pub(super) fn base(draft: &mut Draft, entry: &Entry) {
    let Some(name) = entry.value.text() else { return draft.leave_out(entry, "names no base") };
    let revision =
        ["model_revision", "revision_of_model", "revision"].iter().find_map(|key| draft.value_of(key)?.text());
    let is_of_hub =
        name.matches('/').count() == 1 && !name.starts_with(['.', '/', '~']) && !std::path::Path::new(name).exists();
    let model = match (is_of_hub, revision.filter(|revision| *revision != "main")) {
        (true, Some(revision)) => format!("hf:{name}@{revision}"),
        (true, None) => format!("hf:{name}"),
        _ => name.to_owned(),
    };
    let remark = match name {
        _ if name.contains("-bnb-4bit") => "already packed by bitsandbytes, and used as it is",
        _ if name.starts_with("mlx-community/") => {
            "if its weights are quantised by MLX, name the model that they were made of"
        }
        _ => "",
    };
    draft.set_with("base.model", model, entry, remark);
}

/// Whether the tower of a model that sees, or its connector, is trained.
pub(super) fn tower(draft: &mut Draft, entry: &Entry) {
    const REASON: &str = "tower and connector are frozen unless `adapter.targets` or `adapter.modules_to_save` names their modules \
                          (docs/pictures.md)";
    draft.leave_out(entry, REASON);
}

/// A revision of the base, which [`base`] has seen.
pub(super) fn revision(draft: &mut Draft, entry: &Entry) {
    match entry.value.text() {
        Some(revision) => {
            draft.leave_out(entry, format!("stands in `base.model`, after @, unless it is main ({revision})"))
        }
        None => draft.leave_out(entry, "nothing is set"),
    }
}

/// 4 bits: NF4, with its scales packed too where `is_double`.
pub(super) fn four_bits(draft: &mut Draft, entry: &Entry, is_double: bool) {
    let quant = if is_double { "nf4-double" } else { "nf4" };
    match entry.value.truth() {
        Some(true) => draft.set("base.quant", quant, entry),
        Some(false) => draft.leave_out(entry, "the base is not packed, as by default here"),
        None => draft.leave_out(entry, "neither true nor false"),
    }
}

pub(super) fn eight_bits(draft: &mut Draft, entry: &Entry) {
    match entry.value.truth() {
        Some(true) => draft.set("base.quant", "int8", entry),
        _ => draft.leave_out(entry, "the base is not packed, as by default here"),
    }
}

/// `bf16`: true and `auto` are the default here; false means products in f32.
pub(super) fn bf16(draft: &mut Draft, entry: &Entry) {
    match entry.value.truth() {
        Some(false) if draft.value_of("fp16").and_then(Value::truth) != Some(true) => {
            draft.set("base.compute", "f32", entry)
        }
        Some(false) => draft.leave_out(entry, "fp16 stands beside it"),
        None if entry.value == Value::Null => draft.leave_out(entry, "nothing is set"),
        _ => draft.set("base.compute", "bf16", entry),
    }
}

pub(super) fn fp16(draft: &mut Draft, entry: &Entry) {
    match entry.value.truth() {
        Some(true) => {
            draft.set_with("base.compute", "bf16", entry, "there is no f16; bf16 needs no scaling of the loss")
        }
        _ => draft.leave_out(entry, "off, as always here (bf16 or f32)"),
    }
}

/// The number format of the base: `bfloat16`, `torch.float32` and so on.
pub(super) fn number_format(draft: &mut Draft, entry: &Entry) {
    match entry.value.text().map(|text| text.trim_start_matches("torch.")) {
        Some("bfloat16" | "bf16" | "auto") => draft.set("base.compute", "bf16", entry),
        Some("float16" | "fp16" | "half") => draft.set_with("base.compute", "bf16", entry, "there is no f16"),
        Some("float32" | "fp32" | "float") => draft.set("base.compute", "f32", entry),
        Some(_) => draft.leave_out(entry, "`base.compute` is bf16 or f32"),
        None => draft.leave_out(entry, "found by itself, and here bf16"),
    }
}

/// `gradient_checkpointing`: a truth value or the word of a method.
pub(super) fn recompute(draft: &mut Draft, entry: &Entry) {
    match (&entry.value, entry.value.truth()) {
        (Value::Null, _) => draft.leave_out(entry, "`train --max-memory` turns it on where it is needed"),
        (_, Some(false)) => draft.set("train.recompute", "none", entry),
        (Value::Text(word), None) if word == "none" => draft.set("train.recompute", "none", entry),
        _ => draft.set("train.recompute", "block", entry),
    }
}

/// A limit of steps, where 0 and -1 mean none.
pub(super) fn max_steps(draft: &mut Draft, entry: &Entry) {
    match entry.value.whole() {
        Some(steps) if steps > 0 => draft.set("train.max_steps", steps, entry),
        Some(_) => draft.leave_out(entry, "no limit, as without the key"),
        None => draft.leave_out(entry, "no number of steps"),
    }
}

/// A number of epochs, which counts where no number of steps ends the run.
pub(super) fn epochs(draft: &mut Draft, entry: &Entry) {
    if draft.value_of("max_steps").and_then(Value::whole).is_some_and(|steps| steps > 0) {
        return draft.leave_out(entry, "max_steps ends the run, however often it goes over the data");
    }
    match (entry.value.number(), entry.value.whole()) {
        (Some(0.0), _) => draft.leave_out(entry, "no epoch: `train.max_steps` ends a run by its steps"),
        (_, Some(whole)) => draft.set("train.epochs", whole, entry),
        (Some(epochs), None) if epochs > 0.0 => {
            draft.set_with(
                "train.epochs",
                epochs.ceil() as i64,
                entry,
                "whole epochs; `train.max_steps` ends within one",
            );
        }
        _ => draft.leave_out(entry, "no number of epochs"),
    }
}

/// A warm-up: a number of steps, or below 1 a share of the run.
pub(super) fn warmup(draft: &mut Draft, entry: &Entry) {
    match (entry.value.number(), entry.value.whole()) {
        (_, Some(steps)) if entry.name() != "warmup_ratio" || steps == 0 => {
            draft.set("train.warmup_steps", steps, entry)
        }
        (Some(share), _) => draft.set("train.warmup_share", share, entry),
        _ => draft.leave_out(entry, "no number of steps"),
    }
}

/// Steps between two evaluations, or two saves: a share of the run has no equal.
fn steps(draft: &mut Draft, entry: &Entry, key: &'static str) {
    match (entry.value.whole(), entry.value.number()) {
        (Some(steps), _) if steps > 0 => draft.set(key, steps, entry),
        (Some(_), _) => {
            draft.leave_out(entry, format!("`{key}` counts steps, from 1; there is a save at the end in any case"))
        }
        (None, Some(_)) => draft.leave_out(entry, format!("a share of the run; `{key}` counts steps")),
        _ => draft.leave_out(entry, "no number of steps"),
    }
}

pub(super) fn eval_steps(draft: &mut Draft, entry: &Entry) {
    steps(draft, entry, "train.eval_steps");
}

pub(super) fn checkpoint_steps(draft: &mut Draft, entry: &Entry) {
    steps(draft, entry, "train.checkpoint_steps");
}

/// The optimiser by its name in transformers.
pub(super) fn optimiser(draft: &mut Draft, entry: &Entry) {
    let word = entry.value.text().map(str::to_ascii_lowercase).unwrap_or_default();
    let word = word.rsplit('.').next().unwrap_or_default();
    let ours = ["adamw", "lion", "adafactor"].into_iter().find(|ours| word.contains(ours));
    let remark = if word.contains("8bit") || word.contains("paged") { "its state is in f32 here" } else { "" };
    match ours.or((word == "adam").then_some("adamw")) {
        Some(ours) => draft.set_with("train.optimiser", ours, entry, remark),
        None => draft.leave_out(entry, "`train.optimiser` is adamw, lion or adafactor"),
    }
}

/// Modules that get a pair: names in a list or between commas, the word for all, or a regular expression.
pub(super) fn targets(draft: &mut Draft, entry: &Entry) {
    let is_word = |text: &str| matches!(text, "all" | "all-linear" | "all_linear");
    match &entry.value {
        Value::Text(text) if is_word(text.trim()) => draft.set("adapter.targets", "all-linear", entry),
        // A regular expression of PEFT, whose signs no name has.
        Value::Text(text) if text.contains(['*', '(', '|', '\\', '[', '$', '^']) => {
            draft.set("adapter.targets", text.as_str(), entry)
        }
        Value::List(items) if items.iter().any(|item| item.text().is_some_and(is_word)) => {
            draft.set("adapter.targets", "all-linear", entry);
        }
        value => match value.texts().filter(|names| !names.is_empty()) {
            Some(names) => draft.set("adapter.targets", names, entry),
            None => draft.leave_out(entry, "names no modules: those of the default are taken"),
        },
    }
}

/// Names in a list or between commas, for a setting that takes a list.
pub(super) fn names(draft: &mut Draft, entry: &Entry, key: &'static str) {
    match entry.value.texts().filter(|names| !names.is_empty()) {
        Some(names) => draft.set(key, names, entry),
        None => draft.leave_out(entry, "nothing is set"),
    }
}

pub(super) fn modules_to_save(draft: &mut Draft, entry: &Entry) {
    names(draft, entry, "adapter.modules_to_save");
}

/// Layers by number.
pub(super) fn layers(draft: &mut Draft, entry: &Entry) {
    let numbers = match &entry.value {
        Value::List(items) => items.iter().map(Value::whole).collect::<Option<Vec<i64>>>(),
        value => value.whole().map(|one| vec![one]),
    };
    match numbers.filter(|numbers| !numbers.is_empty()) {
        Some(numbers) => draft.set("adapter.layers", numbers, entry),
        None => draft.leave_out(entry, "all layers, as by default here"),
    }
}

/// The first values of the factors, by PEFT's names.
pub(super) fn first_values(draft: &mut Draft, entry: &Entry) {
    match (&entry.value, entry.value.truth()) {
        (Value::Null, _) | (_, Some(true)) => draft.set("adapter.init", "kaiming", entry),
        (Value::Text(word), _) if ["gaussian", "orthogonal", "olora"].contains(&word.as_str()) => {
            draft.set("adapter.init", word.as_str(), entry);
        }
        (Value::Text(word), _) if word.starts_with("pissa") => draft.set("adapter.init", "pissa", entry),
        _ => draft.leave_out(entry, "`adapter.init` is kaiming, gaussian, orthogonal, pissa or olora"),
    }
}

/// A share of the training examples that is held out; 0 for none, a number of examples has no equal.
pub(super) fn held_out(draft: &mut Draft, entry: &Entry) {
    match entry.value.number() {
        Some(share) if share > 0.0 && share < 1.0 => draft.set("data.valid_fraction", share, entry),
        Some(0.0) => draft.leave_out(entry, "no validation examples, as without the key"),
        Some(_) => draft.leave_out(entry, "a number of examples; `data.valid_fraction` is a share below 1"),
        None => draft.leave_out(entry, "nothing is set"),
    }
}

/// The chat templates that have an equal, by the beginnings of their names elsewhere.
const TEMPLATES: &[(&str, &str)] = &[
    ("chatml", "chatml"),
    ("llama-3", "llama3"),
    ("llama3", "llama3"),
    ("llama-2", "llama2"),
    ("llama2", "llama2"),
    ("llama", "llama2"),
    ("mistral", "mistral"),
    ("gemma", "gemma"),
    ("phi-3", "phi3"),
    ("phi_3", "phi3"),
    ("phi", "phi3"),
    ("qwen", "qwen"),
    ("zephyr", "zephyr"),
    ("vicuna", "vicuna"),
];

/// A chat template by its name.
pub(super) fn template(draft: &mut Draft, entry: &Entry) {
    let word = entry.value.text().map(str::to_ascii_lowercase).unwrap_or_default();
    if word.is_empty() || word.starts_with("tokenizer_default") || word == "default" || word == "auto" {
        return draft.leave_out(entry, "the base's own template is taken, as by default here");
    }
    if word == "jinja" {
        return draft.leave_out(entry, "`data.template` takes the file itself");
    }
    match TEMPLATES.iter().find(|(beginning, _)| word.starts_with(beginning)) {
        Some((_, ours)) => draft.set_with("data.template", *ours, entry, "leave it out where the base brings its own"),
        None => draft.leave_out(
            entry,
            "`data.template` has none of that name: it takes a file, and the base's own is the default",
        ),
    }
}

/// The endings of data files that are read.
const ENDINGS: &[&str] = &["jsonl", "json", "csv", "tsv", "parquet", "gz", "zst"];

/// A source of examples by its name: a path, or a dataset of the hub, which has to be fetched.
pub(super) fn source(name: &str, entry: &Entry) -> Source {
    let is_path = name.starts_with(['.', '/', '~'])
        || name.contains('*')
        || ENDINGS.iter().any(|ending| name.ends_with(&format!(".{ending}")))
        || std::path::Path::new(name).exists();
    let (path, remark) = match is_path {
        true => (name.to_owned(), String::new()),
        false => {
            let last = name.rsplit('/').next().unwrap_or(name);
            (
                format!("{last}.jsonl"),
                format!("get {name} by `hf download --repo-type dataset {name}`, and name its files here"),
            )
        }
    };
    Source { path, entry: entry.clone(), remark, format: None, columns: Vec::new() }
}

/// A file or dataset of the hub to train on.
pub(super) fn train_data(draft: &mut Draft, entry: &Entry) {
    let names: Vec<String> = match &entry.value {
        Value::Text(_) => entry.value.text().map(str::to_owned).into_iter().collect(),
        value => value.texts().unwrap_or_default(),
    };
    if names.is_empty() {
        return draft.leave_out(entry, "names no data");
    }
    for name in names {
        draft.add_source(source(&name, entry));
    }
}

/// A file or dataset of the hub to validate with.
pub(super) fn valid_data(draft: &mut Draft, entry: &Entry) {
    match entry.value.texts().unwrap_or_default().first() {
        Some(name) => {
            let Source { path, remark, .. } = source(name, entry);
            draft.set_with("data.valid", path, entry, &remark);
        }
        None => draft.leave_out(entry, "nothing is set"),
    }
}
