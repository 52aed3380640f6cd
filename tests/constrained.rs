//! Answers that are held to a JSON schema: random tiny models, whose answers are rubbish otherwise, give valid texts.

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::{Duration, Instant};

use burnish::generate::constraint::{Constraint, Vocabulary};
use burnish::generate::engine::{Engine, Precision, Request};
use burnish::generate::run::Finish;
use burnish::generate::sample::SamplerConfig;
use burnish::model::load::Compute;
use burnish::model::{BaseFiles, Decoder};
use burnish::text::Tokenizer;
use serde_json::{Value, json};

use crate::cli::{burnish as program, text, tiny_model};
use crate::engine::{Answer, answers, engine, greedy, options};
use crate::model::{load, turn};

/// A schema, and whether a value is as it says.
pub type Case = (Value, fn(&Value) -> bool);

/// Whether a value is a whole number, as 2 and 2.0 are, within a range.
fn is_whole(value: &Value, range: RangeInclusive<i64>) -> bool {
    let whole = value.as_f64().filter(|number| number.fract() == 0.0);
    whole.is_some_and(|number| range.contains(&(number as i64)))
}

/// Schemas whose texts are short, whatever a model chooses.
pub fn cases() -> Vec<Case> {
    let person = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 8 },
            "age": { "type": "integer", "minimum": 0, "maximum": 120 },
        },
        "required": ["name", "age"],
        "additionalProperties": false,
    });
    let optional = json!({ "a": { "type": "boolean" }, "b": { "type": "null" }, "c": { "enum": ["x"] } });
    let pair = json!([{ "type": "string", "format": "date" }, { "enum": [1, 2.5] }]);
    let city = json!({ "type": "object", "properties": { "code": { "pattern": "^[A-Z]{2}$", "type": "string" } }, "required": ["code"], "additionalProperties": false });
    vec![
        (person, |value| {
            value["name"].as_str().is_some_and(|name| name.chars().count() <= 8) && is_whole(&value["age"], 0..=120)
        }),
        (json!({ "enum": ["red", "green", "blue"] }), |value| ["red", "green", "blue"].iter().any(|one| value == one)),
        (json!({ "type": "boolean" }), Value::is_boolean),
        (
            json!({ "type": "array", "items": { "type": "integer", "minimum": -5, "maximum": 5 }, "minItems": 2, "maxItems": 4 }),
            |value| {
                let items = value.as_array().expect("a list");
                (2..=4).contains(&items.len()) && items.iter().all(|item| is_whole(item, -5..=5))
            },
        ),
        (json!({ "const": { "a": [1, null], "é\n": "\"" } }), |value| {
            *value == json!({ "a": [1, null], "é\n": "\"" })
        }),
        (json!({ "anyOf": [{ "type": "null" }, { "type": "string", "pattern": "^[a-z]{3}$" }] }), |value| {
            value.is_null()
                || value
                    .as_str()
                    .is_some_and(|text| text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_lowercase()))
        }),
        (json!({ "type": "object", "properties": optional, "additionalProperties": false }), |value| {
            let fields = value.as_object().expect("an object");
            fields.iter().all(|(key, value)| match key.as_str() {
                "a" => value.is_boolean(),
                "b" => value.is_null(),
                _ => key == "c" && value == "x",
            })
        }),
        (json!({ "type": "array", "prefixItems": pair, "items": false, "minItems": 2 }), |value| {
            let date = value[0].as_str().expect("a text");
            date.len() == 10 && date[4..5] == *"-" && (value[1] == 1 || value[1] == 2.5)
        }),
        (json!({ "type": "string", "minLength": 3, "maxLength": 5 }), |value| {
            value.as_str().is_some_and(|text| (3..=5).contains(&text.chars().count()))
        }),
        (json!({ "type": "string", "format": "ipv4" }), |value| {
            value.as_str().is_some_and(|text| text.parse::<std::net::Ipv4Addr>().is_ok())
        }),
        (json!({ "type": ["integer", "null"], "minimum": 1, "maximum": 9 }), |value| {
            value.is_null() || is_whole(value, 1..=9)
        }),
        (
            json!({ "$defs": { "city": city }, "type": "array", "items": { "$ref": "#/$defs/city" }, "minItems": 1, "maxItems": 2 }),
            |value| {
                value
                    .as_array()
                    .expect("a list")
                    .iter()
                    .all(|city| city["code"].as_str().is_some_and(|code| code.len() == 2))
            },
        ),
        (json!({ "allOf": [{ "type": "integer", "minimum": 10 }, { "maximum": 12 }] }), |value| {
            is_whole(value, 10..=12)
        }),
    ]
}

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A model of the fixtures with its tokenizer, and the vocabulary of answers that end with its end tokens.
fn model(file: &str) -> (Decoder, Tokenizer, Vocabulary) {
    let decoder = load(&fixture(file), Compute::F32);
    let tokenizer = Tokenizer::of_base(&BaseFiles::open(&fixture(file)).expect("a base")).expect("a tokenizer");
    let vocabulary = Vocabulary::new(&tokenizer, &tokenizer.eos_tokens(), decoder.config().vocab_size);
    (decoder, tokenizer, vocabulary.expect("a vocabulary"))
}

