//! What a model is: its shape, taken from `config.json` or from GGUF metadata, and checked before any use.

mod from_gguf;
mod from_json;
mod to_json;

use crate::error::{Error, Result};

/// What [`Architecture`] runs, for messages.
const SUPPORTED: &str = "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM";

/// A LLaMA-family architecture this decoder runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    Llama,
    Mistral,
    Qwen2,
}

impl Architecture {
    /// The class name in `config.json`.
    pub fn class_name(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
        }
    }

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
        }
    }
}

/// RoPE frequency scaling.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// Positions divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3.1's wavelength-dependent scaling (transformers `_compute_llama3_parameters`).
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_positions: usize,
    },
    /// Per-frequency divisors, `head_dim / 2` of them (GGUF `rope_freqs.weight`).
    Factors(Vec<f32>),
}

/// The shape of a decoder. Every value has been checked: no zero, heads divide, `head_dim` is even.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub architecture: Architecture,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    /// The head shares the embedding's matrix.
    pub tied_head: bool,
    /// Biases on `q_proj`, `k_proj`, `v_proj`.
    pub qkv_bias: bool,
    /// Bias on `o_proj`.
    pub o_bias: bool,
    /// Biases on `gate_proj`, `up_proj`, `down_proj`.
    pub mlp_bias: bool,
    /// A query sees at most this many positions, itself included.
    pub sliding_window: Option<usize>,
    /// Layers in which it sees all of them even so.
    pub full_layers: Vec<usize>,
    pub max_positions: usize,
    pub bos_token: Option<u32>,
    /// Any of these ends a generation.
    pub eos_tokens: Vec<u32>,
}

/// Sizes far above any model, low enough that no product of two overflows.
const MAX_SIZE: usize = 1 << 24;
const MAX_LAYERS: usize = 10_000;
const MAX_POSITIONS: usize = 1 << 32;

impl ModelConfig {
    /// The window of a layer.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| !self.full_layers.contains(&layer))
    }

    /// Values of the model in all tensors; a tied head counts once.
    pub fn parameters(&self) -> usize {
        super::names::tensors(self).iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
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
        if !self.head_dim.is_multiple_of(2) {
            problem("head_dim", format!("is {}; rotary embedding needs an even number", self.head_dim));
        }
        if self.heads.checked_mul(self.head_dim).is_none_or(|width| width > MAX_SIZE) {
            problem("head_dim", format!("is {} with {} heads, too large", self.head_dim, self.heads));
        }
        // Computed with in f32.
        if !(self.norm_eps >= f64::from(f32::MIN_POSITIVE) && self.norm_eps < 1.0) {
            problem("rms_norm_eps", format!("is {}; expected above 0 and below 1", self.norm_eps));
        }
        if !(1.0..=f64::from(f32::MAX)).contains(&self.rope_theta) {
            problem("rope_theta", format!("is {}; expected 1 or more", self.rope_theta));
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
        errors.extend(self.rope_problems(place));
        errors
    }

    fn rope_problems(&self, place: &str) -> Vec<Error> {
        // Beyond these, frequencies of f32 are infinite or all zero.
        let positive = |value: f64| (1e-6..=1e6).contains(&value);
        let message = match &self.rope_scaling {
            RopeScaling::None => None,
            RopeScaling::Linear { factor } => (!positive(*factor))
                .then(|| format!("factor is {factor}; expected a positive number, from 1e-6 to 1e6")),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let valid = positive(*factor)
                    && positive(*low_freq_factor)
                    && positive(*high_freq_factor)
                    && high_freq_factor > low_freq_factor
                    && *original_max_positions > 0;
                (!valid).then(|| {
                    format!(
                        "llama3 scaling has factor {factor}, low_freq_factor {low_freq_factor}, high_freq_factor \
                         {high_freq_factor}, original_max_position_embeddings {original_max_positions}; expected \
                         positive numbers from 1e-6 to 1e6, high above low"
                    )
                })
            }
            RopeScaling::Factors(factors) => {
                let valid = factors.len() * 2 == self.head_dim && factors.iter().all(|f| positive(f64::from(*f)));
                (!valid).then(|| {
                    format!("{} frequency factors; expected {}, from 1e-6 to 1e6", factors.len(), self.head_dim / 2)
                })
            }
        };
        message.map(|message| Error::input(format_args!("{place}: rope_scaling"), message)).into_iter().collect()
    }

    /// The configuration, or everything that is wrong with it.
    fn checked(self, place: &str, mut errors: Vec<Error>) -> Result<Self> {
        // Where a field could not be read its stand-in value would only be reported a second time.
        if errors.is_empty() {
            errors = self.problems(place);
        }
        Error::none_of(errors, self)
    }
}

fn unsupported(place: &str, found: &str) -> Error {
    Error::input(place, format!("the architecture {found} is not supported"))
        .hint(format!("supported are {SUPPORTED}, and GGUF files of architecture llama or qwen2"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small Llama, for tests of names and files.
    pub(crate) fn tiny() -> ModelConfig {
        ModelConfig {
            architecture: Architecture::Llama,
            vocab_size: 32,
            hidden_size: 8,
            intermediate_size: 12,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            tied_head: false,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            sliding_window: None,
            full_layers: Vec::new(),
            max_positions: 64,
            bos_token: Some(1),
            eos_tokens: vec![2],
        }
    }

    #[test]
    fn parameters_are_counted_once_for_a_tied_head() {
        let untied = tiny();
        let tied = ModelConfig { tied_head: true, ..tiny() };
        assert_eq!(untied.parameters() - tied.parameters(), 32 * 8);
    }
}
