//! Granite 3: Llama's layer with four multipliers, on the embedding, on attention's scores, on what joins the residual
//! stream, and (as a divisor) on the logits.

use serde_json::{Map, Value, json};

use super::llama;
use crate::model::config::{Defaults, EmbeddingMultiplier, Family, Fields, Keys, ModelConfig};

/// Granite, dense.
pub static GRANITE: Family = Family {
    class_name: "GraniteForCausalLM",
    model_type: "granite",
    gguf: "granite",
    from_json,
    gguf_keys,
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

pub(super) fn gguf_keys(keys: &mut Keys<'_>, config: &mut ModelConfig) {
    keys.common(config, llama::RMS_EPS, false);
    // llama.cpp scales by the head's width where the file has no factor.
    let mut attention = config.attention_multiplier.unwrap_or(1.0 / (config.head_dim as f64).sqrt());
    let mut embedding = config.embedding_multiplier.value();
    let mut residual = config.residual_multiplier.unwrap_or(1.0);
    let mut divisor = 1.0 / config.logit_multiplier.unwrap_or(1.0);
    keys.number("attention.scale", &mut attention);
    keys.number("embedding_scale", &mut embedding);
    keys.number("residual_scale", &mut residual);
    keys.number("logit_scale", &mut divisor);
    let mut rotates = config.unrotated_layers.is_empty();
    if keys.file().is_some() || !rotates {
        keys.flag("rope.scaling.finetuned", &mut rotates);
    }
    let Some(gguf) = keys.file() else { return };
    Keys::take_biases(gguf, config);
    config.attention_multiplier = Some(attention);
    config.embedding_multiplier = EmbeddingMultiplier::Exact(embedding);
    config.residual_multiplier = Some(residual);
    config.logit_multiplier = Some(1.0 / divisor);
    if !rotates {
        let key = keys.key("rope.scaling.finetuned");
        keys.problem(&key, "is false: the model does not rotate; supported are Granite models that do");
    }
    if config.qkv_bias != config.o_bias {
        let message = "the biases of blk.0 are not those of its architecture: Granite has them on all four attention \
                       projections or on none";
        keys.problem("blk.0", message);
    }
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
