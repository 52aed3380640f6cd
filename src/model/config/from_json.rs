//! `config.json` and `generation_config.json` as transformers writes them, old and new style.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Architecture, MAX_LAYERS, ModelConfig, RopeScaling, unsupported};
use crate::error::{Error, Result};
use crate::files::json;

impl ModelConfig {
    /// Reads `config.json`, and the end tokens of a `generation_config.json` beside it. Reports every
    /// problem at once.
    pub fn from_json_file(path: &Path) -> Result<Self> {
        let config = json::read(path)?;
        let generation_path = path.with_file_name("generation_config.json");
        let generation = if generation_path.exists() { Some(json::read(&generation_path)?) } else { None };
        Self::from_json(&path.display().to_string(), &config, generation.as_ref())
    }

    /// The configuration that `config` describes, with the end tokens of `generation` added; `place` names
    /// the file.
    pub fn from_json(place: &str, config: &Value, generation: Option<&Value>) -> Result<Self> {
        let Value::Object(object) = config else {
            return Err(Error::input(place, "is not a JSON object"));
        };
        let architecture = architecture(place, object)?;
        let mut fields = Fields { place, object, errors: Vec::new() };
        check_supported(architecture, &mut fields);
        let hidden_size = fields.required_size("hidden_size");
        let heads = fields.required_size("num_attention_heads");
        let default_kv_heads = match architecture {
            Architecture::Llama => heads,
            Architecture::Mistral => 8,
            Architecture::Qwen2 => 32,
        };
        let kv_heads = match object.get("num_key_value_heads") {
            Some(Value::Null) => heads,
            _ => fields.size("num_key_value_heads").unwrap_or(default_kv_heads),
        };
        let head_dim = fields.size("head_dim").unwrap_or_else(|| derived_head_dim(hidden_size, heads, &mut fields));
        let attention_bias = fields.flag("attention_bias").unwrap_or(false);
        let layers = fields.required_size("num_hidden_layers");
        let default_positions = match architecture {
            Architecture::Llama => 2048,
            Architecture::Mistral => 4096 * 32,
            Architecture::Qwen2 => 32_768,
        };
        let max_positions = fields.size("max_position_embeddings").unwrap_or(default_positions);
        let (sliding_window, full_layers) = sliding_window(architecture, layers, &mut fields);
        let (rope_theta, rope_scaling) = rope(&mut fields, max_positions);
        let config = Self {
            architecture,
            vocab_size: fields.required_size("vocab_size"),
            hidden_size,
            intermediate_size: fields.required_size("intermediate_size"),
            layers,
            heads,
            kv_heads,
            head_dim,
            norm_eps: fields.number("rms_norm_eps").unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            tied_head: fields.flag("tie_word_embeddings").unwrap_or(false),
            qkv_bias: match architecture {
                Architecture::Llama => attention_bias,
                Architecture::Mistral => false,
                Architecture::Qwen2 => true,
            },
            o_bias: architecture == Architecture::Llama && attention_bias,
            mlp_bias: architecture == Architecture::Llama && fields.flag("mlp_bias").unwrap_or(false),
            sliding_window,
            full_layers,
            max_positions,
            bos_token: fields.tokens("bos_token_id").first().copied(),
            eos_tokens: eos_tokens(&mut fields, generation),
        };
        let errors = fields.errors;
        config.checked(place, errors)
    }
}

/// The architecture by its class name and by `model_type`, either of which may be absent. transformers goes by
/// `model_type`, other tools by the class: where they disagree, no choice is right.
fn architecture(place: &str, object: &Map<String, Value>) -> Result<Architecture> {
    let known = [Architecture::Llama, Architecture::Mistral, Architecture::Qwen2];
    let model_type = object.get("model_type").and_then(Value::as_str);
    let by_type = known.into_iter().find(|architecture| Some(architecture.model_type()) == model_type);
    let class = match object.get("architectures") {
        None | Some(Value::Null) => {
            return by_type.ok_or_else(|| unsupported(place, model_type.unwrap_or("(none named)")));
        }
        Some(Value::Array(names)) => match names.as_slice() {
            [Value::String(name)] => name,
            names => return Err(unsupported(place, &Value::from(names).to_string())),
        },
        Some(other) => {
            let message = format!("is {other}; expected a list with one name");
            return Err(Error::input(format_args!("{place}: architectures"), message));
        }
    };
    // The decoder saved without its head is "LlamaModel"; the first conversions of LLaMA write "LLaMAForCausalLM".
    let with_head = class.strip_suffix("Model").map_or(class.clone(), |family| format!("{family}ForCausalLM"));
    let by_class = known.into_iter().find(|architecture| architecture.class_name().eq_ignore_ascii_case(&with_head));
    let architecture = by_class.ok_or_else(|| unsupported(place, class))?;
    match model_type {
        Some(name) if name != architecture.model_type() => {
            let message =
                format!("is {name:?}, and `architectures` names {class}; expected {:?}", architecture.model_type());
            Err(Error::input(format_args!("{place}: model_type"), message))
        }
        _ => Ok(architecture),
    }
}

