//! Keys of a GGUF file's metadata, read with their types checked.

use super::fields::every;
use super::{Family, ModelConfig, RopeConfig, RopeScaling};
use crate::error::Error;
use crate::files::gguf::{Gguf, Value};

/// Tokens that end a turn or a text in the models that have them; a GGUF file names at most three of its
/// own by key, so those marked as control tokens count too (as in llama.cpp).
const END_TOKENS: [&str; 7] =
    ["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>", "<|end|>"];

/// Metadata under the architecture's prefix; the problems with it collect until [`Keys::into_errors`].
#[derive(Debug)]
pub struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
    errors: Vec<Error>,
}

impl<'a> Keys<'a> {
    /// The metadata of a file of this architecture.
    pub fn new(gguf: &'a Gguf, architecture: &'a str) -> Self {
        Self { gguf, architecture, errors: Vec::new() }
    }

    /// The file.
    pub fn gguf(&self) -> &'a Gguf {
        self.gguf
    }

    /// Everything that was wrong.
    pub fn into_errors(self) -> Vec<Error> {
        self.errors
    }

    /// Reports a problem with a key, given with its prefix.
    pub fn problem(&mut self, key: &str, message: impl Into<String>) {
        self.errors.push(Error::input(format_args!("{}: {key}", self.gguf.place()), message));
    }

    /// A key with the architecture's prefix.
    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn missing(&mut self, name: &str) {
        self.problem(&self.key(name), "is missing");
    }

    /// A whole number, or an array with the same one for every layer.
    pub fn size(&mut self, name: &str) -> Option<usize> {
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

    /// [`Self::size`] of a key that must be there; 1 stands in where it is not.
    pub fn required(&mut self, name: &str) -> usize {
        self.size(name).unwrap_or_else(|| {
            self.missing(name);
            1
        })
    }

    /// A number.
    pub fn number(&mut self, name: &str) -> Option<f64> {
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

    /// True or false.
    pub fn flag(&mut self, name: &str) -> Option<bool> {
        let key = self.key(name);
        let value = self.gguf.get(&key)?;
        match value {
            Value::Bool(flag) => Some(*flag),
            other => {
                self.problem(&key, format!("is of type {}; expected a boolean", other.type_name()));
                Some(false)
            }
        }
    }

    /// The keys that most architectures share. `norm_eps` names the one that holds what norms add; `may_be_partial` says
    /// whether only a part of each head may be rotated.
    pub fn common(&mut self, family: &'static Family, norm_eps: &str, may_be_partial: bool) -> ModelConfig {
        self.check_supported();
        let hidden_size = self.required("embedding_length");
        let heads = self.required("attention.head_count");
        let head_dim = self.size("attention.key_length").unwrap_or_else(|| self.derived_head_dim(hidden_size, heads));
        self.check_equal("attention.value_length", head_dim, "the head's dimension");
        let rotary_dims = match may_be_partial {
            true => self.size("rope.dimension_count").unwrap_or(head_dim),
            false => {
                self.check_equal("rope.dimension_count", head_dim, "the head's dimension");
                head_dim
            }
        };
        let theta = self.number("rope.freq_base");
        let mut rope = RopeConfig { scaling: self.rope_scaling(), ..RopeConfig::plain(rotary_dims) };
        rope.theta = theta.unwrap_or(rope.theta);
        ModelConfig {
            vocab_size: self.vocab_size(),
            hidden_size,
            intermediate_size: self.required("feed_forward_length"),
            layers: self.required("block_count"),
            heads,
            kv_heads: self.size("attention.head_count_kv").unwrap_or(heads),
            head_dim,
            norm_eps: self.number(norm_eps).unwrap_or_else(|| {
                self.missing(norm_eps);
                1e-5
            }),
            rope,
            tied_head: !self.gguf.has("output.weight"),
            sliding_window: self.size("attention.sliding_window").filter(|&window| window > 0),
            max_positions: self.required("context_length"),
            bos_token: self.token("tokenizer.ggml.bos_token_id"),
            eos_tokens: self.eos_tokens(),
            ..ModelConfig::empty(family)
        }
    }

    /// The layers that see all positions where there is a sliding window: those that `attention.sliding_window_pattern`
    /// marks false, or every `period`-th if it holds a number or is missing (llama.cpp `set_swa_pattern`).
    pub fn full_layers(&mut self, layers: usize, default_period: usize) -> Vec<usize> {
        let key = self.key("attention.sliding_window_pattern");
        let Some(value) = self.gguf.get(&key) else { return every(default_period, layers) };
        match (value.as_bools(), value.as_u64().and_then(|period| usize::try_from(period).ok())) {
            (Some(slides), _) if slides.len() == layers => (0..layers).filter(|&layer| !slides[layer]).collect(),
            (Some(slides), _) => {
                let message = format!("marks {} layers; {} is {layers}", slides.len(), self.key("block_count"));
                self.problem(&key, message);
                Vec::new()
            }
            (None, Some(period)) => every(period, layers),
            (None, None) => {
                let message =
                    format!("is of type {}; expected a whole number or a list of booleans", value.type_name());
                self.problem(&key, message);
                Vec::new()
            }
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
        if let Some(scaling) = self.longrope() {
            return scaling;
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

    /// LongRoPE's two lists of divisors, which are tensors here; `None` for a file without them.
    fn longrope(&mut self) -> Option<RopeScaling> {
        const LISTS: [&str; 2] = ["rope_factors_short.weight", "rope_factors_long.weight"];
        if !LISTS.iter().any(|name| self.gguf.has(name)) {
            return None;
        }
        let lists = LISTS.map(|name| self.gguf.tensor(name).and_then(|tensor| tensor.to_f32()));
        let [short, long] = lists.map(|list| {
            list.unwrap_or_else(|error| {
                self.errors.push(error);
                Vec::new()
            })
        });
        Some(RopeScaling::LongRope {
            short,
            long,
            original_max_positions: self.required("rope.scaling.original_context_length"),
            attention_factor: self.number("rope.scaling.attn_factor").unwrap_or(1.0) as f32,
        })
    }

    /// Whether the first layer has any of these biases; missing others are found with the tensors.
    pub fn biases(&self, modules: &[&str]) -> bool {
        modules.iter().any(|module| self.gguf.has(&format!("blk.0.{module}.bias")))
    }

    /// Takes the biases of Llama's modules as the first layer has them.
    pub fn take_biases(&self, config: &mut ModelConfig) {
        config.qkv_bias = self.biases(&["attn_q", "attn_k", "attn_v"]);
        config.o_bias = self.biases(&["attn_output"]);
        config.mlp_bias = self.biases(&["ffn_gate", "ffn_up", "ffn_down"]);
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
