//! Pictures in requests: the answers of `burnish generate --image`, and nothing else that a client might make of a picture.

use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::client::{self, HOST, JSON};
use super::{BASE, Running, content};
use crate::cli::{burnish as program, json as printed};
use crate::hostile_weights::fixture;
use crate::pictures::png;

/// The name of a model that sees pictures, and of its folder.
const SEEING: &str = "llava_clip";

fn base() -> PathBuf {
    fixture("vision").join(SEEING)
}

fn bytes(name: &str) -> Vec<u8> {
    fs::read(base().join("pictures").join(name)).expect("a fixture")
}

fn url(bytes: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(bytes))
}

fn shown(url: &str) -> Value {
    json!({ "type": "image_url", "image_url": { "url": url } })
}

/// A request whose one message has these parts.
fn asking(model: &str, parts: &[Value]) -> Value {
    let messages = json!([{ "role": "user", "content": parts }]);
    json!({ "model": model, "messages": messages, "temperature": 0, "max_tokens": 6 })
}

fn said(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

#[test]
fn an_answer_about_a_picture_is_that_of_generate() {
    let server = Running::over(&base(), |_| {});
    let folder = tempfile::tempdir().expect("a folder");
    let generated = |names: &[&str], prompt: &str| {
        let mut generate = program(&folder);
        generate.args(["generate", "--max-tokens", "6", "--compute", "f32", "--json", "--prompt", prompt, "--base"]);
        generate.arg(base());
        for name in names {
            generate.arg("--image").arg(base().join("pictures").join(name));
        }
        printed(&generate.output().expect("the program starts"))["answer"].clone()
    };
    for names in [&["wide.png"][..], &["tall.png", "square.png"], &["wide.png", "wide.png"]] {
        let mut parts: Vec<Value> = names.iter().map(|name| shown(&url(&bytes(name)))).collect();
        parts.push(said("Which colour?"));
        let expected = generated(names, "Which colour?");
        let answer = server.post("/v1/chat/completions", &asking(SEEING, &parts));
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(json!(content(&answer.json())), expected, "{names:?}");
        let mut body = asking(SEEING, &parts);
        body["stream"] = true.into();
        body["n"] = 2.into();
        let events = server.post("/v1/chat/completions", &body).events();
        for index in 0..2 {
            let of_index = events.iter().map(|event| &event["choices"][0]).filter(|choice| choice["index"] == index);
            let text: String = of_index.filter_map(|choice| choice["delta"]["content"].as_str()).collect();
            assert_eq!(json!(text), expected, "{names:?}");
        }
        let images: Vec<String> = names.iter().map(|name| STANDARD.encode(bytes(name))).collect();
        let messages = json!([{ "role": "user", "content": "Which colour?", "images": images }]);
        let options = json!({ "temperature": 0, "num_predict": 6 });
        let body = json!({ "model": SEEING, "messages": messages, "options": options, "stream": false });
        assert_eq!(server.post("/api/chat", &body).json()["message"]["content"], expected, "{names:?}");
    }
    // A conversation goes on after a picture, and one without any beside it.
    let jpeg = fs::read(fixture("pictures/rough.jpg")).expect("a fixture");
    let jpeg = format!("DATA:image/jpeg;base64,{}", STANDARD.encode(jpeg));
    let part = json!({ "type": "image_url", "image_url": { "url": jpeg, "detail": "low" } });
    let messages = json!([
        { "role": "user", "content": [part, said("Which colour?")] },
        { "role": "assistant", "content": "red" },
        { "role": "user", "content": "And which shape?" },
    ]);
    let body = json!({ "model": SEEING, "messages": messages, "max_tokens": 4 });
    let answer = server.post("/v1/chat/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let plain = asking(SEEING, &[said("Which colour?")]);
    let plain = server.post("/v1/chat/completions", &plain).json();
    assert_eq!(json!(content(&plain)), generated(&[], "Which colour?"));
    assert_eq!(server.get("/v1/models").json()["data"][0]["sees_pictures"], true);
}

#[test]
fn a_base_without_a_tower_refuses_pictures_in_a_sentence() {
    let server = Running::plain();
    let answer = server.post("/v1/chat/completions", &asking(BASE, &[shown(&url(&bytes("wide.png")))]));
    let error = &answer.json()["error"];
    assert_eq!((answer.status, error["type"].as_str()), (400, Some("invalid_request_error")));
    assert_eq!(error["param"], "messages[0].content[0].image_url.url");
    assert!(error["message"].as_str().expect("a text").contains("`smollm` sees no pictures"), "{error}");
    assert_eq!(server.get("/v1/models").json()["data"][0]["sees_pictures"], false);
}

#[test]
fn nothing_but_a_sound_picture_is_taken() {
    let server = Running::over(&base(), |_| {});
    let sound = bytes("wide.png");
    let bomb = png(60_000, 60_000, &[0x78, 0x9c, 0x01]);
    let path = base().join("pictures/wide.png").display().to_string();
    let of = |url: &str| asking(SEEING, &[said("x"), shown(url)]);
    let at_url = "messages[0].content[1].image_url.url";
    let mut refused = vec![
        (of("https://example.org/a.png"), at_url, "opens no address and no file"),
        (of(&format!("file://{path}")), at_url, "opens no address and no file"),
        (of(&path), at_url, "opens no address and no file"),
        (of("data:text/html;base64,aGk="), at_url, "opens no address and no file"),
        (of("data:image/svg+xml;base64,aGk="), at_url, "opens no address and no file"),
        (of("data:image/png,aGk="), at_url, "opens no address and no file"),
        (of(""), at_url, "opens no address and no file"),
        (of("data:image/png;base64,"), at_url, "neither a PNG nor a JPEG"),
        (of("data:image/png;base64,a!b"), at_url, "no base64"),
        (of("data:image/png;base64,aGk"), at_url, "no base64"),
        (of("data:image/png;base64,aGk="), at_url, "neither a PNG nor a JPEG"),
        (of(&url(&sound[..sound.len() / 2])), at_url, "cannot be decoded"),
        (of(&url(&bomb)), at_url, "60000 × 60000 pixels"),
    ];
    let one = |part: Value| asking(SEEING, &[part]);
    let sound = url(&sound);
    refused.extend([
        (one(json!({ "type": "image", "path": path })), "messages[0].content[0]", "\"image_url\""),
        (one(json!({ "type": "input_image", "image_url": sound })), "messages[0].content[0]", "\"image_url\""),
        (one(json!({ "type": "image_url", "image_url": sound })), "messages[0].content[0]", "is no picture"),
        (one(json!({ "type": "image_url", "image_url": {} })), "messages[0].content[0]", "is no picture"),
        (
            one(json!({ "type": "image_url", "image_url": { "url": sound, "path": path } })),
            "messages[0].content[0].image_url.path",
            "not a field",
        ),
        (
            one(json!({ "type": "image_url", "image_url": { "url": sound }, "path": path })),
            "messages[0].content[0].path",
            "not a field",
        ),
        (asking(SEEING, &vec![shown(&sound); 17]), "messages", "at most 16"),
        // A prompt that does not fit, before the tower sees its picture.
        (asking(SEEING, &[shown(&sound), said(&"x y ".repeat(600))]), "messages", "512 positions"),
    ]);
    let mut of_assistant = one(shown(&sound));
    of_assistant["messages"][0]["role"] = "assistant".into();
    refused.push((of_assistant, "messages[0]", "turn of the assistant"));
    let mut beside = one(said("x"));
    beside["messages"][0]["images"] = json!([sound]);
    refused.push((beside, "messages[0].images", "not a field"));
    for (body, field, expected) in refused {
        let answer = server.post("/v1/chat/completions", &body);
        let error = answer.json()["error"].clone();
        let place: String = body["messages"].to_string().chars().take(120).collect();
        assert_eq!(answer.status, 400, "{place}: {error}");
        assert_eq!(error["param"], field, "{place}: {error}");
        let message = error["message"].as_str().expect("a text");
        assert!(message.contains(expected) && !message.contains(path.as_str()), "{place}: {error}");
    }
    for images in [json!(["aGk="]), json!("aGk="), json!([7]), json!([sound])] {
        let messages = json!([{ "role": "user", "content": "x", "images": images }]);
        let answer = server.post("/api/chat", &json!({ "model": SEEING, "messages": messages }));
        assert!(answer.status == 400 && answer.json()["error"].is_string(), "{}", answer.body);
    }
    // The ids of a picture's rows are no tokens that a client may send.
    for prompt in [json!([1, 2_147_483_648_u32]), json!([1, 3_221_225_472_u32])] {
        let body = json!({ "model": SEEING, "prompt": prompt });
        assert_eq!(server.post("/v1/completions", &body).status, 400);
    }
    let answer = server.post("/v1/chat/completions", &one(shown(&sound)));
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[test]
fn bodies_with_pictures_may_be_larger_where_the_base_sees_them() {
    let limit = |options: &mut burnish::serve::ServeOptions| {
        (options.limits.body_bytes, options.limits.picture_body_bytes) = (16 << 10, 64 << 10);
    };
    let padded = |model: &str, bytes: usize| {
        let body = asking(model, &[said("x")]).to_string();
        format!("{body}{}", " ".repeat(bytes - body.len()))
    };
    let server = Running::over(&base(), limit);
    let status = |body: &str| client::post(server.address, "/v1/chat/completions", body).status;
    assert_eq!(status(&padded(SEEING, 64 << 10)), 200);
    let too_large = client::post(server.address, "/v1/chat/completions", &padded(SEEING, (64 << 10) + 1));
    assert_eq!(
        (too_large.status, too_large.json()["error"]["message"].as_str()),
        (413, Some("the body has more than 65536 bytes"))
    );
    // A body that does not say its length is one of the others.
    let body = padded(SEEING, 32 << 10);
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nconnection: close\r\n{HOST}\r\n{JSON}\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let chunked = format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    assert_eq!(client::raw(server.address, chunked.as_bytes()).expect("an answer").status, 413);
    let blind = Running::of(limit);
    assert_eq!(client::post(blind.address, "/v1/chat/completions", &padded(BASE, 32 << 10)).status, 413);
}
