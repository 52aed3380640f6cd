//! Token ids against transformers' and tokenizers' (tests/reference/make_text_fixtures.py).

use std::path::{Path, PathBuf};

use burnish::files::gguf::Gguf;
use burnish::text::{TextStream, Tokenizer};
use serde_json::Value;

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text")
}

pub fn read(name: &str) -> Value {
    let text = std::fs::read_to_string(fixtures().join(name)).expect("the fixture is there");
    serde_json::from_str(&text).expect("the fixture is JSON")
}

/// A folder, or a GGUF file.
pub fn open(name: &str) -> Tokenizer {
    let path = fixtures().join(name);
    match name.ends_with(".gguf") {
        true => Tokenizer::from_gguf(&Gguf::open(&path).expect("a GGUF file")).expect("a tokenizer"),
        false => Tokenizer::from_folder(&path).expect("a tokenizer"),
    }
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|text| text.as_str().expect("a text")).collect()
}

pub fn ids(list: &Value) -> Vec<u32> {
    list.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

#[test]
fn ids_and_texts_are_those_of_transformers() {
    let expected = read("tokens.json");
    let (plain, special) = (texts(&expected["texts"]), texts(&expected["special_texts"]));
    for (name, theirs) in expected["tokenizers"].as_object().expect("tokenizers") {
        let tokenizer = open(name);
        for (index, text) in plain.iter().enumerate() {
            let want = ids(&theirs["texts"][index]);
            assert_eq!(tokenizer.encode(text).expect("encodes"), want, "{name}: {text:?}");
            assert_eq!(tokenizer.encode_with_special(text).expect("encodes"), want, "{name}: {text:?}");
        }
        for (index, text) in special.iter().enumerate() {
            let want = ids(&theirs["special_texts"][index]);
            assert_eq!(tokenizer.encode_with_special(text).expect("encodes"), want, "{name}: {text:?}");
        }
        for (index, text) in plain.iter().chain(&special).enumerate() {
            let parsed = tokenizer.encode_with_special(text).expect("encodes");
            let want = theirs["decoded"][index].as_str().expect("a text");
            assert_eq!(tokenizer.decode(&parsed, true).expect("decodes"), want, "{name}: {text:?}");
        }
    }
}

#[test]
fn ids_of_gguf_vocabularies_are_those_of_llama_cpp() {
    // Written by tests/reference/make_gguf.py.
    for name in ["llama_bpe", "qwen2", "smollm", "spm"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf");
        let gguf = Gguf::open(&folder.join(format!("{name}.gguf"))).expect("a GGUF file");
        let tokenizer = Tokenizer::from_gguf(&gguf).expect("a tokenizer");
        let lines = std::fs::read_to_string(folder.join(format!("{name}.tokens.jsonl"))).expect("the fixture");
        for line in lines.lines() {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let text = line["text"].as_str().expect("a text");
            let ours = tokenizer.encode_with_special(text).expect("encodes");
            assert_eq!(ours, ids(&line["ids"]), "{name}: {text:?}");
        }
    }
}

#[test]
fn text_that_spells_a_control_token_stays_text() {
    let expected = read("tokens.json");
    let special = texts(&expected["special_texts"]);
    for (name, theirs) in expected["tokenizers"].as_object().expect("tokenizers") {
        let tokenizer = open(name);
        for (index, text) in special.iter().enumerate() {
            let ours = tokenizer.encode(text).expect("encodes");
            assert!(!ours.iter().any(|id| tokenizer.is_special(*id)), "{name}: {text:?} gives {ours:?}");
            let reads_back = tokenizer.decode(&ours, true).expect("decodes");
            assert_eq!(reads_back.trim_start(), *text, "{name}");
            // tokenizers itself lets merges rebuild a control token of a SentencePiece vocabulary.
            let want = ids(&theirs["ordinary"][index]);
            if !want.iter().any(|id| tokenizer.is_special(*id)) {
                assert_eq!(ours, want, "{name}: {text:?}");
            }
        }
    }
}

#[test]
fn a_stream_gives_the_whole_text_and_never_half_a_character() {
    let expected = read("tokens.json");
    for name in ["bytelevel", "smollm.gguf", "llama.gguf"] {
        let tokenizer = open(name);
        for text in texts(&expected["texts"]) {
            let ids = tokenizer.encode(text).expect("encodes");
            let mut stream = TextStream::new(&tokenizer, true);
            let mut streamed = String::new();
            for id in &ids {
                let piece = stream.push(*id).expect("decodes");
                assert!(!piece.contains(char::REPLACEMENT_CHARACTER), "{name}: {text:?} gives {piece:?}");
                streamed.push_str(&piece);
            }
            streamed.push_str(&stream.finish().expect("decodes"));
            assert_eq!(streamed, tokenizer.decode(&ids, true).expect("decodes"), "{name}: {text:?}");
        }
    }
}

#[test]
fn a_stream_ends_with_what_was_cut_off() {
    let tokenizer = open("bytelevel");
    let ids = tokenizer.encode("😀").expect("encodes");
    assert!(ids.len() > 1, "the fixture has no token for this character");
    let mut stream = TextStream::new(&tokenizer, true);
    assert_eq!(stream.push(ids[0]).expect("decodes"), "");
    assert_eq!(stream.finish().expect("decodes"), "\u{fffd}");
    assert_eq!(stream.push(tokenizer.encode("A").expect("encodes")[0]).expect("decodes"), "A");
}

#[test]
fn named_tokens_come_from_the_files() {
    let folder = open("bytelevel");
    assert_eq!((folder.bos(), folder.eos_tokens(), folder.adds_bos()), (Some(1), vec![2], false));
    assert!(folder.chat_template().is_some_and(|template| template.contains("im_start")));
    let smollm = open("smollm.gguf");
    assert_eq!((smollm.bos(), smollm.eos_tokens(), smollm.adds_bos()), (Some(1), vec![2], false));
    assert_eq!(smollm.chat_template(), folder.chat_template());
    // llama.cpp adds the beginning-of-text token for these where the file does not say.
    assert!(open("llama-bpe.gguf").adds_bos() && open("llama.gguf").adds_bos());
    assert_eq!(smollm.vocab_size(), 421);
}

#[test]
fn the_post_processor_decides_on_the_beginning_of_text_token() {
    let adds = |processor: Value, config: Value| {
        let folder = tempfile::tempdir().expect("a folder");
        let mut json: Value = read("bytelevel/tokenizer.json");
        json["post_processor"] = processor;
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).expect("written");
        std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).expect("written");
        let tokenizer = Tokenizer::from_folder(folder.path()).expect("a tokenizer");
        (tokenizer.adds_bos(), tokenizer.bos())
    };
    let puts = serde_json::json!({
        "type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
            },
        ],
    });
    let says = |adds: bool| serde_json::json!({"bos_token": "<|im_start|>", "add_bos_token": adds});
    assert_eq!(adds(puts.clone(), says(false)), (true, Some(1)));
    assert_eq!(adds(puts.clone(), serde_json::json!({})), (true, Some(1)), "transformers needs no name for it");
    assert_eq!(adds(puts["processors"][0].clone(), says(true)), (false, Some(1)));
    assert_eq!(adds(Value::Null, says(true)), (true, Some(1)));
    assert_eq!(adds(Value::Null, says(false)), (false, Some(1)));
}

