//! Writing of files that appear complete or not at all.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::temporary;
use crate::error::{Error, Result};

/// Writes `path` through `fill`: into a temporary file beside it, flushed to the disk, then renamed over
/// `path`.
///
/// # Errors
/// Those of `fill`; Failed: the disk is full, the folder is not writable. The temporary file is gone then and `path` is as
/// before, unless it is the disk itself that fails while the finished rename is flushed to it.
pub fn write(path: &Path, fill: impl FnOnce(&mut BufWriter<&File>) -> Result<()>) -> Result<()> {
    let failed = |error: std::io::Error| Error::write(path, &error);
    let folder = folder_of(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".burnish-").suffix(".part");
    // tempfile's own default is 0600; the finished file gets what the umask leaves.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = temporary::make(|| builder.tempfile_in(folder), |file| file.path().to_owned()).map_err(failed)?;
    let mut writer = BufWriter::with_capacity(1 << 20, temporary.as_file());
    fill(&mut writer)?;
    writer.flush().map_err(failed)?;
    drop(writer);
    temporary.as_file().sync_all().map_err(failed)?;
    temporary.settle(|file| file.persist(path)).map_err(|error| failed(error.error))?;
    flush_folder(folder).map_err(failed)
}

/// The folder that `path` lies in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Flushes the name of a file that was renamed to `path` to the disk, where its file system can.
///
/// # Errors
/// Those of the disk.
pub(super) fn flush_folder_of(path: &Path) -> io::Result<()> {
    flush_folder(folder_of(path))
}

/// Gives a finished file its name, which another file may have had. Both lie in the same file system.
///
/// # Errors
/// Failed: the file cannot be renamed.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|error| Error::write(to, &error))
}

/// Makes a file that grows line by line and is of use unfinished: a log.
///
/// # Errors
/// There is something at `path`, or the file cannot be made.
pub fn create_new(path: &Path) -> io::Result<File> {
    File::create_new(path)
}

/// Flushes the names in `folder` to the disk, a rename among them, where its file system can.
fn flush_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        match File::open(folder).and_then(|folder| folder.sync_all()) {
            Err(error) if is_no_failure_of_the_disk(&error) => {}
            flushed => flushed?,
        }
    }
    Ok(())
}

/// Whether a folder's names cannot be flushed although they were written: CIFS, 9p, vboxsf and some FUSE file systems
/// answer EINVAL or ENOTSUP, and a folder that is writable but not readable cannot be opened.
#[cfg(unix)]
fn is_no_failure_of_the_disk(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTSUP | libc::ENOSYS | libc::EACCES | libc::EPERM))
}

/// Writes `bytes` to `path` as [`write()`] does.
///
/// # Errors
/// Those of [`write()`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, |writer| writer.write_all(bytes).map_err(|error| Error::write(path, &error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.json");
        write_bytes(&path, b"old").expect("written");
        let error = write(&path, |writer| {
            writer.write_all(b"half").expect("buffered");
            Err(Error::failed("there", "no"))
        });
        assert!(error.is_err());
        assert_eq!(std::fs::read(&path).expect("still there"), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_whose_names_cannot_be_flushed_still_takes_files() {
        use std::os::unix::fs::PermissionsExt;
        for code in [libc::EINVAL, libc::ENOTSUP, libc::EACCES] {
            assert!(is_no_failure_of_the_disk(&io::Error::from_raw_os_error(code)), "{code}");
        }
        for code in [libc::EIO, libc::ENOSPC, libc::EDQUOT] {
            assert!(!is_no_failure_of_the_disk(&io::Error::from_raw_os_error(code)), "{code}");
        }
        // A file system whose folders cannot be flushed.
        #[cfg(target_os = "linux")]
        flush_folder(Path::new("/proc")).expect("no failure");
        // Writable, not readable. (The superuser may read it all the same, and then this part shows nothing.)
        let folder = tempfile::tempdir().expect("a folder");
        let mode = |mode| std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode));
        mode(0o300).expect("changed");
        let written = write_bytes(&folder.path().join("a"), b"x");
        mode(0o700).expect("changed");
        written.expect("written");
    }
}
