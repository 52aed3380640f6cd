//! Decoders inside larger models: Gemma 3 in a checkpoint that also sees images.

use std::path::Path;

use burnish::adapter::host::HostAdapter;
use burnish::adapter::merge::{MergeOptions, merge};
use burnish::adapter::spec::{AdapterSpec, Targets};
use burnish::model::quantize::{QuantizeOptions, quantize};
use burnish::model::{BaseFiles, ModelConfig};
use burnish::quant::Quant;
use serde_json::{Value, json};

use crate::hostile_weights::{copied, fixture, refused};

const IMAGES: &str = "families/gemma3_images";

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("config.json")).expect("a file")).expect("JSON")
}

fn changed(change: impl FnOnce(&mut Value)) -> burnish::Result<ModelConfig> {
    let mut value = config(&fixture(IMAGES));
    change(&mut value);
    ModelConfig::from_json("config.json", &value, None)
}

/// Writes the file of weights again with other beginnings of names.
fn rename(file: &Path, names: &[(&str, &str)]) {
    let bytes = std::fs::read(file).expect("a file");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let mut header = String::from_utf8(bytes[8..8 + length].to_vec()).expect("UTF-8");
    for (old, new) in names {
        let renamed = header.replace(&format!("\"{old}"), &format!("\"{new}"));
        assert_ne!(renamed, header, "{old}");
        header = renamed;
    }
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(&bytes[8 + length..]);
    std::fs::write(file, out).expect("written");
}

#[test]
fn the_decoder_is_found_under_either_naming_and_the_rest_is_passed_over() {
    let base = BaseFiles::open(&fixture(IMAGES)).expect("a base");
    assert!(base.config().is_part());
    assert!(base.has("model.language_model.layers.1.self_attn.q_norm.weight"));
    let parts: Vec<String> = base.passed_over().into_keys().collect();
    assert_eq!(parts, ["multi_modal_projector", "vision_tower"]);
    assert_eq!(base.passed_over()["multi_modal_projector"], 2);

    let folder = copied(IMAGES);
    let names = [
        ("language_model.model.", "model.language_model."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ];
    rename(&folder.path().join("model.safetensors"), &names);
    let other = BaseFiles::open(folder.path()).expect("transformers 5's own names");
    assert_eq!(other.passed_over(), base.passed_over());
    for name in base.tensor_names() {
        let values = [&base, &other].map(|base| base.tensor(name).and_then(|tensor| tensor.to_f32()).expect("floats"));
        assert_eq!(values[0], values[1], "{name}");
    }
    rename(&folder.path().join("model.safetensors"), &[("model.vision_tower.", "model.audio_tower.")]);
    refused("another part", &["model.audio_tower.", "is not part of a model"], || BaseFiles::open(folder.path()));
}

#[test]
fn what_the_whole_says_holds_for_the_decoder() {
    let usual = changed(|_| ()).expect("a configuration");
    assert_eq!((usual.eos_tokens.as_slice(), usual.tied_head), ([2, 3].as_slice(), true));
    let untied = changed(|config| config["tie_word_embeddings"] = json!(false)).expect("a configuration");
    assert!(!untied.tied_head);
    refused("none", &["config.json: text_config", "is missing"], || {
        changed(|config| config["text_config"] = json!(null))
    });
    refused("another", &["text_config: model_type", "\"gemma4_text\"", "\"gemma3_text\""], || {
        changed(|config| config["text_config"]["model_type"] = json!("gemma4_text"))
    });
    refused("within", &["config.json: text_config: head_dim", "is 0"], || {
        changed(|config| config["text_config"]["head_dim"] = json!(0))
    });
}

/// A list of ends of paths would take the projections of the image encoder too.
#[test]
fn targets_are_whole_paths() {
    let config = changed(|_| ()).expect("a configuration");
    let names_of =
        |targets| AdapterSpec { rank: 1, targets, ..AdapterSpec::default() }.target_names(&config).expect("names");
    let names = names_of(Targets::named(["q_proj"]));
    assert_eq!(names, [0, 1].map(|layer| format!("model.language_model.layers.{layer}.self_attn.q_proj")));
    assert_eq!(names_of(Targets::AllLinear).len(), 14);
}

#[test]
fn merged_and_quantised_folders_hold_the_decoder_alone() {
    let base = BaseFiles::open(&fixture(IMAGES)).expect("a base");
    let adapter = HostAdapter::load_over(&fixture(IMAGES).join("adapter"), &base).expect("PEFT's adapter");
    let out = tempfile::tempdir().expect("a folder");
    let (merged, packed) = (out.path().join("merged"), out.path().join("packed"));
    merge(&base, &adapter, &merged, &MergeOptions::default(), |_| Ok(())).expect("merged");
    let options = QuantizeOptions { scheme: Quant::Nf4, float_type: None, max_shard_bytes: 1 << 30 };
    quantize(&base, &packed, &options, |_| Ok(())).expect("quantised");
    for folder in [&merged, &packed] {
        let written = config(folder);
        assert_eq!(written["architectures"], json!(["Gemma3ForCausalLM"]));
        assert_eq!(written["model_type"], json!("gemma3_text"));
        assert_eq!(written["eos_token_id"], json!([2, 3]));
        assert_eq!(written.get("vision_config"), None);
        let alone = BaseFiles::open(folder).expect("a base");
        assert!(alone.has("model.layers.0.self_attn.q_proj.weight") && alone.passed_over().is_empty());
        assert_eq!(alone.config().rope, base.config().rope);
    }
}
