//! OLMo 2: Llama's layer with its norms behind both sublayers instead of before them, and norms of queries and keys over
//! all heads.

use serde_json::{Map, Value};

use super::layer::LayerSpec;
use super::llama;
use crate::model::config::{Defaults, Family, Fields, GgufHead, Keys, ModelConfig};
use crate::model::spec::BlockSpec;
use crate::nn::block::QkNorm;
use crate::ops::norm::Span;

/// OLMo 2.
pub static OLMO2: Family = Family {
    class_name: "Olmo2ForCausalLM",
    model_type: "olmo2",
    gguf: "olmo2",
    gguf_head: GgufHead::Always,
    from_json,
    gguf_keys,
    to_json,
    block,
    ..llama::FAMILY
};

fn from_json(fields: &mut Fields<'_>) -> ModelConfig {
    const DEFAULT_EPS: f64 = 1e-5;
    fields.expect_silu();
    let bias = fields.flag("attention_bias").unwrap_or(false);
    let defaults = Defaults { vocab_size: Some(50_304), heads: Some(32), ..Defaults::LLAMA };
    let common = fields.common(&OLMO2, defaults);
    let norm_eps = fields.number("rms_norm_eps").unwrap_or(DEFAULT_EPS);
    ModelConfig { qkv_bias: bias, o_bias: bias, norm_eps, ..common }
}

fn gguf_keys(keys: &mut Keys<'_>, config: &mut ModelConfig) {
    keys.common(config, llama::RMS_EPS, false);
    let Some(gguf) = keys.file() else { return };
    if let Some(window) = config.sliding_window.take() {
        // llama.cpp stores OLMo 3 under the same architecture.
        let key = keys.key("attention.sliding_window");
        keys.problem(&key, format!("is {window}, which makes it an OLMo 3; expected none, as OLMo 2 has"));
    }
    config.qkv_bias = Keys::biases(gguf, &["attn_q", "attn_k", "attn_v"]);
    config.o_bias = Keys::biases(gguf, &["attn_output"]);
    if config.qkv_bias != config.o_bias || Keys::biases(gguf, &["ffn_gate", "ffn_up", "ffn_down"]) {
        let message = "the biases of blk.0 are not those of its architecture: OLMo 2 has them on all four attention \
                       projections or on none";
        keys.problem("blk.0", message);
    }
}

fn to_json(config: &ModelConfig, object: &mut Map<String, Value>) {
    object.insert("attention_bias".to_owned(), config.qkv_bias.into());
}

fn block(config: &ModelConfig, layer: usize) -> BlockSpec {
    let spec = LayerSpec::new(config, layer);
    let mut block = llama::unpermuted_block(config, layer);
    block.attention.qk_norm = Some(QkNorm {
        q: spec.norm("self_attn.q_norm", "attn_q_norm", config.q_width()),
        k: spec.norm("self_attn.k_norm", "attn_k_norm", config.kv_width()),
        span: Span::AllHeads,
    });
    (block.before_attention, block.before_mlp) = (None, None);
    block.after_attention = Some(spec.norm("post_attention_layernorm", "post_attention_norm", config.hidden_size));
    block.after_mlp = Some(spec.norm("post_feedforward_layernorm", "post_ffw_norm", config.hidden_size));
    block
}
