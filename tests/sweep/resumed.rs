//! Sweeps that are killed, stopped or changed, and go on.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::{HALVING, job, results, swept, trial};
use crate::cli::{burnish, refused, run, text};

fn journal(folder: &TempDir) -> Option<Value> {
    serde_json::from_slice(&fs::read(folder.path().join("runs/sums/sweep.json")).ok()?).ok()
}

/// The figures that trials have shown so far, by turns.
fn shown(folder: &TempDir) -> usize {
    let trials = journal(folder).and_then(|journal| journal["trials"].as_array().cloned()).unwrap_or_default();
    trials.iter().filter_map(|trial| trial["figures"].as_array()).map(Vec::len).sum()
}

/// Begins the sweep, or goes on with it, and ends it by `signal` once trials have shown `turns` figures.
fn cut_off(folder: &TempDir, turns: usize, signal: i32) -> Option<i32> {
    let mut command = burnish(folder);
    command.args(["sweep", "recipe.toml", "--threads", "1", "--set", "train.checkpoint_steps=2"]);
    if folder.path().join("runs/sums/sweep.json").is_file() {
        command.arg("--resume");
    }
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    let began = Instant::now();
    while shown(folder) < turns && child.try_wait().expect("a child").is_none() {
        assert!(began.elapsed() < Duration::from_secs(120), "too slow");
        std::thread::sleep(Duration::from_millis(1));
    }
    // Somewhere within the next turn.
    std::thread::sleep(Duration::from_millis(5 + 7 * turns as u64 % 20));
    // SAFETY: sends a signal to the child.
    unsafe { libc::kill(child.id() as libc::pid_t, signal) };
    child.wait().expect("ends").code()
}

/// The trials without what differs from one machine to the next.
fn without_times(report: &Value) -> Value {
    let mut trials = report["trials"].clone();
    for trial in trials.as_array_mut().expect("trials") {
        trial.as_object_mut().expect("a trial").remove("seconds");
    }
    trials
}

#[test]
fn a_sweep_that_is_killed_again_and_again_comes_to_the_same_end() {
    let (whole, cut) = (job(HALVING), job(HALVING));
    let expected = swept(&whole, &["--set", "train.checkpoint_steps=2"]);
    for turns in [0, 1, 4, 6, 7, 9, 10] {
        cut_off(&cut, turns, libc::SIGKILL);
    }
    let report = swept(&cut, &["--resume", "--set", "train.checkpoint_steps=2"]);
    assert_eq!(without_times(&report), without_times(&expected));
    for one in report["trials"].as_array().expect("trials") {
        let name = one["name"].as_str().expect("a name");
        assert_eq!(results(&trial(&cut, name)), results(&trial(&whole, name)), "{name}");
    }
    // Once more, it does nothing.
    let metrics = |folder: &TempDir| {
        fs::metadata(trial(folder, "trial-1").join("run.json")).expect("a file").modified().expect("a time")
    };
    let before = metrics(&cut);
    assert_eq!(swept(&cut, &["--resume", "--set", "train.checkpoint_steps=2"])["trials"], report["trials"]);
    assert_eq!(metrics(&cut), before);
}

#[test]
fn a_signal_pauses_a_sweep_and_says_how_it_goes_on() {
    let folder = job(HALVING);
    let child = burnish(&folder)
        .args(["sweep", "recipe.toml", "--set", "train.epochs=2000", "--set", "sweep.rungs=[]"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let timings = trial(&folder, "trial-1").join("timings.jsonl");
    let began = Instant::now();
    while fs::metadata(&timings).map_or(0, |file| file.len()) == 0 {
        assert!(began.elapsed() < Duration::from_secs(120), "no step");
        std::thread::sleep(Duration::from_millis(2));
    }
    // SAFETY: sends a signal to the child.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    let told = text(&output.stdout);
    let command = "go on with: burnish sweep recipe.toml --set train.epochs=2000 --set 'sweep.rungs=[]' --resume";
    assert!(told.contains(command) && told.contains("0 finished, 6 to go on"), "{told}");
    assert!(trial(&folder, "trial-1/checkpoints").is_dir() && !trial(&folder, "trial-2").exists());
    let said = refused(&run(&folder, &["sweep", "recipe.toml"]));
    assert!(said.contains("which holds a sweep") && said.contains("--resume` goes on with it"), "{said}");
    let said = refused(&run(&folder, &["sweep", "recipe.toml", "--resume"]));
    assert!(said.contains("sweep.json: train.epochs was 2000 and is 4"), "{said}");
    assert!(said.contains("sweep.rungs was [] and is [0.125,0.5]"), "{said}");
}

#[test]
fn a_folder_of_something_else_is_left_alone() {
    let folder = job(HALVING);
    fs::create_dir_all(folder.path().join("runs/sums")).expect("made");
    fs::write(folder.path().join("runs/sums/notes.txt"), "mine").expect("written");
    for more in [&[][..], &["--resume"]] {
        let said = refused(&run(&folder, &[&["sweep", "recipe.toml"][..], more].concat()));
        assert!(said.contains("which exists and holds no sweep"), "{said}");
    }
    fs::write(folder.path().join("runs/sums/sweep.json"), "{\"trials\": 3}").expect("written");
    let said = refused(&run(&folder, &["sweep", "recipe.toml", "--resume"]));
    assert!(said.contains("sweep.json: is not the journal of a sweep"), "{said}");
}
