//! Weight files and number formats against gguf-py, bitsandbytes and transformers (fixtures/blocks).

use std::path::{Path, PathBuf};

use burnish::files::bitsandbytes::{Int8Tensor, Nf4Scales, Nf4Tensor};
use burnish::files::safetensors::SafeTensorsFile;
use burnish::files::{Dtype, RawTensor};
use burnish::model::config::RopeScaling;
use burnish::model::folder::{Extent, write_configs};
use burnish::model::{BaseFiles, ModelConfig, StoredWeight};
use burnish::quant::{BlockType, nf4};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn open(name: &str) -> SafeTensorsFile {
    SafeTensorsFile::open(&fixture(name)).expect("a fixture")
}

fn values(file: &SafeTensorsFile, name: &str) -> Vec<f32> {
    file.tensor(name).and_then(|tensor| tensor.to_f32()).expect("a fixture's tensor")
}

/// Equal to the bit, or both zero: the sign of a zero carries no weight.
fn assert_identical(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(found == expected, "{what}[{index}]: {found} instead of {expected}");
    }
}

#[test]
fn every_block_format_decodes_as_gguf_py_does() {
    let file = open("blocks/gguf.safetensors");
    for block in BlockType::ALL {
        let bytes = file.tensor(&format!("{block}.blocks")).expect("a fixture's tensor").bytes;
        let expected = values(&file, &format!("{block}.values"));
        let tensor = RawTensor { dtype: Dtype::Block(block), shape: vec![expected.len()], bytes };
        assert_identical(&tensor.to_f32().expect("decoded"), &expected, block.name());
    }
}

#[test]
fn nf4_codes_and_scales_are_those_of_bitsandbytes() {
    let file = open("blocks/nf4.safetensors");
    for case in ["wide", "odd", "ties"] {
        let tensor = file.tensor(&format!("{case}.input")).expect("a fixture's tensor");
        let ours = Nf4Tensor::quantise(case, &tensor, false).expect("finite");
        let packed = file.tensor(&format!("{case}.packed")).expect("a fixture's tensor").bytes;
        assert!(*ours.packed == *packed, "{case}: packed codes");
        let Nf4Scales::Single(scales) = &ours.scales else { panic!("scales are single") };
        assert_identical(scales, &values(&file, &format!("{case}.absmax")), case);
        assert_identical(&ours.to_f32(), &values(&file, &format!("{case}.values")), case);
    }
}

#[test]
fn double_quantised_scales_decode_as_in_bitsandbytes_and_are_made_within_its_spread() {
    let file = open("blocks/nf4.safetensors");
    let codes = file.tensor("double.codes").expect("a fixture's tensor").bytes;
    let nested_absmax = values(&file, "double.nested_absmax");
    let offset = values(&file, "double.offset")[0];
    let map: [f32; 256] = values(&file, "double.map").try_into().expect("256 values");
    assert_eq!(map, nf4::DYNAMIC_MAP);
    let packed = file.tensor("wide.packed").expect("a fixture's tensor").bytes;
    let scale = |block| nf4::nested_scale(&codes, &nested_absmax, &map, nf4::NESTED_BLOCK, offset, block);
    let mut found = vec![0.0; 2 * packed.len()];
    nf4::decode(&packed, nf4::BLOCK, scale, 0, &mut found);
    assert_identical(&found, &values(&file, "double.values"), "decoded");

    let ours = nf4::quantise_scales(&values(&file, "wide.absmax"));
    assert!((ours.offset - offset).abs() <= offset.abs() * 1e-6);
    // bitsandbytes on the CPU looks codes up in a coarse table: neighbours are as good.
    assert!(ours.codes.iter().zip(codes.iter()).all(|(ours, theirs)| ours.abs_diff(*theirs) <= 1));
}

#[test]
fn int8_rows_are_those_of_bitsandbytes() {
    let file = open("blocks/int8.safetensors");
    let tensor = file.tensor("input").expect("a fixture's tensor");
    let ours = Int8Tensor::quantise("input", &tensor).expect("finite");
    assert!(*ours.codes == *file.tensor("codes").expect("a fixture's tensor").bytes);
    assert_identical(&ours.row_absmax, &values(&file, "absmax"), "scales");
    let expected = values(&file, "values");
    for (found, expected) in ours.to_f32().iter().zip(&expected) {
        // bitsandbytes' result on the CPU is f32; compared as such.
        assert_eq!(found, expected);
    }
}

