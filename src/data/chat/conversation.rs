//! A conversation in the form that a template takes: tool calls as objects or as texts.

use serde_json::{Map, Value};

use super::python::dumps;
use super::template::ChatTemplate;
use crate::data::example::Message;

/// The messages as `template` is to see them.
///
/// OpenAI's API gives the arguments of a call as JSON text, and most templates write them as JSON: the text would come
/// out as a string within JSON. So they become an object where the template writes them so, and a text where it fails on
/// the object. A call that a data set spells in the content (ShareGPT's `function_call`) becomes a call where the template
/// knows calls.
pub(in crate::data) fn prepared(messages: &[Message], template: &ChatTemplate) -> Vec<Message> {
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
    let texts: Vec<String> = arguments(&messages).filter_map(|value| value.as_str().map(str::to_owned)).collect();
    let objects = || with_arguments(&messages, |value| parsed(value.as_str()?));
    if !texts.iter().any(|text| parsed(text).is_some()) {
        let has_objects = arguments(&messages).any(Value::is_object);
        if has_objects && template.render(&messages, false).is_err() {
            let as_texts = with_arguments(&messages, |value| value.is_object().then(|| Value::from(dumps(value))));
            if template.render(&as_texts, false).is_ok() {
                return as_texts;
            }
        }
        return messages;
    }
    let keeps_texts = template.render(&messages, false).is_ok_and(|rendered| {
        let escaped = |text: &String| Value::from(text.as_str()).to_string();
        !texts.iter().any(|text| parsed(text).is_some() && rendered.contains(&escaped(text)))
    });
    if keeps_texts {
        return messages;
    }
    let as_objects = objects();
    match template.render(&as_objects, false) {
        Ok(_) => as_objects,
        Err(_) => messages,
    }
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
