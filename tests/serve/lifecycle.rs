//! The begin and the end of a server, and the program around it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{self, HOST, JSON};
use super::{BASE, Running};
use crate::cli::{burnish as program, refused, run, tiny_model};

fn long_stream(model: &str) -> Vec<u8> {
    let messages = json!([{ "role": "user", "content": "Tell me" }]);
    let body =
        json!({ "model": model, "messages": messages, "n": 8, "temperature": 1, "max_tokens": 90, "stream": true });
    client::request("POST", "/v1/chat/completions", &[HOST, JSON], &body.to_string())
}

#[test]
fn a_server_that_ends_finishes_its_answers() {
    let server = Running::plain();
    let address = server.address;
    let mut stream = client::connect(address);
    stream.write_all(&long_stream(BASE)).expect("sent");
    let mut first = [0; 1];
    stream.read_exact(&mut first).expect("it has begun");
    server.end();
    let rest = client::response(&mut stream).expect("the rest");
    let events = rest.events();
    let ends = events.iter().filter(|chunk| chunk["choices"][0]["finish_reason"].is_string());
    assert_eq!(ends.count(), 8, "each answer has come to its end");
    assert!(std::net::TcpStream::connect(address).is_err(), "nobody listens");
}

#[test]
fn the_page_says_what_it_may_do() {
    let server = Running::plain();
    let page = server.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    let policy = page.header("content-security-policy");
    assert!(policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"), "{policy}");
    assert!(page.body.contains("<title>burnish</title>"));
    assert_eq!(page.header("x-content-type-options"), "nosniff");
}

#[test]
fn figures_count_requests_and_tokens() {
    let server = Running::plain();
    let answer = server.answer(BASE, "Tell me");
    assert_eq!(server.get("/nothing").status, 404);
    let tokens = answer["usage"]["completion_tokens"].as_f64().expect("a number");
    assert_eq!(server.figure("answer_tokens_total"), tokens);
    let text = server.get("/metrics").body;
    for line in [
        "burnish_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1",
        "burnish_requests_total{route=\"none\",status=\"404\"} 1",
        "burnish_first_token_seconds_count 1",
        "# TYPE burnish_request_seconds histogram",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
}

/// The program as a server, and the address at which it listens.
#[expect(clippy::zombie_processes, reason = "the caller waits for it; a test that fails ends its own process")]
fn started(folder: &TempDir, arguments: &[&str]) -> (Child, SocketAddr, BufReader<std::process::ChildStderr>) {
    let mut command = program(folder);
    command.args(["serve", "--port", "0", "--base"]).arg(tiny_model()).args(arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("stderr"));
    let mut said = String::new();
    loop {
        let mut line = String::new();
        assert!(stderr.read_line(&mut line).expect("text") > 0, "{said}");
        if let Some((_, rest)) = line.split_once("http://") {
            let address = rest.split('/').next().and_then(|address| address.parse().ok()).expect("an address");
            return (child, address, stderr);
        }
        said += &line;
    }
}

#[cfg(unix)]
#[test]
fn a_signal_ends_the_program_in_order() {
    let folder = tempfile::tempdir().expect("a folder");
    for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGINT, 130)] {
        let (mut child, address, mut stderr) = started(&folder, &["--verbose"]);
        assert_eq!(client::get(address, "/healthz").json(), json!({ "status": "ok" }));
        let canary = json!({ "model": BASE, "messages": [{ "role": "user", "content": "canary" }], "max_tokens": 2 });
        assert_eq!(client::post(address, "/v1/chat/completions", &canary.to_string()).status, 200);
        let mut stream = client::connect(address);
        stream.write_all(&long_stream(BASE)).expect("sent");
        let mut first = [0; 1];
        stream.read_exact(&mut first).expect("it has begun");
        // SAFETY: sends a signal to the child.
        assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
        assert!(client::response(&mut stream).expect("the rest").body.contains("[DONE]"));
        assert_eq!(child.wait().expect("it ends").code(), Some(code));
        let mut said = String::new();
        stderr.read_to_string(&mut said).expect("text");
        assert!(said.contains("POST /v1/chat/completions: 200") && said.contains("ending:"), "{said}");
        assert!(!said.contains("canary"), "{said}");
    }
}

#[test]
fn other_machines_need_a_key_and_ports_are_taken_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = tiny_model().display().to_string();
    let stderr = refused(&run(&folder, &["serve", "--base", "no such base", "--host", "0.0.0.0"]));
    assert!(stderr.contains("--host: is 0.0.0.0") && stderr.contains("--key-file"), "{stderr}");
    std::fs::write(folder.path().join("keys"), "short\n").expect("written");
    let stderr = refused(&run(&folder, &["serve", "--base", &base, "--host", "0.0.0.0", "--key-file", "keys"]));
    assert!(stderr.contains("keys:1: has 5 characters"), "{stderr}");
    let server = Running::plain();
    let port = server.address.port().to_string();
    let stderr = refused(&run(&folder, &["serve", "--base", &base, "--port", &port]));
    assert!(stderr.contains("cannot be listened at"), "{stderr}");
    let stderr = refused(&run(&folder, &["serve", "--base", &base, "--adapter", "a=none"]));
    assert!(stderr.contains("none"), "{stderr}");
    let _: Value = server.get("/v1/models").json();
}
