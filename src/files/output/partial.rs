//! A file that grows under `NAME.incomplete`, over several attempts if need be, and gets its name once it is complete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{disk, temporary};
use crate::error::{Error, Result};

/// A file that is not complete yet. It stays when it is dropped, so that the next attempt can continue it.
#[derive(Debug)]
pub struct PartialFile {
    target: PathBuf,
    incomplete: PathBuf,
    file: File,
    bytes: u64,
}

impl PartialFile {
    /// Opens what an earlier attempt at `target` left, or begins anew.
    ///
    /// # Errors
    /// Failed: the file or its folder cannot be made.
    pub fn open(target: &Path) -> Result<Self> {
        let incomplete = target.with_added_extension("incomplete");
        let folder = target.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(|error| Error::write(folder, &error))?;
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&incomplete);
        let file = file.map_err(|error| Error::write(&incomplete, &error))?;
        let bytes = file.metadata().map_err(|error| Error::read(&incomplete, &error))?.len();
        Ok(Self { target: target.to_owned(), incomplete, file, bytes })
    }

    /// The size so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Hands the content so far to `take`, piece by piece, from the start.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read_through(&mut self, mut take: impl FnMut(&[u8])) -> Result<()> {
        let failed = |error: io::Error| Error::read(&self.incomplete, &error);
        self.file.rewind().map_err(failed)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match self.file.read(&mut buffer).map_err(failed)? {
                0 => return Ok(()),
                count => take(buffer.get(..count).unwrap_or_default()),
            }
        }
    }

    /// Adds `bytes` at the end.
    ///
    /// # Errors
    /// Failed: the disk is full.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let failed = |error: io::Error| Error::write(&self.incomplete, &error);
        self.file.seek(SeekFrom::Start(self.bytes)).map_err(failed)?;
        self.file.write_all(bytes).map_err(failed)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Empties the file.
    ///
    /// # Errors
    /// Failed: it cannot be written.
    pub fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|error| Error::write(&self.incomplete, &error))?;
        self.bytes = 0;
        Ok(())
    }

    /// Removes the file: its content is of no use.
    pub fn discard(self) {
        let _ = fs::remove_file(&self.incomplete);
    }

    /// Flushes the complete file to the disk and gives it its name.
    ///
    /// # Errors
    /// Failed: it cannot be written.
    pub fn publish(self) -> Result<()> {
        self.file.sync_all().map_err(|error| Error::write(&self.incomplete, &error))?;
        let renamed = temporary::undisturbed(|| fs::rename(&self.incomplete, &self.target));
        let flushed = renamed.and_then(|()| disk::sync_name(&self.target));
        flushed.map_err(|error| Error::write(&self.target, &error))
    }
}
