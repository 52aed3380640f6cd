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
    assert!(!adapter(&["sample.time_share=1e-9"]).0, "too little time to read the prompts");
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
    // The guard has names of its own for the keys.
    let renamed = "{\"question\": \"1 and 2 is \", \"answer\": \"3\"}\n".repeat(12);
    fs::write(folder.path().join("renamed.jsonl"), renamed).expect("written");
    let guard = "eval.guard={path=\"renamed.jsonl\", columns={prompt=\"question\", completion=\"answer\"}}";
    let output = train(&folder, &[guard, "output.dir=guarded"], &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
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
    assert!(reason.contains("no evaluation was better than the base"), "{reason}");
    let advice = validation["advice"].as_str().expect("advice");
    assert!(advice.contains("`train.learning_rate` ten times lower (5e-3)"), "{advice}");

    let folder = tiny_job();
    assert!(train(&folder, &[], &["--require", "improved"]).status.success());
}

/// A JSONL file of the folder, line by line.
fn objects(folder: &TempDir, file: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder.path().join(file)).expect(file);
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// `burnish eval` with the adapter of `runs/sums` on `data`.
fn evaluate(folder: &TempDir, data: &str, options: &[&str]) -> std::process::Output {
    let base = tiny_model().display().to_string();
    let arguments = ["eval", "--base", &base, "--adapter", "runs/sums", "--data", data];
    run(folder, &[&arguments[..], options].concat())
}

/// A folder with an adapter in `runs/sums` that has learned the sums of `valid.jsonl`.
fn trained_on_sums() -> TempDir {
    let folder = tiny_job();
    fs::copy(folder.path().join("valid.jsonl"), folder.path().join("train.jsonl")).expect("copied");
    let settings = ["train.epochs=40", "train.schedule=constant", "sample.valid_prompts=0", "train.eval_steps=1000"];
    json(&train(&folder, &settings, &[]));
    folder
}

#[test]
fn the_answers_of_base_and_adapter_stand_side_by_side_with_intervals() {
    let folder = trained_on_sums();
    let options = ["--generate", "--max-tokens", "4", "--out", "predictions.jsonl", "--json", "--require", "improved"];
    let report = json(&evaluate(&folder, "valid.jsonl", &options));
    let score = |name: &str, key: &str| report["scores"][name]["against_base"][key].clone();
    let predictions = objects(&folder, "predictions.jsonl");
    assert_eq!(predictions.len(), 15);
    for (name, is_base) in [("exact_match", true), ("exact_match", false), ("rouge_l", true), ("rouge_l", false)] {
        let key = if is_base { format!("base_{name}") } else { name.to_owned() };
        let values = predictions.iter().map(|line| line[&key].as_f64().expect("a score"));
        let mean = values.sum::<f64>() / 15.0;
        let reported = score(name, if is_base { "before" } else { "after" }).as_f64().expect("a mean");
        assert!((mean - reported).abs() < 1e-12, "{key}: {reported}, not {mean}");
    }
    assert!(score("exact_match", "after").as_f64() > Some(0.5), "{report}");
    assert_eq!(score("exact_match", "before"), 0.0);
    for name in ["exact_match", "rouge_l", "token_accuracy", "loss"] {
        assert_eq!(score(name, "verdict"), "improved", "{name}");
        assert!(score(name, "low").as_f64() <= score(name, "difference").as_f64());
    }
    for (line, number) in predictions.iter().zip(1..) {
        assert_eq!(line["place"], format!("valid.jsonl:{number}"));
        let is_match = line["answer"].as_str().map(str::trim) == line["expected"].as_str();
        assert_eq!(line["exact_match"], f64::from(u8::from(is_match)), "{line}");
        assert!(line["loss"].is_f64() && line["base_loss"].is_f64() && line["base_answer"].is_string());
    }
    let again = evaluate(&folder, "valid.jsonl", &options);
    assert!(refused(&again).contains("--out: predictions.jsonl exists already"));
    let said = text(&evaluate(&folder, "valid.jsonl", &["--generate", "--max-tokens", "4"]).stdout);
    assert!(said.contains("exact match") && said.contains("base   adapter  difference"), "{said}");
}

