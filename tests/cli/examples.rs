//! The examples in the help of each command: every command has some, and each does what it says.

use std::fs;
use std::path::Path;

use burnish::cli::examples::EXAMPLES;
use serde_json::json;
use tempfile::TempDir;

use super::{burnish, run, text, tiny_model};

/// Commands whose examples are only parsed, and why.
const ONLY_PARSED: &[(&str, &str)] = &[
    ("advise", "it times this machine"),
    ("pull", "it needs the hub"),
    ("serve", "it runs until it is stopped"),
    ("sweep", "its twelve trials take their time"),
    ("ui", "it runs until it is stopped"),
];

/// The words of every command that does something.
fn commands(command: &clap::Command, before: &str, found: &mut Vec<String>) {
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        let words = format!("{before}{}", inner.get_name());
        match inner.get_subcommands().next() {
            Some(_) => commands(inner, &format!("{words} "), found),
            None => found.push(words),
        }
    }
}

/// A row of the shape that a data file has, short enough for a tiny base.
fn short_row(content: &str, number: usize) -> String {
    let row: serde_json::Value = serde_json::from_str(content.lines().next().expect("a row")).expect("JSON");
    let row = match &row {
        _ if row["label"].is_string() => {
            let label = if number.is_multiple_of(2) { "even" } else { "odd" };
            json!({ "text": format!("number {number}"), "label": label })
        }
        _ if row["messages"].is_array() => json!({ "messages": [
            { "role": "user", "content": format!("number {number}") }, { "role": "assistant", "content": number.to_string() }
        ] }),
        _ if row["prompt"].is_string() => {
            json!({ "prompt": format!("number {number} is "), "completion": number.to_string() })
        }
        _ => row,
    };
    row.to_string()
}

/// A folder as the examples find it: recipes and data of the repository, short, for a tiny base.
fn prepared() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in ["recipes", "datasets"] {
        fs::create_dir(folder.path().join(name)).expect("made");
        for entry in fs::read_dir(root.join(name)).expect("a folder") {
            let path = entry.expect("an entry").path();
            let content = fs::read_to_string(&path).expect("UTF-8");
            let content = match path.extension().and_then(|ending| ending.to_str()) {
                Some("toml") => content
                    .replace("\"smollm2-135m-instruct\"", &format!("{:?}", tiny_model()))
                    .replace("\n[train]\n", "\n[train]\nmax_steps = 12\n"),
                // No validation row is a training row.
                Some("jsonl") => {
                    let first = if path.display().to_string().ends_with(".valid.jsonl") { 100 } else { 0 };
                    (first..first + 24).map(|number| short_row(&content, number) + "\n").collect()
                }
                _ => content,
            };
            fs::write(folder.path().join(name).join(path.file_name().expect("a name")), content).expect("written");
        }
    }
    for (from, to) in [("axolotl/lora_llama3.yml", "axolotl.yml"), ("unsloth/notebook.py", "notebook.py")] {
        fs::copy(root.join("tests/import").join(from), folder.path().join(to)).expect("copied");
    }
    folder
}

#[test]
fn every_command_has_examples_in_its_help() {
    let mut commands = Vec::new();
    self::commands(&burnish::cli::command(), "", &mut commands);
    let folder = tempfile::tempdir().expect("a folder");
    for command in commands {
        let examples = EXAMPLES.iter().find(|(words, _)| *words == command);
        let (_, examples) =
            examples.unwrap_or_else(|| panic!("`burnish {command}` has no examples: src/cli/examples.rs"));
        let words: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = text(&run(&folder, &words).stdout);
        let (_, shown) = help.split_once("Examples:").unwrap_or_else(|| panic!("{help}"));
        for (about, line) in *examples {
            let words: Vec<&str> = shown.split_whitespace().filter(|word| *word != "\\").collect();
            let expected: Vec<&str> = line.split_whitespace().collect();
            assert!(words.windows(expected.len()).any(|window| window == expected), "{line}\n{help}");
            assert!(about.len() > 10 && line.starts_with(&format!("burnish {command}")), "{line}");
        }
    }
}

#[test]
fn every_example_runs() {
    let folder = prepared();
    let base = tiny_model();
    for (command, examples) in EXAMPLES {
        if burnish::cli::command().find_subcommand(command.split(' ').next().expect("a word")).is_none() {
            continue;
        }
        for (_, line) in *examples {
            let (line, into) = line.split_once(" > ").map_or((*line, None), |(line, file)| (line, Some(file)));
            let words = crate::tidy::words(line);
            let parsed = burnish::cli::command().try_get_matches_from(&words);
            if let Err(error) = parsed {
                panic!("{line}: {error}");
            }
            if ONLY_PARSED.iter().any(|(name, _)| name == command) {
                continue;
            }
            let words = words.iter().skip(1).map(|word| match word.as_str() {
                "smollm2-135m-instruct" => base.display().to_string(),
                word => word.to_owned(),
            });
            let output = burnish(&folder).args(words).output().expect("the program starts");
            assert!(output.status.success(), "{line}\n{}{}", text(&output.stdout), text(&output.stderr));
            if let Some(file) = into {
                assert!(!output.stdout.is_empty(), "{line}");
                fs::write(folder.path().join(file), output.stdout).expect("written");
            }
        }
    }
    for written in [
        "answers.jsonl",
        "labels.jsonl",
        "clean.jsonl",
        "notebook.toml",
        "library.toml",
        "merged",
        "tickets.gguf",
        "adapters/both",
        "packed",
        "events",
        "look.html",
        "man1/burnish-train.1",
    ] {
        assert!(folder.path().join(written).exists(), "{written}");
    }
}
