//! Broken and hostile tokenizers, chat templates and data files: named errors, in bounded time, and no panic.

use std::path::Path;
use std::time::{Duration, Instant};

use burnish::data::{ChatTemplate, Encoder, Example, Message, jsonl};
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

fn compile(source: &str) -> burnish::Result<ChatTemplate> {
    ChatTemplate::compile(source, "model", &[])
}

fn render(source: &str) -> burnish::Result<String> {
    compile(source)?.render(&[Message::user("a")], true)
}

#[test]
fn chains_that_would_overflow_the_stack_are_refused_at_once() {
    let chain = |part: &str| format!("{{{{ 1{} }}}}", part.repeat(10_000));
    let elifs = format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(2_000));
    let mut sources: Vec<String> = [
        "~1",
        "()",
        "|f",
        ".a",
        "[0]",
        " and 1",
        " or 1",
        " is odd",
        " in x",
        "+1",
        "-1",
        "**1",
        "==1",
        " if 1 else 1",
    ]
    .iter()
    .map(|part| chain(part))
    .collect();
    sources.push(format!("{{{{ {}1 }}}}", "not ".repeat(10_000)));
    sources.push(format!("{{{{ {}1 }}}}", "-".repeat(10_000)));
    sources.push(format!("{{{{ {}1 }}}}", "(".repeat(10_000)));
    sources.push(format!("{{{{ {{'a': '}}}}'}}{} }}}}", "~1".repeat(10_000)));
    sources.push(elifs);
    sources.push(format!("{{{{ 1{} }}}}", "~1".repeat(32_000)));
    for source in sources {
        let start = Instant::now();
        let error = compile(&source).expect_err("too long").to_string();
        assert!(error.contains("chain too long"), "{}: {error}", &source[..40]);
        assert!(start.elapsed() < Duration::from_secs(20), "{}: {:?}", &source[..40], start.elapsed());
    }
    let error = compile(&"x".repeat(1 << 20)).expect_err("too long").to_string();
    assert!(error.contains("at most 131072"), "{error}");
}

#[test]
fn what_passes_the_limits_compiles_or_fails_without_an_abort() {
    let nested = |open: &str, close: &str, count: usize| format!("{}{}", open.repeat(count), close.repeat(count));
    for source in [
        nested("{% if 1 %}", "{% endif %}", 5_000),
        nested("{% for x in [1] %}", "{% endfor %}", 3_000),
        format!("{{{{ {} }}}}", nested("{'a':", "}", 10_000)),
        format!("{{{{ [{}] }}}}", "1,".repeat(50_000)),
        format!("{{{{ {} }}}}", "'a' ".repeat(20_000)),
        format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(450)),
        "{{ 1".repeat(20_000),
        "{% set x = 1 %}".repeat(8_000),
        format!("{{{{ 1{} }}}}", "~1".repeat(390)).repeat(50),
    ] {
        let start = Instant::now();
        let _ = render(&source);
        assert!(start.elapsed() < Duration::from_secs(20), "{}: {:?}", &source[..20], start.elapsed());
    }
}

