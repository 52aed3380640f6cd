//! Packed bases: written for bitsandbytes, trained over, merged into, and planned for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burnish::adapter::host::HostAdapter;
use burnish::adapter::merge::{MergeBase, MergeOptions, merge};
use burnish::files::safetensors::{self, TensorHeader};
use burnish::files::{Bytes, Dtype, FloatType};
use burnish::model::load::Quant;
use burnish::model::quantize::{QuantizeOptions, quantize};
use burnish::model::{BaseFiles, ModelConfig, StoredWeight};
use burnish::text::Tokenizer;
use serde_json::{Value, json};

use crate::cli::{json, refused, run, text, tiny_job};

const NF4: Quant = Quant::Nf4;
const NF4_DOUBLE: Quant = Quant::Nf4Double;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn options(scheme: Quant) -> QuantizeOptions {
    QuantizeOptions { scheme, float_type: None, max_shard_bytes: 20_000 }
}

/// Codes, scales and all: two packed weights are the same.
fn assert_same(found: &StoredWeight, expected: &StoredWeight, name: &str) {
    match (found, expected) {
        (StoredWeight::Nf4(found), StoredWeight::Nf4(expected)) => {
            assert!(*found.packed == *expected.packed && found.shape == expected.shape, "{name}: codes");
            assert_eq!(found.to_f32(), expected.to_f32(), "{name}: scales");
        }
        (StoredWeight::Int8(found), StoredWeight::Int8(expected)) => {
            assert!(*found.codes == *expected.codes && found.row_absmax == expected.row_absmax, "{name}");
        }
        _ => panic!("{name} is packed otherwise"),
    }
}

#[test]
fn a_quantised_checkpoint_reads_back_as_what_was_quantised() {
    for base in ["models/llama_bf16", "models/llama_bias", "blocks/tiny.gguf"] {
        for scheme in [NF4, NF4_DOUBLE, Quant::Int8] {
            let folder = tempfile::tempdir().expect("a folder");
            let (base, out) = (BaseFiles::open(&fixture(base)).expect("a base"), folder.path().join("packed"));
            let report = quantize(&base, &out, &options(scheme), |_| Ok(())).expect("quantised");
            let packed = BaseFiles::open(&out).expect("a base");
            assert!(report.files.len() > 1 && report.packed > 0 && report.bytes > 0);
            assert_eq!(packed.config(), base.config());
            for name in base.tensor_names() {
                let before = base.weight(name).expect("a weight");
                let after = packed.weight(name).expect("a weight");
                if base.is_projection(name) {
                    assert_same(&after, &before.packed(name, scheme).expect("finite"), name);
                } else {
                    let StoredWeight::Dense(tensor) = &after else { panic!("{name} is packed") };
                    let is_f16 = base.dtype("model.embed_tokens.weight") == Some(Dtype::F16);
                    let float_type = if is_f16 { FloatType::F16 } else { FloatType::Bf16 };
                    let bytes = float_type.encode(&before.to_f32().expect("decoded"));
                    assert!(tensor.dtype == float_type.dtype() && *tensor.bytes == bytes, "{name}");
                }
            }
            let config: Value =
                serde_json::from_slice(&fs::read(out.join("config.json")).expect("a file")).expect("JSON");
            let quantization = &config["quantization_config"];
            assert_eq!(quantization["quant_method"], "bitsandbytes");
            assert_eq!(quantization["load_in_4bit"], scheme != Quant::Int8);
            assert_eq!(quantization["bnb_4bit_use_double_quant"], scheme == NF4_DOUBLE);
        }
    }
}

#[test]
fn a_base_is_not_quantised_twice_nor_over_something() {
    let folder = tempfile::tempdir().expect("a folder");
    let packed = BaseFiles::open(&fixture("blocks/nf4_model")).expect("a base");
    let error = quantize(&packed, &folder.path().join("out"), &options(NF4), |_| Ok(())).expect_err("packed");
    assert!(error.to_string().contains("packed already"), "{error}");
    let plain = BaseFiles::open(&fixture("models/llama_bf16")).expect("a base");
    let error = quantize(&plain, folder.path(), &options(NF4), |_| Ok(())).expect_err("exists");
    assert!(error.to_string().contains("exists already") && error.exit_code() == 2, "{error}");
    let full = quantize(&plain, &folder.path().join("out"), &options(NF4), |_| {
        Err(burnish::Error::failed("tokenizer", "no space left"))
    });
    assert!(full.is_err());
    assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 0, "nothing half-written stays");
}

