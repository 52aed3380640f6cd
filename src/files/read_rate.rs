//! The rate at which a disk gives a file that the system has not in its cache.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Instant;

use super::open;
use crate::error::{Error, Result};

/// Pieces that are read, and the largest of them in bytes.
const PIECES: u64 = 8;
const PIECE: u64 = 8 << 20;

/// The bytes a second at which pieces of the file come from its disk, measured. On systems other than Linux they may come from the
/// cache.
///
/// # Errors
/// The file cannot be read.
pub fn bytes_a_second(path: &Path) -> Result<f64> {
    let failed = |error: std::io::Error| Error::read(path, &error);
    let mut file = open::regular(path)?;
    let file_bytes = file.metadata().map_err(failed)?.len();
    let piece = (file_bytes / PIECES).min(PIECE);
    let mut buffer = vec![0; piece as usize];
    let began = Instant::now();
    for index in 0..PIECES {
        let start = file_bytes / PIECES * index;
        forget(&file, start, piece);
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        file.read_exact(&mut buffer).map_err(failed)?;
    }
    Ok((PIECES * piece) as f64 / began.elapsed().as_secs_f64().max(1e-6))
}

/// Takes pages out of the cache of the system.
fn forget(file: &File, start: u64, bytes: u64) {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;
        // SAFETY: the descriptor is open, and the advice changes no byte.
        unsafe {
            libc::posix_fadvise(file.as_raw_fd(), start as i64, bytes as i64, libc::POSIX_FADV_DONTNEED);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, start, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_a_rate_and_a_missing_one_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        crate::files::atomic::write_bytes(&path, &[7; 100_000]).expect("written");
        assert!(bytes_a_second(&path).expect("read") > 0.0);
        assert!(bytes_a_second(&folder.path().join("none")).is_err());
    }
}
