//! Signals and locks.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::{Results, checkpoints, job, metrics, runs, train, trained};
use crate::cli::signals::wait_for;
use crate::cli::{burnish, refused, text};

fn start(folder: &tempfile::TempDir, more: &[&str]) -> Child {
    let mut command = burnish(folder);
    command.args(["train", "recipe.toml"]).args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("starts")
}

fn send(child: &Child, signal: libc::c_int) {
    // SAFETY: sends a signal to the child.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
}

const LONG: [&str; 2] = ["--set", "data.max_seq_tokens=128"];

/// Makes the evaluation take long: so many rows of more than seventy tokens.
pub fn many_long_rows(path: &Path, rows: usize) {
    let row =
        |index: usize| format!("{{\"prompt\": \"{index}\", \"completion\": \"{}\"}}\n", " a b c d e f g".repeat(8));
    fs::write(path, (0..rows).map(row).collect::<String>()).expect("written");
}

#[test]
fn a_signal_in_the_middle_of_an_evaluation_loses_nothing_else() {
    let folder = job();
    let valid = folder.path().join("valid.jsonl");
    let few = fs::read(&valid).expect("rows");
    many_long_rows(&valid, 1000);
    let child = start(&folder, &[&LONG[..], &["--threads", "1"]].concat());
    wait_for(&runs(&folder).join("run.json"));
    // The evaluation has begun, or begins at once.
    std::thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    send(&child, libc::SIGTERM);
    let output = child.wait_with_output().expect("it ends");
    let took = began.elapsed();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(143), "{stderr}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(!metrics(&folder).contains("valid_loss"), "the evaluation was over already");
    assert_eq!(checkpoints(&folder), ["step-00000000"]);
    assert!(text(&output.stdout).contains("go on with: burnish train runs/sums/recipe.toml --resume"));
    // It goes on as a run that was never stopped.
    fs::write(&valid, few).expect("written");
    trained(&folder, &[&LONG[..], &["--resume", "--accept-change", "data"]].concat());
    let whole = job();
    trained(&whole, &LONG);
    assert_eq!(Results::of(&folder), Results::of(&whole));
}

#[test]
fn a_signal_in_a_later_evaluation_keeps_the_steps_before_it() {
    let folder = job();
    many_long_rows(&folder.path().join("valid.jsonl"), 300);
    let settings =
        ["--threads", "1", LONG[0], LONG[1], "--set", "train.checkpoint_steps=1000", "--set", "train.eval_steps=8"];
    let child = start(&folder, &settings);
    let is_there =
        || fs::read_to_string(runs(&folder).join("metrics.jsonl")).is_ok_and(|text| text.contains("\"step\":8,"));
    let began = Instant::now();
    while !is_there() {
        assert!(began.elapsed() < Duration::from_secs(60), "no step");
        std::thread::sleep(Duration::from_millis(1));
    }
    send(&child, libc::SIGINT);
    assert_eq!(child.wait_with_output().expect("it ends").status.code(), Some(130));
    assert_eq!(checkpoints(&folder), ["step-00000008"]);
    assert_eq!(metrics(&folder).matches("valid_loss").count(), 1, "the second evaluation was not finished");
    let on = [&settings[..], &["--resume", "--set", "train.max_steps=9"]].concat();
    trained(&folder, &on);
    // At 0, 8 and the end.
    assert_eq!(metrics(&folder).matches("valid_loss").count(), 3);
}

#[test]
fn the_second_signal_ends_at_once() {
    let folder = job();
    let child = start(&folder, &["--set", "train.epochs=100000"]);
    wait_for(&runs(&folder).join("checkpoints"));
    send(&child, libc::SIGTERM);
    send(&child, libc::SIGINT);
    let output = child.wait_with_output().expect("it ends");
    assert!([Some(130), Some(143)].contains(&output.status.code()), "{}", text(&output.stderr));
    trained(&folder, &["--resume", "--set", "train.epochs=1", "--accept-change", "recipe"]);
}

#[test]
fn a_signal_before_the_run_has_a_folder_leaves_none() {
    let folder = job();
    many_long_rows(&folder.path().join("train.jsonl"), 60_000);
    let child = start(&folder, &[]);
    std::thread::sleep(Duration::from_millis(150));
    let began = Instant::now();
    send(&child, libc::SIGTERM);
    assert_eq!(child.wait_with_output().expect("it ends").status.code(), Some(143));
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn a_folder_in_use_names_the_process() {
    let folder = job();
    let child = start(&folder, &["--set", "train.epochs=100000"]);
    wait_for(&runs(&folder).join("checkpoints"));
    for more in [&["--resume"][..], &[]] {
        let error = refused(&train(&folder, more));
        assert!(error.contains(&format!("runs/sums: is in use by process {}", child.id())), "{error}");
    }
    send(&child, libc::SIGKILL);
    child.wait_with_output().expect("it ends");
    trained(&folder, &["--resume", "--set", "train.epochs=1", "--accept-change", "recipe"]);
}
