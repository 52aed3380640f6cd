//! Answers that are held to a format, and calls that are demanded.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burnish::model::BaseFiles;
use burnish::text::Tokenizer;
use serde_json::{Map, Value, json};

use super::{BASE, Running, adapter, asking, client, content, named};
use crate::cli::tiny_model;
use crate::constrained::{cases, indenting};

/// A request for an answer by a schema, which is a random choice within it; the model would indent for ever.
fn asking_for(schema: &Value, more: Value) -> Value {
    let tokenizer = Tokenizer::of_base(&BaseFiles::open(&tiny_model()).expect("a base")).expect("a tokenizer");
    let bias: Map<String, Value> = indenting(&tokenizer).iter().map(|id| (id.to_string(), json!(-100))).collect();
    let mut body = asking(BASE, "Tell me");
    let fields = body.as_object_mut().expect("an object");
    let described = json!({ "name": "answer", "schema": schema, "strict": true });
    fields.insert("response_format".to_owned(), json!({ "type": "json_schema", "json_schema": described }));
    fields.extend(
        [("temperature", json!(1)), ("max_tokens", json!(90)), ("logit_bias", bias.into())]
            .map(|(key, value)| (key.to_owned(), value)),
    );
    fields.extend(more.as_object().expect("an object").clone());
    body
}

#[test]
fn answers_are_valid_streamed_or_not_and_each_is_as_alone() {
    let server = Running::plain();
    for (seed, (schema, is_valid)) in (1..).zip(cases()) {
        let body = asking_for(&schema, json!({ "n": 2, "seed": seed }));
        let whole = server.post("/v1/chat/completions", &body);
        assert_eq!(whole.status, 200, "{schema}: {}", whole.body);
        let whole = whole.json();
        let streamed =
            server.post("/v1/chat/completions", &asking_for(&schema, json!({ "n": 2, "seed": seed, "stream": true })));
        let chunks = streamed.events();
        for index in 0..2 {
            let choice = &whole["choices"][index];
            let text = choice["message"]["content"].as_str().expect("a text");
            assert_eq!(choice["finish_reason"], "stop", "{schema}: {text}");
            let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{schema}: {error}: {text}"));
            assert!(is_valid(&value), "{schema}: {text}");
            let of_index = chunks.iter().filter(|chunk| chunk["choices"][0]["index"] == index);
            let pieces: String =
                of_index.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
            assert_eq!(pieces, text, "{schema}");
            let alone = asking_for(&schema, json!({ "seed": seed + index }));
            assert_eq!(content(&server.post("/v1/chat/completions", &alone).json()), text, "{schema}");
        }
    }
}

#[test]
fn an_object_is_an_object_and_a_cut_answer_says_so() {
    let server = Running::plain();
    let tokenizer = Tokenizer::of_base(&BaseFiles::open(&tiny_model()).expect("a base")).expect("a tokenizer");
    let end = tokenizer.token_to_id("}").expect("a token").to_string();
    let mut body = asking(BASE, "Tell me");
    body["response_format"] = json!({ "type": "json_object" });
    let cut = server.post("/v1/chat/completions", &body).json();
    assert!(content(&cut).starts_with('{') && cut["choices"][0]["finish_reason"] == "length", "{cut}");
    body["logit_bias"] = json!({ end: 100 });
    let answer = server.post("/v1/chat/completions", &body).json();
    let found: Value = serde_json::from_str(content(&answer)).expect("JSON");
    assert_eq!((found, &answer["choices"][0]["finish_reason"]), (json!({}), &json!("stop")));
    for body in [json!({ "format": "json" }), json!({ "format": { "enum": ["red"] } })] {
        let mut asked = json!({ "model": BASE, "prompt": "x", "stream": false, "options": { "num_predict": 20, "temperature": 0 } });
        asked.as_object_mut().expect("an object").extend(body.as_object().expect("an object").clone());
        let answer = server.post("/api/generate", &asked).json();
        let text = answer["response"].as_str().expect("a text");
        assert!(text.starts_with('{') || (text == "\"red\"" && answer["done_reason"] == "stop"), "{answer}");
        let (Value::Object(mut chat), messages) = (asked, json!([{ "role": "user", "content": "x" }])) else {
            panic!()
        };
        chat.shift_remove("prompt");
        chat.insert("messages".to_owned(), messages);
        assert_eq!(server.post("/api/chat", &chat.into()).json()["done_reason"], answer["done_reason"]);
    }
}

