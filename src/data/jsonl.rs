//! Data files of one JSON object a line (JSONL), or of one JSON list (`.json`), in four shapes.
//!
//! | format | object |
//! |---|---|
//! | `prompt-completion` | `{"prompt": …, "completion": …}` |
//! | `alpaca` | `{"instruction": …, "input": …, "output": …}`, `input` and `system` may be missing |
//! | `chat` | `{"messages": [{"role": …, "content": …}, …]}`, perhaps with `tools` beside and `tool_calls` inside, or ShareGPT's `{"conversations": [{"from": …, "value": …}]}` |
//! | `text` | `{"text": …}` |
//!
//! A turn with `"weight": 0` (OpenAI's format) is not trained. Keys beside these are ignored. Every bad line is reported, up to 20 of them.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::example::{Example, Message, Position, Role, Row};
use crate::error::{Error, Place, Result};
use crate::files::{json, open};
use crate::settings::choice;

/// The largest data file read.
const MAX_FILE_BYTES: u64 = 4 << 30;
/// The longest line: far more than any sequence that is trained on, and encoding takes two hundred times its memory. A file
/// without line ends is something else.
pub(super) const MAX_LINE_BYTES: usize = 1 << 20;
/// How many bad lines are reported one by one.
const MAX_REPORTED: usize = 20;

choice! {
    /// The shape of the objects of a data file, in the order in which detection tries them.
    Format {
        /// `{"prompt", "completion"}`.
        PromptCompletion = "prompt-completion",
        /// `{"instruction", "input", "output"}`.
        Alpaca = "alpaca",
        /// `{"messages": [{"role", "content"}]}`.
        Chat = "chat",
        /// `{"text"}`.
        Text = "text",
    }
}

impl Format {
    /// The format that has these keys.
    pub(super) fn of_keys(has: impl Fn(&str) -> bool) -> Option<Self> {
        Self::ALL.into_iter().find(|format| match format {
            Format::PromptCompletion => has("prompt") && has("completion"),
            Format::Alpaca => has("instruction"),
            Format::Chat => has("messages") || has("conversations"),
            Format::Text => has("text"),
        })
    }
}

/// What the keys must be, for messages.
pub(super) const SHAPES: &str = "expected one of {\"prompt\", \"completion\"}, {\"instruction\", \"output\"}, \
                                 {\"messages\"}, {\"text\"}";

/// Reads a JSONL file. Without a `format`, the first object decides.
pub fn read(path: &Path, format: Option<Format>) -> Result<Vec<Row>> {
    parse(&open::read(path, MAX_FILE_BYTES)?, &path.display().to_string(), format)
}

/// Parses the bytes of a JSONL file; `name` stands in messages. A byte-order mark, CRLF, blank lines and a
/// missing last line end are fine.
pub fn parse(bytes: &[u8], name: &str, format: Option<Format>) -> Result<Vec<Row>> {
    let bytes = without_mark(bytes, name)?;
    let mut reader = Rows::new(format);
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let position = Position::Line(index + 1);
        let place = position.within(name);
        if line.len() > MAX_LINE_BYTES {
            reader.bad(Error::input(place, format!("a line of {} bytes; at most {MAX_LINE_BYTES}", line.len())));
            continue;
        }
        match parse_line(line, &place) {
            Ok(value) => reader.row(position, &place, value),
            Err(error) => reader.bad(error),
        }
    }
    reader.finish(name)
}

/// Reads a `.json` file: one list of objects.
pub fn read_list(path: &Path, format: Option<Format>) -> Result<Vec<Row>> {
    parse_list(&open::read(path, MAX_FILE_BYTES)?, &path.display().to_string(), format)
}

