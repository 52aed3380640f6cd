//! Hexadecimal text, and the checksums that are written in it.

use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::open;
use crate::error::{Error, Result};

/// `bytes` in lower-case hexadecimal, two digits a byte.
pub fn encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Whether `text` is `bytes` bytes in hexadecimal, in either case.
pub fn is_hexadecimal(text: &str, bytes: usize) -> bool {
    text.len() == 2 * bytes && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The SHA-256 of all that `input` still holds, in hexadecimal.
///
/// # Errors
/// Those of `input`.
pub fn sha256(mut input: impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(encode(&hash.finalize())),
            count => hash.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}

/// The SHA-256 of `bytes`, in hexadecimal.
pub fn sha256_of(bytes: &[u8]) -> String {
    encode(&Sha256::digest(bytes))
}

/// The SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// Input: it is not a file, or cannot be read.
pub fn sha256_of_file(path: &Path) -> Result<String> {
    sha256(open::regular(path)?).map_err(|error| Error::read(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_two_digits_each() {
        assert_eq!(encode(&[0, 0x0f, 0xa0, 0xff]), "000fa0ff");
        assert!(is_hexadecimal("000fA0ff", 4) && !is_hexadecimal("000fa0f", 4) && !is_hexadecimal("000fa0fg", 4));
    }

    #[test]
    fn checksums_are_those_of_the_standard() {
        // FIPS 180-4, example of one block.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&b"abc"[..]).expect("read"), expected);
    }
}
