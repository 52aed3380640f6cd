//! `burnish chat` with piped lines.

use std::fs;
use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::{burnish, refused, run, text, tiny_job, tiny_model};

/// The program with these lines on stdin.
fn chat(folder: &TempDir, arguments: &[&str], lines: &str) -> Output {
    let mut command = burnish(folder);
    command.args(["chat", "--max-tokens", "10", "--temperature", "0", "--compute", "f32", "--quant", "none", "--base"]);
    command.arg(tiny_model()).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    child.stdin.take().expect("stdin").write_all(lines.as_bytes()).expect("written");
    child.wait_with_output().expect("it ends")
}

fn answers(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = text(&output.stdout);
    let objects = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    objects.map(|object| object["answer"].as_str().expect("a text").to_owned()).collect()
}

#[test]
fn the_first_answer_is_that_of_generate_and_later_ones_know_the_earlier() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = tiny_model().display().to_string();
    let generate =
        ["generate", "--base", &base, "--prompt", "What?", "--max-tokens", "10", "--compute", "f32", "--quant", "none"];
    let generated = text(&run(&folder, &generate).stdout);
    let plain = chat(&folder, &[], "What?\n");
    assert_eq!(text(&plain.stdout).trim_end(), generated.trim_end());
    let told = answers(&chat(&folder, &["--json"], "What?\nAnd then?\n/undo\nAnd then?\n/new\nAnd then?\n"));
    assert_eq!(told[0], generated.trim_end_matches('\n'));
    assert_eq!(told[1], told[2], "an answer that is undone is not known");
    assert_ne!(told[1], told[3], "a new conversation knows nothing");
}

#[test]
fn a_saved_conversation_is_training_data() {
    let folder = tempfile::tempdir().expect("a folder");
    let lines =
        "/system Be brief.\nOne\\\ntwo\n//three\n/save talk.jsonl\n/new\n\"\"\"\nfour\n\"\"\"\n/save talk.jsonl\n";
    let output = chat(&folder, &["--json"], lines);
    let told = answers(&output);
    let saved = fs::read_to_string(folder.path().join("talk.jsonl")).expect("saved");
    let saved: Vec<Value> = saved.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let contents = |index: usize| -> Vec<&str> {
        let messages = saved[index]["messages"].as_array().expect("messages");
        messages.iter().map(|message| message["content"].as_str().expect("a text")).collect()
    };
    assert_eq!(contents(0), ["Be brief.", "One\ntwo", &told[0], "/three", &told[1]]);
    assert_eq!(contents(1), ["Be brief.", "four", &told[2]]);
    let inspected = run(&folder, &["inspect", "talk.jsonl", "--json"]);
    assert!(text(&inspected.stdout).contains("\"chat\""), "{}", text(&inspected.stdout));
}

#[test]
fn base_and_adapter_are_compared_from_one_seed() {
    let folder = tiny_job();
    let trained = run(&folder, &["train", "recipe.toml", "--set", "train.max_steps=2", "--quiet"]);
    assert!(trained.status.success(), "{}", text(&trained.stderr));
    let adapter = ["--adapter", "sums=runs/sums", "--json"];
    let output = chat(&folder, &adapter, "1 and 2 is\n/compare\n/compare 1 and 2 is\n/adapter smollm\n1 and 2 is\n");
    let told = answers(&output);
    // The adapter; base and adapter twice, the second time behind a turn, which the adapter of bare prompts does not see; the base.
    assert_eq!(told.len(), 6);
    assert_eq!((&told[0], &told[0]), (&told[2], &told[4]));
    assert_eq!(told[3], told[5]);
    assert!(told[0] != told[1] && told[1] != told[3], "{told:?}");
    let said = text(&output.stderr);
    assert!(said.contains("sums answers; it was trained on bare prompts"), "{said}");
    let shown = text(&chat(&folder, &adapter[..2], "/compare 1 and 2 is\n").stdout);
    assert!(shown.starts_with("smollm:\n") && shown.contains("\nsums:\n"), "{shown}");
}

#[test]
fn the_oldest_turns_make_room_for_new_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    // The model has 128 positions.
    let question = "some words that take room ".repeat(2);
    let output = chat(&folder, &[], &format!("{question}\n").repeat(6));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = text(&output.stderr);
    assert_eq!(said.matches("its oldest turns are left out").count(), 1, "{said}");
}

#[test]
fn a_line_that_cannot_be_answered_is_exit_code_2() {
    let folder = tempfile::tempdir().expect("a folder");
    for (lines, expected) in [
        ("/frobnicate\n", "/frobnicate: is no command"),
        ("/adapter none\n", "there is no `none`; known are smollm"),
        ("/compare x\n", "no adapter to compare"),
        ("/save\n", "names no file"),
        ("/save talk.jsonl\n", "nothing to save"),
    ] {
        let stderr = refused(&chat(&folder, &[], lines));
        assert!(stderr.contains(expected), "{lines}: {stderr}");
    }
    let long = format!("{}\n", "word ".repeat(400));
    assert!(refused(&chat(&folder, &[], &long)).contains("128 positions"));
    assert!(chat(&folder, &[], "/quit\nnot asked\n").stdout.is_empty());
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_the_answer_and_not_the_program() {
    use std::io::{BufRead, BufReader, Read};

    let folder = tempfile::tempdir().expect("a folder");
    let mut command = burnish(&folder);
    command.args(["chat", "--json", "--max-tokens", "100", "--temperature", "3", "--base"]).arg(tiny_model());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all("x\n/new\n".repeat(100).as_bytes()).expect("written");
    let mut stdout = BufReader::new(child.stdout.take().expect("stdout"));
    let mut rest = String::new();
    for _ in 0..3 {
        stdout.read_line(&mut rest).expect("an answer");
        // SAFETY: sends a signal to the child, which answers all the time.
        assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
        // A second signal before the first is heard would end the program at once.
        for _ in 0..3 {
            stdout.read_line(&mut rest).expect("an answer");
        }
    }
    drop(stdin);
    stdout.read_to_string(&mut rest).expect("the other answers");
    assert!(child.wait().expect("it ends").success());
    assert!(rest.contains("\"stopped\":true") && rest.contains("\"stopped\":false"), "{rest}");
    assert_eq!(rest.lines().count(), 100);
}
