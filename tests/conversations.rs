//! The way of a row to the model: turns, calls, reasoning and control tokens in every form that data sets and models give
//! them, and the remarks on parts that do not reach it.

use std::fs;
use std::path::Path;

use burnish::data::{ChatTemplate, Encoded, EncodedSet, Encoder, Example, LongPolicy, Message, jsonl};
use burnish::files::{Bytes, gguf::Gguf};
use burnish::text::Tokenizer;
use serde_json::{Value, json};

use crate::cli::{refused, run, text, tiny_job};
use crate::tokenizer::{fixtures, open, read};

/// The template of ChatML.
pub const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
                      {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// The tokenizer of the fixtures with a template.
pub fn encoder(template: &str) -> Encoder {
    let template = ChatTemplate::compile(template, "model", &[]).expect("compiles");
    Encoder::new(open("bytelevel"), Some(template))
}

fn example(row: &Value) -> Example {
    jsonl::parse(row.to_string().as_bytes(), "d.jsonl", None).expect("reads").remove(0).example
}

/// The tokens of one row.
pub fn encoded(encoder: &Encoder, row: &Value) -> Encoded {
    encoder.encode(&example(row)).expect("encodes")
}

/// The set of one row, with its notices.
pub fn set(encoder: &Encoder, row: &Value) -> EncodedSet {
    let rows = jsonl::parse(row.to_string().as_bytes(), "d.jsonl", None).expect("reads");
    encoder.encode_all(&rows, 1024, LongPolicy::Error).expect("encodes")
}

/// The trained tokens of a row as text.
pub fn trained_text(encoder: &Encoder, encoded: &Encoded) -> String {
    let ids: Vec<u32> =
        encoded.ids.iter().zip(&encoded.trained).filter(|(_, trained)| **trained).map(|(id, _)| *id).collect();
    encoder.tokenizer().decode(&ids, false).expect("decodes")
}

/// A conversation of two questions.
pub fn talk() -> Value {
    json!({"messages": [
        {"role": "user", "content": "Is the door open?"}, {"role": "assistant", "content": "It is."},
        {"role": "user", "content": "And the gate?"}, {"role": "assistant", "content": "Shut."},
    ]})
}

#[test]
fn every_line_end_of_a_template_is_a_line_feed() {
    let plain = encoded(&encoder(CHATML), &talk());
    for end in ["\r\n", "\r"] {
        // Line ends within texts of the template, and between its tags.
        let source = CHATML.replace('\n', end).replace("{% endfor %}", &format!("{{% endfor %}}{end}"));
        assert_eq!(encoded(&encoder(&source), &talk()), plain, "{end:?}");
    }
}

#[test]
fn a_conversation_with_tools_gets_the_template_for_tools() {
    let tool_use = "{{ tools | tojson }}".to_owned() + CHATML;
    let folder = tempfile::tempdir().expect("a folder");
    fs::copy(fixtures().join("bytelevel/tokenizer.json"), folder.path().join("tokenizer.json")).expect("copied");
    let mut with_tools = talk();
    with_tools["tools"] = json!([{"type": "function", "function": {"name": "open", "parameters": {}}}]);
    let list = json!([{"name": "default", "template": CHATML}, {"name": "tool_use", "template": tool_use}]);
    let object = json!({"default": CHATML, "tool_use": tool_use});
    let place = |name: &str| folder.path().join(name);
    let opened =
        || Encoder::of(Tokenizer::from_folder(folder.path()).expect("a tokenizer"), "model").expect("compiles");
    let check = |encoder: &Encoder| {
        assert_eq!(encoded(encoder, &talk()), encoded(&self::encoder(CHATML), &talk()));
        assert_eq!(encoded(encoder, &with_tools), encoded(&self::encoder(&tool_use), &with_tools));
        assert!(set(encoder, &with_tools).notices.is_empty());
    };
    for templates in [list, object] {
        let config = json!({"chat_template": templates, "eos_token": "<|im_end|>"});
        fs::write(place("tokenizer_config.json"), config.to_string()).expect("written");
        check(&opened());
    }
    // A template for tools that stands alone is that of every conversation.
    let alone = json!({"chat_template": [{"name": "tool_use", "template": CHATML}], "eos_token": "<|im_end|>"});
    fs::write(place("tokenizer_config.json"), alone.to_string()).expect("written");
    assert_eq!(encoded(&opened(), &talk()), encoded(&self::encoder(CHATML), &talk()));
    fs::write(place("tokenizer_config.json"), json!({"eos_token": "<|im_end|>"}).to_string()).expect("written");
    fs::write(place("chat_template.jinja"), CHATML).expect("written");
    fs::create_dir(place("additional_chat_templates")).expect("made");
    fs::write(place("additional_chat_templates/tool_use.jinja"), &tool_use).expect("written");
    check(&opened());
    let copy = tempfile::tempdir().expect("a folder");
    opened().tokenizer().save(copy.path()).expect("saved");
    check(&Encoder::of(Tokenizer::from_folder(copy.path()).expect("a tokenizer"), "copy").expect("compiles"));
    // Without such a template, the tools are lost, and that is said.
    let notices = set(&self::encoder(CHATML), &with_tools).notices;
    assert_eq!(notices, ["the chat template does not show `tools` (1 row: line 1)"]);
}

#[test]
fn the_header_of_an_answer_is_not_trained_whatever_the_template_makes_of_the_generation_prompt() {
    let usual = encoder(CHATML);
    let wanted = encoded(&usual, &talk());
    assert_eq!(trained_text(&usual, &wanted), "It is.<|im_end|>Shut.<|im_end|>");
    let never = encoder(CHATML.split("{% if add_generation_prompt").next().expect("a part"));
    assert_eq!(encoded(&never, &talk()), wanted);
    // Generation sees the header, too.
    let question = [Message::user("And the gate?")];
    let prompt = |encoder: &Encoder| encoder.encode_prompt(&question).expect("encodes");
    assert_eq!(prompt(&never), prompt(&usual));
    let always = encoder(&CHATML.replace("{% if add_generation_prompt %}", "{% if true %}"));
    assert_eq!(trained_text(&always, &encoded(&always, &talk())), "It is.<|im_end|>Shut.<|im_end|>");
    assert_eq!(prompt(&always), prompt(&usual));
    let words = encoder("{% for m in messages %}{{ '### ' + m.role + ':\n' + m.content + '\n' }}{% endfor %}");
    let one = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
    assert_eq!(trained_text(&words, &encoded(&words, &one)), "b\n<|im_end|>");
}

#[test]
fn tokens_beside_the_tokenizer_are_single_tokens_with_the_ids_given_there() {
    let original = encoded(&encoder(CHATML), &talk());
    let mut tokenizer: Value = read("bytelevel/tokenizer.json");
    let config: Value = read("bytelevel/tokenizer_config.json");
    let added = tokenizer["added_tokens"].as_array_mut().expect("a list");
    let last = added.iter().map(|token| token["id"].as_u64().expect("an id")).max().expect("tokens");
    let beside: Vec<Value> = added.drain(1..).collect();
    let open = |decoder: Option<&[Value]>, tokens: Option<Value>| {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = config.clone();
        config.as_object_mut().expect("an object").remove("added_tokens_decoder");
        config["chat_template"] = json!(CHATML);
        if let Some(decoder) = decoder {
            let pairs = decoder.iter().map(|token| (token["id"].to_string(), token.clone()));
            config["added_tokens_decoder"] = Value::Object(pairs.collect());
        }
        fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).expect("written");
        fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).expect("written");
        if let Some(tokens) = tokens {
            fs::write(folder.path().join("added_tokens.json"), tokens.to_string()).expect("written");
        }
        Tokenizer::from_folder(folder.path()).and_then(|tokenizer| Encoder::of(tokenizer, "model"))
    };
    assert_eq!(encoded(&open(Some(&beside), None).expect("opens"), &talk()), original);
    let ids: Value =
        beside.iter().map(|token| (token["content"].as_str().expect("a text"), token["id"].clone())).collect();
    assert_eq!(encoded(&open(None, Some(ids)).expect("opens"), &talk()), original);
    // An id that the tokenizer cannot give is refused by name.
    let mut far = beside.clone();
    far[0]["content"] = json!("<|far|>");
    far[0]["id"] = json!(last + 50);
    let error = open(Some(&far), None).expect_err("a gap").to_string();
    assert!(error.contains("added_tokens_decoder") && error.contains("<|far|>"), "{error}");
    let mut taken = beside;
    taken[0]["id"] = json!(7);
    let error = open(Some(&taken), None).expect_err("another id").to_string();
    assert!(error.contains("has id 7, and tokenizer.json gives it id"), "{error}");
}

