//! The program as users meet it: exit codes, what goes to stdout and to stderr, and the whole job on a tiny model.

mod advise;
mod chat;
mod examples;
mod exports;
mod fetching;
mod init;
mod shell;
#[cfg(unix)]
pub mod signals;
pub mod with_settings;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A LLaMA of 86,336 parameters with tokenizer and chat template.
pub fn tiny_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/smollm.gguf")
}

/// The program, away from the user's caches and settings.
pub fn burnish(folder: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_burnish"));
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("BURNISH_") || name_text.starts_with("HF_") || name_text == "RUST_BACKTRACE" {
            command.env_remove(&name);
        }
    }
    // No model is fetched in a test: the hub is a closed port.
    command.env("HF_ENDPOINT", "http://127.0.0.1:1").env("HF_HOME", folder.path().join("hf"));
    command.env("BURNISH_CACHE", folder.path().join("cache")).current_dir(folder.path()).stdin(Stdio::null());
    hears_signals(&mut command);
    command
}

/// Signals end the program, also where the tests run in the background of a script, which ignores them.
#[cfg(unix)]
fn hears_signals(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: `signal` may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        })
    };
}

#[cfg(not(unix))]
fn hears_signals(_: &mut Command) {}

pub fn run(folder: &TempDir, arguments: &[&str]) -> Output {
    burnish(folder).args(arguments).output().expect("the program starts")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// The one JSON object on stdout.
pub fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    assert_eq!(stdout.lines().count(), 1, "one object and nothing else: {stdout}");
    serde_json::from_str(&stdout).expect("JSON")
}

/// The reported problem, after a check that the exit code is 2 and no result stands on stdout.
pub fn refused(output: &Output) -> String {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    // With --json the problems stand on stdout as well.
    let stdout = text(&output.stdout);
    assert!(stdout.is_empty() || stdout.starts_with("{\"errors\":"), "nothing on stdout: {stdout}");
    assert!(!stderr.contains("panicked") && !stderr.contains("bug in burnish"), "{stderr}");
    stderr
}

/// A folder with a recipe that trains the tiny model on a few sums.
pub fn tiny_job() -> TempDir {
    let folder = tempfile::tempdir().expect("folder");
    let row = |a: usize, b: usize| format!("{{\"prompt\": \"{a} and {b} is \", \"completion\": \"{}\"}}\n", a + b);
    let rows: Vec<String> = (1..6).flat_map(|a| (1..6).map(move |b| row(a, b))).collect();
    fs::write(folder.path().join("train.jsonl"), rows[..21].concat()).expect("written");
    fs::write(folder.path().join("valid.jsonl"), rows[10..].concat()).expect("written");
    let recipe = format!(
        "[base]\nmodel = {:?}\ncompute = \"f32\"\n[data]\ntrain = \"train.jsonl\"\nvalid = \"valid.jsonl\"\n\
         max_seq_tokens = 64\n[adapter]\nrank = 4\ntargets = [\"q_proj\", \"v_proj\", \"down_proj\"]\n[train]\nepochs = 2\n\
         learning_rate = 1e-2\neval_steps = 5\n[output]\ndir = \"runs/sums\"\n[sample]\nprompts = [\"1 and 2 is \"]\n\
         max_tokens = 4\n",
        tiny_model()
    );
    fs::write(folder.path().join("recipe.toml"), recipe).expect("written");
    folder
}

