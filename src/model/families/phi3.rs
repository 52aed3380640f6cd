//! Phi-3, Phi-3.5 and Phi-4: Llama's layer with one projection for q, k and v and one for gate and up, perhaps with
//! LongRoPE and with rotation of a part of each head.

use serde_json::{Map, Value, json};

use super::layer::LayerSpec;
use super::llama;
use crate::model::config::{Defaults, Family, Fields, Keys, ModelConfig, RopeScaling};
use crate::model::spec::BlockSpec;
use crate::nn::block::{Attention, Mlp, MlpInput, Qkv};

/// Phi-3.
pub static PHI3: Family = Family {
    class_name: "Phi3ForCausalLM",
    model_type: "phi3",
    gguf: "phi3",
    from_json,
    gguf_keys,
    to_json,
    block,
    ..llama::FAMILY
};

const DEFAULT_POSITIONS: usize = 4096;

fn from_json(fields: &mut Fields<'_>) -> ModelConfig {
    fields.expect_silu();
    let defaults = Defaults { max_positions: DEFAULT_POSITIONS, partial_rotation: true, ..Defaults::LLAMA };
    let common = fields.common(&PHI3, defaults);
    let norm_eps = fields.number("rms_norm_eps").unwrap_or(1e-5);
    ModelConfig { norm_eps, sliding_window: fields.size("sliding_window"), ..common }
}

fn gguf_keys(keys: &mut Keys<'_>, config: &mut ModelConfig) {
    keys.common(config, llama::RMS_EPS, true);
    match keys.file() {
        Some(gguf) if Keys::biases(gguf, &["attn_qkv", "attn_output", "ffn_up", "ffn_down"]) => {
            keys.problem("blk.0", "has biases, which no Phi-3 has");
        }
        Some(_) => {}
        None => {
            // llama.cpp assumes a window where the key is missing.
            if config.sliding_window.is_none() {
                keys.size("attention.sliding_window", &mut 0);
            }
            if !matches!(config.rope.scaling, RopeScaling::LongRope { .. }) {
                keys.size("rope.scaling.original_context_length", &mut config.max_positions);
            }
        }
    }
}

fn to_json(config: &ModelConfig, object: &mut Map<String, Value>) {
    object.insert("sliding_window".to_owned(), json!(config.sliding_window));
    object.insert("partial_rotary_factor".to_owned(), json!(config.rope.rotated_share(config.head_dim)));
    // transformers takes the first context from here, and 4096 where it is missing.
    let original = object.get("rope_scaling").and_then(|scaling| scaling.get("original_max_position_embeddings"));
    let original = original.cloned().unwrap_or(json!(config.max_positions));
    object.insert("original_max_position_embeddings".to_owned(), original);
}

fn block(config: &ModelConfig, layer: usize) -> BlockSpec {
    let spec = LayerSpec::new(config, layer);
    let (hidden, inner, q_width) = (config.hidden_size, config.intermediate_size, config.q_width());
    let qkv_width = q_width + 2 * config.kv_width();
    BlockSpec {
        attention: Attention {
            qkv: Qkv::Fused(spec.linear("self_attn.qkv_proj", "attn_qkv", [qkv_width, hidden], false)),
            qk_norm: None,
            output: spec.linear("self_attn.o_proj", "attn_output", [hidden, q_width], false),
        },
        mlp: Mlp {
            input: MlpInput::FusedGated(spec.linear("mlp.gate_up_proj", "ffn_up", [2 * inner, hidden], false)),
            activation: config.activation,
            down: spec.linear("mlp.down_proj", "ffn_down", [hidden, inner], false),
        },
        ..llama::unpermuted_block(config, layer)
    }
}
