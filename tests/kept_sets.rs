//! Encoded sets on disk: a second run takes them from there, and one that is damaged is made anew.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::cli::{burnish, json, tiny_job};

/// A job with enough rows to be kept.
fn large_job() -> TempDir {
    let folder = tiny_job();
    let row = |n: usize| format!("{{\"prompt\": \"{n} and {n} is \", \"completion\": \"{}\"}}\n", 2 * n);
    fs::write(folder.path().join("train.jsonl"), (0..1200).map(row).collect::<String>()).expect("written");
    folder
}

/// The facts about the training examples.
fn check(folder: &TempDir, threads: &str) -> serde_json::Value {
    let mut command = burnish(folder);
    json(&command.args(["check", "recipe.toml", "--json", "--threads", threads]).output().expect("starts"))["train"]
        .take()
}

fn files(folder: &TempDir) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.path().join("cache/encoded")).expect("the cache");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

#[test]
fn a_set_is_encoded_once_whatever_the_number_of_threads() {
    let folder = large_job();
    let first = check(&folder, "1");
    let kept = files(&folder);
    assert_eq!(kept.len(), 1, "21 validation rows are not worth a file");
    let bytes = fs::read(&kept[0]).expect("the set");
    assert_eq!(check(&folder, "2"), first);
    fs::remove_file(&kept[0]).expect("removed");
    assert_eq!(check(&folder, "3"), first);
    assert_eq!(fs::read(&kept[0]).expect("the set"), bytes, "the same bytes from another number of threads");

    // Another set under the same name: it is what a run takes.
    fs::remove_file(&kept[0]).expect("removed");
    let path = folder.path().join("train.jsonl");
    let rows = fs::read_to_string(&path).expect("rows");
    fs::write(&path, rows.lines().take(1100).map(|line| format!("{line}\n")).collect::<String>()).expect("written");
    assert_eq!(check(&folder, "2")["examples"], 1100);
    let other = files(&folder).remove(0);
    fs::rename(other, &kept[0]).expect("renamed");
    fs::write(&path, rows).expect("written");
    assert_eq!(check(&folder, "2")["examples"], 1100, "the kept set is used");
}

#[test]
fn a_damaged_set_is_made_anew() {
    let folder = large_job();
    let first = check(&folder, "2");
    let kept = files(&folder).remove(0);
    let bytes = fs::read(&kept).expect("the set");
    let mut changed = bytes.clone();
    changed[bytes.len() / 2] ^= 1;
    for damaged in [&bytes[..bytes.len() / 2], &changed, b""] {
        fs::write(&kept, damaged).expect("written");
        assert_eq!(check(&folder, "2"), first);
        assert_eq!(fs::read(&kept).expect("made anew"), bytes);
    }
}

#[test]
fn a_set_for_other_settings_is_another_one() {
    let folder = large_job();
    check(&folder, "2");
    for setting in ["data.max_seq_tokens=65", "data.overlong=truncate-prompt"] {
        let before = files(&folder).len();
        let output = burnish(&folder).args(["check", "recipe.toml", "--set", setting]).output().expect("starts");
        assert!(output.status.success());
        assert_eq!(files(&folder).len(), before + 1, "{setting}");
    }
}
