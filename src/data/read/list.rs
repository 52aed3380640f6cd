//! A JSON list of objects, read one after the other: the whole list as JSON values would take many times the memory of
//! the file.

use super::jsonl::parse_object;
use super::rows::Receiver;
use crate::data::position::At;
use crate::error::Error;

/// Reads the text of a list, which begins with `[` after white space, into `rows`.
pub(super) fn parse(bytes: &[u8], rows: &mut impl Receiver) {
    let (mut at, mut line) = (0, 1);
    let skip = |at: &mut usize, line: &mut usize| {
        while let Some(space) = bytes.get(*at).filter(|byte| byte.is_ascii_whitespace()) {
            *line += usize::from(*space == b'\n');
            *at += 1;
        }
        bytes.get(*at).copied()
    };
    skip(&mut at, &mut line);
    at += 1;
    let mut closed = skip(&mut at, &mut line) == Some(b']');
    at += usize::from(closed);
    while !closed {
        let position = At::Line(line);
        let row = &bytes[at..at + value_length(&bytes[at..])];
        if !rows.is_too_long(position, row.len()) {
            match parse_object(row) {
                Ok(value) => rows.row(position, value, &[]),
                Err(error) => rows.bad(position, &error),
            }
        }
        line += row.iter().filter(|byte| **byte == b'\n').count();
        at += row.len();
        closed = match skip(&mut at, &mut line) {
            Some(b',') => false,
            Some(b']') => true,
            _ => {
                let error = Error::input("", "expected `,` or `]` after an item of the list");
                return rows.bad(At::Line(line), &error);
            }
        };
        at += 1;
        if !closed {
            skip(&mut at, &mut line);
        }
    }
    if skip(&mut at, &mut line).is_some() {
        rows.bad(At::Line(line), &Error::input("", "something follows the list"));
    }
}

/// The length of the JSON value at the start of `bytes`, by its brackets and quotes alone; whether it is valid is
/// found when it is parsed.
fn value_length(bytes: &[u8]) -> usize {
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' | b',' if depth == 0 => return at,
            b']' | b'}' => depth -= 1,
            _ => {}
        }
    }
    bytes.len()
}
