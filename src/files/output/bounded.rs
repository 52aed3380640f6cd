//! A folder of files that are of use but not needed: together they stay below a size, and the ones that were not used for
//! the longest time are removed first. Each ends with the SHA-256 of its content, and one that is not whole is removed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::atomic;
use crate::error::{Error, Result};
use crate::files::open;

/// The bytes of the checksum at the end of a file.
const SUM_BYTES: usize = 32;

/// A folder whose files together have at most a number of bytes.
#[derive(Debug, Clone)]
pub struct BoundedFolder {
    path: PathBuf,
    max_bytes: u64,
}

impl BoundedFolder {
    /// The folder at `path`, which need not exist yet.
    pub fn new(path: PathBuf, max_bytes: u64) -> Self {
        Self { path, max_bytes }
    }

    /// The path of the file `name`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The content of the file `name`, of at most `max_bytes` bytes; it counts as used now. `None` where the file is not there or is
    /// larger, and where it is not whole: then it is removed.
    pub fn read(&self, name: &str, max_bytes: u64) -> Option<Vec<u8>> {
        let file_bytes = max_bytes.saturating_add(SUM_BYTES as u64).min(self.max_bytes);
        let mut bytes = open::read(&self.file(name), file_bytes).ok()?;
        let sum = bytes.split_off(bytes.len().saturating_sub(SUM_BYTES));
        if Sha256::digest(&bytes)[..] != sum {
            self.remove(name);
            return None;
        }
        self.touch(name);
        Some(bytes)
    }

    /// Writes the file `name` of about `bytes` bytes, after removing others until there is room for it. A file that is
    /// larger than the folder may be is not written.
    ///
    /// # Errors
    /// Those of `fill`; Failed: the disk is full, the folder is not writable.
    pub fn write(&self, name: &str, bytes: u64, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let Some(room) = self.max_bytes.checked_sub(bytes) else { return Ok(()) };
        make_private(&self.path).map_err(|error| Error::write(&self.path, &error))?;
        self.shrink_to(room);
        let path = self.file(name);
        atomic::write(&path, |writer| {
            let mut summed = Summed { writer, sum: Sha256::new() };
            fill(&mut summed)?;
            let Summed { writer, sum } = summed;
            writer.write_all(&sum.finalize()).map_err(|error| Error::write(&path, &error))
        })
    }

    /// Marks the file `name` as used now. A file that is gone, or of another user, is left as it is.
    fn touch(&self, name: &str) {
        let _ = File::open(self.file(name)).and_then(|file| file.set_modified(SystemTime::now()));
    }

    /// Removes the file `name`, if it is there.
    pub fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.file(name));
    }

    /// Removes the files that were not used for the longest time until the others have at most `bytes` bytes together.
    fn shrink_to(&self, bytes: u64) {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let mut files: Vec<(SystemTime, PathBuf, u64)> = entries
            .filter_map(|entry| {
                let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
                Some((metadata.modified().ok()?, entry.path(), metadata.len()))
            })
            .collect();
        files.sort_unstable();
        let mut total: u64 = files.iter().map(|(.., size)| size).sum();
        for (_, path, size) in files {
            if total <= bytes {
                return;
            }
            // Another process may have removed it.
            let _ = fs::remove_file(path);
            total -= size;
        }
    }
}

/// A writer that sums what it writes.
struct Summed<W> {
    writer: W,
    sum: Sha256,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.writer.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Makes a folder that only its owner may look into: the files hold private data.
fn make_private(path: &Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_files_that_were_not_used_for_the_longest_time_make_room() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = BoundedFolder::new(parent.path().join("a/b"), 250);
        let write = |name: &str, bytes: usize| {
            let fill = |writer: &mut dyn Write| writer.write_all(&vec![0; bytes]).map_err(|_| Error::failed("", ""));
            folder.write(name, bytes as u64, fill).expect("written");
        };
        let set_age = |name: &str, seconds: u64| {
            let file = File::open(folder.file(name)).expect("there");
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).expect("set");
        };
        for (name, age) in [("old", 300), ("older", 400)] {
            write(name, 100);
            set_age(name, age);
        }
        folder.touch("older");
        write("new", 100);
        let is_there = |name: &str| folder.file(name).is_file();
        assert!(is_there("older") && is_there("new") && !is_there("old"), "the touched one stays");
        write("huge", 251);
        assert!(!is_there("huge") && is_there("new"), "what has no room takes none");
        folder.remove("new");
        assert!(!is_there("new"));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(parent.path().join("a/b")).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
        }
    }
}