#[test]
fn formats_that_cannot_be_held_are_refused_by_name() {
    let server = Running::plain();
    let of = |schema: Value| json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    for (format, reason) in [
        (json!({ "type": "grammar" }), "json_object"),
        (json!({}), "type"),
        (json!({ "type": "json_schema" }), "json_schema"),
        (json!({ "type": "json_schema", "json_schema": { "name": "x" } }), "schema"),
        (json!({ "type": "json_object", "depth": 2 }), "depth"),
        (of(json!(true)), "is not an object"),
        (of(json!({ "type": "array", "uniqueItems": true })), "uniqueItems"),
        (of(json!({ "type": "array", "maxItems": 1_000_000_000_000u64 })), "maxItems"),
        (of(json!({ "$ref": "file:///etc/passwd" })), "file:///etc/passwd"),
        (of(json!({ "pattern": "(".repeat(60_000), "type": "string" })), "pattern"),
        (of(json!({ "description": "x".repeat(1 << 20) })), "bytes"),
    ] {
        let mut body = asking(BASE, "x");
        body["response_format"] = format.clone();
        let begun = Instant::now();
        let answer = server.post("/v1/chat/completions", &body);
        assert!(begun.elapsed() < Duration::from_secs(5));
        let error = &answer.json()["error"];
        assert_eq!((answer.status, &error["type"]), (400, &json!("invalid_request_error")), "{error}");
        let param = error["param"].as_str().expect("a field");
        assert!(param.starts_with("response_format"), "{error}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(reason)), "{reason}: {error}");
    }
    let body = asking(BASE, "x")
        .to_string()
        .replace("\"temperature\"", &format!("\"response_format\": {}, \"temperature\"", nested(10_000)));
    assert_eq!(client::post(server.address, "/v1/chat/completions", &body).status, 400);
    let body = json!({ "model": BASE, "messages": [{ "role": "user", "content": "x" }], "format": "yaml" });
    assert_eq!(server.post("/api/chat", &body).status, 400);
    assert_eq!(server.post("/v1/chat/completions", &asking(BASE, "x")).status, 200);
}

/// A template that shows tools, short enough for the tiny model's positions, with calls in markup of its own.
const TEMPLATE: &str = "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}{% for message in messages %}<|im_start|>\
    {% if message.tool_calls %}{% for call in message.tool_calls %}~~{\"name\": \"{{ call.function.name }}\", \"parameters\": \
    {{ call.function.arguments | tojson }}}~~{% endfor %}{% else %}{{ message.content }}{% endif %}<|im_end|>{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>{% endif %}";

#[test]
fn a_demanded_call_has_valid_arguments() {
    let folder = tempfile::tempdir().expect("a folder");
    let tuned = adapter(&folder.path().join("tuned"), "one two three four", false);
    fs::remove_file(tuned.join("tokenizer.json")).expect("removed");
    fs::write(tuned.join("chat_template.jinja"), TEMPLATE).expect("written");
    let server = Running::of(|options| options.adapters = vec![named("tuned", &tuned)]);
    let small = json!({ "type": "integer", "minimum": 0, "maximum": 9 });
    let add = json!({
        "type": "object",
        "properties": { "a": { "$ref": "#/$defs/small" }, "b": { "$ref": "#/$defs/small" } },
        "required": ["a", "b"],
        "additionalProperties": false,
        "$defs": { "small": small },
    });
    let tool = |name: &str, parameters: &Value| json!({ "type": "function", "function": { "name": name, "parameters": parameters } });
    let tools = json!([tool("add", &add), tool("now", &Value::Null)]);
    let ask = |choice: Value, more: Value| {
        let mut body = asking_for(&json!({}), json!({ "model": "tuned", "tools": tools, "tool_choice": choice }));
        let fields = body.as_object_mut().expect("an object");
        fields.shift_remove("response_format");
        fields.extend(more.as_object().expect("an object").clone());
        server.post("/v1/chat/completions", &body)
    };
    let named = |name: &str| json!({ "type": "function", "function": { "name": name } });
    let check = |call: &Value| {
        let arguments: Value =
            serde_json::from_str(call["function"]["arguments"].as_str().expect("a text")).expect("JSON");
        let is_small = |key: &str| arguments[key].as_u64().is_some_and(|number| number <= 9);
        match call["function"]["name"].as_str() {
            Some("add") => assert!(is_small("a") && is_small("b"), "{call}"),
            Some("now") => assert_eq!(arguments, json!({})),
            _ => panic!("{call}"),
        }
    };
    let mut called = Vec::new();
    for seed in 0..6 {
        let answer = ask(json!("required"), json!({ "seed": seed }));
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer = answer.json();
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
        let calls = choice["message"]["tool_calls"].as_array().expect("calls");
        assert_eq!((calls.len(), &choice["message"]["content"]), (1, &Value::Null));
        check(&calls[0]);
        called.push(calls[0]["function"]["name"].clone());
        let events = ask(json!("required"), json!({ "seed": seed, "stream": true })).events();
        let call =
            events.iter().find_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array()).expect("calls");
        assert_eq!(call[0]["function"], calls[0]["function"]);
    }
    assert!(called.contains(&json!("add")) && called.contains(&json!("now")), "{called:?}");
    for name in ["add", "now"] {
        let answer = ask(named(name), json!({ "n": 2 })).json();
        for index in 0..2 {
            let call = &answer["choices"][index]["message"]["tool_calls"][0];
            assert_eq!(call["function"]["name"], name, "{answer}");
            check(call);
        }
    }
    // The markup before the call belongs to the prompt, in which the two tokens of `~~` are new.
    let tokens = |answer: client::Answer| answer.json()["usage"]["prompt_tokens"].as_u64().expect("a number");
    let plain = tokens(ask(json!("auto"), json!({ "max_tokens": 1 })));
    assert_eq!(tokens(ask(named("add"), json!({ "max_tokens": 1 }))), plain + 2);
    for (choice, more) in [
        (named("none"), json!({})),
        (json!("any"), json!({})),
        (json!("required"), json!({ "tools": [] })),
        (json!("auto"), json!({ "response_format": { "type": "json_object" } })),
        (
            json!("required"),
            json!({ "tools": [tool("odd", &json!({ "type": "object", "properties": { "a": { "not": {} } } }))] }),
        ),
    ] {
        let answer = ask(choice.clone(), more);
        let param = answer.json()["error"]["param"].as_str().expect("a field").to_owned();
        assert!(
            answer.status == 400 && ["tool_choice", "tools", "response_format"].contains(&param.as_str()),
            "{choice}: {}",
            answer.body
        );
    }
}

