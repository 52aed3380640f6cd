//! OpenAI's protocol.

use base64::Engine as _;
use serde_json::{Value, json};

use super::{BASE, Running, adapter, asking, content, named};
use crate::cli::{burnish as program, text, tiny_model};

/// `base` with the fields of `more`.
fn with(mut base: Value, more: Value) -> Value {
    let fields = base.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    base
}

#[test]
fn an_answer_is_that_of_generate() {
    let server = Running::plain();
    let answer = server.answer(BASE, "What is it?");
    let folder = tempfile::tempdir().expect("a folder");
    let mut generate = program(&folder);
    generate.args(["generate", "--prompt", "What is it?", "--max-tokens", "12", "--compute", "f32", "--quant", "none"]);
    let generated = generate.arg("--base").arg(tiny_model()).output().expect("the program starts");
    assert!(generated.status.success(), "{}", text(&generated.stderr));
    assert_eq!(content(&answer).trim_end(), text(&generated.stdout).trim_end());
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
    let usage = &answer["usage"];
    let total =
        usage["prompt_tokens"].as_u64().expect("a number") + usage["completion_tokens"].as_u64().expect("a number");
    assert!(usage["prompt_tokens"].as_u64() > Some(3) && usage["total_tokens"] == total, "{usage}");
}

#[test]
fn a_stream_spells_the_whole_answer() {
    let server = Running::plain();
    let sampled = json!({ "temperature": 1.0, "seed": 5, "n": 2 });
    let body = with(asking(BASE, "Tell me"), sampled);
    let whole = server.post("/v1/chat/completions", &body).json();
    let streamed = with(body, json!({ "stream": true, "stream_options": { "include_usage": true } }));
    let answer = server.post("/v1/chat/completions", &streamed);
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/event-stream; charset=utf-8"));
    let events = answer.events();
    let (last, chunks) = events.split_last().expect("events");
    assert_eq!(
        (&last["choices"], &last["usage"]["completion_tokens"]),
        (&json!([]), &whole["usage"]["completion_tokens"])
    );
    for index in 0..2 {
        let of_index = |chunk: &&Value| chunk["choices"][0]["index"] == index;
        let deltas: Vec<&Value> = chunks.iter().filter(of_index).map(|chunk| &chunk["choices"][0]["delta"]).collect();
        assert_eq!(deltas[0]["role"], "assistant");
        assert!(deltas[1..].iter().all(|delta| delta.get("role").is_none()), "the role comes once");
        let text: String = deltas.iter().filter_map(|delta| delta["content"].as_str()).collect();
        assert_eq!(text, whole["choices"][index]["message"]["content"]);
        let reasons: Vec<&Value> =
            chunks.iter().filter(of_index).map(|chunk| &chunk["choices"][0]["finish_reason"]).collect();
        let (reason, before) = reasons.split_last().expect("reasons");
        assert_eq!(**reason, whole["choices"][index]["finish_reason"]);
        assert!(before.iter().all(|reason| reason.is_null()));
    }
    let texts: Vec<&Value> = (0..2).map(|index| &whole["choices"][index]["message"]["content"]).collect();
    assert_ne!(texts[0], texts[1], "each answer has a seed of its own");
    assert!(events.iter().all(|chunk| chunk["id"] == events[0]["id"] && chunk["created"] == events[0]["created"]));
    assert!(chunks.iter().all(|chunk| chunk["usage"].is_null() && chunk["object"] == "chat.completion.chunk"));
}

#[test]
fn a_seed_repeats_an_answer_and_no_seed_does_not() {
    let server = Running::plain();
    let ask = |seed: Value| {
        let body = with(asking(BASE, "Tell me"), json!({ "temperature": 1.5, "seed": seed, "max_tokens": 24 }));
        content(&server.post("/v1/chat/completions", &body).json()).to_owned()
    };
    assert_eq!(ask(json!(-3)), ask(json!(-3)));
    assert_ne!(ask(Value::Null), ask(Value::Null));
}

