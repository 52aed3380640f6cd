//! Fields of `config.json`, read with their types checked.

use serde_json::{Map, Value};

use super::rope::DEFAULT_THETA;
use super::{Family, MAX_LAYERS, ModelConfig, RopeConfig};
use crate::error::Error;
use crate::files::json;
use crate::ops::activation::Activation;

/// Fields of a JSON object; the problems with them collect until [`Fields::into_errors`].
#[derive(Debug)]
pub struct Fields<'a> {
    place: &'a str,
    object: &'a Map<String, Value>,
    errors: Vec<Error>,
}

/// Names of activations in transformers (`activations.py`).
const ACTIVATIONS: [(&str, Activation); 6] = [
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
];

/// The values of fields that a family's files may leave out.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    /// `vocab_size`; `None` must be given.
    pub vocab_size: Option<usize>,
    /// `num_attention_heads`; `None` must be given.
    pub heads: Option<usize>,
    /// `num_key_value_heads`; `None` is as many as there are attention heads.
    pub kv_heads: Option<usize>,
    /// `max_position_embeddings`.
    pub max_positions: usize,
    /// `tie_word_embeddings`.
    pub tied_head: bool,
    /// `head_dim`; `None` is `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// The field that holds the share of a head's values that are rotated may be below 1.
    pub partial_rotation: bool,
    /// `rope_theta`.
    pub theta: f64,
    /// `rope_local_base_freq`, for a family whose layers with a sliding window have a rotary embedding of their own;
    /// `None` is the same one for all layers.
    pub local_theta: Option<f64>,
}

/// The name of an activation in transformers.
pub fn activation_name(activation: Activation) -> &'static str {
    ACTIVATIONS.iter().find(|(_, known)| *known == activation).map_or("silu", |(name, _)| name)
}

/// Every `period`-th of the layers, counted from 1; none for a period of 0.
pub(super) fn every(period: usize, layers: usize) -> Vec<usize> {
    (0..layers.min(MAX_LAYERS)).filter(|layer| (layer + 1).checked_rem(period) == Some(0)).collect()
}

impl Defaults {
    /// Those of Llama.
    pub const LLAMA: Self = Self {
        vocab_size: None,
        heads: None,
        kv_heads: None,
        max_positions: 2048,
        tied_head: false,
        head_dim: None,
        partial_rotation: false,
        theta: DEFAULT_THETA,
        local_theta: None,
    };
}

impl<'a> Fields<'a> {
    /// The fields of `object`; `place` names the file, and the object within it.
    pub fn new(place: &'a str, object: &'a Map<String, Value>) -> Self {
        Self { place, object, errors: Vec::new() }
    }

