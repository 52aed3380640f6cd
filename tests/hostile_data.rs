//! Broken and hostile data files: named errors, in bounded time, and no panic.

use std::path::Path;
use std::time::{Duration, Instant};

use burnish::data::{self, jsonl};

#[cfg(unix)]
#[test]
fn data_that_is_no_file_is_refused_without_waiting() {
    let folder = tempfile::tempdir().expect("a folder");
    let fifo = folder.path().join("fifo.jsonl");
    let status = std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo runs");
    assert!(status.success());
    let link = folder.path().join("loop.jsonl");
    std::os::unix::fs::symlink(&link, &link).expect("linked");
    for path in [fifo.as_path(), link.as_path(), folder.path(), Path::new("/dev/zero"), &folder.path().join("absent")] {
        let start = Instant::now();
        let error = data::read(path, None).expect_err("no file");
        assert_eq!(error.exit_code(), 2, "{}", path.display());
        assert!(error.to_string().contains(&path.display().to_string()));
        assert!(start.elapsed() < Duration::from_secs(20), "{}", path.display());
    }
}

#[test]
fn hostile_lines_are_errors_with_their_number() {
    let deep = format!("{{\"text\": {}1}}", "[".repeat(100_000));
    let long = format!("{{\"text\": \"{}\"}}", "a".repeat(17 << 20));
    for line in [
        &deep,
        &long,
        "{\"text\": \"a\", \"x\": NaN}",
        "{\"text\": \"a\", \"x\": -Infinity}",
        "{\"text\": \"a\", \"x\": 1e999}",
        "{\"text\": \"a\", \"x\": 1180591620717411303424}",
        "{\"text\": \"a\", \"text\": \"b\"}",
        "{\"text\": \"\\ud800\"}",
        "{\"text\": null}",
        "{\"text\": [\"a\"]}",
        "{\"messages\": []}",
        "{\"messages\": [1]}",
        "{\"messages\": [{\"role\": \"user\"}]}",
        "{\"messages\": [{\"role\": \"assistant\", \"content\": \"\", \"tool_calls\": [1]}]}",
        "{\"messages\": [{\"role\": \"assistant\", \"tool_calls\": \"f()\"}]}",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"tools\": {}}",
        "{\"prompt\": \"a\", \"completion\": 1}",
        "{\"instruction\": \"a\"}",
        "\"text\"",
    ] {
        let error = jsonl::parse(format!("\n{line}\n").as_bytes(), "d.jsonl", None).expect_err("hostile");
        assert!(error.to_string().starts_with("d.jsonl:2: "), "{}: {error}", &line[..line.len().min(60)]);
    }
    for bytes in [
        &b"PAR1\0\x01"[..],
        b"\xff\xfe{\0",
        b"\xfe\xff\0{",
        b"{\"text\": \"\xff\xfe\"}",
        b"\x1f\x8b\x08\x00",
        b"\0\0\0",
    ] {
        assert!(jsonl::parse(bytes, "d.jsonl", None).is_err());
    }
}
