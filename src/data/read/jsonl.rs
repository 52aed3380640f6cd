//! Data files of JSON: an object a line (JSONL), or one list of objects, in four shapes.
//!
//! | format | object |
//! |---|---|
//! | `prompt-completion` | `{"prompt": …, "completion": …}`: two texts, or two lists of turns |
//! | `alpaca` | `{"instruction": …, "input": …, "output": …}`; `input` and `system` may be missing, earlier turns stand in `history` |
//! | `chat` | `{"messages": [{"role": …, "content": …}, …]}`, perhaps with `tools` and `system` beside and `tool_calls` inside, or ShareGPT's `{"conversations": [{"from": …, "value": …}]}` |
//! | `text` | `{"text": …}` |
//!
//! A turn with `"weight": 0` (OpenAI's format) or `"train": false` (axolotl's) is not trained. Other keys are not read, and
//! named together with the number of rows that have them.

use serde_json::Value;

use super::rows::{Receiver, Rows};
use super::{Shape, list, unreadable};
use crate::data::example::Row;
use crate::data::position::At;
use crate::error::{Error, Place, Result};
use crate::files::json;

/// Parses the bytes of a file; `name` stands in messages. A text that begins with `[` is a list, any other has an object a
/// line. Without a format, the first object decides. A byte-order mark, CR LF, blank lines and a missing last line end are fine.
///
/// # Errors
/// Input: every bad row, equal problems together.
pub fn parse(bytes: &[u8], name: &str, shape: impl Into<Shape>) -> Result<Vec<Row>> {
    let bytes = unreadable::text(bytes, name)?;
    let mut rows = Rows::new(name, shape.into());
    match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') => list::parse(bytes, &mut rows),
        _ => parse_lines(bytes, &mut rows),
    }
    rows.finish()
}

fn parse_lines(bytes: &[u8], rows: &mut Rows) {
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let at = At::Line(index + 1);
        if rows.is_too_long(at, line.len()) {
            continue;
        }
        match parse_object(line) {
            Ok(value) => rows.row(at, value, &[]),
            Err(error) => rows.bad(at, &error),
        }
    }
}

/// Parses one object strictly: no duplicate keys, no numbers beyond 64 bits. The error has no place.
pub(super) fn parse_object(text: &[u8]) -> Result<Value> {
    let value = json::parse("", text).map_err(|error| match error.problems() {
        [problem] => {
            let column = match problem.place {
                Place::File { column, .. } => column.unwrap_or(1),
                _ => 1,
            };
            let error = Error::input("", format!("{} at column {column}", problem.message));
            match text.first() {
                Some(b'{') if text.trim_ascii_end() == b"{" => {
                    error.hint("expected one object on one line, or a list of objects in `[` and `]`")
                }
                Some(b'{' | b'"') => error,
                _ => error.hint("expected one JSON object a line; tables are named .csv or .parquet"),
            }
        }
        _ => error,
    })?;
    check_numbers(&value)?;
    Ok(value)
}

