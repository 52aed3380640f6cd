//! The larger models that have a decoder inside: how they are recognised, and what they call the decoder's modules.

use crate::model::config::LargerModel;
use crate::model::spec::OuterNames;
use crate::model::vision::VisionKind;

/// Every larger model.
pub static LARGER_MODELS: &[&LargerModel] = &[&GEMMA3, &IDEFICS3, &SMOLVLM, &LLAVA];

/// Names of the decoder's modules within Gemma 3 and LLaVA.
const LANGUAGE_MODEL: OuterNames = OuterNames {
    layers: "model.language_model.layers",
    embedding: "model.language_model.embed_tokens",
    final_norm: "model.language_model.norm",
    head: "lm_head",
};

/// The same within Idefics3 and SmolVLM.
const TEXT_MODEL: OuterNames = OuterNames {
    layers: "model.text_model.layers",
    embedding: "model.text_model.embed_tokens",
    final_norm: "model.text_model.norm",
    head: "lm_head",
};

/// Gemma 3 with images, of which the decoder alone is used.
static GEMMA3: LargerModel = LargerModel {
    class_name: "Gemma3ForConditionalGeneration",
    model_type: "gemma3",
    decoder: Some("gemma3_text"),
    names: LANGUAGE_MODEL,
    stored_prefixes: &[("language_model.model.", "model.language_model."), ("language_model.lm_head.", "lm_head.")],
    vision: None,
};

static IDEFICS3: LargerModel = LargerModel {
    class_name: "Idefics3ForConditionalGeneration",
    model_type: "idefics3",
    decoder: None,
    names: TEXT_MODEL,
    stored_prefixes: &[],
    vision: Some(VisionKind::Idefics3),
};

static SMOLVLM: LargerModel = LargerModel {
    class_name: "SmolVLMForConditionalGeneration",
    model_type: "smolvlm",
    decoder: None,
    names: TEXT_MODEL,
    stored_prefixes: &[],
    vision: Some(VisionKind::Idefics3),
};

/// Prefixes of transformers before 4.52, of its files since (`conversion_mapping.py`), and of its modules before 5, which adapters have.
static LLAVA: LargerModel = LargerModel {
    class_name: "LlavaForConditionalGeneration",
    model_type: "llava",
    decoder: None,
    names: LANGUAGE_MODEL,
    stored_prefixes: &[
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("model.vision_tower.vision_model.", "model.vision_tower."),
        ("vision_tower.vision_model.", "model.vision_tower."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ],
    vision: Some(VisionKind::Llava),
};

/// The sizes that `text_config` of a LLaVA may leave out, where it is a Llama: the defaults of `LlamaConfig`.
pub(super) const LLAMA_SIZES: [(&str, usize); 5] = [
    ("vocab_size", 32_000),
    ("hidden_size", 4096),
    ("intermediate_size", 11_008),
    ("num_hidden_layers", 32),
    ("num_attention_heads", 32),
];
