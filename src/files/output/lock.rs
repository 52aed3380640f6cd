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
        Err(TryLockError::WouldBlock) => return Err(in_use(path, &file)),
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
    writeln!(file, "process {}", std::process::id()).map_err(failed)?;
    Ok(file)
}

/// Checks that no process has [`claim`]ed the lock of the file at `path`, and changes nothing.
///
/// # Errors
/// Input: a process has.
pub fn check_free(path: &Path) -> Result<()> {
    let Ok(file) = File::open(path) else { return Ok(()) };
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Err(in_use(path, &file)),
        _ => Ok(()),
    }
}

/// The error of a folder whose lock, the file at `path`, another process has.
fn in_use(path: &Path, file: &File) -> Error {
    let mut holder = String::new();
    // The lock is in use, whether its holder can be named or not.
    let _ = file.take(32).read_to_string(&mut holder);
    let holder = if holder.is_empty() { "another process" } else { holder.trim_end() };
    let folder = path.parent().unwrap_or(path);
    Error::input(folder, format!("is in use by {holder}")).hint("wait until it ends, or stop it")
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
        assert_eq!(check_free(&path).expect_err("in use"), error);
        drop(held);
        check_free(&path).expect("free again");
        claim(&path).expect("free again");
    }
}