/// Tokens and mask with a tokenizer that types the turn's tokens otherwise.
fn check_mistyped(encoder: &Encoder, wanted: &Encoded) {
    assert_eq!(encoded(encoder, &talk()), *wanted);
    assert_eq!(trained_text(encoder, wanted), "It is.<|im_end|>Shut.<|im_end|>");
    let end = encoder.tokenizer().token_to_id("<|im_end|>").expect("a token");
    assert!(encoder.stop_tokens().contains(&end));
    let ends = |what: &str| {
        let turns = [("user", format!("What does {what} mean?")), ("assistant", "An end.".to_owned())];
        let turns: Value = turns.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
        encoded(encoder, &json!({ "messages": turns })).ids.iter().filter(|id| **id == end).count()
    };
    assert_eq!(ends("<|im_end|>"), ends("that"), "text stays text");
}

#[test]
fn the_tokens_around_turns_are_control_tokens_whatever_their_type() {
    let wanted = encoded(&encoder(CHATML), &talk());
    let mut json: Value = read("bytelevel/tokenizer.json");
    for token in json["added_tokens"].as_array_mut().expect("a list") {
        token["special"] = json!(token["content"] == "<|endoftext|>");
    }
    for eos in ["<|im_end|>", "<|endoftext|>"] {
        let folder = tempfile::tempdir().expect("a folder");
        let config = json!({"eos_token": eos, "chat_template": CHATML});
        fs::write(folder.path().join("tokenizer.json"), json.to_string()).expect("written");
        fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).expect("written");
        let tokenizer = Tokenizer::from_folder(folder.path()).expect("a tokenizer");
        check_mistyped(&Encoder::of(tokenizer, "model").expect("compiles"), &wanted);
    }
    // `<think>` is written by the assistant itself and stays what it was.
    let think = encoder(CHATML).tokenizer().token_to_id("<think>").expect("a token");
    assert!(!encoder(CHATML).tokenizer().is_special(think));
}

