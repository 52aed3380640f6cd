//! The file operations that outputs are made of. All of them go through one trait, so that a test can put a simulated disk
//! in the place of the system's and let any operation fail, or the power.

use std::cell::RefCell;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::rc::Rc;

use crate::error::Result;
use crate::files::open;

/// A file system. Nothing is certain to survive a loss of power before it is synced: the content of a file by
/// [`DiskFile::sync`], the names in a folder by [`Disk::sync_folder`].
pub trait Disk: fmt::Debug {
    /// Makes a file and opens it for writing.
    ///
    /// # Errors
    /// Those of the disk; there is something at `path`.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Makes a folder in one that exists.
    ///
    /// # Errors
    /// Those of the disk; there is something at `path`.
    fn create_folder(&self, path: &Path) -> io::Result<()>;

    /// Gives a file or folder another name; a file that had it is replaced.
    ///
    /// # Errors
    /// Those of the disk.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// Those of the disk.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes a folder that is empty.
    ///
    /// # Errors
    /// Those of the disk; the folder is not empty.
    fn remove_empty_folder(&self, path: &Path) -> io::Result<()>;

    /// Removes a folder with everything in it.
    ///
    /// # Errors
    /// Those of the disk; a part of the folder may be gone then.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;

    /// Flushes the names in a folder to the medium, where its file system can.
    ///
    /// # Errors
    /// Those of the disk.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;

    /// Whether anything lies at `path`, a broken link included.
    fn exists(&self, path: &Path) -> bool;

    /// The names in a folder, in no particular order. A name that is not UTF-8 comes with replacement characters.
    ///
    /// # Errors
    /// Those of the disk.
    fn names(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// The content of a regular file.
    ///
    /// # Errors
    /// Input: it cannot be read, or has more than `max_bytes`.
    fn read(&self, path: &Path, max_bytes: u64) -> Result<Vec<u8>>;
}

/// A file that is open for writing.
pub trait DiskFile: Write + fmt::Debug {
    /// Flushes the content to the medium. After an error the content counts as lost: the system may have dropped it, and a
    /// second attempt would succeed without having written anything.
    ///
    /// # Errors
    /// Those of the disk.
    fn sync(&mut self) -> io::Result<()>;

    /// The size of the file.
    ///
    /// # Errors
    /// Those of the disk.
    fn bytes(&self) -> io::Result<u64>;
}

/// The content of a file that is being written, with its size so far.
#[derive(Debug)]
pub struct Counted<'a> {
    file: &'a mut dyn DiskFile,
    bytes: u64,
}

impl<'a> Counted<'a> {
    /// A new file.
    pub(super) fn new(file: &'a mut dyn DiskFile) -> Self {
        Self { file, bytes: 0 }
    }

    /// Flushes the content to the medium; returns its size.
    ///
    /// # Errors
    /// Those of the disk; the file has not the size that was written.
    pub(super) fn finish(self) -> io::Result<u64> {
        self.file.sync()?;
        match self.file.bytes()? {
            found if found == self.bytes => Ok(found),
            found => Err(io::Error::other(format!("the file has {found} bytes after {} were written", self.bytes))),
        }
    }
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

thread_local! {
    static REPLACEMENT: RefCell<Option<Rc<dyn Disk>>> = const { RefCell::new(None) };
}

/// The disk that this thread writes to: the system's, outside [`on`].
pub(super) fn current() -> Rc<dyn Disk> {
    REPLACEMENT.with_borrow(Clone::clone).unwrap_or_else(|| Rc::new(System))
}

/// Runs `work`, whose outputs, as far as this thread writes them, go to `disk`: for tests of faults.
pub fn on<T>(disk: Rc<dyn Disk>, work: impl FnOnce() -> T) -> T {
    /// Puts back the disk that was current before, also after a panic.
    struct Restore(Option<Rc<dyn Disk>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            REPLACEMENT.set(self.0.take());
        }
    }
    let _restore = Restore(REPLACEMENT.replace(Some(disk)));
    work()
}

/// The folder that `path` lies in.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Flushes the name of the file or folder `path` to the medium.
///
/// # Errors
/// Those of the disk.
pub fn sync_name(path: &Path) -> io::Result<()> {
    current().sync_folder(folder_of(path))
}

/// The file systems of the operating system.
#[derive(Debug)]
pub struct System;

impl Disk for System {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::create_new(path)?))
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_empty_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        #[cfg(unix)]
        match File::open(path).and_then(|folder| folder.sync_all()) {
            Err(error) if is_no_failure_of_the_disk(&error) => {}
            synced => synced?,
        }
        #[cfg(not(unix))]
        let _ = path;
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        path.symlink_metadata().is_ok()
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(folder)?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn read(&self, path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
        open::read(path, max_bytes)
    }
}

impl DiskFile for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

/// Whether a folder's names cannot be flushed although they were written: CIFS, 9p, vboxsf and some FUSE file systems
/// answer EINVAL or ENOTSUP, and a folder that is writable but not readable cannot be opened.
#[cfg(unix)]
fn is_no_failure_of_the_disk(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTSUP | libc::ENOSYS | libc::EACCES | libc::EPERM))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        System.sync_folder(Path::new("/proc")).expect("no failure");
        // Writable, not readable. (The superuser may read it all the same, and then this part shows nothing.)
        let folder = tempfile::tempdir().expect("a folder");
        let mode = |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode));
        mode(0o300).expect("changed");
        let written = crate::files::atomic::write_bytes(&folder.path().join("a"), b"x");
        mode(0o700).expect("changed");
        written.expect("written");
    }
}
