//! Hashes of large files, kept so that a file is read for its hash once.
//!
//! `<cache>/hashes/<key>` holds a hash. The key is a hash itself: of the path, size, time of modification and inode of every
//! file, so that a file that was written since has another key.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::{atomic, cache_folder, hex, open};
use crate::error::Result;

/// Hashes of less are quicker computed than looked up with confidence.
const MIN_BYTES: u64 = 256 << 20;
/// A file that changed so recently may change again within the resolution of its time of modification.
const SETTLED: Duration = Duration::from_secs(5);
/// The digits of a SHA-256.
const HASH_DIGITS: usize = 64;

/// The hash of `files`: the one that was kept, else that of `compute`, which is kept from then on. A cache that cannot be read or
/// written only costs time.
///
/// # Errors
/// Those of `compute`.
pub fn known_or(files: &[PathBuf], compute: impl FnOnce() -> Result<String>) -> Result<String> {
    match cache_folder::cache_folder() {
        Ok(cache) => known_in(&cache.join("hashes"), files, compute),
        Err(_) => compute(),
    }
}

fn known_in(folder: &Path, files: &[PathBuf], compute: impl FnOnce() -> Result<String>) -> Result<String> {
    let place = || key(files).map(|key| folder.join(key));
    let Some(place_before) = place() else { return compute() };
    let kept = open::read(&place_before, HASH_DIGITS as u64).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    if let Some(kept) =
        kept.filter(|kept| kept.len() == HASH_DIGITS && kept.bytes().all(|byte| byte.is_ascii_hexdigit()))
    {
        return Ok(kept);
    }
    let hash = compute()?;
    // The files are the same as before they were read: a change meanwhile gave another key.
    if place().is_some_and(|after| after == place_before) {
        let _ = std::fs::create_dir_all(folder).map(|()| atomic::write_bytes(&place_before, hash.as_bytes()));
    }
    Ok(hash)
}

/// The key of `files`; `None` where they are small, or were changed just now.
fn key(files: &[PathBuf]) -> Option<String> {
    let mut description = String::new();
    let mut bytes = 0;
    let now = SystemTime::now();
    for file in files {
        let path = file.canonicalize().ok()?;
        let metadata = path.metadata().ok()?;
        let modified = metadata.modified().ok()?;
        if now.duration_since(modified).ok()? < SETTLED {
            return None;
        }
        bytes += metadata.len();
        let since_epoch = modified.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let _ = writeln!(description, "{path:?} {} {} {}", metadata.len(), since_epoch.as_nanos(), inode(&metadata));
    }
    (bytes >= MIN_BYTES).then_some(())?;
    Some(hex::encode(&Sha256::digest(description.as_bytes())))
}

#[cfg(unix)]
fn inode(metadata: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_: &std::fs::Metadata) -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_file_is_hashed_once_and_again_after_a_change() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("weights");
        let file = atomic::create_new(&path).expect("a file");
        let written = |bytes: u64, seconds_ago: u64| {
            file.set_len(bytes).expect("a length");
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds_ago)).expect("a time");
        };
        let cache = folder.path().join("hashes");
        let hash =
            |digit: &str| known_in(&cache, std::slice::from_ref(&path), || Ok(digit.repeat(64))).expect("a hash");

        written(MIN_BYTES, 1);
        assert_eq!((hash("a"), hash("b")), ("a".repeat(64), "b".repeat(64)), "changed just now");
        written(MIN_BYTES - 1, 60);
        assert_eq!((hash("a"), hash("b")), ("a".repeat(64), "b".repeat(64)), "small");
        assert!(!cache.exists());
        written(MIN_BYTES, 60);
        assert_eq!((hash("a"), hash("b")), ("a".repeat(64), "a".repeat(64)));
        written(MIN_BYTES, 59);
        assert_eq!(hash("b"), "b".repeat(64), "changed since");
        for entry in std::fs::read_dir(&cache).expect("the cache") {
            atomic::write_bytes(&entry.expect("an entry").path(), b"damaged").expect("written");
        }
        assert_eq!(hash("c"), "c".repeat(64), "a damaged entry");
    }
}
