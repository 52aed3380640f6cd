//! Lock files: one process at a time does the work that a lock stands for.

use std::fs::{File, OpenOptions};
use std::path::Path;

use crate::error::{Error, Result};

/// Takes the lock of the file at `path`, which is made where it is missing. `waiting` is called if another process has
/// the lock. The lock is released when the file is dropped, and by the system when the process ends.
///
/// # Errors
/// Failed: the file cannot be made.
pub fn take(path: &Path, waiting: impl FnOnce()) -> Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| Error::write(folder, &error))?;
    }
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let file = file.map_err(|error| Error::write(path, &error))?;
    if file.try_lock().is_err() {
        waiting();
        file.lock().map_err(|error| Error::write(path, &error))?;
    }
    Ok(file)
}