#[test]
fn a_gguf_file_may_type_the_tokens_around_turns_wrong() {
    let good = fs::read(fixtures().join("smollm.gguf")).expect("the fixture");
    let open = |bytes: Vec<u8>| {
        let gguf = Gguf::from_bytes("v.gguf", Bytes::from(bytes)).expect("a GGUF file");
        Encoder::of(Tokenizer::from_gguf(&gguf).expect("a tokenizer"), "v.gguf").expect("compiles")
    };
    let wanted = encoded(&open(good.clone()), &talk());
    let key = b"tokenizer.ggml.token_type";
    let at = good.windows(key.len()).position(|window| window == key).expect("is in the file");
    // After the key: type, type of the items, their number, the items.
    let types = at + key.len() + 4 + 4 + 8;
    for token_type in [1u8, 4] {
        let mut bytes = good.clone();
        for id in [1, 2] {
            assert_eq!(bytes[types + 4 * id], 3, "a control token");
            bytes[types + 4 * id] = token_type;
        }
        check_mistyped(&open(bytes), &wanted);
    }
}

#[test]
fn a_gguf_file_that_does_not_name_its_pre_tokenizer_is_refused() {
    let mut bytes = fs::read(fixtures().join("smollm.gguf")).expect("the fixture");
    let key = b"tokenizer.ggml.pre";
    let at = bytes.windows(key.len()).position(|window| window == key).expect("is in the file");
    bytes[at + key.len() - 1] = b'x';
    let gguf = Gguf::from_bytes("v.gguf", Bytes::from(bytes)).expect("a GGUF file");
    let error = Tokenizer::from_gguf(&gguf).expect_err("not named").to_string();
    // What the file says of the model holds without a tokenizer.
    let mut bytes = fs::read(crate::cli::tiny_model()).expect("the fixture");
    let at = bytes.windows(key.len()).position(|window| window == key).expect("is in the file");
    bytes[at + key.len() - 1] = b'x';
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("m.gguf"), bytes).expect("written");
    let inspected = crate::cli::json(&run(&folder, &["inspect", "m.gguf", "--json"]));
    assert!(inspected["layers"].is_u64() && inspected["tokenizer"].is_null(), "{inspected}");
    let problem = inspected["tokenizer_problem"].as_str().expect("a problem");
    assert!(problem.contains("`tokenizer.ggml.pre` is missing"), "{problem}");
    assert!(error.contains("v.gguf: `tokenizer.ggml.pre` is missing") && error.contains("hint"), "{error}");
}

