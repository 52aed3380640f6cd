//! The folder for what can be made again: downloads, hashes of large files, encoded data.

use std::env;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// The environment variable, unless it is unset or empty.
pub fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Our own cache: `$BURNISH_CACHE`, else `burnish` in the XDG cache folder.
///
/// # Errors
/// Input: none of `BURNISH_CACHE`, `XDG_CACHE_HOME`, `HOME` is set.
pub fn cache_folder() -> Result<PathBuf> {
    match variable("BURNISH_CACHE") {
        Some(folder) => Ok(PathBuf::from(folder)),
        None => Ok(user_cache_folder()?.join("burnish")),
    }
}

/// `$XDG_CACHE_HOME`, else `~/.cache`.
///
/// # Errors
/// Input: neither it nor `HOME` is set.
pub fn user_cache_folder() -> Result<PathBuf> {
    match variable("XDG_CACHE_HOME") {
        Some(folder) => Ok(PathBuf::from(folder)),
        None => Ok(home()?.join(".cache")),
    }
}

/// The home folder.
///
/// # Errors
/// Input: `HOME` is not set.
pub fn home() -> Result<PathBuf> {
    env::home_dir().filter(|home| !home.as_os_str().is_empty()).ok_or_else(|| {
        Error::input("HOME", "is not set, so there is no cache folder").hint("set BURNISH_CACHE and HF_HOME to folders")
    })
}
