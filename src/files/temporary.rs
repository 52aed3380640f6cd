//! Temporary files and folders: gone when their guard is dropped, and also where a signal ends the process.
//!
//! A signal comes while another thread writes. Whatever makes, renames or forgets something temporary therefore holds
//! one lock, which [`remove_all`] takes and never gives back: after it nothing appears any more.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

static LIVE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn live() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Known to [`remove_all`] as long as it lives. Whoever made the path still removes it.
#[derive(Debug)]
pub struct Tracked(PathBuf);

/// Makes a temporary file or folder, known from its first moment.
///
/// # Errors
/// What `make` says.
pub fn make<T>(make: impl FnOnce() -> io::Result<T>, path_of: impl FnOnce(&T) -> PathBuf) -> io::Result<(T, Tracked)> {
    let mut live = live();
    let made = make()?;
    let path = path_of(&made);
    live.insert(path.clone());
    Ok((made, Tracked(path)))
}

/// Does something that a signal must not interrupt: renames that belong together.
pub fn undisturbed<T>(work: impl FnOnce() -> T) -> T {
    let _live = live();
    work()
}

impl Tracked {
    /// Gives the path its final name by `rename`, and forgets it.
    pub fn settle<T>(self, rename: impl FnOnce() -> T) -> T {
        let mut live = live();
        let renamed = rename();
        live.remove(&self.0);
        // `drop` would take the lock again.
        std::mem::forget(self);
        renamed
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        live().remove(&self.0);
    }
}

/// Removes everything that is tracked: for the moment before the process ends. Threads that want to make or rename
/// something wait from now on.
pub fn remove_all() {
    /// A thread may still be closing a file that it has begun in a folder.
    const TRIES: usize = 100;
    let live = live();
    // What lies in another comes before it.
    for path in live.iter().rev() {
        for _ in 0..TRIES {
            // What cannot be removed cannot be helped: there is no one left to tell.
            let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
            if path.symlink_metadata().is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    std::mem::forget(live);
}