/// Settings that would make this another model than the decoder computes.
fn check_supported(architecture: Architecture, fields: &mut Fields) {
    if let Some(activation) = fields.text("hidden_act")
        && !matches!(activation.as_str(), "silu" | "swish")
    {
        fields.problem("hidden_act", format!("is {activation:?}; supported is \"silu\""));
    }
    // transformers 5 lets a decoder look ahead by it.
    if fields.flag("is_causal") == Some(false) {
        fields.problem("is_causal", "is false; supported is attention that does not look ahead".to_owned());
    }
    if architecture == Architecture::Mistral && fields.flag("attention_bias") == Some(true) {
        fields.problem("attention_bias", "is true, which no Mistral has".to_owned());
    }
    let method = match fields.object.get("quantization_config") {
        None | Some(Value::Null) => return,
        Some(quantization) => quantization.get("quant_method").and_then(Value::as_str).unwrap_or("(none named)"),
    };
    if method != "bitsandbytes" {
        let message = format!("the weights are quantised with {method}; supported is bitsandbytes");
        fields.problem("quantization_config", message);
    }
}

fn derived_head_dim(hidden_size: usize, heads: usize, fields: &mut Fields) -> usize {
    // Either has been reported where it could not be read.
    if heads == 0 || hidden_size == 0 {
        return 0;
    }
    if !hidden_size.is_multiple_of(heads) {
        let message = format!("is {heads}, which does not divide hidden_size {hidden_size}, and there is no head_dim");
        fields.problem("num_attention_heads", message);
    }
    hidden_size / heads
}

/// `rope_theta` with `rope_scaling`, or `rope_parameters` that hold both (transformers 5). Where a file has the two, and
/// where it leaves something out, this is transformers 5's choice (`RotaryEmbeddingConfigMixin`).
fn rope(fields: &mut Fields, max_positions: usize) -> (f64, RopeScaling) {
    const DEFAULT_THETA: f64 = 10_000.0;
    fields.refuse_partial_rotation();
    let theta = fields.number("rope_theta");
    let original_beside = fields.size("original_max_position_embeddings");
    let key = ["rope_scaling", "rope_parameters"].into_iter().find(|key| match fields.object.get(*key) {
        None | Some(Value::Null) => false,
        Some(Value::Object(parameters)) => !parameters.is_empty(),
        Some(_) => true,
    });
    let Some(key) = key else { return (theta.unwrap_or(DEFAULT_THETA), RopeScaling::None) };
    let Some(Value::Object(object)) = fields.object.get(key) else {
        fields.problem(key, "is not an object".to_owned());
        return (theta.unwrap_or(DEFAULT_THETA), RopeScaling::None);
    };
    let place = format!("{}: {key}", fields.place);
    let mut inner = Fields { place: &place, object, errors: Vec::new() };
    inner.refuse_partial_rotation();
    // Else the parameters of a layer type would be passed over, and every layer get the default ones.
    for (name, _) in object.iter().filter(|(_, value)| value.is_object()) {
        inner.problem(name, "has parameters of its own; supported are the same ones for every layer".to_owned());
    }
    let theta = inner.number("rope_theta").or(theta).unwrap_or(DEFAULT_THETA);
    let kind = inner.text("rope_type").or_else(|| inner.text("type"));
    let scaling = match kind.as_deref() {
        Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: inner.required_number("factor") },
        Some("llama3") => RopeScaling::Llama3 {
            factor: inner.required_number("factor"),
            low_freq_factor: inner.required_number("low_freq_factor"),
            high_freq_factor: inner.required_number("high_freq_factor"),
            original_max_positions: original_beside
                .or_else(|| inner.size("original_max_position_embeddings"))
                .unwrap_or(max_positions),
        },
        // What `to_hf_json` writes for a GGUF file's own factors: the same at every length.
        Some("longrope") if inner.same_factors_at_every_length() => RopeScaling::Factors(inner.floats("short_factor")),
        Some(other) => {
            inner.problem("rope_type", format!("is {other:?}; supported are \"default\", \"linear\" and \"llama3\""));
            RopeScaling::None
        }
        None if !object.contains_key("factor") => RopeScaling::None,
        None => {
            inner.problem("rope_type", "is missing, and there is a factor".to_owned());
            RopeScaling::None
        }
    };
    fields.errors.append(&mut inner.errors);
    (theta, scaling)
}

