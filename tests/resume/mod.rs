//! Runs that are killed, stopped or changed, and go on.

mod changes;
mod faults;
mod kills;
mod settings;
mod stops;

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;

use crate::cli::{run, text, tiny_job};

/// A job of 24 steps with noise, with checkpoints that are soon followed by others.
pub fn job() -> TempDir {
    let folder = tiny_job();
    let path = folder.path().join("recipe.toml");
    let recipe =
        fs::read_to_string(&path).expect("the recipe").replace("epochs = 2\n", "epochs = 4\ncheckpoint_steps = 3\n");
    fs::write(&path, recipe.replace("rank = 4\n", "rank = 4\ndropout = 0.2\n")).expect("written");
    folder
}

/// `burnish train recipe.toml` with further arguments.
pub fn train(folder: &TempDir, more: &[&str]) -> Output {
    run(folder, &[&["train", "recipe.toml"][..], more].concat())
}

/// The same, where it must succeed; what it said on stderr.
pub fn trained(folder: &TempDir, more: &[&str]) -> String {
    let output = train(folder, more);
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    stderr
}

/// The run folder.
pub fn runs(folder: &TempDir) -> PathBuf {
    folder.path().join("runs/sums")
}

/// The results of a run that must not depend on its interruptions: adapter, model card, metrics and verdict.
#[derive(Debug, PartialEq)]
pub struct Results {
    adapter: String,
    card: String,
    metrics: String,
    verdict: Value,
    samples: Value,
}

impl Results {
    pub fn of(folder: &TempDir) -> Self {
        let about = record(folder);
        Self {
            adapter: burnish::files::hex::sha256_of_file(&runs(folder).join("adapter_model.safetensors"))
                .expect("read"),
            card: fs::read_to_string(runs(folder).join("README.md")).expect("a card"),
            metrics: metrics(folder),
            verdict: about["outcome"]["validation"].clone(),
            samples: about["outcome"]["samples"].clone(),
        }
    }
}

/// `metrics.jsonl`.
pub fn metrics(folder: &TempDir) -> String {
    fs::read_to_string(runs(folder).join("metrics.jsonl")).expect("metrics")
}

/// `run.json`.
pub fn record(folder: &TempDir) -> Value {
    serde_json::from_slice(&fs::read(runs(folder).join("run.json")).expect("run.json")).expect("JSON")
}

/// The names of the checkpoints, oldest first.
pub fn checkpoints(folder: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(runs(folder).join("checkpoints")).expect("checkpoints");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("listed").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
