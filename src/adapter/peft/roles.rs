//! The roles of the tensors in an adapter's file, by their names.

use std::collections::BTreeMap;

use super::config::PeftConfig;
use super::header::and_more;
use super::{A_SUFFIX, B_SUFFIX, EMBEDDING_A_SUFFIX, EMBEDDING_B_SUFFIX, MAGNITUDE_SUFFIX, PREFIX, ROWS_SUFFIX};
use crate::error::Error;
use crate::files::RawTensor;
use crate::model::families;

/// The role of a tensor, by its name.
pub(super) enum Role<'a> {
    A(&'a str),
    B(&'a str),
    EmbeddingA(&'a str),
    EmbeddingB(&'a str),
    /// The magnitudes of DoRA.
    Magnitude(&'a str),
    /// PEFT stores the base's own matrix along with an adapter on the head.
    BaseCopy(&'a str),
    /// Rows of some tokens.
    Rows(&'a str),
    /// A bias or a weight, by the name in the base, and the reason why it has no use where it is not to be trained.
    Whole(String, &'static str),
    /// Of no use to plain LoRA; why.
    Refused(&'static str),
}

impl<'a> Role<'a> {
    pub fn of(name: &'a str) -> Self {
        let Some(path) = name.strip_prefix(PREFIX) else {
            return Self::Refused("not named as PEFT names a tensor (`base_model.model.<path>.lora_A.weight`)");
        };
        if let Some(module) = path.strip_suffix(A_SUFFIX) {
            return Self::A(module);
        }
        if let Some(module) = path.strip_suffix(B_SUFFIX) {
            return Self::B(module);
        }
        if let Some(module) = path.strip_suffix(EMBEDDING_A_SUFFIX).filter(|module| families::is_embedding(module)) {
            return Self::EmbeddingA(module);
        }
        if let Some(module) = path.strip_suffix(EMBEDDING_B_SUFFIX).filter(|module| families::is_embedding(module)) {
            return Self::EmbeddingB(module);
        }
        if let Some(module) = path.strip_suffix(MAGNITUDE_SUFFIX) {
            return Self::Magnitude(module);
        }
        if let Some(module) = path.strip_suffix(".base_layer.weight") {
            return Self::BaseCopy(module);
        }
        if let Some(module) = path.strip_suffix(ROWS_SUFFIX) {
            return Self::Rows(module);
        }
        if let Some(module) = path.strip_suffix(".bias").filter(|module| !module.contains(".lora_")) {
            let module = module.strip_suffix(".base_layer").unwrap_or(module);
            return Self::Whole(format!("{module}.bias"), "a trained bias, though the configuration trains none");
        }
        if path.ends_with(".weight") && !path.contains(".lora_") {
            return Self::Whole(path.to_owned(), "a wholly trained module that `modules_to_save` does not name");
        }
        let reason = REFUSED_NAMES.iter().find(|(part, _)| path.contains(part)).map(|(_, reason)| *reason);
        Self::Refused(reason.unwrap_or("neither half of a low-rank pair"))
    }

    /// The name of a tensor that is trained as a whole.
    pub fn whole(self, config: &PeftConfig) -> Option<String> {
        match self {
            Self::Whole(name, _) => config.trains_whole(&name).then_some(name),
            _ => None,
        }
    }
}

/// Whether `name` is that of an embedding or a head, in a larger model around the decoder as well. PEFT copies these of the
/// base when it is asked to, or when a vocabulary has grown.
fn is_embedding_or_head(name: &str) -> bool {
    let mut prefixes = families::stored_prefixes();
    let is_one = |name: &str| families::is_embedding_or_head(name);
    let is_within = |(stored, usual): &(&str, &str)| {
        name.strip_prefix(stored).is_some_and(|rest| is_one(&format!("{usual}{rest}")))
    };
    is_one(name) || prefixes.any(is_within)
}

/// Parts of names that tell what else PEFT can store.
const REFUSED_NAMES: [(&str, &str); 5] = [
    (".lora_magnitude_vector.", "a DoRA magnitude with more in its name than PEFT's file has (a raw state dictionary)"),
    (".lora_embedding_", "an adapter on an embedding that no supported architecture has"),
    (".lora_B.bias", "a bias of the low-rank pair, which cannot be applied"),
    (".lora_A.", "a half with an adapter's name inside (a raw state dictionary, not PEFT's file)"),
    (".lora_B.", "a half with an adapter's name inside (a raw state dictionary, not PEFT's file)"),
];

/// Tensors that plain LoRA has no use for, by what they are.
pub(super) fn refusals(
    place: &str,
    config: Option<&PeftConfig>,
    tensors: &BTreeMap<String, RawTensor>,
    is_copy: impl Fn(&str, &RawTensor) -> bool,
) -> Vec<Error> {
    let mut refused: BTreeMap<&'static str, Vec<&str>> = BTreeMap::new();
    for (name, tensor) in tensors {
        let reason = match Role::of(name) {
            Role::Refused(reason) => Some(reason),
            Role::Whole(name, reason) => (!config.is_none_or(|config| config.trains_whole(&name))).then_some(reason),
            _ => None,
        };
        if let Some(reason) = reason {
            let base_name = name.strip_prefix(PREFIX).filter(|name| is_embedding_or_head(name));
            if base_name.is_some_and(|base_name| is_copy(base_name, tensor)) {
                continue;
            }
            refused.entry(reason).or_default().push(name);
        }
    }
    let reported = refused.into_iter().filter_map(|(reason, names)| {
        let (first, rest) = names.split_first()?;
        Some(Error::input(format_args!("{place}: tensor {first}{}", and_more(rest.len())), reason))
    });
    reported.collect()
}
