//! Temporary files and folders: gone when their guard is dropped, and also where a signal ends the process.
//!
//! A signal comes while another thread writes. One lock is therefore held while something temporary is made, renamed or
//! forgotten. [`remove_all`] takes that lock and never gives it back: after it nothing appears any more.

use std::collections::BTreeMap;
use std::io;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::disk::{self, DiskFile};

static LIVE: Mutex<BTreeMap<PathBuf, Removal>> = Mutex::new(BTreeMap::new());
/// Held during [`undisturbed`] work; taken before [`LIVE`].
static UNDISTURBED: Mutex<()> = Mutex::new(());

/// The part of a tracked path that [`remove_all`] removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Removal {
    /// Everything.
    Whole,
    /// The folder, only if it is empty.
    IfEmpty,
}

fn live() -> MutexGuard<'static, BTreeMap<PathBuf, Removal>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn undisturbed_lock() -> MutexGuard<'static, ()> {
    UNDISTURBED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A path that [`remove_all`] knows of as long as this lives. The owner of the path still removes it.
#[derive(Debug)]
pub struct Tracked(PathBuf);

/// A temporary file or folder with its tracking. Dropped, it is removed first and forgotten afterwards, so that a signal
/// at any moment leaves nothing.
#[derive(Debug)]
pub struct Temporary<T> {
    // Fields are dropped in this order.
    made: T,
    tracked: Tracked,
}

/// Makes a temporary file or folder, tracked from its first moment.
///
/// # Errors
/// Those of `make`.
pub fn make<T>(make: impl FnOnce() -> io::Result<T>, path_of: impl FnOnce(&T) -> PathBuf) -> io::Result<Temporary<T>> {
    let mut live = live();
    let made = make()?;
    let path = path_of(&made);
    live.insert(path.clone(), Removal::Whole);
    Ok(Temporary { made, tracked: Tracked(path) })
}

impl<T> Temporary<T> {
    /// Gives the file or folder its final name by `rename`, and forgets it.
    pub fn settle<R>(self, rename: impl FnOnce(T) -> R) -> R {
        let Self { made, tracked } = self;
        tracked.settle(|| rename(made))
    }

    /// The file or folder and its tracking, to be dropped in this order.
    pub fn into_parts(self) -> (T, Tracked) {
        (self.made, self.tracked)
    }
}

impl<T> Deref for Temporary<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.made
    }
}

impl<T> DerefMut for Temporary<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.made
    }
}

/// Runs `work`, which a signal does not interrupt: renames that belong together.
pub fn undisturbed<T>(work: impl FnOnce() -> T) -> T {
    let _undisturbed = undisturbed_lock();
    work()
}

/// Makes something under a name in `folder` that is not taken, tracked from its first moment: `.burnish-`, the id of the
/// process, a number, and `.part`.
fn make_named<T>(
    folder: &Path,
    make_at: impl Fn(PathBuf) -> io::Result<T>,
    path_of: impl FnOnce(&T) -> PathBuf,
) -> io::Result<Temporary<T>> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let made = || loop {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        match make_at(folder.join(format!(".burnish-{}-{number}.part", std::process::id()))) {
            // A process that had the same id was killed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made,
        }
    };
    make(made, path_of)
}

/// Removes from `folder` what processes that were killed have left under temporary names. No other process works there.
///
/// # Errors
/// The folder cannot be listed. Something that cannot be removed stays.
pub fn remove_leftovers(folder: &Path) -> io::Result<()> {
    let disk = disk::current();
    for name in disk.names(folder)?.iter().filter(|name| name.starts_with(".burnish-") && name.ends_with(".part")) {
        let path = folder.join(name);
        let _ = disk.remove_file(&path).or_else(|_| disk.remove_folder(&path));
    }
    Ok(())
}

/// A file under a temporary name. It is removed if it is dropped before it is renamed.
#[derive(Debug)]
pub struct TemporaryFile {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    is_renamed: bool,
}

/// Makes a temporary file in `folder`.
///
/// # Errors
/// Those of the disk.
pub fn file_in(folder: &Path) -> io::Result<Temporary<TemporaryFile>> {
    let make_at = |path: PathBuf| Ok(TemporaryFile { file: disk::current().create(&path)?, path, is_renamed: false });
    make_named(folder, make_at, |file| file.path.clone())
}

impl TemporaryFile {
    /// The file, open for writing.
    pub fn open(&mut self) -> &mut dyn DiskFile {
        &mut *self.file
    }

    /// Gives the file its final name.
    ///
    /// # Errors
    /// Those of the disk; the file is removed then.
    pub fn rename(mut self, to: &Path) -> io::Result<()> {
        disk::current().rename(&self.path, to)?;
        self.is_renamed = true;
        Ok(())
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if !self.is_renamed {
            // The next writer takes another name, so a failure does no harm.
            let _ = disk::current().remove_file(&self.path);
        }
    }
}