    /// The file.
    pub fn place(&self) -> &'a str {
        self.place
    }

    /// Everything that was wrong.
    pub fn into_errors(self) -> Vec<Error> {
        self.errors
    }

    /// Takes over the problems of another reader.
    pub(super) fn take_errors(&mut self, mut other: Fields<'_>) {
        self.errors.append(&mut other.errors);
    }

    /// Reports a problem with a field.
    pub fn problem(&mut self, field: &str, message: impl Into<String>) {
        self.errors.push(Error::input(format_args!("{}: {field}", self.place), message));
    }

    /// A field that is there and not null, unchecked.
    pub fn value(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    /// Whether a field is there, null included.
    pub fn has(&self, field: &str) -> bool {
        self.object.contains_key(field)
    }

    /// A field that holds an object; `None` where it is absent or something else.
    pub fn object(&self, field: &str) -> Option<&'a Map<String, Value>> {
        self.value(field).and_then(Value::as_object)
    }

    /// The field through `read`; `None` where it is absent, null, or (then a problem) not `expected`.
    fn get<T>(&mut self, field: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let value = self.value(field)?;
        let found = read(value);
        if found.is_none() {
            self.problem(field, format!("is {}; expected {expected}", json::shortened(value)));
        }
        found
    }

    /// A whole number.
    pub fn count(&mut self, field: &str) -> Option<usize> {
        self.get(field, "a whole number", |value| value.as_u64().and_then(|value| value.try_into().ok()))
    }

    /// A whole number above zero.
    pub fn size(&mut self, field: &str) -> Option<usize> {
        self.get(field, "a whole number above 0", |value| {
            value.as_u64().and_then(|value| value.try_into().ok()).filter(|&size| size > 0)
        })
    }

    /// [`Self::size`] of a field that must be there; 0 stands in where it is not.
    pub fn required_size(&mut self, field: &str) -> usize {
        let reported = self.errors.len();
        self.size(field).unwrap_or_else(|| {
            if self.errors.len() == reported {
                self.problem(field, "is missing");
            }
            0
        })
    }

    /// [`Self::size`] with the value of a file that leaves it out; `None` must be given.
    fn size_or(&mut self, field: &str, default: Option<usize>) -> usize {
        match default {
            Some(default) => self.size(field).unwrap_or(default),
            None => self.required_size(field),
        }
    }

    /// A number.
    pub fn number(&mut self, field: &str) -> Option<f64> {
        self.get(field, "a number", Value::as_f64)
    }

    /// [`Self::number`] of a field that must be there; 1 stands in where it is not.
    pub fn required_number(&mut self, field: &str) -> f64 {
        let reported = self.errors.len();
        self.number(field).unwrap_or_else(|| {
            if self.errors.len() == reported {
                self.problem(field, "is missing");
            }
            1.0
        })
    }

    /// A number, `default` where the field is absent and `None` where it is null.
    pub fn number_or(&mut self, field: &str, default: Option<f64>) -> Option<f64> {
        if self.has(field) { self.number(field) } else { default }
    }

    /// True or false.
    pub fn flag(&mut self, field: &str) -> Option<bool> {
        self.get(field, "true or false", Value::as_bool)
    }

    /// A text.
    pub fn text(&mut self, field: &str) -> Option<String> {
        self.get(field, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// A list of numbers, empty where it is absent.
    pub fn floats(&mut self, field: &str) -> Vec<f32> {
        let floats = self.get(field, "a list of numbers", |value| {
            value.as_array()?.iter().map(|value| Some(value.as_f64()? as f32)).collect()
        });
        floats.unwrap_or_default()
    }

    /// The layers that see all positions by `layer_types`, which must name `layers` of them; `None` where it is absent.
    pub fn full_layers(&mut self, layers: usize) -> Option<Vec<usize>> {
        let types = self.get("layer_types", "a list of \"full_attention\" and \"sliding_attention\"", |types| {
            let known = |name: &&str| ["full_attention", "sliding_attention"].contains(name);
            types.as_array()?.iter().map(|name| name.as_str().filter(known).map(str::to_owned)).collect()
        });
        let types: Vec<String> = types?;
        if types.len() != layers {
            self.problem("layer_types", format!("names {} layers; num_hidden_layers is {layers}", types.len()));
            return Some(Vec::new());
        }
        Some((0..layers).filter(|&layer| types[layer] == "full_attention").collect())
    }

    /// A token id or a list of them.
    fn tokens(&mut self, field: &str) -> Vec<u32> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let tokens = self.get(field, "a token id or a list of token ids", |value| match value {
            Value::Array(values) => values.iter().map(id).collect(),
            value => id(value).map(|id| vec![id]),
        });
        tokens.unwrap_or_default()
    }

    /// The end tokens here that `known` does not hold yet are added to it.
    pub(in crate::model) fn add_eos_tokens(&mut self, known: &mut Vec<u32>) {
        for token in self.tokens("eos_token_id") {
            if !known.contains(&token) {
                known.push(token);
            }
        }
    }

    /// The fields that most families share, under their usual names.
    pub fn common(&mut self, family: &'static Family, defaults: Defaults) -> ModelConfig {
        self.check_supported();
        let hidden_size = self.required_size("hidden_size");
        let heads = self.size_or("num_attention_heads", defaults.heads);
        let kv_heads = match (self.has("num_key_value_heads"), defaults.kv_heads) {
            (true, _) if self.value("num_key_value_heads").is_none() => heads,
            (_, default) => self.size("num_key_value_heads").unwrap_or(default.unwrap_or(heads)),
        };
        let head_dim = match (self.size("head_dim"), defaults.head_dim) {
            (Some(head_dim), _) | (None, Some(head_dim)) => head_dim,
            (None, None) => self.derived_head_dim(hidden_size, heads),
        };
        let max_positions = self.size("max_position_embeddings").unwrap_or(defaults.max_positions);
        let (rope, local_rope) = self.ropes(&defaults, head_dim, max_positions);
        let mut eos_tokens = Vec::new();
        self.add_eos_tokens(&mut eos_tokens);
        ModelConfig {
            vocab_size: self.size_or("vocab_size", defaults.vocab_size),
            hidden_size,
            intermediate_size: self.required_size("intermediate_size"),
            layers: self.required_size("num_hidden_layers"),
            heads,
            kv_heads,
            head_dim,
            norm_eps: self.number(family.norm_eps).unwrap_or(1e-6),
            rope,
            local_rope,
            tied_head: self.flag("tie_word_embeddings").unwrap_or(defaults.tied_head),
            max_positions,
            bos_token: self.tokens("bos_token_id").first().copied(),
            eos_tokens,
            ..ModelConfig::empty(family)
        }
    }

    /// The sliding window of the layers from `first_layer` on, or of those that `layer_types` names: the window, and the
    /// layers that do without.
    pub fn sliding_window(
        &mut self,
        layers: usize,
        default: usize,
        used: bool,
        first_layer: usize,
    ) -> (Option<usize>, Vec<usize>) {
        let window = match self.has("sliding_window") {
            true => self.size("sliding_window"),
            false => Some(default),
        };
        let full_layers = match self.full_layers(layers) {
            Some(full_layers) => full_layers,
            None => (0..first_layer.min(layers).min(MAX_LAYERS)).collect(),
        };
        match window.filter(|_| used && full_layers.len() < layers) {
            Some(window) => (Some(window), full_layers),
            None => (None, Vec::new()),
        }
    }

    /// The rotary embedding, and that of layers with a sliding window if the family has another one for them.
    fn ropes(
        &mut self,
        defaults: &Defaults,
        head_dim: usize,
        max_positions: usize,
    ) -> (RopeConfig, Option<RopeConfig>) {
        let plain = |theta| RopeConfig { theta, ..RopeConfig::plain(head_dim) };
        match defaults.local_theta {
            None => (self.rope(plain(defaults.theta), defaults.partial_rotation, head_dim, max_positions), None),
            Some(local) => {
                let (full, sliding) = self.rope_by_layer_type(plain(defaults.theta), plain(local), max_positions);
                (full, Some(sliding))
            }
        }
    }

    /// The sliding window of the layers that `layer_types` names, or of all but every `period`-th: the window, and the
    /// layers that do without.
    pub fn alternating_window(&mut self, layers: usize, default: usize, period: usize) -> (Option<usize>, Vec<usize>) {
        let full_layers = match self.full_layers(layers) {
            Some(full_layers) => full_layers,
            None => every(period, layers),
        };
        let window = match self.has("sliding_window") {
            true => self.size("sliding_window"),
            false => Some(default),
        };
        if full_layers.len() == layers {
            return (None, Vec::new());
        }
        if self.has("sliding_window") && self.value("sliding_window").is_none() {
            let message = "is null, and layers are of type \"sliding_attention\"; expected a whole number above 0";
            self.problem("sliding_window", message);
        }
        (window, full_layers)
    }

    /// Settings that would make this another model than the decoder computes.
    fn check_supported(&mut self) {
        // transformers 5 lets a decoder look ahead by it.
        if self.flag("is_causal") == Some(false) {
            self.problem("is_causal", "is false; supported is attention that does not look ahead");
        }
        for field in ["num_experts", "num_local_experts"] {
            if let Some(experts) = self.count(field).filter(|experts| *experts > 0) {
                self.problem(field, format!("is {experts}; mixtures of experts are not supported"));
            }
        }
        let Some(quantization) = self.value("quantization_config") else { return };
        let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("(none named)");
        if method != "bitsandbytes" {
            let message = format!("the weights are quantised with {method}; supported is bitsandbytes");
            self.problem("quantization_config", message);
        }
    }

    /// The activation that a field names, or `default`.
    pub fn activation(&mut self, field: &str, default: Activation) -> Activation {
        let Some(name) = self.text(field) else { return default };
        match ACTIVATIONS.iter().find(|(known, _)| *known == name) {
            Some((_, activation)) => *activation,
            None => {
                let names: Vec<String> = ACTIVATIONS.iter().map(|(name, _)| format!("{name:?}")).collect();
                self.problem(field, format!("is {name:?}; supported are {}", names.join(", ")));
                default
            }
        }
    }

    /// Reports any other activation than SiLU.
    pub fn expect_silu(&mut self) {
        if let Some(activation) = self.text("hidden_act")
            && !matches!(activation.as_str(), "silu" | "swish")
        {
            self.problem("hidden_act", format!("is {activation:?}; supported is \"silu\""));
        }
    }

    /// `hidden_size / heads`, which must divide.
    fn derived_head_dim(&mut self, hidden_size: usize, heads: usize) -> usize {
        // Either has been reported where it could not be read.
        if hidden_size == 0 || heads == 0 {
            return 0;
        }
        if !hidden_size.is_multiple_of(heads) {
            let message =
                format!("is {heads}, which does not divide hidden_size {hidden_size}, and there is no head_dim");
            self.problem("num_attention_heads", message);
        }
        hidden_size / heads
    }
}
