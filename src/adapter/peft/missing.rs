//! Folders given as an adapter that hold none: the error says what they hold, and where an adapter is.

use std::path::Path;

use super::{CONFIG_FILE, WEIGHTS_FILE};
use crate::error::Error;

/// Most entries of a folder that are looked at.
const MAX_ENTRIES: usize = 10_000;
/// Most folders that an error names.
const MAX_NAMED: usize = 10;
/// Files of a run folder of this program.
const RUN_FILES: [&str; 3] = ["run.json", "recipe.toml", "metrics.jsonl"];
/// Formats of other programs, by the file that marks them.
const FOREIGN_WEIGHTS: [(&str, &str, &str); 3] = [
    (
        "adapter_model.bin",
        "holds adapter_model.bin, a pickle, which is never read",
        "save it again with PEFT's `save_pretrained(..., safe_serialization=True)`",
    ),
    (
        "adapters.safetensors",
        "holds adapters.safetensors, the format of mlx-lm, which is not read",
        "convert it to PEFT's format",
    ),
    (
        "adapter_model.safetensors.index.json",
        "holds an adapter in several files, which is not read",
        "save it again in one file, as PEFT's `save_pretrained` does",
    ),
];

/// The error for a path that is no adapter folder at all; `None` if it holds a file of one, or nothing that is known.
pub fn no_adapter(dir: &Path) -> Option<Error> {
    let has = |name: &str| dir.join(name).exists();
    let known = [CONFIG_FILE, WEIGHTS_FILE].into_iter().chain(FOREIGN_WEIGHTS.map(|(file, ..)| file));
    if dir.is_file() {
        let error = Error::input(dir.display(), "is a file; expected an adapter's folder");
        return Some(error.hint(format!("name the folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}")));
    }
    if !dir.is_dir() || known.into_iter().any(has) {
        return None;
    }
    let adapters = folders_with(dir, |folder| folder.join(CONFIG_FILE).is_file());
    if let Some(last) = adapters.last() {
        let error = Error::input(dir.display(), format!("holds no adapter itself, but in {}", listed(&adapters)));
        return Some(error.hint(format!("name one of them, as `{}`", dir.join(last).display())));
    }
    let models = folders_with(dir, |folder| folder.join("config.json").is_file());
    if has("config.json") || !models.is_empty() {
        let found =
            if models.is_empty() { "it is a model".to_owned() } else { format!("models are in {}", listed(&models)) };
        let error = Error::input(dir.display(), format!("holds no {CONFIG_FILE}, so no adapter; {found}"));
        return Some(error.hint("a whole model is given as the base"));
    }
    RUN_FILES.into_iter().any(has).then(|| {
        let message = format!("is the folder of a run that saved no adapter: there is no {CONFIG_FILE} in it");
        Error::input(dir.display(), message).hint("did the run end before its first evaluation?")
    })
}

/// The error for an adapter folder whose weights are in a format that is not read; `None` where they are in PEFT's, or
/// missing.
pub(super) fn no_weights(dir: &Path) -> Option<Error> {
    if dir.join(WEIGHTS_FILE).exists() {
        return None;
    }
    let found = FOREIGN_WEIGHTS.into_iter().find(|(file, ..)| dir.join(file).exists());
    found.map(|(_, message, hint)| Error::input(dir.display(), message).hint(hint))
}

/// Folders up to two levels below `dir` for which `is_one` holds, relative to it; numbers in their names count as numbers.
fn folders_with(dir: &Path, is_one: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for name in subfolders(dir) {
        let folder = dir.join(&name);
        if is_one(&folder) {
            found.push(name);
            continue;
        }
        let inner = subfolders(&folder).into_iter().filter(|inner| is_one(&folder.join(inner)));
        found.extend(inner.map(|inner| format!("{name}/{inner}")));
    }
    found.sort_by_cached_key(|name| sort_key(name));
    found
}

fn subfolders(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().take(MAX_ENTRIES).flatten();
    let folders = entries.filter(|entry| entry.path().is_dir());
    folders.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The parts of a name: text, and numbers by their value, so that `checkpoint-20` comes before `checkpoint-100`.
fn sort_key(name: &str) -> Vec<(String, u64)> {
    let mut parts: Vec<(String, u64)> = vec![Default::default()];
    let mut in_number = false;
    for symbol in name.chars() {
        let digit = symbol.to_digit(10).map(u64::from);
        if in_number && digit.is_none() {
            parts.push(Default::default());
        }
        in_number = digit.is_some();
        if let Some((text, number)) = parts.last_mut() {
            match digit {
                Some(digit) => *number = number.saturating_mul(10).saturating_add(digit),
                None => text.push(symbol),
            }
        }
    }
    parts
}

/// `a`, `b` and 3 more.
fn listed(names: &[String]) -> String {
    // The last ones are the newest.
    let first = names.len().saturating_sub(MAX_NAMED);
    let shown = names[first..].iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if first == 0 { shown } else { format!("{shown} and {first} more") }
}
