//! The models that are advised: well-known open ones, of which `catalogue.json` holds the facts, and those of the user.

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::pull::KNOWN;
use crate::run::OpenBase;

/// The catalogue: of each model its repository on the hub, its licence, the languages that its card names (the main ones, ISO 639-1), and
/// the fields of its `config.json` that decide its shape.
const CATALOGUE: &str = include_str!("catalogue.json");

/// An entry of the catalogue.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    hub: String,
    licence: String,
    /// Whether the hub asks for consent to the licence before it gives the files.
    gated: bool,
    languages: Vec<String>,
    config: Value,
}

/// A model that can be advised.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    /// Its name as a base of a recipe.
    pub(super) base: String,
    /// The last part of its name.
    pub(super) name: String,
    /// Its licence, where it is known.
    pub(super) licence: Option<String>,
    /// Whether the hub asks for consent first.
    pub(super) is_gated: bool,
    /// The languages that it knows; empty where that is not known.
    pub(super) languages: Vec<String>,
    /// Its shape.
    pub(super) config: ModelConfig,
}

/// The models of the catalogue, the smallest first.
///
/// # Errors
/// None: a test reads all of it.
pub(super) fn catalogue() -> Result<Vec<Candidate>> {
    let broken = |error: serde_json::Error| Error::failed("catalogue", error.to_string());
    let entries: Vec<Entry> = serde_json::from_str(CATALOGUE).map_err(broken)?;
    entries.into_iter().map(Candidate::of).collect()
}

impl Candidate {
    fn of(Entry { hub, licence, gated, languages, config }: Entry) -> Result<Self> {
        let known = KNOWN.iter().find(|known| known.repo == hub);
        let name = hub.rsplit('/').next().unwrap_or(&hub).to_owned();
        Ok(Self {
            config: ModelConfig::from_json(&hub, &config, None)?,
            base: known.map_or_else(|| format!("hf:{hub}"), |known| known.name.to_owned()),
            name,
            licence: Some(licence),
            is_gated: gated,
            languages,
        })
    }

    /// A base of the user's.
    pub(super) fn own(base: &OpenBase) -> Self {
        Self {
            base: base.name.clone(),
            name: base.short_name(),
            licence: None,
            is_gated: false,
            languages: Vec::new(),
            config: base.files.config().clone(),
        }
    }

    /// Whether it knows a language, as far as that is known.
    pub(super) fn knows(&self, language: Option<&str>) -> bool {
        self.languages.is_empty() || language.is_none_or(|language| self.languages.iter().any(|one| one == language))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_has_the_sizes_that_the_models_are_known_by() {
        let candidates = catalogue().expect("it is read");
        assert!((12..=20).contains(&candidates.len()));
        let parameters: Vec<usize> = candidates.iter().map(|one| one.config.parameters()).collect();
        assert!(parameters.is_sorted(), "the smallest first: {parameters:?}");
        // The numbers that the cards of these models state.
        let stated = [
            ("SmolLM2-135M-Instruct", 134_515_008),
            ("Qwen3-0.6B", 596_049_920),
            ("Llama-3.2-1B-Instruct", 1_235_814_400),
            ("gemma-2-2b-it", 2_614_341_888),
            ("Phi-3.5-mini-instruct", 3_821_079_552),
            ("Mistral-7B-Instruct-v0.3", 7_248_023_552),
            ("Llama-3.1-8B-Instruct", 8_030_261_248),
        ];
        for (name, count) in stated {
            let found = candidates.iter().find(|one| one.name == name).expect("it is there");
            assert_eq!(found.config.parameters(), count, "{name}");
        }
        assert_eq!(candidates[0].base, "smollm2-135m-instruct");
        assert!(candidates[0].knows(Some("en")) && candidates[0].knows(None) && !candidates[0].knows(Some("zh")));
    }
}