/// A copy of an adapter with another chat template.
fn with_template(tuned: &Path, name: &str, template: &str) -> PathBuf {
    let folder = tuned.with_file_name(name);
    fs::create_dir(&folder).expect("a folder");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(tuned.join(file), folder.join(file)).expect("copied");
    }
    fs::write(folder.join("chat_template.jinja"), template).expect("written");
    folder
}

#[test]
fn calls_of_strict_tools_have_valid_arguments_wherever_they_begin() {
    let folder = tempfile::tempdir().expect("a folder");
    let tuned = adapter(&folder.path().join("tuned"), "one two three four", false);
    let models = [
        ("tuned", TEMPLATE.to_owned()),
        ("list", TEMPLATE.replace("~~{\"name\"", "~~[{\"name\"").replace("}}}~~", "}}}]")),
        ("other", TEMPLATE.replace("\"parameters\": ", "")),
    ];
    let folders =
        models.map(|(name, template)| named(name, &with_template(&tuned, &format!("{name} folder"), &template)));
    let server = Running::of(|options| options.adapters = folders.to_vec());
    let parameters = |most: i64| {
        json!({
            "type": "object",
            "properties": { "a": { "type": "integer", "minimum": 0, "maximum": most } },
            "required": ["a"],
            "additionalProperties": false,
        })
    };
    let tool = |name: &str, parameters: Value, strict: bool| json!({ "type": "function", "function": { "name": name, "parameters": parameters, "strict": strict } });
    let tokenizer = Tokenizer::of_base(&BaseFiles::open(&tiny_model()).expect("a base")).expect("a tokenizer");
    let opening = tokenizer.token_to_id("~").expect("a token").to_string();
    let ask = |model: &str, tools: Value, more: Value| {
        let mut body = asking_for(&json!({}), json!({ "model": model, "tools": tools }));
        let fields = body.as_object_mut().expect("an object");
        fields.shift_remove("response_format");
        fields.extend(more.as_object().expect("an object").clone());
        // The model calls where it may.
        body["logit_bias"][&opening] = json!(100);
        server.post("/v1/chat/completions", &body)
    };
    let tools = json!([tool("digit", parameters(9), true), tool("bit", parameters(1), true)]);
    let mut called = Vec::new();
    for (seed, model) in (0..6).zip(["tuned", "list"].into_iter().cycle()) {
        let answer = ask(model, tools.clone(), json!({ "seed": seed }));
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer = answer.json();
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls", "{answer}");
        let calls = answer["choices"][0]["message"]["tool_calls"].as_array().expect("calls");
        for call in calls {
            let arguments = call["function"]["arguments"].as_str().expect("a text");
            let arguments: Value = serde_json::from_str(arguments).expect("JSON");
            let most = if call["function"]["name"] == "digit" { 9 } else { 1 };
            assert!(arguments["a"].as_u64().is_some_and(|number| number <= most), "{call}");
            called.push(call["function"]["name"].clone());
        }
        let events = ask(model, tools.clone(), json!({ "seed": seed, "stream": true })).events();
        let streamed =
            events.iter().find_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array()).expect("calls");
        assert_eq!(streamed[0]["function"], calls[0]["function"]);
    }
    assert!(called.contains(&json!("digit")) && called.contains(&json!("bit")), "{called:?}");
    // Without `strict` the model writes what it likes.
    let answer = ask("tuned", json!([tool("digit", parameters(9), false)]), json!({})).json();
    assert_eq!(answer["choices"][0]["message"]["tool_calls"], Value::Null, "{answer}");
    let odd = json!([tool("odd", json!({ "properties": { "a": { "not": {} } } }), true)]);
    for (model, tools, more, field) in [
        ("tuned", odd.clone(), json!({}), "tools"),
        ("tuned", json!([tool("odd", json!({ "type": "array" }), true)]), json!({}), "tools"),
        ("tuned", tools.clone(), json!({ "response_format": { "type": "json_object" } }), "response_format"),
        ("other", tools.clone(), json!({}), "tools"),
    ] {
        let answer = ask(model, tools, more);
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!(field)), "{}", answer.body);
    }
    assert_eq!(ask("tuned", odd, json!({ "tool_choice": "none" })).status, 200);
}
