//! A merged model runs on the same texts as base and adapter before its folder or file gets a name.

use std::path::Path;

use burnish::adapter::host::HostAdapter;
use burnish::adapter::merge::{MergeBase, MergeOptions};
use burnish::adapter::spec::AdapterSpec;
use burnish::device::{self, DeviceChoice};
use burnish::export::{ExportOptions, GgufType};
use burnish::files::FloatType;
use burnish::model::Decoder;
use burnish::model::load::LoadOptions;
use burnish::quant::{Compute, Quant};
use burnish::run::merge::{Merged, merge};
use burnish::run::verify::{Examination, Expected, Hardware, TextSource, Texts};
use burnish::run::{OpenBase, export};

use crate::cli::{json, run, text, tiny_job, tiny_model};

pub fn base() -> OpenBase {
    OpenBase::open(&tiny_model().display().to_string(), &mut |_| {}).expect("a base")
}

/// An exact one, on the built-in texts.
pub fn examination(base: &OpenBase) -> Examination {
    let hardware = Hardware { device: device::open(&DeviceChoice::Cpu).expect("a processor"), compute: Compute::F32 };
    Examination { hardware, texts: Texts::built_in(&base.encoder).expect("texts") }
}

/// An adapter over attention whose update is `strength` times the same random one.
pub fn adapter(base: &OpenBase, strength: f32) -> HostAdapter {
    let spec = AdapterSpec { rank: 4, alpha: 8.0, ..AdapterSpec::default() };
    let mut adapter = spec.initialise(&base.files, Quant::None, 1).expect("an adapter");
    for (number, pair) in adapter.pairs.values_mut().enumerate() {
        for (index, value) in pair.b.iter_mut().enumerate() {
            *value = strength * ((index * 37 + number * 11) % 29) as f32 / 29.0 - strength / 2.0;
        }
    }
    adapter
}

fn merged(base: &OpenBase, adapter: &HostAdapter, out: &Path, float_type: FloatType) -> Merged {
    let options = MergeOptions { float_type: Some(float_type), ..MergeOptions::default() };
    merge(base, adapter, out, &options, Some(examination(base))).expect("a merge")
}

#[test]
fn a_merged_folder_computes_what_base_and_adapter_compute() {
    let (base, folder) = (base(), tempfile::tempdir().expect("a folder"));
    let adapter = adapter(&base, 0.3);
    let exact = merged(&base, &adapter, &folder.path().join("f32"), FloatType::F32).agreement.expect("compared");
    assert!(
        exact.texts.source == TextSource::BuiltIn
            && exact.tokens > 50
            && exact.kl_divergence < 1e-9
            && exact.largest_logit_difference < 1e-3,
        "{exact}"
    );
    assert!(exact.kl_divergence_of_base > 1e-4 && exact.top1_agreement == 1.0, "{exact}");
    assert!((exact.loss_merged - exact.loss_with_adapter).abs() < 1e-5, "{exact}");
    let rounded = merged(&base, &adapter, &folder.path().join("bf16"), FloatType::Bf16).agreement.expect("compared");
    assert!(rounded.kl_divergence > exact.kl_divergence && rounded.kl_divergence < 5e-3, "{rounded}");
    let report = std::fs::read_to_string(folder.path().join("bf16/merge_report.json")).expect("a report");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["agreement"]["kl_divergence"], rounded.kl_divergence);
    assert_eq!(report["modules"], adapter.pairs.len());
    assert_eq!(report["agreement"]["texts"], serde_json::json!({ "source": "built-in", "examples": 6 }));
}

#[test]
fn layers_that_are_loaded_one_after_another_compute_what_the_whole_model_computes() {
    let base = base();
    let adapter = adapter(&base, 0.3);
    let Examination { hardware: Hardware { device, compute }, .. } = examination(&base);
    for quant in [Quant::None, Quant::Keep, Quant::Nf4Double] {
        let options = LoadOptions { device: device.clone(), compute, quant };
        let decoder = Decoder::load(&base.files, &options, |_, _| {}).expect("a model");
        let attached = adapter.attach(decoder.config(), &device).expect("attached");
        let (ids, lengths) = ([3u32, 9, 12, 40, 7, 8, 100], [4usize, 3]);
        let whole = |adapter| decoder.logits(&ids, &lengths, adapter).into_data().iter::<f32>().collect::<Vec<f32>>();
        let mut parts = [Vec::new(), Vec::new()];
        let adapters = [None, Some(&attached)];
        Decoder::stream_logits(&base.files, &options, (&ids, &lengths), &adapters, 3, &mut |first, logits| {
            for (part, logits) in parts.iter_mut().zip(logits) {
                assert_eq!(part.len(), first * decoder.config().vocab_size);
                part.extend_from_slice(logits);
            }
        })
        .expect("streamed");
        let [alone, adapted] = parts;
        let difference = |one: &[f32], other: &[f32]| {
            assert_eq!(one.len(), other.len());
            one.iter().zip(other).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max)
        };
        // A few rows of logits are summed in another order than many.
        assert!(difference(&alone, &whole(None)) < 1e-4, "{quant}");
        assert!(difference(&adapted, &whole(Some(&attached))) < 1e-4, "{quant}");
        assert!(difference(&alone, &adapted) > 1e-2, "{quant}");
    }
}