#[test]
fn a_completion_goes_on_where_the_prompt_ends() {
    let encoder = Encoder::new(open("llama.gguf"), None);
    for (prompt, completion) in [("boats: 1", "2"), ("boats: ", "12"), ("boats:", " 12"), ("", "12")] {
        let row = json!({"prompt": prompt, "completion": completion});
        let encoded = encoded(&encoder, &row);
        let text = encoder.tokenizer().decode(&encoded.ids, true).expect("decodes");
        assert_eq!(text, format!("{prompt}{completion}"), "{row}");
        assert!(encoded.ids.starts_with(&encoder.encode_raw_prompt(prompt).expect("encodes")));
    }
}

#[test]
fn texts_that_spell_control_tokens_are_named_once() {
    let encoder = encoder(CHATML);
    let spelled = "<|im_start|>user\nHi<|im_end|>\n";
    for row in [
        json!({"text": spelled}),
        json!({"prompt": spelled, "completion": "b"}),
        json!({"prompt": "a", "completion": spelled}),
        json!({"messages": [{"role": "user", "content": spelled}, {"role": "assistant", "content": "b"}]}),
    ] {
        let notices = set(&encoder, &row).notices;
        assert!(matches!(&notices[..], [one] if one.contains("spells control tokens (`<|im_")), "{row}: {notices:?}");
    }
    assert!(set(&encoder, &talk()).notices.is_empty());
    assert!(set(&encoder, &json!({"text": "a <b> c"})).notices.is_empty());
}

const CALLS: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}\
                     {% for call in m.tool_calls or [] %}{{ ARGUMENTS }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}\
                     {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn call(arguments: Value) -> Value {
    json!({"messages": [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"type": "function", "function": {"name": "hours", "arguments": arguments}},
        ]},
    ]})
}

#[test]
fn the_older_form_of_a_call_is_the_same_call() {
    let encoder = encoder(&CALLS.replace("ARGUMENTS", "call.function | tojson"));
    let mut older = call(json!("{\"branch\": \"north\"}"));
    let turn = older["messages"][1].as_object_mut().expect("a turn");
    let calls = turn.remove("tool_calls").expect("calls");
    turn.insert("function_call".into(), calls[0]["function"].clone());
    assert_eq!(encoded(&encoder, &older), encoded(&encoder, &call(json!({"branch": "north"}))));
}

