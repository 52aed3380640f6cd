//! The wgpu path against the processor's kernels, transformers and torch. Needs a Vulkan driver; Mesa's software one
//! will do (docs/devices.md).

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use burn::tensor::Device;
use burnish::device::{self, DeviceChoice};
use burnish::model::decoder::Recompute;
use burnish::model::load::{Compute, LoadOptions, Quant};
use burnish::model::{BaseFiles, Decoder};
use serde_json::{Value, json};

use crate::model::{Expected, largest_difference, load_on, logits, turn};
use crate::training::Run;

const TOLERANCE: f32 = 1e-3;

/// Opened once: looking for adapters takes a while.
fn gpu() -> &'static Device {
    static GPU: LazyLock<Device> =
        LazyLock::new(|| device::open(&DeviceChoice::Wgpu(None)).unwrap_or_else(|error| panic!("{error}")));
    &GPU
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn logits_are_those_of_transformers() {
    for name in ["llama_gqa", "llama_bias", "llama_tied", "llama_rope_llama3", "mistral_window", "qwen2"] {
        let folder = fixture("models").join(name);
        let expected = Expected::read(&folder);
        let decoder = load_on(gpu(), &folder, Compute::F32);
        let difference = largest_difference(&logits(&decoder, &expected.ids(), None), &expected.floats("logits"));
        assert!(difference <= TOLERANCE, "{}: {difference}", folder.display());
    }
}

#[test]
fn blocks_of_a_gguf_file_are_decoded() {
    let expected = Expected::read_file(&fixture("gguf/smollm.expected.safetensors"));
    let decoder = load_on(gpu(), &fixture("gguf/smollm.gguf"), Compute::F32);
    let difference = largest_difference(&logits(&decoder, &expected.ids(), None), &expected.floats("logits"));
    assert!(difference <= TOLERANCE, "{difference}");
}

#[test]
fn generation_with_a_cache_gives_the_logits_of_the_whole_sequence() {
    for name in ["llama_gqa", "mistral_window"] {
        let folder = fixture("models").join(name);
        let expected = Expected::read(&folder);
        let (ids, logits) = (expected.ids(), expected.floats("logits"));
        let decoder = load_on(gpu(), &folder, Compute::F32);
        let vocabulary = decoder.config().vocab_size;
        let (mut first, mut other) = (decoder.begin(), decoder.begin());
        let half = ids.len() / 2;
        decoder.next_logits(&[&ids[..half]], &mut [&mut first], None);
        for position in half..ids.len() {
            let new = [&ids[position..position + 1], &ids[3..4]];
            let next = decoder.next_logits(&new, &mut [&mut first, &mut other], None);
            let row = &logits[position * vocabulary..(position + 1) * vocabulary];
            let difference = largest_difference(&next[0], row);
            assert!(difference <= TOLERANCE, "{name} at {position}: {difference}");
        }
    }
}

#[test]
fn the_losses_of_a_run_are_the_processors() {
    let _turn = turn();
    for name in ["qv", "seven_and_head"] {
        let folder = fixture("training").join(name);
        let run = Run::read(&folder);
        let (there, here) =
            (load_on(gpu(), &run.base, Compute::F32), load_on(&Device::flex(), &run.base, Compute::F32));
        for recompute in [Recompute::None, Recompute::Block] {
            let ((ours, _), (expected, _)) = (run.replay(&there, recompute), run.replay(&here, recompute));
            assert!(!ours.is_empty());
            for (index, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
                let place = format!("{} {recompute:?} step {index}", folder.display());
                let (loss, norm) = (ours.loss - expected.loss, ours.grad_norm - expected.grad_norm);
                assert!(loss.abs() <= f64::from(TOLERANCE), "{place}: loss {} - {}", ours.loss, expected.loss);
                assert!(
                    norm.abs() <= 1e-3 * expected.grad_norm,
                    "{place}: {} - {}",
                    ours.grad_norm,
                    expected.grad_norm
                );
            }
        }
    }
}

#[test]
fn what_only_the_processor_can_do_is_a_named_error() {
    let dense = fixture("models/llama_gqa");
    for (base, compute, quant, place) in [
        (&dense, Compute::Bf16, Quant::None, "base.compute"),
        (&dense, Compute::F32, Quant::Nf4 { double: false }, "base.quant"),
        (&dense, Compute::F32, Quant::Nf4 { double: true }, "base.quant"),
        (&dense, Compute::F32, Quant::Int8, "base.quant"),
        (&fixture("gguf/smollm.gguf"), Compute::F32, Quant::Keep, "base.quant"),
        (&fixture("blocks/nf4_model"), Compute::F32, Quant::None, "base.quant"),
        (&fixture("blocks/int8_model"), Compute::F32, Quant::None, "base.quant"),
    ] {
        let files = BaseFiles::open(base).expect("a base");
        let error =
            Decoder::load(&files, &LoadOptions { device: gpu().clone(), compute, quant }, |_, _| {}).expect_err(place);
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().contains(place), "{place}: {error}");
    }
}

