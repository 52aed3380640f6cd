//! A hub on the loopback interface, that answers as the real one does, or worse.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use burnish::Error;
use burnish::pull::Freshness;
use burnish::pull::hub::{Hub, Wanted};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(super) const REPO: &str = "org/model";

pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: BTreeMap<String, String>,
}

#[derive(Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    /// Only so much of the body is sent before the connection drops.
    pub(super) cut: Option<usize>,
    pub(super) framing: Framing,
}

/// How the end of a body is known.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// By its announced length.
    #[default]
    Length,
    /// Sent in chunks; the last one is empty.
    Chunks,
    /// When the connection is closed.
    Close,
}

pub(super) fn answer(status: u16, headers: Vec<(&'static str, String)>, body: &[u8]) -> Answer {
    Answer { status, headers, body: body.to_vec(), ..Answer::default() }
}

pub(super) struct FakeHub {
    pub(super) port: u16,
    /// `METHOD path [range]` of every request.
    pub(super) log: Arc<Mutex<Vec<String>>>,
    pub(super) folder: TempDir,
}

impl FakeHub {
    /// A hub that answers with `respond`, which also gets the number of requests for this path so far.
    pub(super) fn new(respond: impl Fn(&Request, usize, u16) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("address").port();
        let log = Arc::new(Mutex::new(Vec::new()));
        let seen = log.clone();
        thread::spawn(move || {
            let mut counts = BTreeMap::new();
            for stream in listener.incoming().flatten() {
                let Some(request) = read_request(&stream) else { continue };
                let range = request.headers.get("range").map_or(String::new(), |range| format!(" {range}"));
                let token = request.headers.get("authorization").map_or("", |_| " token");
                let entry = format!("{} {}{range}{token}", request.method, request.path);
                seen.lock().expect("log").push(entry);
                let count = counts.entry(format!("{} {}", request.method, request.path)).or_insert(0);
                let answer = respond(&request, *count, port);
                *count += 1;
                write_answer(stream, &request, &answer);
            }
        });
        Self { port, log, folder: tempfile::tempdir().expect("folder") }
    }

    pub(super) fn client(&self) -> Hub {
        Hub {
            endpoint: format!("http://127.0.0.1:{}", self.port),
            cache: self.folder.path().join("hub"),
            token: None,
            offline: false,
        }
    }

    pub(super) fn fetch(&self) -> Result<PathBuf, Error> {
        fetch(&self.client(), Freshness::Newest)
    }

    pub(super) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().expect("log"))
    }

    pub(super) fn repo_folder(&self) -> PathBuf {
        self.folder.path().join("hub/models--org--model")
    }

    /// The file of the model's weights in the cache's blobs.
    pub(super) fn weights_blob(&self) -> PathBuf {
        self.repo_folder().join("blobs").join(sha256(&weights()))
    }
}

pub(super) fn fetch(hub: &Hub, freshness: Freshness) -> Result<PathBuf, Error> {
    hub.fetch(REPO, "main", &Wanted::Safetensors, freshness, &mut |_| {})
}

pub(super) fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let headers = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).filter_map(|line| {
        let (name, value) = line.split_once(": ")?;
        Some((name.to_lowercase(), value.to_owned()))
    });
    Some(Request { method, path, headers: headers.collect() })
}

pub(super) fn write_answer(mut stream: TcpStream, request: &Request, answer: &Answer) {
    let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &match answer.framing {
        Framing::Length => format!("Content-Length: {}\r\n\r\n", answer.body.len()),
        Framing::Chunks => "Transfer-Encoding: chunked\r\n\r\n".to_owned(),
        Framing::Close => "\r\n".to_owned(),
    };
    let sent = &answer.body[..answer.cut.unwrap_or(answer.body.len())];
    let body = match answer.framing {
        _ if request.method == "HEAD" => Vec::new(),
        Framing::Chunks => {
            let chunks =
                sent.chunks(10).map(|chunk| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
            let end = if answer.cut.is_none() { &b"0\r\n\r\n"[..] } else { &[] };
            [chunks.collect::<Vec<_>>().concat(), end.to_vec()].concat()
        }
        Framing::Length | Framing::Close => sent.to_vec(),
    };
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).and_then(|()| stream.flush());
}

pub(super) fn weights() -> Vec<u8> {
    (0..300_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) const TOKENIZER: &str = "{\"model\": {}, \"added_tokens\": []}";

/// Git's id of a blob: `printf CONTENT | git hash-object --stdin`.
pub(super) fn git_blob_id(content: &str) -> &'static str {
    match content {
        "{}" => "9e26dfeeb6e641a33dae4961196235bdb965b21b",
        TOKENIZER => "24b946e2a446c0ab8e76492e92603eeedbe769e7",
        other => panic!("no id is known of {other}"),
    }
}

/// A repository as the hub serves it: small files itself, large ones by a redirect to another host.
pub(super) fn repository(request: &Request, port: u16) -> Answer {
    let files =
        ["README.md", "config.json", "model.safetensors", "onnx/model.onnx", "pytorch_model.bin", "tokenizer.json"];
    let siblings: Vec<_> = files.iter().map(|file| serde_json::json!({ "rfilename": file })).collect();
    let listing = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
    let small = |body: &str| answer(200, vec![("ETag", format!("\"{}\"", git_blob_id(body)))], body.as_bytes());
    let resolve = format!("/org/model/resolve/{COMMIT}/");
    match request.path.as_str() {
        "/api/models/org/model/revision/main" => answer(200, vec![], listing.as_bytes()),
        "/store/weights" => stored(request, &weights()),
        path => match path.strip_prefix(&resolve) {
            Some("config.json") => small("{}"),
            Some("tokenizer.json") => small(TOKENIZER),
            Some("model.safetensors") => {
                let (etag, size) = (format!("\"{}\"", sha256(&weights())), weights().len().to_string());
                let target = format!("http://localhost:{port}/store/weights");
                answer(302, vec![("X-Linked-Etag", etag), ("X-Linked-Size", size), ("Location", target)], b"moved")
            }
            _ => answer(404, vec![], b"not found"),
        },
    }
}

/// A store that honours `Range`.
pub(super) fn stored(request: &Request, content: &[u8]) -> Answer {
    let start =
        request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match start {
        Some(start) if start < content.len() => {
            let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
            answer(206, vec![("Content-Range", range)], &content[start..])
        }
        Some(_) => answer(416, vec![], b""),
        None => answer(200, vec![], content),
    }
}
