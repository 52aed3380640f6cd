//! Data files packed with gzip or zstd, unpacked up to a limit.

use std::io::{self, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};

use super::MAX_JSON_BYTES;
use crate::error::{Error, Result};

/// The most bytes that a byte of a packed file may stand for, once a file unpacks to more than [`FREE_BYTES`]. Text packs to
/// a tenth of its size; a file made to fill the memory, to a thousandth and less.
const MAX_RATIO: u64 = 200;
/// The size up to which the ratio is not looked at.
const FREE_BYTES: u64 = 64 << 20;

/// `bytes` as they were before they were packed; unchanged where they begin like neither gzip nor zstd.
///
/// # Errors
/// Input: a damaged or cut file; one that unpacks to more than it is allowed to.
pub(super) fn unpacked(bytes: Vec<u8>, path: &Path) -> Result<Vec<u8>> {
    let limit = MAX_JSON_BYTES.min(FREE_BYTES.max(MAX_RATIO.saturating_mul(bytes.len() as u64)));
    let (kind, read) = if bytes.starts_with(b"\x1f\x8b") {
        ("gzip", read_up_to(MultiGzDecoder::new(&bytes[..]), limit))
    } else if is_zstd(&bytes) {
        ("zstd", read_up_to(Frames { left: &bytes, open: None }, limit))
    } else {
        return Ok(bytes);
    };
    match read {
        Ok(text) if text.len() as u64 > limit => {
            let message = format!("is packed with {kind} and unpacks to more than {limit} bytes");
            Err(Error::input(path, message).hint("unpack it first, or cut it into several files"))
        }
        Ok(text) => Ok(text),
        Err(error) => {
            let message = format!("is packed with {kind} and cannot be unpacked: {error}");
            Err(Error::input(path, message).hint("is it whole? a copy that was cut off ends too early").because(error))
        }
    }
}

fn read_up_to(packed: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    packed.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether `bytes` begin with a frame of zstd, or with one that its readers skip.
fn is_zstd(bytes: &[u8]) -> bool {
    matches!(bytes, [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// The content of the zstd frames of a file, one after the other.
struct Frames<'a> {
    left: &'a [u8],
    open: Option<StreamingDecoder<&'a [u8], ruzstd::decoding::FrameDecoder>>,
}

impl Read for Frames<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(frame) = &mut self.open {
                let count = frame.read(buffer)?;
                if count > 0 || buffer.is_empty() {
                    return Ok(count);
                }
                let (stated, found) = (frame.decoder.get_checksum_from_data(), frame.decoder.get_calculated_checksum());
                if stated.is_some() && stated != found {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a checksum does not match"));
                }
                self.left = frame.get_ref();
                self.open = None;
            }
            if self.left.is_empty() {
                return Ok(0);
            }
            match StreamingDecoder::new(self.left) {
                Ok(frame) => self.open = Some(frame),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    // The magic number and the length take four bytes each.
                    let rest = self.left.get(8 + length as usize..);
                    self.left = rest.ok_or(io::ErrorKind::UnexpectedEof)?;
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
    }
}