/// The window, and the layers that do without. Qwen2 turns it on apart, and from a layer on; either it or Mistral may say
/// it layer by layer (transformers 5 then calls a Mistral "ministral").
fn sliding_window(architecture: Architecture, layers: usize, fields: &mut Fields) -> (Option<usize>, Vec<usize>) {
    const DEFAULT: usize = 4096;
    if architecture == Architecture::Llama {
        return (None, Vec::new());
    }
    let window = match fields.object.contains_key("sliding_window") {
        true => fields.size("sliding_window"),
        false => Some(DEFAULT),
    };
    let (used, first_layer) = match architecture {
        Architecture::Qwen2 => (
            fields.flag("use_sliding_window").unwrap_or(false),
            fields.count("max_window_layers").unwrap_or(28).min(layers).min(MAX_LAYERS),
        ),
        _ => (true, 0),
    };
    let full_layers = match fields.layer_types() {
        Some(types) if types.len() != layers => {
            fields.problem("layer_types", format!("names {} layers; num_hidden_layers is {layers}", types.len()));
            Vec::new()
        }
        Some(types) => (0..layers).filter(|&layer| types[layer] == "full_attention").collect(),
        None => (0..first_layer).collect(),
    };
    match window.filter(|_| used && full_layers.len() < layers) {
        Some(window) => (Some(window), full_layers),
        None => (None, Vec::new()),
    }
}

/// Those of `config.json`, then those that only `generation_config.json` names.
fn eos_tokens(fields: &mut Fields, generation: Option<&Value>) -> Vec<u32> {
    let mut tokens = fields.tokens("eos_token_id");
    if let Some(Value::Object(object)) = generation {
        let place = format!("{} (generation_config.json)", fields.place);
        let mut beside = Fields { place: &place, object, errors: Vec::new() };
        for token in beside.tokens("eos_token_id") {
            if !tokens.contains(&token) {
                tokens.push(token);
            }
        }
        fields.errors.append(&mut beside.errors);
    }
    tokens
}

/// Fields of a JSON object, read with their types checked; what is wrong collects in `errors`.
struct Fields<'a> {
    place: &'a str,
    object: &'a Map<String, Value>,
    errors: Vec<Error>,
}

impl Fields<'_> {
    fn problem(&mut self, field: &str, message: String) {
        self.errors.push(Error::input(format_args!("{}: {field}", self.place), message));
    }

    /// The field through `read`; `None` where it is absent, null, or (then a problem) not `expected`.
    fn get<T>(&mut self, field: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let value = self.object.get(field).filter(|value| !value.is_null())?;
        let found = read(value);
        if found.is_none() {
            self.problem(field, format!("is {}; expected {expected}", json::shortened(value)));
        }
        found
    }

    fn count(&mut self, field: &str) -> Option<usize> {
        self.get(field, "a whole number", |value| value.as_u64().and_then(|value| value.try_into().ok()))
    }

    /// A whole number above zero.
    fn size(&mut self, field: &str) -> Option<usize> {
        self.get(field, "a whole number above 0", |value| {
            value.as_u64().and_then(|value| value.try_into().ok()).filter(|&size| size > 0)
        })
    }

    /// [`Self::size`] of a field that must be there; 0 stands in where it is not.
    fn required_size(&mut self, field: &str) -> usize {
        let reported = self.errors.len();
        self.size(field).unwrap_or_else(|| {
            if self.errors.len() == reported {
                self.problem(field, "is missing".to_owned());
            }
            0
        })
    }

    fn number(&mut self, field: &str) -> Option<f64> {
        self.get(field, "a number", Value::as_f64)
    }

    fn required_number(&mut self, field: &str) -> f64 {
        let reported = self.errors.len();
        self.number(field).unwrap_or_else(|| {
            if self.errors.len() == reported {
                self.problem(field, "is missing".to_owned());
            }
            1.0
        })
    }

    fn flag(&mut self, field: &str) -> Option<bool> {
        self.get(field, "true or false", Value::as_bool)
    }

    fn text(&mut self, field: &str) -> Option<String> {
        self.get(field, "a string", |value| value.as_str().map(str::to_owned))
    }

    fn refuse_partial_rotation(&mut self) {
        if let Some(factor) = self.number("partial_rotary_factor")
            && factor != 1.0
        {
            self.problem("partial_rotary_factor", format!("is {factor}; supported is 1"));
        }
    }

    fn same_factors_at_every_length(&self) -> bool {
        let field = |name: &str| self.object.get(name).filter(|value| !value.is_null());
        let attention = field("attention_factor").and_then(Value::as_f64);
        field("short_factor").is_some() && field("short_factor") == field("long_factor") && attention == Some(1.0)
    }

    fn floats(&mut self, field: &str) -> Vec<f32> {
        let floats = self.get(field, "a list of numbers", |value| {
            value.as_array()?.iter().map(|value| Some(value.as_f64()? as f32)).collect()
        });
        floats.unwrap_or_default()
    }

    fn layer_types(&mut self) -> Option<Vec<String>> {
        self.get("layer_types", "a list of \"full_attention\" and \"sliding_attention\"", |types| {
            let known = |name: &&str| ["full_attention", "sliding_attention"].contains(name);
            types.as_array()?.iter().map(|name| name.as_str().filter(known).map(str::to_owned)).collect()
        })
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
}
