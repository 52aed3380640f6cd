//! Qwen2 and 2.5: Llama's layer with biases on q, k and v. A window may begin at a layer.

use serde_json::{Map, Value, json};

use super::llama;
use crate::model::config::{Defaults, Family, Fields, Keys, ModelConfig};

/// Qwen2.
pub static QWEN2: Family = Family {
    class_name: "Qwen2ForCausalLM",
    model_type: "qwen2",
    gguf: "qwen2",
    from_json,
    gguf_keys,
    to_json,
    block: llama::unpermuted_block,
    ..llama::FAMILY
};

fn from_json(fields: &mut Fields<'_>) -> ModelConfig {
    fields.expect_silu();
    let defaults = Defaults { kv_heads: Some(32), max_positions: 32_768, ..Defaults::LLAMA };
    let common = fields.common(&QWEN2, defaults);
    let (sliding_window, full_layers) = window(fields, common.layers);
    ModelConfig { qkv_bias: true, sliding_window, full_layers, ..common }
}

/// The window, which is turned on apart, and the layers without it.
pub(super) fn window(fields: &mut Fields<'_>, layers: usize) -> (Option<usize>, Vec<usize>) {
    const DEFAULT_WINDOW: usize = 4096;
    const DEFAULT_FIRST_LAYER: usize = 28;
    let used = fields.flag("use_sliding_window").unwrap_or(false);
    let first_layer = fields.count("max_window_layers").unwrap_or(DEFAULT_FIRST_LAYER);
    fields.sliding_window(layers, DEFAULT_WINDOW, used, first_layer)
}

fn gguf_keys(keys: &mut Keys<'_>, config: &mut ModelConfig) {
    keys.common(config, llama::RMS_EPS, false);
    let Some(gguf) = keys.file() else { return };
    config.qkv_bias = Keys::biases(gguf, &["attn_q", "attn_k", "attn_v"]);
    if !config.qkv_bias || Keys::biases(gguf, &["attn_output", "ffn_gate", "ffn_up", "ffn_down"]) {
        let message = "the biases of blk.0 are not those of its architecture: Qwen2 has them on q, k and v";
        keys.problem("blk.0", message);
    }
}

pub(super) fn to_json(config: &ModelConfig, object: &mut Map<String, Value>) {
    let first_layer = if config.sliding_window.is_some() { 0 } else { config.layers };
    object.insert("use_sliding_window".to_owned(), json!(config.sliding_window.is_some()));
    object.insert("sliding_window".to_owned(), json!(config.sliding_window));
    object.insert("max_window_layers".to_owned(), json!(first_layer));
}