#[test]
fn arguments_of_a_call_may_be_an_object_or_its_text() {
    let (object, spelled) = (json!({"branch": "north", "days": [1]}), r#"{"branch": "north", "days": [1]}"#);
    for written in ["call.function.arguments | tojson", "call.function | tojson", "call | tojson"] {
        let encoder = encoder(&CALLS.replace("ARGUMENTS", written));
        let wanted = encoded(&encoder, &call(object.clone()));
        assert_eq!(encoded(&encoder, &call(json!(spelled))), wanted, "{written}");
        assert!(trained_text(&encoder, &wanted).contains(spelled), "{written}");
    }
    // A template that joins texts wants a text.
    let encoder = encoder(&CALLS.replace("ARGUMENTS", "'> ' + call.function.arguments"));
    let wanted = encoded(&encoder, &call(json!(spelled)));
    assert_eq!(encoded(&encoder, &call(object)), wanted);
    assert!(trained_text(&encoder, &wanted).contains(&format!("> {spelled}")));
    // And what is no JSON stays as it is.
    assert!(trained_text(&encoder, &encoded(&encoder, &call(json!("north")))).contains("> north"));
}

#[test]
fn calls_that_are_turns_are_trained_and_unknown_roles_are_named() {
    let spelled = r#"{"name": "hours", "arguments": {"branch": "north"}}"#;
    let row = json!({"conversations": [
        {"from": "human", "value": "When?"}, {"from": "function_call", "value": spelled},
        {"from": "observation", "value": "09:00"}, {"from": "gpt", "value": "At nine."},
    ]});
    let plain = encoder(CHATML);
    let expected = format!("{spelled}<|im_end|>At nine.<|im_end|>");
    assert_eq!(trained_text(&plain, &encoded(&plain, &row)), expected);
    assert!(set(&plain, &row).notices.is_empty());
    // As a call where the template knows calls.
    let calls = encoder(&CALLS.replace("ARGUMENTS", "'> ' + call.function.arguments | tojson"));
    let expected = r#"> {"branch": "north"}<|im_end|>At nine.<|im_end|>"#;
    assert_eq!(trained_text(&calls, &encoded(&calls, &row)), expected);
    let unknown = json!({"messages": [
        {"role": "user", "content": "a"}, {"role": "asistant", "content": "b"}, {"role": "critic", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]});
    let notices = set(&plain, &unknown).notices.join("\n");
    assert!(
        notices.contains("role `asistant`; did you mean `assistant`?") && notices.contains("role `critic`"),
        "{notices}"
    );
}

#[test]
fn reasoning_reaches_the_template_under_every_name() {
    let source = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.KEY %}{{ '<think>' + m.KEY + '</think>' }}\
                  {% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}\
                  {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let row = |key: &str| {
        json!({"messages": [
            {"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Three.", key: "Two and one."},
        ]})
    };
    for read in ["reasoning_content", "thinking"] {
        let encoder = encoder(&source.replace("KEY", read));
        for key in ["reasoning_content", "thinking", "reasoning"] {
            let encoded = encoded(&encoder, &row(key));
            assert_eq!(
                trained_text(&encoder, &encoded),
                "<think>Two and one.</think>Three.<|im_end|>",
                "{read}, {key}"
            );
            assert!(set(&encoder, &row(key)).notices.is_empty());
        }
        let notices = set(&encoder, &row("rationale")).notices;
        let expected = "the chat template does not show `rationale` of turns of the role `assistant` (1 row: line 1)";
        assert_eq!(notices, [expected]);
    }
}

#[test]
fn turns_and_keys_that_the_template_leaves_out_are_named() {
    let some = CHATML
        .replace("{% for m in messages %}", "{% for m in messages if m.role in ['system', 'user', 'assistant'] %}");
    let row = |role: &str| {
        json!({"messages": [
            {"role": role, "content": "In one word."}, {"role": "user", "content": "And the gate?"},
            {"role": "assistant", "content": "Shut.", "score": 3},
        ]})
    };
    let encoder = encoder(&some);
    for role in ["developer", "tool"] {
        let notices = set(&encoder, &row(role)).notices.join("\n");
        assert!(notices.contains(&format!("turns of the role `{role}` are left out")), "{notices}");
        assert!(notices.contains("does not show `score` of turns of the role `assistant`"), "{notices}");
    }
    assert_eq!(set(&encoder, &row("system")).notices.len(), 1, "only the score");
    // A template that shows another text of the assistant outside its answer.
    let outside = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.note or '') + '<|im_end|>' }}\
                   {{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
                   {% if add_generation_prompt %}{{ '<|im_start|>assistant\n<|im_end|><|im_start|>assistant\n' }}{% endif %}";
    let noted = json!({"messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "note": "c d e"},
    ]});
    let notices = set(&self::encoder(outside), &noted).notices.join("\n");
    assert!(notices.contains("`note`") || notices.contains("generation prompt"), "{notices}");
    // A row that has nothing to train, and an empty answer.
    let rows = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n\
                {\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"\"}]}\n";
    let rows = jsonl::parse(rows.as_bytes(), "d.jsonl", None).expect("reads");
    let set = encoder.encode_all(&rows, 64, LongPolicy::Error).expect("encodes");
    assert_eq!((set.dropped_untrained, set.positions.len()), (1, 1));
    let notices = set.notices.join("\n");
    assert!(notices.contains("nothing in it is trained (1 row: line 1)"), "{notices}");
    assert!(notices.contains("the answer is empty: only the end of it is trained (1 row: line 2)"), "{notices}");
}

#[test]
fn a_prompt_that_the_template_does_not_show_is_refused() {
    let error = encoder("the same for all").encode_prompt(&[Message::user("Where is it?")]).expect_err("not shown");
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("shows nothing of the last message"), "{error}");
}