#[test]
fn a_namespace_can_hold_neither_itself_nor_an_endless_chain() {
    let cyclic = "{% set ns = namespace() %}{% set ns.a = ns %}";
    let mut sources: Vec<String> =
        ["{{ ns }}", "{{ ns | tojson }}", "{{ ns ~ 'x' }}", "{{ ns == ns }}", "{{ ns | string }}", "{{ {ns: 1} }}"]
            .map(|end| format!("{cyclic}{end}"))
            .to_vec();
    let repeated = |start: &str, body: &str| {
        format!(
            "{{% set ns = namespace(x={start}) %}}{{% for j in range(9) %}}{{% for i in range(99999) %}}{body}{{% endfor %}}\
             {{% endfor %}}"
        )
    };
    sources.extend(
        [
            "{% set ns = namespace() %}{%- set ns . a=[1, {'b': (ns, 2)}]-%}{{ ns }}",
            "{% set ns = namespace() %}{% set (ns.a, y) = (ns, 1) %}{{ ns }}",
            "{% set ns = namespace() %}{% set y, ns.a = 1, ns %}{{ ns }}",
            "{% set ns = namespace() %}{% set ns.a | default(ns, true) %}{% endset %}{{ ns }}",
            "{% set ns = namespace() %}{% set ns.a = [ns] | reverse %}{{ ns }}",
            "{% set ns = namespace() %}{% for x in [1, ns] %}{% set ns.a = loop %}{{ ns | tojson }}{% endfor %}",
            "{% macro kept(x) %}{% endmacro %}{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
            // Where minijinja sees a tag is where it has to be seen.
            "{% raw %}{#{% endraw %}{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
            "{#}{% raw %}#}{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}{#{% endraw %}#}",
            "{%- raw -%}{% raw %}{%- endraw +%}{% set q = '%}' %}{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
        ]
        .map(str::to_owned),
    );
    sources.extend([
        repeated("1", "{% set ns.x = namespace(x=ns.x) %}"),
        repeated("{}", "{% set ns.x = {'a': ns.x} %}"),
        repeated("1", "{% set g = ns.x %}{% macro f() %}{{ g }}{% endmacro %}{% set ns.x = f %}"),
        repeated("[1]", "{% set ns.x = ns.x[0:] %}"),
        repeated("[[1]]", "{% set ns.x = [ns.x[0][0:]] %}"),
    ]);
    for source in sources {
        let start = Instant::now();
        render(&source).expect_err(&source);
        assert!(start.elapsed() < Duration::from_secs(20), "{source}: {:?}", start.elapsed());
    }
}

#[test]
fn a_namespace_holds_plain_data_as_it_is() {
    let source = "{% set ns = namespace(n=0, l=[], d={}) %}\n{% for m in messages %}\n  {% set ns.n = ns.n + 1 %}\n\
                  {%- set ns.l = ns.l + [m] -%}\n  {% set ns.d = {'a': m, 'b': ns.l[0:]} %}\n{% endfor %}\n\
                  {% raw %}{% set ns.n = 7 %}{% endraw %}{# {% set ns.n = 8 %} #}{% set ns.t %}a{% endset %}\
                  {{ ns.n }}{{ ns.t }}|{{ ns.l[0].content }}|{{ ns.d.a.role }}|{{ ns.d.b[0].role }}";
    assert_eq!(render(source).expect("renders"), "{% set ns.n = 7 %}1a|a|user|user");
}

#[test]
fn a_raw_block_hides_no_chain() {
    let start = Instant::now();
    let source = format!("{{% raw %}}{{#{{% endraw %}}{{{{ 1{} }}}}", "~1".repeat(30_000));
    let error = compile(&source).expect_err("too long").to_string();
    assert!(error.contains("chain too long") && start.elapsed() < Duration::from_secs(5), "{error}");
}

#[test]
fn a_template_cannot_make_a_conversation_too_long_to_encode() {
    let error = render("{{ 'x' * 50000000 }}").expect_err("too long").to_string();
    assert!(error.contains("makes 50000000 bytes of a conversation of 1"), "{error}");
    render("{{ ('a,' * 40000000).split(',') | length }}").expect_err("gigabytes");
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

#[test]
fn templates_that_do_too_much_are_stopped() {
    for source in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for x in [[]] recursive %}{{ loop([[]]) }}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for a in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{{ 'x' * 100000000000 }}",
        "{{ 'x'.center(99999999999) }}",
        "{{ '%999999999999d' | format(1) }}",
        "{{ range(1, 99999999999) | list }}",
        "{{ messages | tojson(indent=99999999999) }}{% for a in range(9999) %}{{ messages | tojson }}{% endfor %}",
    ] {
        let start = Instant::now();
        let result = render(source);
        assert!(start.elapsed() < Duration::from_secs(20), "{source}: {:?}", start.elapsed());
        if let Ok(text) = result {
            assert!(text.len() < 1 << 20, "{source}: {} bytes", text.len());
        }
    }
}

