//! Training runs: limits of memory that change no step, and what remains of runs that end early.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::cli::{json, refused, run, text, tiny_job, tiny_model};

/// The lines of a run's metrics that are steps.
fn steps(folder: &TempDir, dir: &str) -> Vec<Value> {
    let metrics = fs::read_to_string(folder.path().join(dir).join("metrics.jsonl")).expect("metrics");
    let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.filter(|line| line.get("loss").is_some()).collect()
}

fn layout(folder: &TempDir, dir: &str) -> Value {
    let path = folder.path().join(dir).join("run.json");
    let about: Value = serde_json::from_slice(&fs::read(path).expect("run.json")).expect("JSON");
    about["layout"].clone()
}

/// Trains without a limit and with limits that leave smaller and smaller parts; every step is the same.
fn same_steps(settings: &[&str], parts: &[(&str, u64)]) {
    let folder = tiny_job();
    let overrides: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let train = |dir: &str, limit: &[&str]| {
        let dir = format!("output.dir={dir}");
        json(&run(&folder, &[&["train", "recipe.toml", "--json", "--set", &dir][..], &overrides, limit].concat()))
    };
    let planned = |limit: &[&str]| {
        let checked = json(&run(&folder, &[&["check", "recipe.toml", "--json"][..], &overrides, limit].concat()));
        checked["memory_bytes"].as_u64().expect("bytes")
    };
    let mut limit = planned(&[]);
    train("whole", &[]);
    let whole = steps(&folder, "whole");
    assert!(whole.len() > 4 && layout(&folder, "whole")["part"] == "micro_batch");
    for (index, (kind, size)) in parts.iter().enumerate() {
        let text = (limit - 1).to_string();
        let dir = format!("part{index}");
        train(&dir, &["--max-memory", &text]);
        limit = planned(&["--max-memory", &text]);
        assert_eq!(layout(&folder, &dir)["part"][kind], *size, "{}", layout(&folder, &dir));
        let split = steps(&folder, &dir);
        assert_eq!(split.len(), whole.len());
        for (split, whole) in split.iter().zip(&whole) {
            assert_eq!(
                (&split["tokens"], &split["trained_tokens"], &split["learning_rate"]),
                (&whole["tokens"], &whole["trained_tokens"], &whole["learning_rate"])
            );
            for key in ["loss", "grad_norm"] {
                let (split, whole) = (split[key].as_f64().expect(key), whole[key].as_f64().expect(key));
                assert!((split - whole).abs() < 1e-5 * whole.abs().max(1.0), "{dir} {key}: {split}, not {whole}");
            }
        }
    }
}

#[test]
fn a_limit_on_memory_changes_no_step_with_packing_and_dropout() {
    let settings = [
        "data.packing=true",
        "data.max_seq_tokens=32",
        "adapter.dropout=0.3",
        "train.learning_rate=1e-3",
        "train.epochs=4",
    ];
    same_steps(&settings, &[("tokens", 64), ("tokens", 32)]);
}

#[test]
fn a_limit_on_memory_changes_no_step_with_dropout() {
    let settings = ["adapter.dropout=0.3", "train.accumulate_steps=2", "train.learning_rate=1e-3", "train.epochs=3"];
    same_steps(&settings, &[("sequences", 2), ("sequences", 1)]);
}

#[test]
fn a_limit_without_its_unit_is_pointed_out() {
    let folder = tiny_job();
    let check = |limit: &str| run(&folder, &["check", "recipe.toml", "--max-memory", limit]);
    let error = refused(&check("300"));
    assert!(error.contains("300 bytes is not enough") && error.contains("`300MiB`"), "{error}");
    assert!(check("8G").status.success(), "{}", text(&check("8G").stderr));
    let error = refused(&check("1M"));
    assert!(error.contains("1 MiB is not enough") && error.contains("base.quant"), "{error}");
}

