//! GPT-NeoX and Pythia: layer norms with biases, a fused projection with q, k and v of each head together, rotation of a
//! part of each head, a plain feed-forward network, and both sublayers read the same input unless it says otherwise.

use serde_json::{Map, Value, json};

use super::layer::LayerSpec;
use crate::model::config::{Defaults, Family, Fields, GgufHead, Keys, ModelConfig};
use crate::model::spec::{BlockSpec, GgufRows, NormStyle, OuterNames};
use crate::nn::block::{Attention, Mlp, MlpInput, Qkv, Residual};
use crate::ops::activation::Activation;

/// GPT-NeoX.
pub static GPT_NEOX: Family = Family {
    class_name: "GPTNeoXForCausalLM",
    model_type: "gpt_neox",
    gguf: "gptneox",
    gguf_head: GgufHead::Always,
    norm_eps: "layer_norm_eps",
    norm: NormStyle::LAYER,
    names: OuterNames {
        layers: "gpt_neox.layers",
        embedding: "gpt_neox.embed_in",
        final_norm: "gpt_neox.final_layer_norm",
        head: "embed_out",
    },
    stored_prefixes: &[],
    mlx_prefixes: &[
        ("model.h.", "gpt_neox.layers."),
        ("model.embed_in", "gpt_neox.embed_in"),
        ("model.embed_out", "embed_out"),
        ("model.final_layer_norm", "gpt_neox.final_layer_norm"),
    ],
    ignores: is_buffer,
    from_json,
    gguf_keys,
    to_json,
    block,
};

/// The causal mask and its fill value, which old transformers saved in every layer.
fn is_buffer(name: &str) -> bool {
    [".attention.bias", ".attention.masked_bias"].iter().any(|end| name.ends_with(end))
}

fn from_json(fields: &mut Fields<'_>) -> ModelConfig {
    let defaults = Defaults { partial_rotation: true, ..Defaults::LLAMA };
    let activation = fields.activation("hidden_act", Activation::Gelu);
    let parallel_residual = fields.flag("use_parallel_residual").unwrap_or(true);
    let attention_bias = fields.flag("attention_bias").unwrap_or(true);
    let mut config = fields.common(&GPT_NEOX, defaults);
    if config.kv_heads != config.heads {
        let message =
            format!("is {}; expected {}: a GPT-NeoX has as many as attention heads", config.kv_heads, config.heads);
        fields.problem("num_key_value_heads", message);
    }
    rope(fields, &mut config);
    config.norm_eps = fields.number("layer_norm_eps").unwrap_or(1e-5);
    config.activation = activation;
    config.parallel_residual = parallel_residual;
    (config.qkv_bias, config.o_bias, config.mlp_bias) = (attention_bias, attention_bias, true);
    config
}

/// The names of old files, `rotary_pct` and `rotary_emb_base`, where the new ones are missing.
fn rope(fields: &mut Fields<'_>, config: &mut ModelConfig) {
    const DEFAULT_SHARE: f64 = 0.25;
    let inner = fields.object("rope_parameters");
    let is_given = |field: &str| inner.is_some_and(|inner| inner.contains_key(field)) || fields.has(field);
    let (has_share, has_theta) = (is_given("partial_rotary_factor"), is_given("rope_theta"));
    if !has_share {
        let share = fields.number("rotary_pct").unwrap_or(DEFAULT_SHARE);
        config.rope.rotary_dims = fields.rotary_dims("rotary_pct", share, config.head_dim);
    }
    if !has_theta && let Some(theta) = fields.number("rotary_emb_base") {
        config.rope.theta = theta;
    }
}

fn gguf_keys(keys: &mut Keys<'_>, config: &mut ModelConfig) {
    keys.common(config, "attention.layer_norm_epsilon", true);
    if keys.file().is_some() {
        config.parallel_residual = true;
    }
    keys.flag("use_parallel_residual", &mut config.parallel_residual);
    let Some(gguf) = keys.file() else { return };
    config.activation = Activation::Gelu;
    config.qkv_bias = Keys::biases(gguf, &["attn_qkv"]);
    config.o_bias = Keys::biases(gguf, &["attn_output"]);
    config.mlp_bias = true;
    if config.qkv_bias != config.o_bias {
        keys.problem("blk.0", "has a bias on one of attn_qkv and attn_output; expected both or none");
    }
    if config.kv_heads != config.heads {
        let key = keys.key("attention.head_count_kv");
        keys.problem(&key, format!("is {}; expected {}, as many as attention heads", config.kv_heads, config.heads));
    }
}

fn to_json(config: &ModelConfig, object: &mut Map<String, Value>) {
    for field in ["num_key_value_heads", "head_dim", "rope_theta"] {
        object.shift_remove(field);
    }
    let fields = [
        ("hidden_act", json!("gelu")),
        ("rotary_pct", json!(config.rope.rotated_share(config.head_dim))),
        ("rotary_emb_base", json!(config.rope.theta)),
        ("use_parallel_residual", json!(config.parallel_residual)),
        ("attention_bias", json!(config.qkv_bias)),
    ];
    object.extend(fields.map(|(field, value)| (field.to_owned(), value)));
}

fn block(config: &ModelConfig, layer: usize) -> BlockSpec {
    let spec = LayerSpec::new(config, layer);
    let (hidden, inner, width) = (config.hidden_size, config.intermediate_size, config.q_width());
    let mut qkv = spec.linear("attention.query_key_value", "attn_qkv", [3 * width, hidden], config.qkv_bias);
    qkv.gguf_rows = GgufRows::SplitByHead { heads: config.heads };
    BlockSpec {
        before_attention: Some(spec.norm("input_layernorm", "attn_norm", hidden)),
        attention: Attention {
            qkv: Qkv::FusedByHead(qkv),
            qk_norm: None,
            output: spec.linear("attention.dense", "attn_output", [hidden, width], config.o_bias),
        },
        after_attention: None,
        before_mlp: Some(spec.norm("post_attention_layernorm", "ffn_norm", hidden)),
        mlp: Mlp {
            input: MlpInput::Plain(spec.linear("mlp.dense_h_to_4h", "ffn_up", [inner, hidden], config.mlp_bias)),
            activation: config.activation,
            down: spec.linear("mlp.dense_4h_to_h", "ffn_down", [hidden, inner], config.mlp_bias),
        },
        after_mlp: None,
        residual: if config.parallel_residual { Residual::Parallel } else { Residual::Sequential },
        residual_multiplier: None,
    }
}