/// A folder under a temporary name. It is removed with its content if it is dropped before it is renamed.
#[derive(Debug)]
pub struct TemporaryFolder {
    path: PathBuf,
    is_renamed: bool,
}

/// Makes a temporary folder in `folder`.
///
/// # Errors
/// Those of the disk.
pub fn folder_in(folder: &Path) -> io::Result<Temporary<TemporaryFolder>> {
    make_named(folder, TemporaryFolder::at, |folder| folder.path.clone())
}

/// Makes the temporary folder `path`.
///
/// # Errors
/// Those of the disk; there is something at `path`.
pub fn folder_at(path: PathBuf) -> io::Result<Temporary<TemporaryFolder>> {
    make(|| TemporaryFolder::at(path), |folder| folder.path.clone())
}

impl TemporaryFolder {
    fn at(path: PathBuf) -> io::Result<Self> {
        disk::current().create_folder(&path)?;
        Ok(Self { path, is_renamed: false })
    }

    /// The temporary path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the folder its final name.
    ///
    /// # Errors
    /// Those of the disk; the folder is removed then.
    pub fn rename(mut self, to: &Path) -> io::Result<()> {
        disk::current().rename(&self.path, to)?;
        self.is_renamed = true;
        Ok(())
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if !self.is_renamed {
            // The next writer takes another name, so a failure does no harm.
            let _ = disk::current().remove_folder(&self.path);
        }
    }
}

impl Tracked {
    /// Gives the path its final name by `rename`, and forgets it.
    pub fn settle<T>(mut self, rename: impl FnOnce() -> T) -> T {
        let mut live = live();
        let renamed = rename();
        live.remove(&std::mem::take(&mut self.0));
        // `drop` would take the lock again. An empty path has nothing to free.
        std::mem::forget(self);
        renamed
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        live().remove(&self.0);
    }
}

/// Folders that were made for something to lie in. Dropped before they are kept, they are gone again, unless something
/// lies in them.
#[derive(Debug)]
pub struct MadeFolders(Vec<PathBuf>);

/// Makes the folder `path` and those above it, as far as they are missing, and flushes their names to the disk.
///
/// # Errors
/// One of them cannot be made; then none is left.
pub fn make_folders(path: &Path) -> io::Result<MadeFolders> {
    let disk = disk::current();
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !disk.exists(folder);
    // Innermost first, which is the order they are removed in. Before the lock, so that it is dropped after it.
    let made = MadeFolders(path.ancestors().take_while(is_missing).map(Path::to_owned).collect());
    let mut live = live();
    live.extend(made.0.iter().map(|folder| (folder.clone(), Removal::IfEmpty)));
    for folder in made.0.iter().rev() {
        match disk.create_folder(folder) {
            // Another process needs the same folder.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        disk::sync_name(folder)?;
    }
    Ok(made)
}

impl MadeFolders {
    /// Keeps the folders.
    pub fn keep(mut self) {
        let mut live = live();
        for folder in std::mem::take(&mut self.0) {
            live.remove(&folder);
        }
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        let mut live = live();
        for folder in &self.0 {
            live.remove(folder);
            // A folder that is not empty stays: others use it.
            let _ = disk::current().remove_empty_folder(folder);
        }
    }
}

/// Removes everything that is tracked: for the moment before the process ends. Threads that want to make or rename
/// something wait from now on.
pub fn remove_all() {
    /// Another thread may still be closing a file that it has begun in a folder.
    const TRIES: usize = 100;
    let undisturbed = undisturbed_lock();
    let live = live();
    let of_kind = |kind| live.iter().rev().filter(move |entry| *entry.1 == kind).map(|entry| entry.0);
    // In reverse order, a file comes before the folder that it lies in.
    for path in of_kind(Removal::Whole) {
        for _ in 0..TRIES {
            // The process ends: a failure to remove has nowhere to be reported.
            let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
            if path.symlink_metadata().is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    for folder in of_kind(Removal::IfEmpty) {
        let _ = std::fs::remove_dir(folder);
    }
    std::mem::forget((live, undisturbed));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_file_is_removed_before_it_is_forgotten() {
        /// Notes, when it is dropped, whether the path is still tracked.
        struct Probe<'a>(&'a Path, &'a mut Option<bool>);
        impl Drop for Probe<'_> {
            fn drop(&mut self) {
                *self.1 = Some(live().contains_key(self.0));
            }
        }
        let path = Path::new("a-path-of-this-test");
        let mut was_tracked = None;
        drop(make(|| Ok(Probe(path, &mut was_tracked)), |_| path.to_owned()).expect("made"));
        assert_eq!(was_tracked, Some(true));
        assert!(!live().contains_key(path));
    }
}
