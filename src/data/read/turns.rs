//! The turns of a conversation, in the spellings of OpenAI, ShareGPT, axolotl and LLaMA-Factory.

use serde_json::{Map, Value, json};

use super::fields::{Fields, is_empty, shown};
use crate::data::example::{Message, Role};
use crate::data::images::parts::{path_of, picture_part, text_part};

/// The turns that stand under `key`: a list, or its JSON in a text.
pub(super) fn list(fields: &mut Fields, key: &str) -> Result<Vec<Message>, String> {
    let list = fields.columns.name(key);
    let turns = match fields.take_json(key)? {
        Some(Value::Array(turns)) if !turns.is_empty() => turns,
        Some(other) => return Err(format!("`{list}` is {}; expected a list of turns", shown(&other))),
        None => return Err(format!("`{list}` is missing; expected a list of turns")),
    };
    let unread = &mut fields.unread_inside;
    let message = |(index, turn): (usize, Value)| {
        match turn {
            Value::Object(turn) => message(turn, unread, true),
            other => Err(format!("found {}", shown(&other))),
        }
        .map_err(|message| format!("`{list}[{index}]`: {message}"))
    };
    turns.into_iter().enumerate().map(message).collect()
}

/// The message that an object spells, in OpenAI's form.
///
/// # Errors
/// The reason why it is none, or why a part of it would go unread.
pub fn message_of(turn: Map<String, Value>) -> Result<Message, String> {
    let mut unread = Vec::new();
    let message = message(turn, &mut unread, false)?;
    match unread.first() {
        Some(unread) => Err(format!("has {unread}, which nothing reads")),
        None => Ok(message),
    }
}

/// One turn; `unread` gets what nothing reads of it, in words. Pictures are files, so only a data file may name them.
fn message(mut turn: Map<String, Value>, unread: &mut Vec<String>, of_file: bool) -> Result<Message, String> {
    let (role, content) = match turn.contains_key("role") || !turn.contains_key("from") {
        true => ("role", "content"),
        false => ("from", "value"),
    };
    let role = match turn.shift_remove(role) {
        Some(Value::String(role)) if role.is_empty() => return Err("the role is empty".into()),
        Some(Value::String(role)) => role,
        Some(other) if !other.is_null() => return Err(format!("`{role}` is {}; expected a text", shown(&other))),
        _ => {
            let keys: Vec<&str> = turn.keys().map(String::as_str).take(10).collect();
            return Err(format!("`{role}` is missing; expected a role and a content, found the keys {keys:?}"));
        }
    };
    // Data sets that are kept as tables have every key in every turn.
    turn.retain(|key, value| key == content || !(value.is_null() || (key == "tool_calls" && *value == json!([]))));
    let asked = is_trained(&mut turn)?;
    let spells_calls = Role::spells_calls(&role);
    let role = if spells_calls { Role::Assistant } else { Role::of(&role) };
    if let Some((key, true)) = asked
        && role != Role::Assistant
    {
        unread.push(format!("{key} of {} turns", role.name()));
    }
    let trained = asked.is_none_or(|(_, trained)| trained);
    add_former_call(&mut turn)?;
    if let Some(calls) = turn.get("tool_calls") {
        let is_list = calls.as_array().is_some_and(|calls| calls.iter().all(Value::is_object));
        if !is_list {
            return Err(format!("`tool_calls` is {}; expected a list of calls", shown(calls)));
        }
        if turn.get(content).is_none_or(Value::is_null) {
            turn.shift_remove(content);
            turn.insert("content".to_owned(), Value::Null);
            return Ok(Message { role, content: String::new(), more: turn, trained, spells_calls: false });
        }
    }
    let content = turn_text(&mut turn, content, unread, of_file)?;
    let shows_pictures = turn.get("content").is_some_and(Value::is_array);
    if shows_pictures && role == Role::Assistant {
        return Err("has a picture in a turn of the assistant, who answers in words".into());
    }
    let calls = if spells_calls { calls_of(&content) } else { None };
    let spells_calls = calls.is_some();
    turn.extend(calls.map(|calls| ("tool_calls".to_owned(), calls)));
    Ok(Message { role, content, more: turn, trained, spells_calls })
}

/// OpenAI's former `function_call`, one call of a turn, becomes `tool_calls`.
fn add_former_call(turn: &mut Map<String, Value>) -> Result<(), String> {
    let Some(call) = turn.shift_remove("function_call") else { return Ok(()) };
    if !call["name"].is_string() || turn.contains_key("tool_calls") {
        let beside = if turn.contains_key("tool_calls") { " beside `tool_calls`" } else { "" };
        return Err(format!(
            "`function_call` is {}{beside}; expected one call {{\"name\", \"arguments\"}}",
            shown(&call)
        ));
    }
    turn.insert("tool_calls".to_owned(), json!([{"type": "function", "function": call}]));
    Ok(())
}

