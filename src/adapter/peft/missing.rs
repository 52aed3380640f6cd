//! Folders given as an adapter that hold none: the error says what they hold, and where an adapter is.

use std::path::Path;

use super::{CONFIG_FILE, MLX_WEIGHTS_FILE, WEIGHTS_FILE};
use crate::error::Error;
use crate::files::folders::{folders_with, listed};

/// Files of a run folder of this program.
const RUN_FILES: [&str; 3] = ["run.json", "recipe.toml", "metrics.jsonl"];
/// Formats of other programs, by the file that marks them.
const FOREIGN_WEIGHTS: [(&str, &str, &str); 2] = [
    (
        "adapter_model.bin",
        "holds adapter_model.bin, a pickle, which is never read",
        "save it again with PEFT's `save_pretrained(..., safe_serialization=True)`",
    ),
    (
        "adapter_model.safetensors.index.json",
        "holds an adapter in several files, which is not read",
        "save it again in one file, as PEFT's `save_pretrained` does",
    ),
];

/// The error for a path that is no adapter folder at all; `None` if it holds a file of one, or nothing that is known.
pub fn no_adapter(dir: &Path) -> Option<Error> {
    if std::fs::metadata(dir).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        let error = Error::input(dir.display(), "does not exist; expected an adapter's folder");
        return Some(error.hint("a path is relative to the current folder"));
    }
    let has = |name: &str| dir.join(name).exists();
    let known = [CONFIG_FILE, WEIGHTS_FILE, MLX_WEIGHTS_FILE].into_iter().chain(FOREIGN_WEIGHTS.map(|(file, ..)| file));
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
