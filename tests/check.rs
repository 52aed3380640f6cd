//! `burnish check`, `explain` and `data clean` as users meet them: findings on tokens, exit codes, JSON, shown examples.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cli::{burnish, json as object, refused, run, text, tiny_job, tiny_model};

/// Replaces the training data, and the validation data by rows of its own kind that are not in it.
fn with_rows(folder: &TempDir, rows: &[Value]) {
    let lines = |rows: &[Value]| rows.iter().map(|row| format!("{row}\n")).collect::<String>();
    fs::write(folder.path().join("train.jsonl"), lines(rows)).expect("written");
    let valid: Vec<Value> =
        (0..12).map(|n| json!({"prompt": format!("{n} less {n} is "), "completion": format!("nil {n}")})).collect();
    fs::write(folder.path().join("valid.jsonl"), lines(&valid)).expect("written");
}

fn sums() -> Vec<Value> {
    (0..20).map(|n| json!({"prompt": format!("{n} and {n} is "), "completion": (2 * n).to_string()})).collect()
}

/// The code and the lines of each finding of a check, less those about the number of rows.
fn findings(folder: &TempDir, more: &[&str]) -> Vec<(String, Value)> {
    let checked = object(&run(folder, &[&["check", "recipe.toml", "--json"], more].concat()));
    let found = checked["findings"].as_array().expect("a list").iter();
    let of_size = ["D106", "D205", "D206"];
    found
        .filter(|one| !of_size.iter().any(|code| one["code"] == *code))
        .map(|one| (one["code"].as_str().expect("a code").to_owned(), one["rows"].clone()))
        .collect()
}

#[test]
fn clean_sums_have_no_finding_and_the_shape_and_lengths_are_named() {
    let folder = tiny_job();
    with_rows(&folder, &sums());
    assert_eq!(findings(&folder, &[]), []);
    let checked = object(&run(&folder, &["check", "recipe.toml", "--json"]));
    let file = json!({"split": "train", "file": "train.jsonl", "format": "prompt-completion", "rows": 20});
    assert_eq!(checked["files"][0], file);
    let lengths = checked["train"]["lengths"].as_array().expect("classes");
    assert_eq!(lengths.iter().filter_map(|class| class["sequences"].as_u64()).sum::<u64>(), 20);
    assert!(checked["memory"]["data"].as_u64().is_some_and(|bytes| bytes > 0));
    let said = text(&run(&folder, &["check", "recipe.toml"]).stdout);
    assert!(said.contains("train: train.jsonl, 20 rows, read as `prompt-completion`"), "{said}");
    assert!(said.contains("findings    none") && said.contains("by tokens: up to "), "{said}");
}

#[test]
fn findings_on_tokens_have_their_lines() {
    let folder = tiny_job();
    let mut rows = sums();
    rows.insert(4, json!({"prompt": "many words ".repeat(100), "completion": "b"}));
    rows.insert(6, json!({"prompt": "<|im_start|>7 and 7 is ", "completion": "14", "note": "x"}));
    with_rows(&folder, &rows);
    let found = findings(&folder, &[]);
    for (code, line) in [("D701", 5), ("D501", 7), ("D609", 7)] {
        assert!(found.contains(&(code.to_owned(), json!([line]))), "{code}: {found:?}");
    }
    let cut = findings(&folder, &["--set", "data.overlong=truncate-prompt", "--set", "data.max_seq_tokens=100"]);
    assert!(cut.contains(&("D702".to_owned(), json!([5]))), "{cut:?}");
    let said = run(&folder, &["check", "recipe.toml"]);
    assert!(text(&said.stderr).is_empty(), "a finding is reported once: {}", text(&said.stderr));
    assert!(text(&said.stdout).contains("warning D701 train: "), "{}", text(&said.stdout));
}

#[test]
fn a_conversation_without_an_answer_and_a_role_that_nobody_trains_are_found() {
    let folder = tiny_job();
    let chat = |question: &str, role: &str| json!({"messages": [{"role": "user", "content": question}, {"role": role, "content": format!("so {question}")}]});
    let mut rows: Vec<Value> = (0..20).map(|n| chat(&format!("is {n} even"), "assistant")).collect();
    rows.insert(2, chat("is 40 even", "Asistant"));
    fs::write(folder.path().join("train.jsonl"), rows.iter().map(|row| format!("{row}\n")).collect::<String>())
        .expect("written");
    let found = findings(&folder, &[]);
    for code in ["D601", "D602", "D604"] {
        assert!(found.contains(&(code.to_owned(), json!([3]))), "{code}: {found:?}");
    }
}

