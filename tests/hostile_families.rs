//! Configurations of the model families that are missing something, contradict themselves or are absurd: an error names
//! file, key, value and what is expected.

use std::path::Path;

use burnish::files::Bytes;
use burnish::files::gguf::Gguf;
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
fn gemma2() {
    let name = "gemma2_grouped";
    refuses(name, &["head_dim"], json!(0), &["head_dim", "is 0", "above 0"]);
    refuses(name, &["layer_types"], json!(["full_attention"]), &["layer_types", "names 1 layers", "is 3"]);
    let chunked = json!(["full_attention", "chunked_attention", "full_attention"]);
    refuses(name, &["layer_types"], chunked, &["layer_types", "sliding_attention"]);
    for cap in ["attn_logit_softcapping", "final_logit_softcapping"] {
        for value in [json!(0), json!(-30.0), json!(1e300)] {
            refuses(name, &[cap], value, &[cap, "expected a number from 1e-9 to 1e9"]);
        }
        refuses(name, &[cap], json!("none"), &[cap, "\"none\"", "expected a number"]);
    }
    for scalar in [json!(0), json!(-4), json!(1e300)] {
        refuses(name, &["query_pre_attn_scalar"], scalar, &["query_pre_attn_scalar", "a whole number above 0"]);
    }
    refuses(name, &["sliding_window"], json!(0), &["sliding_window", "is 0", "above 0"]);
    refuses(name, &["sliding_window"], json!(null), &["sliding_window", "is null", "sliding_attention"]);
    refuses(name, &["hidden_activation"], json!("relu"), &["hidden_activation", "\"relu\"", "\"gelu_pytorch_tanh\""]);
    refuses(
        name,
        &["use_bidirectional_attention"],
        json!(true),
        &["use_bidirectional_attention", "does not look ahead"],
    );
    refuses(name, &["num_experts"], json!(4), &["num_experts", "mixtures of experts"]);
    let pattern = |period: usize| {
        changed(name, |config| {
            config.as_object_mut().expect("an object").remove("layer_types");
            config["sliding_window_pattern"] = json!(period);
        })
    };
    refused("pattern", &["sliding_window_pattern", "is 3", "`layer_types`"], || pattern(3));
    assert_eq!(pattern(2).expect("every other layer").full_layers, [1]);
}

#[test]
fn gemma3() {
    let name = "gemma3_pattern";
    refuses(name, &["head_dim"], json!(0), &["head_dim", "is 0", "above 0"]);
    refuses(name, &["attn_logit_softcapping"], json!(50), &["attn_logit_softcapping", "expected null"]);
    refuses(name, &["final_logit_softcapping"], json!(-1), &["final_logit_softcapping", "-1", "1e-9 to 1e9"]);
    refuses(name, &["layer_types"], json!([]), &["layer_types", "names 0 layers", "is 2"]);
    let rope = "rope_parameters";
    refuses(name, &[rope], json!("default"), &[rope, "is not an object"]);
    refuses(name, &[rope], json!({"rope_type": "default"}), &[rope, "\"rope_type\"", "\"full_attention\""]);
    let full = [rope, "full_attention", "rope_type"];
    refuses(name, &full, json!("yarn"), &["rope_parameters.full_attention: rope_type", "\"yarn\"", "\"linear\""]);
    let local = [rope, "sliding_attention", "rope_theta"];
    refuses(name, &local, json!(0), &["rope_local_base_freq", "is 0", "1 or more"]);
    let scaling = json!({"rope_type": "linear", "factor": 0});
    refuses(name, &["rope_scaling"], scaling, &["rope_scaling", "factor is 0", "positive"]);
    let without_types = |field: &'static str, value: Value| {
        changed(name, move |config| {
            let object = config.as_object_mut().expect("an object");
            object.remove("layer_types");
            object.insert(field.to_owned(), value);
        })
    };
    refused("period", &["sliding_window_pattern", "is 0", "above 0"], || {
        without_types("sliding_window_pattern", json!(0))
    });
    let (old, new) = (without_types("sliding_window_pattern", json!(2)), changed(name, |_| ()));
    assert_eq!(old.expect("the older spelling"), new.expect("the newer one"));
}

/// The spellings of transformers 4 and 5 for the two rotary embeddings of a Gemma 3.
#[test]
fn gemma3_with_rotary_fields_beside_each_other() {
    let name = "gemma3_bf16_grouped";
    let old = changed(name, |config| {
        config.as_object_mut().expect("an object").remove("rope_parameters");
        config["rope_theta"] = json!(500000);
        config["rope_local_base_freq"] = json!(700);
        config["rope_scaling"] = json!({"type": "linear", "factor": 4.0});
    });
    assert_eq!(old.expect("the older spelling"), changed(name, |_| ()).expect("the newer one"));
    let defaults = changed(name, |config| drop(config.as_object_mut().expect("an object").remove("rope_parameters")));
    let defaults = defaults.expect("transformers' defaults");
    assert_eq!((defaults.rope.theta, defaults.local_rope.map(|rope| rope.theta)), (1e6, Some(1e4)));
}

