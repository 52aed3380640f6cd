//! Writing of files that appear complete or not at all.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::disk::{self, Counted, folder_of};
use super::temporary::{self, Temporary, TemporaryFile};
use crate::error::{Error, Place, Result};

/// The receiver of a file's content.
pub type Writer<'a> = BufWriter<Counted<'a>>;

/// A file that is complete and flushed to the disk, under a temporary name beside its final one. It is removed if it is
/// dropped before it is published.
#[derive(Debug)]
pub struct Prepared {
    file: Temporary<TemporaryFile>,
    target: PathBuf,
}

/// Writes the content of `path` through `fill` into a temporary file beside it.
///
/// # Errors
/// Those of `fill`; Failed: the disk is full, the folder is not writable. The temporary file is gone then.
pub fn prepare(path: &Path, fill: impl FnOnce(&mut Writer<'_>) -> Result<()>) -> Result<Prepared> {
    let failed = |error: io::Error| Error::write(path, &error);
    let mut file = temporary::file_in(folder_of(path)).map_err(failed)?;
    let mut writer = BufWriter::with_capacity(1 << 20, Counted::new(file.open()));
    fill(&mut writer)?;
    writer.into_inner().map_err(|error| failed(error.into_error()))?.finish().map_err(failed)?;
    Ok(Prepared { file, target: path.to_owned() })
}

impl Prepared {
    /// Renames the file to its final name, which another file may have had, and flushes the name to the disk.
    ///
    /// # Errors
    /// Failed: the file cannot be renamed, and the target is as before; or the disk itself fails while the finished rename
    /// is flushed to it.
    pub fn publish(self) -> Result<()> {
        let Self { file, target } = self;
        let renamed = file.settle(|file| file.rename(&target));
        let published = renamed.and_then(|()| disk::sync_name(&target));
        published.map_err(|error| Error::write(&target, &error))
    }
}

/// Writes `path` through `fill`: into a temporary file beside it, flushed to the disk, then renamed over
/// `path`.
///
/// # Errors
/// Those of [`prepare`] and [`Prepared::publish`].
pub fn write(path: &Path, fill: impl FnOnce(&mut Writer<'_>) -> Result<()>) -> Result<()> {
    prepare(path, fill)?.publish()
}

/// Whether nothing is at `path` yet; `place` names the argument or setting that it comes from.
///
/// # Errors
/// Input: there is something.
pub fn check_new(place: impl Into<Place>, path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Ok(_) => Err(Error::input(place, format!("{} exists already", path.display())).hint("choose another name")),
        Err(_) => Ok(()),
    }
}

/// Writes `bytes` to `path` as [`write()`] does.
///
/// # Errors
/// Those of [`write()`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, all_of(path, bytes))
}

fn all_of(path: &Path, bytes: &[u8]) -> impl FnOnce(&mut Writer<'_>) -> Result<()> {
    |writer| writer.write_all(bytes).map_err(|error| Error::write(path, &error))
}

/// Publishes `content` with the file `path` that describes it, `description`, so that no description ever stands beside a
/// content that it does not describe.
///
/// If the description is already what it shall be, renaming the content replaces both in one step. Otherwise the old
/// description is removed, then the content is renamed and last the new description, each flushed to the disk before the
/// next. A loss of power in between leaves a content without a description.
///
/// # Errors
/// Those of [`prepare`] and [`Prepared::publish`].
pub fn publish_described(content: Prepared, path: &Path, description: &[u8]) -> Result<()> {
    let disk = disk::current();
    let failed = |error: io::Error| Error::write(path, &error);
    if disk.exists(path) && disk.read(path, description.len() as u64).is_ok_and(|old| old == description) {
        return content.publish();
    }
    let description = prepare(path, all_of(path, description))?;
    temporary::undisturbed(|| {
        if disk.exists(path) {
            disk.remove_file(path).map_err(failed)?;
        }
        // Also where none is there: an earlier removal may have failed half-way.
        disk::sync_name(path).map_err(failed)?;
        content.publish()?;
        description.publish()
    })
}

/// Makes a file that grows line by line and is of use unfinished: a log.
///
/// # Errors
/// There is something at `path`, or the file cannot be made.
pub fn create_new(path: &Path) -> io::Result<File> {
    File::create_new(path)
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
}
