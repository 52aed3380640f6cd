//! Failures of the program: its messages, and the files that it leaves behind.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::cli::{json, refused, run, text, tiny_job, tiny_model};

/// Everything in a folder, hidden files included.
fn entries(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The tiny model as a Hugging Face folder `base` beside the job.
fn with_folder_base() -> TempDir {
    let folder = tiny_job();
    let base = tiny_model().display().to_string();
    let trained = run(&folder, &["train", "recipe.toml", "--set", "train.max_steps=1"]);
    assert!(trained.status.success(), "{}", text(&trained.stderr));
    let merge = ["merge", "--base", &base, "--adapter", "runs/sums", "--out", "base"];
    assert!(run(&folder, &merge).status.success());
    fs::remove_dir_all(folder.path().join("runs")).expect("removed");
    folder
}

#[test]
fn a_run_that_fails_before_it_has_an_adapter_leaves_no_folder() {
    let folder = with_folder_base();
    // Goes along with the tokenizer, once the run folder is there.
    fs::create_dir(folder.path().join("base/merges.txt")).expect("made");
    let train = ["train", "recipe.toml", "--set", "base.model=base", "--set", "output.dir=run"];
    assert!(refused(&run(&folder, &train)).contains("merges.txt: is a folder"));
    assert!(!folder.path().join("run").exists());
    fs::create_dir(folder.path().join("run")).expect("made");
    refused(&run(&folder, &train));
    assert!(entries(&folder.path().join("run")).is_empty(), "an empty folder that was there is empty again");
    fs::remove_dir(folder.path().join("base/merges.txt")).expect("removed");
    let trained = run(&folder, &train);
    assert!(trained.status.success(), "{}", text(&trained.stderr));
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_model_is_an_error_where_they_are_used() {
    let folder = with_folder_base();
    let path = folder.path().join("base/tokenizer.json");
    let mut tokenizer: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).expect("tokenizer.json")).expect("JSON");
    let mut added = tokenizer["added_tokens"][0].clone();
    (added["id"], added["content"], added["special"]) = (384.into(), "zzz".into(), true.into());
    tokenizer["added_tokens"].as_array_mut().expect("a list").push(added);
    fs::write(&path, tokenizer.to_string()).expect("written");
    let generate =
        |prompt: &str| run(&folder, &["generate", "--base", "base", "--prompt", prompt, "--max-tokens", "2"]);
    assert!(generate("a").status.success(), "{}", text(&generate("a").stderr));
    // What a person writes stays text; what the template writes is a token, and so is what an operator types for the model.
    assert!(generate("zzz").status.success());
    let raw = refused(&run(&folder, &["generate", "--base", "base", "--raw", "--prompt", "azzz"]));
    assert!(raw.contains("token 384 \"zzz\" lies beyond the 384 rows"), "{raw}");
    fs::write(folder.path().join("base/chat_template.jinja"), "zzz{{ messages[0].content }}").expect("written");
    let error = refused(&generate("a"));
    assert!(error.contains("token 384 \"zzz\" lies beyond the 384 rows"), "{error}");
}

#[test]
fn a_tokenizer_without_an_end_token_is_told() {
    let folder = with_folder_base();
    let check = ["check", "recipe.toml", "--set", "base.model=base"];
    let notice = "names no end token";
    assert!(!text(&run(&folder, &check).stdout).contains(notice));
    for name in ["tokenizer_config.json", "special_tokens_map.json", "config.json", "generation_config.json"] {
        let path = folder.path().join("base").join(name);
        let mut fields: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect(name)).expect("JSON");
        let fields_map = fields.as_object_mut().expect("an object");
        fields_map.remove("eos_token");
        fields_map.remove("eos_token_id");
        fs::write(&path, fields.to_string()).expect("written");
    }
    let checked = run(&folder, &check);
    assert!(checked.status.success() && text(&checked.stdout).contains(notice), "{}", text(&checked.stdout));
}

