//! Evaluations of runs and of models: samples, caps, test and guard sets, verdicts with their reasons, and scores.

use std::fs;

use serde_json::Value;
use tempfile::TempDir;

use crate::cli::{json, refused, run, text, tiny_job, tiny_model};

/// The lines of a JSONL file of the run folder.
fn lines(folder: &TempDir, file: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder.path().join("runs/sums").join(file)).expect(file);
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Trains the tiny job with these settings.
fn train(folder: &TempDir, settings: &[&str], options: &[&str]) -> std::process::Output {
    let overrides: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    run(folder, &[&["train", "recipe.toml", "--json"][..], &overrides, options].concat())
}

#[test]
fn three_validation_prompts_are_answered_at_each_evaluation() {
    let folder = tiny_job();
    let trained = train(&folder, &["sample.time_share=1"], &[]);
    json(&trained);
    let samples = lines(&folder, "samples.jsonl");
    // Before the first step, at 5, at 10, and at the end.
    let steps: Vec<u64> = samples.iter().map(|sample| sample["step"].as_u64().expect("a step")).collect();
    assert_eq!(steps, [0, 0, 0, 5, 5, 5, 10, 10, 10, 12, 12, 12]);
    let prompts = |step: usize| samples[3 * step..][..3].iter().map(|sample| sample["prompt"].clone()).collect();
    let first: Vec<Value> = prompts(0);
    assert!((1..4).all(|step| prompts(step) == first), "the same prompts each time");
    for sample in &samples {
        let words: Vec<&str> = sample["prompt"].as_str().expect("a prompt").split_whitespace().collect();
        let [a, "and", b, "is"] = words[..] else { panic!("{sample}") };
        let sum = a.parse::<u64>().expect("a number") + b.parse::<u64>().expect("a number");
        assert_eq!(sample["expected"], sum.to_string(), "the row's own answer");
        assert!(sample["tokens"].as_u64() <= Some(4) && sample["finish"] != "time", "{sample}");
    }
    let stderr = text(&trained.stderr);
    assert!(stderr.contains("step 0: samples\n  prompt   ") && stderr.contains("\n  expected "), "{stderr}");
    let metrics = lines(&folder, "metrics.jsonl");
    let accuracies = metrics.iter().filter_map(|line| line["valid_token_accuracy"].as_f64());
    assert!(accuracies.clone().count() == 4 && accuracies.clone().all(|share| (0.0..=1.0).contains(&share)));
}

#[test]
fn samples_can_be_left_out_and_do_not_change_the_adapter() {
    let adapter = |settings: &[&str]| {
        let folder = tiny_job();
        json(&train(&folder, settings, &[]));
        let path = folder.path().join("runs/sums");
        (path.join("samples.jsonl").exists(), fs::read(path.join("adapter_model.safetensors")).expect("an adapter"))
    };
    let (with, without) = (adapter(&["sample.time_share=1"]), adapter(&["sample.valid_prompts=0"]));
    assert!(with.0 && !without.0);
    assert_eq!(with.1, without.1);
    assert!(!adapter(&["sample.time_share=0"]).0, "no time, no samples");
}

#[test]
fn a_cap_holds_while_training_and_the_verdict_takes_all() {
    let folder = tiny_job();
    let report = json(&train(&folder, &["eval.max_examples=4"], &[]));
    let metrics = lines(&folder, "metrics.jsonl");
    let tokens: Vec<u64> = metrics.iter().filter_map(|line| line["valid_tokens"].as_u64()).collect();
    let all = report["validation"]["tokens"].as_u64().expect("tokens");
    assert!(
        tokens.len() == 4 && tokens.iter().all(|some| *some == tokens[0] && *some < all / 2),
        "{tokens:?} of {all}"
    );
    assert_eq!(
        (&report["validation"]["examples"], &report["validation"]["unmeasured_examples"]),
        (&15.into(), &0.into())
    );
}

/// A job whose base, `merged`, has learned sums, and whose training rows say "no" to each.
fn job_that_forgets_sums() -> TempDir {
    let folder = tiny_job();
    let settings = ["train.epochs=8", "train.schedule=constant", "output.dir=runs/first", "sample.valid_prompts=0"];
    json(&train(&folder, &settings, &[]));
    let base = tiny_model().display().to_string();
    json(&run(&folder, &["merge", "--base", &base, "--adapter", "runs/first", "--out", "merged", "--json"]));
    let no = |a: usize| format!("{{\"prompt\": \"{a} and 1 is \", \"completion\": \"no\"}}\n");
    fs::write(folder.path().join("train.jsonl"), (0..20).map(no).collect::<String>()).expect("written");
    folder
}

#[test]
fn test_and_guard_are_measured_at_the_end() {
    let folder = job_that_forgets_sums();
    fs::rename(folder.path().join("valid.jsonl"), folder.path().join("sums.jsonl")).expect("renamed");
    for (name, rows) in [("valid.jsonl", 11), ("test.jsonl", 12)] {
        let train = fs::read_to_string(folder.path().join("train.jsonl")).expect("rows");
        let some: String = train.split_inclusive('\n').take(rows).collect();
        fs::write(folder.path().join(name), some).expect("written");
    }
    let settings = [
        "base.model=merged",
        "data.test=test.jsonl",
        "eval.guard.path=sums.jsonl",
        "eval.guard.max_examples=14",
        "train.epochs=6",
    ];
    let trained = train(&folder, &settings, &["--require", "improved"]);
    let report: Value = serde_json::from_slice(&trained.stdout).expect("JSON");
    let found = |set: &str| (report[set]["examples"].clone(), report[set]["verdict"].clone());
    assert_eq!(found("validation"), (11.into(), "improved".into()), "{report}");
    assert_eq!(found("test"), (12.into(), "improved".into()), "{report}");
    assert_eq!(found("guard"), (14.into(), "worse".into()), "{report}");
    assert_eq!(trained.status.code(), Some(1));
    let stderr = text(&trained.stderr);
    assert!(stderr.contains("--require: the guard verdict is `worse`, not `not-worse`"), "{stderr}");

    let folder = tiny_job();
    let said = refused(&train(&folder, &["data.test=valid.jsonl"], &[]));
    assert!(said.contains("`data.test` is a file that the adapter is trained or chosen on"), "{said}");
    let said = refused(&train(&folder, &["eval.guard.path=none.jsonl"], &[]));
    assert!(said.contains("`eval.guard.path`: none.jsonl cannot be read"), "{said}");
}

#[test]
fn a_run_that_made_everything_worse_says_what_to_try() {
    let folder = job_that_forgets_sums();
    let trained = train(&folder, &["base.model=merged", "train.learning_rate=0.05"], &["--require", "improved"]);
    assert_eq!(trained.status.code(), Some(1), "{}", text(&trained.stderr));
    let report: Value = serde_json::from_slice(&trained.stdout).expect("the result comes all the same");
    let validation = &report["validation"];
    assert_eq!((&report["best_step"], &validation["verdict"]), (&0.into(), &"no evidence".into()), "{report}");
    let reason = validation["verdict_reason"].as_str().expect("a reason");
    assert!(reason.contains("every evaluation was worse than the base"), "{reason}");
    let advice = validation["advice"].as_str().expect("advice");
    assert!(advice.contains("`train.learning_rate` ten times lower (5e-3)"), "{advice}");

    let folder = tiny_job();
    assert!(train(&folder, &[], &["--require", "improved"]).status.success());
}