/// The tokens with line ends and tabs. A random model would go on with them, within the limits of white space.
pub fn indenting(tokenizer: &Tokenizer) -> Vec<u32> {
    let bytes = tokenizer.token_bytes().expect("bytes");
    let indents = |bytes: &Option<Vec<u8>>| bytes.iter().flatten().any(|byte| b"\n\r\t".contains(byte));
    (0..).zip(bytes).filter(|(_, bytes)| indents(bytes)).map(|(id, _)| id).collect()
}

fn warm(seed: u64, tokenizer: &Tokenizer) -> SamplerConfig {
    let logit_bias = indenting(tokenizer).into_iter().map(|id| (id, -100.0)).collect();
    SamplerConfig { temperature: 1.0, seed, logit_bias, ..SamplerConfig::default() }
}

fn held(vocabulary: &Vocabulary, schema: &Value) -> Constraint {
    Constraint::json_schema(vocabulary, schema).unwrap_or_else(|error| panic!("{schema}: {error}"))
}

/// Bytes of every kind of tokenizer: byte-level in three forms, SentencePiece with tokens for bytes.
#[test]
fn a_random_model_of_any_vocabulary_gives_valid_texts() {
    let _turn = turn();
    for file in ["gguf/smollm.gguf", "gguf/qwen2.gguf", "gguf/llama_bpe.gguf", "gguf/spm.gguf"] {
        let (decoder, tokenizer, vocabulary) = model(file);
        let mut engine = Engine::new(decoder, &tokenizer, options(Precision::Exact));
        for (schema, is_valid) in cases() {
            let constraint = held(&vocabulary, &schema);
            let request = |seed: u64| Request {
                sampler: warm(seed, &tokenizer),
                end_tokens: tokenizer.eos_tokens(),
                constraint: Some(constraint.clone()),
                ..greedy(&[7, 8, 9], 100)
            };
            for answer in answers(&mut engine, &[request(1), request(2), request(3)]) {
                let ended = [Some(Finish::Complete), Some(Finish::EndToken)].contains(&answer.finish);
                assert!(ended, "{file}: {schema}: {:?} {:?}", answer.finish, answer.text);
                let value: Value =
                    serde_json::from_str(&answer.text).unwrap_or_else(|error| panic!("{error}: {:?}", answer.text));
                assert!(is_valid(&value), "{file}: {schema}: {value}");
            }
        }
    }
}

