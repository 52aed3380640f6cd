//! A client of HTTP/1.1 that sends what it is told to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// The first line and the headers, in lower case.
    pub head: String,
    /// The body, without the framing of chunks.
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The value of a header that is there.
    pub fn header(&self, name: &str) -> &str {
        let line = self.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.unwrap_or_else(|| panic!("no {name} in {}", self.head))
    }

    /// The objects of a stream of events; the last one is `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        let events = self.body.split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':'));
        let data: Vec<&str> = events.map(|event| event.strip_prefix("data: ").expect("an event")).collect();
        let (last, objects) = data.split_last().expect("events");
        assert_eq!(*last, "[DONE]", "{}", self.body);
        objects.iter().map(|object| serde_json::from_str(object).expect("JSON")).collect()
    }
}

/// A connection that does not wait for ever.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    stream
}

/// Sends bytes as they are and reads the response to the end of the connection; `None` where there is none.
pub fn raw(address: SocketAddr, bytes: &[u8]) -> Option<Answer> {
    let mut stream = connect(address);
    // A server that has seen enough may close while the rest is sent.
    let _ = stream.write_all(bytes);
    response(&mut stream)
}

/// The response on a connection that the server closes behind it.
pub fn response(stream: &mut TcpStream) -> Option<Answer> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8(bytes[..end].to_vec()).expect("text").to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let body = &bytes[end + 4..];
    let body = if head.contains("transfer-encoding: chunked") { without_chunks(body) } else { body.to_vec() };
    Some(Answer { status, head, body: String::from_utf8(body).expect("text") })
}

fn without_chunks(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).expect("text"), 16).expect("a length");
        if length == 0 {
            break;
        }
        body.extend_from_slice(&bytes[end + 2..end + 2 + length]);
        bytes = &bytes[end + 4 + length..];
    }
    body
}

/// A request with these header lines.
pub fn request(method: &str, path: &str, headers: &[&str], body: &str) -> Vec<u8> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
        .into_bytes()
}

pub const JSON: &str = "content-type: application/json";
pub const HOST: &str = "host: localhost";

pub fn send(address: SocketAddr, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
    raw(address, &request(method, path, headers, body)).expect("a response")
}

pub fn post(address: SocketAddr, path: &str, body: &str) -> Answer {
    send(address, "POST", path, &[HOST, JSON], body)
}

pub fn get(address: SocketAddr, path: &str) -> Answer {
    send(address, "GET", path, &[HOST], "")
}
