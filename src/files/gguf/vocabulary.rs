//! Checks of the vocabulary that a GGUF file carries.

use std::collections::BTreeMap;

use super::value::Value;
use crate::error::{Error, Result};

/// Checks that the vocabulary's arrays agree: as many scores and types as tokens, no empty token, byte tokens that
/// name a byte.
///
/// # Errors
/// Input: the arrays contradict each other.
pub(super) fn check(place: &str, metadata: &BTreeMap<String, Value>) -> Result<()> {
    const BYTE_TOKEN: i64 = 6;
    let Some(value) = metadata.get("tokenizer.ggml.tokens") else { return Ok(()) };
    let Some(tokens) = value.as_strings() else {
        return Err(Error::input(place, "`tokenizer.ggml.tokens` is not an array of strings"));
    };
    for key in ["tokenizer.ggml.scores", "tokenizer.ggml.token_type"] {
        let length = match metadata.get(key) {
            None => continue,
            Some(Value::Array(array)) => array.len(),
            Some(other) => {
                return Err(Error::input(
                    place,
                    format!("`{key}` is of type {}; expected an array", other.type_name()),
                ));
            }
        };
        if length != tokens.len() {
            let message = format!("`{key}` has {length} items for {} tokens", tokens.len());
            return Err(Error::input(place, message));
        }
    }
    if let Some(index) = tokens.iter().position(String::is_empty) {
        return Err(Error::input(place, format!("token {index} is empty")));
    }
    let types = metadata.get("tokenizer.ggml.token_type").and_then(Value::as_integers).unwrap_or_default();
    for (index, (token, kind)) in tokens.iter().zip(types).enumerate() {
        if kind == BYTE_TOKEN && byte_of_token(token).is_none() {
            let message = format!("token {index} is a byte token named {token:?}; expected <0x00> to <0xFF>");
            return Err(Error::input(place, message));
        }
    }
    Ok(())
}

/// The byte that a token such as `<0x0A>` stands for; `None` for any other token.
pub fn byte_of_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}
