//! Folders given as a base that hold no model: the error says what they hold, and where a model is.

use std::path::Path;

use crate::error::Error;
use crate::files::folders::{folders_with, listed};

const MODEL: &str = "config.json";
const ADAPTER: &str = "adapter_config.json";

/// The error for a folder that holds no model itself, but an adapter or folders with models or adapters; `None` if it holds
/// a model, or nothing that is known.
pub(super) fn no_model(dir: &Path) -> Option<Error> {
    if dir.join(MODEL).exists() {
        return None;
    }
    if dir.join(ADAPTER).exists() {
        return Some(
            Error::input(dir.display(), "is an adapter, not a base model")
                .hint("name the model that it was trained on as the base, and this folder as the adapter"),
        );
    }
    let models = folders_with(dir, |folder| folder.join(MODEL).is_file());
    if let Some(last) = models.last() {
        let error = Error::input(dir.display(), format!("holds no model itself, but in {}", listed(&models)));
        return Some(error.hint(format!("name one of them, as `{}`", dir.join(last).display())));
    }
    let adapters = folders_with(dir, |folder| folder.join(ADAPTER).is_file());
    adapters.last().map(|last| {
        let message = format!("holds no model; adapters are in {}", listed(&adapters));
        Error::input(dir.display(), message).hint(format!(
            "name the model that they were trained on as the base, and one of them, as `{}`, as the adapter",
            dir.join(last).display()
        ))
    })
}