#[test]
fn a_warm_up_longer_than_the_run_is_shortened() {
    let folder = tiny_job();
    let arguments = ["train", "recipe.toml", "--set", "train.max_steps=3", "--set", "train.warmup_steps=50"];
    let trained = run(&folder, &arguments);
    let stderr = text(&trained.stderr);
    assert!(trained.status.success(), "{stderr}");
    assert!(stderr.contains("train.warmup_steps is 50, and the run has 3 steps: shortened to 2"), "{stderr}");
    let rates: Vec<f64> =
        steps(&folder, "runs/sums").iter().map(|step| step["learning_rate"].as_f64().expect("a rate")).collect();
    assert_eq!(rates, [0.0, 0.005, 0.01], "the peak is reached at the last step");
}

/// The job without validation data.
fn without_validation() -> TempDir {
    let folder = tiny_job();
    let path = folder.path().join("recipe.toml");
    let recipe = fs::read_to_string(&path).expect("the recipe").replace("valid = \"valid.jsonl\"\n", "");
    fs::write(&path, recipe).expect("written");
    folder
}

fn weights(dir: &Path) -> Vec<f32> {
    let adapter = burnish::adapter::host::HostAdapter::load(dir).expect("an adapter");
    adapter.pairs.values().flat_map(|pair| pair.a.iter().chain(&pair.b).copied()).collect()
}

#[test]
fn a_run_that_diverges_keeps_its_last_good_adapter_and_its_metrics() {
    let folder = without_validation();
    // The decay multiplies every value by −9 a step, until something overflows.
    let settings = ["train.learning_rate=10", "train.weight_decay=1", "train.schedule=constant", "train.epochs=40"];
    let overrides: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let failed = run(&folder, &[&["train", "recipe.toml"][..], &overrides].concat());
    let stderr = text(&failed.stderr);
    assert_eq!(failed.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("learning_rate") && stderr.contains("the best adapter up to here is kept"), "{stderr}");
    let dir = folder.path().join("runs/sums");
    let recorded = steps(&folder, "runs/sums");
    let (bad, good): (Vec<_>, Vec<_>) = recorded.iter().partition(|step| step["skipped"] == true);
    assert!(bad.len() == 3 && !good.is_empty() && good.iter().all(|step| step["loss"].is_f64()));
    assert_eq!(stderr.matches(" changes nothing: its loss is ").count(), 3, "{stderr}");
    let values = weights(&dir);
    assert!(values.iter().all(|value| value.is_finite()) && values.iter().any(|value| *value != 0.0));
    let about: Value = serde_json::from_slice(&fs::read(dir.join("run.json")).expect("run.json")).expect("JSON");
    assert!(about["error"].as_str().is_some_and(|error| error.contains("step")) && about["finished"].is_string());
    // The next run does not write over it.
    assert!(refused(&run(&folder, &["train", "recipe.toml"])).contains("`output.dir`"));
}

#[test]
fn the_stages_of_a_run_are_announced_in_order() {
    let folder = tiny_job();
    let trained = run(&folder, &["train", "recipe.toml", "-v"]);
    let stderr = text(&trained.stderr);
    assert!(trained.status.success(), "{stderr}");
    let stages = ["opening the base", "reading the data", "encoding", "loading the weights", "without the adapter"];
    let places = stages.iter().chain(&["\ntraining\n", "with the adapter"]).map(|stage| stderr.find(stage));
    let places: Vec<usize> = places.map(|place| place.unwrap_or_else(|| panic!("{stderr}"))).collect();
    assert!(places.is_sorted(), "{stderr}");
}

