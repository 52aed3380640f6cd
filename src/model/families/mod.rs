//! The architectures, one file each. A family is data: how it is recognised, how its configuration is read and written,
//! and how one of its layers looks. A new architecture is a file here and a line in [`FAMILIES`].

mod gemma2;
mod gemma3;
mod gpt_neox;
mod granite;
mod granite4;
mod larger;
mod layer;
mod llama;
mod mistral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;

use std::borrow::Cow;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::{Family, Fields, GgufConfig, Keys, LargerModel, ModelConfig};
use super::spec::OuterNames;
use super::vision::VisionConfig;
use crate::error::{Error, Result};
use crate::files::gguf::Gguf;
use crate::files::{Dtype, json as strict_json};
pub use larger::LARGER_MODELS;

/// Every architecture.
pub static FAMILIES: &[&Family] = &[
    &llama::LLAMA,
    &mistral::MISTRAL,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
    &gpt_neox::GPT_NEOX,
    &gemma2::GEMMA2,
    &gemma3::GEMMA3,
    &olmo2::OLMO2,
    &smollm3::SMOLLM3,
    &granite::GRANITE,
    &granite4::GRANITE4,
    &phi3::PHI3,
];

/// The names of every family, and those within larger models.
fn all_names() -> impl Iterator<Item = OuterNames> {
    FAMILIES.iter().map(|family| family.names).chain(LARGER_MODELS.iter().map(|larger| larger.names))
}

/// Beginnings of names in checkpoints and in older adapters of every family, and what transformers puts in their place.
pub fn stored_prefixes() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    let of_larger = LARGER_MODELS.iter().flat_map(|larger| larger.stored_prefixes);
    of_larger.chain(FAMILIES.iter().flat_map(|family| family.stored_prefixes))
}

/// Whether a module of this path is the output head in some family.
pub fn is_head(module: &str) -> bool {
    all_names().any(|names| names.head == module)
}

/// Whether a module of this path is the embedding in some family, in a larger model around the decoder as well.
pub fn is_embedding(module: &str) -> bool {
    let name = |path: &str| path.rsplit('.').next().map(str::to_owned);
    all_names().any(|names| name(names.embedding) == name(module))
}

/// Whether a tensor of this name is the weight of the embedding or of the head in some family.
pub fn is_embedding_or_head(name: &str) -> bool {
    let module = name.strip_suffix(".weight");
    module.is_some_and(|module| is_head(module) || all_names().any(|names| names.embedding == module))
}

impl ModelConfig {
    /// Reads `config.json`, and the end tokens of a `generation_config.json` beside it. Reports every
    /// problem at once.
    ///
    /// # Errors
    /// Input: a file that cannot be read or is not JSON, an unknown architecture, fields that are missing or make no
    /// sense.
    pub fn from_json_file(path: &Path) -> Result<Self> {
        let config = strict_json::read(path)?;
        let generation_path = path.with_file_name("generation_config.json");
        let generation = if generation_path.exists() { Some(strict_json::read(&generation_path)?) } else { None };
        Self::from_json(&path.display().to_string(), &config, generation.as_ref())
    }

    /// The configuration that `config` describes, with the end tokens of `generation` added; `place` names
    /// the file.
    ///
    /// # Errors
    /// Those of [`Self::from_json_file`].
    pub fn from_json(place: &str, config: &Value, generation: Option<&Value>) -> Result<Self> {
        let Value::Object(object) = config else {
            return Err(Error::input(place, "is not a JSON object"));
        };
        let Recognised { family, object: own, larger } = recognised(place, object)?;
        let inner_place = larger.map_or(place.to_owned(), |_| format!("{place}: {TEXT_CONFIG}"));
        let mut fields = Fields::new(&inner_place, &own);
        let mut config = (family.from_json)(&mut fields);
        let mut errors = fields.into_errors();
        let beside = format!("{place} (generation_config.json)");
        let whole = larger.map(|_| (place, object));
        config.names = larger.map_or(config.names, |larger| larger.names);
        config.larger = larger;
        let generation = generation.and_then(Value::as_object).map(|object| (beside.as_str(), object));
        if let Some((place, object)) = whole {
            let mut fields = Fields::new(place, object);
            config.tied_head = fields.flag("tie_word_embeddings").unwrap_or(config.tied_head);
            errors.extend(fields.into_errors());
            if let Some(kind) = larger.and_then(|larger| larger.vision) {
                let (vision, problems) = VisionConfig::read(place, object, kind, config.vocab_size);
                errors.extend(problems);
                config.vision = Some(vision);
            }
        }
        for (place, object) in whole.into_iter().chain(generation) {
            let mut fields = Fields::new(place, object);
            fields.add_eos_tokens(&mut config.eos_tokens);
            errors.extend(fields.into_errors());
        }
        config.checked(&inner_place, errors)
    }