#[test]
fn a_gguf_base_has_the_names_and_rows_of_the_checkpoint_it_came_from() {
    let base = BaseFiles::open(&fixture("blocks/tiny.gguf")).expect("a base");
    let source = ModelConfig::from_json_file(&fixture("models/llama_gqa/config.json")).expect("a config");
    assert_eq!(base.config(), &source);
    let expected = open("blocks/tiny_values.safetensors");
    assert_eq!(base.tensor_names().count(), expected.names().count());
    for name in base.tensor_names() {
        let found = base.tensor(name).and_then(|tensor| tensor.to_f32()).expect("a tensor");
        assert_identical(&found, &values(&expected, name), name);
    }
}

#[test]
fn bitsandbytes_checkpoints_stay_packed_and_decode_as_bitsandbytes_does() {
    for (folder, bits) in [("nf4_model", 4), ("nf4_double_model", 4), ("int8_model", 8)] {
        let base = BaseFiles::open(&fixture("blocks").join(folder)).expect("a base");
        let expected = open(&format!("blocks/{folder}/expected.safetensors"));
        assert_eq!(expected.names().count(), 7, "{folder}");
        for name in base.tensor_names() {
            let weight = base.weight(name).expect("a weight");
            match (&weight, expected.has(name)) {
                (StoredWeight::Dense(_), false) => {}
                (StoredWeight::Nf4(_), true) => assert_eq!(bits, 4),
                (StoredWeight::Int8(_), true) => assert_eq!(bits, 8),
                _ => panic!("{folder}: {name} is stored otherwise"),
            }
            if expected.has(name) {
                assert_identical(&weight.to_f32().expect("decoded"), &values(&expected, name), name);
                let decoded = base.tensor(name).and_then(|tensor| tensor.to_f32()).expect("decoded");
                assert_identical(&decoded, &values(&expected, name), name);
            }
        }
    }
}

#[test]
fn a_configuration_written_for_transformers_reads_back_the_same() {
    for name in ["llama_bias", "llama_rope_llama3", "llama_rope_linear", "mistral_window", "qwen2_tied", "llama_odd"] {
        let path = fixture("models").join(name).join("config.json");
        let config = ModelConfig::from_json_file(&path).expect("a config");
        let written = config.to_hf_json(Dtype::F32);
        assert_eq!(ModelConfig::from_json("written", &written, None).expect("a config"), config, "{name}");
    }
}

/// The configuration of a model of the fixtures, its JSON edited.
fn edited(name: &str, edit: impl FnOnce(&mut Value)) -> ModelConfig {
    let text = std::fs::read_to_string(fixture("models").join(name).join("config.json")).expect("a config");
    let mut json = serde_json::from_str(&text).expect("JSON");
    edit(&mut json);
    ModelConfig::from_json("edited", &json, None).expect("a config")
}

#[test]
fn rope_is_read_as_transformers_5_does_where_a_file_leaves_it_open() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
    let original = |config: ModelConfig| match config.rope.scaling {
        RopeScaling::Llama3 { original_max_positions, .. } => original_max_positions,
        other => panic!("{other:?}"),
    };
    assert_eq!(original(edited("llama_mha", |json| json["rope_scaling"] = llama3.clone())), 128);
    let beside = |json: &mut Value| {
        json["rope_scaling"] = llama3.clone();
        json["rope_scaling"]["original_max_position_embeddings"] = json!(64);
        json["original_max_position_embeddings"] = json!(32);
    };
    assert_eq!(original(edited("llama_mha", beside)), 32);

    let both = edited("llama_mha", |json| {
        json["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 300.0});
        json["rope_scaling"] = json!({"type": "linear", "factor": 3.0});
    });
    assert_eq!((both.rope.theta, both.rope.scaling), (10_000.0, RopeScaling::Linear { factor: 3.0 }));
    for (scaling, theta) in [(json!({}), 300.0), (json!({"rope_theta": 500.0}), 500.0)] {
        let config = edited("llama_mha", |json| {
            json["rope_theta"] = json!(300.0);
            json["rope_scaling"] = scaling.clone();
        });
        assert_eq!((config.rope.theta, config.rope.scaling), (theta, RopeScaling::None), "{scaling}");
    }
}

#[test]
fn a_window_is_where_transformers_has_it() {
    let window = |edit: fn(&mut Value)| {
        let config = edited("qwen2", edit);
        (config.window_of(0), config.window_of(1))
    };
    assert_eq!(window(|_| ()), (None, None));
    let default = |json: &mut Value| {
        json["use_sliding_window"] = json!(true);
        json["max_window_layers"] = json!(0);
        json.as_object_mut().expect("an object").remove("sliding_window");
    };
    assert_eq!(window(default), (Some(4096), Some(4096)));
    let from_a_layer_on = |json: &mut Value| {
        json["use_sliding_window"] = json!(true);
        json["max_window_layers"] = json!(1);
    };
    assert_eq!(window(from_a_layer_on), (None, Some(5)));
    let by_layer = |json: &mut Value| {
        json["use_sliding_window"] = json!(true);
        json["layer_types"] = json!(["sliding_attention", "full_attention"]);
    };
    assert_eq!(window(by_layer), (Some(5), None));
}

