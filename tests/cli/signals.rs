//! Signals: a run ends with what it has learned, and one that was told to ignore them goes on.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::{burnish, json, run, text, tiny_job, tiny_model};

/// Waits until `path` is there.
pub fn wait_for(path: &Path) {
    for _ in 0..600 {
        if path.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("{} does not come", path.display());
}

#[test]
fn an_interrupted_run_keeps_its_best_adapter_and_says_how_to_go_on() {
    for (signal, code) in [(libc::SIGINT, 130), (libc::SIGTERM, 143), (libc::SIGHUP, 129)] {
        let folder = tiny_job();
        let mut command = burnish(&folder);
        command.args(["train", "recipe.toml", "--set", "train.epochs=100000", "--json"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        wait_for(&folder.path().join("runs/sums/adapter_model.safetensors"));
        // SAFETY: sends a signal to the child.
        assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("stopping: the state is being saved"));
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(report["interrupted"], true);
        assert_eq!(report["resume"], "burnish train runs/sums/recipe.toml --resume");
        let about = fs::read_to_string(folder.path().join("runs/sums/run.json")).expect("run.json");
        assert!(about.contains("finished"));
        let base = tiny_model().display().to_string();
        let evaluate = ["eval", "--base", &base, "--adapter", "runs/sums", "--data", "valid.jsonl", "--json"];
        let evaluated = json(&run(&folder, &evaluate));
        let (measured, reported) = (evaluated["loss"].as_f64(), report["validation"]["loss_after"].as_f64());
        assert!((measured.expect("a loss") - reported.expect("a loss")).abs() < 1e-6);
        // It goes on from there, up to another end.
        let steps = report["steps"].as_u64().expect("steps");
        let longer = format!("train.max_steps={}", steps + 3);
        let command = ["train", "runs/sums/recipe.toml", "--resume", "--json", "--set", &longer];
        let resumed = json(&run(&folder, &command));
        assert_eq!((resumed["steps"].as_u64(), &resumed["interrupted"]), (Some(steps + 3), &false.into()));
    }
}

#[test]
fn an_interrupted_run_has_the_exit_code_of_its_signal_whatever_verdict_is_required() {
    let folder = tiny_job();
    let path = folder.path().join("recipe.toml");
    let recipe = fs::read_to_string(&path).expect("the recipe");
    // Without validation examples there is no verdict, which would be exit code 1.
    fs::write(&path, recipe.replace("valid = \"valid.jsonl\"\n", "")).expect("written");
    let mut command = burnish(&folder);
    command.args(["train", "recipe.toml", "--set", "train.epochs=100000", "--require", "improved", "--json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    wait_for(&folder.path().join("runs/sums/adapter_model.safetensors"));
    // SAFETY: sends a signal to the child.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) }, 0);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(143), "{}", text(&output.stderr));
}

/// The program, started to ignore `signal`, as `nohup` and a shell's background jobs are.
fn ignoring(folder: &TempDir, signal: libc::c_int) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = burnish(folder);
    // SAFETY: `signal` may be called between fork and exec.
    unsafe {
        command.pre_exec(move || {
            libc::signal(signal, libc::SIG_IGN);
            Ok(())
        })
    };
    command
}

#[test]
fn a_signal_that_was_ignored_from_the_start_stays_ignored() {
    for signal in [libc::SIGHUP, libc::SIGINT] {
        let folder = tiny_job();
        let mut command = ignoring(&folder, signal);
        command.args(["train", "recipe.toml", "--set", "train.epochs=40", "--json"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        wait_for(&folder.path().join("runs/sums/adapter_model.safetensors"));
        // SAFETY: sends a signal to the child.
        assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(0), "signal {signal}: {}", text(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(report["interrupted"], false, "signal {signal}");
    }
}