    /// The configuration that a GGUF file's metadata and tensors describe. Reports every problem at once.
    ///
    /// # Errors
    /// Those of [`Self::from_json_file`].
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let name = gguf.architecture().unwrap_or("(none named)");
        let family = FAMILIES.iter().copied().find(|family| family.gguf == name);
        let family = family.ok_or_else(|| unsupported(gguf.place(), name))?;
        let mut keys = Keys::reading(gguf, name);
        let mut config = Self::empty(family);
        (family.gguf_keys)(&mut keys, &mut config);
        config.checked(gguf.place(), keys.into_errors())
    }

    /// The keys and the small tensors of a GGUF file that describe this model; its tokenizer's keys are apart.
    ///
    /// # Errors
    /// Input: everything about the model that its architecture in llama.cpp has no place for, as far as keys show it.
    pub fn to_gguf(&self) -> Result<GgufConfig> {
        let mut keys = Keys::writing(self.family.gguf);
        (self.family.gguf_keys)(&mut keys, &mut self.clone());
        keys.into_written()
    }

    /// A `config.json` that transformers loads, for a model whose base has none: one that came from GGUF. Its weights
    /// are stored as `dtype` (`F32`, `F16` or `BF16`).
    pub fn to_hf_json(&self, dtype: Dtype) -> Value {
        let mut config = json!({
            "architectures": [self.family.class_name],
            "model_type": self.family.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            self.family.norm_eps: self.norm_eps,
            "rope_theta": self.rope.theta,
            "rope_scaling": self.rope.scaling_json(self.max_positions),
            "tie_word_embeddings": self.tied_head,
            "max_position_embeddings": self.max_positions,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "bos_token_id": self.bos_token,
            "eos_token_id": match self.eos_tokens.as_slice() {
                [] => Value::Null,
                [one] => json!(one),
                several => json!(several),
            },
            "torch_dtype": dtype.torch_name(),
            "use_cache": true,
        });
        if let Some(object) = config.as_object_mut() {
            (self.family.to_json)(self, object);
        }
        if !self.full_layers.is_empty() {
            let kind = |layer| if self.full_layers.contains(&layer) { "full_attention" } else { "sliding_attention" };
            config["layer_types"] = (0..self.layers).map(kind).collect();
        }
        config
    }
}

/// The field of a larger model's `config.json` with the decoder's configuration.
pub(super) const TEXT_CONFIG: &str = "text_config";

/// The family of a `config.json`, and the object with the decoder's fields.
struct Recognised<'a> {
    family: &'static Family,
    object: Cow<'a, Map<String, Value>>,
    /// The larger model, where the object is its `text_config`.
    larger: Option<&'static LargerModel>,
}