#[test]
fn a_saved_tokenizer_reads_back_the_same() {
    let expected = read("tokens.json");
    for name in ["bytelevel", "smollm.gguf", "llama-bpe.gguf", "llama.gguf"] {
        let tokenizer = open(name);
        let folder = tempfile::tempdir().expect("a folder");
        tokenizer.save(folder.path()).expect("saved");
        let again = Tokenizer::from_folder(folder.path()).expect("reads back");
        for text in texts(&expected["texts"]).into_iter().chain(texts(&expected["special_texts"])) {
            let both = |tokenizer: &Tokenizer| {
                (tokenizer.encode(text).expect("encodes"), tokenizer.encode_with_special(text).expect("encodes"))
            };
            assert_eq!(both(&again), both(&tokenizer), "{name}: {text:?}");
        }
        assert_eq!(again.eos_tokens(), tokenizer.eos_tokens(), "{name}");
        assert_eq!(again.adds_bos(), tokenizer.adds_bos(), "{name}");
        assert_eq!(again.chat_template(), tokenizer.chat_template(), "{name}");
    }
}

#[test]
fn text_that_goes_on_gets_no_space_of_its_own() {
    let tokenizer = open("llama.gguf");
    let whole = tokenizer.encode("Please send").expect("encodes");
    let mut parts = tokenizer.encode("Please").expect("encodes");
    parts.extend(tokenizer.encode_continuation(" send").expect("encodes"));
    assert_eq!(parts, whole);
    // The first word alone gets one.
    let alone = tokenizer.encode("send").expect("encodes");
    assert_ne!(alone, tokenizer.encode_continuation("send").expect("encodes"));
    assert_eq!(alone, tokenizer.encode_continuation(" send").expect("encodes"));
}

#[test]
fn a_text_that_goes_on_with_a_joined_line_feed_gets_no_space_either() {
    let json = serde_json::json!({
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "model": {
            "type": "BPE", "byte_fallback": true,
            "vocab": {"<0x01>": 0, "▁": 1, "\n": 2, "\n\n": 3, "a": 4}, "merges": [["\n", "\n"]],
        },
    });
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), "joined").expect("a tokenizer");
    assert_eq!(tokenizer.encode("\n\na").expect("encodes"), [1, 3, 4]);
    assert_eq!(tokenizer.encode_continuation("\n\na").expect("encodes"), [3, 4]);
    assert_eq!(tokenizer.encode_continuation("a\n").expect("encodes"), [4, 2]);
}

/// Writes the ids of every text field of data files, for tests/reference/compare_tokens.py, which sets the
/// variables. Does nothing without them.
#[test]
fn ids_of_data_files_for_a_comparison() {
    let Ok(model) = std::env::var("BURNISH_TOKENS_MODEL") else { return };
    let variable = |name: &str| std::env::var(name).expect("set together with BURNISH_TOKENS_MODEL");
    let path = Path::new(&model);
    let tokenizer = match path.is_dir() {
        true => Tokenizer::from_folder(path).expect("a tokenizer"),
        false => Tokenizer::from_gguf(&Gguf::open(path).expect("a GGUF file")).expect("a tokenizer"),
    };
    if let Ok(folder) = std::env::var("BURNISH_TOKENS_SAVE") {
        tokenizer.save(Path::new(&folder)).expect("saved");
    }
    let mut lines = String::new();
    for file in variable("BURNISH_TOKENS_DATA").split(':') {
        for row in std::fs::read_to_string(file).expect("readable").lines() {
            let row: Value = serde_json::from_str(row).expect("a JSON object");
            for text in row.as_object().expect("an object").values().filter_map(Value::as_str) {
                let ids = tokenizer.encode(text).expect("encodes");
                assert_eq!(tokenizer.decode(&ids, false).expect("decodes"), text);
                lines.push_str(&format!("{}\n", serde_json::json!({"text": text, "ids": ids})));
            }
        }
    }
    std::fs::write(variable("BURNISH_TOKENS_OUT"), lines).expect("written");
}