/// The configuration of a fixture's GGUF file with one more key: its type and its value's bytes.
fn with_key(name: &str, key: &str, kind: u32, value: &[u8]) -> burnish::Result<ModelConfig> {
    const BEFORE_KEYS: usize = 24;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(name).join("model.gguf");
    let bytes = std::fs::read(path).expect("a fixture");
    let entry = |key: &str, kind: u32, value: &[u8]| {
        [&(key.len() as u64).to_le_bytes(), key.as_bytes(), &kind.to_le_bytes(), value].concat()
    };
    let mut added = entry(key, kind, value);
    // The tensors begin at a multiple of 32 bytes.
    let filler = "f".repeat((added.len() + entry("", 0, &[0]).len()).next_multiple_of(32) - added.len() - 13);
    added.extend(entry(&filler, 0, &[0]));
    let keys = u64::from_le_bytes(bytes[16..BEFORE_KEYS].try_into().expect("eight bytes")) + 2;
    let changed = [&bytes[..16], &keys.to_le_bytes(), &added, &bytes[BEFORE_KEYS..]].concat();
    ModelConfig::from_gguf(&Gguf::from_bytes("model.gguf", Bytes::from(changed))?)
}

/// A list of booleans in GGUF.
fn marks(marks: &[u8]) -> Vec<u8> {
    [&7u32.to_le_bytes()[..], &(marks.len() as u64).to_le_bytes(), marks].concat()
}

#[test]
fn orders_of_layers_in_gguf() {
    let (number, string, array) = (4, 8, 9);
    let (name, key) = ("gemma2_grouped", "gemma2.attention.sliding_window_pattern");
    let usual = with_key(name, "general.note", number, &1u32.to_le_bytes()).expect("a configuration");
    assert_eq!(usual.full_layers, [1]);
    let third = with_key(name, key, number, &3u32.to_le_bytes()).expect("every third layer");
    assert_eq!((third.full_layers, third.sliding_window), (vec![2], Some(9)));
    let none = with_key(name, key, number, &1u32.to_le_bytes()).expect("no layer with a window");
    assert_eq!((none.full_layers, none.sliding_window), (vec![], None));
    let marked = with_key(name, key, array, &marks(&[0, 0, 1])).expect("the last layer with a window");
    assert_eq!(marked.full_layers, [0, 1]);
    refused("two of three", &["model.gguf", key, "marks 2 layers", "is 3"], || {
        with_key(name, key, array, &marks(&[0, 1]))
    });
    refused("a text", &["model.gguf", key, "string", "a whole number or a list of booleans"], || {
        with_key(name, key, string, &[2, 0, 0, 0, 0, 0, 0, 0, b's', b'w'])
    });
    let experts = 8u32.to_le_bytes();
    refused("experts", &["gemma2.expert_count", "is 8", "mixtures of experts"], || {
        with_key(name, "gemma2.expert_count", number, &experts)
    });
}

#[test]
fn olmo2() {
    let name = "olmo2_grouped";
    refuses(name, &["head_dim"], json!(0), &["head_dim", "is 0", "above 0"]);
    refuses(name, &["num_attention_heads"], json!(5), &["num_attention_heads", "is 5", "hidden_size 24"]);
    refuses(name, &["hidden_act"], json!("gelu"), &["hidden_act", "\"gelu\"", "\"silu\""]);
    refuses(name, &["rms_norm_eps"], json!(-1e-5), &["rms_norm_eps", "above 0 and below 1"]);
    refuses(name, &["rope_parameters", "rope_type"], json!("yarn"), &["rope_type", "\"yarn\"", "\"linear\""]);
    refused("a window", &["olmo2.attention.sliding_window", "is 64", "OLMo 3"], || {
        with_key(name, "olmo2.attention.sliding_window", 4, &64u32.to_le_bytes())
    });
}

/// Relatives of the families here that compute something else.
#[test]
fn unknown_variants_are_refused_by_name() {
    for (class, model_type) in [
        ("GemmaForCausalLM", "gemma"),
        ("Gemma3TextModel", "gemma3_text"),
        ("Gemma3nForConditionalGeneration", "gemma3n"),
        ("Gemma3nForCausalLM", "gemma3n_text"),
        ("Gemma4ForConditionalGeneration", "gemma4"),
        ("Gemma4ForCausalLM", "gemma4_text"),
        ("RecurrentGemmaForCausalLM", "recurrent_gemma"),
        ("Qwen3MoeForCausalLM", "qwen3_moe"),
        ("OlmoForCausalLM", "olmo"),
        ("Olmo3ForCausalLM", "olmo3"),
        ("OlmoeForCausalLM", "olmoe"),
    ] {
        refused(class, &["config.json", class, "is not supported", "Gemma3ForCausalLM"], || {
            changed("gemma3_pattern", |config| {
                config["architectures"] = json!([class]);
                config["model_type"] = json!(model_type);
            })
        });
    }
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
fn an_index_may_list_tensors_that_the_model_does_not_need() {
    let folder = copied("families/qwen3_bf16_tied");
    let path = folder.path().join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).expect("a fixture")).expect("JSON");
    let shard = index["weight_map"]["model.embed_tokens.weight"].clone();
    index["weight_map"]["lm_head.weight"] = shard.clone();
    std::fs::write(&path, index.to_string()).expect("written");
    assert!(BaseFiles::open(folder.path()).expect("a base").config().tied_head);
    index["weight_map"]["model.layers.7.mlp.up_proj.weight"] = shard;
    std::fs::write(&path, index.to_string()).expect("written");
    assert!(BaseFiles::open(folder.path()).is_ok(), "the model has no use for it");
}

