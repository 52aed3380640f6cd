//! Questions to ask of an output folder before a long job begins: whether it can be written, and the room in it.

use std::io::{self, Write};
use std::path::Path;

use super::{disk, temporary};
use crate::bytes::Size;
use crate::error::{Error, Result};

/// Whether `bytes` can be written where `folder` is or will be: files can be made, synced and renamed there, and the file
/// system has the room. Nothing stays.
///
/// # Errors
/// Input: the file system is read-only or full, the permission is missing.
pub fn check(folder: &Path, bytes: u64) -> Result<()> {
    let existing = folder.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("."));
    probe(existing).map_err(|error| {
        Error::input(existing, format!("cannot be written: {error}"))
            .hint(format!("the output goes to {}; choose a folder that can be written", folder.display()))
            .because(error)
    })?;
    match free_bytes(existing) {
        Some(free) if free < bytes => {
            let message = format!("about {} are needed on this disk, {} are free", Size(bytes), Size(free));
            Err(Error::input(folder, message).hint("make room, or choose another folder"))
        }
        _ => Ok(()),
    }
}

/// Makes, syncs and renames a file in a folder of its own.
fn probe(folder: &Path) -> io::Result<()> {
    let disk = disk::current();
    let own = temporary::folder_in(folder)?;
    let (made, renamed) = (own.path().join("made"), own.path().join("renamed"));
    let mut file = disk.create(&made)?;
    file.write_all(&[0; 4096])?;
    file.sync()?;
    disk.rename(&made, &renamed)?;
    disk.sync_folder(own.path())
}

/// The bytes that this process may still write to the file system that `folder` lies in, or `None` where the system does not
/// say.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::CString::new(folder.as_os_str().as_bytes()).ok()?;
        let mut found = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
        // SAFETY: `path` ends with a zero byte, and `found` has room for the answer.
        if unsafe { libc::statvfs(path.as_ptr(), found.as_mut_ptr()) } != 0 {
            return None;
        }
        // SAFETY: the call has filled it; all zeroes were a valid value before.
        let found = unsafe { found.assume_init() };
        #[allow(clippy::unnecessary_cast, reason = "the types differ between systems")]
        Some((found.f_bavail as u64).saturating_mul(found.f_frsize as u64))
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_to_be_made_is_checked_where_it_will_lie_and_nothing_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        check(&folder.path().join("runs/first"), 1 << 20).expect("room");
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 0);
        let error = check(&folder.path().join("runs/first"), u64::MAX).expect_err("no disk has that");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("are needed on this disk"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        // Not even the superuser can write there.
        let error = check(Path::new("/proc/runs"), 1).expect_err("no files can be made there");
        assert!(error.to_string().contains("/proc: cannot be written"), "{error}");
    }
}