/// The last key that says whether loss is taken on a turn, and what all of them say together: OpenAI's `weight` (0 or 1),
/// axolotl's `train`, `training` and `train_on_turn`.
fn is_trained(turn: &mut Map<String, Value>) -> Result<Option<(&'static str, bool)>, String> {
    let mut asked: Option<(&str, bool)> = None;
    for key in ["weight", "train", "training", "train_on_turn"] {
        let trained = match turn.shift_remove(key) {
            None => continue,
            Some(Value::Bool(flag)) => flag,
            Some(Value::Number(weight)) if [Some(0.0), Some(1.0)].contains(&weight.as_f64()) => {
                weight.as_f64() == Some(1.0)
            }
            Some(other) => {
                let expected = if key == "weight" { "0 or 1" } else { "true or false" };
                return Err(format!("`{key}` is {}; expected {expected}", shown(&other)));
            }
        };
        asked = Some((key, trained && asked.is_none_or(|(_, before)| before)));
    }
    Ok(asked)
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

/// The content of a turn: a text, or a list of parts. Parts of text are joined; reasoning becomes the turn's `reasoning`. Where there
/// are pictures among the parts, these stay the turn's `content`, for the template.
fn turn_text(
    turn: &mut Map<String, Value>,
    key: &str,
    unread: &mut Vec<String>,
    of_file: bool,
) -> Result<String, String> {
    let parts = match turn.shift_remove(key) {
        Some(Value::String(text)) => return Ok(text),
        Some(Value::Array(parts)) => parts,
        None => return Err(format!("`{key}` is missing; expected a text")),
        Some(other) => return Err(format!("`{key}` is {}; expected a text", shown(&other))),
    };
    let (mut content, mut reasoning, mut shown, mut has_pictures) = (String::new(), String::new(), Vec::new(), false);
    for (index, part) in parts.iter().enumerate() {
        match part_text(part, unread).map_err(|message| format!("`{key}[{index}]` {message}"))? {
            (Part::Text, text) => {
                content.push_str(text);
                shown.push(text_part(text));
            }
            (Part::Reasoning, text) => reasoning.push_str(text),
            (Part::Picture, path) if of_file => {
                has_pictures = true;
                shown.push(picture_part(path));
            }
            (Part::Picture, _) => return Err(format!("`{key}[{index}]` is a picture; those of data files are read")),
        }
    }
    if has_pictures {
        turn.insert("content".to_owned(), Value::Array(shown));
    }
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
    Picture,
}

/// The kind of one part of a turn's content, and its text or the path of its picture.
fn part_text<'a>(part: &'a Value, unread: &mut Vec<String>) -> Result<(Part, &'a str), String> {
    let Value::Object(fields) = part else { return Err(format!("is {}; expected a part", shown(part))) };
    let (kind, keys): (_, &[&str]) = match fields.get("type") {
        None | Some(Value::Null) => (Part::Text, &["text"]),
        Some(Value::String(name)) => match name.as_str() {
            "text" | "input_text" | "output_text" => (Part::Text, &["text"]),
            "reasoning" | "thinking" => (Part::Reasoning, &["text", "reasoning", "thinking"]),
            "image" => {
                let path = path_of(fields)?;
                let others =
                    fields.iter().filter(|(key, value)| !["path", "type"].contains(&key.as_str()) && !is_empty(value));
                unread.extend(others.map(|(key, _)| format!("{key} of pictures")));
                return Ok((Part::Picture, path));
            }
            other => {
                return Err(format!(
                    "is a part of the type `{other}`; expected {{\"type\": \"text\", \"text\": …}} or {{\"type\": \"image\", \"path\": …}}"
                ));
            }
        },
        Some(other) => return Err(format!("has as `type` {}; expected \"text\"", shown(other))),
    };
    let text = keys.iter().find_map(|key| Some((*key, fields.get(*key)?.as_str()?)));
    let (read, text) =
        text.ok_or_else(|| format!("is a part without a text; expected {{\"type\": …, \"{}\": …}}", keys[0]))?;
    let others = fields.iter().filter(|(key, value)| ![read, "type"].contains(&key.as_str()) && !is_empty(value));
    unread.extend(others.map(|(key, _)| format!("{key} of content parts")));
    Ok((kind, text))
}