#[test]
fn an_answer_ends_before_a_stop_string() {
    let server = Running::plain();
    let whole = server.answer(BASE, "Tell me");
    let whole = content(&whole);
    let middle: String = whole.chars().skip(whole.chars().count() / 2).take(2).collect();
    let body = with(asking(BASE, "Tell me"), json!({ "stop": middle }));
    let stopped = server.post("/v1/chat/completions", &body).json();
    let expected = &whole[..whole.find(&middle).expect("a part of it")];
    assert_eq!((content(&stopped), &stopped["choices"][0]["finish_reason"]), (expected, &json!("stop")));
    let events = server.post("/v1/chat/completions", &with(body, json!({ "stream": true }))).events();
    let streamed: String = events.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(streamed, expected);
}

#[test]
fn log_probabilities_are_those_of_the_likeliest_tokens() {
    let server = Running::plain();
    let body = with(asking(BASE, "Tell me"), json!({ "logprobs": true, "top_logprobs": 3 }));
    let answer = server.post("/v1/chat/completions", &body).json();
    let tokens = answer["choices"][0]["logprobs"]["content"].as_array().expect("tokens");
    assert_eq!(Some(tokens.len() as u64), answer["usage"]["completion_tokens"].as_u64());
    for token in tokens {
        let likeliest = token["top_logprobs"].as_array().expect("alternatives");
        let values: Vec<f64> = likeliest.iter().map(|one| one["logprob"].as_f64().expect("a number")).collect();
        assert!(values.len() == 3 && values.is_sorted_by(|one, next| one >= next) && values[0] < 0.0, "{values:?}");
        assert_eq!(token["logprob"], likeliest[0]["logprob"], "a greedy answer has the likeliest");
    }
    let body = json!({ "model": BASE, "prompt": "Tell", "temperature": 0, "max_tokens": 4, "logprobs": 2 });
    let logprobs = &server.post("/v1/completions", &body).json()["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().map(Vec::len), Some(4), "{logprobs}");
    assert_eq!(logprobs["top_logprobs"][0].as_object().map(serde_json::Map::len), Some(2), "{logprobs}");
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let server = Running::plain();
    let tool = json!([{ "type": "function", "function": { "name": "add", "parameters": {} } }]);
    for (more, status, field, code) in [
        (json!({ "response_format": { "type": "grammar" } }), 400, "response_format", "unsupported_parameter"),
        (json!({ "tool_choice": "any", "tools": tool }), 400, "tool_choice", "unsupported_parameter"),
        (json!({ "chat_template": "{{ x }}" }), 400, "chat_template", "unsupported_parameter"),
        (json!({ "audio": {} }), 400, "audio", "unsupported_parameter"),
        (json!({ "frobnicate": 1 }), 400, "frobnicate", "unknown_parameter"),
        (json!({ "model": "../../etc/passwd" }), 404, "model", "model_not_found"),
        (json!({ "temperature": 2.1 }), 400, "temperature", ""),
        (json!({ "top_p": "1" }), 400, "top_p", ""),
        (json!({ "n": 1_000_000 }), 400, "n", ""),
        (json!({ "n": 0 }), 400, "n", ""),
        (json!({ "max_tokens": -1 }), 400, "max_tokens", ""),
        (json!({ "max_tokens": 1.5 }), 400, "max_tokens", ""),
        (json!({ "max_completion_tokens": 9_223_372_036_854_775_807u64 }), 400, "max_completion_tokens", ""),
        (json!({ "stop": vec!["x"; 17] }), 400, "stop", ""),
        (json!({ "top_logprobs": 5 }), 400, "top_logprobs", ""),
        (json!({ "logit_bias": { "x": 1 } }), 400, "logit_bias", ""),
        (json!({ "messages": [] }), 400, "messages", ""),
        (json!({ "messages": null }), 400, "messages", ""),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "x" } }] }] }),
            400,
            "messages[0].content[0].image_url.url",
            "",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": "x", "odd": 1 }] }),
            400,
            "messages[0].odd",
            "unknown_parameter",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": "word ".repeat(400) }] }),
            400,
            "messages",
            "context_length_exceeded",
        ),
        (json!({ "stream_options": { "include_usage": true } }), 400, "stream_options", ""),
        (json!({ "tools": tool }), 400, "messages", ""),
        (json!({ "tools": [{ "type": "retrieval" }] }), 400, "tools", ""),
    ] {
        let answer = server.post("/v1/chat/completions", &with(asking(BASE, "x"), more.clone()));
        let error = &answer.json()["error"];
        assert_eq!((answer.status, &error["param"]), (status, &json!(field)), "{more}: {error}");
        assert_eq!(error["code"].as_str().unwrap_or_default(), code, "{more}: {error}");
        assert!(error["message"].is_string() && error["type"] == "invalid_request_error", "{error}");
    }
    let harmless =
        json!({ "user": "u", "store": false, "metadata": {}, "response_format": { "type": "text" }, "stop": null });
    assert_eq!(server.post("/v1/chat/completions", &with(asking(BASE, "x"), harmless)).status, 200);
    let body = json!({ "model": BASE, "prompt": "x", "echo": true });
    assert_eq!(server.post("/v1/completions", &body).json()["error"]["param"], "echo");
}

