//! Takes one file out of a zip archive (PKWARE APPNOTE 6.3, without zip64), streamed.
//!
//! Every `zip` crate switches on features of `memchr` and `indexmap` that make Burn compile again from the ground up;
//! a wheel needs no more than this of the format, and what comes out is held against a pinned checksum.

use std::io::{self, Read, Seek, SeekFrom};

use flate2::read::DeflateDecoder;

const END_BYTES: usize = 22;
const ENTRY_BYTES: usize = 46;
const LOCAL_BYTES: usize = 30;
/// An end record is followed by at most this much comment.
const MAX_COMMENT_BYTES: u64 = 65_535;
/// A larger directory belongs to no wheel.
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;

/// The content of `member`, decompressed while it is read.
///
/// # Errors
/// Not a zip archive, no such member, or a compression other than stored and deflated.
pub fn open_member<'a>(mut archive: impl Read + Seek + 'a, member: &str) -> io::Result<Box<dyn Read + 'a>> {
    let directory = read_directory(&mut archive)?;
    let entry = find(&directory, member)?.ok_or_else(|| invalid(format!("it holds no {member}")))?;
    archive.seek(SeekFrom::Start(entry.offset))?;
    let mut local = [0; LOCAL_BYTES];
    archive.read_exact(&mut local)?;
    if !local.starts_with(b"PK\x03\x04") {
        return Err(invalid(format!("{member} is not where the directory says")));
    }
    let skipped = i64::from(u16_at(&local, 26)?) + i64::from(u16_at(&local, 28)?);
    archive.seek(SeekFrom::Current(skipped))?;
    let content = archive.take(entry.compressed_bytes);
    match entry.method {
        0 => Ok(Box::new(content)),
        8 => Ok(Box::new(DeflateDecoder::new(io::BufReader::with_capacity(1 << 18, content)))),
        other => Err(invalid(format!("{member} is compressed by method {other}"))),
    }
}

struct Entry {
    method: u16,
    compressed_bytes: u64,
    offset: u64,
}

fn read_directory(archive: &mut (impl Read + Seek)) -> io::Result<Vec<u8>> {
    let bytes = archive.seek(SeekFrom::End(0))?;
    let tail_bytes = bytes.min(END_BYTES as u64 + MAX_COMMENT_BYTES);
    archive.seek(SeekFrom::Start(bytes - tail_bytes))?;
    let mut tail = Vec::new();
    archive.read_to_end(&mut tail)?;
    let end = tail.windows(END_BYTES).rposition(|window| window.starts_with(b"PK\x05\x06"));
    let end = tail.get(end.ok_or_else(|| invalid("it is not a zip archive"))?..).unwrap_or_default();
    let (directory_bytes, offset) = (u64::from(u32_at(end, 12)?), u64::from(u32_at(end, 16)?));
    if directory_bytes > MAX_DIRECTORY_BYTES {
        return Err(invalid("its directory is too large, or it is zip64"));
    }
    archive.seek(SeekFrom::Start(offset))?;
    let mut directory = Vec::new();
    archive.by_ref().take(directory_bytes).read_to_end(&mut directory)?;
    Ok(directory)
}

fn find(mut directory: &[u8], member: &str) -> io::Result<Option<Entry>> {
    while directory.starts_with(b"PK\x01\x02") {
        let name_bytes = usize::from(u16_at(directory, 28)?);
        let name = directory.get(ENTRY_BYTES..ENTRY_BYTES + name_bytes).ok_or_else(cut_off)?;
        if name == member.as_bytes() {
            return Ok(Some(Entry {
                method: u16_at(directory, 10)?,
                compressed_bytes: u64::from(u32_at(directory, 20)?),
                offset: u64::from(u32_at(directory, 42)?),
            }));
        }
        let entry_bytes =
            ENTRY_BYTES + name_bytes + usize::from(u16_at(directory, 30)?) + usize::from(u16_at(directory, 32)?);
        directory = directory.get(entry_bytes..).ok_or_else(cut_off)?;
    }
    Ok(None)
}

fn u16_at(bytes: &[u8], at: usize) -> io::Result<u16> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|bytes| u16::from_le_bytes(*bytes)).ok_or_else(cut_off)
}

fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|bytes| u32::from_le_bytes(*bytes)).ok_or_else(cut_off)
}

fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

fn cut_off() -> io::Error {
    invalid("it is cut off")
}
