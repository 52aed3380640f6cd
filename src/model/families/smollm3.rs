//! SmolLM3: Llama's layer, with some layers that do not rotate queries and keys.

use serde_json::{Map, Value, json};

use super::llama;
use crate::model::config::{Defaults, Family, Fields, Keys, ModelConfig};

/// SmolLM3.
pub static SMOLLM3: Family = Family {
    class_name: "SmolLM3ForCausalLM",
    model_type: "smollm3",
    gguf: "smollm3",
    from_json,
    gguf_keys,
    to_json,
    ..llama::FAMILY
};

/// Every fourth layer does not rotate, unless a configuration says otherwise. GGUF files cannot say otherwise.
const DEFAULT_INTERVAL: usize = 4;

fn from_json(fields: &mut Fields<'_>) -> ModelConfig {
    fields.expect_silu();
    let attention_bias = fields.flag("attention_bias").unwrap_or(false);
    let mlp_bias = fields.flag("mlp_bias").unwrap_or(false);
    let defaults =
        Defaults { kv_heads: Some(4), max_positions: 32_768, theta: 2_000_000.0, tied_head: true, ..Defaults::LLAMA };
    let common = fields.common(&SMOLLM3, defaults);
    let unrotated_layers = unrotated_layers(fields, common.layers);
    let (sliding_window, full_layers) = window(fields, common.layers, &unrotated_layers);
    ModelConfig {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias,
        unrotated_layers,
        sliding_window,
        full_layers,
        ..common
    }
}

/// The layers whose entry in `no_rope_layers` is 0, despite its name; without that list, every
/// `no_rope_layer_interval`-th.
fn unrotated_layers(fields: &mut Fields<'_>, layers: usize) -> Vec<usize> {
    let Some(entries) = fields.counts("no_rope_layers") else {
        let interval = fields.size("no_rope_layer_interval").unwrap_or(DEFAULT_INTERVAL);
        return every(interval, layers);
    };
    if entries.len() < layers {
        let message = format!("has {} entries; expected one for each of the {layers} layers", entries.len());
        fields.problem("no_rope_layers", message);
        return Vec::new();
    }
    if let Some(entry) = entries.iter().find(|entry| **entry > 1) {
        fields.problem(
            "no_rope_layers",
            format!("holds {entry}; expected 1 for a layer that rotates, 0 for one that does not"),
        );
    }
    (0..layers).filter(|layer| entries[*layer] == 0).collect()
}

fn every(interval: usize, layers: usize) -> Vec<usize> {
    (0..layers).filter(|layer| (layer + 1).is_multiple_of(interval)).collect()
}

/// The window, which is turned on apart, and the layers without it. Without `layer_types` it is that of the layers that
/// do not rotate (transformers `SmolLM3Config`).
fn window(fields: &mut Fields<'_>, layers: usize, unrotated: &[usize]) -> (Option<usize>, Vec<usize>) {
    let used = fields.flag("use_sliding_window").unwrap_or(false);
    let window = fields.size("sliding_window").filter(|_| used);
    let full_layers = fields.full_layers(layers);
    let Some(window) = window else { return (None, Vec::new()) };
    let full_layers = full_layers.unwrap_or_else(|| (0..layers).filter(|layer| !unrotated.contains(layer)).collect());
    if full_layers.len() == layers { (None, Vec::new()) } else { (Some(window), full_layers) }
}

fn gguf_keys(keys: &mut Keys<'_>, config: &mut ModelConfig) {
    keys.common(config, llama::RMS_EPS, false);
    let Some(gguf) = keys.file() else { return };
    Keys::take_biases(gguf, config);
    config.unrotated_layers = every(DEFAULT_INTERVAL, config.layers);
    if config.qkv_bias != config.o_bias {
        let message = "the biases of blk.0 are not those of its architecture: SmolLM3 has them on all four attention \
                       projections or on none";
        keys.problem("blk.0", message);
    }
}

fn to_json(config: &ModelConfig, object: &mut Map<String, Value>) {
    let rotates = |layer: usize| u8::from(!config.unrotated_layers.contains(&layer));
    let fields = [
        ("no_rope_layers", (0..config.layers).map(rotates).collect()),
        ("use_sliding_window", json!(config.sliding_window.is_some())),
        ("sliding_window", json!(config.sliding_window)),
        ("attention_bias", json!(config.qkv_bias)),
        ("mlp_bias", json!(config.mlp_bias)),
    ];
    object.extend(fields.map(|(field, value)| (field.to_owned(), value)));
    if config.sliding_window.is_some() {
        object.insert("layer_types".to_owned(), vec!["sliding_attention"; config.layers].into());
    }
}