#[test]
fn hints_of_rows_that_cannot_be_encoded_are_kept() {
    let rows = jsonl::parse(format!("{}\n{}\n", talk(), talk()).as_bytes(), "d.jsonl", None).expect("reads");
    let encoder = Encoder::new(open("bytelevel"), None);
    let error = encoder.encode_all(&rows, 64, LongPolicy::Error).expect_err("no template").to_string();
    let expected =
        "d.jsonl:1: the model has no chat template, and chat data needs one (2 rows, also 2)\n  hint: name one in";
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn a_prompt_is_asked_as_the_adapter_was_trained() {
    let folder = tiny_job();
    let trained = run(&folder, &["train", "recipe.toml", "--set", "train.max_steps=1"]);
    assert!(trained.status.success(), "{}", text(&trained.stderr));
    let record = fs::read_to_string(folder.path().join("runs/sums/run.json")).expect("the record");
    let record: Value = serde_json::from_str(&record).expect("JSON");
    assert_eq!(record["data"]["format"], "prompt-completion");
    let model = crate::cli::tiny_model().display().to_string();
    let ask = |more: &[&str]| {
        let arguments = ["generate", "--base", &model, "--prompt", "1 and 2 is ", "--max-tokens", "4"];
        run(&folder, &[&arguments[..], more].concat())
    };
    let adapter = ["--adapter", "runs/sums"];
    let (bare, raw) = (ask(&adapter), ask(&[&adapter[..], &["--raw"]].concat()));
    assert!(bare.status.success(), "{}", text(&bare.stderr));
    assert_eq!(text(&bare.stdout), text(&raw.stdout));
    assert!(text(&bare.stderr).contains("as it is, as in the adapter's training data (`prompt-completion`)"));
    let chat = ask(&[&adapter[..], &["--chat"]].concat());
    assert!(text(&chat.stderr).contains("goes through the chat template"), "{}", text(&chat.stderr));
    assert!(text(&ask(&[]).stderr).contains("goes through the chat template"));
    assert!(refused(&ask(&["--chat", "--raw"])).contains("--raw"));
    // Evaluating on data of another shape is said.
    fs::write(folder.path().join("chat.jsonl"), talk().to_string()).expect("written");
    let eval = run(&folder, &["eval", "--base", &model, "--adapter", "runs/sums", "--data", "chat.jsonl"]);
    let stderr = text(&eval.stderr);
    assert!(eval.status.success() && stderr.contains("was trained on `prompt-completion` data, bare"), "{stderr}");
    assert!(Path::new(&model).exists());
}
