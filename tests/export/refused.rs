//! Exports that are refused by name, with nothing written.

use burnish::adapter::host::HostAdapter;
use burnish::export::{ExportOptions, GgufType};

use super::{PLAIN, export, fixture, message, temporary};

/// Models that llama.cpp has no place for, and the field that the error names.
pub const INEXPRESSIBLE: [(&str, &str); 7] = [
    ("gemma2_bf16_untied", "has a head of its own"),
    ("gemma3_pattern", "attention_multiplier"),
    ("granite4_bf16_tied_unrotated", "rope.scaling.finetuned"),
    ("mistral_layer_types", "layer_types"),
    ("qwen2_max_window_layers", "layer_types"),
    ("qwen3_bf16_tied", "a bias on attention's output"),
    ("smollm3_bf16_tied", "biases in the feed-forward network"),
];

#[test]
fn a_model_that_its_architecture_cannot_express_is_refused_by_its_field() {
    let folder = temporary();
    for (name, field) in INEXPRESSIBLE {
        let family = fixture("families").join(name);
        let path = if family.exists() { family } else { fixture("models").join(name) };
        let error = export(&path, None, &folder.path().join("m.gguf"), &PLAIN).expect_err(name);
        let text = message(&error);
        assert!(text.contains(field), "{name}: {text}");
        assert_eq!(error.exit_code(), 2, "{name}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 0);
}

#[test]
fn rows_that_do_not_divide_are_refused_or_fall_back() {
    let folder = temporary();
    let out = folder.path().join("m.gguf");
    // Rows of 40 and 72 values.
    let path = fixture("models/llama_odd");
    let with = |gguf_type| ExportOptions { gguf_type: Some(gguf_type), ..PLAIN };
    for gguf_type in [GgufType::Q8_0, GgufType::Q4_0, GgufType::Q4_1, GgufType::Q5_0, GgufType::Q5_1] {
        let text = message(&export(&path, None, &out, &with(gguf_type)).expect_err("40 is no multiple of 32"));
        assert!(text.contains("rows of 40 values") && text.contains("multiple of 32"), "{text}");
        assert!(text.contains("--type f16"), "{text}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 0);
    let report = export(&path, None, &out, &with(GgufType::Q4KM)).expect("falls back");
    assert!(report.formats.contains_key("F16"), "{:?}", report.formats);
}

#[test]
fn a_value_beyond_the_type_leaves_nothing() {
    let folder = temporary();
    let path = fixture("models/llama_gqa");
    let mut adapter = HostAdapter::load(&fixture("adapters/seven")).expect("an adapter");
    adapter.pairs.values_mut().for_each(|pair| pair.scale = 1e9);
    for gguf_type in [GgufType::F16, GgufType::Q8_0] {
        let options = ExportOptions { gguf_type: Some(gguf_type), ..PLAIN };
        let error = export(&path, Some(&adapter), &folder.path().join("m.gguf"), &options).expect_err("infinite");
        let text = message(&error);
        assert!(text.contains("beyond what") && text.contains("blk.0."), "{text}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 0);
}
