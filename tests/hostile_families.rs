//! Configurations of the model families that are missing something, contradict themselves or are absurd: an error names
//! file, key, value and what is expected.

use std::path::Path;

use burnish::model::{BaseFiles, ModelConfig};
use serde_json::{Value, json};

use crate::hostile_weights::{copied, refused};

/// The configuration of a fixture with some fields changed.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> burnish::Result<ModelConfig> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(name).join("config.json");
    let mut value = serde_json::from_slice(&std::fs::read(path).expect("a fixture")).expect("JSON");
    change(&mut value);
    ModelConfig::from_json("config.json", &value, None)
}

/// Asserts that `name` with the field at `path` set to `value` is refused with these words.
fn refuses(name: &str, path: &[&str], value: Value, expected: &[&str]) {
    let what = format!("{name} {path:?} {value}");
    let words: Vec<&str> = expected.iter().copied().chain(["config.json"]).collect();
    refused(&what, &words, || {
        changed(name, |config| {
            let field = path.iter().fold(config, |config, key| &mut config[*key]);
            *field = value.clone();
        })
    });
}

#[test]
fn qwen3() {
    let name = "qwen3_grouped";
    refuses(name, &["head_dim"], json!(0), &["head_dim", "is 0", "above 0"]);
    refuses(name, &["head_dim"], json!(11), &["head_dim", "is 11", "even"]);
    refuses(name, &["num_key_value_heads"], json!(3), &["num_key_value_heads", "is 3", "4 attention heads"]);
    refuses(name, &["hidden_act"], json!("gelu"), &["hidden_act", "\"gelu\"", "\"silu\""]);
    refuses(name, &["layer_types"], json!(["full_attention"]), &["layer_types", "names 1 layers", "is 2"]);
    refuses(name, &["rope_parameters", "rope_theta"], json!(0), &["rope_theta", "is 0", "1 or more"]);
    refuses(name, &["num_experts"], json!(8), &["num_experts", "is 8", "mixtures of experts"]);
}

#[test]
fn gpt_neox() {
    let name = "gpt_neox_parallel";
    for share in [json!(1.5), json!(0.0), json!(-0.25)] {
        let path = ["rope_parameters", "partial_rotary_factor"];
        refuses(name, &path, share.clone(), &["partial_rotary_factor", "above 0 and at most 1"]);
    }
    let old = |share: Value| {
        move |config: &mut Value| {
            config.as_object_mut().expect("an object").remove("rope_parameters");
            config["rotary_pct"] = share;
        }
    };
    refused("rotary_pct", &["config.json: rotary_pct", "is 1.5", "at most 1"], || changed(name, old(json!(1.5))));
    refused("rotary_pct", &["rotary_pct", "expected a number"], || changed(name, old(json!("most"))));
    // 3 of 8 values: no whole pairs.
    refused("odd", &["partial_rotary_factor", "3 of the 8", "even"], || changed(name, old(json!(0.4))));
    // transformers' default, where neither name is there.
    let config = changed(name, |config| drop(config.as_object_mut().expect("an object").remove("rope_parameters")));
    assert_eq!(config.expect("a configuration").rope.rotary_dims, 2);
    refuses(name, &["num_key_value_heads"], json!(1), &["num_key_value_heads", "is 1", "expected 3"]);
    refuses(name, &["hidden_act"], json!("relu"), &["hidden_act", "\"relu\"", "\"gelu\""]);
    refuses(name, &["num_attention_heads"], json!(5), &["num_attention_heads", "is 5", "hidden_size 24"]);
    refuses(name, &["layer_norm_eps"], json!(0), &["layer_norm_eps", "is 0", "above 0"]);
    refuses(name, &["use_parallel_residual"], json!("yes"), &["use_parallel_residual", "true or false"]);
}

#[test]
fn shapes_that_do_not_fit_the_configuration_are_named() {
    for (name, field, value, tensors) in [
        ("qwen3_grouped", "head_dim", json!(6), ["self_attn.q_proj.weight", "self_attn.q_norm.weight"]),
        ("gpt_neox_parallel", "head_dim", json!(4), ["attention.query_key_value.weight", "attention.dense.weight"]),
    ] {
        let folder = copied(&format!("families/{name}"));
        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("a fixture")).expect("JSON");
        config[field] = value;
        std::fs::write(&path, config.to_string()).expect("written");
        refused(name, &[tensors[0], tensors[1], "the configuration needs"], || BaseFiles::open(folder.path()));
    }
}

/// Buffers that old versions saved are passed over; a tensor of another kind is not.
#[test]
fn unknown_tensors_are_refused_and_old_buffers_are_not() {
    let config = changed("gpt_neox_parallel", |_| ()).expect("a configuration");
    for name in ["gpt_neox.layers.0.attention.bias", "gpt_neox.layers.1.attention.masked_bias"] {
        assert!(config.ignores(name), "{name}");
    }
    for name in ["gpt_neox.layers.0.attention.query_key_value.bias", "gpt_neox.layers.0.mlp.bias", "embed_out.weight"] {
        assert!(!config.ignores(name), "{name}");
    }
}

/// transformers writes an index from the state of the model, where a tied head is a tensor too.
#[test]
fn an_index_may_list_the_head_of_a_tied_model() {
    let folder = copied("families/qwen3_bf16_tied");
    let path = folder.path().join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).expect("a fixture")).expect("JSON");
    let shard = index["weight_map"]["model.embed_tokens.weight"].clone();
    index["weight_map"]["lm_head.weight"] = shard.clone();
    std::fs::write(&path, index.to_string()).expect("written");
    assert!(BaseFiles::open(folder.path()).expect("a base").config().tied_head);
    index["weight_map"]["model.layers.7.mlp.up_proj.weight"] = shard;
    std::fs::write(&path, index.to_string()).expect("written");
    refused("not a tensor", &["model.layers.7.mlp.up_proj.weight", "is not in"], || BaseFiles::open(folder.path()));
}
