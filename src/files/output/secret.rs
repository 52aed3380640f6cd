//! A file that only its owner can read, from its first moment.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

use super::disk;
use crate::error::{Error, Result};

/// Writes `bytes` to the new file `path`, flushed to the disk. On Unix nobody but the owner may read it.
///
/// # Errors
/// Failed: there is something at `path`, or it cannot be written; a part of the file may be there then.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let write = |mut file: File| file.write_all(bytes).and_then(|()| file.sync_all());
    let written = options.open(path).and_then(write).and_then(|()| disk::sync_name(path));
    written.map_err(|error| Error::write(path, &error))
}

/// Removes the file at `path`; one that is missing is removed already.
///
/// # Errors
/// Failed: it cannot be removed.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::failed(path, format!("cannot be removed: {error}")))
        }
        _ => Ok(()),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nobody_else_can_read_a_secret() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        write(&path, b"secret").expect("written");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read(&path).expect("read"), b"secret");
        assert!(write(&path, b"other").is_err(), "nothing is written over");
        remove(&path).expect("removed");
        assert!(!path.exists());
        remove(&path).expect("gone already");
    }
}
