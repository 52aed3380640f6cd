//! Hostile and broken `config.json` files: every class is a named error with exit code 2.

use burnish::Result;
use burnish::model::{BaseFiles, ModelConfig};
use serde_json::{Value, json};

use crate::hostile_weights::{copied, fixture, refused};

fn config(change: impl FnOnce(&mut Value)) -> Result<ModelConfig> {
    let text = std::fs::read(fixture("models/llama_gqa/config.json")).expect("a fixture");
    let mut value = serde_json::from_slice(&text).expect("JSON");
    change(&mut value);
    ModelConfig::from_json("config.json", &value, None)
}

#[test]
fn config_fields_out_of_range() {
    let cases = [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-32)),
        ("hidden_size", json!("32")),
        ("hidden_size", json!(1u64 << 60)),
        ("hidden_size", Value::Null),
        ("intermediate_size", json!(0)),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(3)),
        ("num_key_value_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(8)),
        ("head_dim", json!(7)),
        ("head_dim", json!(0)),
        ("head_dim", json!(u64::MAX)),
        ("vocab_size", json!(0)),
        ("vocab_size", json!(1.5)),
        ("rope_theta", json!(0)),
        ("rope_theta", json!(-1.0)),
        ("rope_theta", json!(1e-40)),
        ("rope_theta", json!(1e300)),
        ("rms_norm_eps", json!(1e-50)),
        ("rope_theta", json!("NaN")),
        ("rms_norm_eps", json!(0)),
        ("rms_norm_eps", json!(-1e-5)),
        ("max_position_embeddings", json!(0)),
        ("eos_token_id", json!(96)),
        ("eos_token_id", json!(-1)),
        ("eos_token_id", json!([2, "x"])),
        ("bos_token_id", json!(4096)),
        ("tie_word_embeddings", json!("yes")),
        ("hidden_act", json!("gelu")),
        ("partial_rotary_factor", json!(0.5)),
        ("is_causal", json!(false)),
    ];
    for (field, value) in cases {
        refused(field, &[field, "config.json"], || config(|config| config[field] = value.clone()));
    }
    // Fields of Qwen2 and of quantised checkpoints.
    refused("gptq", &["quantization_config", "gptq"], || {
        config(|config| config["quantization_config"] = json!({"quant_method": "gptq"}))
    });
    for (types, expected) in [
        (json!(["full_attention"]), "names 1 layers; num_hidden_layers is 2"),
        (json!(["full_attention", "linear_attention"]), "expected a list of"),
    ] {
        refused("layer types", &["layer_types", expected], || {
            config(|config| {
                config["architectures"] = json!(["MistralForCausalLM"]);
                config["model_type"] = json!("mistral");
                config["layer_types"] = types.clone();
            })
        });
    }
    refused("two names", &["model_type", "\"mistral\"", "LlamaForCausalLM"], || {
        config(|config| config["model_type"] = json!("mistral"))
    });
}

#[test]
fn rope_scalings_that_are_not_supported_or_out_of_range() {
    let cases = [
        (json!({"rope_type": "yarn", "factor": 2.0}), "\"yarn\""),
        (json!({"type": "dynamic", "factor": 2.0}), "\"dynamic\""),
        (json!({"type": "linear", "factor": 0}), "factor is 0"),
        (json!({"type": "linear", "factor": -2.0}), "factor is -2"),
        (json!({"type": "linear"}), "factor: is missing"),
        (json!({"type": "linear", "factor": 1e-40}), "from 1e-6 to 1e6"),
        (json!({"type": "linear", "factor": "2"}), "expected a number"),
        (json!({"factor": 2.0}), "rope_type: is missing"),
        (json!("linear"), "is not an object"),
        (json!({"rope_type": "llama3", "factor": 8.0}), "low_freq_factor: is missing"),
        (json!({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}), "partial_rotary_factor: is 0.5"),
        (
            json!({"full_attention": {"rope_type": "linear", "factor": 4.0}}),
            "full_attention: has parameters of its own",
        ),
        (
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 8192}),
            "high above low",
        ),
    ];
    for (scaling, expected) in cases {
        refused("rope_scaling", &["rope_scaling", expected], || config(|c| c["rope_scaling"] = scaling.clone()));
    }
}

#[test]
fn unsupported_architectures_are_named_with_what_is_supported() {
    for (names, expected) in [
        (json!(["Qwen3MoeForCausalLM"]), "Qwen3MoeForCausalLM"),
        (json!(["LlamaForCausalLM", "MistralForCausalLM"]), "MistralForCausalLM"),
        (json!([]), "[]"),
        (json!("LlamaForCausalLM"), "a list with one name"),
    ] {
        let supported = if names.is_array() { "Qwen2ForCausalLM" } else { "" };
        refused("architecture", &[expected, supported], || config(|c| c["architectures"] = names.clone()));
    }
    refused("none", &["mixtral", "LlamaForCausalLM"], || {
        config(|config| {
            config["model_type"] = json!("mixtral");
            config["architectures"] = Value::Null;
        })
    });
}

#[test]
fn every_problem_of_a_configuration_is_reported_at_once() {
    let error = refused("several", &["hidden_size", "rope_theta", "vocab_size"], || {
        config(|config| {
            config["hidden_size"] = json!("x");
            config["rope_theta"] = json!([]);
            config.as_object_mut().expect("an object").remove("vocab_size");
        })
    });
    assert_eq!(error.problems().len(), 3);
}

#[test]
fn config_files_that_are_not_strict_json() {
    let folder = copied("models/llama_gqa");
    let path = folder.path().join("config.json");
    let text = std::fs::read_to_string(&path).expect("a fixture");
    let cases = [
        text.replacen('{', "{\"hidden_size\": 32,", 1),
        text.replace("500000.0", "NaN"),
        text.replace("500000.0", "1e999"),
        text[..text.len() / 2].to_owned(),
        "[".repeat(100_000),
        "[]".to_owned(),
        String::new(),
    ];
    for case in cases {
        std::fs::write(&path, &case).expect("written");
        refused(&case[..case.len().min(40)], &["config.json"], || BaseFiles::open(folder.path()));
    }
    std::fs::write(&path, &text).expect("written");
    let generation = folder.path().join("generation_config.json");
    for case in ["{\"eos_token_id\": 2, \"eos_token_id\": 3}", "{\"eos_token_id\": \"end\"}", "{"] {
        std::fs::write(&generation, case).expect("written");
        refused(case, &["generation_config.json"], || BaseFiles::open(folder.path()));
    }
    std::fs::write(&generation, "{\"eos_token_id\": [7, 2]}").expect("written");
    let config = BaseFiles::open(folder.path()).expect("a base").config().clone();
    assert_eq!(config.eos_tokens, [2, 7]);
}
