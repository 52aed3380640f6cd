//! Chat templates against transformers' (tests/reference/make_text_fixtures.py).

use std::fs;

use burnish::data::{ChatTemplate, Encoder, Example, LongPolicy, Message, Role, jsonl};
use burnish::text::Tokenizer;
use serde_json::{Value, json};
use time::{Date, Month, Time};

use crate::conversations::{CHATML, encoded, encoder, set, trained_text};
use crate::tokenizer::{fixtures, read};

/// The turns of a conversation in the fixtures.
pub fn messages(list: &Value) -> Vec<Message> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    list.as_array()
        .expect("a list")
        .iter()
        .map(|turn| Message::new(Role::of(&text(&turn["role"])), text(&turn["content"])))
        .collect()
}

/// A template of the fixtures: its source and named tokens, and the cases.
pub fn template(name: &str) -> (ChatTemplate, Value) {
    let all = read("templates.json");
    let found = all.as_array().expect("a list").iter().find(|template| template["name"] == name);
    let found = found.unwrap_or_else(|| panic!("{name} is in the fixture")).clone();
    let text = |field: &str| found[field].as_str().expect("a text");
    let named = [("bos_token", text("bos")), ("eos_token", text("eos"))];
    let day = Date::from_calendar_date(2024, Month::July, 6).expect("a date");
    let noon = day.with_time(Time::from_hms(15, 4, 5).expect("a time")).assume_utc();
    let compiled = ChatTemplate::compile_at(text("template"), name, &named, noon).expect("compiles");
    (compiled, found)
}

#[test]
fn templates_render_as_in_transformers() {
    let mut compared = 0;
    for found in read("templates.json").as_array().expect("a list") {
        let name = found["name"].as_str().expect("a name");
        let (template, found) = template(name);
        for case in found["cases"].as_array().expect("cases") {
            let rendered = template.render(&messages(&case["messages"]), case["generation"] == true);
            match case["text"].as_str() {
                Some(text) => assert_eq!(rendered.expect("renders"), text, "{name}: {}", case["messages"]),
                None => assert!(rendered.is_err(), "{name}: {} gives {rendered:?}", case["messages"]),
            }
            compared += 1;
        }
    }
    assert!(compared > 150, "only {compared} cases");
}

#[test]
fn python_methods_and_json_layouts_are_those_of_python() {
    // Expected: what transformers 5.24 renders.
    for (source, expected) in [
        ("{{ 'a-b-c'.rsplit('-', 1)[0] }} {{ 'a-b-c'.rsplit('-')|length }} {{ ' a b '.rsplit()|length }}", "a-b 3 2"),
        ("{{ 'a-b-c'.partition('-')|join('|') }} {{ 'abc'.partition('-')|join('|') }}", "a|-|b-c abc||"),
        ("{{ 'a-b-c'.rpartition('-')|join('|') }} {{ 'abc'.rpartition('-')|join('|') }}", "a-b|-|c ||abc"),
        ("{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ 'abc'.removeprefix('c') }}", "bc ab abc"),
        (
            "{{ [0.1, 1.0, 1e15, 1e16, 1.5e30, 0.0001, 0.00001, -2.5e-7, 0.0]|tojson }}",
            "[0.1, 1.0, 1000000000000000.0, 1e+16, 1.5e+30, 0.0001, 1e-05, -2.5e-07, 0.0]",
        ),
        ("{{ 'a' is sequence }} {{ {} is sequence }} {{ [] is sequence }} {{ 1 is sequence }}", "True True True False"),
        ("{{ {'z': 1, 'a': [1, none]}|tojson }}", "{\"z\": 1, \"a\": [1, null]}"),
        ("{{ {'z': 1, 'a': [1, none]}|tojson(sort_keys=true) }}", "{\"a\": [1, null], \"z\": 1}"),
        ("{{ {'z': 1, 'a': [1, none]}|tojson(separators=(',', ':')) }}", "{\"z\":1,\"a\":[1,null]}"),
        ("{{ [1]|tojson(indent=2, separators=(', ', ': ')) }}", "[\n  1\n]"),
        ("{{ 'é😀'|tojson(ensure_ascii=true) }} {{ 'é😀'|tojson }}", "\"\\u00e9\\ud83d\\ude00\" \"é😀\""),
    ] {
        let template = ChatTemplate::compile(source, "python", &[]).expect("compiles");
        assert_eq!(template.render(&[Message::user("a")], false).expect("renders"), expected, "{source}");
    }
    let keys = r#"{"messages": [{"content": "a", "role": "user", "z": 1, "b": null, "a": {"y": 1, "x": 2}, "m": 3}]}"#;
    let Example::Chat { messages, .. } =
        jsonl::parse(keys.as_bytes(), "d.jsonl", None).expect("reads").remove(0).example
    else {
        panic!("a conversation");
    };
    let template = ChatTemplate::compile("{{ messages[0]|tojson }}", "keys", &[]).expect("compiles");
    let expected = r#"{"role": "user", "content": "a", "z": 1, "a": {"y": 1, "x": 2}, "m": 3}"#;
    assert_eq!(template.render(&messages, false).expect("renders"), expected);
}

