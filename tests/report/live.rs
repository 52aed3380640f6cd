//! `burnish ui`: the page of the runs in a folder, over a loopback socket.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use burnish::serve::{Host, watch_runs};
use serde_json::{Value, json};

use super::hostile::write_run;

struct Owner {
    ready: Mutex<mpsc::Sender<SocketAddr>>,
    is_ending: AtomicBool,
}

impl Host for Owner {
    fn ready(&self, address: SocketAddr) {
        self.ready.lock().expect("a lock").send(address).expect("someone waits");
    }

    fn line(&self, _: &str) {}

    fn warn(&self, _: &str) {}

    fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Relaxed)
    }
}

/// The head and the body of an answer to a request.
fn get(address: SocketAddr, path: &str, headers: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    let host = if headers.contains("host:") { String::new() } else { format!("host: {address}\r\n") };
    write!(stream, "GET {path} HTTP/1.1\r\n{host}{headers}connection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_ascii_lowercase(), body.to_owned())
}

/// The next list of runs on a stream of events.
fn next_list(stream: &mut TcpStream, read: &mut String) -> Vec<Value> {
    loop {
        if let Some((event, rest)) = read.split_once("\n\n").map(|(event, rest)| (event.to_owned(), rest.to_owned())) {
            *read = rest;
            if let Some((_, data)) = event.split_once("event: runs\ndata: ") {
                return serde_json::from_str(data.trim()).expect("a list");
            }
            continue;
        }
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).expect("an event");
        assert!(count > 0, "the stream ended");
        // Chunks of the transfer lie around whole events.
        let text = String::from_utf8_lossy(&bytes[..count]).replace("\r\n", "\n");
        read.push_str(&text);
    }
}

#[test]
fn the_page_follows_the_runs_of_a_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    write_run(&folder.path().join("sweep/a & b"));
    fs::create_dir_all(folder.path().join("data")).expect("made");
    let (sender, receiver) = mpsc::channel();
    let owner = Arc::new(Owner { ready: Mutex::new(sender), is_ending: AtomicBool::new(false) });
    let server = {
        let (owner, path) = (owner.clone(), folder.path().to_owned());
        std::thread::spawn(move || watch_runs(&path, "127.0.0.1:0".parse().expect("an address"), owner))
    };
    let address = receiver.recv_timeout(Duration::from_secs(30)).expect("ready");

    let (head, page) = get(address, "/", "");
    assert!(head.starts_with("http/1.1 200") && head.contains("frame-ancestors 'none'"), "{head}");
    assert!(page.contains("{\"live\":true}"));
    for foreign in ["host: evil.example\r\n", "origin: http://evil.example\r\n"] {
        assert!(get(address, "/api/data?run=x", foreign).0.starts_with("http/1.1 403"), "{foreign}");
    }
    assert!(get(address, "/api/other", "").0.starts_with("http/1.1 404"));

    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    write!(stream, "GET /api/events HTTP/1.1\r\nhost: {address}\r\n\r\n").expect("sent");
    let mut read = String::new();
    let mut list = next_list(&mut stream, &mut read);
    if list.is_empty() {
        // The first look at the folder had not come to its end.
        list = next_list(&mut stream, &mut read);
    }
    let name = "sweep/a & b";
    assert_eq!((list.len(), &list[0]["name"], &list[0]["state"]), (1, &name.into(), &"failed".into()));
    let data = |query: &str| -> Value {
        let (head, body) = get(address, &format!("/api/data?{query}"), "");
        assert!(head.starts_with("http/1.1 200"), "{head}");
        serde_json::from_str(&body).expect("JSON")
    };
    let run_data = data("run=sweep%2Fa+%26+b")["runs"][0].clone();
    assert_eq!((&run_data["name"], run_data["metrics"].as_array().map(Vec::len)), (&name.into(), Some(20)));
    assert_eq!(data("run=..%2F..%2Fetc")["runs"], json!([]), "names are looked up, and are no paths");

    // A line more is seen, and a page that is loaded again has every line.
    let metrics = folder.path().join(name).join("metrics.jsonl");
    let more = fs::read_to_string(&metrics).expect("metrics") + "{\"step\":20,\"loss\":1.0,\"learning_rate\":1e-4}\n";
    fs::write(&metrics, more).expect("written");
    let list = next_list(&mut stream, &mut read);
    assert_eq!(list[0]["steps"], 20);
    assert_eq!(data("run=sweep%2Fa+%26+b")["runs"][0]["metrics"].as_array().map(Vec::len), Some(21));
    let plain = folder.path().join("plain");
    fs::create_dir_all(&plain).expect("made");
    fs::write(plain.join("run.json"), "{}").expect("written");
    let list = next_list(&mut stream, &mut read);
    assert_eq!(list.len(), 2);
    let both = data("run=plain&run=sweep%2Fa+%26+b");
    assert_eq!(both["comparison"]["runs"].as_array().map(Vec::len), Some(2));

    owner.is_ending.store(true, Ordering::Relaxed);
    server.join().expect("no panic").expect("ended");
    assert!(watch_runs(Path::new("nowhere"), "127.0.0.1:0".parse().expect("an address"), owner).is_err());
}