/// Parses the bytes of a JSON list of objects, one after the other: the whole list as JSON values would take many
/// times the memory of the file. Places are the lines on which the objects begin.
pub fn parse_list(bytes: &[u8], name: &str, format: Option<Format>) -> Result<Vec<Row>> {
    let bytes = without_mark(bytes, name)?;
    let mut reader = Rows::new(format);
    let (mut at, mut line) = (0, 1);
    let skip = |at: &mut usize, line: &mut usize| {
        while let Some(space) = bytes.get(*at).filter(|byte| byte.is_ascii_whitespace()) {
            *line += usize::from(*space == b'\n');
            *at += 1;
        }
        bytes.get(*at).copied()
    };
    if skip(&mut at, &mut line) != Some(b'[') {
        return Err(Error::input(name, "expected a list of objects").hint("one object a line is a .jsonl file"));
    }
    at += 1;
    let mut closed = skip(&mut at, &mut line) == Some(b']');
    at += usize::from(closed);
    while !closed {
        let position = Position::Line(line);
        let place = position.within(name);
        let row = &bytes[at..at + value_length(&bytes[at..])];
        match parse_line(row, &place) {
            Ok(value) => reader.row(position, &place, value),
            Err(error) => reader.bad(error),
        }
        line += row.iter().filter(|byte| **byte == b'\n').count();
        at += row.len();
        closed = match skip(&mut at, &mut line) {
            Some(b',') => false,
            Some(b']') => true,
            _ => {
                reader
                    .bad(Error::input(format_args!("{name}:{line}"), "expected `,` or `]` after an item of the list"));
                return reader.finish(name);
            }
        };
        at += 1;
        if !closed {
            skip(&mut at, &mut line);
        }
    }
    if skip(&mut at, &mut line).is_some() {
        reader.bad(Error::input(format_args!("{name}:{line}"), "something follows the list"));
    }
    reader.finish(name)
}

/// The length of the JSON value at the start of `bytes`, by its brackets and quotes alone; whether it is valid is
/// found when it is parsed.
fn value_length(bytes: &[u8]) -> usize {
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' | b',' if depth == 0 => return at,
            b']' | b'}' => depth -= 1,
            _ => {}
        }
    }
    bytes.len()
}

/// Takes off the byte-order mark of UTF-8 and refuses the ones of UTF-16, and files that are no text.
pub(super) fn without_mark<'a>(bytes: &'a [u8], name: &str) -> Result<&'a [u8]> {
    const PACKED: [(&[u8], &str); 4] =
        [(b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"), (b"PK\x03\x04", "zip")];
    if let Some((_, packed)) = PACKED.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Err(Error::input(name, format!("is packed with {packed}; expected text")).hint("unpack it first"));
    }
    if bytes.starts_with(b"PAR1") {
        return Err(Error::input(name, "is a Parquet file").hint("its name must end with .parquet"));
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(Error::input(name, "is UTF-16; expected UTF-8").hint("save it again as UTF-8"));
    }
    Ok(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes))
}

/// Parses one line strictly: no duplicate keys, no numbers beyond 64 bits.
fn parse_line(line: &[u8], place: &str) -> Result<Value> {
    let value = json::parse("", line).map_err(|error| match error.problems() {
        [problem] => {
            let column = match problem.place {
                Place::File { column, .. } => column.unwrap_or(1),
                _ => 1,
            };
            let error = Error::input(place, format!("{} at column {column}", problem.message));
            match line.first() {
                Some(b'[') => error.hint("a file that is one JSON list must be named .json"),
                _ => error,
            }
        }
        _ => error,
    })?;
    check_numbers(&value, place)?;
    Ok(value)
}

