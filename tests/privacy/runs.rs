//! Whole private runs.

use std::fs;
use std::process::Stdio;
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;

use crate::cli::{burnish, json, refused, run, text};
use crate::resume::{Results, job, record, runs, trained};

/// Steps of 4 of 21 examples, and little noise.
const PRIVATE: [&str; 8] = [
    "--set",
    "privacy={noise_multiplier=0.3, delta=1e-3, max_noise_to_signal=100}",
    "--set",
    "train.micro_batch_seqs=2",
    "--set",
    "train.accumulate_steps=2",
    "--set",
    "adapter.dropout=0.0",
];

/// Puts a secret into the run folder, as a process leaves it that is killed before its first checkpoint.
fn with_secret(folder: &TempDir) {
    fs::create_dir_all(runs(folder)).expect("a folder");
    fs::write(runs(folder).join("run.lock"), "").expect("written");
    fs::write(runs(folder).join("privacy.key"), [7u8; 32]).expect("written");
}

fn metadata(folder: &TempDir) -> Value {
    json(&run(folder, &["inspect", "runs/sums", "--json"]))["adapter"]["provenance"].clone()
}

#[test]
fn a_private_run_tells_its_guarantee_everywhere() {
    let folder = job();
    let said = trained(&folder, &PRIVATE);
    assert!(said.contains("privacy: the adapter is (ε = "), "{said}");
    assert!(said.contains("privacy: the noise of a step is") && said.contains("one at a time"), "{said}");
    assert!(said.contains("the validation examples are not covered, and they choose the best adapter"), "{said}");
    let about = record(&folder);
    let privacy = &about["privacy"];
    let examples = privacy["examples"].as_u64().expect("a number");
    assert_eq!((examples, privacy["batch_examples"].as_u64()), (21, Some(4)));
    assert_eq!(privacy["steps"], 24, "six of an epoch");
    let epsilon = privacy["epsilon"].as_f64().expect("a number");
    let steps =
        burnish::train::privacy::accountant::Steps { sample_rate: 4.0 / 21.0, noise_multiplier: 0.3, count: 24 };
    assert!((epsilon - steps.epsilon(1e-3).0).abs() < 1e-9 && epsilon > 10.0, "{epsilon}");
    assert_eq!(about["outcome"]["privacy"], *privacy);
    let metadata = metadata(&folder);
    let told: Value = serde_json::from_str(metadata["burnish.privacy"].as_str().expect("told")).expect("JSON");
    assert_eq!(told, *privacy);
    assert!(metadata["burnish.data_sha256"].is_null(), "a hash would tell whether a guess of the data is right");
    let card = fs::read_to_string(runs(&folder).join("README.md")).expect("a card");
    assert!(card.contains("| privacy | (ε = ") && card.contains("| training data | 21 examples |"), "{card}");
    let page = fs::read_to_string(runs(&folder).join("report.html")).expect("a page");
    assert!(page.contains("-differentially private for one training example."));
    assert!(!runs(&folder).join("privacy.key").exists(), "the secret goes with the end of the run");
}

#[test]
fn a_private_run_that_is_killed_goes_on_to_the_bit() {
    let whole = job();
    with_secret(&whole);
    let more = [&PRIVATE[..], &["--resume", "--set", "train.epochs=8"]].concat();
    let began = Instant::now();
    trained(&whole, &more);
    let length = began.elapsed();
    let parts = job();
    with_secret(&parts);
    for share in [0.5, 0.6, 0.7] {
        let mut command = burnish(&parts);
        command.args(["train", "recipe.toml"]).args(&more).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("starts");
        std::thread::sleep(length.mul_f64(share));
        child.kill().expect("killed");
        child.wait().expect("ended");
    }
    trained(&parts, &more);
    assert_eq!(Results::of(&parts), Results::of(&whole));
    // Another secret is other noise and other samples.
    let other = job();
    trained(&other, &[&PRIVATE[..], &["--set", "train.epochs=8"]].concat());
    assert_ne!(Results::of(&other), Results::of(&whole));
}

#[test]
fn a_finished_private_run_trains_on_with_a_new_secret() {
    let folder = job();
    trained(&folder, &PRIVATE);
    let before = record(&folder)["privacy"]["epsilon"].as_f64().expect("a number");
    let said = trained(&folder, &[&PRIVATE[..], &["--resume", "--set", "train.epochs=6"]].concat());
    assert!(said.contains("the secret of the first 24 steps is gone"), "{said}");
    let after = record(&folder)["privacy"]["epsilon"].as_f64().expect("a number");
    assert!(after > before, "more steps tell more: {before} and {after}");
}

#[test]
fn a_longer_run_cannot_keep_the_epsilon_of_a_shorter_one() {
    let folder = job();
    let mut target = PRIVATE;
    target[1] = "privacy={target_epsilon=50, delta=1e-3, max_noise_to_signal=100}";
    trained(&folder, &target);
    let told = record(&folder)["privacy"].clone();
    assert!((49.98..=50.0).contains(&told["epsilon"].as_f64().expect("a number")), "{told}");
    let longer = [&["train", "recipe.toml"], &target[..], &["--resume", "--set", "train.epochs=6"]].concat();
    let stderr = refused(&run(&folder, &longer));
    assert!(stderr.contains("the recipe has changed since this checkpoint: privacy.noise_multiplier was"), "{stderr}");
}

#[test]
fn settings_that_break_the_guarantee_are_refused_together() {
    let folder = job();
    let refused_by = |privacy: &str, more: &[&str]| {
        let settings = more.iter().flat_map(|setting| ["--set", setting]);
        let arguments: Vec<&str> = ["check", "recipe.toml", "--set", privacy].into_iter().chain(settings).collect();
        refused(&run(&folder, &arguments))
    };
    let breaking = [
        "adapter.dropout=0.1",
        "train.neftune_alpha=5",
        "data.packing=true",
        "data.augment={typing_errors=0.1}",
        "data.rehearsal={path='train.jsonl'}",
        "train.objective='dpo'",
        "data.sources=[{path='train.jsonl', weight=2.0}]",
    ];
    let stderr = refused_by("privacy={target_epsilon=8, noise_multiplier=1, delta=1e-3}", &breaking);
    for key in [
        "adapter.dropout",
        "train.neftune_alpha",
        "data.packing",
        "data.augment",
        "data.rehearsal",
        "train.objective",
        "data.sources",
    ] {
        assert!(stderr.contains(&format!("`{key}` does not go with `[privacy]`")), "{key}: {stderr}");
    }
    assert!(stderr.contains("exclude each other: keep one"), "{stderr}");
    assert!(refused_by("privacy={delta=1e-3}", &[]).contains("neither `target_epsilon` nor `noise_multiplier`"));
    let hopeless = refused_by("privacy={noise_multiplier=20, delta=1e-3}", &["adapter.dropout=0"]);
    assert!(hopeless.contains("leaves nothing to learn from"), "{hopeless}");
    assert!(!runs(&folder).exists());
}

#[test]
fn a_secret_that_is_damaged_is_named() {
    let folder = job();
    with_secret(&folder);
    fs::write(runs(&folder).join("privacy.key"), "short").expect("written");
    let output = run(&folder, &[&["train", "recipe.toml", "--resume"], &PRIVATE[..]].concat());
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("privacy.key: has 5 bytes; the secret of a private run has 32"), "{stderr}");
}
