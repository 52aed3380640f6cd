//! Trained rows of some tokens: PEFT's `trainable_token_indices`.
//!
//! Facts from PEFT 0.21 (`utils/other.py` `set_additional_trainable_modules`, `tuners/trainable_tokens/layer.py`): the file has the rows
//! themselves, and a head that is tied to the embedding has no rows of its own.

use std::collections::BTreeMap;

use super::config::PeftConfig;
use super::header::{float, matrix};
use crate::error::Error;
use crate::files::RawTensor;
use crate::model::families;

/// The tokens of a module's rows.
fn ids_of<'a>(config: &'a PeftConfig, module: &str) -> Option<&'a [u32]> {
    let is_of = |end: &Option<String>| match end {
        Some(end) => module.ends_with(end.as_str()),
        None => families::is_embedding(module),
    };
    config.tokens.iter().find(|(end, _)| is_of(end)).map(|(_, ids)| ids.as_slice())
}

/// Every problem with the rows in a file.
pub(super) fn check(place: &str, config: &PeftConfig, rows: &BTreeMap<String, RawTensor>) -> Vec<Error> {
    let mut errors = Vec::new();
    for (module, tensor) in rows {
        let place = format!("{place}: module {module}");
        errors.extend(float(&place, "trainable_tokens_delta", tensor).err());
        let Some(ids) = ids_of(config, module) else {
            let message = "has rows of tokens, which `trainable_token_indices` does not name";
            errors.push(Error::input(place, message));
            continue;
        };
        match matrix(&place, "trainable_tokens_delta", tensor) {
            Err(error) => errors.push(error),
            Ok([found, _]) if found != ids.len() => {
                let message = format!("has {found} rows of tokens; `trainable_token_indices` names {}", ids.len());
                errors.push(Error::input(place, message));
            }
            Ok(_) => {}
        }
    }
    if let (Some((_, ids)), true) = (config.tokens.first(), rows.is_empty()) {
        let message = format!("has no rows for the {} tokens of `trainable_token_indices`", ids.len());
        errors.push(Error::input(place, message));
    }
    if config.tokens.windows(2).any(|pair| pair[0].1 != pair[1].1) {
        let message = "`trainable_token_indices` has different tokens for different modules, which cannot be applied";
        errors.push(Error::input(place, message));
    }
    errors
}