/// Where minijinja differs from Jinja2 and no chat template is known to look: lazy filters of a number, how an undefined
/// value in a list is printed, and operators, which are not replaceable.
const UNLIKE_JINJA2: [&str; 13] = [
    "{{ {'a': 1} is lower }}",
    "{{ 0 | map('upper') | list }}",
    "{{ 0 | map(attribute='a') | list }}",
    "{{ 'ab' | map(attribute='a') | list }}",
    "{{ [1, 2] | map(attribute='a') | list }}",
    "{{ {'a': 1} | map(attribute='a') | list }}",
    "{{ 0 | select | list }}",
    "{{ 0 | reject | list }}",
    "{{ 0 | selectattr('a') | list }}",
    "{{ {'a': 1} | attr('a') }}",
    "{{ {'a': 1} | escape }}",
    "{{ none[1:] }}",
    "{{ missing[1:] }}",
];

#[test]
fn tests_and_filters_answer_as_in_jinja2() {
    let mut wrong = Vec::new();
    let cases = read("answers.json");
    let cases = cases.as_array().expect("a list");
    assert!(cases.len() > 700, "only {} cases", cases.len());
    for case in cases {
        let source = case["source"].as_str().expect("a source");
        if UNLIKE_JINJA2.contains(&source) {
            continue;
        }
        let rendered = ChatTemplate::compile(source, "answers", &[])
            .and_then(|template| template.render(&[Message::user("Hi")], false));
        match (case["text"].as_str(), rendered) {
            (Some(expected), Ok(text)) if text == expected => {}
            (None, Err(_)) => {}
            (expected, rendered) => {
                let rendered = rendered.map_err(|error| error.to_string().chars().take(160).collect::<String>());
                wrong.push(format!("{source}: {rendered:?}; expected {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn words_are_counted_as_in_jinja2() {
    let template = ChatTemplate::compile("{{ messages[0].content | wordcount }}", "words", &[]).expect("compiles");
    let counted = |text: &str| template.render(&[Message::user(text)], false).expect("renders");
    assert_eq!((counted("a b, c_d's"), counted(" ?")), ("4".to_owned(), "0".to_owned()));
}

#[test]
fn what_a_template_raises_reaches_the_user() {
    let (template, _) = template("mistral");
    let error = template.render(&[Message::assistant("a")], false).expect_err("raises").to_string();
    assert!(error.contains("mistral: chat template") && error.contains("must alternate"), "{error}");
}

#[test]
fn tokens_of_the_assistant_in_a_prompt_stay_ordinary_tokens() {
    let thinks = CHATML.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}");
    let prose = "{{ '<|im_start|>system\nThink first: <think> thoughts </think> solution.<|im_end|>\n' }}";
    // What transformers' `apply_chat_template` gives.
    let turns = [
        1, 324, 264, 201, 89, 74, 91, 223, 420, 33, 2, 201, 1, 67, 299, 295, 86, 397, 86, 201, 420, 201, 74, 79, 201,
        421, 201, 68, 2, 201,
    ];
    let system = [
        1, 85, 281, 86, 410, 201, 54, 74, 265, 77, 286, 75, 84, 85, 86, 28, 223, 420, 259, 74, 297, 320, 86, 85, 223,
        421, 266, 81, 78, 87, 86, 75, 296, 16, 2, 201,
    ];
    let row = json!({"messages": [
        {"role": "user", "content": "why <think>?"}, {"role": "assistant", "content": "<think>\nhm\n</think>\nb"},
    ]});
    for (source, expected) in [
        (thinks.clone(), turns.to_vec()),
        (prose.to_owned() + CHATML, [&system[..], &turns].concat()),
        (prose.to_owned() + &thinks, [&system[..], &turns].concat()),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let config = json!({"eos_token": "<|im_end|>", "chat_template": source});
        fs::copy(fixtures().join("bytelevel/tokenizer.json"), folder.path().join("tokenizer.json")).expect("copied");
        fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).expect("written");
        let tokenizer = Tokenizer::from_folder(folder.path()).expect("a tokenizer");
        let encoder = Encoder::of(tokenizer, "model").expect("compiles");
        assert_eq!(encoded(&encoder, &row).ids, expected, "{source}");
        assert!(set(&encoder, &row).notices.is_empty(), "{source}");
    }
}

#[test]
fn parts_of_a_content_are_texts_and_reasoning_and_nothing_else() {
    let source = CHATML.replace("m.content", "(m.reasoning_content or '') + '|' + m.content");
    let encoder = encoder(&source);
    let row = |content: Value| json!({"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": content}]});
    for (kind, thought) in [("text", "thinking"), ("output_text", "reasoning"), ("input_text", "reasoning")] {
        let parts = json!([
            {"type": thought, thought: "Two and one."}, {"type": kind, "text": "Thr"}, {"type": kind, "text": "ee."},
        ]);
        let encoded = encoded(&encoder, &row(parts));
        assert_eq!(trained_text(&encoder, &encoded), "Two and one.|Three.<|im_end|>", "{kind}, {thought}");
    }
    for kind in ["image_url", "tool_use"] {
        let parts = json!([{"type": "text", "text": "a"}, {"type": kind, "text": "b"}]);
        let error = jsonl::parse(row(parts).to_string().as_bytes(), "d.jsonl", None).expect_err("refused").to_string();
        let expected = format!("`content[1]` is a part of the type `{kind}`");
        assert!(error.contains("d.jsonl:1") && error.contains("messages[1]") && error.contains(&expected), "{error}");
    }
}

#[test]
fn a_role_that_spells_a_control_token_is_named_as_written() {
    let row = json!({"messages": [
        {"role": "<|im_start|>critic", "content": "a"}, {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]});
    let notices = set(&encoder(CHATML), &row).notices.join("\n");
    assert!(notices.contains("no loss is taken on turns of the role `<|im_start|>critic`"), "{notices}");
}

#[test]
fn texts_that_a_template_cuts_are_named() {
    let row = json!({"messages": [
        {"role": "user", "content": "Is the door open?"},
        {"role": "assistant", "content": "<think>They said so.</think>The door is open."},
    ]});
    let notice = |role: &str| {
        format!("the chat template shows only a part of `content` of turns of the role `{role}` (1 row: line 1)")
    };
    for (shown, roles) in [
        ("m.content.split('</think>')[-1]", &["assistant"][..]),
        ("m.content.split('</think>')[0]", &["assistant"]),
        ("m.content[15:]", &["assistant", "user"]),
        ("m.content[:12]", &["assistant", "user"]),
        ("m.content[:4] + m.content[-4:]", &["assistant", "user"]),
        ("m.content | tojson", &[]),
        ("m.content", &[]),
    ] {
        let notices = set(&encoder(&CHATML.replace("m.content", shown)), &row).notices;
        let expected: Vec<String> = roles.iter().map(|role| notice(role)).collect();
        assert_eq!(notices, expected, "{shown}");
    }
    let notices = set(&encoder(&CHATML.replace("m.content", "m.content | upper")), &row).notices;
    let changed =
        |role: &str| format!("the chat template changes the text of turns of the role `{role}` (1 row: line 1)");
    assert_eq!(notices, ["assistant", "user"].map(changed), "all of it is shown, in other letters");
}

#[test]
fn parts_of_calls_and_tools_that_a_template_leaves_out_are_named() {
    let source = |call: &str, tools: &str| {
        "TOOLS{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}\
         {% for c in m.tool_calls or [] %}CALL{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
            .replace("CALL", call)
            .replace("TOOLS", tools)
    };
    let row = |arguments: Value| {
        json!({
            "messages": [
                {"role": "user", "content": "When?"},
                {"role": "assistant", "content": null, "tool_calls": [
                    {"type": "function", "function": {"name": "hours", "arguments": arguments}},
                ]},
            ],
            "tools": [{"type": "function", "function": {
                "name": "hours", "description": "Opening hours", "parameters": {
                    "type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"],
                },
            }}],
        })
    };
    let notices =
        |call: &str, tools: &str, arguments: Value| set(&encoder(&source(call, tools)), &row(arguments)).notices;
    let whole = ("{{ c.function | tojson }}", "{{ tools | tojson }}");
    let numbers = json!({"days": 2, "branch": "north", "late": true, "prices": [1.5]});
    assert_eq!(notices(whole.0, whole.1, numbers.clone()), [""; 0]);
    let part = |what: &str| format!("the chat template shows only a part of {what} (1 row: line 1)");
    let of_calls = part("`tool_calls` of turns of the role `assistant`");
    let texts_only = "{{ c.function.name ~ (c.function.arguments.values() | select('string') | join) }}";
    assert_eq!(notices(texts_only, whole.1, numbers), [of_calls]);
    assert_eq!(
        notices(texts_only, whole.1, json!({"branch": "north"})),
        [""; 0],
        "what is shown is all there is but keys"
    );
    for tools in [
        "{% for t in tools %}{{ t.function.name }}{% endfor %}",
        "{% for t in tools %}{{ t.function.name + t.function.description }}{% endfor %}",
    ] {
        assert_eq!(notices(whole.0, tools, json!({})), [part("`tools`")]);
    }
    // Arguments that are no object, where the template needs one.
    let encoder = encoder(&source("{% for k, v in c.function.arguments.items() %}{{ k ~ v }}{% endfor %}", ""));
    let rows = |arguments: Value| jsonl::parse(row(arguments).to_string().as_bytes(), "d.jsonl", None).expect("reads");
    let encode = |arguments: Value| encoder.encode_all(&rows(arguments), 512, LongPolicy::Error);
    for (arguments, found) in [(json!("north"), "\"north\""), (json!("[1, 2]"), "\"[1, 2]\""), (json!(3), "3")] {
        let error = encode(arguments).expect_err("refused").to_string();
        let expected = format!(
            "d.jsonl:1: `messages[1].tool_calls[0]`: `arguments` is {found}; the chat template needs a JSON object"
        );
        assert!(error.starts_with(&expected), "{error}");
    }
    assert!(encode(json!("{\"days\": 2}")).is_ok() && encode(json!({"days": 2})).is_ok());
}

#[test]
fn a_generation_prompt_that_differs_from_the_header_of_an_answer_is_named() {
    let row = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
    let with_prompt =
        |prompt: &str| CHATML.replace("{{ '<|im_start|>assistant\n' }}", &format!("{{{{ '{prompt}' }}}}"));
    for (prompt, notice) in [
        ("<|im_start|>assistant\n", None),
        ("<|im_start|>assistant", None),
        (
            "<|im_start|>assistant\n<think>\n",
            Some("ends with \"<think>\\n\", and before a finished answer that is missing"),
        ),
        (
            "<|im_start|>bot\n",
            Some("ends with \"bot\\n\", and before a finished answer stands the header \"assistant\\n\""),
        ),
    ] {
        let encoder = encoder(&with_prompt(prompt));
        let notices = set(&encoder, &row).notices;
        match notice {
            None => assert!(notices.is_empty(), "{notices:?}"),
            Some(notice) => assert!(matches!(&notices[..], [one] if one.contains(notice)), "{notices:?}"),
        }
        let expected = if prompt.ends_with("assistant") { "\nb<|im_end|>" } else { "b<|im_end|>" };
        assert_eq!(trained_text(&encoder, &encoded(&encoder, &row)), expected, "{prompt:?}");
    }
}

#[test]
fn a_template_that_goes_through_parts_of_content_gets_parts() {
    let row = json!({"messages": [
        {"role": "user", "content": "Is the door open?"}, {"role": "assistant", "content": "It is."},
    ]});
    let parts = CHATML.replace("m.content", "(m.content | map(attribute='text') | join)");
    let either = CHATML.replace("m.content", "(m.content if m.content is string else m.content[0].text)");
    for source in [parts, either] {
        let encoder = encoder(&source);
        assert_eq!(encoded(&encoder, &row), encoded(&self::encoder(CHATML), &row));
        assert!(set(&encoder, &row).notices.is_empty());
    }
}

#[test]
fn an_empty_thought_is_shown_and_not_trained() {
    let row = |answer: &str| json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]});
    let encoder = encoder(CHATML);
    for (answer, trained) in [
        ("<think>\n\n</think>\n\nb", "b<|im_end|>"),
        ("<think></think>b", "b<|im_end|>"),
        ("[THINK] [/THINK]b", "b<|im_end|>"),
        ("<think>\n.\n</think>\n\nb", "<think>\n.\n</think>\n\nb<|im_end|>"),
        ("<div></div>", "<div></div><|im_end|>"),
        ("c <think></think>b", "c <think></think>b<|im_end|>"),
    ] {
        let row = row(answer);
        let encoded = encoded(&encoder, &row);
        assert_eq!(trained_text(&encoder, &encoded), trained, "{answer:?}");
        assert!(encoder.tokenizer().decode(&encoded.ids, false).expect("decodes").contains(answer));
    }
}

#[test]
fn a_token_that_opens_an_answer_is_no_token_of_turns() {
    // Without a generation prompt of its own, the token stands right behind the user's text.
    let source = "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>' + m.content + '<|im_end|><think>' }}\
                  {% else %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}";
    let encoder = encoder(source);
    let think = encoder.tokenizer().token_to_id("<think>").expect("a token");
    assert!(!encoder.tokenizer().is_special(think));
}
