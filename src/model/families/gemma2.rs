//! Gemma 2: norms with one plus the stored weight before and after both sublayers, scaled embeddings, soft caps, and a
//! sliding window in every other layer.

use serde_json::{Map, Value, json};

use super::layer::LayerSpec;
use super::llama;
use crate::model::config::{
    Defaults, EmbeddingMultiplier, Family, Fields, GgufHead, Keys, ModelConfig, activation_name,
};
use crate::model::spec::{BlockSpec, NormStyle};
use crate::ops::activation::Activation;

/// Gemma 2.
pub static GEMMA2: Family = Family {
    class_name: "Gemma2ForCausalLM",
    model_type: "gemma2",
    gguf: "gemma2",
    gguf_head: GgufHead::Never,
    norm: NormStyle::RMS_PLUS_ONE,
    from_json,
    gguf_keys,
    to_json,
    block,
    ..llama::FAMILY
};

/// The window of Gemma 2 and 3 where a file does not say it.
pub(super) const DEFAULT_WINDOW: usize = 4096;
/// Every second layer sees all positions.
const PERIOD: usize = 2;
/// llama.cpp knows the 27B model by its layers.
const LAYERS_OF_27B: usize = 46;

fn from_json(fields: &mut Fields<'_>) -> ModelConfig {
    let defaults = Defaults {
        vocab_size: Some(256_000),
        heads: Some(8),
        kv_heads: Some(4),
        max_positions: 8192,
        tied_head: true,
        head_dim: Some(256),
        ..Defaults::LLAMA
    };
    let common = fields.common(&GEMMA2, defaults);
    // transformers passes the field over in a Gemma 2.
    let period = fields.size("sliding_window_pattern").filter(|_| fields.value("layer_types").is_none());
    if let Some(period) = period.filter(|period| *period != PERIOD) {
        let message = format!("is {period}; expected {PERIOD}, or `layer_types` for another order of the layers");
        fields.problem("sliding_window_pattern", message);
    }
    let (sliding_window, full_layers) = fields.alternating_window(common.layers, DEFAULT_WINDOW, PERIOD);
    let attention_softcap = fields.number_or("attn_logit_softcapping", Some(50.0));
    let logit_softcap = fields.number_or("final_logit_softcapping", Some(30.0));
    let config = ModelConfig { sliding_window, full_layers, attention_softcap, logit_softcap, ..common };
    with_common_fields(fields, config)
}

/// The fields that Gemma 2 and 3 share beyond those of most families.
pub(super) fn with_common_fields(fields: &mut Fields<'_>, config: ModelConfig) -> ModelConfig {
    const DEFAULT_BOS: u32 = 2;
    const DEFAULT_EOS: u32 = 1;
    const DEFAULT_SCALAR: usize = 256;
    if fields.flag("use_bidirectional_attention") == Some(true) {
        let message = "is true; supported is attention that does not look ahead";
        fields.problem("use_bidirectional_attention", message);
    }
    let bias = fields.flag("attention_bias").unwrap_or(false);
    let scalar = fields.size("query_pre_attn_scalar").unwrap_or(DEFAULT_SCALAR);
    let config = ModelConfig {
        activation: fields.activation("hidden_activation", Activation::GeluTanh),
        qkv_bias: bias,
        o_bias: bias,
        bos_token: if fields.has("bos_token_id") { config.bos_token } else { Some(DEFAULT_BOS) },
        eos_tokens: if fields.has("eos_token_id") { config.eos_tokens.clone() } else { vec![DEFAULT_EOS] },
        ..config
    };
    with_scales(config, scalar)
}

/// The factors on the embedding, `sqrt(hidden_size)`, and on the scores, `1 / sqrt(scalar)`.
pub(super) fn with_scales(config: ModelConfig, scalar: usize) -> ModelConfig {
    ModelConfig {
        embedding_multiplier: EmbeddingMultiplier::Rounded((config.hidden_size as f64).sqrt()),
        // The usual factor, if the scalar is the width of a head.
        attention_multiplier: (scalar != config.head_dim).then(|| 1.0 / (scalar as f64).sqrt()),
        ..config
    }
}

fn gguf_keys(keys: &mut Keys<'_>, config: &mut ModelConfig) {
    keys.common(config, llama::RMS_EPS, false);
    if keys.file().is_some() {
        config.sliding_window = config.sliding_window.or(Some(DEFAULT_WINDOW));
        (config.attention_softcap, config.logit_softcap) = (Some(50.0), Some(30.0));
    }
    match config.sliding_window {
        Some(_) => keys.full_layers(config, PERIOD),
        // Else llama.cpp assumes the usual window in every second layer.
        None => keys.size("attention.sliding_window_pattern", &mut 1),
    }
    keys.optional_number("attn_logit_softcapping", &mut config.attention_softcap);
    keys.optional_number("final_logit_softcapping", &mut config.logit_softcap);
    if keys.file().is_some() {
        if config.full_layers.len() == config.layers {
            config.sliding_window = None;
            config.full_layers.clear();
        }
        with_gguf_scales(config, LAYERS_OF_27B);
    }
}

/// The activation and the factors of a GGUF file, which states neither: the scalar of the scores is the width of a head,
/// except in the largest model, known by its layers, where it is `hidden_size / heads` (llama.cpp, `gemma2.cpp` and
/// `gemma3.cpp`).
pub(super) fn with_gguf_scales(config: &mut ModelConfig, layers_of_largest: usize) {
    let scalar = match config.layers == layers_of_largest {
        true => config.hidden_size.checked_div(config.heads).unwrap_or(config.head_dim),
        false => config.head_dim,
    };
    *config = with_scales(ModelConfig { activation: Activation::GeluTanh, ..config.clone() }, scalar);
}

pub(super) fn to_json(config: &ModelConfig, object: &mut Map<String, Value>) {
    object.shift_remove("hidden_act");
    let scalar = config.attention_multiplier.map_or(config.head_dim as f64, |factor| (1.0 / (factor * factor)).round());
    let kind = |layer| if config.window_of(layer).is_some() { "sliding_attention" } else { "full_attention" };
    let fields = [
        ("hidden_activation", json!(activation_name(config.activation))),
        ("query_pre_attn_scalar", json!(scalar as usize)),
        ("attention_bias", json!(config.qkv_bias)),
        // transformers makes a mask of a window even where no layer has one.
        ("sliding_window", json!(config.sliding_window.unwrap_or(DEFAULT_WINDOW))),
        ("layer_types", (0..config.layers).map(kind).collect()),
        ("attn_logit_softcapping", json!(config.attention_softcap)),
        ("final_logit_softcapping", json!(config.logit_softcap)),
    ];
    object.extend(fields.map(|(field, value)| (field.to_owned(), value)));
}

/// A layer with four norms.
pub(super) fn block(config: &ModelConfig, layer: usize) -> BlockSpec {
    let spec = LayerSpec::new(config, layer);
    let hidden = config.hidden_size;
    BlockSpec {
        after_attention: Some(spec.norm("post_attention_layernorm", "post_attention_norm", hidden)),
        before_mlp: Some(spec.norm("pre_feedforward_layernorm", "ffn_norm", hidden)),
        after_mlp: Some(spec.norm("post_feedforward_layernorm", "post_ffw_norm", hidden)),
        ..llama::unpermuted_block(config, layer)
    }
}
