//! Keys of a GGUF file's metadata: each is named once, and read with its type checked or written.

mod rope;

use super::fields::every;
use super::{ModelConfig, RopeConfig};
use crate::error::{Error, Result};
use crate::files::gguf::{Array, Gguf, Value};

/// Tokens that end a turn or a text in the models that have them; a GGUF file names at most three of its
/// own by key, so those marked as control tokens count too (as in llama.cpp).
const END_TOKENS: [&str; 7] =
    ["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>", "<|end|>"];

/// Whether llama.cpp takes a control token of this text for the end of a turn or text.
pub fn is_end_token(text: &str) -> bool {
    END_TOKENS.contains(&text)
}

/// Metadata under the architecture's prefix, in either direction: a family names each key once, and the same statement
/// reads the key of an open file or writes the one of a new file. The problems collect.
#[derive(Debug)]
pub struct Keys<'a> {
    architecture: &'a str,
    direction: Direction<'a>,
    errors: Vec<Error>,
}

#[derive(Debug)]
enum Direction<'a> {
    /// From this file into the configuration.
    Read(&'a Gguf),
    /// From the configuration into a new file.
    Write(GgufConfig),
}

/// A configuration as a GGUF file holds it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufConfig {
    /// `general.architecture` and the keys under its name.
    pub metadata: Vec<(String, Value)>,
    /// Parts of the configuration that are tensors of one dimension: the divisors of rotary frequencies.
    pub tensors: Vec<(String, Vec<f32>)>,
}

impl<'a> Keys<'a> {
    /// The metadata of a file of this architecture, to be read.
    pub(in crate::model) fn reading(gguf: &'a Gguf, architecture: &'a str) -> Self {
        Self { architecture, direction: Direction::Read(gguf), errors: Vec::new() }
    }

    /// The metadata of a new file of this architecture.
    pub(in crate::model) fn writing(architecture: &'a str) -> Self {
        let metadata = vec![("general.architecture".to_owned(), Value::String(architecture.to_owned()))];
        let new = GgufConfig { metadata, tensors: Vec::new() };
        Self { architecture, direction: Direction::Write(new), errors: Vec::new() }
    }

