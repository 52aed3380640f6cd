//! Exports: GGUF files against the fixtures that other programs made, and everything that is refused by name.

mod feasible;
mod importance;
mod lora;
mod mlx;
mod ollama;
mod refused;
mod vocabulary;

use std::path::{Path, PathBuf};

use burnish::adapter::host::HostAdapter;
use burnish::adapter::merge::{MergeBase, MergeOptions, merge};
use burnish::export::model::ModelPlan;
use burnish::export::{ExportOptions, ExportReport, GgufType};
use burnish::files::gguf::{Gguf, Value};
use burnish::files::safetensors::SafeTensorsFile;
use burnish::files::{Dtype, FloatType};
use burnish::model::BaseFiles;
use burnish::model::load::Compute;
use burnish::quant::BlockType;
use burnish::text::Tokenizer;
use burnish::{Error, Result};
use serde_json::json;

use crate::model::{Expected, fixtures, largest_difference, load, logits, turn};

pub const PLAIN: ExportOptions = ExportOptions { weights: MergeBase::Original, gguf_type: None, split_bytes: None };

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A SentencePiece tokenizer of `size` tokens: letters, and words of two of them.
pub fn small_tokenizer(size: usize) -> Tokenizer {
    let mut words: Vec<String> = ["<unk>", "<s>", "</s>", "<0x0A>", "▁"].map(str::to_owned).to_vec();
    words.extend(('a'..='z').map(String::from));
    words.truncate(size);
    let mut merges = Vec::new();
    for letter in ('a'..='z').take(size.saturating_sub(words.len())) {
        words.push(format!("▁{letter}"));
        merges.push(json!(["▁", letter.to_string()]));
    }
    let vocab: serde_json::Map<_, _> = words.iter().enumerate().map(|(id, word)| (word.clone(), json!(id))).collect();
    let special = |id: usize| json!({"id": id, "content": words[id], "special": true});
    let json = json!({
        "version": "1.0",
        "added_tokens": [special(0), special(1), special(2)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
                  "merges": merges},
    });
    Tokenizer::from_json(json.to_string().as_bytes(), "small").expect("a tokenizer")
}

