//! The configuration that a GGUF file's metadata and tensors describe.

use super::{Architecture, ModelConfig, RopeScaling, unsupported};
use crate::error::{Error, Result};
use crate::files::gguf::{Gguf, Value};

/// Tokens that end a turn or a text in the models that have them; a GGUF file names at most three of its
/// own by key, so those marked as control tokens count too (as in llama.cpp).
const END_TOKENS: [&str; 5] = ["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>"];

impl ModelConfig {
    /// Reads the metadata. Reports every problem at once.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let name = gguf.architecture().unwrap_or("(none named)");
        let architecture = match name {
            "llama" => Architecture::Llama,
            "qwen2" => Architecture::Qwen2,
            other => return Err(unsupported(gguf.place(), other)),
        };
        let mut keys = Keys { gguf, architecture: name, errors: Vec::new() };
        keys.check_supported();
        let hidden_size = keys.required("embedding_length");
        let heads = keys.required("attention.head_count");
        let head_dim = keys.size("attention.key_length").unwrap_or_else(|| keys.derived_head_dim(hidden_size, heads));
        keys.check_equal("attention.value_length", head_dim, "the head's dimension");
        keys.check_equal("rope.dimension_count", head_dim, "the head's dimension");
        let sliding_window = keys.size("attention.sliding_window").filter(|&window| window > 0);
        let config = Self {
            // llama.cpp has no architecture of its own for Mistral, and Llama itself has no window.
            architecture: match (architecture, sliding_window) {
                (Architecture::Llama, Some(_)) => Architecture::Mistral,
                (architecture, _) => architecture,
            },
            vocab_size: keys.vocab_size(),
            hidden_size,
            intermediate_size: keys.required("feed_forward_length"),
            layers: keys.required("block_count"),
            heads,
            kv_heads: keys.size("attention.head_count_kv").unwrap_or(heads),
            head_dim,
            norm_eps: keys.number("attention.layer_norm_rms_epsilon").unwrap_or_else(|| {
                keys.missing("attention.layer_norm_rms_epsilon");
                1e-5
            }),
            rope_theta: keys.number("rope.freq_base").unwrap_or(10_000.0),
            rope_scaling: keys.rope_scaling(),
            tied_head: !gguf.has("output.weight"),
            qkv_bias: keys.biases(&["attn_q", "attn_k", "attn_v"]),
            o_bias: keys.biases(&["attn_output"]),
            mlp_bias: keys.biases(&["ffn_gate", "ffn_up", "ffn_down"]),
            sliding_window,
            full_layers: Vec::new(),
            max_positions: keys.required("context_length"),
            bos_token: keys.token("tokenizer.ggml.bos_token_id"),
            eos_tokens: keys.eos_tokens(),
        };
        keys.check_biases(&config);
        let errors = keys.errors;
        config.checked(gguf.place(), errors)
    }
}

/// Metadata under the architecture's prefix; what is wrong collects in `errors`.
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
    errors: Vec<Error>,
}