#[test]
fn an_answer_with_a_format_does_not_depend_on_other_requests() {
    let _turn = turn();
    let (decoder, tokenizer, vocabulary) = model("gguf/smollm.gguf");
    let mut requests: Vec<Request> = (1..)
        .zip(cases())
        .map(|(seed, (schema, _))| Request {
            sampler: if seed % 3 == 0 { SamplerConfig::default() } else { warm(seed, &tokenizer) },
            end_tokens: tokenizer.eos_tokens(),
            constraint: Some(held(&vocabulary, &schema)),
            ..greedy(&[7, 8, 9], 60)
        })
        .collect();
    requests.push(greedy(&[7, 8, 9], 20));
    for precision in [Precision::Exact, Precision::Fast] {
        let new = || engine(&decoder, options(precision));
        let together = answers(&mut new(), &requests);
        for (request, together) in requests.iter().zip(&together) {
            let alone = answers(&mut new(), std::slice::from_ref(request)).remove(0);
            assert_eq!(alone.outcome(), together.outcome(), "{precision:?}");
        }
    }
}

#[test]
fn guessed_tokens_change_no_answer_with_a_format() {
    let _turn = turn();
    let (decoder, _, vocabulary) = model("gguf/smollm.gguf");
    let schemas = [
        json!({ "type": "string", "pattern": "^(alpha, ){12}$" }),
        json!({ "type": "string", "pattern": "^((yes|no|17) ){15}$" }),
    ];
    let mut guessed = 0;
    for schema in schemas {
        let request = Request { constraint: Some(held(&vocabulary, &schema)), ..greedy(&[7, 8, 9], 150) };
        // With a bias that changes nothing, no token is guessed.
        let bias = SamplerConfig { logit_bias: vec![(0, 0.0)], ..SamplerConfig::default() };
        let plain = Request { sampler: bias, ..request.clone() };
        let mut engine = engine(&decoder, options(Precision::Fast));
        let without = answers(&mut engine, &[plain]).remove(0);
        assert_eq!(
            (engine.statistics().guessed_tokens, without.finish),
            (0, Some(Finish::Complete)),
            "{}",
            without.text
        );
        let with = answers(&mut engine, &[request]).remove(0);
        assert_eq!(with.outcome(), without.outcome());
        guessed += engine.statistics().guessed_tokens;
    }
    assert!(guessed > 20, "{guessed} guesses were right");
}

#[test]
fn limits_stop_strings_and_biases_act_within_a_format() {
    let _turn = turn();
    let (decoder, tokenizer, vocabulary) = model("gguf/smollm.gguf");
    let mut engine = engine(&decoder, options(Precision::Exact));
    let long = held(&vocabulary, &json!({ "type": "array", "items": { "const": "alpha" }, "minItems": 12 }));
    let request = Request { constraint: Some(long), ..greedy(&[7, 8, 9], 9) };
    let cut = answers(&mut engine, std::slice::from_ref(&request)).remove(0);
    assert_eq!((cut.finish, cut.tokens.len()), (Some(Finish::Length), 9));
    let stopped =
        answers(&mut engine, &[Request { stop: vec!["pha".to_owned()], max_tokens: 40, ..request }]).remove(0);
    assert!(stopped.finish == Some(Finish::Stop) && stopped.text.ends_with("\"al"), "{stopped:?}");
    let one_of = held(&vocabulary, &json!({ "enum": [true, false] }));
    for (word, other) in [("true", "false"), ("false", "true")] {
        let first = |word: &str| {
            let starts = |id: &u32| tokenizer.id_to_token(*id).is_some_and(|token| word.starts_with(&token));
            (0..tokenizer.vocab_size() as u32).filter(starts).collect::<Vec<_>>()
        };
        let excluded = first(other).into_iter().map(|id| (id, -100.0)).collect();
        let sampler = SamplerConfig { logit_bias: excluded, ..SamplerConfig::default() };
        let request = Request { sampler, constraint: Some(one_of.clone()), ..greedy(&[7, 8, 9], 9) };
        assert_eq!(answers(&mut engine, &[request]).remove(0).text, word);
    }
}

