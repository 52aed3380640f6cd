//! Requests that mean no good, and clients that leave.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use burnish::serve::Keys;
use serde_json::json;

use super::client::{self, HOST, JSON};
use super::{BASE, Running, asking};

const KEY: &str = "0123456789abcdefghij";

const ROUTES: [(&str, &str); 12] = [
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/smollm"),
    ("DELETE", "/v1/models/smollm"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/adapters/reload"),
    ("POST", "/api/chat"),
    ("POST", "/api/generate"),
    ("GET", "/api/votes"),
    ("POST", "/nothing/here"),
];

#[test]
fn nothing_opens_without_the_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys");
    fs::write(&file, format!("{KEY}\n")).expect("written");
    let keys = Keys::read(&file).expect("keys");
    let server = Running::of(|options| options.keys = keys);
    let status = |method: &str, path: &str, headers: &[&str]| {
        client::send(server.address, method, path, &[&[HOST, JSON], headers].concat(), "{}").status
    };
    let wrong = format!("authorization: Bearer {}", &KEY[1..]);
    let upper = format!("authorization: Bearer {}", KEY.to_uppercase());
    let bare = format!("authorization: {KEY}");
    let right = format!("authorization: Bearer {KEY}");
    let [wrong, upper, bare, right] = [&wrong, &upper, &bare, &right].map(String::as_str);
    for (method, path) in ROUTES {
        for headers in [&[][..], &[wrong], &[upper], &[bare], &["authorization: Bearer "], &[right, right]] {
            assert_eq!(status(method, path, headers), 401, "{method} {path} {headers:?}");
        }
        assert_eq!(status(method, &format!("{path}?key={KEY}&api_key={KEY}"), &[]), 401, "{method} {path}");
        assert_ne!(status(method, path, &[right]), 401, "{method} {path}");
    }
    assert_eq!(status("GET", "/healthz", &[]), 200);
    assert_eq!(status("GET", "/", &[]), 200);
    assert_eq!(status("GET", "/healthz/../metrics", &[]), 401);
    let lines = server.owner.lines.lock().expect("a lock").clone();
    assert!(!lines.contains(KEY) && lines.contains("401"), "{lines}");
}

#[test]
fn foreign_hosts_and_pages_are_refused() {
    let server = Running::of(|options| {
        options.hosts = vec!["box.example".to_owned()];
        options.origins = vec!["https://page.example".to_owned()];
    });
    let status =
        |method: &str, headers: &[&str]| client::send(server.address, method, "/v1/models", headers, "").status;
    assert_eq!(status("GET", &[HOST]), 200);
    assert_eq!(status("GET", &["host: BOX.example:80"]), 200);
    for host in ["evil.com", "localhost.evil.com", "2130706433", "127.0.0.1.", "[::1%25lo]"] {
        assert_eq!(status("GET", &[&format!("host: {host}")]), 403, "{host}");
    }
    assert_eq!(status("GET", &[]), 400, "no host");
    assert_eq!(status("GET", &[HOST, "host: evil.com"]), 400, "two hosts");
    for origin in ["http://evil.com", "null", "https://page.example.evil.com"] {
        assert_eq!(status("GET", &[HOST, &format!("origin: {origin}")]), 403, "{origin}");
    }
    assert_eq!(status("GET", &[HOST, "origin: http://localhost"]), 200, "the page of the server");
    let asked = ["access-control-request-method: POST", HOST];
    let allowed = client::send(
        server.address,
        "OPTIONS",
        "/v1/models",
        &[&asked[..], &["origin: https://page.example"]].concat(),
        "",
    );
    assert_eq!((allowed.status, allowed.header("access-control-allow-origin")), (204, "https://page.example"));
    assert_eq!(status("OPTIONS", &[&asked[..], &["origin: http://evil.com"]].concat()), 403);
    assert_ne!(status("OPTIONS", &asked), 204);
}