#[test]
fn an_adapter_merges_into_the_decoded_weights_it_was_trained_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = BaseFiles::open(&fixture("models/llama_gqa")).expect("a base");
    let adapter = HostAdapter::load(&fixture("adapters/seven")).expect("an adapter");
    let out = folder.path().join("merged");
    let options = MergeOptions { weights: MergeBase::Dequantized(NF4), ..MergeOptions::default() };
    let report = merge(&base, &adapter, &out, &options, |_| Ok(())).expect("merged");
    assert_eq!(report.merged_into, "dequantized");
    let merged = BaseFiles::open(&out).expect("a base");
    for name in base.tensor_names() {
        let stored = base.weight(name).expect("a weight");
        let before = if base.is_projection(name) { stored.packed(name, NF4).expect("finite") } else { stored };
        let (before, after) = (before.to_f32().expect("decoded"), merged.weight(name).expect("one").to_f32());
        let mut expected: Vec<f64> = before.iter().copied().map(f64::from).collect();
        if let Some(pair) = adapter.pairs.get(name.trim_end_matches(".weight")) {
            for (index, value) in expected.iter_mut().enumerate() {
                let (row, column) = (index / pair.input, index % pair.input);
                for k in 0..pair.rank {
                    let (b, a) = (pair.b[row * pair.rank + k], pair.a[k * pair.input + column]);
                    *value += f64::from(pair.scale) * f64::from(b) * f64::from(a);
                }
            }
        }
        for (found, expected) in after.expect("decoded").iter().zip(&expected) {
            assert!((f64::from(*found) - expected).abs() <= 2e-6 * (1.0 + expected.abs()), "{name}");
        }
    }
}

#[test]
fn qlora_from_training_to_the_choice_of_weights() {
    let folder = tiny_job();
    let trained = run(&folder, &["train", "recipe.toml", "--set", "base.quant=nf4-double", "--json"]);
    let trained = json(&trained);
    let validation = &trained["validation"];
    let base = crate::cli::tiny_model().display().to_string();
    let model = ["--base", &base, "--adapter", "runs/sums"];
    let data = ["--data", "valid.jsonl", "--json"];

    // Evaluated over the weights that it was trained over, without being told.
    let evaluated = json(&run(&folder, &[&["eval"][..], &model, &data].concat()));
    assert_eq!(evaluated["quant"], "nf4-double");
    let difference = number(&evaluated["loss"]) - number(&validation["loss_after"]);
    assert!(difference.abs() < 1e-6, "{difference}");
    let over_floats = json(&run(&folder, &[&["eval", "--quant", "none"][..], &model, &data].concat()));
    assert!((number(&over_floats["loss"]) - number(&evaluated["loss"])).abs() > 1e-4);

    let compared =
        json(&run(&folder, &[&["merge", "--compare", "--type", "f32", "--out", "merged"][..], &model, &data].concat()));
    let comparison = &compared["comparison"];
    assert_eq!((&comparison["packed_as"], &comparison["nearer"]), (&json!("nf4-double"), &json!("dequantized")));
    assert_eq!(compared["merged_into"], "dequantized");
    let on_packed = number(&comparison["adapter_on_packed"]);
    assert!((on_packed - number(&evaluated["loss"])).abs() < 1e-6);
    assert!((number(&comparison["merged_on_dequantized"]) - on_packed).abs() < 1e-4);
    assert!((number(&comparison["merged_on_original"]) - number(&over_floats["loss"])).abs() < 1e-4);
    let merged = ["eval", "--base", "merged", "--data", "valid.jsonl", "--json", "--compute", "f32"];
    let merged = json(&run(&folder, &merged));
    assert!((number(&merged["loss"]) - on_packed).abs() < 1e-4);

    let measured = json(&run(&folder, &[&["merge", "--compare", "--type", "f32"][..], &model, &data].concat()));
    assert_eq!(&measured["comparison"], comparison);
    let entries: Vec<_> = fs::read_dir(folder.path().join("runs")).expect("listed").collect();
    assert_eq!(entries.len(), 1, "only measured: nothing stays");
    let long = format!("\n{{\"prompt\": \"{}\", \"completion\": \"b\"}}\n", "many words ".repeat(100));
    fs::write(folder.path().join("long.jsonl"), long).expect("written");
    let error = refused(&run(&folder, &[&["merge", "--compare", "--data", "long.jsonl"][..], &model].concat()));
    assert!(error.contains("long.jsonl:2: has ") && error.contains("at most 128 fit"), "{error}");

    let arguments = ["merge", "--merge-base", "original", "--out", "original", "--json"];
    assert_eq!(json(&run(&folder, &[&arguments[..], &model].concat()))["merged_into"], "original");
}

