//! Mistral: Llama's layer without biases, with a sliding window. llama.cpp stores it under `llama`.

use serde_json::{Map, Value, json};

use super::llama;
use crate::model::config::{Defaults, Family, Fields, ModelConfig};

/// Mistral.
pub static MISTRAL: Family =
    Family { class_name: "MistralForCausalLM", model_type: "mistral", from_json, to_json, ..llama::FAMILY };

const DEFAULT_WINDOW: usize = 4096;

fn from_json(fields: &mut Fields<'_>) -> ModelConfig {
    fields.expect_silu();
    if fields.flag("attention_bias") == Some(true) {
        fields.problem("attention_bias", "is true, which no Mistral has");
    }
    let defaults = Defaults { kv_heads: Some(8), max_positions: 4096 * 32, ..Defaults::LLAMA };
    let common = fields.common(&MISTRAL, defaults);
    // transformers 5 calls a Mistral with `layer_types` "ministral".
    let (sliding_window, full_layers) = fields.sliding_window(common.layers, DEFAULT_WINDOW, true, 0);
    ModelConfig { sliding_window, full_layers, ..common }
}

fn to_json(config: &ModelConfig, object: &mut Map<String, Value>) {
    object.insert("sliding_window".to_owned(), json!(config.sliding_window));
}