/// Exports the base at `path` to `out`.
pub fn export(path: &Path, adapter: Option<&HostAdapter>, out: &Path, options: &ExportOptions) -> Result<ExportReport> {
    let base = BaseFiles::open(path)?;
    let tokenizer = match base.is_gguf() && base.gguf().is_some_and(|gguf| gguf.get("tokenizer.ggml.tokens").is_some())
    {
        true => Tokenizer::of_base(&base)?,
        false => small_tokenizer(base.config().vocab_size),
    };
    ModelPlan::new(&base, adapter, &tokenizer, "a model", options)?.write(out, |_| Ok(()))
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

#[test]
fn every_block_encoder_gives_the_bytes_of_llama_cpp() {
    let file = SafeTensorsFile::open(&fixture("gguf/encoded.safetensors")).expect("fixtures");
    let values = file.tensor("values").expect("values").to_f32().expect("floats");
    for block in BlockType::ALL {
        let expected = file.tensor(&block.name().to_lowercase()).expect("blocks").bytes;
        let mut found = vec![0; expected.len()];
        block.encode(&values, &mut found);
        let size = block.bytes_per_block();
        let wrong = found.chunks(size).zip(expected.chunks(size)).position(|(found, expected)| found != expected);
        assert_eq!(wrong, None, "{block}: the first block that differs");
    }
}

#[test]
fn every_block_encoder_gives_the_bytes_of_llama_cpp_with_an_importance_matrix() {
    let file = SafeTensorsFile::open(&fixture("gguf/encoded.safetensors")).expect("fixtures");
    let values = file.tensor("values").expect("values").to_f32().expect("floats");
    let importance = file.tensor("importance").expect("importance").to_f32().expect("floats");
    for block in BlockType::ALL {
        let expected = file.tensor(&format!("{}.weighted", block.name().to_lowercase())).expect("blocks").bytes;
        let row_bytes = importance.len() / block.values_per_block() * block.bytes_per_block();
        let rows = values.chunks(importance.len()).zip(expected.chunks(row_bytes));
        for (index, (row, expected)) in rows.enumerate() {
            let mut found = vec![0; row_bytes];
            block.encode_weighted(row, &importance, &mut found);
            assert_eq!(found, expected, "{block}: row {index}");
        }
    }
}

/// The keys that this program writes beyond those of the fixtures, whose makers leave them out.
fn is_further(key: &str) -> bool {
    const FURTHER: [&str; 8] = [
        ".attention.key_length",
        ".attention.value_length",
        ".attention.head_count_kv",
        ".rope.freq_base",
        ".rope.dimension_count",
        ".attention.sliding_window",
        ".vocab_size",
        ".rope.scaling.original_context_length",
    ];
    key.starts_with("general.") || key.starts_with("tokenizer.") || FURTHER.iter().any(|end| key.ends_with(end))
}

#[test]
fn a_folder_becomes_the_file_that_llama_cpp_s_converter_makes() {
    let folder = temporary();
    let mut compared = 0;
    for path in fixtures("families") {
        let Ok(expected) = Gguf::open(&path.join("model.gguf")) else { continue };
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let out = folder.path().join(format!("{name}.gguf"));
        if let Err(error) = export(&path, None, &out, &PLAIN) {
            assert!(refused::INEXPRESSIBLE.iter().any(|(known, _)| *known == name), "{name}: {error}");
            continue;
        }
        let found = Gguf::open(&out).expect("a file");
        for (key, value) in expected.metadata().iter().filter(|(key, _)| !key.starts_with("tokenizer.")) {
            match value {
                // A window of 0 is none.
                Value::U32(0) if found.get(key).is_none() => {}
                Value::F32(expected) => {
                    let found = found.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
                    assert!((found - f64::from(*expected)).abs() <= 1e-6 * found.abs(), "{name}: {key}");
                }
                _ => assert_eq!(found.get(key), Some(value), "{name}: {key}"),
            }
        }
        for key in found.metadata().keys().filter(|key| !is_further(key)) {
            assert!(expected.get(key).is_some(), "{name}: {key} is too much");
        }
        assert_eq!(found.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>(), "{name}");
        for tensor in expected.names() {
            let (found, expected) = (found.tensor(tensor).expect("there"), expected.tensor(tensor).expect("there"));
            assert_eq!((found.dtype, &found.shape), (expected.dtype, &expected.shape), "{name}: {tensor}");
            assert!(found.bytes[..] == expected.bytes[..], "{name}: {tensor} has other bytes");
        }
        compared += 1;
    }
    assert_eq!(compared, 11);
}

#[test]
fn an_exported_file_gives_the_logits_of_its_folder_with_the_adapter() {
    let _turn = turn();
    let folder = temporary();
    for path in fixtures("families") {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let base = BaseFiles::open(&path).expect("a base");
        let adapter = HostAdapter::load_over(&path.join("adapter"), &base).expect("PEFT's adapter");
        let options = ExportOptions { gguf_type: Some(GgufType::F32), ..PLAIN };
        let out = folder.path().join(format!("{name}.gguf"));
        if let Err(error) = export(&path, Some(&adapter), &out, &options) {
            assert!(refused::INEXPRESSIBLE.iter().any(|(known, _)| *known == name), "{name}: {error}");
            continue;
        }
        let expected = Expected::read_file(&path.join("trained.safetensors")).floats("adapter_logits");
        let found = logits(&load(&out, Compute::F32), &Expected::read(&path).ids(), None);
        let scale = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        assert!(largest_difference(&found, &expected) <= 1e-4 * scale, "{name}");
    }
}

#[test]
fn models_of_the_llama_kind_keep_their_logits() {
    let _turn = turn();
    let folder = temporary();
    for path in fixtures("models") {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let out = folder.path().join(format!("{name}.gguf"));
        if let Err(error) = export(&path, None, &out, &PLAIN) {
            assert!(refused::INEXPRESSIBLE.iter().any(|(known, _)| *known == name), "{name}: {error}");
            continue;
        }
        let expected = Expected::read(&path);
        let found = logits(&load(&out, Compute::F32), &expected.ids(), None);
        let difference = largest_difference(&found, &expected.floats("logits"));
        assert!(difference <= 1e-4, "{name}: {difference}");
    }
}

#[test]
fn a_gguf_base_keeps_its_metadata_its_tokenizer_and_the_bytes_of_its_tensors() {
    let folder = temporary();
    for name in ["smollm", "llama_bpe", "spm", "qwen2"] {
        let path = fixture("gguf").join(format!("{name}.gguf"));
        let out = folder.path().join(format!("{name}.gguf"));
        export(&path, None, &out, &PLAIN).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (before, after) = (Gguf::open(&path).expect("a file"), Gguf::open(&out).expect("a file"));
        for (key, value) in before.metadata() {
            assert_eq!(after.get(key), Some(value), "{name}: {key}");
        }
        assert_eq!(before.names().collect::<Vec<_>>(), after.names().collect::<Vec<_>>());
        for tensor in before.names() {
            let (before, after) = (before.tensor(tensor).expect("there"), after.tensor(tensor).expect("there"));
            assert_eq!(before.dtype, after.dtype);
            assert!(before.bytes[..] == after.bytes[..], "{name}: {tensor}");
        }
    }
}

#[test]
fn the_types_of_a_file_are_mixtures_and_their_values_stay_near() {
    let _turn = turn();
    let folder = temporary();
    // Rows of 256 values, and the head apart.
    let path = fixture("gguf/llama_bpe.gguf");
    let ids = Expected::read_file(&fixture("gguf/llama_bpe.expected.safetensors")).ids();
    let exact = logits(&load(&path, Compute::F32), &ids, None);
    let size = |values: &[f32]| values.iter().map(|value| value * value).sum::<f32>().sqrt();
    for (gguf_type, head, value, gate, most) in [
        (GgufType::F32, "F32", "F32", "F32", 1e-6),
        (GgufType::F16, "F16", "F16", "F16", 0.01),
        (GgufType::Bf16, "BF16", "BF16", "BF16", 0.02),
        (GgufType::Q8_0, "Q8_0", "Q8_0", "Q8_0", 0.03),
        (GgufType::Q4_0, "Q6_K", "Q4_0", "Q4_0", 0.4),
        (GgufType::Q4_1, "Q6_K", "Q4_1", "Q4_1", 0.4),
        (GgufType::Q5_0, "Q6_K", "Q5_0", "Q5_0", 0.2),
        (GgufType::Q5_1, "Q6_K", "Q5_1", "Q5_1", 0.2),
        (GgufType::Q4KM, "Q6_K", "Q6_K", "Q4_K", 0.4),
        (GgufType::Q5KM, "Q6_K", "Q6_K", "Q5_K", 0.2),
        (GgufType::Q6K, "Q6_K", "Q6_K", "Q6_K", 0.1),
    ] {
        let out = folder.path().join(format!("{gguf_type}.gguf"));
        let report = export(&path, None, &out, &ExportOptions { gguf_type: Some(gguf_type), ..PLAIN });
        let report = report.unwrap_or_else(|error| panic!("{gguf_type}: {error}"));
        let file = Gguf::open(&out).expect("a file");
        let format = |name: &str| file.dtype(name).map(Dtype::name);
        assert_eq!(format("output.weight"), Some(head), "{gguf_type}");
        assert_eq!(format("blk.0.attn_v.weight"), Some(value), "{gguf_type}");
        assert_eq!(format("blk.0.ffn_gate.weight"), Some(gate), "{gguf_type}");
        assert_eq!(format("blk.0.attn_norm.weight"), Some("F32"), "{gguf_type}");
        assert_eq!(file.get("general.file_type"), Some(&Value::U32(gguf_type.file_type())));
        assert_eq!(report.formats.values().sum::<usize>(), report.tensors);
        let found = logits(&load(&out, Compute::F32), &ids, None);
        let difference: Vec<f32> = found.iter().zip(&exact).map(|(found, exact)| found - exact).collect();
        let error = size(&difference) / size(&exact);
        assert!(error <= most, "{gguf_type}: {error}");
        assert!(error > most / 40.0 || gguf_type == GgufType::F32, "{gguf_type}: {error} is no quantisation");
    }
}

#[test]
fn a_merge_into_gguf_is_the_merge_into_a_folder() {
    let folder = temporary();
    let path = fixture("models/llama_gqa");
    let base = BaseFiles::open(&path).expect("a base");
    for name in ["seven", "seven_and_head", "rslora", "patterns"] {
        let adapter = HostAdapter::load(&fixture("adapters").join(name)).expect("an adapter");
        let (hf, out) = (folder.path().join(name), folder.path().join(format!("{name}.gguf")));
        let options = MergeOptions { float_type: Some(FloatType::F32), ..MergeOptions::default() };
        merge(&base, &adapter, &hf, &options, |_| Ok(())).expect("merges");
        let report = export(&path, Some(&adapter), &out, &ExportOptions { gguf_type: Some(GgufType::F32), ..PLAIN });
        assert_eq!(report.expect("exports").modules, adapter.pairs.len());
        let (hf, gguf) = (BaseFiles::open(&hf).expect("a folder"), BaseFiles::open(&out).expect("a file"));
        for tensor in hf.tensor_names() {
            let (hf, gguf) = (hf.tensor(tensor).expect("there"), gguf.tensor(tensor).expect("there"));
            assert!(hf.bytes[..] == gguf.bytes[..], "{name}: {tensor}");
        }
    }
}

#[test]
fn a_large_model_is_split_and_opens_as_one() {
    let folder = temporary();
    let path = fixture("gguf/smollm.gguf");
    let out = folder.path().join("m.gguf");
    let split = ExportOptions { split_bytes: Some(30_000), ..PLAIN };
    let report = export(&path, None, &out, &split).expect("exports");
    let count = report.files.len();
    assert!(count > 2, "{:?}", report.files);
    assert_eq!(report.files[0], format!("m-00001-of-{count:05}.gguf"));
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), count, "these files and nothing else");
    let first = folder.path().join(&report.files[0]);
    let (whole, joined) = (BaseFiles::open(&path).expect("a base"), BaseFiles::open(&first).expect("a base"));
    assert_eq!(whole.config(), joined.config());
    for name in whole.tensor_names() {
        assert!(whole.tensor(name).expect("there").bytes[..] == joined.tensor(name).expect("there").bytes[..]);
    }
    assert_eq!(joined.content_hash().expect("a hash").len(), 64);

    let refusal = |path: &Path| Gguf::open(path).expect_err("refused").to_string();
    let second = folder.path().join(&report.files[1]);
    assert!(refusal(&second).contains("not the first"), "{}", refusal(&second));
    let renamed = folder.path().join("other.gguf");
    std::fs::copy(&first, &renamed).expect("copied");
    assert!(refusal(&renamed).contains("-00001-of-"), "{}", refusal(&renamed));
    let third = folder.path().join(&report.files[2]);
    std::fs::copy(&second, &third).expect("copied");
    assert!(refusal(&first).contains("split.no"), "{}", refusal(&first));
    std::fs::remove_file(&third).expect("removed");
    assert!(refusal(&first).contains(&report.files[2]), "{}", refusal(&first));
    let again = export(&path, None, &out, &split).expect_err("a file is there").to_string();
    assert!(again.contains("exists already") && again.contains(&report.files[0]), "{again}");
}

/// The text of an error, for assertions.
pub fn message(error: &Error) -> String {
    error.paragraphs().join("\n")
}