/// Runs the program on a device; `hide` is set where it should find no driver.
fn burnish(device: &str, arguments: &[&str], hide_drivers: bool) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_burnish"));
    command.args(arguments).args(["--device", device, "--json", "--quiet"]);
    if hide_drivers {
        // Of the Vulkan loader, before and after 1.3.207, and of GLVND.
        for variable in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES", "__EGL_VENDOR_LIBRARY_FILENAMES"] {
            command.env(variable, "/nonexistent");
        }
    }
    command.output().expect("burnish runs")
}

fn result(output: Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {error}", output.status);
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn a_machine_without_a_driver_or_without_that_device_gets_a_named_error() {
    let data = fixture("gguf/smollm.tokens.jsonl").display().to_string();
    let base = fixture("gguf/smollm.gguf").display().to_string();
    let arguments = ["eval", "--base", &base, "--data", &data];
    for (device, hide_drivers, expected) in
        [("wgpu", true, "no wgpu device"), ("wgpu:0", true, "no wgpu device"), ("wgpu:99", false, "no wgpu:99")]
    {
        let output = burnish(device, &arguments, hide_drivers);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{device}: {error}");
        assert!(error.contains(expected), "{device}: {error}");
    }
}

/// The losses that a run wrote, of training and of validation.
fn recorded_losses(folder: &Path) -> Vec<f64> {
    let metrics = std::fs::read_to_string(folder.join("metrics.jsonl")).expect("metrics");
    let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.map(|line| line["loss"].as_f64().or(line["valid_loss"].as_f64()).expect("a loss")).collect()
}

/// A recipe over a tiny base with a tokenizer, and its data.
fn write_job(folder: &Path) -> String {
    let path = |name: &str| folder.join(name).display().to_string();
    let write = |name: &str, numbers: std::ops::Range<usize>| {
        let lines: Vec<_> = numbers
            .map(|number| json!({ "prompt": format!("boats: {number}, sea: "), "completion": format!("{number} boats") }))
            .map(|example| example.to_string())
            .collect();
        std::fs::write(folder.join(name), lines.join("\n")).expect("written");
    };
    write("train.jsonl", 0..11);
    write("valid.jsonl", 20..25);
    let (base, train, valid) = (fixture("gguf/smollm.gguf"), path("train.jsonl"), path("valid.jsonl"));
    let recipe = format!(
        "[base]\nmodel = {base:?}\ncompute = \"f32\"\n\
         [data]\ntrain = {train:?}\nvalid = {valid:?}\nmax_seq_tokens = 96\n\
         [adapter]\nrank = 4\ndropout = 0.1\ntargets = [\"q_proj\", \"v_proj\", \"down_proj\"]\n\
         [train]\nepochs = 2\nmicro_batch_seqs = 4\nlearning_rate = 1e-2\neval_steps = 3\nrecompute = \"block\"\n\
         [output]\ndir = {:?}\n[sample]\nprompts = [\"boats: 3, sea: \"]\nmax_tokens = 4\n",
        path("run")
    );
    std::fs::write(folder.join("recipe.toml"), recipe).expect("written");
    path("recipe.toml")
}

#[test]
fn a_recipe_for_the_processor_is_refused_before_a_weight_is_loaded() {
    let work = tempfile::tempdir().expect("a folder");
    let recipe = write_job(work.path());
    let overrides = ["--set", "base.compute=\"bf16\"", "--set", "base.quant=\"nf4\""];
    let output = burnish("wgpu", &[&["check", &recipe], &overrides[..]].concat(), false);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("base.compute") && error.contains("base.quant"), "{error}");
}

#[test]
fn the_whole_job_comes_to_the_same_on_both_devices() {
    let work = tempfile::tempdir().expect("a folder");
    let path = |name: &str| work.path().join(name).display().to_string();
    let recipe = write_job(work.path());
    let runs = ["cpu", "wgpu"].map(|device| {
        let output = format!("output.dir={:?}", path(device));
        let report = result(burnish(device, &["train", &recipe, "--set", &output], false));
        (report, recorded_losses(&work.path().join(device)))
    });
    let [(here, expected), (there, ours)] = runs;
    assert_eq!(ours.len(), expected.len());
    for (index, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
        assert!((ours - expected).abs() <= f64::from(TOLERANCE), "line {index}: {ours}, not {expected}");
    }
    let validation = |report: &Value, key: &str| report["validation"][key].as_f64().expect("a loss");
    assert!(validation(&there, "loss_after") < validation(&there, "loss_before"), "{there}");
    assert_eq!(there["samples"], here["samples"]);

    let evaluate = |device| {
        let base = fixture("gguf/smollm.gguf").display().to_string();
        let arguments = ["eval", "--base", &base, "--adapter", &path("wgpu"), "--data", &path("valid.jsonl")];
        result(burnish(device, &arguments, false))["loss"].as_f64().expect("a loss")
    };
    let losses = [evaluate("cpu"), evaluate("wgpu:0"), validation(&there, "loss_after")];
    assert!((losses[0] - losses[1]).abs() <= f64::from(TOLERANCE), "{losses:?}");
    assert!((losses[0] - losses[2]).abs() <= f64::from(TOLERANCE), "{losses:?}");
}
