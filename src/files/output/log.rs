//! A file that grows line by line and is of use unfinished.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A log. A line that cannot be written waits in memory for the next attempt: a full disk ends no work.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    /// Bytes that lie in the file for certain.
    written: u64,
    pending: Vec<u8>,
}

impl Log {
    /// Makes the file.
    ///
    /// # Errors
    /// There is something at `path`, or the file cannot be made.
    pub fn create_new(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Self { path: path.to_owned(), file, written: 0, pending: Vec::new() })
    }

    /// Opens the file of an earlier process, or makes it, and goes on after `content`: whatever else is in it is cut off.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn after(path: &Path, content: &[u8]) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut log = Self { path: path.to_owned(), file, written: 0, pending: Vec::new() };
        let mut found = vec![0; content.len()];
        if log.file.read_exact(&mut found).is_ok() && found == content {
            log.written = content.len() as u64;
        } else {
            log.pending = content.to_vec();
        }
        log.flush()?;
        Ok(log)
    }

    /// Opens the file of an earlier process, or makes it, and goes on at its end.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn at_end(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let written = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, written, pending: Vec::new() })
    }

    /// Adds a line; says whether this line and all before it lie in the file now.
    ///
    /// # Errors
    /// Those of the disk. The line is not lost: the next call writes it too.
    pub fn add(&mut self, line: &str) -> io::Result<()> {
        self.pending.extend_from_slice(line.as_bytes());
        self.pending.push(b'\n');
        self.flush()
    }

    /// Writes the lines that wait.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn flush(&mut self) -> io::Result<()> {
        // A write that failed half-way has left something behind.
        if self.file.metadata()?.len() != self.written {
            self.file.set_len(self.written)?;
        }
        self.file.seek(SeekFrom::Start(self.written))?;
        self.file.write_all(&self.pending)?;
        let end = self.written + self.pending.len() as u64;
        let found = self.file.metadata()?.len();
        if found != end {
            return Err(io::Error::other(format!("the file has {found} bytes after {end} were written")));
        }
        self.written = end;
        self.pending.clear();
        Ok(())
    }

    /// Writes the lines that wait, and flushes the file to the medium.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file.sync_all()
    }

    /// Every line so far, those that wait included.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn content(&mut self) -> io::Result<Vec<u8>> {
        let mut content = vec![0; usize::try_from(self.written).map_err(io::Error::other)?];
        self.file.rewind()?;
        self.file.read_exact(&mut content)?;
        content.extend_from_slice(&self.pending);
        Ok(content)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_goes_on_where_it_is_told_to() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let mut log = Log::create_new(&path).expect("made");
        ["one", "two", "three"].iter().for_each(|line| log.add(line).expect("written"));
        assert_eq!(log.content().expect("read"), b"one\ntwo\nthree\n");
        assert!(Log::create_new(&path).is_err());
        for (content, expected) in [("one\n", "one\nend\n"), ("other, and longer\n", "other, and longer\nend\n")] {
            let mut log = Log::after(&path, content.as_bytes()).expect("opened");
            log.add("end").expect("written");
            assert_eq!(std::fs::read_to_string(&path).expect("read"), expected);
        }
        Log::at_end(&path).expect("opened").add("more").expect("written");
        assert!(std::fs::read_to_string(&path).expect("read").ends_with("end\nmore\n"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_line_that_finds_no_room_waits() {
        let full = File::options().read(true).write(true).open("/dev/full").expect("/dev/full");
        let mut log = Log { path: "/dev/full".into(), file: full, written: 0, pending: Vec::new() };
        assert!(log.add("one").is_err() && log.add("two").is_err());
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        log.file = File::options().read(true).write(true).create_new(true).open(&path).expect("made");
        log.add("three").expect("written");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "one\ntwo\nthree\n");
    }
}
