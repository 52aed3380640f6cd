//! A conversation in the form that a template takes: tool calls as objects or as texts.

use serde_json::{Map, Value, json};

use super::python::dumps;
use super::template::ChatTemplate;
use crate::data::example::Message;
use crate::error::{Error, Result};

/// The messages as `template` is to see them.
///
/// OpenAI's API gives the arguments of a call as JSON text, and most templates write them as JSON: the text would come
/// out as a string within JSON. So they become an object where the template writes them so, and a text where it fails on
/// the object. A call that a data set spells in the content (ShareGPT's `function_call`) becomes a call where the template
/// knows calls.
///
/// # Errors
/// Input: arguments that are no JSON object, where the template fails on them and on nothing else.
pub(in crate::data) fn prepared(messages: &[Message], template: &ChatTemplate) -> Result<Vec<Message>> {
    let mut messages = messages.to_vec();
    let knows_calls = template.mentions("tool_calls");
    for message in messages.iter_mut().filter(|message| message.spells_calls) {
        match knows_calls {
            true => {
                message.content.clear();
                message.more.insert("content".into(), Value::Null);
            }
            false => {
                message.more.shift_remove("tool_calls");
            }
        }
        message.spells_calls = false;
    }
    if arguments(&messages).next().is_none() {
        return Ok(messages);
    }
    let texts: Vec<String> = arguments(&messages).filter_map(|value| value.as_str().map(str::to_owned)).collect();
    let as_given = template.render(&messages, false);
    let is_escaped = |rendered: &String| {
        let escaped = |text: &String| Value::from(text.as_str()).to_string();
        texts.iter().any(|text| parsed(text).is_some() && rendered.contains(&escaped(text)))
    };
    if as_given.as_ref().is_ok_and(|rendered| !is_escaped(rendered)) {
        return Ok(messages);
    }
    let spells_json = texts.iter().any(|text| parsed(text).is_some());
    let other = match spells_json {
        true => with_arguments(&messages, |value| parsed(value.as_str()?)),
        false => with_arguments(&messages, |value| value.is_object().then(|| Value::from(dumps(value)))),
    };
    if template.render(&other, false).is_ok() {
        return Ok(other);
    }
    match as_given.err().and_then(|_| not_an_object(&messages, template)) {
        Some(error) => Err(error),
        None => Ok(messages),
    }
}

/// The error about the first call whose arguments are no JSON object, if the template renders the conversation once all
/// arguments are.
fn not_an_object(messages: &[Message], template: &ChatTemplate) -> Option<Error> {
    let object = |value: &Value| match value.as_str().and_then(parsed) {
        Some(object) if object.is_object() => Some(object),
        _ => (!value.is_object()).then(|| json!({})),
    };
    template.render(&with_arguments(messages, object), false).ok()?;
    let is_object =
        |value: &Value| value.is_object() || value.as_str().and_then(parsed).is_some_and(|value| value.is_object());
    for (turn, message) in messages.iter().enumerate() {
        let calls = message.more.get("tool_calls").and_then(Value::as_array);
        for (at, call) in calls.into_iter().flatten().enumerate() {
            if let Some(arguments) = function(call).get("arguments").filter(|arguments| !is_object(arguments)) {
                let found: String = arguments.to_string().chars().take(60).collect();
                let message = format!(
                    "`messages[{turn}].tool_calls[{at}]`: `arguments` is {found}; the chat template needs a JSON object there"
                );
                return Some(Error::input("", message));
            }
        }
    }
    None
}

/// The object or list that a text spells; `None` for any other text.
fn parsed(text: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(text).ok()?;
    (value.is_object() || value.is_array()).then_some(value)
}

/// The object that holds a call's `name` and `arguments`.
fn function(call: &Value) -> &Value {
    if call["function"].is_object() { &call["function"] } else { call }
}

/// The arguments of every call.
fn arguments(messages: &[Message]) -> impl Iterator<Item = &Value> {
    let calls = messages.iter().filter_map(|message| message.more.get("tool_calls")?.as_array()).flatten();
    calls.filter_map(|call| function(call).get("arguments"))
}

/// The messages with the arguments of the calls replaced where `replaced` gives others.
fn with_arguments(messages: &[Message], replaced: impl Fn(&Value) -> Option<Value>) -> Vec<Message> {
    let mut messages = messages.to_vec();
    let calls = messages.iter_mut().filter_map(|message| message.more.get_mut("tool_calls")?.as_array_mut()).flatten();
    for call in calls {
        let function: Option<&mut Map<String, Value>> = match call["function"].is_object() {
            true => call["function"].as_object_mut(),
            false => call.as_object_mut(),
        };
        if let Some(arguments) = function.and_then(|function| function.get_mut("arguments"))
            && let Some(other) = replaced(arguments)
        {
            *arguments = other;
        }
    }
    messages
}
