//! The program on a GPU: the whole job, and what it refuses there.

use std::path::Path;
use std::process::{Command, Output};

use burnish::model::load::{Compute, computes_in};
use serde_json::{Value, json};

use super::{TOLERANCE, fixture, gpu, gpu_name};

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
    let name = gpu_name();
    let (first, missing, none) = (format!("{name}:0"), format!("{name}:99"), format!("no {name} device"));
    let mut cases = vec![(missing.as_str(), false, format!("no {missing}"))];
    if name == "wgpu" {
        cases.extend([(name.as_str(), true, none.clone()), (first.as_str(), true, none)]);
    }
    for (device, hide_drivers, expected) in cases {
        let output = burnish(device, &arguments, hide_drivers);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{device}: {error}");
        assert!(error.contains(&expected), "{device}: {error}");
    }
}

/// The losses that a run wrote, of training and of validation.
fn recorded_losses(folder: &Path) -> Vec<f64> {
    let metrics = std::fs::read_to_string(folder.join("metrics.jsonl")).expect("metrics");
    let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.map(|line| line["loss"].as_f64().or(line["valid_loss"].as_f64()).expect("a loss")).collect()
}

/// A recipe over a tiny base of the fixtures with a tokenizer, and its data.
fn write_job(folder: &Path, base: &str) -> String {
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
    let (base, train, valid) = (fixture(base), path("train.jsonl"), path("valid.jsonl"));
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
    let recipe = write_job(work.path(), "gguf/smollm.gguf");
    let overrides = ["--set", "base.compute=\"bf16\"", "--set", "base.quant=\"int8\""];
    let output = burnish(&gpu_name(), &[&["check", &recipe], &overrides[..]].concat(), false);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("base.quant"), "{error}");
    assert_eq!(error.contains("base.compute"), !computes_in(gpu(), Compute::Bf16), "{error}");
}

/// Trains over `base`, answers a prompt and evaluates, on both devices.
fn compare_job(base: &str, settings: &[&str]) {
    let work = tempfile::tempdir().expect("a folder");
    let path = |name: &str| work.path().join(name).display().to_string();
    let recipe = write_job(work.path(), base);
    let runs = ["cpu".to_owned(), gpu_name()].map(|device| {
        let output = format!("output.dir={:?}", path(&device));
        let settings = settings.iter().flat_map(|setting| ["--set", *setting]);
        let arguments: Vec<&str> = ["train", &recipe, "--set", &output].into_iter().chain(settings).collect();
        let report = result(burnish(&device, &arguments, false));
        (report, recorded_losses(&work.path().join(device)))
    });
    let [(here, expected), (there, ours)] = runs;
    assert_eq!(ours.len(), expected.len());
    for (index, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
        assert!((ours - expected).abs() <= f64::from(TOLERANCE), "{base}, line {index}: {ours}, not {expected}");
    }
    let validation = |report: &Value, key: &str| report["validation"][key].as_f64().expect("a loss");
    assert!(validation(&there, "loss_after") < validation(&there, "loss_before"), "{there}");
    assert_eq!(there["samples"], here["samples"]);

    let evaluate = |device: &str| {
        let base = fixture(base).display().to_string();
        let arguments = ["eval", "--base", &base, "--adapter", &path(&gpu_name()), "--data", &path("valid.jsonl")];
        result(burnish(device, &arguments, false))["loss"].as_f64().expect("a loss")
    };
    let losses = [evaluate("cpu"), evaluate(&format!("{}:0", gpu_name())), validation(&there, "loss_after")];
    assert!((losses[0] - losses[1]).abs() <= f64::from(TOLERANCE), "{losses:?}");
    assert!((losses[0] - losses[2]).abs() <= f64::from(TOLERANCE), "{losses:?}");
}

#[test]
fn the_whole_job_comes_to_the_same_on_both_devices() {
    compare_job("gguf/smollm.gguf", &[]);
}

#[test]
fn the_whole_job_of_another_family_over_nf4_and_packed_comes_to_the_same_on_both_devices() {
    compare_job("gguf/qwen2.gguf", &["base.quant=\"nf4\"", "data.packing=true", "train.recompute=\"none\""]);
}
