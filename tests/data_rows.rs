//! Rows in the spellings of other programs: turns, calls, tools, marks of what is trained, and keys that nothing reads.

use burnish::data::{Example, Message, Role, Row, jsonl};
use serde_json::{Value, json};

use crate::conversations::{CHATML, encoded, encoder, set, trained_text};

fn row(value: &Value) -> Row {
    jsonl::parse(value.to_string().as_bytes(), "d.jsonl", None).expect("reads").remove(0)
}

fn problem(value: &Value) -> String {
    jsonl::parse(value.to_string().as_bytes(), "d.jsonl", None).expect_err("bad").to_string()
}

fn turns(value: &Value) -> (Vec<Message>, Option<Value>) {
    match row(value).example {
        Example::Chat { messages, tools } => (messages, tools),
        other => panic!("{other:?}"),
    }
}

fn ignored(value: &Value) -> Vec<String> {
    row(value).ignored.iter().map(|key| key.to_string()).collect()
}

#[test]
fn prompts_and_completions_may_be_lists_of_turns() {
    let value = json!({
        "prompt": [
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"},
        ],
        "completion": [{"role": "assistant", "content": "d"}],
        "system": "s",
    });
    let encoder = encoder(CHATML);
    assert_eq!(trained_text(&encoder, &encoded(&encoder, &value)), "d<|im_end|>");
    let (messages, _) = turns(&value);
    assert_eq!(messages.len(), 5);
    assert_eq!(messages[0], Message::system("s"));
    let mixed = problem(&json!({"prompt": [{"role": "user", "content": "a"}], "completion": "b"}));
    assert!(
        mixed.contains("`prompt` is a list, and `completion` is a text \"b\"; expected two texts or two"),
        "{mixed}"
    );
    let bad = problem(&json!({"prompt": [{"role": "user", "content": "a"}], "completion": [{"content": "b"}]}));
    assert!(bad.contains("`completion[0]`: `role` is missing; expected a role and a content, found the keys"), "{bad}");
}

#[test]
fn lists_may_be_spelled_as_json_in_a_text() {
    let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let spelled = json!({"messages": messages.to_string(), "tools": tools.to_string()});
    assert_eq!(turns(&spelled), turns(&json!({"messages": messages, "tools": tools})));
    let history = json!({"instruction": "c", "output": "d", "history": "[[\"a\", \"b\"]]"});
    assert_eq!(turns(&history).0.len(), 4);
    let broken = problem(&json!({"messages": "[{\"role\": \"user\""}));
    assert!(
        broken.contains("`messages` is a text \"[{") && broken.contains("expected a list, or its JSON: "),
        "{broken}"
    );
    assert!(problem(&json!({"messages": " "})).contains("`messages` is missing; expected a list of turns"));
}