#[test]
fn a_worthless_run_is_exit_code_2_and_still_reported() {
    let folder = tiny_job();
    fs::copy(folder.path().join("train.jsonl"), folder.path().join("valid.jsonl")).expect("copied");
    let output = run(&folder, &["check", "recipe.toml", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let checked: Value = serde_json::from_str(&text(&output.stdout)).expect("one object");
    assert_eq!(
        (&checked["findings"][0]["code"], &checked["findings"][0]["severity"]),
        (&json!("D204"), &json!("error"))
    );
    assert_eq!(checked["train"]["examples"], 21);
    let output = run(&folder, &["check", "recipe.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stdout).contains("error   D204 valid: "), "{}", text(&output.stdout));
}

#[test]
fn errors_are_json_too() {
    let folder = tiny_job();
    fs::write(folder.path().join("train.jsonl"), "{\"prompt\": 1, \"completion\": \"b\"}\n").expect("written");
    let errors = |arguments: &[&str]| {
        let output = run(&folder, arguments);
        assert_eq!(output.status.code(), Some(2));
        assert!(!output.stderr.is_empty(), "people read it as before");
        let stdout = text(&output.stdout);
        serde_json::from_str::<Value>(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))["errors"].take()
    };
    let found = errors(&["check", "recipe.toml", "--json"]);
    assert_eq!((&found[0]["file"], &found[0]["line"]), (&json!("train.jsonl"), &json!(1)));
    assert!(found[0]["message"].as_str().is_some_and(|message| message.contains("`prompt` is the number 1")));
    assert!(errors(&["check", "--frobnicate", "--json"])[0]["message"].is_string());
}

#[test]
fn an_example_is_shown_with_its_trained_part() {
    let folder = tiny_job();
    let shown = |more: &[&str]| text(&run(&folder, &[&["check", "recipe.toml", "--show", "2"], more].concat()).stdout);
    let said = shown(&[]);
    assert!(said.contains("example 2 (train.jsonl:2), ") && said.contains("1 and 2 is [[3"), "{said}");
    assert!(said.trim_end().ends_with("]]"), "the end is trained: {said}");
    assert!(shown(&["--color", "always"]).contains("1 and 2 is \u{1b}[32m3"));
    let parts = object(&run(&folder, &["check", "recipe.toml", "--show", "2", "--json"]))["shown"]["parts"].take();
    assert_eq!(
        (&parts[0]["text"], &parts[0]["trained"], &parts[1]["trained"]),
        (&json!("1 and 2 is "), &json!(false), &json!(true))
    );
    let said = refused(&run(&folder, &["check", "recipe.toml", "--show", "22"]));
    assert!(said.contains("--show: is 22; expected 1 to 21"), "{said}");
}

#[test]
fn the_time_of_a_run_is_estimated_from_its_steps() {
    let folder = tiny_job();
    let checked = object(&run(&folder, &["check", "recipe.toml", "--time", "--json"]));
    let time = &checked["time"];
    assert_eq!(time["timed_steps"], 3);
    let (tokens, rate) = (checked["train"]["tokens"].as_f64(), time["tokens_per_second"].as_f64());
    let (tokens, rate) = (tokens.expect("tokens"), rate.expect("a rate"));
    let seconds = time["training_seconds"].as_f64().expect("seconds");
    assert!((seconds - 2.0 * tokens / rate).abs() < 1e-6 * seconds, "two epochs: {time}");
    assert!(time["evaluation_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
    assert!(!folder.path().join("runs").exists(), "nothing is kept");
}

#[test]
fn a_data_file_is_checked_without_a_recipe() {
    let folder = tiny_job();
    let mut rows = sums();
    rows.push(rows[0].clone());
    with_rows(&folder, &rows);
    let checked = object(&run(&folder, &["check", "train.jsonl", "--json"]));
    assert_eq!((&checked["findings"][0]["code"], &checked["findings"][0]["rows"]), (&json!("D101"), &json!([21])));
    assert!(checked["train"].is_null());
    let base = tiny_model();
    let base = base.to_str().expect("UTF-8");
    let checked = object(&run(&folder, &["check", "train.jsonl", "--base", base, "--json"]));
    assert_eq!(checked["train"]["examples"], 21);
    assert!(refused(&run(&folder, &["check", "train.jsonl", "--show", "1"])).contains("needs a base"));
    assert!(refused(&run(&folder, &["check", "recipe.toml", "--base", base])).contains("goes with a data file"));
}

#[test]
fn copies_are_told_before_training_too() {
    let folder = tiny_job();
    let rows = sums();
    with_rows(&folder, &[rows.clone(), rows].concat());
    let output = run(&folder, &["train", "recipe.toml", "--set", "train.max_steps=1"]);
    assert!(text(&output.stderr).contains("train: 20 examples the same as an earlier one"), "{}", text(&output.stderr));
}

#[test]
fn a_finding_is_explained_and_all_are_listed() {
    let folder = tempfile::tempdir().expect("folder");
    let said = text(&run(&folder, &["explain", "d204"]).stdout);
    assert!(said.starts_with("D204 (error): ") && said.contains("What to do: "), "{said}");
    let all = object(&run(&folder, &["explain", "--json"]));
    assert!(all.as_array().is_some_and(|all| all.len() > 50));
    assert!(refused(&run(&folder, &["explain", "D999"])).contains("no code of a finding"));
}

#[test]
fn data_is_cleaned_as_check_proposes() {
    let folder = tiny_job();
    let mut rows = sums();
    rows.push(rows[3].clone());
    rows.push(json!({"prompt": "now who is ", "completion": "mira.okoro@mail.de"}));
    with_rows(&folder, &rows);
    let clean = ["data", "clean", "train.jsonl", "--dedupe", "--redact", "--out", "clean.jsonl", "--json"];
    let report = object(&run(&folder, &clean));
    assert_eq!((&report["rows_read"], &report["rows_written"]), (&json!(22), &json!(21)));
    assert_eq!((&report["removed"][0]["line"], &report["removed"][0]["kept_line"]), (&json!(21), &json!(4)));
    assert_eq!(report["redacted"][0], json!({"file": "train.jsonl", "line": 22, "secrets": {"D801": 1}}));
    let before = fs::read_to_string(folder.path().join("train.jsonl")).expect("rows");
    let after = fs::read_to_string(folder.path().join("clean.jsonl")).expect("rows");
    let expected: Vec<&str> = before.lines().take(20).collect();
    assert_eq!(after.lines().take(20).collect::<Vec<_>>(), expected, "byte for byte");
    assert!(after.contains("[EMAIL]") && !after.contains("mira"));
    let checked = object(&run(&folder, &["check", "clean.jsonl", "--json"]));
    assert_eq!(checked["findings"], json!([]));
    let said = refused(&run(&folder, &clean[..7]));
    assert!(said.contains("exists already"), "{said}");
    assert!(refused(&run(&folder, &["data", "clean", "train.jsonl", "--out", "x.jsonl"])).contains("nothing to do"));
    let output =
        burnish(&folder).args(["data", "clean", "t.csv", "--dedupe", "--out", "x.jsonl"]).output().expect("starts");
    assert!(refused(&output).contains("t.csv: cannot be read") && !folder.path().join("x.jsonl").exists());
}

#[cfg(feature = "tables")]
#[test]
fn files_of_every_kind_are_cleaned_to_lines_with_all_of_their_columns() {
    let folder = tiny_job();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
    write("t.csv", "id,prompt,completion\n1,a,b\n,\"c, d\",x@mail.de\n\n3,a,b\n");
    write(
        "l.json",
        "[{\"prompt\": \"a\",\n \"completion\": \"b\"},\n{\"prompt\": \"e\", \"completion\": \"f\", \"note\": 1.50}]\n",
    );
    let clean = ["data", "clean", "t.csv", "l.json", "--dedupe", "--redact", "--out", "clean.jsonl", "--json"];
    let report = object(&run(&folder, &clean));
    let removed = |file: &str, line: usize| json!({"file": file, "line": line, "code": "D101", "kept_file": "t.csv", "kept_line": 2});
    assert_eq!(report["removed"], json!([removed("t.csv", 5), removed("l.json", 1)]), "by the lines of the files");
    assert_eq!(report["redacted"][0]["line"], 3);
    let lines = fs::read_to_string(folder.path().join("clean.jsonl")).expect("rows");
    let expected = "{\"id\":\"1\",\"prompt\":\"a\",\"completion\":\"b\"}\n{\"prompt\":\"c, d\",\"completion\":\"[EMAIL]\"}\n\
                    {\"prompt\":\"e\",\"completion\":\"f\",\"note\":1.5}\n";
    assert_eq!(lines, expected);
    let parquet = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tables");
    let parquet = fs::read_dir(parquet).expect("fixtures").map(|entry| entry.expect("an entry").path());
    let parquet =
        parquet.filter(|path| path.extension().is_some_and(|ending| ending == "parquet")).min().expect("a table");
    let name = parquet.display().to_string();
    let report = object(&run(&folder, &["data", "clean", &name, "--dedupe", "--out", "p.jsonl", "--json"]));
    assert!(report["rows_written"].as_u64().is_some_and(|rows| rows > 0), "{report}");
    let of = |path: &str| object(&run(&folder, &["inspect", path, "--json"]));
    assert_eq!(of(&name)["format"], of("p.jsonl")["format"]);
}

#[test]
fn the_memory_plan_counts_what_the_optimiser_keeps() {
    let folder = tiny_job();
    let adapter = |optimiser: &str| {
        let set = format!("train.optimiser={optimiser}");
        let checked = object(&run(&folder, &["check", "recipe.toml", "--json", "--set", &set]));
        checked["memory"]["adapter"].as_u64().expect("bytes")
    };
    let (adamw, lion, adafactor) = (adapter("adamw"), adapter("lion"), adapter("adafactor"));
    // Four vectors of the parameters, and one for each moment.
    assert_eq!(adamw * 5, lion * 6);
    assert!(adafactor < lion && adafactor > adamw / 6 * 4, "{adamw}, {lion}, {adafactor}");
}
