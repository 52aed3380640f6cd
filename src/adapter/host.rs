//! An adapter on the host: its low-rank pairs in f32, its settings, and what it came from.

use std::collections::BTreeMap;

use super::base_modules::check_sizes;
use crate::data::{ControlTokens, Format};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::quant::{Compute, Quant};

/// Provenance keys in the metadata of the weights' file.
pub mod provenance {
    /// The fingerprint of the base model ([`BaseFiles::content_hash`](crate::model::BaseFiles::content_hash)): a SHA-256
    /// over its files.
    pub const BASE_SHA256: &str = "burnish.base_sha256";
    /// The scheme of the base's weights while training: `none`, `nf4`, …
    pub const QUANT: &str = "burnish.quant";
    /// The precision of the frozen products while training: `f32` or `bf16`.
    pub const COMPUTE: &str = "burnish.compute";
    /// SHA-256 of what the scheme makes of a fixed matrix ([`quantiser_sha256`](crate::model::base::quantiser_sha256)); missing
    /// where it packs nothing.
    pub const QUANTISER_SHA256: &str = "burnish.quantiser_sha256";
    /// SHA-256 of the tokenizer, chat templates excepted.
    pub const TOKENIZER_SHA256: &str = "burnish.tokenizer_sha256";
    /// SHA-256 of the chat template; missing where there is none.
    pub const TEMPLATE_SHA256: &str = "burnish.template_sha256";
    /// SHA-256 of the training data.
    pub const DATA_SHA256: &str = "burnish.data_sha256";
    /// SHA-256 of the validation data; missing where there is none of its own.
    pub const VALID_SHA256: &str = "burnish.valid_sha256";
    /// The shape of the training data: `prompt-completion`, `alpaca`, `chat` or `text`.
    pub const DATA_FORMAT: &str = "burnish.data_format";
    /// The reading of control tokens that the training data spells: `text` or `tokens`.
    pub const CONTROL_TOKENS: &str = "burnish.control_tokens";
    /// The run's seed.
    pub const SEED: &str = "burnish.seed";
    /// The version that wrote the file.
    pub const VERSION: &str = "burnish.version";
    /// The hash of the program's sources, dependencies and compiler.
    pub const BUILD: &str = "burnish.build";
    /// The verdicts of the run that has come to its end, by data set, as JSON: losses of base and adapter, their difference with
    /// its 95% interval, and the conclusion.
    pub const VERDICT: &str = "burnish.verdict";
}

/// A low-rank pair on the host, in f32.
#[derive(Debug, Clone, PartialEq)]
pub struct HostPair {
    /// `[rank, in]`, row-major.
    pub a: Vec<f32>,
    /// `[out, rank]`, row-major.
    pub b: Vec<f32>,
    /// Rows of `a`, columns of `b`.
    pub rank: usize,
    /// Input width of the module.
    pub input: usize,
    /// Output width of the module.
    pub output: usize,
    /// The factor on `B · A`: `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA; patterns already resolved.
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

/// An adapter on the host, with everything that its folder holds.
#[derive(Debug, Clone, PartialEq)]
pub struct HostAdapter {
    /// By module path (`model.layers.0.self_attn.q_proj`, `lm_head`).
    pub pairs: BTreeMap<String, HostPair>,
    /// The rank where no pattern gives another one.
    pub rank: usize,
    /// The numerator of the scale where no pattern gives another one.
    pub alpha: f64,
    /// The probability of dropping an input value while training.
    pub dropout: f64,
    /// Provenance from the safetensors metadata (`burnish.base_sha256`, …); empty for a foreign adapter.
    pub metadata: BTreeMap<String, String>,
}

impl HostAdapter {
    /// The quantisation of the base while this adapter learned; `None` where there was none or the file does not say.
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

    /// The precision of the frozen products while this adapter learned; `None` where the file does not say.
    ///
    /// # Errors
    /// Input: a precision that this program does not know.
    pub fn trained_in(&self) -> Result<Option<Compute>> {
        let Some(name) = self.metadata.get(provenance::COMPUTE) else { return Ok(None) };
        Compute::from_name(name).map(Some).ok_or_else(|| {
            let known = Compute::ALL.map(Compute::name).join(", ");
            Error::input(provenance::COMPUTE, format!("is `{name}`; known are {known}"))
        })
    }

    /// The shape of the data that this adapter was trained on; `None` where the file does not say, as every adapter of
    /// another program.
    ///
    /// # Errors
    /// Input: a shape that this program does not know.
    pub fn data_format(&self) -> Result<Option<Format>> {
        let Some(name) = self.metadata.get(provenance::DATA_FORMAT) else { return Ok(None) };
        let known = Format::ALL.into_iter().find(|format| format.name() == name);
        known.map(Some).ok_or_else(|| {
            let formats = Format::ALL.map(Format::name).join(", ");
            Error::input(provenance::DATA_FORMAT, format!("is `{name}`; known are {formats}"))
        })
    }

    /// The reading of control tokens in the data that this adapter was trained on; as text where the file does not say.
    ///
    /// # Errors
    /// Input: a reading that this program does not know.
    pub fn control_tokens(&self) -> Result<ControlTokens> {
        let Some(name) = self.metadata.get(provenance::CONTROL_TOKENS) else { return Ok(ControlTokens::Text) };
        name.parse().map_err(|message: String| Error::input(provenance::CONTROL_TOKENS, message))
    }

    /// Records the shape of the training data in the adapter's metadata, for [`data_format`](Self::data_format).
    pub fn record_data_format(&mut self, format: Format) {
        self.metadata.insert(provenance::DATA_FORMAT.to_owned(), format.name().to_owned());
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