/// Checks each call behind `opening` in an answer; their number. The last one may be cut.
fn check_calls(answer: &Answer, opening: &str, is_valid: impl Fn(&Value) -> bool) -> usize {
    let (mut rest, mut count) = (answer.text.as_str(), 0);
    while let Some(at) = rest.find(opening) {
        let call = rest[at + opening.len()..].trim_start();
        let mut values = serde_json::Deserializer::from_str(call).into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) => assert!(is_valid(&value), "{value}"),
            Some(Err(error)) if !error.is_eof() => panic!("{error}: {:?}", answer.text),
            _ => {
                assert_eq!(answer.finish, Some(Finish::Length), "{:?}", answer.text);
                break;
            }
        }
        rest = &call[values.byte_offset()..];
        count += 1;
    }
    count
}

#[test]
fn calls_in_free_text_are_valid_and_the_text_is_free() {
    let _turn = turn();
    let call = json!({
        "type": "object",
        "properties": { "n": { "type": "integer", "minimum": 0, "maximum": 99 } },
        "required": ["n"],
        "additionalProperties": false,
    });
    let list = json!({ "type": "array", "items": call, "minItems": 1, "maxItems": 2 });
    let is_call = |value: &Value| value.as_object().is_some_and(|one| one.len() == 1 && is_whole(&one["n"], 0..=99));
    for file in ["gguf/smollm.gguf", "gguf/spm.gguf"] {
        let (decoder, tokenizer, vocabulary) = model(file);
        let new = || Engine::new(decoder.clone(), &tokenizer, options(Precision::Fast));
        let (mut found, mut engine) = (0, new());
        for (schema, is_list) in [(&call, false), (&list, true)] {
            // A random model writes a single letter soon.
            let constraint = Constraint::calls(&vocabulary, "a", schema).expect("a format");
            let request = |seed: u64| Request {
                sampler: warm(seed, &tokenizer),
                end_tokens: tokenizer.eos_tokens(),
                constraint: Some(constraint.clone()),
                ..greedy(&[7, 8, 9], 100)
            };
            let requests: Vec<Request> = (0..6).map(request).collect();
            let together = answers(&mut engine, &requests);
            for answer in &together {
                found += check_calls(answer, "a", |value| match is_list {
                    true => value.as_array().is_some_and(|calls| !calls.is_empty() && calls.iter().all(is_call)),
                    false => is_call(value),
                });
            }
            let alone = answers(&mut new(), &requests[..1]).remove(0);
            assert_eq!(alone.outcome(), together[0].outcome(), "{file}");
        }
        assert!(found >= 6, "{file}: {found} calls");
        // An opening that does not come excludes nothing.
        let free = Request { end_tokens: tokenizer.eos_tokens(), ..greedy(&[7, 8, 9], 40) };
        let constraint = Some(Constraint::calls(&vocabulary, "<a call>", &call).expect("a format"));
        let both = answers(&mut new(), &[free.clone(), Request { constraint, ..free }]);
        assert_eq!(both[0].outcome(), both[1].outcome(), "{file}");
    }
}

