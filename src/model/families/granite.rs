//! Granite 3: Llama's layer with four multipliers, on the embedding, on attention's scores, on what joins the residual
//! stream, and (as a divisor) on the logits.

use serde_json::{Map, Value, json};

use super::llama;
use crate::model::config::{Defaults, EmbeddingMultiplier, Family, Fields, Keys, ModelConfig};

/// Granite, dense.
pub static GRANITE: Family = Family {
    class_name: "GraniteForCausalLM",
    model_type: "granite",
    gguf: Some("granite"),
    from_json,
    from_gguf,
    to_json,
    block,
    ..llama::FAMILY
};

fn from_json(fields: &mut Fields<'_>) -> ModelConfig {
    fields.expect_silu();
    let attention_bias = fields.flag("attention_bias").unwrap_or(false);
    let mlp_bias = fields.flag("mlp_bias").unwrap_or(false);
    let common = fields.common(&GRANITE, Defaults::LLAMA);
    let config = ModelConfig { qkv_bias: attention_bias, o_bias: attention_bias, mlp_bias, ..common };
    with_multipliers(fields, config)
}

/// The multipliers, each 1 where it is not given: attention's too, which then has no factor at all.
pub(super) fn with_multipliers(fields: &mut Fields<'_>, config: ModelConfig) -> ModelConfig {
    let mut multiplier = |field| fields.number(field).unwrap_or(1.0);
    ModelConfig {
        embedding_multiplier: EmbeddingMultiplier::Exact(multiplier("embedding_multiplier")),
        attention_multiplier: Some(multiplier("attention_multiplier")),
        residual_multiplier: Some(multiplier("residual_multiplier")),
        logit_multiplier: Some(1.0 / multiplier("logits_scaling")),
        ..config
    }
}

fn from_gguf(keys: &mut Keys<'_>) -> ModelConfig {
    let mut config = keys.common(&GRANITE, "attention.layer_norm_rms_epsilon", false);
    keys.take_biases(&mut config);
    // llama.cpp scales by the head's width where the file has no factor.
    let usual = 1.0 / (config.head_dim as f64).sqrt();
    config.attention_multiplier = Some(keys.number("attention.scale").unwrap_or(usual));
    config.embedding_multiplier = EmbeddingMultiplier::Exact(keys.number("embedding_scale").unwrap_or(1.0));
    config.residual_multiplier = Some(keys.number("residual_scale").unwrap_or(1.0));
    config.logit_multiplier = Some(1.0 / keys.number("logit_scale").unwrap_or(1.0));
    if keys.flag("rope.scaling.finetuned") == Some(false) {
        let key = keys.key("rope.scaling.finetuned");
        keys.problem(&key, "is false: the model does not rotate; supported are Granite models that do");
    }
    if config.qkv_bias != config.o_bias {
        let message = "the biases of blk.0 are not those of its architecture: Granite has them on all four attention \
                       projections or on none";
        keys.problem("blk.0", message);
    }
    config
}

pub(super) fn to_json(config: &ModelConfig, object: &mut Map<String, Value>) {
    let fields = [
        ("embedding_multiplier", json!(config.embedding_multiplier.value())),
        ("attention_multiplier", json!(config.attention_multiplier)),
        ("residual_multiplier", json!(config.residual_multiplier)),
        ("logits_scaling", json!(config.logit_multiplier.map(f64::recip))),
        ("attention_bias", json!(config.qkv_bias)),
        ("mlp_bias", json!(config.mlp_bias)),
    ];
    object.extend(fields.map(|(field, value)| (field.to_owned(), value)));
}

fn block(config: &ModelConfig, layer: usize) -> crate::model::spec::BlockSpec {
    let mut block = llama::block(config, layer);
    block.residual_multiplier = config.residual_multiplier.map(|multiplier| multiplier as f32);
    block
}