#[test]
fn an_unknown_scheme_is_told_with_its_adapter() {
    let folder = tiny_job();
    let trained = run(&folder, &["train", "recipe.toml", "--set", "train.max_steps=1"]);
    assert!(trained.status.success(), "{}", text(&trained.stderr));
    let path = folder.path().join("runs/sums/adapter_model.safetensors");
    let mut bytes = fs::read(&path).expect("adapter");
    let from = br#""burnish.quant":"none""#;
    let at = bytes.windows(from.len()).position(|window| window == from).expect("is in the file");
    bytes[at..at + from.len()].copy_from_slice(br#""burnish.quant":"nf\b""#);
    fs::write(&path, bytes).expect("written");
    let base = tiny_model().display().to_string();
    let generate = ["generate", "--base", &base, "--adapter", "runs/sums", "--prompt", "a", "--max-tokens", "1"];
    let error = refused(&run(&folder, &generate));
    assert!(error.contains("runs/sums: burnish.quant: is `nf\\u{8}`; known are none, nf4"), "{error}");
}

#[test]
fn data_of_which_nothing_is_left_is_told_with_the_reason() {
    let folder = tiny_job();
    let train = folder.path().join("train.jsonl");
    let check = |setting: &str| refused(&run(&folder, &["check", "recipe.toml", "--set", setting]));
    let error = check("data.max_seq_tokens=2");
    assert!(error.contains("train.jsonl: no example is left: 21 have more than 2 tokens"), "{error}");
    fs::write(&train, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}\n").expect("written");
    let error = check("train.seed=1");
    assert!(error.contains("0 have more than 64 tokens, in 1 nothing is trained"), "{error}");
    let recipe = fs::read_to_string(folder.path().join("recipe.toml")).expect("the recipe");
    let recipe = recipe.replace("valid = \"valid.jsonl\"", "valid_fraction = 0.5");
    fs::write(folder.path().join("recipe.toml"), recipe).expect("written");
    let error = check("train.seed=1");
    assert!(error.contains("recipe.toml:6:18: `data.valid_fraction` is 0.5 of 1 example;"), "{error}");
}

#[test]
fn an_evaluation_names_the_file_and_the_line() {
    let folder = tiny_job();
    let base = tiny_model().display().to_string();
    let eval =
        |more: &[&str]| refused(&run(&folder, &[&["eval", "--base", &base, "--data", "d.jsonl"], more].concat()));
    let row = |prompt: &str| format!("{{\"prompt\":{prompt:?},\"completion\":\"b\"}}\n");
    fs::write(folder.path().join("d.jsonl"), row("a") + "\n" + &row(&"c ".repeat(500))).expect("written");
    let error = eval(&[]);
    assert!(error.contains("d.jsonl:3: has ") && error.contains("at most 128 fit"), "{error}");
    fs::write(folder.path().join("d.jsonl"), row("a") + &row("")).expect("written");
    assert!(eval(&["--generate"]).contains("d.jsonl:2: has no tokens"));
}

#[test]
fn a_place_that_nothing_can_be_written_to_is_refused_at_once() {
    let folder = tiny_job();
    let base = tiny_model().display().to_string();
    for (out, expected) in [
        (".", "does not name a folder"),
        ("x/..", "does not name a folder"),
        ("train.jsonl/x", "train.jsonl: is not a folder"),
        ("train.jsonl", "exists already"),
    ] {
        let error = refused(&run(&folder, &["quantize", "--base", &base, "--out", out]));
        assert!(error.contains(expected), "{out}: {error}");
    }
    let setting = "output.dir=train.jsonl/x/y";
    let error = refused(&run(&folder, &["check", "recipe.toml", "--set", setting]));
    assert!(error.contains("`output.dir`: train.jsonl is not a folder"), "{error}");
}

#[cfg(unix)]
mod at_the_same_time {
    use super::*;
    use crate::cli::burnish;
    use std::process::{Child, Stdio};
    use std::time::Instant;

    fn start(folder: &TempDir, arguments: &[&str]) -> Child {
        let mut command = burnish(folder);
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("the program starts")
    }

    #[test]
    fn of_several_runs_that_want_a_folder_one_gets_it() {
        let folder = tiny_job();
        let train = ["train", "recipe.toml", "--set", "train.max_steps=2"];
        let mut runs: Vec<Child> = (0..3).map(|_| start(&folder, &train)).collect();
        let mut codes: Vec<_> = runs.iter_mut().map(|run| run.wait().expect("it ends").code()).collect();
        codes.sort();
        assert_eq!(codes, [Some(0), Some(2), Some(2)]);
        let metrics = fs::read_to_string(folder.path().join("runs/sums/metrics.jsonl")).expect("metrics");
        assert_eq!(metrics.lines().count(), 4, "of one run: {metrics}");
        assert_eq!(json(&run(&folder, &["inspect", "runs/sums", "--json"]))["kind"], "run");
    }

    /// Runs a command again and again, each time with a signal a little later, over all the time that it takes
    /// undisturbed; `out` is then whole or not there, and there is nothing beside it.
    fn interrupted(folder: &TempDir, arguments: &[&str], out: &str, kept: impl Fn(&[String]) -> bool) {
        const ROUNDS: u32 = 16;
        let before = entries(folder.path());
        let begin = Instant::now();
        assert!(start(folder, arguments).wait().expect("it ends").success());
        let undisturbed = begin.elapsed();
        fs::remove_dir_all(folder.path().join(out)).expect("removed");
        let mut stopped = 0;
        for round in 0..ROUNDS {
            let mut child = start(folder, arguments);
            std::thread::sleep(undisturbed * (round + 1) / (ROUNDS + 1));
            // SAFETY: sends a signal to the child. That it has ended already is no error.
            unsafe { libc::kill(child.id() as libc::pid_t, if round % 2 == 0 { libc::SIGINT } else { libc::SIGTERM }) };
            let status = child.wait().expect("it ends");
            stopped += u32::from(!status.success());
            let path = folder.path().join(out);
            if path.exists() {
                let left = entries(&path);
                assert!(kept(&left), "round {round}: {left:?}");
                fs::remove_dir_all(&path).expect("removed");
            }
            assert_eq!(entries(folder.path()), before, "round {round}");
        }
        assert!(stopped >= ROUNDS / 4, "only {stopped} of {ROUNDS} signals came while the command ran");
    }

    #[test]
    fn a_signal_at_any_moment_leaves_all_or_nothing() {
        let folder = tiny_job();
        let base = tiny_model().display().to_string();
        let whole = |name: &str| {
            let name = name.to_owned();
            move |left: &[String]| left.contains(&name) && left.iter().all(|file| !file.starts_with(".burnish-"))
        };
        let quantize = ["quantize", "--base", &base, "--out", "packed", "--max-shard-bytes", "20000"];
        interrupted(&folder, &quantize, "packed", whole("config.json"));
        let train = ["train", "recipe.toml", "--set", "output.dir=run", "--set", "train.eval_steps=1"];
        // In the first evaluation there is no adapter yet, and a state to go on from.
        let kept = |left: &[String]| whole("adapter_config.json")(left) || whole("checkpoints")(left);
        interrupted(&folder, &train, "run", kept);
    }
}
