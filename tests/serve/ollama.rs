//! Ollama's protocol.

use serde_json::{Value, json};

use super::{BASE, Running, content};

fn lines(body: &str) -> Vec<Value> {
    body.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn answers_come_in_lines_or_whole() {
    let server = Running::plain();
    let messages = json!([{ "role": "user", "content": "What is it?" }]);
    let options = json!({ "temperature": 0, "num_predict": 12, "num_ctx": 4096 });
    let expected = server.answer(BASE, "What is it?");
    let expected = content(&expected);
    let body = json!({ "model": format!("{BASE}:latest"), "messages": messages, "options": options });
    let streamed = server.post("/api/chat", &body);
    assert_eq!(streamed.header("content-type"), "application/x-ndjson");
    let streamed = lines(&streamed.body);
    let (last, before) = streamed.split_last().expect("lines");
    let text: String = streamed.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
    assert_eq!(text, expected);
    assert!(last["done"] == true && before.iter().all(|line| line["done"] == false));
    assert!(last["eval_count"].as_u64() > Some(0) && last["total_duration"].as_u64() > Some(0), "{last}");

    let body = json!({ "model": BASE, "messages": messages, "options": options, "stream": false });
    assert_eq!(server.post("/api/chat", &body).json()["message"]["content"], expected);
    let body = json!({ "model": BASE, "prompt": "What is it?", "options": options, "stream": false });
    assert_eq!(server.post("/api/generate", &body).json()["response"], expected);
    assert_eq!(server.post("/api/generate", &json!({ "model": BASE })).json()["done_reason"], "load");
    assert_eq!(server.get("/api/tags").json()["models"][0]["name"], BASE);
}

#[test]
fn errors_are_ollamas() {
    let server = Running::plain();
    for (body, status) in [
        (json!({ "model": "none", "messages": [] }), 404),
        (json!({ "model": BASE, "messages": [{ "role": "user", "content": "x" }], "format": "yaml" }), 400),
        (json!({ "model": BASE, "messages": [{ "role": "user", "content": "x" }], "options": { "mirostat": 1 } }), 400),
        (json!({ "model": BASE, "messages": [{ "role": "user", "content": "x", "images": ["aGk="] }] }), 400),
    ] {
        let answer = server.post("/api/chat", &body);
        assert!(
            answer.status == status && answer.json()["error"].is_string(),
            "{body}: {} {}",
            answer.status,
            answer.body
        );
    }
}
