//! Gemma 3: Gemma 2's layer with norms of each head's queries and keys in place of the cap on scores; layers with a
//! sliding window have a rotary embedding of their own. The decoder of a multimodal checkpoint is one too.

use serde_json::{Map, Value, json};

use super::layer::LayerSpec;
use super::{gemma2, llama};
use crate::model::config::{Defaults, Family, Fields, GgufHead, Keys, ModelConfig, RopeConfig};
use crate::model::spec::{BlockSpec, NormStyle, OuterNames};
use crate::nn::block::QkNorm;
use crate::ops::norm::Span;

/// Gemma 3.
pub static GEMMA3: Family = Family {
    class_name: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    gguf: "gemma3",
    gguf_head: GgufHead::WhereUntied,
    norm_eps: "rms_norm_eps",
    norm: NormStyle::RMS_PLUS_ONE,
    names: OuterNames::USUAL,
    stored_prefixes: &[],
    mlx_prefixes: &[],
    ignores: belongs_to_images,
    from_json,
    gguf_keys,
    to_json,
    block,
};

/// Every sixth layer sees all positions.
const PERIOD: usize = 6;
/// llama.cpp knows the 27B model by its layers.
const LAYERS_OF_27B: usize = 62;
const THETA: f64 = 1_000_000.0;
const LOCAL_THETA: f64 = 10_000.0;

/// The parts of a multimodal checkpoint that turn images into embeddings.
fn belongs_to_images(name: &str) -> bool {
    let name = name.strip_prefix("model.").unwrap_or(name);
    ["vision_tower.", "multi_modal_projector."].iter().any(|part| name.starts_with(part))
}

fn from_json(fields: &mut Fields<'_>) -> ModelConfig {
    let defaults = Defaults {
        vocab_size: Some(262_208),
        heads: Some(8),
        kv_heads: Some(4),
        max_positions: 131_072,
        tied_head: true,
        head_dim: Some(256),
        theta: THETA,
        local_theta: Some(LOCAL_THETA),
        ..Defaults::LLAMA
    };
    let common = fields.common(&GEMMA3, defaults);
    let period = fields.size("sliding_window_pattern").unwrap_or(PERIOD);
    let (sliding_window, full_layers) = fields.alternating_window(common.layers, gemma2::DEFAULT_WINDOW, period);
    if fields.value("attn_logit_softcapping").is_some() {
        // transformers and llama.cpp pass it over.
        fields.problem("attn_logit_softcapping", "is given; expected null: a Gemma 3 norms queries and keys instead");
    }
    let logit_softcap = fields.number("final_logit_softcapping");
    let local_rope = common.local_rope.clone().filter(|_| sliding_window.is_some());
    let config = ModelConfig { sliding_window, full_layers, logit_softcap, local_rope, ..common };
    gemma2::with_common_fields(fields, config)
}

fn gguf_keys(keys: &mut Keys<'_>, config: &mut ModelConfig) {
    keys.common(config, llama::RMS_EPS, false);
    if config.sliding_window.is_some() {
        keys.full_layers(config, PERIOD);
        let mut theta = config.local_rope.as_ref().map_or(LOCAL_THETA, |rope| rope.theta);
        keys.number("rope.freq_base_swa", &mut theta);
        if keys.file().is_some() {
            config.local_rope = Some(RopeConfig { theta, ..RopeConfig::plain(config.head_dim) });
        }
    }
    keys.optional_number("final_logit_softcapping", &mut config.logit_softcap);
    if keys.file().is_some() {
        if config.full_layers.len() == config.layers {
            (config.sliding_window, config.local_rope) = (None, None);
            config.full_layers.clear();
        }
        config.logit_softcap = config.logit_softcap.filter(|cap| *cap != 0.0);
        gemma2::with_gguf_scales(config, LAYERS_OF_27B);
    }
}

fn to_json(config: &ModelConfig, object: &mut Map<String, Value>) {
    gemma2::to_json(config, object);
    let theta = config.local_rope.as_ref().map_or(LOCAL_THETA, |rope| rope.theta);
    object.insert("rope_local_base_freq".to_owned(), json!(theta));
}

fn block(config: &ModelConfig, layer: usize) -> BlockSpec {
    let spec = LayerSpec::new(config, layer);
    let mut block = gemma2::block(config, layer);
    block.attention.qk_norm = Some(QkNorm {
        q: spec.norm("self_attn.q_norm", "attn_q_norm", config.head_dim),
        k: spec.norm("self_attn.k_norm", "attn_k_norm", config.head_dim),
        span: Span::PerHead,
    });
    block
}
