//! Calls of tools, as data spells them and as models answer them, compared as JSON values.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::data::Message;

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ToolCall {
    /// The name of the tool.
    pub name: String,
    /// The arguments, an object as a rule.
    pub arguments: Value,
}

impl fmt::Display for ToolCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name, self.arguments)
    }
}

/// The calls of a turn's `tool_calls`; none where it has none.
pub fn calls_of_turn(turn: &Message) -> Vec<ToolCall> {
    let mut calls = Vec::new();
    if let Some(value) = turn.more.get("tool_calls") {
        collect(value, &mut calls);
    }
    calls
}

/// The calls in an answer: every JSON object with `name` and `arguments` (or `parameters`), wherever it stands in the text
/// or within another value, so whatever markup a chat template puts around calls. An object that follows a name at once is
/// a call too, as in `get_weather{"city": "Rome"}` and `<function=get_weather>{"city": "Rome"}`.
pub fn calls_in(answer: &str) -> Vec<ToolCall> {
    let mut calls = Vec::new();
    let mut at = 0;
    while let Some(offset) = answer[at..].find(['{', '[']) {
        let start = at + offset;
        let mut values = serde_json::Deserializer::from_str(&answer[start..]).into_iter::<Value>();
        let Some(Ok(value)) = values.next() else {
            at = start + 1;
            continue;
        };
        let known = calls.len();
        collect(&value, &mut calls);
        if let (true, Some(name), Value::Object(_)) = (calls.len() == known, name_before(&answer[..start]), &value) {
            calls.push(ToolCall { name: name.to_owned(), arguments: value });
        }
        at = start + values.byte_offset();
    }
    calls
}

/// Whether both lists hold the same calls, in any order: the same names, the same arguments as JSON values.
pub fn are_same(expected: &[ToolCall], found: &[ToolCall]) -> bool {
    let mut left: Vec<&ToolCall> = found.iter().collect();
    let all_found = expected.iter().all(|call| {
        let same = |other: &&ToolCall| other.name == call.name && is_same(&other.arguments, &call.arguments);
        left.iter().position(same).map(|index| left.swap_remove(index)).is_some()
    });
    all_found && left.is_empty()
}

/// Whether two values are the same in JSON, which knows one kind of numbers: 1 is 1.0.
fn is_same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left == right || left.as_f64() == right.as_f64(),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| is_same(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            let has_same = |(key, value)| right.get(key).is_some_and(|other| is_same(value, other));
            left.len() == right.len() && left.iter().all(has_same)
        }
        _ => left == right,
    }
}

/// Adds the calls that a value is or contains.
fn collect(value: &Value, calls: &mut Vec<ToolCall>) {
    match value {
        Value::Object(fields) => match call_of(fields) {
            Some(call) => calls.push(call),
            None => fields.values().for_each(|value| collect(value, calls)),
        },
        Value::Array(values) => values.iter().for_each(|value| collect(value, calls)),
        _ => {}
    }
}

/// The call that an object spells. Arguments may be JSON in a text, as in OpenAI's format.
fn call_of(fields: &Map<String, Value>) -> Option<ToolCall> {
    let name = fields.get("name")?.as_str()?.to_owned();
    let arguments = fields.get("arguments").or_else(|| fields.get("parameters"))?;
    let spelled = arguments.as_str().and_then(|text| serde_json::from_str(text).ok());
    Some(ToolCall { name, arguments: spelled.unwrap_or_else(|| arguments.clone()) })
}

/// The name at the end of the text before an object.
fn name_before(text: &str) -> Option<&str> {
    let text = text.strip_suffix('>').unwrap_or(text);
    let is_part = |symbol: char| symbol.is_alphanumeric() || matches!(symbol, '_' | '-' | '.');
    let name = &text[text.trim_end_matches(is_part).len()..];
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn call(name: &str, arguments: Value) -> ToolCall {
        ToolCall { name: name.to_owned(), arguments }
    }

    #[test]
    fn calls_are_found_in_the_markup_of_every_family() {
        let expected = [call("add", json!({"a": 1, "b": [2]}))];
        for answer in [
            r#"<tool_call>
{"name": "add", "arguments": {"a": 1, "b": [2]}}
</tool_call>"#,
            r#"[TOOL_CALLS] [{"name": "add", "arguments": {"b": [2], "a": 1.0}}]"#,
            r#"<|python_tag|>{"name": "add", "parameters": {"a": 1, "b": [2]}}"#,
            r#"Sure: ```json
{"type": "function", "function": {"name": "add", "arguments": "{\"a\": 1, \"b\": [2]}"}}
```"#,
            r#"add{"a": 1, "b": [2]}"#,
            r#"<function=add>{"a": 1, "b": [2]}</function>"#,
        ] {
            assert!(are_same(&expected, &calls_in(answer)), "{answer}: {:?}", calls_in(answer));
        }
        for answer in ["", "no call {at all}", "{\"name\": \"add\"}", "[1, 2]", "{{{{"] {
            assert_eq!(calls_in(answer), [], "{answer}");
        }
    }

    #[test]
    fn calls_are_compared_as_values_in_any_order() {
        let (a, b) = (call("a", json!({"x": 1, "y": "z"})), call("b", json!({})));
        assert!(are_same(&[a.clone(), b.clone()], &[b.clone(), call("a", json!({"y": "z", "x": 1.0}))]));
        assert!(!are_same(std::slice::from_ref(&a), &[a.clone(), a.clone()]));
        assert!(!are_same(&[a.clone(), a.clone()], &[a.clone(), b]));
        assert!(!are_same(std::slice::from_ref(&a), &[call("a", json!({"x": "1", "y": "z"}))]));
        assert!(!are_same(&[a], &[call("a", json!({"x": 1}))]));
    }

    #[test]
    fn the_calls_of_a_turn_may_spell_their_arguments() {
        let mut turn = Message::assistant("");
        assert_eq!(calls_of_turn(&turn), []);
        let calls = json!([{"type": "function", "function": {"name": "f", "arguments": "{\"x\": 2}"}}]);
        turn.more.insert("tool_calls".to_owned(), calls);
        assert_eq!(calls_of_turn(&turn), [call("f", json!({"x": 2}))]);
    }
}
