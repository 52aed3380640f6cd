//! Writing of folders that appear complete or not at all.

use std::path::{Path, PathBuf};

use super::temporary::{self, MadeFolders, Temporary};
use crate::error::{Error, Result};

/// A folder that is filled under a temporary name beside its final one. It is removed if it is dropped before it is
/// published.
#[derive(Debug)]
pub struct Staging {
    folder: Temporary<tempfile::TempDir>,
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
        let parent = parent(out);
        let parents = temporary::make_folders(&parent).map_err(|error| Error::write(&parent, &error))?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".burnish-").suffix(".part");
        // tempfile's own default is 0700; the finished folder gets what the umask leaves.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let folder = temporary::make(|| builder.tempdir_in(&parent), |folder| folder.path().to_owned());
        let folder = folder.map_err(|error| Error::write(&parent, &error))?;
        Ok(Self { folder, parents })
    }

    /// The temporary path of the folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Gives the folder its name.
    ///
    /// # Errors
    /// Input: something has come to lie at `out`. Failed: it cannot be renamed.
    pub fn publish(self, out: &Path) -> Result<()> {
        // Where it fails, the folder is dropped first.
        let Self { parents, folder } = self;
        folder.settle(|folder| {
            // Renaming onto an empty folder would succeed.
            if out.symlink_metadata().is_ok() {
                return Err(Error::input(out.display(), "exists already: it was made meanwhile"));
            }
            // The guard then finds nothing to remove.
            std::fs::rename(folder.path(), out).map_err(|error| Error::write(out, &error))
        })?;
        parents.keep();
        Ok(())
    }
}

impl Staging {
    /// Gives the files in the folder their names: each of `outs` has the name of one of them, in the folder beside which
    /// this one is.
    ///
    /// # Errors
    /// Input: something has come to lie at one of them. Failed: one cannot be renamed. Then none is there.
    pub fn publish_files(self, outs: &[PathBuf]) -> Result<()> {
        let Self { parents, folder } = self;
        folder.settle(|folder| {
            let mut renamed: Vec<&PathBuf> = Vec::new();
            for out in outs {
                let result = match out.symlink_metadata() {
                    Ok(_) => Err(Error::input(out.display(), "exists already: it was made meanwhile")),
                    Err(_) => std::fs::rename(folder.path().join(out.file_name().unwrap_or_default()), out)
                        .map_err(|error| Error::write(out, &error)),
                };
                if let Err(error) = result {
                    renamed.iter().for_each(|out| drop(std::fs::remove_file(out)));
                    return Err(error);
                }
                renamed.push(out);
            }
            Ok(())
        })?;
        parents.keep();
        Ok(())
    }
}

fn parent(out: &Path) -> PathBuf {
    match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