#[cfg(unix)]
#[test]
fn an_interrupt_after_the_last_step_loses_nothing() {
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    let folder = tiny_job();
    let prompts: Vec<String> = (0..400).map(|index| format!("\"{index} and 2 is \"")).collect();
    let path = folder.path().join("recipe.toml");
    let recipe = fs::read_to_string(&path).expect("the recipe");
    let recipe = recipe.replace("max_tokens = 4", "max_tokens = 100").replace("\"1 and 2 is \"", &prompts.join(", "));
    fs::write(&path, recipe).expect("written");
    let mut command = crate::cli::burnish(&folder);
    let mut child = command
        .args(["train", "recipe.toml", "--set", "train.max_steps=1"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let about =
        || -> Option<Value> { serde_json::from_slice(&fs::read(folder.path().join("runs/sums/run.json")).ok()?).ok() };
    let has_outcome = |about: Option<Value>| about.is_some_and(|about| about["outcome"].is_object());
    let began = Instant::now();
    while !has_outcome(about()) {
        assert!(began.elapsed() < Duration::from_secs(120), "no outcome");
        std::thread::sleep(Duration::from_millis(2));
    }
    // SAFETY: sends a signal to the child.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    assert_eq!(child.wait().expect("ends").code(), Some(130), "it was still answering the samples");
    let about = about().expect("run.json");
    assert_eq!((&about["outcome"]["steps"], about["finished"].is_string()), (&1.into(), true));
    assert!(folder.path().join("runs/sums/adapter_model.safetensors").is_file());
}

#[test]
fn the_data_is_recorded_as_it_was_read() {
    let folder = tiny_job();
    json(&run(&folder, &["train", "recipe.toml", "--json", "--set", "train.max_steps=1"]));
    let path = folder.path().join("runs/sums/run.json");
    let about: Value = serde_json::from_slice(&fs::read(path).expect("run.json")).expect("JSON");
    assert!(about["instruction_set"].is_string() && about["threads"].is_u64(), "{about}");
    assert_eq!(
        (&about["data"]["format"], about["processor"].is_string()),
        (&"prompt-completion".into(), cfg!(target_os = "linux"))
    );
    for split in ["train", "valid"] {
        let path = folder.path().join(format!("{split}.jsonl"));
        let expected = burnish::files::hex::sha256_of_file(&path).expect("readable");
        assert_eq!(about["data"][format!("{split}_sha256")], expected, "{split}");
        let set = burnish::data::DataSet::read(&path.into(), &None.into()).expect("a data file");
        assert_eq!((set.sha256(), set.rows.is_empty()), (expected, false));
    }
}

#[test]
fn exact_answers_can_choose_the_best_adapter() {
    let folder = tiny_job();
    let settings = ["train.eval_on=exact_match", "train.eval_steps=3", "train.epochs=4", "train.learning_rate=3e-2"];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let report = json(&run(&folder, &[&["train", "recipe.toml", "--json"][..], &settings].concat()));
    let metrics = fs::read_to_string(folder.path().join("runs/sums/metrics.jsonl")).expect("metrics");
    let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let evaluations: Vec<Value> = lines.filter(|line| line.get("valid_loss").is_some()).collect();
    let number = |line: &Value, key: &str| line[key].as_f64().expect("a number");
    let score = |line: &Value| (number(line, "valid_exact_match"), -number(line, "valid_loss"));
    assert!(evaluations.len() > 6);
    let mut best: Option<&Value> = None;
    for line in &evaluations {
        let is_best = best.is_none_or(|best| score(line) > score(best));
        assert_eq!(line["is_best"], is_best, "{line}");
        best = if is_best { Some(line) } else { best };
    }
    let best = best.expect("a best");
    assert_eq!(report["best_step"], best["step"]);
    // All 15 validation prompts are answered: the command that evaluates finds the same.
    let base = tiny_model().display().to_string();
    let arguments = [
        "eval",
        "--base",
        &base,
        "--adapter",
        "runs/sums",
        "--data",
        "valid.jsonl",
        "--generate",
        "--compute",
        "f32",
        "--json",
    ];
    let evaluated = json(&run(&folder, &arguments));
    assert!(
        (number(&evaluated["scores"]["exact_match"], "value") - number(best, "valid_exact_match")).abs() < 1e-9,
        "{evaluated}"
    );
    let error = refused(&run(&without_validation(), &["check", "recipe.toml", "--set", "train.eval_on=exact_match"]));
    assert!(error.contains("needs validation examples"), "{error}");
}
