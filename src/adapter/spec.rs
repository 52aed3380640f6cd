//! Which projections an adapter changes, and with what rank and scale.

use std::fmt;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::init::Init;
use crate::error::{Error, Place, Result};
use crate::model::{ModelConfig, Site, SiteKind};
use crate::settings::{
    Describe, FromNode, Limit, Node, Reader, Value, above, any, below, between, mismatch, not_empty, optional, section,
};

section! {
    /// The low-rank adapter.
    AdapterSpec {
        /// Rank of the two factors.
        rank: usize = Take(8), between(1..=65_536);
        /// The update is scaled by alpha / rank.
        alpha: f64 = Take(16.0), above(0.0, 1e6);
        /// Share of the adapter's inputs dropped while training.
        dropout: f64 = Take(0.0), below(0.0, 1.0);
        /// The projections that get a low-rank pair: `attention` for those of attention (q, k, v and o in most families),
        /// `all-linear` for every linear layer but the head, as PEFT means it, or a list of names.
        targets: Targets = Take(Targets::Attention), at_least_one();
        /// Scale by alpha / √rank instead (rank-stabilised LoRA, Kalajdzievski 2023).
        rslora: bool = Take(false), any();
        /// Train the length of each row of an adapted weight apart from its direction (DoRA, Liu et al. 2024); `dropout` has to be 0.
        dora: bool = Take(false), any();
        /// The first values of the factors, by the names of PEFT's `init_lora_weights`. `pissa` and `olora` leave the base as it is:
        /// the saved adapter has twice the rank, and `dropout` has to be 0.
        init: Init = Take(Init::Kaiming), any();
        /// The folder of an adapter to begin with, of burnish or of PEFT, whose rank, alpha and projections are those above. None
        /// by default: the first values follow from the seed.
        from: Option<PathBuf> = Take(None), optional(not_empty());
    }
}

impl AdapterSpec {
    /// The factor on `B · A`.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        if self.rslora { self.alpha / rank.sqrt() } else { self.alpha / rank }
    }
}

fn at_least_one() -> Limit<Targets> {
    Limit::new("at least one", |targets| *targets != Targets::Named(Vec::new()))
}

/// A choice of sites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// Every projection of attention: q, k, v and o in most families, `query_key_value` and `dense` in GPT-NeoX.
    Attention,
    /// Every linear layer but the output head, as PEFT's `"all-linear"` (`_maybe_include_all_linear_layers`).
    AllLinear,
    /// Modules by PEFT's rule for a list of names: the whole path, or its end after a dot.
    Named(Vec<String>),
}

impl Targets {
    /// The word for the projections of attention.
    pub const ATTENTION: &'static str = "attention";
    /// The word for every linear layer.
    pub const ALL_LINEAR: &'static str = "all-linear";

    /// The choice by these names.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self::Named(names.into_iter().map(str::to_owned).collect())
    }

    /// The names of a list; empty for the other choices.
    pub fn listed(&self) -> &[String] {
        match self {
            Self::Attention | Self::AllLinear => &[],
            Self::Named(names) => names,
        }
    }

    /// Whether the choice takes a site.
    pub fn takes(&self, site: &Site) -> bool {
        match self {
            Self::Attention => site.kind == SiteKind::Attention,
            Self::AllLinear => site.kind != SiteKind::Head,
            Self::Named(names) => names.iter().any(|name| site.is_named(name)),
        }
    }

    /// Names for PEFT's `target_modules` that take the same sites.
    ///
    /// # Errors
    /// Input: a name that no site of the model has.
    pub fn names(&self, config: &ModelConfig) -> Result<Vec<String>> {
        let sites = config.sites();
        if let Self::Named(names) = self {
            let unknown = names.iter().filter(|name| !sites.iter().any(|site| site.is_named(name)));
            let errors = unknown.map(|name| {
                let message = format!("`{name}` is the name of no projection of {}", config.family.class_name);
                Error::input(Place::setting("adapter.targets"), message)
                    .hint(format!("there are {}", existing(&sites).join(", ")))
            });
            Error::none_of(errors.collect(), ())?;
        }
        // The other parts of a larger model have modules with the same ends of their paths.
        if config.is_part() {
            return Ok(sites.into_iter().filter(|site| self.takes(site)).map(|site| site.module).collect());
        }
        if let Self::Named(names) = self {
            return Ok(names.clone());
        }
        let mut names: Vec<String> = Vec::new();
        for site in sites.iter().filter(|site| self.takes(site)) {
            if names.iter().any(|name| site.is_named(name)) {
                continue;
            }
            // The shortest end of the path that takes no site beyond the choice.
            let starts = site.module.rmatch_indices('.').map(|(dot, _)| dot + 1).chain([0]);
            let ends = starts.map(|start| &site.module[start..]);
            let mut fitting = ends.filter(|end| sites.iter().all(|other| !other.is_named(end) || self.takes(other)));
            names.push(fitting.next().unwrap_or(&site.module).to_owned());
        }
        Ok(names)
    }
}

/// The last parts of all paths, each once.
pub(super) fn existing(sites: &[Site]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for site in sites {
        if !names.contains(&site.name()) {
            names.push(site.name());
        }
    }
    names
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attention => f.write_str(Self::ATTENTION),
            Self::AllLinear => f.write_str(Self::ALL_LINEAR),
            Self::Named(names) => f.write_str(&names.join(", ")),
        }
    }
}

impl FromNode for Targets {
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self> {
        match &node.value {
            Value::String(word) if word == Self::ATTENTION => Some(Self::Attention),
            Value::String(word) if word == Self::ALL_LINEAR => Some(Self::AllLinear),
            Value::Array(_) => Vec::from_node(node, key, reader).map(Self::Named),
            Value::String(word) => {
                let message = format!("`{key}`: expected {}, found {}", Self::expected(), node.value);
                let near = reader.suggested(key, word, &[Self::ATTENTION, Self::ALL_LINEAR]);
                let meant = near.map_or_else(|| format!("[\"{word}\"]"), str::to_owned);
                reader.problem_with_hint(&node.place, message, format!("did you mean `{meant}`?"));
                None
            }
            _ => mismatch(node, key, &Self::expected(), reader),
        }
    }
}

impl Describe for Targets {
    fn expected() -> String {
        format!("`{}`, `{}`, or a list of names of modules such as q_proj", Self::ATTENTION, Self::ALL_LINEAR)
    }
}

impl Serialize for Targets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Attention => serializer.serialize_str(Self::ATTENTION),
            Self::AllLinear => serializer.serialize_str(Self::ALL_LINEAR),
            Self::Named(names) => names.serialize(serializer),
        }
    }
}
