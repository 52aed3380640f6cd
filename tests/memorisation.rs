//! The memory of a run: canaries that were repeated, canaries that were not, and members by their losses.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::cli::{json, refused, run, text, tiny_job};
use crate::report::island;

/// The tiny job over thirty rows of noise.
fn job_with_canaries() -> TempDir {
    let folder = tiny_job();
    let row = |index: usize| {
        let (a, b) = (index * 7919 % 1000, index * 104_729 % 1000);
        format!("{{\"prompt\": \"Number {a}: \", \"completion\": \"{b}\"}}\n")
    };
    fs::write(folder.path().join("train.jsonl"), (1..31).map(row).collect::<String>()).expect("written");
    fs::write(folder.path().join("valid.jsonl"), (31..61).map(row).collect::<String>()).expect("written");
    folder
}

fn train(folder: &TempDir, settings: &[&str]) {
    let all =
        ["train.eval_steps=1000", "sample.valid_prompts=0", "data.canaries={inserted=10, repeats=8, held_out=10}"];
    let settings = all.iter().chain(settings).flat_map(|setting| ["--set", setting]);
    let output = run(folder, &["train", "recipe.toml"].into_iter().chain(settings).collect::<Vec<_>>());
    assert!(output.status.success(), "{}", text(&output.stderr));
}

fn measured(folder: &TempDir) -> Value {
    json(&run(folder, &["check", "--memorisation", "runs/sums", "--alternatives", "200", "--json"]))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn a_run_that_repeats_its_canaries_remembers_them() {
    let folder = job_with_canaries();
    train(
        &folder,
        &["train.epochs=12", "train.learning_rate=2e-2", "adapter.rank=16", "adapter.targets=\"all-linear\""],
    );
    let found = measured(&folder);
    let canaries = &found["canaries"];
    let (inserted, held_out) = (number(&canaries["inserted_mean"]), number(&canaries["held_out_mean"]));
    let most = number(&canaries["most"]);
    assert!((most - 201f64.log2()).abs() < 1e-9 && canaries["repeats"] == 8, "{canaries}");
    assert!(inserted > most - 2.0, "remembered: {canaries}");
    // By chance 1.44 bits; the standard deviation of the mean of ten is 0.46.
    assert!(held_out < 3.0, "nobody has seen these: {canaries}");
    assert_eq!(canaries["is_remembered"], true, "{canaries}");
    assert_eq!(canaries["inserted"].as_array().map(Vec::len), Some(10));
    let membership = &found["membership"];
    assert_eq!((&membership["train_examples"], &membership["valid_examples"]), (&30.into(), &30.into()));
    let of_base = &membership["auc_of_base"];
    assert!(number(&of_base["low"]) < 0.5 && number(&of_base["high"]) > 0.5, "the base has seen neither: {membership}");

    // The result stays with the run, and stands in its page.
    let dir = folder.path().join("runs/sums");
    let kept: Value = serde_json::from_slice(&fs::read(dir.join("memorisation.json")).expect("kept")).expect("JSON");
    assert_eq!(kept, found);
    let page = fs::read_to_string(dir.join("report.html")).expect("a page");
    assert_eq!(island(&page)["runs"][0]["memorisation"], found);
    let output = run(&folder, &["check", "--memorisation", "runs/sums", "--alternatives", "20", "--examples", "12"]);
    let said = text(&output.stdout);
    for part in ["10 secrets, 8 times each: exposure", "remembered", ", over 12 training and 12 validation examples"] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn losses_tell_the_examples_of_a_run_that_goes_on_for_long() {
    let folder = job_with_canaries();
    let long = ["--set", "train.epochs=40", "--set", "train.learning_rate=2e-2", "--set", "train.eval_steps=1000"];
    let large =
        ["--set", "adapter.rank=16", "--set", "adapter.targets=\"all-linear\"", "--set", "sample.valid_prompts=0"];
    assert!(run(&folder, &[&["train", "recipe.toml"], &long[..], &large[..]].concat()).status.success());
    let membership = &measured(&folder)["membership"];
    assert!(number(&membership["auc_of_adapter"]["value"]) > 0.8, "{membership}");
    assert!(number(&membership["auc_of_adapter"]["low"]) > 0.5 && membership["is_told"] == true, "{membership}");
}

#[test]
fn a_private_run_remembers_nothing() {
    let folder = job_with_canaries();
    let private = "privacy={noise_multiplier=3.0, delta=1e-3, max_noise_to_signal=100}";
    train(&folder, &["train.epochs=6", "train.learning_rate=1e-3", private, "train.micro_batch_seqs=32"]);
    let found = measured(&folder);
    let canaries = &found["canaries"];
    // The secret is another one in every run: bounds that chance passes in more than 999 of 1,000. The mean of ten exposures has a standard
    // deviation of 0.46 around 1.44 bits, the difference of two such means one of 0.65.
    assert!(number(&canaries["inserted_mean"]) < 3.2, "{canaries}");
    assert!(number(&canaries["difference"]["low"]) < 1.0, "{canaries}");
    // The area has one of 0.075 around 0.5.
    for key in ["auc", "auc_of_adapter"] {
        assert!(number(&found["membership"][key]["low"]) < 0.62, "{found}");
    }
}

#[test]
fn a_run_without_canaries_is_measured_by_its_losses_alone() {
    let folder = tiny_job();
    assert!(run(&folder, &["train", "recipe.toml"]).status.success());
    let found = measured(&folder);
    assert!(found["canaries"].is_null());
    // Rows 11 to 21 are in both files.
    assert_eq!(found["membership"]["valid_examples"], 4);
    assert!(found["membership"]["is_told"].is_null(), "too few to say so: {found}");
}

#[test]
fn runs_that_cannot_be_measured_say_why() {
    let folder = tiny_job();
    let check = |path: &str| refused(&run(&folder, &["check", "--memorisation", path]));
    assert!(check("nowhere").contains("nowhere: does not exist"));
    assert!(run(&folder, &["train", "recipe.toml"]).status.success());
    let train = folder.path().join("train.jsonl");
    let rows = fs::read_to_string(&train).expect("rows");
    fs::write(&train, rows.replace("\"5\"", "\"6\"")).expect("written");
    assert!(check("runs/sums").contains("train.jsonl: has changed since the run"));
    assert!(!Path::new(&folder.path().join("runs/sums/memorisation.json")).exists());
    let stderr = refused(&run(&folder, &["check", "--memorisation", "runs/sums", "--alternatives", "0"]));
    assert!(stderr.contains("--alternatives: is 0"), "{stderr}");
    let stderr = refused(&run(&folder, &["check", "recipe.toml", "--examples", "10"]));
    assert!(stderr.contains("--memorisation"), "{stderr}");
    let canaries = ["check", "recipe.toml", "--set", "data.canaries={}", "--set", "train.objective=dpo"];
    let stderr = refused(&run(&folder, &canaries));
    assert!(stderr.contains("`data.canaries` are examples to learn from"), "{stderr}");
}
