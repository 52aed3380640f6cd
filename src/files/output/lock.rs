//! Lock files: one process at a time does the work that a lock stands for.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
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
    let file = open(path)?;
    if file.try_lock().is_err() {
        waiting();
        file.lock().map_err(|error| Error::write(path, &error))?;
    }
    Ok(file)
}

/// Takes the lock of the file at `path`, in a folder that exists, for a process that works in that folder alone. The file
/// names the process. The lock is released as that of [`take`].
///
/// # Errors
/// Input: another process has the lock. Failed: the file cannot be made or locked.
pub fn claim(path: &Path) -> Result<File> {
    let mut file = open(path)?;
    let failed = |error: std::io::Error| Error::write(path, &error);
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = (&file).take(32).read_to_string(&mut holder);
            let holder = if holder.is_empty() { "another process" } else { holder.trim_end() };
            let folder = path.parent().unwrap_or(path);
            return Err(Error::input(folder, format!("is in use by {holder}")).hint("wait until it ends, or stop it"));
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
    writeln!(file, "process {}", std::process::id()).map_err(failed)?;
    Ok(file)
}

fn open(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
    file.map_err(|error| Error::write(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_use_names_the_process_and_is_free_after_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(".lock");
        let held = claim(&path).expect("free");
        let error = claim(&path).expect_err("in use");
        assert!(error.to_string().contains(&format!("is in use by process {}", std::process::id())), "{error}");
        drop(held);
        claim(&path).expect("free again");
    }
}