#[test]
fn a_checkpoint_under_other_names_is_written_under_the_usual_ones() {
    let tied = |name: &str| {
        let base = BaseFiles::open(&fixture("models").join(name)).expect("a base");
        assert!(base.tensor("model.embed_tokens.weight").is_ok(), "{name}");
        base.config().tied_head
    };
    assert!(tied("llama_bare_names") && tied("llama_head_for_both") && !tied("llama_own_head"));
    let config = |name: &str| {
        let base = BaseFiles::open(&fixture("models").join(name)).expect("a base");
        let folder = tempfile::tempdir().expect("a folder");
        write_configs(&base, Extent::Decoder, Dtype::F32, folder.path(), |_| ()).expect("written");
        let text = std::fs::read_to_string(folder.path().join("config.json")).expect("a config");
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    assert_eq!(config("llama_own_head")["tie_word_embeddings"], json!(false));
    assert_eq!(config("llama_bare_names")["architectures"], json!(["LlamaForCausalLM"]));
    assert_eq!(config("llama_bare_names")["tie_word_embeddings"], json!(true));
}

#[test]
fn frequency_factors_of_llama_3_are_recognised() {
    let path = fixture("models/llama_gqa/config.json");
    let mut config = ModelConfig::from_json_file(&path).expect("a config");
    config.head_dim = 128;
    (config.rope.rotary_dims, config.rope.theta) = (128, 500_000.0);
    let factors = values(&open("blocks/gguf.safetensors"), "llama3.rope_freqs");
    config.rope.scaling = RopeScaling::Factors(factors);
    assert_eq!(config.to_hf_json(Dtype::F32)["rope_scaling"]["rope_type"], "llama3");
    config.rope.scaling = RopeScaling::Factors(vec![1.5; 64]);
    let written = config.to_hf_json(Dtype::F32);
    assert_eq!(written["rope_scaling"]["rope_type"], "longrope");
    assert_eq!(ModelConfig::from_json("written", &written, None).expect("a config"), config);
    // Factors that depend on the length of a sequence are LongRoPE's.
    let mut other = written.clone();
    other["rope_scaling"]["long_factor"][0] = json!(2.0);
    let longrope = ModelConfig::from_json("other", &other, None).expect("a config");
    match &longrope.rope.scaling {
        RopeScaling::LongRope { short, long, attention_factor, .. } => {
            assert_eq!((short[0], long[0], *attention_factor), (1.5, 2.0, 1.0));
        }
        other => panic!("{other:?}"),
    }
    let again = ModelConfig::from_json("again", &longrope.to_hf_json(Dtype::F32), None);
    assert_eq!(again.expect("a config"), longrope);
}

#[test]
fn the_content_hash_follows_the_weights_and_not_the_path() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("renamed.gguf");
    let mut bytes = std::fs::read(fixture("blocks/tiny.gguf")).expect("a fixture");
    std::fs::write(&path, &bytes).expect("written");
    let hash = |path: &Path| BaseFiles::open(path).and_then(|base| base.content_hash()).expect("a hash");
    let original = hash(&fixture("blocks/tiny.gguf"));
    assert_eq!(hash(&path), original);
    assert_eq!(original.len(), 64);
    let last = bytes.len() - 33;
    bytes[last] ^= 1;
    std::fs::write(&path, &bytes).expect("written");
    assert_ne!(hash(&path), original);
}

#[test]
fn gguf_models_of_every_vocabulary_and_type_open() {
    for (name, tied) in [("smollm", true), ("llama_bpe", false), ("spm", false), ("qwen2", false)] {
        let base = BaseFiles::open(&fixture("gguf").join(format!("{name}.gguf"))).expect(name);
        for tensor in base.tensor_names() {
            let weight = base.weight(tensor).expect(tensor);
            assert_eq!(weight.to_f32().expect(tensor).len(), weight.shape().iter().product::<usize>());
        }
        if tied {
            assert!(base.config().tied_head, "{name}");
        }
    }
    let gguf = burnish::files::gguf::Gguf::open(&fixture("gguf/blocks.gguf")).expect("a file");
    let expected = open("gguf/blocks.expected.safetensors");
    assert_eq!(gguf.names().count(), 11);
    for name in gguf.names() {
        let found = gguf.tensor(name).and_then(|tensor| tensor.to_f32()).expect("decoded");
        assert_identical(&found, &values(&expected, name), name);
    }
}
