//! `train --log-to`: a command that gets the metrics as they come.

use std::fs;

use crate::cli::{run, text, tiny_job};

#[cfg(unix)]
#[test]
fn a_command_gets_each_line_and_its_end_harms_nothing() {
    let adapter = |command: &[&str]| {
        let folder = tiny_job();
        let output = run(&folder, &[&["train", "recipe.toml"][..], command].concat());
        let stderr = text(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        let dir = folder.path().join("runs/sums");
        (folder, stderr, fs::read(dir.join("adapter_model.safetensors")).expect("an adapter"))
    };
    let (_, _, expected) = adapter(&[]);
    let (folder, _, found) = adapter(&["--log-to", "cat > got.jsonl; echo said"]);
    assert_eq!(found, expected);
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).expect("lines");
    assert_eq!(read("got.jsonl"), read("runs/sums/metrics.jsonl"));
    for command in ["exit 3", "head -n 1 > first.jsonl", "no-such-command"] {
        let (_, stderr, found) = adapter(&["--log-to", command]);
        assert_eq!(found, expected, "{command}");
        assert!(stderr.matches("the command of --log-to does not read any more").count() <= 1, "{stderr}");
    }
}