#[test]
fn bodies_are_json_and_small_and_come_in_time() {
    let server = Running::of(|options| {
        options.limits.body_bytes = 1000;
        options.limits.body_time = Duration::from_millis(300);
    });
    let path = "/v1/chat/completions";
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx", ""] {
        let headers = [HOST, &format!("content-type: {kind}")];
        assert_eq!(client::send(server.address, "POST", path, &headers, "{}").status, 415, "{kind}");
    }
    let with_charset = [HOST, "content-type: application/json; charset=utf-8"];
    let body = asking(BASE, "x").to_string();
    assert_eq!(client::send(server.address, "POST", path, &with_charset, &body).status, 200);
    assert_eq!(client::post(server.address, path, &format!("{{\"user\": \"{}\"}}", "x".repeat(1000))).status, 413);
    let endless = format!(
        "POST {path} HTTP/1.1\r\n{HOST}\r\n{JSON}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n{}",
        "100\r\n".to_owned() + &"x".repeat(256) + "\r\n"
    )
    .repeat(1)
        + &format!("100\r\n{}\r\n", "x".repeat(256)).repeat(8);
    assert_eq!(client::raw(server.address, endless.as_bytes()).expect("a response").status, 413);
    for text in ["", "{", "[]", "null", "{\"a\": 1, \"a\": 2}", "\u{feff}{}", "{\"model\": \"\\ud800\"}"] {
        let status = client::post(server.address, path, text).status;
        assert_eq!(status, 400, "{text}");
    }
    assert_eq!(client::post(server.address, path, &"[".repeat(900)).status, 400);
    let begun = Instant::now();
    let slow = format!("POST {path} HTTP/1.1\r\n{HOST}\r\n{JSON}\r\ncontent-length: 50\r\nconnection: close\r\n\r\n{{");
    assert_eq!(client::raw(server.address, slow.as_bytes()).expect("a response").status, 408);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn slow_and_broken_headers_end_the_connection() {
    let server = Running::of(|options| options.limits.header_time = Duration::from_millis(300));
    let begun = Instant::now();
    for begin in ["", "GET / HTTP/1.1\r\nhost: local"] {
        let mut stream = client::connect(server.address);
        stream.write_all(begin.as_bytes()).expect("sent");
        // Closed, with a response or without.
        let answer = client::response(&mut stream);
        assert!(answer.is_none_or(|answer| answer.status == 408), "{begin}");
    }
    // One byte at a time gains no time.
    let mut stream = client::connect(server.address);
    let sent = (0..40).take_while(|_| {
        std::thread::sleep(Duration::from_millis(50));
        stream.write_all(b"x").is_ok()
    });
    assert!(sent.count() < 40);
    assert!(begun.elapsed() < Duration::from_secs(10));
    let many: Vec<String> = (0..100).map(|index| format!("x-{index}: y")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(client::send(server.address, "GET", "/healthz", &many, "").status, 431);
    let long = format!("x: {}", "y".repeat(40_000));
    // The connection may be reset over what the server has not read.
    let answer = client::raw(server.address, &client::request("GET", "/healthz", &[&long], ""));
    assert!(answer.is_none_or(|answer| answer.status == 431));
    for broken in [
        "GET / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        "GET / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: localhost\r\nx y: z\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        "GET / HTTP/9.9\r\nhost: localhost\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
    ] {
        let answer = client::raw(server.address, broken.as_bytes());
        assert!(answer.is_none_or(|answer| (400..500).contains(&answer.status)), "{broken:?}");
    }
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn a_name_never_becomes_a_path() {
    let server = Running::plain();
    for name in
        ["../smollm", "..%2fsmollm", "/proc/self/environ", "smollm\u{0}", "\\\\?\\C:", "", "smollm/", "./smollm"]
    {
        let answer = server.post("/v1/chat/completions", &asking(name, "x"));
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &json!("model_not_found")), "{name}");
    }
    for path in ["/v1/models/../../etc/passwd", "/v1/models/%2e%2e%2f", "/..", "/index.html", "/page.html"] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    assert_eq!(client::send(server.address, "PUT", "/v1/models", &[HOST], "").status, 405);
}

#[test]
fn beyond_its_connections_the_server_says_so() {
    let server = Running::of(|options| options.limits.connections = 2);
    let held: Vec<_> = (0..2).map(|_| client::connect(server.address)).collect();
    // They are accepted in order.
    assert_eq!(server.get("/healthz").status, 503);
    drop(held);
    let begun = Instant::now();
    while client::raw(server.address, &client::request("GET", "/healthz", &[HOST], ""))
        .is_none_or(|answer| answer.status != 200)
    {
        assert!(begun.elapsed() < Duration::from_secs(10), "the places come back");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn beyond_its_answers_the_server_says_so_and_keeps_what_it_took() {
    let server = Running::of(|options| options.limits.answers = 2);
    let body = || {
        let messages = json!([{ "role": "user", "content": "Tell me" }]);
        json!({ "model": BASE, "messages": messages, "temperature": 0, "max_tokens": 90, "logit_bias": {} })
    };
    let server = &server;
    // The tiny model may be done before the next request comes.
    for _ in 0..20 {
        let answers: Vec<_> = std::thread::scope(|scope| {
            let asked: Vec<_> =
                (0..12).map(|_| scope.spawn(move || server.post("/v1/chat/completions", &body()))).collect();
            asked.into_iter().map(|answer| answer.join().expect("an answer")).collect()
        });
        let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
        assert!(answers.iter().all(|answer| [200, 429].contains(&answer.status)), "{answers:?}");
        let taken: Vec<_> = answers.iter().filter(|answer| answer.status == 200).map(|answer| answer.json()).collect();
        assert!(taken.iter().all(|answer| super::content(answer) == super::content(&taken[0])) && !taken.is_empty());
        if let Some(refused) = refused.first() {
            assert_eq!(refused.header("retry-after"), "1");
            assert_eq!(refused.json()["error"]["code"], "queue_full");
            return;
        }
    }
    panic!("no request was refused");
}

#[test]
fn a_client_that_leaves_ends_its_answers() {
    let server = Running::plain();
    let messages = json!([{ "role": "user", "content": "Tell me" }]);
    let body =
        json!({ "model": BASE, "messages": messages, "n": 16, "temperature": 1.5, "max_tokens": 90, "stream": true });
    let streamed = client::request("POST", "/v1/chat/completions", &[HOST, JSON], &body.to_string());
    let whole = body.to_string().replace("true", "false");
    let whole = client::request("POST", "/v1/chat/completions", &[HOST, JSON], &whole);
    for bytes in [&streamed, &whole] {
        let before = server.figure("answers_cancelled_total");
        let begun = Instant::now();
        // The tiny model may be done before the client has left.
        while server.figure("answers_cancelled_total") <= before {
            assert!(begun.elapsed() < Duration::from_secs(30), "nothing is cancelled");
            let mut stream = client::connect(server.address);
            stream.write_all(bytes).expect("sent");
            std::thread::sleep(Duration::from_millis(5));
            drop(stream);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    // Within requests, too, at any byte.
    for length in (0..streamed.len()).step_by(7) {
        client::connect(server.address).write_all(&streamed[..length]).expect("sent");
    }
    let begun = Instant::now();
    while server.figure("answers_running") + server.figure("answers_waiting") > 0.0
        || server.figure("connections") > 1.0
    {
        assert!(begun.elapsed() < Duration::from_secs(10), "every place comes back");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(server.post("/v1/chat/completions", &asking(BASE, "x")).status, 200);
}