#[test]
fn calls_and_tools_in_openais_former_spelling_are_those_of_today() {
    let function = json!({"name": "hours", "parameters": {"type": "object"}});
    let call = json!({"name": "hours", "arguments": "{\"day\": 1}"});
    let former = json!({
        "messages": [
            {"role": "user", "content": "When?"},
            {"role": "assistant", "content": null, "function_call": call},
            {"role": "function", "name": "hours", "content": "9"},
            {"role": "assistant", "content": "At nine."},
        ],
        "functions": [function],
    });
    let today = json!({
        "messages": [
            {"role": "user", "content": "When?"},
            {"role": "assistant", "content": null, "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "name": "hours", "content": "9"},
            {"role": "assistant", "content": "At nine."},
        ],
        "tools": [{"type": "function", "function": function}],
    });
    assert_eq!(turns(&former), turns(&today));
    assert_eq!(turns(&former).0[2].role, Role::Other("tool".into()));
    let wrong = problem(&json!({"messages": [{"role": "assistant", "content": null, "function_call": "hours()"}]}));
    assert!(wrong.contains("`messages[0]`: `function_call` is a text \"hours()\"; expected one call"), "{wrong}");
    let both = problem(&json!({"messages": [{"role": "user", "content": "a"}], "tools": [{}], "functions": [{}]}));
    assert!(both.contains("`tools` and `functions` stand side by side; expected one"), "{both}");
}

#[test]
fn what_asks_to_be_trained_and_is_not_is_named() {
    let talk = |user: Value, assistant: Value| {
        let mut turns = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
        for (turn, more) in turns.as_array_mut().expect("turns").iter_mut().zip([user, assistant]) {
            turn.as_object_mut().expect("a turn").extend(more.as_object().expect("keys").clone());
        }
        json!({ "messages": turns })
    };
    for (key, yes, no) in [
        ("train", json!(true), json!(false)),
        ("weight", json!(1), json!(0)),
        ("training", json!(true), json!(false)),
        ("train_on_turn", json!(true), json!(false)),
    ] {
        assert_eq!(ignored(&talk(json!({key: yes}), json!({key: yes}))), [format!("{key} of user turns")]);
        assert!(ignored(&talk(json!({key: no}), json!({key: no}))).is_empty());
        let trained = |value: &Value| turns(value).0[1].trained;
        assert!(trained(&talk(json!({}), json!({key: yes}))) && !trained(&talk(json!({}), json!({key: no}))));
    }
    let encoder = encoder(CHATML);
    let notices = set(&encoder, &talk(json!({"train": true}), json!({}))).notices;
    assert_eq!(notices, ["ignored keys: train of user turns (1 row)"]);
    let wrong = problem(&talk(json!({}), json!({"weight": 2})));
    assert!(wrong.contains("`messages[1]`: `weight` is the number 2; expected 0 or 1"), "{wrong}");
}

#[test]
fn keys_of_content_parts_that_nothing_reads_are_named() {
    let part = json!({"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}, "annotations": []});
    let value = json!({"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "b"}]});
    assert_eq!(ignored(&value), ["cache_control of content parts"]);
    assert_eq!(turns(&value).0[0].content, "a");
}

#[cfg(feature = "tables")]
#[test]
fn columns_without_a_name_are_named_by_their_place() {
    let csv = |text: &str| burnish::data::tables::parse_csv(text.as_bytes().to_vec(), "d.csv", None).expect("reads");
    let rows = csv(",prompt,completion,\n0,a,b,x\n1,c,d,y\n");
    let ignored: Vec<&str> = rows[1].ignored.iter().map(|key| &**key).collect();
    assert_eq!(ignored, ["column 1 without a name", "column 4 without a name"]);
}

#[cfg(feature = "tables")]
#[test]
fn conversations_in_nested_columns_are_read() {
    let path = |name: &str| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tables").join(name);
    let rows = burnish::data::read(path("nested.parquet"), None).expect("reads");
    let expected = [
        json!({
            "messages": [{"role": "user", "content": "When?"}, {"role": "assistant", "content": null, "tool_calls": [
                {"type": "function", "function": {"name": "hours", "arguments": {"day": 1}}},
            ]}],
            "system": "Be brief.",
        }),
        json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": false}]}),
        json!({"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}),
    ];
    let of = |row: &Row| row.example.clone();
    assert_eq!(
        rows.iter().map(of).collect::<Vec<_>>(),
        expected.iter().map(|value| row(value).example).collect::<Vec<_>>()
    );
    assert!(rows[2].position.to_string().ends_with("nested.parquet: row 3"), "the second group of rows");
    assert_eq!(rows[0].ignored.iter().map(|key| &**key).collect::<Vec<_>>(), ["id"]);
    // TRL's lists, and numbers as groups.
    let shape = burnish::data::Shape { group: Some("doc".into()), ..None.into() };
    let rows = burnish::data::read(path("pairs.parquet"), shape).expect("reads");
    assert!(matches!(&rows[0].example, Example::Chat { messages, .. } if messages.len() == 2));
    assert_eq!(rows[0].group.as_deref(), Some("7"));
}
