//! Writing a file so that it is either there whole or not there at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::temporary;
use crate::error::{Error, Result};

/// Writes `path` through `fill`: into a temporary file beside it, flushed to the disk, then renamed over
/// `path`. On any error, the one of `fill` included, the temporary file is gone and `path` is as before.
pub fn write(path: &Path, fill: impl FnOnce(&mut BufWriter<&File>) -> Result<()>) -> Result<()> {
    let failed = |error: std::io::Error| Error::write(path, &error);
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".burnish-").suffix(".part");
    // tempfile's own default is 0600; the finished file gets what the umask leaves.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let (temporary, tracked) =
        temporary::make(|| builder.tempfile_in(folder), |file| file.path().to_owned()).map_err(failed)?;
    let mut writer = BufWriter::with_capacity(1 << 20, temporary.as_file());
    fill(&mut writer)?;
    writer.flush().map_err(failed)?;
    drop(writer);
    temporary.as_file().sync_all().map_err(failed)?;
    tracked.settle(|| temporary.persist(path)).map_err(|error| failed(error.error))?;
    // The rename itself reaches the disk with the folder.
    #[cfg(unix)]
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok(())
}

/// [`write`] for bytes already at hand.
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
}