/// Integers beyond 64 bits would silently become floats.
fn check_numbers(value: &Value, place: &str) -> Result<()> {
    let mut pending = vec![value];
    while let Some(value) = pending.pop() {
        match value {
            Value::Array(items) => pending.extend(items),
            Value::Object(fields) => pending.extend(fields.values()),
            Value::Number(number) if number.is_f64() && number.as_f64().is_some_and(|x| x.abs() >= 2f64.powi(63)) => {
                return Err(Error::input(place, format!("the number {number} does not fit in 64 bits")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Collects examples and problems.
pub(super) struct Rows {
    format: Option<Format>,
    rows: Vec<Row>,
    problems: Vec<Error>,
    bad: usize,
}

impl Rows {
    pub(super) fn new(format: Option<Format>) -> Self {
        Self { format, rows: Vec::new(), problems: Vec::new(), bad: 0 }
    }

    pub(super) fn bad(&mut self, error: Error) {
        self.bad += 1;
        if self.bad <= MAX_REPORTED {
            self.problems.push(error);
        }
    }

    pub(super) fn row(&mut self, position: Position, place: &str, value: Value) {
        let Value::Object(fields) = value else {
            let error = Error::input(place, format!("found {}; expected an object", kind(&value)));
            return self.bad(match value.is_array() {
                true => error.hint("a file that is one JSON list must be named .json"),
                false => error,
            });
        };
        let Some(format) = self.format.or_else(|| Format::of_keys(|key| fields.contains_key(key))) else {
            let keys: Vec<&str> = fields.keys().map(String::as_str).take(10).collect();
            return self.bad(Error::input(place, format!("found the keys {keys:?}; {SHAPES}")));
        };
        self.format = Some(format);
        match example(format, fields) {
            Ok(example) => self.rows.push(Row { position, example }),
            Err(message) => {
                self.bad(Error::input(place, message).hint(format!("the file is read as `{format}`")));
            }
        }
    }

    pub(super) fn finish(mut self, name: &str) -> Result<Vec<Row>> {
        if self.bad > MAX_REPORTED {
            self.problems.push(Error::input(name, format!("and {} more bad rows", self.bad - MAX_REPORTED)));
        }
        if self.bad == 0 && self.rows.is_empty() {
            return Err(Error::input(name, "has no examples").hint(SHAPES));
        }
        Error::none_of(self.problems, self.rows)
    }
}

/// One object as an example, or what is wrong with it: field, found, expected.
fn example(format: Format, mut fields: Map<String, Value>) -> Result<Example, String> {
    Ok(match format {
        Format::PromptCompletion => Example::PromptCompletion {
            prompt: text(&mut fields, "prompt")?,
            completion: text(&mut fields, "completion")?,
        },
        Format::Alpaca => Example::Alpaca {
            instruction: text(&mut fields, "instruction")?,
            input: optional_text(&mut fields, "input")?.unwrap_or_default(),
            output: text(&mut fields, "output")?,
            system: optional_text(&mut fields, "system")?.filter(|system| !system.is_empty()),
        },
        Format::Chat => Example::Chat { messages: messages(&mut fields)?, tools: tools(&mut fields)? },
        Format::Text => Example::Text { text: text(&mut fields, "text")? },
    })
}

fn text(fields: &mut Map<String, Value>, key: &str) -> Result<String, String> {
    optional_text(fields, key)?.ok_or_else(|| format!("`{key}` is missing; expected a text"))
}

/// A text; `None` where it is missing or null.
fn optional_text(fields: &mut Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match fields.shift_remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("`{key}` is {}; expected a text", shown(&other))),
    }
}

fn messages(fields: &mut Map<String, Value>) -> Result<Vec<Message>, String> {
    let list = match fields.contains_key("messages") || !fields.contains_key("conversations") {
        true => "messages",
        false => "conversations",
    };
    let turns = match fields.remove(list) {
        Some(Value::Array(turns)) if !turns.is_empty() => turns,
        Some(other) => return Err(format!("`{list}` is {}; expected a list of turns", shown(&other))),
        None => return Err(format!("`{list}` is missing; expected a list of turns")),
    };
    let message = |(index, turn): (usize, Value)| {
        let within = |message: String| format!("`{list}[{index}]`: {message}");
        let Value::Object(mut turn) = turn else { return Err(within(format!("found {}", shown(&turn)))) };
        let (role, content) = match turn.contains_key("role") || !turn.contains_key("from") {
            true => ("role", "content"),
            false => ("from", "value"),
        };
        let role = text(&mut turn, role).map_err(within)?;
        if role.is_empty() {
            return Err(within("the role is empty".into()));
        }
        // Data sets that are kept as tables have every key in every turn.
        turn.retain(|key, value| key == content || !(value.is_null() || (key == "tool_calls" && *value == json!([]))));
        let trained = match turn.shift_remove("weight").map(|weight| (weight.as_f64(), weight)) {
            None => true,
            Some((Some(weight), _)) if weight == 0.0 || weight == 1.0 => weight == 1.0,
            Some((_, other)) => return Err(within(format!("`weight` is {}; expected 0 or 1", shown(&other)))),
        };
        if let Some(calls) = turn.get("tool_calls") {
            let is_list = calls.as_array().is_some_and(|calls| calls.iter().all(Value::is_object));
            if !is_list {
                return Err(within(format!("`tool_calls` is {}; expected a list of calls", shown(calls))));
            }
            if turn.get(content).is_none_or(Value::is_null) {
                turn.shift_remove(content);
                turn.insert("content".to_owned(), Value::Null);
                return Ok(Message { role: Role::of(&role), content: String::new(), more: turn, trained });
            }
        }
        let content = turn_text(&mut turn, content).map_err(within)?;
        Ok(Message { role: Role::of(&role), content, more: turn, trained })
    };
    turns.into_iter().enumerate().map(message).collect()
}

/// The tools of a conversation; none where they are missing, null or an empty list.
fn tools(fields: &mut Map<String, Value>) -> Result<Option<Value>, String> {
    match fields.remove("tools") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(tools)) => Ok(Some(Value::Array(tools)).filter(|tools| *tools != json!([]))),
        Some(other) => Err(format!("`tools` is {}; expected a list of tools", shown(&other))),
    }
}

/// The content of a turn: a text, or a list of `{"type": "text", "text": …}` parts.
fn turn_text(turn: &mut Map<String, Value>, key: &str) -> Result<String, String> {
    let joined = turn.get(key).and_then(Value::as_array).map(|parts| {
        let texts: Option<Vec<&str>> = parts.iter().map(|part| part["text"].as_str()).collect();
        texts.map(|texts| texts.concat())
    });
    match joined {
        None => text(turn, key),
        Some(Some(joined)) => {
            turn.shift_remove(key);
            Ok(joined)
        }
        Some(None) => Err(format!("`{key}` has a part that is not {{\"type\": \"text\", \"text\": …}}")),
    }
}

/// What a value is, with its beginning, for messages.
fn shown(value: &Value) -> String {
    match value {
        Value::Null | Value::Array(_) | Value::Object(_) => kind(value).into(),
        other => {
            let text: String = other.to_string().chars().take(40).collect();
            format!("{} {text}", kind(other))
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "the boolean",
        Value::Number(_) => "the number",
        Value::String(_) => "a text",
        Value::Array(items) if items.is_empty() => "an empty list",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(problems("[{\"text\": \"a\"}]").contains("must be named .json"));
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
    fn after_twenty_bad_lines_only_their_count_is_given() {
        let text = problems(&"{}\n".repeat(50));
        assert_eq!(text.matches("d.jsonl:").count(), 21, "{text}");
        assert!(text.contains("and 30 more bad rows"), "{text}");
    }

    #[test]
    fn a_list_reads_like_lines() {
        let list = "\u{feff}[\n  {\"text\": \"a, ] } \\\" [\"},\n{\"text\": \"b\"} ]\n";
        let row = |line: usize, text: &str| Row {
            position: Position::Line(line),
            example: Example::Text { text: text.into() },
        };
        let expected = [row(2, "a, ] } \" ["), row(3, "b")];
        assert_eq!(parse_list(list.as_bytes(), "d.json", None).expect("good"), expected);
        for (text, expected) in [
            ("", "expected a list of objects"),
            ("{\"text\": \"a\"}", "expected a list of objects"),
            ("[]", "has no examples"),
            ("[\n{\"text\": \"a\"},\n{\"text\": 1}]", "d.json:3: `text` is the number 1"),
            ("[{\"text\": \"a\"}", "d.json:1: expected `,` or `]`"),
            ("[{\"text\": \"a\"},]", "d.json:1: not valid JSON"),
            ("[{\"text\": \"a\"} {\"text\": \"b\"}]", "d.json:1: not valid JSON"),
            ("[{\"text\": \"a\"}]\n x", "d.json:2: something follows"),
            ("[1, 2]", "d.json:1: found the number; expected an object"),
            ("[{\"text\": \"a", "d.json:1: not valid JSON"),
        ] {
            let error = parse_list(text.as_bytes(), "d.json", None).expect_err(text).to_string();
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
