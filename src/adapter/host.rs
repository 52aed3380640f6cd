//! An adapter on the host: its low-rank pairs in f32, its settings, and what it came from.

use std::collections::BTreeMap;

use super::base_modules::check_sizes;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::quant::Quant;

/// Provenance keys in the metadata of the weights' file.
pub mod provenance {
    /// SHA-256 of the base model's files.
    pub const BASE_SHA256: &str = "burnish.base_sha256";
    /// How the base was held while training: `none`, `nf4`, …
    pub const QUANT: &str = "burnish.quant";
    /// SHA-256 of the training data.
    pub const DATA_SHA256: &str = "burnish.data_sha256";
    /// The run's seed.
    pub const SEED: &str = "burnish.seed";
    /// The version that wrote the file.
    pub const VERSION: &str = "burnish.version";
}

/// A low-rank pair on the host, in f32.
#[derive(Debug, Clone, PartialEq)]
pub struct HostPair {
    /// `[rank, in]`, row-major.
    pub a: Vec<f32>,
    /// `[out, rank]`, row-major.
    pub b: Vec<f32>,
    pub rank: usize,
    pub input: usize,
    pub output: usize,
    /// `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA; patterns already resolved.
    pub scale: f32,
}

impl HostPair {
    /// Whether there are as many values as the sizes say, and at least one.
    fn is_whole(&self) -> bool {
        !self.a.is_empty()
            && !self.b.is_empty()
            && Some(self.a.len()) == self.rank.checked_mul(self.input)
            && Some(self.b.len()) == self.output.checked_mul(self.rank)
    }
}

/// An adapter on the host: what a folder holds.
#[derive(Debug, Clone, PartialEq)]
pub struct HostAdapter {
    /// By module path (`model.layers.0.self_attn.q_proj`, `lm_head`).
    pub pairs: BTreeMap<String, HostPair>,
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f64,
    /// Provenance from the safetensors metadata (`burnish.base_sha256`, …); empty for a foreign adapter.
    pub metadata: BTreeMap<String, String>,
}

impl HostAdapter {
    /// How the base was quantised while this adapter learned; `None` where it was not, or the file does not say.
    ///
    /// # Errors
    /// Input: a scheme that this program does not know.
    pub fn trained_over(&self) -> Result<Option<Quant>> {
        let Some(name) = self.metadata.get(provenance::QUANT) else { return Ok(None) };
        let quant = Quant::from_name(name).ok_or_else(|| {
            let schemes = Quant::ALL.map(Quant::name).join(", ");
            Error::input(provenance::QUANT, format!("is `{name}`; known are {schemes}"))
        })?;
        Ok((quant != Quant::None).then_some(quant))
    }

    /// Whether every pair has its module in a base of this shape, with the right sizes.
    ///
    /// # Errors
    /// All pairs that do not fit.
    pub fn check_against(&self, base: &ModelConfig) -> Result<()> {
        let broken = self.pairs.iter().filter(|(_, pair)| !pair.is_whole());
        let mut errors: Vec<Error> = broken
            .map(|(module, _)| Error::input(format_args!("adapter: {module}"), "its values do not fill its shape"))
            .collect();
        let sizes = self.pairs.iter().map(|(module, pair)| (module.as_str(), (pair.input, pair.output)));
        errors.extend(check_sizes("adapter", sizes, base).err());
        Error::none_of(errors, ())
    }
}
