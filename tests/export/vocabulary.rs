//! Tokenizers as GGUF keys: a folder's tokenizer comes out as the keys that it once came from.

use burnish::files::gguf::{Array, Gguf, Value};
use burnish::text::Tokenizer;
use serde_json::json;

use super::{fixture, message, small_tokenizer, temporary};

/// The value of a key under `tokenizer.ggml.`.
fn key<'a>(metadata: &'a [(String, Value)], name: &str) -> Option<&'a Value> {
    let name = format!("tokenizer.ggml.{name}");
    metadata.iter().find(|(key, _)| *key == name).map(|(_, value)| value)
}

#[test]
fn the_tokenizer_of_a_folder_becomes_the_keys_that_it_was_made_from() {
    let folder = temporary();
    for name in ["smollm", "llama_bpe", "qwen2", "spm"] {
        let gguf = Gguf::open(&fixture("gguf").join(format!("{name}.gguf"))).expect("a file");
        let saved = folder.path().join(name);
        std::fs::create_dir(&saved).expect("a folder");
        Tokenizer::from_gguf(&gguf).expect("a tokenizer").save(&saved).expect("saved");
        let tokenizer = Tokenizer::from_folder(&saved).expect("a tokenizer");
        let rows = tokenizer.vocab_size();
        let written = tokenizer.to_gguf(rows).unwrap_or_else(|error| panic!("{name}: {error}")).metadata;
        let theirs = |name: &str| gguf.get(&format!("tokenizer.ggml.{name}"));
        for same in ["model", "pre", "tokens", "merges", "bos_token_id", "eos_token_id", "add_bos_token"] {
            assert_eq!(key(&written, same), theirs(same), "{name}: {same}");
        }
        assert_eq!(
            written.iter().find(|(key, _)| key == "tokenizer.chat_template").map(|(_, value)| value),
            gguf.get("tokenizer.chat_template"),
            "{name}"
        );
        // Unused tokens and those with a key of their own are ordinary and special tokens in a folder.
        let types = |value: Option<&Value>| value.and_then(Value::as_integers).expect("types");
        let (own, theirs) = (types(key(&written, "token_type")), types(theirs("token_type")));
        let differ: Vec<_> = own.iter().zip(&theirs).filter(|(own, theirs)| own != theirs && **theirs != 5).collect();
        assert!(differ.iter().all(|pair| *pair == (&3, &2)), "{name}: {differ:?}");
        if name == "spm" {
            let scores = |value: Option<&Value>| value.and_then(Value::as_f32s).expect("scores").to_vec();
            let found = scores(key(&written, "scores"));
            let expected = scores(gguf.get("tokenizer.ggml.scores"));
            // Bytes and control tokens aside, whose scores are never looked at.
            let pieces = (0..rows).filter(|id| theirs[*id] == 1);
            let differ: Vec<_> = pieces.filter(|id| found[*id] != expected[*id]).collect();
            assert!(differ.is_empty(), "{differ:?}");
        }
    }
}

#[test]
fn an_embedding_with_more_rows_than_tokens_is_filled_up() {
    let written = small_tokenizer(40).to_gguf(43).expect("keys").metadata;
    let tokens = key(&written, "tokens").and_then(Value::as_strings).expect("tokens");
    assert_eq!((tokens.len(), tokens[42].as_str()), (43, "[PAD42]"));
    let types = key(&written, "token_type").and_then(Value::as_integers).expect("types");
    assert_eq!((types[0], types[1], types[3], types[4], types[42]), (2, 3, 6, 1, 5));
    let Some(Value::Array(Array::F32(scores))) = key(&written, "scores") else { panic!("scores") };
    // The products of the merges, in their order.
    assert_eq!(scores[31..34], [0.0, -1.0, -2.0]);
    let text = message(&small_tokenizer(40).to_gguf(39).expect_err("a token too many"));
    assert!(text.contains("has 40 tokens") && text.contains("39 rows"), "{text}");
}

#[test]
fn tokenizers_that_gguf_cannot_hold_are_refused() {
    let refused = |json: serde_json::Value, expected: &str| {
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), "t.json").expect("a tokenizer");
        let text = message(&tokenizer.to_gguf(300).expect_err(expected));
        assert!(text.contains("t.json") && text.contains(expected), "{text}");
    };
    refused(
        json!({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}),
        "is of type WordLevel",
    );
    refused(
        json!({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["b", -1.0]]}}),
        "is of type Unigram",
    );
    let bpe = |pre_tokenizer: serde_json::Value| {
        let alphabet: Vec<String> = ('!'..='~').map(String::from).chain(["Ġ".to_owned(), "Ċ".to_owned()]).collect();
        let mut vocab: serde_json::Map<_, _> =
            alphabet.iter().enumerate().map(|(id, letter)| (letter.clone(), json!(id))).collect();
        let merges = json!([["a", "b"], ["b", "o"], ["Ġ", "t"], ["h", "e"], ["1", "2"], ["3", "3"], ["4", "5"]]);
        for pair in merges.as_array().expect("pairs") {
            let id = vocab.len();
            vocab.insert(format!("{}{}", pair[0].as_str().expect("a"), pair[1].as_str().expect("b")), json!(id));
        }
        json!({"pre_tokenizer": pre_tokenizer, "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
               "model": {"type": "BPE", "vocab": vocab, "merges": merges}})
    };
    refused(bpe(json!({"type": "Whitespace"})), "neither a byte-level BPE nor SentencePiece's");
    // Every letter alone.
    let letters = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
    ]});
    refused(bpe(letters), "gives other ids than its GGUF form would");
}