/// The family by its class name and by `model_type`, either of which may be absent. transformers goes by `model_type`,
/// other tools by the class: where they disagree, no choice is right.
fn recognised<'a>(place: &str, object: &'a Map<String, Value>) -> Result<Recognised<'a>> {
    let model_type = object.get("model_type").and_then(Value::as_str);
    let class = match object.get("architectures") {
        None | Some(Value::Null) => None,
        Some(Value::Array(names)) => match names.as_slice() {
            [Value::String(name)] => Some(name.as_str()),
            names => return Err(unsupported(place, &Value::from(names).to_string())),
        },
        Some(other) => {
            let message = format!("is {other}; expected a list with one name");
            return Err(Error::input(format_args!("{place}: architectures"), message));
        }
    };
    // The decoder saved without its head is "LlamaModel"; the first conversions of LLaMA write "LLaMAForCausalLM".
    let with_head = class.map(|class| match class.strip_suffix("Model") {
        Some(family) => format!("{family}ForCausalLM"),
        None => class.to_owned(),
    });
    let is_named = |(class_name, type_name): &(&str, &str)| match &with_head {
        Some(class) => class_name.eq_ignore_ascii_case(class),
        None => Some(*type_name) == model_type,
    };
    let agrees = |expected: &str| match (class, model_type) {
        (Some(class), Some(found)) if found != expected => {
            let message = format!("is {found:?}, and `architectures` names {class}; expected {expected:?}");
            Err(Error::input(format_args!("{place}: model_type"), message))
        }
        _ => Ok(()),
    };
    let mut larger_models = LARGER_MODELS.iter().copied();
    if let Some(larger) = larger_models.find(|larger| is_named(&(larger.class_name, larger.model_type))) {
        agrees(larger.model_type)?;
        let (family, object) = decoder_within(place, object, larger)?;
        return Ok(Recognised { family, object, larger: Some(larger) });
    }
    let family = FAMILIES.iter().copied().find(|family| is_named(&(family.class_name, family.model_type)));
    let family = family.ok_or_else(|| unsupported(place, class.or(model_type).unwrap_or("(none named)")))?;
    agrees(family.model_type)?;
    Ok(Recognised { family, object: Cow::Borrowed(object), larger: None })
}

/// The family of the decoder in a larger model, and the object with its fields.
fn decoder_within<'a>(
    place: &str,
    object: &'a Map<String, Value>,
    larger: &LargerModel,
) -> Result<(&'static Family, Cow<'a, Map<String, Value>>)> {
    let Some(text) = object.get(TEXT_CONFIG).and_then(Value::as_object) else {
        return Err(Error::input(format_args!("{place}: {TEXT_CONFIG}"), "is missing or not an object"));
    };
    let found = text.get("model_type").and_then(Value::as_str).or(larger.decoder).unwrap_or(llama::LLAMA.model_type);
    let type_place = format!("{place}: {TEXT_CONFIG}: model_type");
    if let Some(expected) = larger.decoder.filter(|expected| *expected != found) {
        return Err(Error::input(type_place, format!("is {found:?}; expected {expected:?}")));
    }
    let family = FAMILIES.iter().copied().find(|family| family.model_type == found);
    let family = family.ok_or_else(|| unsupported(&type_place, found))?;
    let mut text = Cow::Borrowed(text);
    if larger.vision.is_some() && *family == llama::LLAMA {
        for (field, size) in larger::LLAMA_SIZES {
            if !text.contains_key(field) {
                text.to_mut().insert(field.to_owned(), json!(size));
            }
        }
    }
    Ok((family, text))
}

/// Makes the configuration of a larger model that of its decoder alone, which is of `family`.
pub(super) fn keep_decoder(family: &Family, config: &mut Map<String, Value>) {
    /// Fields that belong to the whole and hold for the decoder.
    const OUTER: [&str; 6] =
        ["bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "dtype", "torch_dtype"];
    let Some(Value::Object(mut text)) = config.get(TEXT_CONFIG).cloned() else { return };
    text.extend(OUTER.into_iter().filter_map(|field| Some((field.to_owned(), config.get(field)?.clone()))));
    text.insert("model_type".to_owned(), json!(family.model_type));
    *config = text;
}

/// The error for an architecture that is in no file here.
fn unsupported(place: &str, found: &str) -> Error {
    let larger = LARGER_MODELS.iter().map(|larger| larger.class_name);
    let classes: Vec<&str> = FAMILIES.iter().map(|family| family.class_name).chain(larger).collect();
    let mut gguf: Vec<&str> = FAMILIES.iter().map(|family| family.gguf).collect();
    gguf.sort_unstable();
    gguf.dedup();
    Error::input(place, format!("the architecture {found} is not supported")).hint(format!(
        "supported are {}, and GGUF files of architecture {}",
        classes.join(", "),
        gguf.join(", ")
    ))
}
