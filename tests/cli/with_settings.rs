//! Runs under settings on the command line, whole and cut.

use std::fs;
use std::path::Path;

use burnish::files::hex::sha256_of_file;
use serde_json::Value;
use tempfile::TempDir;

use super::{run, text};

/// The arguments, and settings of a recipe behind them.
pub fn with<'a>(arguments: &[&'a str], settings: &[&'a str]) -> Vec<&'a str> {
    arguments.iter().copied().chain(settings.iter().flat_map(|setting| ["--set", setting])).collect()
}

/// The lines of the metrics in a run folder.
pub fn metrics(run_folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run_folder.join("metrics.jsonl")).expect("metrics");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Checks that the run of `job` under `settings` ends with the same adapter, metrics and verdict where it is cut after `steps` steps
/// and resumed.
pub fn a_cut_run_ends_alike(job: fn() -> TempDir, settings: &[&str], steps: u64) {
    let trained = |folder: &TempDir, arguments: &[&str], more: &[&str]| {
        let arguments = [&["train", "recipe.toml", "--quiet"][..], arguments].concat();
        let output = run(folder, &with(&arguments, &[settings, more].concat()));
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    let results = |folder: &TempDir| {
        let runs = folder.path().join("runs/sums");
        let about: Value = serde_json::from_slice(&fs::read(runs.join("run.json")).expect("read")).expect("JSON");
        let adapter = sha256_of_file(&runs.join("adapter_model.safetensors")).expect("read");
        (adapter, metrics(&runs), about["outcome"]["validation"].clone())
    };
    let (whole, cut) = (job(), job());
    trained(&whole, &[], &[]);
    trained(&cut, &[], &[&format!("train.max_steps={steps}")]);
    trained(&cut, &["--resume"], &[]);
    assert_eq!(results(&cut), results(&whole), "{settings:?}");
}
