//! A merged model runs on the same texts as base and adapter before its folder or file gets a name.

use std::path::Path;

use burnish::adapter::host::HostAdapter;
use burnish::adapter::merge::{MergeBase, MergeOptions};
use burnish::adapter::spec::AdapterSpec;
use burnish::device::{self, DeviceChoice};
use burnish::export::{ExportOptions, GgufType};
use burnish::files::FloatType;
use burnish::quant::{Compute, Quant};
use burnish::run::merge::{Hardware, Merged, merge};
use burnish::run::verify::Expected;
use burnish::run::{OpenBase, export};

use crate::cli::tiny_model;

fn base() -> OpenBase {
    OpenBase::open(&tiny_model().display().to_string(), &mut |_| {}).expect("a base")
}

fn hardware() -> Hardware {
    Hardware { device: device::open(&DeviceChoice::Cpu).expect("a processor"), compute: Compute::F32 }
}

/// An adapter over attention whose update is `strength` times the same random one.
fn adapter(base: &OpenBase, strength: f32) -> HostAdapter {
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
    merge(base, adapter, out, &options, Some(hardware())).expect("a merge")
}

#[test]
fn a_merged_folder_computes_what_base_and_adapter_compute() {
    let (base, folder) = (base(), tempfile::tempdir().expect("a folder"));
    let adapter = adapter(&base, 0.3);
    let exact = merged(&base, &adapter, &folder.path().join("f32"), FloatType::F32).agreement.expect("compared");
    assert!(exact.tokens > 50 && exact.kl_divergence < 1e-9 && exact.largest_logit_difference < 1e-3, "{exact}");
    assert!(exact.kl_divergence_of_base > 1e-4 && exact.top1_agreement == 1.0, "{exact}");
    assert!((exact.loss_merged - exact.loss_with_adapter).abs() < 1e-5, "{exact}");
    let rounded = merged(&base, &adapter, &folder.path().join("bf16"), FloatType::Bf16).agreement.expect("compared");
    assert!(rounded.kl_divergence > exact.kl_divergence && rounded.kl_divergence < 5e-3, "{rounded}");
    let report = std::fs::read_to_string(folder.path().join("bf16/merge_report.json")).expect("a report");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["agreement"]["kl_divergence"], rounded.kl_divergence);
    assert_eq!(report["modules"], adapter.pairs.len());
}

#[test]
fn a_model_that_computes_something_else_is_refused() {
    let (base, folder) = (base(), tempfile::tempdir().expect("a folder"));
    let right = Expected::of(&base, Some(&adapter(&base, 0.3)), Quant::None, hardware()).expect("distributions");
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
        let exported = export::gguf(&base, Some(&adapter), &out, &options, Some(hardware())).expect("an export");
        exported.agreement.expect("compared")
    };
    let (exact, packed) = (export("f32.gguf", GgufType::F32), export("q8_0.gguf", GgufType::Q8_0));
    assert!(exact.kl_divergence < 1e-9, "{exact}");
    assert!(packed.kl_divergence > exact.kl_divergence && packed.kl_divergence < 0.05, "{packed}");
}
