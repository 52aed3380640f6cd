//! Files that are no text, or not in UTF-8: what they are, by their first bytes.

use crate::error::{Error, Result};

/// The beginning of files of other kinds, what they are, and what to do with them.
const KINDS: [(&[u8], &str, &str); 8] = [
    (b"\x1f\x8b", "is packed with gzip; expected text", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is packed with zstd; expected text", "unpack it first"),
    (b"BZh", "is packed with bzip2; expected text", "unpack it first"),
    (
        b"PK\x03\x04",
        "is packed with zip (as an Excel workbook is); expected text",
        "unpack it, or save the workbook as CSV in UTF-8",
    ),
    (b"PAR1", "is a Parquet file", "its name must end with .parquet"),
    (b"ARROW1", "is an Arrow file", "save it as Parquet or JSONL; datasets: `to_parquet` or `to_json`"),
    (b"GGUF", "is a GGUF model; expected training examples", "a model is named by `base.model` or `--base`"),
    (b"\xd0\xcf\x11\xe0", "is an old Office document; expected text", "save it as CSV in UTF-8"),
];

/// The length of the beginning of a file in which a zero byte shows that it is no text.
const LOOKED_AT_BYTES: usize = 4096;

/// Takes off the byte-order mark of UTF-8 and refuses what is no text in UTF-8. `name` stands in messages.
///
/// # Errors
/// Input: another kind of file; the line of the first byte that is not UTF-8.
pub(super) fn text<'a>(bytes: &'a [u8], name: &str) -> Result<&'a [u8]> {
    if let Some((_, message, hint)) = KINDS.iter().find(|(magic, ..)| bytes.starts_with(magic)) {
        return Err(Error::input(name, *message).hint(*hint));
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(Error::input(name, "is UTF-16; expected UTF-8").hint("save it again as UTF-8"));
    }
    if bytes[..bytes.len().min(LOOKED_AT_BYTES)].contains(&0) {
        return Err(Error::input(name, "is a binary file; expected text")
            .hint("data files are .jsonl, .json, .csv or .parquet"));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if let Err(error) = str::from_utf8(bytes) {
        let before = &bytes[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        let found = bytes[error.valid_up_to()];
        return Err(Error::input(format!("{name}:{line}"), format!("is not UTF-8 text: found the byte 0x{found:02x}"))
            .hint("save it again as UTF-8; `iconv -f latin1 -t utf-8` converts a Latin-1 file"));
    }
    Ok(bytes)
}
