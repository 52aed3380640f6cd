//! Broken and hostile tokenizers: named errors, in bounded time, and no panic.

use std::time::{Duration, Instant};

use burnish::data::{Encoder, Example, Message};
use burnish::files::{Bytes, gguf::Gguf};
use burnish::text::Tokenizer;
use serde_json::{Value, json};

use crate::tokenizer::{fixtures, open};

/// The small byte-level tokenizer as JSON, to be broken.
fn good() -> Value {
    let text = std::fs::read_to_string(fixtures().join("bytelevel/tokenizer.json")).expect("the fixture");
    serde_json::from_str(&text).expect("JSON")
}

/// The tokenizer after `change`.
fn changed(change: impl FnOnce(&mut Value)) -> burnish::Result<Tokenizer> {
    let mut value = good();
    change(&mut value);
    Tokenizer::from_json(&serde_json::to_vec(&value).expect("JSON"), "t.json")
}

/// Checks that `change` makes an error of exit code 2 that says `expected`, within twenty seconds.
fn refused(expected: &str, change: impl FnOnce(&mut Value)) {
    let start = Instant::now();
    let error = changed(change).expect_err(expected);
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    assert!(text.contains("t.json") && text.contains(expected), "expected {expected:?} in {text}");
    assert!(start.elapsed() < Duration::from_secs(20), "{expected}: {:?}", start.elapsed());
}

fn unigram(pieces: Value, unk_id: Value) -> Value {
    json!({"type": "Unigram", "vocab": pieces, "unk_id": unk_id, "byte_fallback": false})
}

#[test]
fn padding_truncation_and_post_processing_of_the_file_do_not_count() {
    let text = "Hello, world! 123";
    let expected = open("bytelevel").encode(text).expect("encodes");
    let padding = |strategy: Value, multiple: Value| {
        json!({"strategy": strategy, "direction": "Right", "pad_to_multiple_of": multiple, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "x"})
    };
    let truncation = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5});
    let nothing = json!({"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}});
    for (field, value) in [
        ("padding", padding(json!({"Fixed": 300_000_000}), Value::Null)),
        ("padding", padding(json!("BatchLongest"), json!(0))),
        ("truncation", truncation),
        ("post_processor", nothing),
    ] {
        let tokenizer = changed(|value_of| value_of[field] = value).expect("reads");
        assert_eq!(tokenizer.encode(text).expect("encodes"), expected, "{field}");
    }
}

#[test]
fn broken_models_are_named() {
    refused("`model` is missing", |value| value["model"] = Value::Null);
    refused("\"Nonsense\" is not supported", |value| value["model"]["type"] = json!("Nonsense"));
    refused("`model.vocab` is missing", |value| value["model"]["vocab"] = json!([1]));
    refused("has id -1", |value| value["model"]["vocab"]["a"] = json!(-1));
    refused("has id 4294967295", |value| value["model"]["vocab"]["a"] = json!(u32::MAX));
    refused("stands twice", |value| value["model"]["vocab"]["new"] = json!(5));
    refused("\"zzzz\" is not in the vocabulary", |value| value["model"]["merges"][0] = json!(["zzzz", "a"]));
    refused("`model.merges[1]`", |value| value["model"]["merges"][1] = json!(["a", "a".repeat(5000)]));
    refused("is not a pair", |value| value["model"]["merges"][2] = json!("a"));
    refused("is not a pair", |value| value["model"]["merges"][2] = json!(["a", "b", "c"]));
    refused("`model.merges` is not a list", |value| value["model"]["merges"] = json!("a b"));
    refused("lacks the prefix", |value| value["model"]["continuing_subword_prefix"] = json!("####"));
    refused("`model.unk_token`", |value| value["model"]["unk_token"] = json!("nowhere"));
    refused("`model.dropout` is 2.0", |value| value["model"]["dropout"] = json!(2.0));
    refused("`model.dropout` is 0.1", |value| value["model"]["dropout"] = json!(0.1));
    refused("has 0 pieces", |value| value["model"] = unigram(json!([]), json!(0)));
    refused("outside the 1 pieces", |value| value["model"] = unigram(json!([["a", -1.0]]), json!(7)));
    refused("is not [piece, finite score]", |value| value["model"] = unigram(json!([["a"]]), Value::Null));
    refused("not a tokenizer", |value| value["version"] = json!("9.9"));
}

#[test]
fn broken_added_tokens_are_named() {
    refused("`added_tokens` is not a list", |value| value["added_tokens"] = json!({}));
    refused("`added_tokens[0]`: `content`", |value| value["added_tokens"][0]["content"] = json!(""));
    refused("`added_tokens[0]`: `id`", |value| value["added_tokens"][0]["id"] = json!(-4));
    refused("stands twice", |value| value["added_tokens"][1]["content"] = json!("<|endoftext|>"));
    refused("`special` must be true or false", |value| value["added_tokens"][0]["special"] = json!("yes"));
}

#[test]
fn broken_steps_are_named() {
    let charsmap = |map: Value| {
        move |value: &mut Value| {
            value["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": map});
        }
    };
    refused("is not a text", charsmap(Value::Null));
    refused("is not base64", charsmap(json!("$$$$")));
    refused("shorter than its header", charsmap(json!("AAA=")));
    refused("does not fit", charsmap(json!("/////wAAAAA=")));
    // Four bytes of trie that point anywhere, and no replacements.
    refused("points outside", charsmap(json!("BAAAAP////8=")));
    let regex = |pattern: &str| {
        let pattern = json!({"Regex": pattern});
        move |value: &mut Value| {
            value["pre_tokenizer"] =
                json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false});
        }
    };
    refused("not a tokenizer", regex("(unbalanced"));
    refused("longer than 16 KiB", regex(&"a".repeat(20_000)));
    refused("FixedLength of 0", |value| value["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0}));
    let replace = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    refused("1,024 times", |value| {
        value["normalizer"] = json!({"type": "Sequence", "normalizers": vec![replace; 40]});
    });
    let strip = json!({"type": "Strip", "strip_left": true, "strip_right": true});
    refused("more than 64 steps", |value| {
        value["normalizer"] = json!({"type": "Sequence", "normalizers": vec![strip; 1000]});
    });
}

#[test]
fn a_pattern_that_backtracks_without_end_is_bounded() {
    let pattern = json!({"Regex": r"^(\w|\w\w)+(?=\d)$"});
    let tokenizer = changed(|value| {
        value["pre_tokenizer"] = json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false});
    });
    let start = Instant::now();
    // An error or ids: both are fine, waiting is not.
    let _ = tokenizer.expect("compiles").encode(&"a".repeat(200));
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn files_that_are_no_tokenizer_are_named() {
    for text in ["", "{", "[]", "null", "{\"model\": {\"type\": \"BPE\"}, \"model\": 1}", &"[".repeat(100_000)] {
        let error = Tokenizer::from_json(text.as_bytes(), "t.json").expect_err("broken").to_string();
        assert!(error.contains("t.json"), "{error}");
    }
    let start = Instant::now();
    let error =
        Tokenizer::from_json(format!("[{}1]", "1,".repeat(20 << 20)).as_bytes(), "t.json").expect_err("too much");
    assert!(error.to_string().contains("at most 5000000") && start.elapsed() < Duration::from_secs(20), "{error}");
    let folder = tempfile::tempdir().expect("a folder");
    let error = Tokenizer::from_folder(folder.path()).expect_err("nothing there").to_string();
    assert!(error.contains("tokenizer.json") && error.contains("hint"), "{error}");
}

