//! Writing of folders that appear complete or not at all.

use std::path::{Path, PathBuf};

use super::disk::{self, folder_of};
use super::temporary::{self, MadeFolders, Temporary, TemporaryFolder};
use crate::error::{Error, Result};

/// A folder that is filled under a temporary name beside its final one. It is removed if it is dropped before it is
/// published.
#[derive(Debug)]
pub struct Staging {
    folder: Temporary<TemporaryFolder>,
    /// The parent folders made for it, dropped after it.
    parents: MadeFolders,
}

impl Staging {
    /// Checks that `out` is free.
    ///
    /// # Errors
    /// Input: something lies there.
    pub fn check_free(out: &Path) -> Result<()> {
        if out.file_name().is_none() {
            return Err(Error::input(format_args!("`{}`", out.display()), "does not name a folder to write"));
        }
        // An error now comes before the weights are read.
        let above = out.ancestors().skip(1).find(|above| above.symlink_metadata().is_ok());
        if let Some(above) = above.filter(|above| !above.is_dir()) {
            return Err(Error::input(
                above.display(),
                format!("is not a folder, so {} cannot be in it", out.display()),
            ));
        }
        match out.symlink_metadata() {
            Ok(_) => Err(Error::input(out.display(), "exists already").hint("give a name that does not exist")),
            Err(_) => Ok(()),
        }
    }

    /// A new folder in the folder that `out` shall lie in.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn beside(out: &Path) -> Result<Self> {
        let parent = folder_of(out);
        let failed = |error: std::io::Error| Error::write(parent, &error);
        let parents = temporary::make_folders(parent).map_err(failed)?;
        let folder = temporary::folder_in(parent).map_err(failed)?;
        Ok(Self { folder, parents })
    }

    /// The temporary path of the folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Gives the folder its name, which is flushed to the disk with the names of everything in it.
    ///
    /// # Errors
    /// Input: something has come to lie at `out`. Failed: it cannot be renamed.
    pub fn publish(self, out: &Path) -> Result<()> {
        let disk = disk::current();
        // Where it fails, the folder is dropped first.
        let Self { parents, folder } = self;
        disk.sync_folder(folder.path()).map_err(|error| Error::write(folder.path(), &error))?;
        folder.settle(|folder| {
            // Renaming onto an empty folder would succeed.
            if disk.exists(out) {
                return Err(Error::input(out.display(), "exists already: it was made meanwhile"));
            }
            folder.rename(out).map_err(|error| Error::write(out, &error))
        })?;
        parents.keep();
        disk::sync_name(out).map_err(|error| Error::write(out, &error))
    }

    /// Gives the files in the folder their names: each of `outs` has the name of one of them, and lies in the folder beside
    /// which this one is.
    ///
    /// # Errors
    /// Input: something has come to lie at one of them. Failed: one cannot be renamed. Then none is there.
    pub fn publish_files(self, outs: &[PathBuf]) -> Result<()> {
        let disk = disk::current();
        let Self { parents, folder } = self;
        folder.settle(|folder| {
            for (index, out) in outs.iter().enumerate() {
                let from = folder.path().join(out.file_name().unwrap_or_default());
                let renamed = match disk.exists(out) {
                    true => Err(Error::input(out.display(), "exists already: it was made meanwhile")),
                    false => disk.rename(&from, out).map_err(|error| Error::write(out, &error)),
                };
                if let Err(error) = renamed {
                    // The first error is the one to report.
                    outs.iter().take(index).for_each(|out| drop(disk.remove_file(out)));
                    return Err(error);
                }
            }
            Ok(())
        })?;
        parents.keep();
        let first = outs.first().map_or(Path::new("."), PathBuf::as_path);
        disk.sync_folder(folder_of(first)).map_err(|error| Error::write(first, &error))
    }
}