#[test]
fn templates_reach_nothing_but_their_messages() {
    for source in [
        "{% include '/etc/passwd' %}",
        "{% extends '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}{{ x }}",
        "{% from '/etc/passwd' import y %}{{ y }}",
        "{{ ''.__class__.__mro__[1] }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.__class__.__name__ }}",
        "{{ (messages | attr('__class__')).x }}",
    ] {
        if let Ok(text) = render(source) {
            assert!(!text.contains("root:") && !text.contains("class"), "{source} gives {text:?}");
        }
    }
}

#[test]
fn broken_templates_are_named() {
    for source in
        ["{% if %}", "{{ ", "{% for x in %}{% endfor %}", "{% endif %}", "{{ 1 + }}", "{% unknown %}", "{{ 'a }}"]
    {
        let error = compile(source).expect_err("broken").to_string();
        assert!(error.contains("model: chat template: does not compile"), "{error}");
    }
    let error = render("{{ messages[0].content.nothing.at_all }}").expect_err("undefined").to_string();
    assert!(error.contains("cannot render the conversation"), "{error}");
}

#[cfg(unix)]
#[test]
fn data_that_is_no_file_is_refused_without_waiting() {
    let folder = tempfile::tempdir().expect("a folder");
    let fifo = folder.path().join("fifo.jsonl");
    let status = std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo runs");
    assert!(status.success());
    let link = folder.path().join("loop.jsonl");
    std::os::unix::fs::symlink(&link, &link).expect("linked");
    for path in [fifo.as_path(), link.as_path(), folder.path(), Path::new("/dev/zero"), &folder.path().join("absent")] {
        let start = Instant::now();
        let error = jsonl::read(path, None).expect_err("no file");
        assert_eq!(error.exit_code(), 2, "{}", path.display());
        assert!(error.to_string().contains(&path.display().to_string()));
        assert!(start.elapsed() < Duration::from_secs(20), "{}", path.display());
    }
}

#[test]
fn hostile_lines_are_errors_with_their_number() {
    let deep = format!("{{\"text\": {}1}}", "[".repeat(100_000));
    let long = format!("{{\"text\": \"{}\"}}", "a".repeat(17 << 20));
    for line in [
        &deep,
        &long,
        "{\"text\": \"a\", \"x\": NaN}",
        "{\"text\": \"a\", \"x\": -Infinity}",
        "{\"text\": \"a\", \"x\": 1e999}",
        "{\"text\": \"a\", \"x\": 1180591620717411303424}",
        "{\"text\": \"a\", \"text\": \"b\"}",
        "{\"text\": \"\\ud800\"}",
        "{\"text\": null}",
        "{\"text\": [\"a\"]}",
        "{\"messages\": []}",
        "{\"messages\": [1]}",
        "{\"messages\": [{\"role\": \"user\"}]}",
        "{\"messages\": [{\"role\": \"assistant\", \"content\": \"\", \"tool_calls\": [1]}]}",
        "{\"messages\": [{\"role\": \"assistant\", \"tool_calls\": \"f()\"}]}",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"tools\": {}}",
        "{\"prompt\": \"a\", \"completion\": 1}",
        "{\"instruction\": \"a\"}",
        "\"text\"",
        "[{\"text\": \"a\"}]",
    ] {
        let error = jsonl::parse(format!("\n{line}\n").as_bytes(), "d.jsonl", None).expect_err("hostile");
        assert!(error.to_string().starts_with("d.jsonl:2: "), "{}: {error}", &line[..line.len().min(60)]);
    }
    for bytes in [
        &b"PAR1\0\x01"[..],
        b"\xff\xfe{\0",
        b"\xfe\xff\0{",
        b"{\"text\": \"\xff\xfe\"}",
        b"\x1f\x8b\x08\x00",
        b"\0\0\0",
    ] {
        assert!(jsonl::parse(bytes, "d.jsonl", None).is_err());
    }
}