/// Integers beyond 64 bits would silently become floats.
fn check_numbers(value: &Value) -> Result<()> {
    let mut pending = vec![value];
    while let Some(value) = pending.pop() {
        match value {
            Value::Array(items) => pending.extend(items),
            Value::Object(fields) => pending.extend(fields.values()),
            Value::Number(number) if number.is_f64() && number.as_f64().is_some_and(|x| x.abs() >= 2f64.powi(63)) => {
                return Err(Error::input("", format!("the number {number} does not fit in 64 bits")));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Example, Format, Message, Position};

    fn problems(text: &str) -> String {
        parse(text.as_bytes(), "d.jsonl", None).expect_err("bad").to_string()
    }

    #[test]
    fn each_shape_is_detected() {
        let one = |line: &str| parse(line.as_bytes(), "d.jsonl", None).expect("good").remove(0).example;
        assert_eq!(
            one(r#"{"prompt":"a","completion":"b","id":3}"#),
            Example::PromptCompletion { prompt: "a".into(), completion: "b".into() }
        );
        assert_eq!(
            one(r#"{"instruction":"a","output":"b","input":null,"text":"c"}"#),
            Example::Alpaca { instruction: "a".into(), input: "".into(), output: "b".into(), system: None }
        );
        let turns = vec![Message::user("你好"), Message::assistant("您好")];
        assert_eq!(
            one(
                r#"{"messages":[{"role":"user","content":"你好"},{"role":"assistant","content":[{"type":"text","text":"您好"}]}]}"#
            ),
            Example::Chat { messages: turns.clone(), tools: None }
        );
        assert_eq!(
            one(r#"{"conversations":[{"from":"human","value":"你好"},{"from":"gpt","value":"您好"}]}"#),
            Example::Chat { messages: turns, tools: None }
        );
        assert_eq!(one(r#"{"text":"a"}"#), Example::Text { text: "a".into() });
    }

    #[test]
    fn turns_are_named_one_way_or_the_other() {
        let one = |line: &str| parse(line.as_bytes(), "d.jsonl", None).expect("good").remove(0).example;
        let expected = Example::Chat { messages: vec![Message::user("a"), Message::assistant("b")], tools: None };
        for line in [
            r#"{"conversations":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
            r#"{"messages":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}],"tools":[]}"#,
            r#"{"messages":[{"role":"user","content":"a","name":null},{"role":"assistant","content":"b","tool_calls":[]}],"tools":null}"#,
        ] {
            assert_eq!(one(line), expected, "{line}");
        }
        let not_chat = parse(b"{\"text\": \"a\"}", "d.jsonl", Some(Format::Chat)).expect_err("no turns").to_string();
        assert!(not_chat.contains("`messages` is missing"), "{not_chat}");
    }

    #[test]
    fn line_ends_marks_and_blank_lines_do_not_matter() {
        let examples =
            parse(b"\xef\xbb\xbf\r\n{\"text\":\"a\"}\r\n\n  \n{\"text\":\"b\"}", "d.jsonl", None).expect("good");
        assert_eq!(examples.len(), 2);
    }

    #[test]
    fn every_bad_line_is_reported_with_its_number() {
        let text = "{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"prompt\":1,\"completion\":\"b\"}\n\n{\"prompt\":\"a\"}\n{\"prompt\":\"a\",,}\n[]\n";
        let text = problems(text);
        for expected in [
            "d.jsonl:2: `prompt` is the number 1; expected a text",
            "d.jsonl:4: `completion` is missing",
            "d.jsonl:5: not valid JSON",
            "at column 15",
            "d.jsonl:6: found an empty list; expected an object",
        ] {
            assert!(text.contains(expected), "{expected} in:\n{text}");
        }
    }

    #[test]
    fn the_same_problem_of_many_lines_is_reported_once() {
        let text = problems(&"{}\n".repeat(50));
        assert_eq!(text.matches("d.jsonl:").count(), 1, "{text}");
        assert!(text.contains("d.jsonl:1: found the keys []") && text.contains("(50 rows, also 2, 3, …)"), "{text}");
        assert!(text.contains("hint: rename the keys, or map them in `[data.columns]`"), "{text}");
    }

    #[test]
    fn a_row_that_is_too_long_is_refused_in_lines_and_in_lists() {
        let object = format!("{{\"text\": \"{}\"}}", "a".repeat(1 << 20));
        let line = problems(&object);
        assert!(
            line.contains("d.jsonl:1: a row of 1048588 bytes; at most 1048576") && line.contains("hint: cut"),
            "{line}"
        );
        let list = parse(format!("[{object}]").as_bytes(), "d.json", None).expect_err("too long").to_string();
        assert!(list.contains("d.json:1: a row of 1048588 bytes; at most 1048576"), "{list}");
    }

    #[test]
    fn files_of_another_kind_are_named() {
        let named = |bytes: &[u8]| parse(bytes, "d.jsonl", None).expect_err("no data").to_string();
        for (bytes, expected) in [
            (&b"ARROW1\0\0"[..], "is an Arrow file"),
            (b"PK\x03\x04", "as an Excel workbook is"),
            (b"GGUF\x03", "is a GGUF model"),
            (b"{\"text\": \"a\0\"}", "is a binary file"),
            (b"{\"text\": \"a\"}\n{\"text\": \"caf\xe9\"}", "d.jsonl:2: is not UTF-8 text: found the byte 0xe9"),
            (b"prompt\tcompletion\na\tb\n", "tables are named .csv or .parquet"),
        ] {
            let error = named(bytes);
            assert!(error.contains(expected) && error.contains("hint: "), "{expected}: {error}");
        }
    }

    #[test]
    fn keys_that_nothing_reads_are_kept_with_their_row() {
        let rows = |text: &str| parse(text.as_bytes(), "d.jsonl", None).expect("good");
        let ignored = |text: &str| -> Vec<String> { rows(text)[0].ignored.iter().map(|key| key.to_string()).collect() };
        assert_eq!(ignored(r#"{"prompt":"a","completion":"b","text":"c","id":3,"note":null}"#), ["text", "id"]);
        assert_eq!(ignored(r#"{"text":"a","meta":{"x":1}}"#), ["meta"]);
        let chat = r#"{"messages":[{"role":"user","content":"a"}],"history":[["q","a"]],"tools":[]}"#;
        assert_eq!(ignored(chat), ["history"]);
        assert!(ignored(r#"{"instruction":"a","input":"","output":"b","history":[]}"#).is_empty());
    }

    #[test]
    fn earlier_turns_and_the_system_text_beside_the_turns_are_a_part_of_the_conversation() {
        let one = |line: &str| parse(line.as_bytes(), "d.jsonl", None).expect("good").remove(0).example;
        let turns = [("a", "b"), ("c", "d")];
        let mut messages: Vec<Message> =
            turns.iter().flat_map(|(ask, answer)| [Message::user(*ask), Message::assistant(*answer)]).collect();
        let chat = |messages: &[Message]| Example::Chat { messages: messages.to_vec(), tools: None };
        let line = r#"{"instruction":"c","output":"d","history":[["a","b"]]}"#;
        assert_eq!(one(line), chat(&messages));
        messages.insert(0, Message::system("s"));
        let line = r#"{"instruction":"c","output":"d","system":"s","history":[["a","b"]]}"#;
        assert_eq!(one(line), chat(&messages));
        let turns = r#"[{"role":"user","content":"a"}]"#;
        let expected = chat(&[Message::system("s"), Message::user("a")]);
        assert_eq!(one(&format!(r#"{{"messages":{turns},"system":"s"}}"#)), expected);
        let share = r#"{"conversations":[{"from":"human","value":"a"}],"system":"s"}"#;
        assert_eq!(one(share), expected);
        let twice = r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"a"}],"system":"S"}"#;
        assert_eq!(one(&twice.replace("S", "s")), expected);
        assert!(problems(twice).contains("d.jsonl:1: `system` stands beside the turns"));
        for history in ["[1]", r#"[["a"]]"#, r#""a""#, r#"[{"role":"user"}]"#] {
            let text = problems(&format!(r#"{{"instruction":"c","output":"d","history":{history}}}"#));
            assert!(text.contains("`history") && text.contains("expected"), "{text}");
        }
    }

    #[test]
    fn roles_have_many_names() {
        let turn = |role: &str, text: &str| format!(r#"{{"from":"{role}","value":"{text}"}}"#);
        let row = [
            turn("Human", "a"),
            turn("function_call", r#"{\"name\": \"f\", \"arguments\": {}}"#),
            turn("observation", "b"),
        ];
        let text = format!(r#"{{"conversations":[{},{}]}}"#, row.join(","), turn("Assistant", "c"));
        let Example::Chat { messages, .. } = parse(text.as_bytes(), "d.jsonl", None).expect("good").remove(0).example
        else {
            panic!("a conversation");
        };
        let roles: Vec<&str> = messages.iter().map(|message| message.role.name()).collect();
        assert_eq!(roles, ["user", "assistant", "tool", "assistant"]);
        assert!(messages[1].spells_calls && messages[1].more["tool_calls"][0]["function"]["name"] == "f");
    }

    #[test]
    fn a_list_reads_like_lines() {
        let list = "\u{feff}[\n  {\"text\": \"a, ] } \\\" [\"},\n{\"text\": \"b\"} ]\n";
        let row =
            |line: usize, text: &str| Row::new(Position::line("d.json", line), Example::Text { text: text.into() });
        let expected = [row(2, "a, ] } \" ["), row(3, "b")];
        assert_eq!(parse(list.as_bytes(), "d.json", None).expect("good"), expected);
        for (text, expected) in [
            ("{\n\"text\": \"a\"}", "a list of objects in `[` and `]`"),
            ("[]", "has no examples"),
            ("[\n{\"text\": \"a\"},\n{\"text\": 1}]", "d.json:3: `text` is the number 1"),
            ("[{\"text\": \"a\"}", "d.json:1: expected `,` or `]`"),
            ("[{\"text\": \"a\"},]", "d.json:1: not valid JSON"),
            ("[{\"text\": \"a\"} {\"text\": \"b\"}]", "d.json:1: not valid JSON"),
            ("[{\"text\": \"a\"}]\n x", "d.json:2: something follows"),
            ("[1, 2]", "d.json:1: found the number; expected an object"),
            ("[{\"text\": \"a", "d.json:1: not valid JSON"),
        ] {
            let error = parse(text.as_bytes(), "d.json", None).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn empty_files_and_numbers_that_lose_digits_are_errors() {
        for text in ["", "\n\r\n \n", "\u{feff}"] {
            assert!(problems(text).contains("has no examples"), "{text:?}");
        }
        for text in [
            r#"{"text":"a","id":NaN}"#,
            r#"{"text":"a","id":1e999}"#,
            r#"{"text":"a","id":1180591620717411303424}"#,
            r#"{"text":"a","text":"b"}"#,
            r#"{"text":"\ud800"}"#,
        ] {
            assert!(problems(text).starts_with("d.jsonl:1: "), "{text}");
        }
        assert!(parse(b"{\"text\":\"\xff\"}", "d.jsonl", None).is_err());
        let named = |bytes: &[u8]| parse(bytes, "d.jsonl", None).expect_err("no text").to_string();
        assert!(named(b"\x28\xb5\x2f\xfd\0").contains("is packed with zstd"));
        assert!(named(b"PAR1\0").contains("is a Parquet file"));
    }
}
