//! Hostile and broken weight files: every class is a named error with exit code 2, quickly.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burnish::files::gguf::Gguf;
use burnish::files::safetensors::SafeTensorsFile;
use burnish::files::{Bytes, open};
use burnish::model::{BaseFiles, ModelConfig};
use burnish::{Error, Result};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The error of `read`: bad input, found within two seconds, naming every one of `expected`.
pub fn refused<T: std::fmt::Debug>(what: &str, expected: &[&str], read: impl FnOnce() -> Result<T>) -> Error {
    let start = Instant::now();
    let error = read().expect_err(what);
    assert!(start.elapsed() < Duration::from_secs(20), "{what} took {:?}", start.elapsed());
    assert_eq!(error.exit_code(), 2, "{what}: {error}");
    for part in expected {
        assert!(error.to_string().contains(part), "{what}: expected {part:?} in\n{error}");
    }
    error
}

// ---- safetensors -----------------------------------------------------------------------------------------

/// A file of this header and `data` bytes.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn refused_safetensors(what: &str, expected: &[&str], bytes: Vec<u8>) {
    refused(what, expected, || SafeTensorsFile::from_bytes("file.safetensors", Bytes::from(bytes)));
}

const ONE: &str = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;

#[test]
fn safetensors_header_lengths() {
    let mut endless = safetensors(&format!("{{{ONE}}}"), 8);
    endless[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    refused_safetensors("length 2^64-1", &["header length is 18446744073709551615"], endless.clone());
    let beyond = endless.len() as u64 + 1;
    endless[..8].copy_from_slice(&beyond.to_le_bytes());
    refused_safetensors("length beyond the file", &["9 bytes are missing"], endless.clone());
    endless[..8].copy_from_slice(&0u64.to_le_bytes());
    refused_safetensors("length 0", &["header length is 0"], endless);
    refused_safetensors("no file", &["is empty"], Vec::new());
    refused_safetensors("three bytes", &["has 3 bytes"], vec![1, 2, 3]);
}

#[test]
fn safetensors_headers() {
    let zero = r#""z":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"#;
    let cases: [(&str, &str, String, usize); 20] = [
        ("no tensors", "no tensors", "{}".into(), 0),
        ("metadata only", "no tensors", r#"{"__metadata__":{"a":"b"}}"#.into(), 0),
        ("nested", "bad header", format!("{{\"a\":{{\"dtype\":{}", "[".repeat(100_000)), 0),
        ("nested at the top", "expected an object of tensors", "[".repeat(100_000), 0),
        ("not UTF-8 escapes", "bad header", r#"{"\ud800":1}"#.into(), 0),
        ("metadata twice", "stands twice", format!(r#"{{"__metadata__":{{}},"__metadata__":{{}},{ONE}}}"#), 8),
        ("metadata key twice", "`k` stands twice", format!(r#"{{"__metadata__":{{"k":"1","k":"2"}},{ONE}}}"#), 8),
        ("metadata number", "expected a string", format!(r#"{{"__metadata__":{{"k":1}},{ONE}}}"#), 8),
        ("tensor twice", "`a` stands twice", format!("{{{ONE},{ONE}}}"), 8),
        ("no values", "holds no values", format!("{{{zero},{ONE}}}"), 8),
        ("size", "bad header", r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#.into(), 8),
        ("half a byte", "bad header", r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#.into(), 2),
        ("backwards", "before it begins", r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#.into(), 8),
        ("hole", "bad header", r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#.into(), 16),
        ("negative", "bad header", r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#.into(), 8),
        ("dtype", "bad header", r#"{"a":{"dtype":"Q9","shape":[2],"data_offsets":[0,8]}}"#.into(), 8),
        (
            "overflow",
            "bad header",
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]}}"#.into(),
            8,
        ),
        (
            "dimensions",
            "more than 8 dimensions",
            format!(r#"{{"a":{{"dtype":"F32","shape":[{}2],"data_offsets":[0,8]}}}}"#, "1,".repeat(1_000_000)),
            8,
        ),
        ("trailing data", "3 bytes follow", format!("{{{ONE}}}"), 11),
        ("path", "looks like a path", format!("{{{}}}", ONE.replace("\"a\"", "\"../../etc/x\"")), 8),
    ];
    for (what, expected, header, data) in cases {
        refused_safetensors(what, &[expected, "file.safetensors"], safetensors(&header, data));
    }
}

#[test]
fn safetensors_with_a_million_tensors() {
    let mut header = String::from("{");
    for index in 0..1_000_000 {
        header.push_str(&format!(r#""t{index}":{{"dtype":"U8","shape":[1],"data_offsets":[{index},{}]}},"#, index + 1));
    }
    header.pop();
    header.push('}');
    refused_safetensors("a million tensors", &["more than 100000 tensors"], safetensors(&header, 1_000_000));
    let strings: Vec<String> = (0..1_000_000).map(|index| format!(r#""{index}":"""#)).collect();
    let header = format!(r#"{{"__metadata__":{{{}}},{ONE}}}"#, strings.join(","));
    refused_safetensors("a million strings", &["more than 10000 strings"], safetensors(&header, 8));
}

#[test]
fn safetensors_cut_short_say_how_much_is_missing() {
    let whole = std::fs::read(fixture("models/llama_gqa/model.safetensors")).expect("a fixture");
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().expect("eight bytes")) as usize;
    for length in [whole.len() - 1, whole.len() / 2, header] {
        let missing = whole.len() - length;
        let unit = if missing == 1 { "byte is" } else { "bytes are" };
        refused_safetensors("cut", &[&format!("{missing} {unit} missing")], whole[..length].to_vec());
    }
    refused_safetensors(
        "cut in the header",
        &["bytes are missing before the header ends"],
        whole[..header / 2].to_vec(),
    );
}

#[test]
fn a_file_that_is_too_large_is_not_read_to_find_that_out() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(1 << 40).expect("a sparse file");
    let start = Instant::now();
    assert!(open::read(file.path(), 4 << 30).expect_err("a terabyte").to_string().contains("the limit of 4294967296"));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[cfg(unix)]
#[test]
fn only_regular_files_are_read_and_nothing_waits() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let fifo = std::ffi::CString::new(path("fifo").to_str().expect("UTF-8")).expect("no NUL");
    // SAFETY: `fifo` is a NUL-terminated path.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    std::os::unix::fs::symlink(path("nothing"), path("dangling")).expect("a link");
    std::os::unix::fs::symlink(path("loop"), path("loop")).expect("a link");
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).expect("a socket");
    let cases = [
        (path("fifo"), "not a regular file"),
        (PathBuf::from("/dev/zero"), "not a regular file"),
        (folder.path().to_owned(), "a folder"),
        (path("socket"), "cannot be read"),
        (path("dangling"), "cannot be read"),
        (path("loop"), "cannot be read"),
        (path("nothing"), "cannot be read"),
    ];
    for (path, expected) in cases {
        let place = path.display().to_string();
        refused(&place, &[expected, &place], || SafeTensorsFile::open(&path));
        refused(&place, &[expected, &place], || Gguf::open(&path));
        refused(&place, &[expected, &place], || ModelConfig::from_json_file(&path));
        refused(&place, &[&place], || open::read(&path, 10));
    }
    std::fs::write(path("eleven"), [0; 11]).expect("written");
    refused("too large", &["limit of 10 bytes"], || open::read(&path("eleven"), 10));
}

// ---- folders ---------------------------------------------------------------------------------------------

/// A copy of the fixture folder `name`.
pub fn copied(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(fixture(name)).expect("a fixture") {
        let entry = entry.expect("an entry");
        if entry.path().is_dir() {
            continue;
        }
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("copied");
    }
    folder
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON");
    change(&mut value);
    std::fs::write(path, value.to_string()).expect("written");
}

#[test]
fn an_adapter_is_no_base() {
    refused("an adapter", &["adapters/qv", "is an adapter"], || BaseFiles::open(&fixture("adapters/qv")));
}

#[test]
fn every_difference_between_configuration_and_tensors_is_reported_at_once() {
    let folder = copied("models/llama_gqa");
    edit(&folder.path().join("config.json"), |config| {
        config["attention_bias"] = json!(true);
        config["intermediate_size"] = json!(65);
        config["num_hidden_layers"] = json!(1);
    });
    let expected = [
        "layers.0.self_attn.q_proj.bias: is missing",
        "layers.0.mlp.gate_proj.weight: has shape [64, 32]; the configuration needs [65, 32]",
        "layers.1.self_attn.q_proj.weight: is not part of a model of this configuration",
    ];
    let error = refused("differences", &expected, || BaseFiles::open(folder.path()));
    assert_eq!(error.problems().len(), 4 + 3 + 9);
}

#[test]
fn a_missing_head_is_an_error_unless_it_is_tied() {
    let folder = copied("models/llama_tied");
    assert!(BaseFiles::open(folder.path()).is_ok());
    edit(&folder.path().join("config.json"), |config| config["tie_word_embeddings"] = json!(false));
    refused("no head", &["lm_head.weight: is missing"], || BaseFiles::open(folder.path()));
}

#[test]
fn weights_of_an_unsupported_or_broken_kind() {
    let folder = copied("models/llama_gqa");
    let path = folder.path().join("model.safetensors");
    let whole = std::fs::read(&path).expect("a fixture");
    let mut changed = whole.clone();
    let at = whole.windows(5).position(|window| window == b"\"F32\"").expect("a dtype");
    changed[at..at + 5].copy_from_slice(b"\"I32\"");
    std::fs::write(&path, &changed).expect("written");
    refused("integers", &["is stored as I32; supported are"], || BaseFiles::open(folder.path()));

    let mut infinite = whole.clone();
    let end = infinite.len();
    infinite[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, &infinite).expect("written");
    let base = BaseFiles::open(folder.path()).expect("its header is fine");
    let errors = base.tensor_names().filter_map(|name| base.tensor(name).err());
    let errors: Vec<String> = errors.map(|error| error.to_string()).collect();
    assert_eq!(errors.len(), 1);
    assert!(errors[0].contains("tensor ") && errors[0].contains("infinite or not a number"), "{errors:?}");

    std::fs::remove_file(&path).expect("removed");
    std::fs::write(folder.path().join("pytorch_model.bin"), b"never read").expect("written");
    refused("pickle", &["neither model.safetensors nor its index", "hint"], || BaseFiles::open(folder.path()));
    refused("one file", &["give the folder"], || BaseFiles::open(&fixture("models/llama_gqa/model.safetensors")));
}

#[test]
fn index_files() {
    let folder = copied("models/llama_sharded");
    let index = folder.path().join("model.safetensors.index.json");
    assert!(BaseFiles::open(folder.path()).is_ok());
    let original = std::fs::read(&index).expect("a fixture");
    let open = || BaseFiles::open(folder.path());
    for name in ["../../x", "/etc/passwd", "C:\\x", "C:x", "a\0b", "..", ".", "", "sub/x.safetensors"] {
        edit(&index, |index| index["weight_map"]["lm_head.weight"] = json!(name));
        refused(name, &["expected a plain file name"], open);
        std::fs::write(&index, &original).expect("written");
    }
    for total in [json!(-1), json!("many"), json!(1.5), json!([])] {
        edit(&index, |index| index["metadata"]["total_size"] = total.clone());
        refused("total_size", &["total_size: is", "expected a number of bytes"], open);
        std::fs::write(&index, &original).expect("written");
    }
    // 2^70 is a number of bytes, and only a wrong one.
    let text = String::from_utf8(original.clone()).expect("UTF-8");
    let at = text.find("\"total_size\":").expect("a size") + "\"total_size\":".len();
    let end = at + text[at..].find(['}', ',', '\n']).expect("an end");
    std::fs::write(&index, format!("{} 1180591620717411303424{}", &text[..at], &text[end..])).expect("written");
    refused("2^70", &["total_size"], open);
    for (what, change, expected) in [
        ("no map", json!({}), "has no object `weight_map`"),
        ("empty map", json!({"weight_map": {}}), "is empty"),
        ("number", json!({"weight_map": {"a": 3}}), "expected a file name"),
        ("missing shard", json!({"weight_map": {"a": "no.safetensors"}}), "no.safetensors"),
    ] {
        std::fs::write(&index, change.to_string()).expect("written");
        refused(what, &[expected], open);
    }
    std::fs::write(&index, &original).expect("written");
    edit(&index, |index| {
        let shard = index["weight_map"]["lm_head.weight"].clone();
        index["weight_map"]["ghost.weight"] = shard;
    });
    refused("a tensor that no shard has", &["ghost.weight: is not in "], open);
}

#[cfg(unix)]
#[test]
fn shards_behind_links() {
    use std::os::unix::fs::symlink;
    let outside = copied("models/llama_sharded");
    let folder = copied("models/llama_sharded");
    let shards: Vec<PathBuf> = std::fs::read_dir(folder.path())
        .expect("listed")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .filter(|path| !path.ends_with("expected.safetensors"))
        .collect();
    let shard = &shards[0];
    std::fs::remove_file(shard).expect("removed");
    symlink(outside.path().join(shard.file_name().expect("a name")), shard).expect("a link");
    refused("a link out", &["leads out of the folder"], || BaseFiles::open(folder.path()));

    // The hub's cache: snapshots/REVISION/FILE is a link to ../../blobs/HASH.
    let cache = tempfile::tempdir().expect("a folder");
    let (snapshot, blobs) = (cache.path().join("snapshots/abc"), cache.path().join("blobs"));
    std::fs::create_dir_all(&snapshot).expect("made");
    std::fs::create_dir_all(&blobs).expect("made");
    for entry in std::fs::read_dir(outside.path()).expect("listed") {
        let entry = entry.expect("an entry");
        if entry.path().is_dir() {
            continue;
        }
        std::fs::copy(entry.path(), blobs.join(entry.file_name())).expect("copied");
        symlink(Path::new("../../blobs").join(entry.file_name()), snapshot.join(entry.file_name())).expect("a link");
    }
    assert!(BaseFiles::open(&snapshot).is_ok());
}

#[test]
fn damaged_bitsandbytes_checkpoints() {
    // Renaming a part in the header, to a name of the same length, takes it away.
    let broken = |model: &str, from: &str, to: &str, expected: &[&str]| {
        assert_eq!(from.len(), to.len());
        let folder = copied(model);
        let path = folder.path().join("model.safetensors");
        let mut bytes = std::fs::read(&path).expect("a fixture");
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect(from);
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        std::fs::write(&path, bytes).expect("written");
        refused(from, expected, || BaseFiles::open(folder.path()));
    };
    let (single, double, eight) = ("blocks/nf4_model", "blocks/nf4_double_model", "blocks/int8_model");
    broken(single, "q_proj.weight.absmax", "q_proj.weight.absmin", &["q_proj.weight.absmax: is missing"]);
    broken(single, "q_proj.weight.quant_map", "q_proj.weight.quant_mop", &["q_proj.weight.quant_map: is missing"]);
    broken(single, "\"blocksize\": 64", "\"blocksize\": 63", &["`blocksize` is 63", "block sizes"]);
    broken(single, "\"blocksize\": 64", "\"blocksize\":128", &["scales of F32"]);
    broken(single, "\"shape\": [64,", "\"shape\": [65,", &["bytes of codes"]);
    broken(single, "\"quant_type\": \"nf4\"", "\"quant_type\": \"fp4\"", &["is not \"nf4\""]);
    broken(single, "bitsandbytes__nf4", "bitsandbytes__fp4", &["supported is bitsandbytes__nf4"]);
    broken(double, "q_proj.weight.nested_absmax", "q_proj.weight.nested_absmin", &["nested_absmax: is missing"]);
    broken(double, "\"nested_offset\"", "\"nested_offsat\"", &["only one of `nested_blocksize` and `nested_offset`"]);
    let before = "\"nested_dtype\": \"float32\", \"nested_offset\": 0.";
    let after = "\"nested_offset\":            9e99,   \"rest\": 0.";
    broken(double, before, after, &["`nested_offset` is not a number of f32"]);
    broken(double, "\"nested_blocksize\": 256", "\"nested_blocksize\": 255", &["`nested_blocksize` is 255"]);
    broken(eight, "q_proj.SCB", "q_proj.SCC", &["q_proj.weight: is stored as I8"]);
}

// ---- config.json -----------------------------------------------------------------------------------------

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

// ---- GGUF ------------------------------------------------------------------------------------------------

/// A GGUF file under construction.
#[derive(Clone)]
struct Builder {
    version: u32,
    metadata: Vec<u8>,
    metadata_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: usize,
}

impl Builder {
    fn new() -> Self {
        Self { version: 3, metadata: Vec::new(), metadata_count: 0, tensors: Vec::new(), tensor_count: 0, data: 0 }
    }

    fn string(text: &[u8]) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text].concat()
    }

    /// A metadata entry: key, type, and the value's bytes.
    fn entry(mut self, key: &[u8], kind: u32, value: &[u8]) -> Self {
        self.metadata.extend(Self::string(key));
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
        self.metadata_count += 1;
        self
    }

    fn array(self, key: &str, kind: u32, count: u64, items: &[u8]) -> Self {
        let value = [&kind.to_le_bytes(), &count.to_le_bytes()[..], items].concat();
        self.entry(key.as_bytes(), 9, &value)
    }

    /// A tensor, dimensions innermost first.
    fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors.extend(Self::string(name.as_bytes()));
        self.tensors.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|size| self.tensors.extend(size.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.tensor_count += 1;
        self
    }

    fn data(mut self, bytes: usize) -> Self {
        self.data = bytes;
        self
    }

    fn build(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensor_count.to_le_bytes());
        bytes.extend(self.metadata_count.to_le_bytes());
        bytes.extend(&self.metadata);
        bytes.extend(&self.tensors);
        bytes.resize(bytes.len().next_multiple_of(32) + self.data, 0);
        bytes
    }
}

fn refused_gguf(what: &str, expected: &[&str], bytes: Vec<u8>) {
    refused(what, expected, || Gguf::from_bytes("file.gguf", Bytes::from(bytes)));
}

#[test]
fn gguf_magic_and_versions() {
    let valid = Builder::new().tensor("a", &[8], 0, 0).data(32);
    assert!(Gguf::from_bytes("file.gguf", Bytes::from(valid.build())).is_ok());
    for (magic, expected) in [
        (b"XXXX", "expected the magic \"GGUF\""),
        (b"tjgg", "from before GGUF"),
        (b"lmgg", "from before GGUF"),
        (b"GGJT", "from before GGUF"),
        (b"FUGG", "big-endian"),
    ] {
        let mut bytes = valid.build();
        bytes[..4].copy_from_slice(magic);
        refused_gguf("magic", &[expected], bytes);
    }
    for (version, expected) in
        [(0x0300_0000, "big-endian"), (0, "version 0"), (1, "version 1"), (4, "version 4"), (u32::MAX, "version")]
    {
        refused_gguf("version", &[expected], Builder { version, ..valid.clone() }.build());
    }
    refused_gguf("empty", &["is empty"], Vec::new());
    refused_gguf("no counts", &["missing in the number of tensors"], valid.build()[..10].to_vec());
}

#[test]
fn gguf_counts_and_strings() {
    let valid = Builder::new().entry(b"key", 4, &7u32.to_le_bytes());
    let huge = Builder { tensor_count: 1 << 62, ..valid.clone() };
    refused_gguf("tensors", &["tensors, above the limit"], huge.build());
    let huge = Builder { metadata_count: 1 << 62, ..valid.clone() };
    refused_gguf("metadata", &["metadata entries, above the limit"], huge.build());
    let mut endless = valid.build();
    endless[24..32].copy_from_slice(&(1u64 << 63).to_le_bytes());
    refused_gguf("key of 2^63 bytes", &["metadata key 0 has 9223372036854775808 bytes"], endless);
    refused_gguf("empty key", &["key 0 is empty"], Builder::new().entry(b"", 4, &[0; 4]).build());
    refused_gguf("long key", &["above the limit"], Builder::new().entry(&[b'k'; 65_536], 4, &[0; 4]).build());
    refused_gguf("key of bytes", &["not UTF-8"], Builder::new().entry(b"\xff\xfe", 4, &[0; 4]).build());
    refused_gguf("key twice", &["`key` stands twice"], valid.clone().entry(b"key", 4, &[0; 4]).build());
    let text = Builder::string(b"\xc3");
    refused_gguf("value of bytes", &["`name` is not UTF-8"], Builder::new().entry(b"name", 8, &text).build());
    refused_gguf("type 13", &["unknown metadata type 13"], Builder::new().entry(b"key", 13, &[0; 8]).build());
    refused_gguf("bool 2", &["2 where a boolean"], Builder::new().entry(b"key", 7, &[2]).build());
    let long = (1u64 << 40).to_le_bytes();
    refused_gguf("string of 2^40", &["above the limit"], Builder::new().entry(b"key", 8, &long).build());
}

#[test]
fn gguf_arrays() {
    let array = |kind, count: u64, items: &[u8]| Builder::new().array("list", kind, count, items).build();
    refused_gguf("2^40 items", &["`list` has 1099511627776 items"], array(0, 1 << 40, &[]));
    refused_gguf("2^64 items", &["`list` has"], array(10, u64::MAX, &[]));
    refused_gguf("a million items missing", &["missing in `list`"], array(10, 1_000_000, &[0; 8]));
    refused_gguf("unknown type", &["unknown type 99"], array(99, 1, &[0; 8]));
    refused_gguf("bool 2", &["2 where a boolean"], array(7, 3, &[0, 1, 2]));
    let header = [9u32.to_le_bytes().as_slice(), &1u64.to_le_bytes()].concat();
    refused_gguf("deep", &["nests arrays more than 4 deep"], array(9, 1, &header.repeat(100_000)));
    let item = Builder::string(b"\xff");
    refused_gguf("item of bytes", &["an item of `list` is not UTF-8"], array(8, 1, &item));
    // Many arrays, each below the limit.
    let million = vec![0; 1 << 20];
    let many = (0..20).fold(Builder::new(), |b, i| b.array(&format!("list{i}"), 0, 1 << 20, &million));
    refused_gguf("many arrays", &["in all arrays together"], many.build());
}

#[test]
fn gguf_alignment() {
    let with = |kind, value: &[u8]| {
        Builder::new().entry(b"general.alignment", kind, value).tensor("a", &[8], 0, 0).data(1 << 17).build()
    };
    for alignment in [0u32, 3, 4, 48, 1 << 17, 1 << 31, u32::MAX] {
        refused_gguf("alignment", &["expected a power of two"], with(4, &alignment.to_le_bytes()));
    }
    refused_gguf("i32", &["of type i32; expected u32"], with(5, &32i32.to_le_bytes()));
    refused_gguf("string", &["of type string; expected u32"], with(8, &Builder::string(b"32")));
    assert!(Gguf::from_bytes("file.gguf", Bytes::from(with(4, &64u32.to_le_bytes()))).is_ok());
}

#[test]
fn gguf_tensors() {
    let one = |dimensions: &[u64], kind, offset| Builder::new().tensor("a", dimensions, kind, offset).data(64).build();
    refused_gguf("type", &["tensor a", "unknown type 99"], one(&[8], 99, 0));
    refused_gguf("negative type", &["unknown type 4294967295"], one(&[8], u32::MAX, 0));
    refused_gguf("removed type", &["Q4_2 (removed"], one(&[32], 4, 0));
    refused_gguf("IQ4_XS", &["IQ4_XS, which is not supported", "supported are F32"], one(&[256], 23, 0));
    refused_gguf("row of 255", &["rows of 255 values; Q4_K needs a multiple of 256"], one(&[255, 256], 12, 0));
    refused_gguf("no dimensions", &["has 0 dimensions"], one(&[], 0, 0));
    refused_gguf("five dimensions", &["has 5 dimensions"], one(&[1; 5], 0, 0));
    refused_gguf("dimension 0", &["dimension of 0"], one(&[8, 0], 0, 0));
    refused_gguf("overflow", &["impossible shape"], one(&[1 << 33, 1 << 33], 0, 0));
    refused_gguf("offset", &["not a multiple of the alignment"], one(&[8], 0, 8));
    refused_gguf("offset at the end", &["tensor a", "impossible offset"], one(&[8], 0, u64::MAX - 31));
    refused_gguf("beyond the file", &["bytes are missing before a ends"], one(&[8], 0, 1 << 40));
    refused_gguf("cut", &["1 bytes are missing"], Builder::new().tensor("a", &[8], 0, 0).data(31).build());
    refused_gguf("no name", &["empty name"], Builder::new().tensor("", &[8], 0, 0).data(32).build());
    let twice = Builder::new().tensor("a", &[8], 0, 0).tensor("a", &[8], 0, 32).data(64);
    refused_gguf("twice", &["tensor a: stands twice"], twice.build());
    let over = Builder::new().tensor("a", &[16], 0, 0).tensor("b", &[8], 0, 32).data(64);
    refused_gguf("overlap", &["tensor b", "overlaps that of a"], over.build());
}

#[test]
fn gguf_with_a_hole_of_a_terabyte_is_not_read_through() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("sparse.gguf");
    std::fs::write(&path, Builder::new().tensor("a", &[1 << 38], 0, 0).build()).expect("written");
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
    if file.set_len((1 << 40) + 4096).is_err() {
        return; // this file system has no files of that size
    }
    let start = Instant::now();
    assert_eq!(Gguf::open(&path).expect("valid").shape("a"), Some([1 << 38].as_slice()));
    refused("no model", &["architecture"], || BaseFiles::open(&path));
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn gguf_vocabularies() {
    let strings = |tokens: &[&str]| tokens.iter().flat_map(|t| Builder::string(t.as_bytes())).collect::<Vec<u8>>();
    let vocabulary = |tokens: &[&str], types: &[i32]| {
        let types: Vec<u8> = types.iter().flat_map(|kind| kind.to_le_bytes()).collect();
        Builder::new().array("tokenizer.ggml.tokens", 8, tokens.len() as u64, &strings(tokens)).array(
            "tokenizer.ggml.token_type",
            5,
            types.len() as u64 / 4,
            &types,
        )
    };
    assert!(Gguf::from_bytes("f", Bytes::from(vocabulary(&["<0x0A>", "<0x-1>"], &[6, 1]).build())).is_ok());
    refused_gguf("types", &["`tokenizer.ggml.token_type` has 1 items for 2"], vocabulary(&["a", "b"], &[1]).build());
    let scores = vocabulary(&["a"], &[1]).array("tokenizer.ggml.scores", 6, 2, &[0; 8]);
    refused_gguf("scores", &["`tokenizer.ggml.scores` has 2 items for 1"], scores.build());
    refused_gguf("empty token", &["token 1 is empty"], vocabulary(&["a", ""], &[1, 1]).build());
    for token in ["<0x-1>", "<0xZZ>", "<0x100>", "0A", "<0x+1>"] {
        refused_gguf(token, &["byte token", token], vocabulary(&[token], &[6]).build());
    }
    let gigabyte = Builder::new().array("tokenizer.ggml.tokens", 8, 1, &(1u64 << 30).to_le_bytes());
    refused_gguf("token of 1 GiB", &["above the limit of 65535"], gigabyte.build());
    let numbers = Builder::new().array("tokenizer.ggml.tokens", 4, 1, &[0; 4]);
    refused_gguf("numbers", &["not an array of strings"], numbers.build());
}

#[test]
fn gguf_models() {
    let whole = std::fs::read(fixture("blocks/tiny.gguf")).expect("a fixture");
    let changed = |from: &[u8], to: &[u8]| {
        assert_eq!(from.len(), to.len());
        let mut bytes = whole.clone();
        let at = bytes.windows(from.len()).position(|window| window == from).expect("there");
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    let read = |bytes: Vec<u8>| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, bytes).expect("written");
        BaseFiles::open(&path)
    };
    refused("architecture", &["mamba", "LlamaForCausalLM", "qwen2"], || read(changed(b"llama", b"mamba")));
    refused("missing key", &["llama.context_length: is missing"], || {
        read(changed(b"context_length", b"context_strong"))
    });
    refused("tensor", &["blk.0.attn_q.weight: is missing", "blk.0.attn_x.weight: is not part"], || {
        read(changed(b"blk.0.attn_q", b"blk.0.attn_x"))
    });
    for length in [whole.len() - 1, whole.len() / 2, 100, 30] {
        refused("cut", &["missing"], || read(whole[..length].to_vec()));
    }
    // The last projection's blocks come last but for the norm: an infinite scale names its tensor.
    let base = BaseFiles::open(&fixture("blocks/tiny.gguf")).expect("a base");
    let down = base.tensor("model.layers.1.mlp.down_proj.weight").expect("a tensor").bytes;
    let at = whole.windows(down.len()).position(|window| window == &down[..]).expect("there");
    let mut infinite = whole.clone();
    infinite[at..at + 2].copy_from_slice(&[0x00, 0x7c]);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, infinite).expect("written");
    let base = BaseFiles::open(&path).expect("its header is fine");
    refused("scale", &["blk.1.ffn_down.weight", "block scale 0 is infinite"], || {
        base.tensor("model.layers.1.mlp.down_proj.weight")
    });
}