#[test]
fn an_adapter_over_floats_has_one_base_to_merge_into() {
    let folder = tiny_job();
    json(&run(&folder, &["train", "recipe.toml", "--json"]));
    let base = crate::cli::tiny_model().display().to_string();
    let model = ["--base", &base, "--adapter", "runs/sums"];
    let compared = refused(&run(&folder, &[&["merge", "--compare", "--data", "valid.jsonl"][..], &model].concat()));
    assert!(compared.contains("one base to merge into"), "{compared}");
    // A base in blocks: decoded is what its weights are.
    let arguments = ["merge", "--json", "--merge-base", "dequantized", "--out", "decoded"];
    let merged = json(&run(&folder, &[&arguments[..], &model].concat()));
    assert_eq!(merged["merged_into"], "dequantized");
    json(&run(&folder, &[&["merge", "--json", "--out", "merged"][..], &model].concat()));
    let weights = |name| fs::read(folder.path().join(name).join("model.safetensors")).expect("weights");
    assert!(weights("decoded") == weights("merged"));
    // A base in floats: nothing is there to be decoded.
    let arguments = ["merge", "--base", "merged", "--adapter", "runs/sums", "--force", "--out", "out"];
    let onto_floats = refused(&run(&folder, &[&arguments[..], &["--merge-base", "dequantized"]].concat()));
    assert!(onto_floats.contains("--quant nf4"), "{onto_floats}");
    // What is held is what is said: no blocks to keep in floats, and what is packed stays so.
    let evaluated = |base: &str, quant: &str| {
        run(&folder, &["eval", "--base", base, "--data", "valid.jsonl", "--json", "--quant", quant])
    };
    assert!(refused(&evaluated("merged", "keep")).contains("--quant: is `keep`"));
    json(&run(&folder, &["quantize", "--base", "merged", "--out", "packed", "--json"]));
    assert!(refused(&evaluated("packed", "int8")).contains("stored as NF4"));
    assert_eq!(json(&evaluated("packed", "nf4"))["quant"], "nf4");
    let onto_packed = ["train", "recipe.toml", "--set", "base.model=packed", "--set", "base.quant=int8"];
    let onto_packed = refused(&run(&folder, &[&onto_packed[..], &["--set", "output.dir=other"]].concat()));
    assert!(onto_packed.contains("base.quant") && onto_packed.contains("stored as NF4"), "{onto_packed}");
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is a number"))
}