#[test]
fn what_stands_beside_the_tokenizer_is_checked() {
    let error = |name: &str, text: &str| {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::copy(fixtures().join("bytelevel/tokenizer.json"), folder.path().join("tokenizer.json"))
            .expect("copied");
        std::fs::write(folder.path().join(name), text).expect("written");
        Tokenizer::from_folder(folder.path()).map(|tokenizer| tokenizer.chat_template().map(str::to_owned))
    };
    let config = |template: Value| error("tokenizer_config.json", &json!({"chat_template": template}).to_string());
    assert_eq!(config(json!("x")).expect("reads"), Some("x".into()));
    assert_eq!(config(json!(" \n")).expect("reads"), None);
    assert_eq!(
        config(json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}])).expect("reads"),
        Some("d".into())
    );
    assert!(config(json!([{"name": "rag", "template": "t"}])).expect_err("no default").to_string().contains("\"rag\""));
    assert!(config(json!(7)).expect_err("a number").to_string().contains("`chat_template` is a number"));
    assert!(error("tokenizer_config.json", "{").is_err());
    assert!(error("tokenizer_config.json", "[]").is_err());
    assert_eq!(error("chat_template.jinja", "file").expect("reads"), Some("file".into()));
}

#[test]
fn gguf_vocabularies_that_are_not_supported_are_named() {
    let error = |file: &str, from: &str, to: &str| {
        let mut bytes = std::fs::read(fixtures().join(file)).expect("the fixture");
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("is in the file");
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        let gguf = Gguf::from_bytes("v.gguf", Bytes::from(bytes)).expect("a GGUF file");
        Tokenizer::from_gguf(&gguf).expect_err("not supported").to_string()
    };
    let text = error("smollm.gguf", "smollm", "nosuch");
    assert!(text.contains("v.gguf") && text.contains("\"nosuch\"") && text.contains("smollm, llama3"), "{text}");
    let text = error("smollm.gguf", "gpt2", "bert");
    assert!(text.contains("\"bert\" is not supported; supported: gpt2, llama"), "{text}");
    let text = error("smollm.gguf", "tokenizer.ggml.merges", "tokenizer.ggml.merged");
    assert!(text.contains("`tokenizer.ggml.merges` is missing"), "{text}");
    let text = error("llama.gguf", "tokenizer.ggml.scores", "tokenizer.ggml.scared");
    assert!(text.contains("`tokenizer.ggml.scores` is missing"), "{text}");
}

#[test]
fn a_token_without_an_embedding_is_an_error() {
    let encoder = |rows| Encoder::new(open("bytelevel"), None).for_vocabulary(rows);
    let example = Example::PromptCompletion { prompt: "ab".into(), completion: "c".into() };
    let ids = encoder(usize::MAX).encode(&example).expect("encodes").ids;
    let largest = *ids.iter().max().expect("ids") as usize;
    assert_eq!(encoder(largest + 1).encode(&example).expect("encodes").ids, ids);
    let error = encoder(largest).encode(&example).expect_err("no row").to_string();
    assert!(error.contains(&format!("token {largest} ")) && error.contains("rows of the model's embedding"), "{error}");
    assert!(error.contains("tokenizer.json"), "{error}");
    assert!(encoder(0).encode_raw_prompt("ab").is_err());
    assert!(encoder(0).encode_prompt(&[Message::user("ab")]).is_err());
}