#[test]
fn a_model_that_computes_something_else_is_refused() {
    let (base, folder) = (base(), tempfile::tempdir().expect("a folder"));
    let right =
        Expected::of(&base, Some(&adapter(&base, 0.3)), Quant::None, examination(&base)).expect("distributions");
    for (name, strength) in [("twice", 0.6), ("half", 0.15), ("none", 0.0), ("negative", -0.3)] {
        let out = folder.path().join(name);
        merged(&base, &adapter(&base, strength), &out, FloatType::F32);
        let error = right.check(&out).expect_err(name).to_string();
        assert!(error.contains("does not compute what base and adapter compute"), "{name}: {error}");
    }
}

#[test]
fn an_exported_file_is_examined_too() {
    let (base, folder) = (base(), tempfile::tempdir().expect("a folder"));
    let adapter = adapter(&base, 0.3);
    let export = |name: &str, gguf_type| {
        let options = ExportOptions { weights: MergeBase::Original, gguf_type: Some(gguf_type), split_bytes: None };
        let out = folder.path().join(name);
        let exported =
            export::gguf(&base, Some(&adapter), &out, &options, None, Some(examination(&base))).expect("an export");
        exported.agreement.expect("compared")
    };
    let (exact, packed) = (export("f32.gguf", GgufType::F32), export("q8_0.gguf", GgufType::Q8_0));
    assert!(exact.kl_divergence < 1e-9, "{exact}");
    assert!(packed.kl_divergence > exact.kl_divergence && packed.kl_divergence < 0.05, "{packed}");
}

#[test]
fn the_texts_are_those_of_the_run_or_of_the_data_that_is_named() {
    let folder = tiny_job();
    assert!(run(&folder, &["train", "recipe.toml"]).status.success());
    let base = tiny_model().display().to_string();
    let merged = |out: &str, more: &[&str]| {
        let arguments = ["merge", "--base", &base, "--adapter", "runs/sums", "--out", out, "--json"];
        let output = run(&folder, &[&arguments[..], more].concat());
        (json(&output)["agreement"].clone(), text(&output.stderr))
    };
    let (agreement, said) = merged("a", &["--type", "f32"]);
    assert_eq!(agreement["texts"]["source"], "validation", "{said}");
    // Whole examples, and the loss of their trained tokens.
    let loss = agreement["loss_merged"].as_f64().expect("a loss");
    let evaluate = ["eval", "--base", "a", "--data", "valid.jsonl", "--compute", "f32", "--json"];
    let measured = json(&run(&folder, &evaluate))["loss"].as_f64().expect("a loss");
    assert_eq!(agreement["texts"]["examples"], 15, "all of them fit");
    assert!((loss - measured).abs() < 1e-5, "{loss} and {measured}");
    let report = std::fs::read_to_string(folder.path().join("a/merge_report.json")).expect("a report");
    assert!(report.contains("\"source\": \"validation\""), "{report}");
    let (agreement, _) = merged("b", &["--data", "train.jsonl"]);
    assert_eq!(agreement["texts"]["source"], "data");
    let (agreement, _) = merged("c.gguf", &["--type", "q8_0", "--data", "train.jsonl"]);
    assert_eq!(agreement["texts"]["source"], "data");
    // Other data than that of the run says nothing about it.
    let path = folder.path().join("valid.jsonl");
    let rows = std::fs::read_to_string(&path).expect("rows");
    std::fs::write(&path, rows.replacen("3 and 1", "3 and 7", 1)).expect("written");
    let (agreement, said) = merged("d", &[]);
    assert_eq!(agreement["texts"]["source"], "built-in");
    assert!(
        said.contains("not the validation examples of the run: ") && said.contains("has changed since the run"),
        "{said}"
    );
}