#[test]
fn a_pattern_extracts_the_answers_that_are_compared() {
    let folder = trained_on_sums();
    let whole = json(&evaluate(&folder, "valid.jsonl", &["--generate", "--max-tokens", "4", "--json"]));
    let with = |pattern: &str| {
        let options = ["--generate", "--max-tokens", "4", "--json", "--extract", pattern];
        json(&evaluate(&folder, "valid.jsonl", &options))["scores"]["exact_match"]["value"].as_f64().expect("a share")
    };
    assert_eq!(Some(with("[0-9]+")), whole["scores"]["exact_match"]["value"].as_f64());
    // The first digit is more often right than both.
    assert!(with("([0-9])[0-9]*") >= with("[0-9]+"));
    assert_eq!(with("(nothing like it)"), 0.0);
    assert!(refused(&evaluate(&folder, "valid.jsonl", &["--extract", "x"])).contains("--generate"));
    let broken = evaluate(&folder, "valid.jsonl", &["--generate", "--extract", "("]);
    assert!(refused(&broken).contains("is no regular expression"));
}

#[test]
fn rows_can_be_limited_left_out_and_cut_and_are_counted() {
    let folder = trained_on_sums();
    let limited = json(&evaluate(&folder, "valid.jsonl", &["--limit", "4", "--json"]));
    assert_eq!((&limited["examples"], &limited["left_out"]), (&4.into(), &0.into()));
    let long = format!("{{\"prompt\": \"{} 1 and 1 is \", \"completion\": \"2\"}}\n", "many words ".repeat(100));
    let rows = fs::read_to_string(folder.path().join("valid.jsonl")).expect("rows");
    fs::write(folder.path().join("long.jsonl"), rows + &long).expect("written");
    let refusal = refused(&evaluate(&folder, "long.jsonl", &[]));
    assert!(refusal.contains("long.jsonl:16: has ") && refusal.contains("at most 128 fit"), "{refusal}");
    let dropped = json(&evaluate(&folder, "long.jsonl", &["--max-seq-tokens", "100", "--json"]));
    assert_eq!((&dropped["examples"], &dropped["left_out"], &dropped["truncated"]), (&15.into(), &1.into(), &0.into()));
    let cut = ["--overlong", "truncate-prompt", "--generate", "--max-tokens", "2", "--json"];
    let cut = json(&evaluate(&folder, "long.jsonl", &cut));
    assert_eq!((&cut["examples"], &cut["left_out"], &cut["truncated"]), (&16.into(), &0.into(), &1.into()));
    assert_eq!(cut["scores"]["exact_match"]["examples"], 16);
}

#[test]
fn figures_by_group_add_up_to_those_of_all() {
    let folder = trained_on_sums();
    let rows = objects(&folder, "valid.jsonl").into_iter().enumerate().map(|(index, mut row)| {
        row["topic"] = if index % 3 == 0 { "a".into() } else { "b".into() };
        format!("{row}\n")
    });
    fs::write(folder.path().join("topics.jsonl"), rows.collect::<String>()).expect("written");
    let options = ["--by", "topic", "--generate", "--max-tokens", "4"];
    let report = json(&evaluate(&folder, "topics.jsonl", &[&options[..], &["--json"]].concat()));
    let groups = report["groups"].as_array().expect("groups");
    let names: Vec<_> = groups.iter().map(|group| (group["group"].as_str(), group["examples"].as_u64())).collect();
    assert_eq!(names, [(Some("a"), Some(5)), (Some("b"), Some(10))]);
    let weighed = groups.iter().map(|group| {
        let score = &group["scores"]["exact_match"];
        score["value"].as_f64().expect("a share") * score["examples"].as_f64().expect("a number")
    });
    let all = report["scores"]["exact_match"]["value"].as_f64().expect("a share");
    assert!((weighed.sum::<f64>() / 15.0 - all).abs() < 1e-12);
    let table = text(&evaluate(&folder, "topics.jsonl", &options).stdout);
    assert!(table.contains("topic  examples  loss"), "{table}");
    let missing = evaluate(&folder, "topics.jsonl", &["--by", "subject"]);
    assert!(refused(&missing).contains("subject"), "{}", text(&missing.stderr));
}

