//! Hostile and broken safetensors files and folders: every class is a named error with exit code 2, quickly.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burnish::files::gguf::Gguf;
use burnish::files::safetensors::SafeTensorsFile;
use burnish::files::{Bytes, open};
use burnish::model::{BaseFiles, ModelConfig};
use burnish::{Error, Result};
use serde_json::{Value, json};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The error of `read`: bad input, found within two seconds, naming every one of `expected`.
pub fn refused<T: std::fmt::Debug>(what: &str, expected: &[&str], read: impl FnOnce() -> Result<T>) -> Error {
    let start = Instant::now();
    let error = read().expect_err(what);
    assert!(start.elapsed() < Duration::from_secs(20), "{what} took {:?}", start.elapsed());
    assert_eq!(error.exit_code(), 2, "{what}: {error}");
    // The message lists only the first places of a problem that many have.
    let problems = error.problems().iter().map(|problem| format!("{}: {}", problem.place, problem.message));
    let text = problems.chain([error.to_string()]).collect::<Vec<_>>().join("\n");
    for part in expected {
        assert!(text.contains(part), "{what}: expected {part:?} in\n{text}");
    }
    error
}

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
    let error = refused("differences", &[], || BaseFiles::open(folder.path()));
    assert_eq!(error.problems().len(), 4 + 3 + 9);
    // The text names a few of the places that have the same problem.
    let problems: Vec<String> =
        error.problems().iter().map(|problem| format!("{}: {}", problem.place, problem.message)).collect();
    for part in expected {
        assert!(problems.iter().any(|problem| problem.ends_with(part)), "{part} in {problems:?}");
    }
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
    // A tensor that no shard has and the model does not need is none of its concern, as in transformers.
    assert!(BaseFiles::open(folder.path()).is_ok());
    edit(&index, |index| {
        let shard = index["weight_map"]["lm_head.weight"].clone();
        index["weight_map"]["model.layers.2.mlp.up_proj.weight"] = shard;
    });
    edit(&folder.path().join("config.json"), |config| config["num_hidden_layers"] = json!(3));
    refused("a tensor that no shard has", &["model.layers.2.mlp.up_proj.weight: is not in "], open);
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