#[test]
fn smollm3() {
    let name = "smollm3_grouped";
    refuses(name, &["no_rope_layers"], json!([1, 1, 0]), &["no_rope_layers", "has 3 entries", "5 layers"]);
    refuses(name, &["no_rope_layers"], json!([1, 1, 2, 1, 1]), &["no_rope_layers", "holds 2", "expected 1"]);
    refuses(name, &["no_rope_layers"], json!("all"), &["no_rope_layers", "a list of whole numbers"]);
    refuses(name, &["layer_types"], json!(["full_attention"]), &["layer_types", "names 1 layers", "is 5"]);
    // Every second layer, and the usual fourth.
    for (interval, expected) in [(json!(2), vec![1, 3]), (Value::Null, vec![3])] {
        let config = changed(name, |config| {
            config.as_object_mut().expect("an object").remove("no_rope_layers");
            config["no_rope_layer_interval"] = interval;
        });
        assert_eq!(config.expect("a configuration").unrotated_layers, expected);
    }
    refused("interval", &["config.json: no_rope_layer_interval", "is 0", "above 0"], || {
        changed(name, |config| {
            config.as_object_mut().expect("an object").remove("no_rope_layers");
            config["no_rope_layer_interval"] = json!(0);
        })
    });
    // A window is that of the layers that do not rotate, and only where it is turned on.
    for (used, window, full) in [(true, Some(8), vec![0, 1, 2, 4]), (false, None, Vec::new())] {
        let config = changed(name, |config| {
            config.as_object_mut().expect("an object").remove("layer_types");
            config["sliding_window"] = json!(8);
            config["use_sliding_window"] = json!(used);
        });
        let config = config.expect("a configuration");
        assert_eq!((config.sliding_window, config.full_layers), (window, full));
    }
}

#[test]
fn granite() {
    for name in ["granite_grouped", "granite4_grouped"] {
        for field in ["embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"] {
            refuses(name, &[field], json!("two"), &[field, "expected a number"]);
            for value in [json!(0), json!(-1.0), json!(1e300)] {
                refuses(name, &[field], value, &[field, "expected a number from 1e-9 to 1e9"]);
            }
        }
    }
    let name = "granite4_grouped";
    refuses(name, &["num_local_experts"], json!(8), &["num_local_experts", "is 8", "mixtures of experts"]);
    refuses(name, &["layer_types"], json!(["attention", "mamba"]), &["layer_types", "\"mamba\"", "every layer"]);
    refuses(name, &["layer_types"], json!(["attention"]), &["layer_types", "names 1 layers", "is 2"]);
    refuses(name, &["position_embedding_type"], json!("alibi"), &["position_embedding_type", "\"alibi\"", "\"rope\""]);
    refuses(name, &["shared_intermediate_size"], json!(0), &["shared_intermediate_size", "is 0", "above 0"]);
    for field in ["num_local_experts", "layer_types"] {
        refused(field, &[field, "is missing", "supported"], || {
            changed(name, |config| drop(config.as_object_mut().expect("an object").remove(field)))
        });
    }
}

#[test]
fn phi3() {
    let name = "phi3_longrope";
    let rope = |field: &'static str| ["rope_parameters", field];
    refuses(name, &rope("short_factor"), json!([1.0]), &["1 frequency factors", "expected 3"]);
    refuses(name, &rope("long_factor"), json!([1.0, 2.0, 0.0]), &["frequency factors", "from 1e-6 to 1e6"]);
    refuses(name, &rope("long_factor"), Value::Null, &["long_factor", "is missing"]);
    refuses(name, &rope("partial_rotary_factor"), json!(1.5), &["partial_rotary_factor", "is 1.5", "at most 1"]);
    refuses(name, &["num_key_value_heads"], json!(4), &["num_key_value_heads", "is 4", "2 attention heads"]);
    refuses(name, &["sliding_window"], json!(0), &["sliding_window", "is 0", "above 0"]);
    refuses(name, &["hidden_act"], json!("gelu"), &["hidden_act", "\"gelu\"", "\"silu\""]);
    // Fused rows that do not divide: the weights are those of another number of key and value heads.
    let folder = copied("families/phi3_longrope");
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("a fixture")).expect("JSON");
    config["num_key_value_heads"] = json!(2);
    std::fs::write(&path, config.to_string()).expect("written");
    let words = ["self_attn.qkv_proj.weight", "[48, 24]", "[72, 24]"];
    refused("fused rows", &words, || BaseFiles::open(folder.path()));
}
