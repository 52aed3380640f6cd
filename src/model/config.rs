//! The shape of a model: one set of fields for every family, filled by `families/`, and checked before any use.

mod family;
mod fields;
mod keys;
mod rope;

use super::spec::OuterNames;
use super::vision::VisionConfig;
use crate::error::{Error, Result};
use crate::ops::activation::Activation;

pub use family::{Family, GgufHead, LargerModel};
pub use fields::{Defaults, Fields, activation_name};
pub use keys::{GgufConfig, Keys, is_end_token};
pub use rope::{RopeConfig, RopeScaling};

/// The shape of a decoder. Every value has been checked: no zero, heads divide, `head_dim` is even.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The architecture.
    pub family: &'static Family,
    /// Names of the modules outside the layers: the family's, or those within a larger model.
    pub names: OuterNames,
    /// The larger model around the decoder, where there is one.
    pub larger: Option<&'static LargerModel>,
    /// The part of it that sees pictures, where it is supported.
    pub vision: Option<VisionConfig>,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the feed-forward network.
    pub intermediate_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Added to the mean square or the variance in every norm.
    pub norm_eps: f64,
    /// The activation of the feed-forward network.
    pub activation: Activation,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Rotary embedding of the layers with a sliding window, where it is another than `rope`.
    pub local_rope: Option<RopeConfig>,
    /// Layers without rotary embedding.
    pub unrotated_layers: Vec<usize>,
    /// The head shares the embedding's matrix.
    pub tied_head: bool,
    /// Biases on the projections to q, k and v.
    pub qkv_bias: bool,
    /// Bias on attention's output projection.
    pub o_bias: bool,
    /// Biases on the projections of the feed-forward network.
    pub mlp_bias: bool,
    /// Attention and feed-forward network read the same input, and both outputs are added to it.
    pub parallel_residual: bool,
    /// Number of positions that a query sees at most, itself included.
    pub sliding_window: Option<usize>,
    /// Layers in which a query sees all positions even so.
    pub full_layers: Vec<usize>,
    /// Factor on attention's scores; `None` is `1 / sqrt(head_dim)`.
    pub attention_multiplier: Option<f64>,
    /// Scores of attention `s` become `cap · tanh(s / cap)`.
    pub attention_softcap: Option<f64>,
    /// Logits `z` become `cap · tanh(z / cap)`.
    pub logit_softcap: Option<f64>,
    /// Factor on the embedding's rows.
    pub embedding_multiplier: EmbeddingMultiplier,
    /// Factor on the output of attention and of the feed-forward network; `None` is 1.
    pub residual_multiplier: Option<f64>,
    /// Factor on the logits; `None` is 1.
    pub logit_multiplier: Option<f64>,
    /// Positions that the model was made for.
    pub max_positions: usize,
    /// The token that begins a text.
    pub bos_token: Option<u32>,
    /// Any of these ends a generation.
    pub eos_tokens: Vec<u32>,
}

/// Factor on the embedding's rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum EmbeddingMultiplier {
    /// No factor.
    One,
    /// The factor as it is.
    Exact(f64),
    /// The factor rounded to the number format of the activations, as Gemma has it.
    Rounded(f64),
}

impl EmbeddingMultiplier {
    /// The factor before any rounding.
    pub fn value(self) -> f64 {
        match self {
            Self::One => 1.0,
            Self::Exact(value) | Self::Rounded(value) => value,
        }
    }
}

/// Sizes far above any model, low enough that no product of two overflows.
const MAX_SIZE: usize = 1 << 24;
pub(super) const MAX_LAYERS: usize = 10_000;
const MAX_POSITIONS: usize = 1 << 32;

impl ModelConfig {
    /// A configuration of `family` without sizes and without anything that only some families have, for a family to
    /// fill.
    pub fn empty(family: &'static Family) -> Self {
        Self {
            family,
            names: family.names,
            larger: None,
            vision: None,
            vocab_size: 0,
            hidden_size: 0,
            intermediate_size: 0,
            layers: 0,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            norm_eps: 1e-6,
            activation: Activation::Silu,
            rope: RopeConfig::plain(0),
            local_rope: None,
            unrotated_layers: Vec::new(),
            tied_head: false,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            parallel_residual: false,
            sliding_window: None,
            full_layers: Vec::new(),
            attention_multiplier: None,
            attention_softcap: None,
            logit_softcap: None,
            embedding_multiplier: EmbeddingMultiplier::One,
            residual_multiplier: None,
            logit_multiplier: None,
            max_positions: 0,
            bos_token: None,
            eos_tokens: Vec::new(),
        }
    }

