//! The licence of a base, where its own files name it, as the hub's metadata has it.

use std::collections::BTreeMap;

use crate::files::gguf::Value;
use crate::files::open;
use crate::model::BaseFiles;

/// The largest card of a base that is read.
const MAX_CARD_BYTES: u64 = 1 << 20;
/// The identifiers of the hub that models carry; another would make the hub refuse the card.
const KNOWN: [&str; 26] = [
    "afl-3.0",
    "apache-2.0",
    "artistic-2.0",
    "bigcode-openrail-m",
    "bigscience-bloom-rail-1.0",
    "bigscience-openrail-m",
    "bsd-3-clause",
    "bsl-1.0",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-sa-4.0",
    "cc0-1.0",
    "creativeml-openrail-m",
    "gemma",
    "gpl-3.0",
    "lgpl-3.0",
    "llama2",
    "llama3",
    "llama3.1",
    "llama3.2",
    "llama3.3",
    "llama4",
    "mit",
    "openrail",
];

/// `license`, and beside `other` its name and link, by their keys; empty where the base names none that the hub knows.
pub(super) fn of_base(base: &BaseFiles) -> BTreeMap<&'static str, String> {
    let found = match base.gguf() {
        Some(gguf) => in_gguf(|key| match gguf.get(key) {
            Some(Value::String(text)) => Some(text.clone()),
            _ => None,
        }),
        None => {
            let card = open::read(&base.path().join("README.md"), MAX_CARD_BYTES).unwrap_or_default();
            in_card(&String::from_utf8_lossy(&card))
        }
    };
    known(found)
}

fn in_gguf(get: impl Fn(&str) -> Option<String>) -> BTreeMap<&'static str, String> {
    let keys = [
        ("license", "general.license"),
        ("license_name", "general.license.name"),
        ("license_link", "general.license.link"),
    ];
    keys.into_iter().filter_map(|(key, gguf)| Some((key, get(gguf)?))).collect()
}

/// The plain values of the keys in the block at the top of a card.
fn in_card(card: &str) -> BTreeMap<&'static str, String> {
    let block = card.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---")).map_or("", |(block, _)| block);
    let pairs = block.lines().filter_map(|line| line.split_once(':'));
    let keys = ["license", "license_name", "license_link"];
    let found = pairs.filter_map(|(key, value)| {
        let key = keys.into_iter().find(|known| *known == key)?;
        Some((key, value.trim().trim_matches(['"', '\'']).to_owned()))
    });
    found.collect()
}

/// The part of it that the hub accepts.
fn known(mut found: BTreeMap<&'static str, String>) -> BTreeMap<&'static str, String> {
    let is_other = found.get("license").is_some_and(|licence| licence == "other");
    if is_other && ["license_name", "license_link"].into_iter().all(|key| found.contains_key(key)) {
        return found;
    }
    found.retain(|key, value| *key == "license" && KNOWN.contains(&value.as_str()));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_licence_that_the_hub_knows_is_taken_from_the_card_of_the_base() {
        let of = |card: &str| known(in_card(card));
        assert_eq!(
            of("---\nlanguage: en\nlicense: apache-2.0\n---\n# A\nlicense: mit\n"),
            [("license", "apache-2.0".into())].into()
        );
        assert_eq!(of("---\nlicense: my own\n---\n"), BTreeMap::new());
        assert_eq!(of("---\nlicense: other\n---\n"), BTreeMap::new(), "the hub wants its name");
        let named = of("---\nlicense: other\nlicense_name: a\nlicense_link: \"https://b.org/c\"\n---\n");
        assert_eq!(named.len(), 3);
        assert_eq!(named["license_link"], "https://b.org/c");
        assert_eq!(of("# no block\nlicense: mit\n"), BTreeMap::new());
    }

    #[test]
    fn a_licence_is_taken_from_the_metadata_of_a_gguf_file() {
        let get = |key: &str| (key == "general.license").then(|| "llama3.1".to_owned());
        assert_eq!(known(in_gguf(get)), [("license", "llama3.1".to_owned())].into());
    }
}