#[test]
fn help_and_version_are_results_and_misuse_is_exit_code_2() {
    let folder = tempfile::tempdir().expect("folder");
    for arguments in [&["--help"][..], &["--version"], &["train", "--help"], &["help", "merge"]] {
        let output = run(&folder, arguments);
        assert!(output.status.success() && !output.stdout.is_empty(), "{arguments:?}");
    }
    for arguments in
        [&[][..], &["frobnicate"], &["train"], &["train", "--device", "gpu", "x.toml"], &["eval", "--base", "x"]]
    {
        assert_eq!(run(&folder, arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert!(refused(&run(&folder, &["train", "none.toml"])).contains("none.toml: cannot be read"));
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_is_not_compiled_in_names_the_feature() {
    let folder = tiny_job();
    let stderr = refused(&run(&folder, &["train", "recipe.toml", "--device", "cuda:0"]));
    assert!(stderr.contains("--features cuda"), "{stderr}");
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn what_the_length_leaves_out_is_told_with_the_length() {
    let folder = tiny_job();
    let stderr = refused(&run(&folder, &["check", "recipe.toml", "--set", "data.max_seq_tokens=2"]));
    for expected in ["train.jsonl: no example is left: 21 have more than 2 tokens", "valid.jsonl: no example is left"] {
        assert!(stderr.contains(expected), "{stderr}");
    }
    let long = format!("{{\"prompt\": \"{}\", \"completion\": \"b\"}}\n", "many words ".repeat(100));
    let rows = fs::read_to_string(folder.path().join("train.jsonl")).expect("data");
    fs::write(folder.path().join("train.jsonl"), rows + &long).expect("written");
    // The model has 128 positions.
    let output = run(&folder, &["check", "recipe.toml", "--set", "data.max_seq_tokens=4096"]);
    let said = text(&output.stdout);
    let expected = "train: the row is left out: it has more tokens than `data.max_seq_tokens`: 128 (1 row: line 22)";
    assert!(said.contains(expected), "{said}");
    let data = folder.path().join("train.jsonl");
    let base = tiny_model();
    let arguments = ["eval", "--base", base.to_str().expect("UTF-8"), "--data", data.to_str().expect("UTF-8")];
    let stderr = refused(&run(&folder, &arguments));
    assert!(stderr.contains("train.jsonl:22: has ") && stderr.contains("at most 128 fit"), "{stderr}");
}

#[test]
fn the_whole_job_from_check_to_merge() {
    let folder = tiny_job();
    let base = tiny_model();
    let base = base.to_str().expect("UTF-8");
    let bytes_before = fs::read(base).expect("base");

    let checked = json(&run(&folder, &["check", "recipe.toml", "--json"]));
    assert_eq!((&checked["train"]["examples"], &checked["total_steps"]), (&21.into(), &12.into()));
    assert_eq!(checked["seen_in_training"], 11);
    assert!(!folder.path().join("runs").exists(), "a check writes nothing");

    let report = json(&run(&folder, &["train", "recipe.toml", "--json", "--set", "train.epochs=3"]));
    let run_folder = folder.path().join("runs/sums");
    let validation = &report["validation"];
    let (before, after) = (validation["loss_before"].as_f64(), validation["loss_after"].as_f64());
    assert!(after < before, "{report}");
    // 21 examples in batches of 4, the last one partial: 6 steps an epoch.
    assert_eq!(report["steps"], 18);
    assert_eq!(report["samples"].as_array().map(Vec::len), Some(1));
    let metrics = fs::read_to_string(run_folder.join("metrics.jsonl")).expect("metrics");
    let metrics: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(metrics.iter().filter(|line| line.get("loss").is_some()).count(), 18);
    // Before the first step, at 5, 10, 15, and at the end.
    assert_eq!(metrics.iter().filter(|line| line.get("valid_loss").is_some()).count(), 5);
    let kept = fs::read_to_string(run_folder.join("recipe.toml")).expect("recipe");
    assert!(kept.contains("epochs = 3") && kept.contains("weight_decay = 0.0"), "every setting, as it was set: {kept}");
    let about: Value = serde_json::from_slice(&fs::read(run_folder.join("run.json")).expect("run.json")).expect("JSON");
    assert_eq!((&about["plan"]["train"]["epochs"], &about["overrides"][0]), (&3.into(), &"train.epochs=3".into()));

    assert!(refused(&run(&folder, &["train", "recipe.toml"])).contains("`output.dir`"), "a run is never written over");

    let data = ["--data", "valid.jsonl", "--compute", "f32", "--json"];
    let evaluated =
        json(&run(&folder, &[&["eval", "--base", base, "--adapter", "runs/sums", "--generate"], &data[..]].concat()));
    let loss = evaluated["loss"].as_f64().expect("a loss");
    assert!((loss - after.expect("a loss")).abs() < 1e-5, "the adapter on disk is the best one: {evaluated}");
    assert_eq!((&evaluated["tokens"], &evaluated["examples"]), (&validation["tokens"], &15.into()));
    assert!(evaluated["scores"]["exact_match"]["value"].is_number(), "{evaluated}");

    let merged = json(&run(
        &folder,
        &["merge", "--base", base, "--adapter", "runs/sums", "--out", "merged", "--type", "f32", "--json"],
    ));
    assert_eq!(merged["modules_changed"], about["plan"]["adapter"]["targets"].as_array().map_or(0, Vec::len) * 2);
    let of_merged = json(&run(&folder, &[&["eval", "--base", "merged"], &data[..]].concat()));
    assert!((of_merged["loss"].as_f64().expect("a loss") - loss).abs() < 1e-4, "{of_merged}");
    let again = ["merge", "--base", base, "--adapter", "runs/sums", "--out", "merged"];
    assert!(refused(&run(&folder, &again)).contains("exists already"));

    let prompt = ["--prompt", "2 and 2 is ", "--raw", "--max-tokens", "8", "--compute", "f32"];
    let answer = |model: &[&str]| run(&folder, &[&["generate"], model, &prompt[..]].concat());
    let (adapted, merged) = (answer(&["--base", base, "--adapter", "runs/sums"]), answer(&["--base", "merged"]));
    assert!(adapted.status.success(), "{}", text(&adapted.stderr));
    assert_eq!(text(&adapted.stderr).trim(), "the prompt is taken as it is", "and nothing else is said");
    assert_eq!(text(&adapted.stdout), text(&merged.stdout));

    assert_eq!(json(&run(&folder, &["inspect", "runs/sums", "--json"]))["kind"], "run");
    assert_eq!(json(&run(&folder, &["inspect", "merged", "--json"]))["parameters"], 86_336);
    assert_eq!(json(&run(&folder, &["inspect", base, "--json"]))["format"], "gguf");
    assert_eq!(fs::read(base).expect("base"), bytes_before, "not one byte of the base changed");
}

#[test]
fn the_same_recipe_gives_the_same_adapter_on_any_number_of_threads() {
    let folder = tiny_job();
    let train = |dir: &str, threads: &str| {
        let setting = format!("output.dir={dir}");
        let output = run(&folder, &["train", "recipe.toml", "--quiet", "--threads", threads, "--set", &setting]);
        assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
        fs::read(folder.path().join(dir).join("adapter_model.safetensors")).expect("adapter")
    };
    let first = train("one", "1");
    assert_eq!(first, train("two", "2"));
    assert_eq!(first, train("five", "5"));
}

#[test]
fn a_seed_that_was_typed_wins_over_the_environments() {
    let folder = tiny_job();
    let arguments = ["train", "recipe.toml", "--set", "train.max_steps=1", "--set", "train.seed=5"];
    let trained = burnish(&folder).args(arguments).env("BURNISH_SEED", "3").output().expect("starts");
    assert!(trained.status.success(), "{}", text(&trained.stderr));
    let about = fs::read(folder.path().join("runs/sums/run.json")).expect("run.json");
    let about: Value = serde_json::from_slice(&about).expect("JSON");
    assert_eq!(about["plan"]["train"]["seed"], 5);
}

#[test]
fn everything_wrong_with_a_run_is_told_at_once_and_nothing_is_written() {
    let folder = tiny_job();
    fs::write(folder.path().join("train.jsonl"), "{\"prompt\": 1}\n{\"prompt\": \"a\", \"completion\": \"b\"}\nno\n")
        .expect("written");
    let stderr = refused(&run(&folder, &["check", "recipe.toml", "--set", "base.model=train.jsonl"]));
    assert!(stderr.contains("train.jsonl:1") && stderr.contains("train.jsonl:3"), "{stderr}");
    assert!(stderr.contains("error: train.jsonl: "), "and the base that is none: {stderr}");
    assert_eq!(refused(&run(&folder, &["train", "recipe.toml"])).matches("error:").count(), 2);
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn a_setting_that_does_not_go_with_the_base_is_told_at_its_line() {
    let folder = tiny_job();
    let path = folder.path().join("recipe.toml");
    let recipe = fs::read_to_string(&path).expect("recipe").replace("rank = 4", "rank = 4000");
    fs::write(&path, recipe).expect("written");
    let stderr = refused(&run(&folder, &["train", "recipe.toml"]));
    assert!(stderr.contains("recipe.toml:9:8: `adapter.rank` is 4000"), "{stderr}");
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn an_adapter_of_another_base_is_refused_unless_forced() {
    let folder = tiny_job();
    let trained = run(&folder, &["train", "recipe.toml", "--set", "train.max_steps=1"]);
    assert!(trained.status.success(), "{}", text(&trained.stderr));
    // The same shapes, another weight: one float of the file's last tensor.
    let mut bytes = fs::read(tiny_model()).expect("base");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(folder.path().join("other.gguf"), bytes).expect("written");
    let merge = ["merge", "--base", "other.gguf", "--adapter", "runs/sums", "--out", "merged"];
    refused(&run(&folder, &merge));
    assert!(!folder.path().join("merged").exists());
    assert!(run(&folder, &[&merge[..], &["--force"]].concat()).status.success());
}

#[test]
fn data_and_recipes_can_be_inspected() {
    let folder = tiny_job();
    let data = json(&run(&folder, &["inspect", "train.jsonl", "--json"]));
    let expected = ("data", "prompt-completion", 21);
    assert_eq!(
        (&data["kind"], &data["format"], &data["examples"]),
        (&expected.0.into(), &expected.1.into(), &expected.2.into())
    );
    assert!(text(&run(&folder, &["inspect", "train.jsonl"]).stdout).contains("burnish check RECIPE"));
    let recipe = json(&run(&folder, &["inspect", "recipe.toml", "--json"]));
    assert_eq!((&recipe["kind"], &recipe["settings"]["data"]["train"]), (&"recipe".into(), &"train.jsonl".into()));
    assert!(text(&run(&folder, &["inspect", "recipe.toml"]).stdout).contains("data.train"));
    fs::write(folder.path().join("notes.txt"), "words\n").expect("written");
    assert!(refused(&run(&folder, &["inspect", "notes.txt"])).contains("data (.jsonl, .json, .csv, .parquet)"));
}

#[test]
fn a_recipe_in_yaml_gets_one_answer() {
    let folder = tiny_job();
    fs::write(folder.path().join("recipe.yaml"), "base_model: a\ndatasets:\n  - path: b\n").expect("written");
    let said = refused(&run(&folder, &["check", "recipe.yaml"]));
    assert!(said.contains("recipe.yaml: is not TOML, and a recipe is TOML"), "{said}");
    assert_eq!(said.matches("error:").count(), 1, "{said}");
}

#[test]
fn a_run_that_comes_to_its_end_did_not_stop_early() {
    let folder = tiny_job();
    let patience = ["--set", "train.early_stopping.patience_evals=1", "--set", "train.early_stopping.min_delta=1000"];
    let stopping = |eval_steps: &str, dir: &str| {
        let dir = format!("output.dir={dir}");
        let steps = format!("train.eval_steps={eval_steps}");
        let output = run(
            &folder,
            &[&["train", "recipe.toml", "--json", "--set", &dir, "--set", &steps], &patience[..]].concat(),
        );
        (json(&output)["stopped_early"] == true, text(&output.stderr).contains("stopped early"))
    };
    assert_eq!(stopping("5", "early"), (true, true));
    assert_eq!(stopping("12", "end"), (false, false));
}

/// A snapshot of `hf:org/tiny/tiny.gguf` at `v1` in the hub's cache: what Python would have left there.
fn cached_model(folder: &TempDir) {
    let repo = folder.path().join("hf/hub/models--org--tiny");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = repo.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).expect("folder");
    fs::create_dir_all(repo.join("refs")).expect("folder");
    fs::copy(tiny_model(), snapshot.join("tiny.gguf")).expect("copied");
    fs::write(repo.join("refs/v1"), commit).expect("written");
    fs::write(repo.join("refs/main"), commit).expect("written");
}

#[test]
fn an_adapter_names_the_revision_of_its_base() {
    let folder = tiny_job();
    cached_model(&folder);
    for (model, revision) in [("hf:org/tiny/tiny.gguf@v1", Value::from("v1")), ("hf:org/tiny/tiny.gguf", Value::Null)] {
        let base = format!("base.model={model}");
        let arguments = ["train", "recipe.toml", "--json", "--set", "train.max_steps=1", "--set", &base];
        json(&run(&folder, &arguments));
        let run_folder = folder.path().join("runs/sums");
        let config = fs::read(run_folder.join("adapter_config.json")).expect("a configuration");
        let config: Value = serde_json::from_slice(&config).expect("JSON");
        assert_eq!((&config["base_model_name_or_path"], &config["revision"]), (&"org/tiny".into(), &revision));
        fs::remove_dir_all(run_folder).expect("removed");
    }
}

#[test]
fn sizes_have_units_and_numbers_signs() {
    let folder = tiny_job();
    json(&run(&folder, &["train", "recipe.toml", "--json", "--set", "train.max_steps=1"]));
    let base = tiny_model().display().to_string();
    let merge = |size: &str, out: &str| {
        let model = ["--base", &base, "--adapter", "runs/sums", "--out", out, "--max-shard-bytes", size, "--json"];
        run(&folder, &[&["merge"], &model[..]].concat())
    };
    assert_eq!(json(&merge("100kB", "units"))["files"], json(&merge("100000", "bytes"))["files"]);
    assert!(json(&merge("100kB", "several"))["files"].as_array().is_some_and(|files| files.len() > 1));
    assert!(refused(&merge("0", "none")).contains("no amount of memory"));
    let hot = run(&folder, &["generate", "--base", &base, "--prompt", "x", "--temperature", "-1"]);
    assert!(refused(&hot).contains("temperature: expected 0"), "{}", text(&hot.stderr));
}

#[cfg(unix)]
#[test]
fn a_run_folder_that_cannot_be_filled_is_not_left() {
    let folder = tiny_job();
    // No file may grow beyond 8 KiB: the recipe is written, the tokenizer is not.
    let script = "ulimit -f 16; trap '' XFSZ; exec \"$0\" train recipe.toml";
    let mut command = burnish(&folder);
    let (program, environment) = (command.get_program().to_owned(), command.get_envs());
    let environment: Vec<_> = environment.map(|(key, value)| (key.to_owned(), value.map(ToOwned::to_owned))).collect();
    command = Command::new("sh");
    for (key, value) in environment {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    let output = command.arg("-c").arg(script).arg(program).current_dir(folder.path()).output().expect("started");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("tokenizer.json: cannot be written"), "{}", text(&output.stderr));
    assert!(!folder.path().join("runs").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_a_failure_and_a_reader_that_leaves_is_none() {
    let folder = tempfile::tempdir().expect("folder");
    let base = tiny_model();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let output = burnish(&folder).arg("inspect").arg(&base).stdout(full).output().expect("started");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("No space left"), "{}", text(&output.stderr));
    let mut child = burnish(&folder).arg("inspect").arg(&base).stdout(Stdio::piped()).spawn().expect("started");
    drop(child.stdout.take());
    assert!(child.wait().expect("ended").success());
}

#[test]
fn colour_is_for_those_who_ask() {
    let folder = tempfile::tempdir().expect("folder");
    let plain = run(&folder, &["inspect", "nothing"]);
    assert!(!text(&plain.stderr).contains('\x1b'));
    let coloured = run(&folder, &["inspect", "nothing", "--color", "always"]);
    assert!(text(&coloured.stderr).starts_with("\x1b[1;31merror:\x1b[0m"));
}

#[test]
fn an_unknown_instruction_set_is_named() {
    let folder = tiny_job();
    let output = burnish(&folder).args(["check", "recipe.toml"]).env("BURNISH_ISA", "avx9").output().expect("runs");
    let error = refused(&output);
    assert!(error.contains("BURNISH_ISA") && error.contains("avx512bf16"), "{error}");
    #[cfg(unix)]
    {
        let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"avx2\xff");
        let output = burnish(&folder).args(["check", "recipe.toml"]).env("BURNISH_ISA", name).output().expect("runs");
        assert!(refused(&output).contains("BURNISH_ISA: is `avx2"));
    }
}

#[test]
fn the_instruction_set_in_use_is_told_on_request() {
    let folder = tiny_job();
    let arguments = ["check", "recipe.toml", "--verbose"];
    let output = burnish(&folder).args(arguments).env("BURNISH_ISA", "portable").output().expect("runs");
    assert!(text(&output.stderr).contains("kernels for portable"), "{}", text(&output.stderr));
}