    /// Beginnings of names in checkpoints and in older adapters, and what transformers puts in their place.
    pub fn stored_prefixes(&self) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        self.larger.iter().flat_map(|larger| larger.stored_prefixes).chain(self.family.stored_prefixes)
    }

    /// The window of a layer.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| !self.full_layers.contains(&layer))
    }

    /// The rotary embedding of a layer; `None` where it has none.
    pub fn rope_of(&self, layer: usize) -> Option<&RopeConfig> {
        if self.unrotated_layers.contains(&layer) {
            return None;
        }
        match &self.local_rope {
            Some(local) if self.window_of(layer).is_some() => Some(local),
            _ => Some(&self.rope),
        }
    }

    /// Columns of all queries.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of all keys, or of all values.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Every problem with the values as they stand; `place` names the file.
    fn problems(&self, place: &str) -> Vec<Error> {
        let mut errors = Vec::new();
        let mut problem = |field: &str, message: String| {
            errors.push(Error::input(format_args!("{place}: {field}"), message));
        };
        let sizes = [
            ("vocab_size", self.vocab_size, MAX_SIZE),
            ("hidden_size", self.hidden_size, MAX_SIZE),
            ("intermediate_size", self.intermediate_size, MAX_SIZE),
            ("num_hidden_layers", self.layers, MAX_LAYERS),
            ("num_attention_heads", self.heads, MAX_SIZE),
            ("num_key_value_heads", self.kv_heads, MAX_SIZE),
            ("head_dim", self.head_dim, MAX_SIZE),
            ("max_position_embeddings", self.max_positions, MAX_POSITIONS),
        ];
        for (field, found, limit) in sizes {
            if found == 0 || found > limit {
                problem(field, format!("is {found}; expected 1 to {limit}"));
            }
        }
        if self.heads > 0 && self.kv_heads > 0 && !self.heads.is_multiple_of(self.kv_heads) {
            let message = format!("is {}, which does not divide the {} attention heads", self.kv_heads, self.heads);
            problem("num_key_value_heads", message);
        }
        if !self.head_dim.is_multiple_of(2) && self.rope.rotary_dims == self.head_dim {
            problem("head_dim", format!("is {}; rotary embedding needs an even number", self.head_dim));
        }
        if self.heads.checked_mul(self.head_dim).is_none_or(|width| width > MAX_SIZE) {
            problem("head_dim", format!("is {} with {} heads, too large", self.head_dim, self.heads));
        }
        // Computed with in f32.
        if !(self.norm_eps >= f64::from(f32::MIN_POSITIVE) && self.norm_eps < 1.0) {
            problem(self.family.norm_eps, format!("is {}; expected above 0 and below 1", self.norm_eps));
        }
        if self.sliding_window == Some(0) {
            problem("sliding_window", "is 0; expected a positive number, or null for none".to_owned());
        }
        for token in self.bos_token.iter().chain(&self.eos_tokens) {
            if *token as usize >= self.vocab_size {
                let message = format!("token {token} lies outside the vocabulary of {}", self.vocab_size);
                problem("bos_token_id/eos_token_id", message);
            }
        }
        let multipliers = [
            ("attention_multiplier", self.attention_multiplier),
            ("embedding_multiplier", Some(self.embedding_multiplier.value())),
            ("residual_multiplier", self.residual_multiplier),
            ("logits_scaling", self.logit_multiplier),
            ("attn_logit_softcapping", self.attention_softcap),
            ("final_logit_softcapping", self.logit_softcap),
        ];
        for (field, value) in multipliers {
            // Beyond these, products of f32 are infinite or all zero.
            if let Some(value) = value.filter(|value| !(1e-9..=1e9).contains(value)) {
                problem(field, format!("makes a factor of {value}; expected a number from 1e-9 to 1e9"));
            }
        }
        for (theta, rope) in [("rope_theta", Some(&self.rope)), ("rope_local_base_freq", self.local_rope.as_ref())] {
            errors.extend(rope.into_iter().flat_map(|rope| rope.problems(place, theta, self.head_dim)));
        }
        errors
    }

    /// The configuration, or everything that is wrong with it: `errors` from reading, or else the values that make no
    /// sense.
    pub(super) fn checked(self, place: &str, mut errors: Vec<Error>) -> Result<Self> {
        // Where a field could not be read its stand-in value would only be reported a second time.
        if errors.is_empty() {
            errors = self.problems(place);
        }
        Error::none_of(errors, self)
    }
}
