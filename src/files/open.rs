//! Opening of untrusted files: regular files only, never blocking, never more than a stated size.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::Bytes;
use crate::error::{Error, Result};

/// Opens `path` for reading. A folder, FIFO, socket or device is an error at once: opening never waits.
#[expect(clippy::disallowed_methods, reason = "the options are for reading")]
pub fn regular(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    // Without O_NONBLOCK, opening a FIFO waits for a writer.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path).map_err(|error| Error::read(path, &error))?;
    let metadata = file.metadata().map_err(|error| Error::read(path, &error))?;
    if metadata.is_file() {
        return Ok(file);
    }
    let found = if metadata.is_dir() { "a folder" } else { "not a regular file (FIFO, socket or device)" };
    Err(Error::input(path.display(), format!("is {found}; expected a file")))
}

/// Maps `path` into memory, read-only. An empty file maps to no bytes.
///
/// The map shares the file: if another process truncates the file meanwhile, this process ends with a bus error, as
/// with every memory-mapped reader.
pub fn map(path: &Path) -> Result<Bytes> {
    let file = regular(path)?;
    let length = file.metadata().map_err(|error| Error::read(path, &error))?.len();
    if length == 0 {
        return Ok(Bytes::from(Vec::new()));
    }
    // SAFETY: the map is read-only and the bytes are only ever read as plain integers, for which any
    // content is valid; see above for a file truncated under the map.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|error| Error::read(path, &error))?;
    let length = map.len();
    Ok(Bytes::mapped(Arc::new(map), 0..length))
}

/// Reads a file of at most `max_bytes` bytes.
pub fn read(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let file = regular(path)?;
    let too_large = || Error::input(path.display(), format!("is larger than the limit of {max_bytes} bytes"));
    if file.metadata().map_err(|error| Error::read(path, &error))?.len() > max_bytes {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    // One byte more than allowed shows that the file has grown beyond the limit meanwhile.
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| Error::read(path, &error))?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_large());
    }
    Ok(bytes)
}
