//! One object of a data file as an example, or what is wrong with it: field, found, expected.

use serde_json::{Map, Value, json};

use crate::data::alpaca;
use crate::data::example::{Example, Message, Role};
use crate::data::format::Format;

/// The example of an object, and the keys of the object that are not read.
pub(super) fn example(format: Format, mut fields: Map<String, Value>) -> Result<(Example, Vec<String>), String> {
    let example = match format {
        Format::PromptCompletion => Example::PromptCompletion {
            prompt: text(&mut fields, "prompt")?,
            completion: text(&mut fields, "completion")?,
        },
        Format::Alpaca => alpaca(&mut fields)?,
        Format::Chat => {
            let mut messages = messages(&mut fields)?;
            add_system(&mut messages, &mut fields)?;
            Example::Chat { messages, tools: tools(&mut fields)? }
        }
        Format::Text => Example::Text { text: text(&mut fields, "text")? },
    };
    // Data sets that are kept as tables have every key in every row.
    let is_empty = |value: &Value| value.is_null() || *value == json!("") || *value == json!([]);
    let ignored = fields.into_iter().filter(|(_, value)| !is_empty(value)).map(|(key, _)| key);
    Ok((example, ignored.collect()))
}

/// An Alpaca example; with earlier turns in `history`, a conversation.
fn alpaca(fields: &mut Map<String, Value>) -> Result<Example, String> {
    let instruction = text(fields, "instruction")?;
    let input = optional_text(fields, "input")?.unwrap_or_default();
    let output = text(fields, "output")?;
    let system = optional_text(fields, "system")?.filter(|system| !system.is_empty());
    let history = history(fields)?;
    if history.is_empty() {
        return Ok(Example::Alpaca { instruction, input, output, system });
    }
    let mut messages = alpaca::messages(&instruction, &input, &output, system.as_deref());
    let at = usize::from(system.is_some());
    messages.splice(at..at, history);
    Ok(Example::Chat { messages, tools: None })
}

/// Earlier turns, `[[question, answer], …]`.
fn history(fields: &mut Map<String, Value>) -> Result<Vec<Message>, String> {
    let pairs = match fields.shift_remove("history") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(pairs)) => pairs,
        Some(other) => return Err(format!("`history` is {}; expected a list of [question, answer]", shown(&other))),
    };
    let mut turns = Vec::with_capacity(2 * pairs.len());
    for (index, pair) in pairs.iter().enumerate() {
        match pair.as_array().map(Vec::as_slice) {
            Some([Value::String(question), Value::String(answer)]) => {
                turns.extend([Message::user(question.as_str()), Message::assistant(answer.as_str())]);
            }
            _ => return Err(format!("`history[{index}]` is {}; expected [question, answer]", shown(pair))),
        }
    }
    Ok(turns)
}

/// Puts the system text that stands beside the turns before them.
fn add_system(messages: &mut Vec<Message>, fields: &mut Map<String, Value>) -> Result<(), String> {
    let Some(system) = optional_text(fields, "system")?.filter(|system| !system.is_empty()) else { return Ok(()) };
    match messages.first() {
        Some(Message { role: Role::System, content, .. }) if *content == system => Ok(()),
        Some(Message { role: Role::System, .. }) => {
            Err("`system` stands beside the turns, and the first turn is another system text; expected one".into())
        }
        _ => {
            messages.insert(0, Message::system(system));
            Ok(())
        }
    }
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
    let turns = match fields.shift_remove(list) {
        Some(Value::Array(turns)) if !turns.is_empty() => turns,
        Some(other) => return Err(format!("`{list}` is {}; expected a list of turns", shown(&other))),
        None => return Err(format!("`{list}` is missing; expected a list of turns")),
    };
    let message = |(index, turn): (usize, Value)| {
        match turn {
            Value::Object(turn) => message(turn),
            other => Err(format!("found {}", shown(&other))),
        }
        .map_err(|message| format!("`{list}[{index}]`: {message}"))
    };
    turns.into_iter().enumerate().map(message).collect()
}

/// One turn.
fn message(mut turn: Map<String, Value>) -> Result<Message, String> {
    let (role, content) = match turn.contains_key("role") || !turn.contains_key("from") {
        true => ("role", "content"),
        false => ("from", "value"),
    };
    let role = text(&mut turn, role)?;
    if role.is_empty() {
        return Err("the role is empty".into());
    }
    // Data sets that are kept as tables have every key in every turn.
    turn.retain(|key, value| key == content || !(value.is_null() || (key == "tool_calls" && *value == json!([]))));
    let trained = is_trained(&mut turn)?;
    // OpenAI's older form of a call.
    if !turn.contains_key("tool_calls")
        && let Some(function) = turn.get("function_call").filter(|function| function.is_object()).cloned()
    {
        turn.shift_remove("function_call");
        turn.insert("tool_calls".into(), json!([{"type": "function", "function": function}]));
    }
    if let Some(calls) = turn.get("tool_calls") {
        let is_list = calls.as_array().is_some_and(|calls| calls.iter().all(Value::is_object));
        if !is_list {
            return Err(format!("`tool_calls` is {}; expected a list of calls", shown(calls)));
        }
        if turn.get(content).is_none_or(Value::is_null) {
            turn.shift_remove(content);
            turn.insert("content".to_owned(), Value::Null);
            let content = String::new();
            return Ok(Message { role: Role::of(&role), content, more: turn, trained, spells_calls: false });
        }
    }
    let content = turn_text(&mut turn, content)?;
    if Role::spells_calls(&role) {
        let calls = calls_of(&content);
        let spells_calls = calls.is_some();
        if let Some(calls) = calls {
            turn.insert("tool_calls".into(), calls);
        }
        return Ok(Message { role: Role::Assistant, content, more: turn, trained, spells_calls });
    }
    Ok(Message { role: Role::of(&role), content, more: turn, trained, spells_calls: false })
}

