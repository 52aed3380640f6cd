//! Environment variables that say where caches lie and how the hub is reached, read as Python reads them.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::files::cache_folder::home;
pub(super) use crate::files::cache_folder::{user_cache_folder, variable};
use crate::files::open;

/// The largest file of a token, in bytes.
const MAX_TOKEN_BYTES: u64 = 64 << 10;

/// Whether a switch in the environment is on, by Python's rule.
pub(super) fn is_on(name: &str) -> bool {
    variable(name).is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

/// The path with a leading `~` replaced by the home folder.
///
/// # Errors
/// Input: it has one, and `HOME` is not set.
pub(super) fn expand_home(path: &str) -> Result<PathBuf> {
    match path.strip_prefix("~/") {
        Some(rest) => Ok(home()?.join(rest)),
        None => Ok(PathBuf::from(path)),
    }
}

/// The token of the environment, else that in `file`; `None` where there is none or it is switched off.
pub(super) fn token(file: &Path) -> Option<String> {
    if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return None;
    }
    let token = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
    let token = token.or_else(|| String::from_utf8(open::read(file, MAX_TOKEN_BYTES).ok()?).ok())?;
    Some(token.trim().to_owned()).filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()))
}
