//! Granite 4 without experts and without state-space layers: Granite 3's multipliers, a fused gate, and perhaps no
//! rotation. llama.cpp stores it under `granite`.

use serde_json::{Map, Value, json};

use super::layer::LayerSpec;
use super::{granite, llama};
use crate::model::config::{Defaults, Family, Fields, ModelConfig};
use crate::model::spec::{BlockSpec, GgufRows};
use crate::nn::block::{Mlp, MlpInput};

/// Granite 4, dense.
pub static GRANITE4: Family = Family {
    class_name: "GraniteMoeHybridForCausalLM",
    model_type: "granitemoehybrid",
    gguf: "granite",
    from_json,
    gguf_keys: granite::gguf_keys,
    to_json,
    block,
    ..llama::FAMILY
};

fn from_json(fields: &mut Fields<'_>) -> ModelConfig {
    fields.expect_silu();
    if !fields.has("num_local_experts") {
        fields.problem("num_local_experts", "is missing, which means 8 experts; supported are models with 0");
    }
    let attention_bias = fields.flag("attention_bias").unwrap_or(false);
    let common = fields.common(&GRANITE4, Defaults::LLAMA);
    check_layers(fields, common.layers);
    let rotates = match fields.text("position_embedding_type").as_deref() {
        Some("rope") => true,
        None | Some("nope") => false,
        Some(other) => {
            fields
                .problem("position_embedding_type", format!("is {other:?}; supported are \"rope\", \"nope\" and null"));
            true
        }
    };
    let config = ModelConfig {
        intermediate_size: fields.required_size("shared_intermediate_size"),
        unrotated_layers: if rotates { Vec::new() } else { (0..common.layers).collect() },
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        ..common
    };
    granite::with_multipliers(fields, config)
}

/// Reports layers that are not attention.
fn check_layers(fields: &mut Fields<'_>, layers: usize) {
    let field = if fields.has("layers_block_type") { "layers_block_type" } else { "layer_types" };
    let Some(types) = fields.texts(field) else {
        if !fields.has(field) {
            fields.problem(
                field,
                "is missing, which means state-space layers; supported is \"attention\" for every layer",
            );
        }
        return;
    };
    if let Some(other) = types.iter().find(|name| !matches!(name.as_str(), "attention" | "full_attention")) {
        fields.problem(field, format!("names {other:?}; supported is \"attention\" for every layer"));
    }
    if types.len() != layers {
        fields.problem(field, format!("names {} layers; num_hidden_layers is {layers}", types.len()));
    }
}

fn to_json(config: &ModelConfig, object: &mut Map<String, Value>) {
    granite::to_json(config, object);
    object.shift_remove("mlp_bias");
    let rotation = if config.unrotated_layers.is_empty() { "rope" } else { "nope" };
    let fields = [
        ("num_local_experts", json!(0)),
        ("num_experts_per_tok", json!(0)),
        ("shared_intermediate_size", json!(config.intermediate_size)),
        ("position_embedding_type", json!(rotation)),
        ("layer_types", vec!["attention"; config.layers].into()),
    ];
    object.extend(fields.map(|(field, value)| (field.to_owned(), value)));
}

fn block(config: &ModelConfig, layer: usize) -> BlockSpec {
    let spec = LayerSpec::new(config, layer);
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let mut input = spec.linear("shared_mlp.input_linear", "ffn_up", [2 * inner, hidden], false);
    input.gguf_rows = GgufRows::GateApart;
    BlockSpec {
        mlp: Mlp {
            input: MlpInput::FusedGated(input),
            activation: config.activation,
            down: spec.linear("shared_mlp.output_linear", "ffn_down", [hidden, inner], false),
        },
        residual_multiplier: config.residual_multiplier.map(|multiplier| multiplier as f32),
        ..llama::block(config, layer)
    }
}