/// Whether loss is taken on a turn: OpenAI's `weight` (0 or 1), axolotl's `train`, `training` and `train_on_turn`.
fn is_trained(turn: &mut Map<String, Value>) -> Result<bool, String> {
    let mut trained = true;
    for key in ["weight", "train", "training", "train_on_turn"] {
        trained &= match turn.shift_remove(key) {
            None => true,
            Some(Value::Bool(flag)) => flag,
            Some(Value::Number(weight)) if [Some(0.0), Some(1.0)].contains(&weight.as_f64()) => {
                weight.as_f64() == Some(1.0)
            }
            Some(other) => {
                let expected = if key == "weight" { "0 or 1" } else { "true or false" };
                return Err(format!("`{key}` is {}; expected {expected}", shown(&other)));
            }
        };
    }
    Ok(trained)
}

/// The calls that a text spells as JSON: `{"name", "arguments"}`, or a list of them.
fn calls_of(text: &str) -> Option<Value> {
    let calls = match serde_json::from_str(text).ok()? {
        Value::Array(calls) => calls,
        call => vec![call],
    };
    let call = |call: Value| {
        let whole = call["name"].is_string() && call.get("arguments").is_some();
        whole.then(|| json!({"type": "function", "function": call}))
    };
    let calls: Vec<Value> = calls.into_iter().map(call).collect::<Option<_>>()?;
    (!calls.is_empty()).then_some(Value::Array(calls))
}

/// The tools of a conversation; none where they are missing, null or an empty list. ShareGPT files spell the list as JSON
/// in a text.
fn tools(fields: &mut Map<String, Value>) -> Result<Option<Value>, String> {
    let wrong = |value: &Value| format!("`tools` is {}; expected a list of tools", shown(value));
    let tools = match fields.shift_remove("tools") {
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
        Some(Value::String(text)) => serde_json::from_str(&text).map_err(|_| wrong(&Value::from(text)))?,
        tools => tools.unwrap_or_default(),
    };
    match tools {
        Value::Null => Ok(None),
        Value::Array(tools) => Ok(Some(Value::Array(tools)).filter(|tools| *tools != json!([]))),
        other => Err(wrong(&other)),
    }
}

/// The content of a turn: a text, or a list of parts. Parts of text are joined; reasoning becomes the turn's `reasoning`.
fn turn_text(turn: &mut Map<String, Value>, key: &str) -> Result<String, String> {
    let Some(Value::Array(parts)) = turn.get(key) else { return text(turn, key) };
    let (mut content, mut reasoning) = (String::new(), String::new());
    for (index, part) in parts.iter().enumerate() {
        match part_text(part).map_err(|message| format!("`{key}[{index}]` {message}"))? {
            (Part::Text, text) => content.push_str(text),
            (Part::Reasoning, text) => reasoning.push_str(text),
        }
    }
    turn.shift_remove(key);
    if !reasoning.is_empty() {
        let beside = ["reasoning_content", "thinking", "reasoning"].into_iter().find(|key| turn.contains_key(*key));
        if let Some(beside) = beside {
            return Err(format!("`{key}` has a part of reasoning, and `{beside}` stands beside it; expected one"));
        }
        turn.insert("reasoning".to_owned(), Value::from(reasoning));
    }
    Ok(content)
}

/// The kinds of parts that a turn's content may have.
#[derive(Clone, Copy)]
enum Part {
    Text,
    Reasoning,
}

/// The kind and the text of one part of a turn's content.
fn part_text(part: &Value) -> Result<(Part, &str), String> {
    let Value::Object(fields) = part else { return Err(format!("is {}; expected a part", shown(part))) };
    let (kind, keys): (_, &[&str]) = match fields.get("type") {
        None | Some(Value::Null) => (Part::Text, &["text"]),
        Some(Value::String(name)) => match name.as_str() {
            "text" | "input_text" | "output_text" => (Part::Text, &["text"]),
            "reasoning" | "thinking" => (Part::Reasoning, &["text", "reasoning", "thinking"]),
            other => {
                return Err(format!("is a part of the type `{other}`; expected {{\"type\": \"text\", \"text\": …}}"));
            }
        },
        Some(other) => return Err(format!("has as `type` {}; expected \"text\"", shown(other))),
    };
    let text = keys.iter().find_map(|key| fields.get(*key)?.as_str());
    let text = text.ok_or_else(|| format!("is a part without a text; expected {{\"type\": …, \"{}\": …}}", keys[0]))?;
    Ok((kind, text))
}

/// A value with its beginning, for messages.
fn shown(value: &Value) -> String {
    match value {
        Value::Null | Value::Array(_) | Value::Object(_) => kind(value).into(),
        other => {
            let text: String = other.to_string().chars().take(40).collect();
            format!("{} {text}", kind(other))
        }
    }
}

/// The kind of a value, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
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
