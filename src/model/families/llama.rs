//! Llama 1 to 3.2: RMS norms before both sublayers, a gated feed-forward network, separate projections.

use serde_json::{Map, Value, json};

use super::layer::LayerSpec;
use super::mistral::MISTRAL;
use crate::model::config::{Defaults, Family, Fields, GgufHead, Keys, ModelConfig};
use crate::model::spec::{BlockSpec, GgufRows, NormStyle, OuterNames};
use crate::nn::block::{Attention, Mlp, MlpInput, Qkv, Residual};

/// Llama.
pub static LLAMA: Family = FAMILY;

/// Llama as the form that other families differ from: each states only what it has otherwise.
pub(super) const FAMILY: Family = Family {
    class_name: "LlamaForCausalLM",
    model_type: "llama",
    gguf: "llama",
    gguf_head: GgufHead::WhereUntied,
    norm_eps: "rms_norm_eps",
    norm: NormStyle::RMS,
    names: OuterNames::USUAL,
    stored_prefixes: &[],
    mlx_prefixes: &[],
    ignores: |_| false,
    from_json,
    gguf_keys,
    to_json,
    block,
};

fn from_json(fields: &mut Fields<'_>) -> ModelConfig {
    fields.expect_silu();
    let attention_bias = fields.flag("attention_bias").unwrap_or(false);
    let mlp_bias = fields.flag("mlp_bias").unwrap_or(false);
    let common = fields.common(&LLAMA, Defaults::LLAMA);
    ModelConfig { qkv_bias: attention_bias, o_bias: attention_bias, mlp_bias, ..common }
}

/// The key of what a root-mean-square norm adds.
pub(super) const RMS_EPS: &str = "attention.layer_norm_rms_epsilon";

pub(super) fn gguf_keys(keys: &mut Keys<'_>, config: &mut ModelConfig) {
    keys.common(config, RMS_EPS, false);
    let Some(gguf) = keys.file() else { return };
    Keys::take_biases(gguf, config);
    // llama.cpp has no architecture of its own for Mistral, and Llama itself has no window.
    if config.sliding_window.is_some() {
        config.family = &MISTRAL;
    }
    let possible = match config.sliding_window {
        None => config.qkv_bias == config.o_bias,
        Some(_) => !config.qkv_bias && !config.o_bias && !config.mlp_bias,
    };
    if !possible {
        // Another combination could not be written back.
        let message = "the biases of blk.0 are not those of its architecture: Llama has them on all four attention \
                       projections or on none, Mistral has none";
        keys.problem("blk.0", message);
    }
}

fn to_json(config: &ModelConfig, object: &mut Map<String, Value>) {
    object.insert("attention_bias".to_owned(), json!(config.qkv_bias));
    object.insert("mlp_bias".to_owned(), json!(config.mlp_bias));
    object.insert("pretraining_tp".to_owned(), json!(1));
}

/// A layer of Llama, with the rows of q and k in llama.cpp's order of rotated pairs.
pub(super) fn block(config: &ModelConfig, layer: usize) -> BlockSpec {
    let mut block = unpermuted_block(config, layer);
    if let Qkv::Separate([q, k, _]) = &mut block.attention.qkv {
        q.gguf_rows = GgufRows::RotatedPairs { heads: config.heads };
        k.gguf_rows = GgufRows::RotatedPairs { heads: config.kv_heads };
    }
    block
}

/// A layer of Llama's form with the same order of rows in both formats.
pub(super) fn unpermuted_block(config: &ModelConfig, layer: usize) -> BlockSpec {
    let spec = LayerSpec::new(config, layer);
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (q_width, kv_width) = (config.q_width(), config.kv_width());
    BlockSpec {
        before_attention: Some(spec.norm("input_layernorm", "attn_norm", hidden)),
        attention: Attention {
            qkv: Qkv::Separate([
                spec.linear("self_attn.q_proj", "attn_q", [q_width, hidden], config.qkv_bias),
                spec.linear("self_attn.k_proj", "attn_k", [kv_width, hidden], config.qkv_bias),
                spec.linear("self_attn.v_proj", "attn_v", [kv_width, hidden], config.qkv_bias),
            ]),
            qk_norm: None,
            output: spec.linear("self_attn.o_proj", "attn_output", [hidden, q_width], config.o_bias),
        },
        after_attention: None,
        before_mlp: Some(spec.norm("post_attention_layernorm", "ffn_norm", hidden)),
        mlp: Mlp {
            input: MlpInput::Gated([
                spec.linear("mlp.gate_proj", "ffn_gate", [inner, hidden], config.mlp_bias),
                spec.linear("mlp.up_proj", "ffn_up", [inner, hidden], config.mlp_bias),
            ]),
            activation: config.activation,
            down: spec.linear("mlp.down_proj", "ffn_down", [hidden, inner], config.mlp_bias),
        },
        after_mlp: None,
        residual: Residual::Sequential,
        residual_multiplier: None,
    }
}