#[test]
fn a_limit_on_memory_changes_the_layout_or_is_refused() {
    let folder = tiny_job();
    let check = |limit: &[&str]| run(&folder, &[&["check", "recipe.toml"][..], limit].concat());
    let free = json(&check(&["--json"]));
    let planned = free["memory_bytes"].as_u64().expect("bytes");
    let parts = ["weights", "adapter", "activations", "working", "program"];
    assert!(parts.iter().all(|part| free["memory"][part].as_u64().is_some_and(|bytes| bytes > 0)), "{free}");

    let limit = (planned - 1).to_string();
    let squeezed = check(&["--json", "--max-memory", &limit]);
    assert!(
        text(&squeezed.stderr).contains("layers are computed again; the steps stay as they are"),
        "{}",
        text(&squeezed.stderr)
    );
    assert!(json(&squeezed)["memory_bytes"].as_u64().is_some_and(|bytes| bytes < planned));
    let refusal = refused(&check(&["--max-memory", "1MiB"]));
    assert!(refusal.contains("--max-memory") && refusal.contains("at least"), "{refusal}");
    assert!(refused(&check(&["--max-memory", "much"])).contains("no amount of memory"));

    // What was chosen is what runs, and what the run folder says; the optimiser's steps stay the same.
    let arguments = ["train", "recipe.toml", "--json", "--max-memory", &limit];
    let (whole, split) = (json(&run(&folder, &arguments[..3])), folder.path().join("runs/sums"));
    fs::rename(&split, folder.path().join("runs/whole")).expect("moved");
    let report = json(&run(&folder, &arguments));
    assert_eq!(report["steps"], whole["steps"]);
    let difference = number(&report["validation"]["loss_after"]) - number(&whole["validation"]["loss_after"]);
    assert!(difference.abs() < 1e-4, "{difference}");
    let about: Value = serde_json::from_slice(&fs::read(split.join("run.json")).expect("a file")).expect("JSON");
    assert_eq!(about["plan"]["train"]["recompute"], "none");
    assert!(about["layout"]["recomputed_layers"].as_u64().is_some_and(|layers| layers > 0), "{}", about["layout"]);
}

/// A model large enough for its buffers to outweigh the program, with random weights.
#[cfg(target_os = "linux")]
pub fn middling_model(folder: &Path) {
    let tokenizer = Tokenizer::of_base(&BaseFiles::open(&crate::cli::tiny_model()).expect("a base")).expect("one");
    tokenizer.save(folder).expect("saved");
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": tokenizer.vocab_size(),
        "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "max_position_embeddings": 1024, "tie_word_embeddings": true,
        "hidden_act": "silu", "rope_theta": 10000.0, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "float32",
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("written");
    let config = ModelConfig::from_json_file(&folder.join("config.json")).expect("a config");
    let headers: Vec<TensorHeader> = config
        .tensors()
        .into_iter()
        .map(|tensor| TensorHeader { name: tensor.hf, dtype: Dtype::F32, shape: tensor.shape })
        .collect();
    let mut state = 1u32;
    safetensors::write(&folder.join("model.safetensors"), &BTreeMap::new(), &headers, |header| {
        let values: Vec<f32> = (0..header.bytes()? / 4)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32 * 0.1 - 0.05
            })
            .collect();
        Ok(Bytes::from(FloatType::F32.encode(&values)))
    })
    .expect("written");
}

#[cfg(target_os = "linux")]
#[test]
fn the_planned_peak_is_near_the_measured_one() {
    let folder = tiny_job();
    let base = folder.path().join("model");
    fs::create_dir(&base).expect("a folder");
    middling_model(&base);
    let row = format!("{{\"text\": {:?}}}\n", "one and two are three; ".repeat(30));
    fs::write(folder.path().join("long.jsonl"), row.repeat(16)).expect("written");
    for (compute, quant, recompute) in
        [("bf16", "none", "none"), ("bf16", "nf4", "block"), ("f32", "none", "none"), ("f32", "nf4", "block")]
    {
        let dir = format!("output.dir=runs/{compute}-{quant}-{recompute}");
        let settings = [
            "base.model=model",
            "data.train=long.jsonl",
            "data.max_seq_tokens=1024",
            "train.micro_batch_seqs=8",
            "train.epochs=1",
            &format!("base.compute={compute}"),
            &format!("base.quant={quant}"),
            &format!("train.recompute={recompute}"),
            &dir,
        ];
        let arguments: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        let report = json(&run(&folder, &[&["train", "recipe.toml", "--json"][..], &arguments].concat()));
        let (planned, measured) = (number(&report["planned_bytes"]), number(&report["peak_bytes"]));
        let off = planned / measured - 1.0;
        println!("{compute} {quant} {recompute}: planned {planned:.3e}, measured {measured:.3e}, {off:+.3}");
        assert!(off.abs() < 0.2, "{compute} {quant} {recompute}: planned {planned}, measured {measured}");
    }
}