impl Keys<'_> {
    fn problem(&mut self, key: &str, message: impl Into<String>) {
        self.errors.push(Error::input(format_args!("{}: {key}", self.gguf.place()), message));
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn missing(&mut self, name: &str) {
        self.problem(&self.key(name), "is missing");
    }

    /// A whole number, or an array with the same one for every layer.
    fn size(&mut self, name: &str) -> Option<usize> {
        let key = self.key(name);
        let value = self.gguf.get(&key)?;
        let number = match value.as_integers() {
            Some(values) => match values.split_first() {
                Some((first, rest)) if rest.iter().all(|other| other == first) => u64::try_from(*first).ok(),
                _ => {
                    self.problem(&key, "differs from layer to layer, which is not supported");
                    return Some(1);
                }
            },
            None => value.as_u64(),
        };
        let size = number.and_then(|number| usize::try_from(number).ok());
        if size.is_none() {
            self.problem(&key, format!("is of type {}; expected a whole number", value.type_name()));
            return Some(1);
        }
        size
    }

    fn required(&mut self, name: &str) -> usize {
        self.size(name).unwrap_or_else(|| {
            self.missing(name);
            1
        })
    }

    fn number(&mut self, name: &str) -> Option<f64> {
        let key = self.key(name);
        let value = self.gguf.get(&key)?;
        let number = value.as_f64();
        if number.is_none() {
            self.problem(&key, format!("is of type {}; expected a float", value.type_name()));
            return Some(1.0);
        }
        match value {
            // Written as f32 from a decimal number: 1e-5 must not become 9.99999974e-6.
            Value::F32(number) => number.to_string().parse().ok(),
            _ => number,
        }
    }

    fn derived_head_dim(&mut self, hidden_size: usize, heads: usize) -> usize {
        if hidden_size.checked_rem(heads) != Some(0) {
            let message = format!("is {heads}, which does not divide embedding_length {hidden_size}");
            self.problem(&self.key("attention.head_count"), message);
        }
        hidden_size.checked_div(heads).unwrap_or_default()
    }

    fn check_equal(&mut self, name: &str, expected: usize, what: &str) {
        if let Some(found) = self.size(name)
            && found != expected
        {
            self.problem(&self.key(name), format!("is {found}; supported is {what}, {expected}"));
        }
    }

    fn check_supported(&mut self) {
        if let Some(experts) = self.size("expert_count")
            && experts > 0
        {
            self.problem(&self.key("expert_count"), format!("is {experts}; mixtures of experts are not supported"));
        }
    }

    /// The rows of the embedding; the list of tokens must have as many.
    fn vocab_size(&mut self) -> usize {
        let tokens = self.gguf.get("tokenizer.ggml.tokens").and_then(Value::as_strings).map(<[String]>::len);
        let rows = self.gguf.shape("token_embd.weight").and_then(|shape| shape.first().copied());
        match (rows, tokens) {
            (Some(rows), Some(tokens)) if rows != tokens => {
                self.problem(
                    "tokenizer.ggml.tokens",
                    format!("has {tokens} tokens; token_embd.weight has {rows} rows"),
                );
                rows
            }
            (Some(size), _) | (None, Some(size)) => size,
            (None, None) => self.required("vocab_size"),
        }
    }

    fn rope_scaling(&mut self) -> RopeScaling {
        if self.gguf.has("rope_freqs.weight") {
            return match self.gguf.tensor("rope_freqs.weight").and_then(|tensor| tensor.to_f32()) {
                Ok(factors) => RopeScaling::Factors(factors),
                Err(error) => {
                    self.errors.push(error);
                    RopeScaling::None
                }
            };
        }
        let key = self.key("rope.scaling.type");
        let kind = self.gguf.get(&key).map(|value| value.as_str().unwrap_or("(not a string)").to_owned());
        match kind.as_deref() {
            Some("linear") => RopeScaling::Linear { factor: self.number("rope.scaling.factor").unwrap_or(1.0) },
            // Files from before `rope.scaling.*` have the factor alone.
            None => match self.number("rope.scale_linear") {
                Some(factor) if factor != 1.0 => RopeScaling::Linear { factor },
                _ => RopeScaling::None,
            },
            Some("none") => RopeScaling::None,
            Some(other) => {
                self.problem(&key, format!("is {other:?}; supported are \"none\" and \"linear\""));
                RopeScaling::None
            }
        }
    }

    /// Whether the first layer has any of these biases; missing others are found with the tensors.
    fn biases(&self, modules: &[&str]) -> bool {
        modules.iter().any(|module| self.gguf.has(&format!("blk.0.{module}.bias")))
    }

    /// Combinations of biases that no supported Hugging Face architecture has could not be written back.
    fn check_biases(&mut self, config: &ModelConfig) {
        let possible = match config.architecture {
            Architecture::Llama => config.qkv_bias == config.o_bias,
            Architecture::Mistral => !config.qkv_bias && !config.o_bias && !config.mlp_bias,
            Architecture::Qwen2 => config.qkv_bias && !config.o_bias && !config.mlp_bias,
        };
        if !possible {
            let message = "the biases of blk.0 are not those of its architecture: Llama has them on all four attention \
                           projections or on none, Mistral has none, Qwen2 has them on q, k and v";
            self.problem("blk.0", message);
        }
    }

    fn token(&mut self, key: &str) -> Option<u32> {
        let value = self.gguf.get(key)?;
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        if id.is_none() {
            self.problem(key, "is not a token id");
        }
        id
    }

    fn eos_tokens(&mut self) -> Vec<u32> {
        const CONTROL: i64 = 3;
        let mut found = Vec::new();
        for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            found.extend(self.token(key));
        }
        let tokens = self.gguf.get("tokenizer.ggml.tokens").and_then(Value::as_strings).unwrap_or_default();
        let types = self.gguf.get("tokenizer.ggml.token_type").and_then(Value::as_integers).unwrap_or_default();
        for (id, (token, kind)) in (0u32..).zip(tokens.iter().zip(types)) {
            if kind == CONTROL && END_TOKENS.contains(&token.as_str()) {
                found.push(id);
            }
        }
        let mut unique = Vec::new();
        for id in found {
            if !unique.contains(&id) {
                unique.push(id);
            }
        }
        unique
    }
}