    /// The file that is read; `None` where a new one is written. Facts that a file shows otherwise than by a key are taken
    /// from here.
    pub fn file(&self) -> Option<&'a Gguf> {
        match &self.direction {
            Direction::Read(gguf) => Some(gguf),
            Direction::Write(_) => None,
        }
    }

    /// Everything that was wrong.
    pub(in crate::model) fn into_errors(self) -> Vec<Error> {
        self.errors
    }

    /// The keys that were written.
    ///
    /// # Errors
    /// Input: everything that the architecture cannot express.
    pub(in crate::model) fn into_written(self) -> Result<GgufConfig> {
        match self.direction {
            Direction::Read(_) => Error::none_of(self.errors, GgufConfig::default()),
            Direction::Write(new) => Error::none_of(self.errors, new),
        }
    }

    /// Reports a problem with a key, given with its prefix.
    pub fn problem(&mut self, key: &str, message: impl Into<String>) {
        match &self.direction {
            Direction::Read(gguf) => {
                self.errors.push(Error::input(format_args!("{}: {key}", gguf.place()), message));
            }
            Direction::Write(_) => self.errors.push(Error::input(key, message)),
        }
    }

    /// A key with the architecture's prefix.
    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn missing(&mut self, name: &str) {
        self.problem(&self.key(name), "is missing");
    }

    /// Writes a key; nothing where a file is read.
    fn write(&mut self, name: &str, value: Value) {
        let key = self.key(name);
        if let Direction::Write(new) = &mut self.direction {
            new.metadata.push((key, value));
        }
    }

    fn write_size(&mut self, name: &str, size: usize) {
        let value = u32::try_from(size).map_or(Value::U64(size as u64), Value::U32);
        self.write(name, value);
    }

    /// A whole number, or an array with the same one for every layer.
    fn read_size(&mut self, name: &str) -> Option<usize> {
        let key = self.key(name);
        let value = self.file()?.get(&key)?;
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

    /// A number.
    fn read_number(&mut self, name: &str) -> Option<f64> {
        let key = self.key(name);
        let value = self.file()?.get(&key)?;
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

    /// A whole number. A file without it leaves `field` as it is.
    pub fn size(&mut self, name: &str, field: &mut usize) {
        match self.file() {
            Some(_) => *field = self.read_size(name).unwrap_or(*field),
            None => self.write_size(name, *field),
        }
    }

    /// [`Self::size`] of a key that must be there; 1 stands in where it is not.
    pub fn required(&mut self, name: &str, field: &mut usize) {
        match self.file() {
            None => self.write_size(name, *field),
            Some(_) => {
                *field = self.read_size(name).unwrap_or_else(|| {
                    self.missing(name);
                    1
                });
            }
        }
    }

    /// A whole number above zero; 0 and a missing key are none.
    pub fn optional_size(&mut self, name: &str, field: &mut Option<usize>) {
        match (self.file(), *field) {
            (Some(_), _) => *field = self.read_size(name).filter(|size| *size > 0),
            (None, Some(size)) => self.write_size(name, size),
            (None, None) => {}
        }
    }

    /// A number. A file without it leaves `field` as it is.
    pub fn number(&mut self, name: &str, field: &mut f64) {
        match self.file() {
            Some(_) => *field = self.read_number(name).unwrap_or(*field),
            None => self.write(name, Value::F32(*field as f32)),
        }
    }

    /// [`Self::number`] of a key that must be there.
    fn required_number(&mut self, name: &str, field: &mut f64) {
        if self.file().is_some_and(|gguf| gguf.get(&self.key(name)).is_none()) {
            self.missing(name);
        }
        self.number(name, field);
    }

    /// A number that is not written where it is `None`. A file without it leaves `field` as it is.
    pub fn optional_number(&mut self, name: &str, field: &mut Option<f64>) {
        match (self.file(), *field) {
            (Some(_), _) => *field = self.read_number(name).or(*field),
            (None, Some(number)) => self.write(name, Value::F32(number as f32)),
            (None, None) => {}
        }
    }

    /// True or false. A file without it leaves `field` as it is.
    pub fn flag(&mut self, name: &str, field: &mut bool) {
        let Some(gguf) = self.file() else { return self.write(name, Value::Bool(*field)) };
        let key = self.key(name);
        match gguf.get(&key) {
            None => {}
            Some(Value::Bool(flag)) => *field = *flag,
            Some(other) => {
                self.problem(&key, format!("is of type {}; expected a boolean", other.type_name()));
                *field = false;
            }
        }
    }

    /// The keys that most architectures share. `norm_eps` names the one that holds what norms add; `may_be_partial` says
    /// whether only a part of each head may be rotated.
    pub fn common(&mut self, config: &mut ModelConfig, norm_eps: &str, may_be_partial: bool) {
        self.check_supported();
        self.required("context_length", &mut config.max_positions);
        self.required("embedding_length", &mut config.hidden_size);
        self.required("block_count", &mut config.layers);
        self.required("feed_forward_length", &mut config.intermediate_size);
        self.required("attention.head_count", &mut config.heads);
        if self.file().is_some() {
            config.kv_heads = config.heads;
            config.norm_eps = 1e-5;
        }
        self.size("attention.head_count_kv", &mut config.kv_heads);
        if self.file().is_some_and(|gguf| gguf.get(&self.key("attention.key_length")).is_none()) {
            config.head_dim = self.derived_head_dim(config.hidden_size, config.heads);
        }
        self.size("attention.key_length", &mut config.head_dim);
        self.equal("attention.value_length", config.head_dim, "the head's dimension");
        if self.file().is_some() {
            config.rope = RopeConfig::plain(config.head_dim);
        }
        match may_be_partial {
            true => self.size("rope.dimension_count", &mut config.rope.rotary_dims),
            false => self.equal("rope.dimension_count", config.head_dim, "the head's dimension"),
        }
        self.number("rope.freq_base", &mut config.rope.theta);
        self.rope_scaling(&mut config.rope);
        self.required_number(norm_eps, &mut config.norm_eps);
        self.optional_size("attention.sliding_window", &mut config.sliding_window);
        match self.file() {
            None => self.write_size("vocab_size", config.vocab_size),
            Some(gguf) => {
                config.vocab_size = self.vocab_size(gguf);
                config.tied_head = !gguf.has("output.weight");
                config.bos_token = self.token(gguf, "tokenizer.ggml.bos_token_id");
                config.eos_tokens = self.eos_tokens(gguf);
            }
        }
    }

    /// The layers that see all positions where there is a sliding window: those that `attention.sliding_window_pattern`
    /// marks false, or every `period`-th if it holds a number or is missing (llama.cpp `set_swa_pattern`).
    pub fn full_layers(&mut self, config: &mut ModelConfig, default_period: usize) {
        const NAME: &str = "attention.sliding_window_pattern";
        let usual = every(default_period, config.layers);
        match self.file() {
            Some(gguf) => config.full_layers = self.read_full_layers(gguf, NAME, config.layers, usual),
            None if config.sliding_window.is_none() || config.full_layers == usual => {}
            None => {
                let slides = (0..config.layers).map(|layer| !config.full_layers.contains(&layer)).collect();
                self.write(NAME, Value::Array(Array::Bool(slides)));
            }
        }
    }

    fn read_full_layers(&mut self, gguf: &Gguf, name: &str, layers: usize, usual: Vec<usize>) -> Vec<usize> {
        let key = self.key(name);
        let Some(value) = gguf.get(&key) else { return usual };
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

    /// A key with a value that follows from others.
    fn equal(&mut self, name: &str, expected: usize, what: &str) {
        match self.file() {
            None => self.write_size(name, expected),
            Some(_) => match self.read_size(name) {
                Some(found) if found != expected => {
                    self.problem(&self.key(name), format!("is {found}; supported is {what}, {expected}"));
                }
                _ => {}
            },
        }
    }

    fn check_supported(&mut self) {
        if let Some(experts) = self.read_size("expert_count")
            && experts > 0
        {
            self.problem(&self.key("expert_count"), format!("is {experts}; mixtures of experts are not supported"));
        }
    }

    /// The rows of the embedding; the list of tokens must have as many.
    fn vocab_size(&mut self, gguf: &Gguf) -> usize {
        let tokens = gguf.get("tokenizer.ggml.tokens").and_then(Value::as_strings).map(<[String]>::len);
        let rows = gguf.shape("token_embd.weight").and_then(|shape| shape.first().copied());
        match (rows, tokens) {
            (Some(rows), Some(tokens)) if rows != tokens => {
                self.problem(
                    "tokenizer.ggml.tokens",
                    format!("has {tokens} tokens; token_embd.weight has {rows} rows"),
                );
                rows
            }
            (Some(size), _) | (None, Some(size)) => size,
            (None, None) => {
                let mut size = 0;
                self.required("vocab_size", &mut size);
                size
            }
        }
    }

    /// Whether the first layer has any of these biases; missing others are found with the tensors.
    pub fn biases(gguf: &Gguf, modules: &[&str]) -> bool {
        modules.iter().any(|module| gguf.has(&format!("blk.0.{module}.bias")))
    }

    /// Takes the biases of Llama's modules as the first layer has them.
    pub fn take_biases(gguf: &Gguf, config: &mut ModelConfig) {
        config.qkv_bias = Self::biases(gguf, &["attn_q", "attn_k", "attn_v"]);
        config.o_bias = Self::biases(gguf, &["attn_output"]);
        config.mlp_bias = Self::biases(gguf, &["ffn_gate", "ffn_up", "ffn_down"]);
    }

    fn token(&mut self, gguf: &Gguf, key: &str) -> Option<u32> {
        let value = gguf.get(key)?;
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        if id.is_none() {
            self.problem(key, "is not a token id");
        }
        id
    }

    fn eos_tokens(&mut self, gguf: &Gguf) -> Vec<u32> {
        const CONTROL: i64 = 3;
        let mut found = Vec::new();
        for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            found.extend(self.token(gguf, key));
        }
        let tokens = gguf.get("tokenizer.ggml.tokens").and_then(Value::as_strings).unwrap_or_default();
        let types = gguf.get("tokenizer.ggml.token_type").and_then(Value::as_integers).unwrap_or_default();
        for (id, (token, kind)) in (0u32..).zip(tokens.iter().zip(types)) {
            if kind == CONTROL && is_end_token(token) {
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