#[test]
fn completions_take_texts_and_ids() {
    let server = Running::plain();
    let complete = |prompt: Value, more: Value| {
        let body = json!({ "model": BASE, "prompt": prompt, "temperature": 0, "max_tokens": 6 });
        let answer = server.post("/v1/completions", &with(body, more));
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer
    };
    let texts = complete(json!(["Tell me", "What"]), json!({})).json();
    let alone = complete(json!("What"), json!({})).json();
    assert_eq!(texts["choices"][1]["text"], alone["choices"][0]["text"]);
    assert_eq!(texts["choices"].as_array().map(Vec::len), Some(2));
    let ids = complete(json!([7, 8, 9]), json!({})).json();
    let lists = complete(json!([[7, 8, 9], [7, 8, 9]]), json!({})).json();
    assert_eq!(ids["choices"][0]["text"], lists["choices"][1]["text"]);
    assert_eq!((&ids["usage"]["prompt_tokens"], &lists["usage"]["prompt_tokens"]), (&json!(3), &json!(6)));
    let events = complete(json!("What"), json!({ "stream": true })).events();
    let text: String = events.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, alone["choices"][0]["text"]);
    for prompt in [json!([]), json!([1, "x"]), json!([[]]), json!([4_000_000_000u32]), json!(5), json!([-1])] {
        let body = json!({ "model": BASE, "prompt": prompt });
        assert_eq!(server.post("/v1/completions", &body).status, 400, "{prompt}");
    }
}

#[test]
fn embeddings_have_the_length_one_in_both_forms() {
    let server = Running::plain();
    let embed = |more: Value| {
        let body = json!({ "model": BASE, "input": ["Tell me", "What is it?"] });
        server.post("/v1/embeddings", &with(body, more)).json()
    };
    let numbers = embed(json!({}));
    let vector = |index: usize| -> Vec<f32> {
        serde_json::from_value(numbers["data"][index]["embedding"].clone()).expect("numbers")
    };
    let length: f32 = vector(0).iter().map(|value| value * value).sum();
    assert!((length - 1.0).abs() < 1e-5 && vector(0) != vector(1), "{length}");
    let bytes = embed(json!({ "encoding_format": "base64" }));
    let bytes = bytes["data"][1]["embedding"].as_str().expect("a text");
    let bytes = base64::engine::general_purpose::STANDARD.decode(bytes).expect("base64");
    let decoded: Vec<f32> =
        bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("four"))).collect();
    assert_eq!(decoded, vector(1));
}

#[test]
fn an_adapter_of_bare_prompts_takes_them_as_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let bare = adapter(&folder.path().join("bare"), "there you are", true);
    let server = Running::of(|options| options.adapters = vec![named("bare", &bare)]);
    let mut generate = program(&folder);
    generate.args(["generate", "--prompt", "hello ", "--max-tokens", "12", "--compute", "f32", "--quant", "none"]);
    generate.arg("--base").arg(tiny_model()).arg("--adapter").arg(&bare);
    let generated = text(&generate.output().expect("the program starts").stdout);
    assert_eq!(content(&server.answer("bare", "hello ")).trim_end(), generated.trim_end());
    let talk = json!([{ "role": "system", "content": "x" }, { "role": "user", "content": "y" }]);
    let refused = server.post("/v1/chat/completions", &json!({ "model": "bare", "messages": talk }));
    assert_eq!(refused.status, 400);
    assert!(refused.body.contains("bare prompts"), "{}", refused.body);
}

#[test]
fn control_tokens_in_a_message_are_text() {
    let server = Running::plain();
    let tokens = |question: &str| server.answer(BASE, question)["usage"]["prompt_tokens"].as_u64().expect("a number");
    assert!(tokens("<|im_end|>") > tokens("x") + 1, "it is several tokens, not the one that ends a turn");
}
