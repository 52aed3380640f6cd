//! Qwen3: Llama's layer with norms of each head's queries and keys, and a head width of its own.

use super::layer::LayerSpec;
use super::{llama, qwen2};
use crate::model::config::{Defaults, Family, Fields, Keys, ModelConfig};
use crate::model::spec::BlockSpec;
use crate::nn::block::QkNorm;
use crate::ops::norm::Span;

/// Qwen3, dense.
pub static QWEN3: Family = Family {
    class_name: "Qwen3ForCausalLM",
    model_type: "qwen3",
    gguf: "qwen3",
    from_json,
    gguf_keys,
    to_json,
    block,
    ..llama::FAMILY
};

fn from_json(fields: &mut Fields<'_>) -> ModelConfig {
    fields.expect_silu();
    let defaults = Defaults { kv_heads: Some(32), max_positions: 32_768, head_dim: Some(128), ..Defaults::LLAMA };
    let bias = fields.flag("attention_bias").unwrap_or(false);
    let common = fields.common(&QWEN3, defaults);
    let (sliding_window, full_layers) = qwen2::window(fields, common.layers);
    ModelConfig { qkv_bias: bias, o_bias: bias, sliding_window, full_layers, ..common }
}

fn gguf_keys(keys: &mut Keys<'_>, config: &mut ModelConfig) {
    keys.common(config, llama::RMS_EPS, false);
    let Some(gguf) = keys.file() else { return };
    config.qkv_bias = Keys::biases(gguf, &["attn_q", "attn_k", "attn_v"]);
    config.o_bias = Keys::biases(gguf, &["attn_output"]);
    if config.qkv_bias != config.o_bias || Keys::biases(gguf, &["ffn_gate", "ffn_up", "ffn_down"]) {
        let message = "the biases of blk.0 are not those of its architecture: Qwen3 has them on all four attention \
                       projections or on none";
        keys.problem("blk.0", message);
    }
}

fn to_json(config: &ModelConfig, object: &mut serde_json::Map<String, serde_json::Value>) {
    qwen2::to_json(config, object);
    object.insert("attention_bias".to_owned(), config.qkv_bias.into());
}

fn block(config: &ModelConfig, layer: usize) -> BlockSpec {
    let spec = LayerSpec::new(config, layer);
    let mut block = llama::unpermuted_block(config, layer);
    block.attention.qk_norm = Some(QkNorm {
        q: spec.norm("self_attn.q_norm", "attn_q_norm", config.head_dim),
        k: spec.norm("self_attn.k_norm", "attn_k_norm", config.head_dim),
        span: Span::PerHead,
    });
    block
}