#[test]
fn calls_of_tools_are_compared_as_values() {
    let folder = trained_on_sums();
    let call = |content: &str| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"weather in Rome?\"}}, {{\"role\": \"assistant\", \
             \"content\": {content}, \"tool_calls\": [{{\"type\": \"function\", \"function\": {{\"name\": \"weather\", \
             \"arguments\": {{\"place\": \"Rome\"}}}}}}]}}]}}\n"
        )
    };
    fs::write(folder.path().join("calls.jsonl"), call("\"\"").repeat(3)).expect("written");
    let options = ["--generate", "--max-tokens", "4", "--json", "--out", "calls.out.jsonl"];
    let report = json(&evaluate(&folder, "calls.jsonl", &options));
    assert_eq!(
        (&report["scores"]["tool_calls"]["value"], &report["scores"]["tool_calls"]["examples"]),
        (&0.0.into(), &3.into())
    );
    assert!(report["scores"].get("exact_match").is_none(), "a call is no text");
    let line = &objects(&folder, "calls.out.jsonl")[0];
    assert_eq!(line["expected"], serde_json::json!([{"name": "weather", "arguments": {"place": "Rome"}}]));
}

#[test]
fn multiple_choice_follows_lm_evaluation_harness() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/choices.json");
    let questions: Vec<Value> = serde_json::from_slice(&fs::read(path).expect("a fixture")).expect("JSON");
    let rows = questions.iter().map(|question| {
        let row = serde_json::json!({"question": question["prompt"], "choices": question["choices"], "answer": 0});
        format!("{row}\n")
    });
    fs::write(folder.path().join("questions.jsonl"), rows.collect::<String>()).expect("written");
    let base = tiny_model().display().to_string();
    let arguments =
        ["eval", "--base", &base, "--data", "questions.jsonl", "--compute", "f32", "--json", "--out", "o.jsonl"];
    let report = json(&run(&folder, &arguments));
    let choices = |key: &str| -> Vec<u64> { questions.iter().filter_map(|question| question[key].as_u64()).collect() };
    let share = |chosen: &[u64]| chosen.iter().filter(|index| **index == 0).count() as f64 / chosen.len() as f64;
    assert_eq!(report["scores"]["accuracy"]["value"], share(&choices("acc_choice")));
    assert_eq!(report["scores"]["accuracy_normalised"]["value"], share(&choices("acc_norm_choice")));
    for (line, question) in objects(&folder, "o.jsonl").iter().zip(&questions) {
        assert_eq!(
            (&line["chosen"], &line["chosen_normalised"]),
            (&question["acc_choice"], &question["acc_norm_choice"])
        );
        let values = |value: &Value| -> Vec<f64> { serde_json::from_value(value.clone()).expect("numbers") };
        for (found, expected) in values(&line["log_likelihoods"]).iter().zip(values(&question["log_likelihoods"])) {
            assert!((found - expected).abs() < 1e-3 * expected.abs(), "{question}: {found}, not {expected}");
        }
    }
    let generated = run(&folder, &["eval", "--base", &base, "--data", "questions.jsonl", "--generate"]);
    assert!(refused(&generated).contains("answered by likelihood"));
    let short = [&arguments[..7], &["--max-seq-tokens", "14", "--json"]].concat();
    let left = json(&run(&folder, &short));
    assert!(left["left_out"].as_u64() > Some(0) && left["examples"].as_u64() < Some(6), "{left}");
}

#[test]
fn the_precision_of_training_is_that_of_evaluation() {
    let folder = tiny_job();
    let compute = |adapter: bool| {
        let base = tiny_model().display().to_string();
        let adapter: &[&str] = if adapter { &["--adapter", "runs/sums"] } else { &[] };
        let arguments = ["eval", "--base", &base, "--data", "valid.jsonl", "--json"];
        json(&run(&folder, &[&arguments[..], adapter].concat()))["compute"].clone()
    };
    assert_eq!(compute(false), "f32");
    for precision in ["f32", "bf16"] {
        json(&train(&folder, &[&format!("base.compute={precision}"), "train.max_steps=1"], &[]));
        assert_eq!(compute(true), precision);
        fs::remove_dir_all(folder.path().join("runs")).expect("removed");
    }
}