#[test]
fn schemas_that_cannot_be_held_are_refused_with_the_reason_and_soon() {
    let (_, _, vocabulary) = model("gguf/smollm.gguf");
    let nested = |depth: usize| {
        (0..depth).fold(json!({ "type": "null" }), |inner, _| json!({ "type": "array", "items": inner }))
    };
    let options = |count: usize| -> Vec<Value> {
        (0..count).map(|index| json!({ "properties": { format!("a{index}"): { "minLength": index } } })).collect()
    };
    let product: Vec<Value> = (0..12).map(|_| json!({ "anyOf": options(12) })).collect();
    for (schema, reason) in [
        (json!({ "$ref": "http://127.0.0.1:1/schema.json" }), "http://127.0.0.1:1/schema.json"),
        (json!({ "$ref": "#/$defs/none" }), "none"),
        (json!({ "type": "string", "pattern": "(".repeat(2000) }), "regex"),
        (json!({ "type": "string", "pattern": "(?=a)b" }), "look"),
        (json!({ "type": "integer", "minimum": 5, "maximum": 1 }), "minimum"),
        (json!({ "not": { "type": "null" } }), "not"),
        (json!({ "type": "wrong" }), "wrong"),
        (json!({ "type": 5 }), "type"),
        (json!({ "oneOf": [{ "type": "string", "maxLength": 5 }, { "type": "string" }] }), "oneOf"),
        (json!({ "type": "object", "properties": [] }), "properties"),
        (json!({ "enum": [] }), "anyOf"),
        (json!({ "type": "array", "uniqueItems": true }), "uniqueItems"),
        (json!({ "type": "string", "format": "phone number" }), "phone number"),
        (json!({ "type": "object", "patternProperties": { "^a": {}, "b$": {} } }), "disjoint"),
        (json!({ "type": "array", "minItems": 1_000_000_000 }), "minItems"),
        (json!({ "allOf": product }), "too large"),
        (json!({ "const": i64::MIN }), "-9223372036854775808"),
        (json!({ "allOf": vec![json!({ "type": "string", "pattern": "a.*b" }); 60] }), "60 patterns"),
    ] {
        let begun = Instant::now();
        let error = Constraint::json_schema(&vocabulary, &schema).expect_err("refused");
        assert!(begun.elapsed() < Duration::from_secs(5), "{schema}: {:?}", begun.elapsed());
        assert_eq!(error.exit_code(), 2, "{schema}");
        assert!(error.to_string().contains(reason) && error.to_string().len() < 1000, "{schema}: {error}");
    }
    // What is large or strange and can be held is held.
    let node =
        json!({ "type": "object", "properties": { "next": { "anyOf": [{ "$ref": "#" }, { "type": "null" }] } } });
    let many: Vec<String> = (0..3000).map(|index| format!("value {index}")).collect();
    let properties: Value = (0..1500).map(|index| (format!("a{index}"), json!({ "type": "integer" }))).collect();
    for schema in [
        node,
        nested(50),
        json!({ "enum": many }),
        json!({ "type": "string", "maxLength": 65_536 }),
        json!({ "type": "object", "properties": properties }),
        json!({ "type": "object", "x-guidance": { "lenient": true }, "properties": { "a": { "const": 1 } } }),
        json!({}),
    ] {
        let begun = Instant::now();
        held(&vocabulary, &schema);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}

#[test]
fn generate_holds_its_answers_to_a_schema() {
    let folder = tempfile::tempdir().expect("a folder");
    let schema = json!({ "type": "array", "items": { "enum": ["red", "blue"] }, "minItems": 2, "maxItems": 2 });
    std::fs::write(folder.path().join("schema.json"), schema.to_string()).expect("written");
    std::fs::write(folder.path().join("wrong.json"), "{\"type\": \"array\", \"uniqueItems\": true}").expect("written");
    let run = |file: &str| {
        let mut command = program(&folder);
        command.args(["generate", "--prompt", "Two colours", "--temperature", "1", "--json-schema", file]);
        command.arg("--base").arg(tiny_model()).output().expect("the program starts")
    };
    let answer = run("schema.json");
    assert!(answer.status.success(), "{}", text(&answer.stderr));
    let value: Vec<String> = serde_json::from_str(&text(&answer.stdout)).expect("a list");
    assert!(value.len() == 2 && value.iter().all(|word| word == "red" || word == "blue"), "{value:?}");
    let refused = run("wrong.json");
    let message = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{message}");
    assert!(message.contains("wrong.json") && message.contains("uniqueItems"), "{message}");
}
