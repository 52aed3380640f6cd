//! One file on its way from the hub to the cache: resumed where an earlier attempt stopped, verified, then renamed.

use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Agent, Body};

use super::hub::{Failure, Hub, RETRIES, header};
use super::{Event, Progress};
use crate::error::{Error, Result};
use crate::files::hex;
use crate::files::output::partial::PartialFile;

/// The hub's description of a file.
#[derive(Debug)]
pub(super) struct Remote {
    /// Names the content: the SHA-256 of a large file, git's blob id of a small one.
    pub(super) etag: String,
    /// The size, where the hub says it.
    pub(super) bytes: Option<u64>,
}

/// The kind of checksum that the etag is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Checksum {
    /// Of the content: files in large-file storage.
    Sha256,
    /// Git's blob id, the SHA-1 of `blob`, the size and the content: files in the repository itself.
    GitBlob,
    /// The etag is no checksum (of a mirror that makes its own).
    None,
}

impl Checksum {
    fn of(etag: &str) -> Self {
        match etag {
            etag if hex::is_hexadecimal(etag, 32) => Self::Sha256,
            etag if hex::is_hexadecimal(etag, 20) => Self::GitBlob,
            _ => Self::None,
        }
    }
}

/// The end of a response.
enum Received {
    /// The server said that this was all, or closed the connection in good order.
    Whole,
    /// The connection broke, for this reason.
    Broken(io::Error),
}

/// A file on its way to the cache.
pub(super) struct Download<'d> {
    pub(super) hub: &'d Hub,
    pub(super) agent: &'d Agent,
    pub(super) repo: &'d str,
    pub(super) commit: &'d str,
    pub(super) file: &'d str,
    pub(super) url: &'d str,
    pub(super) remote: &'d Remote,
}

impl Download<'_> {
    /// Fetches into `<blob>.incomplete`, going on where an earlier attempt stopped; verified, it becomes `blob`.
    ///
    /// # Errors
    /// Input: the hub refuses. Failed: the network, another content than the hub named, a full disk.
    pub(super) fn run(&self, blob: &Path, progress: Progress) -> Result<()> {
        let mut output = PartialFile::open(blob)?;
        let mut hash = Sha256::new();
        output.read_through(|bytes| hash.update(bytes))?;
        let mut stalled = 0;
        loop {
            if self.remote.bytes.is_some_and(|bytes| output.bytes() > bytes) {
                output.restart()?;
                hash = Sha256::new();
            }
            let before = output.bytes();
            progress(Event::Start { file: self.file, bytes_done: before, bytes_total: self.remote.bytes });
            if self.remote.bytes == Some(before) && before > 0 {
                break;
            }
            let mut response = self.hub.get(self.agent, self.url, before).map_err(Failure::error)?;
            let goes_on = match response.status() {
                StatusCode::PARTIAL_CONTENT => continues_at(response.headers(), before),
                StatusCode::OK => before == 0,
                StatusCode::RANGE_NOT_SATISFIABLE => false,
                _ => return Err(self.hub.refusal(self.repo, self.commit, &response)),
            };
            if !goes_on {
                output.restart()?;
                hash = Sha256::new();
                if response.status() != StatusCode::OK {
                    stalled += 1;
                    self.give_up_after(stalled, 0, "the hub does not continue a partial download")?;
                    continue;
                }
            }
            let received = self.receive(&mut response, &mut output, &mut hash, progress)?;
            let reason = match (received, self.remote.bytes) {
                (_, Some(bytes)) if output.bytes() == bytes => break,
                (Received::Whole, None) => break,
                (Received::Whole, Some(_)) => "the hub sends less than it announced".to_owned(),
                (Received::Broken(error), _) => error.to_string(),
            };
            stalled = if output.bytes() > before { 0 } else { stalled + 1 };
            self.give_up_after(stalled, output.bytes(), &reason)?;
        }
        let found = match Checksum::of(&self.remote.etag) {
            Checksum::Sha256 => Some(("sha256", hex::encode(&hash.finalize()))),
            Checksum::GitBlob => Some(("git blob", git_blob_id(&mut output)?)),
            Checksum::None => None,
        };
        if let Some((name, found)) = found.filter(|(_, found)| !found.eq_ignore_ascii_case(&self.remote.etag)) {
            // No later attempt must go on from a content that is not the hub's.
            output.discard();
            let message =
                format!("the download of {} is corrupt: {name} {found}, expected {}", self.file, self.remote.etag);
            return Err(Error::failed(format!("hf:{}", self.repo), message).hint("try again"));
        }
        output.publish()?;
        progress(Event::Finish);
        Ok(())
    }

    /// Appends the content of the response to `output`. Errors are the disk's.
    fn receive(
        &self,
        response: &mut Response<Body>,
        output: &mut PartialFile,
        hash: &mut Sha256,
        progress: Progress,
    ) -> Result<Received> {
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            let count = match body.read(&mut buffer) {
                Ok(0) => return Ok(Received::Whole),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Received::Broken(error)),
            };
            let chunk = buffer.get(..count).unwrap_or_default();
            output.append(chunk)?;
            hash.update(chunk);
            progress(Event::Advance { bytes: count as u64 });
        }
    }

    fn give_up_after(&self, stalled: u32, done: u64, reason: &str) -> Result<()> {
        if stalled <= RETRIES {
            return Ok(());
        }
        let expected = self.remote.bytes.map_or(String::new(), |bytes| format!(" of {bytes}"));
        let message = format!("the download of {} stops at byte {done}{expected}: {reason}", self.file);
        Err(Error::failed(format!("hf:{}", self.repo), message)
            .hint("run the command again: the download continues at that byte"))
    }
}

/// Git's id of the file as a blob (gitformat-object: `blob`, a space, the size in decimal, a zero byte, the content).
fn git_blob_id(file: &mut PartialFile) -> Result<String> {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", file.bytes()));
    file.read_through(|bytes| hash.update(bytes))?;
    Ok(hex::encode(&hash.finalize()))
}

/// Whether a partial response starts at byte `start`.
fn continues_at(headers: &HeaderMap, start: u64) -> bool {
    let range = header(headers, "Content-Range").and_then(|range| range.strip_prefix("bytes "));
    range.and_then(|range| range.split('-').next()?.parse().ok()) == Some(start)
}
