//! One object of a data file as an example, or what is wrong with it: field, found, expected.

use serde_json::{Value, json};

use super::fields::{Fields, shown};
use super::{preferences, turns};
use crate::data::alpaca;
use crate::data::example::{Example, Message, Role};
use crate::data::format::Format;

/// The example of an object. Keys that are not read stay in `fields`.
pub(super) fn example(format: Format, fields: &mut Fields) -> Result<Example, String> {
    match format {
        Format::PromptCompletion => prompt_completion(fields),
        Format::Alpaca => alpaca(fields),
        Format::Chat => {
            let key = ["messages", "conversations"].into_iter().find(|key| fields.peek(key).is_some());
            let messages = turns::list(fields, key.unwrap_or("messages"))?;
            conversation(messages, fields)
        }
        Format::Text => Ok(Example::Text { text: fields.text("text")? }),
        Format::Preference => preferences::pair(fields),
        Format::Labelled => preferences::labelled(fields),
        Format::Class => class(fields),
    }
}

/// A text and its label, which is a text or a whole number.
fn class(fields: &mut Fields) -> Result<Example, String> {
    let key = fields.columns.name("label");
    let text = fields.text("text")?;
    let label = match fields.take("label") {
        Some(Value::String(label)) if !label.trim().is_empty() => label,
        Some(Value::Number(label)) if !label.is_f64() => label.to_string(),
        Some(other) => return Err(format!("`{key}` is {}; expected a text or a whole number", shown(&other))),
        None => return Err(format!("`{key}` is missing; expected the label of the text, a text or a whole number")),
    };
    Ok(Example::Class { text, label })
}

/// A conversation of these turns, with the system text and the tools that stand beside them.
pub(super) fn conversation(mut messages: Vec<Message>, fields: &mut Fields) -> Result<Example, String> {
    add_system(&mut messages, fields)?;
    Ok(Example::Chat { messages, tools: tools(fields)? })
}

/// A prompt and a completion: two texts, or, as TRL has them, two lists of turns. Of the lists, only the completion is trained.
pub(super) fn prompt_completion(fields: &mut Fields) -> Result<Example, String> {
    let is_list = |key: &str| fields.peek(key).is_some_and(Value::is_array);
    match (is_list("prompt"), is_list("completion")) {
        (false, false) => {
            Ok(Example::PromptCompletion { prompt: fields.text("prompt")?, completion: fields.text("completion")? })
        }
        (true, true) => {
            let mut messages = turns::list(fields, "prompt")?;
            messages.iter_mut().for_each(|message| message.trained = false);
            messages.extend(turns::list(fields, "completion")?);
            conversation(messages, fields)
        }
        (is_list, _) => {
            let (list, text) = if is_list { ("prompt", "completion") } else { ("completion", "prompt") };
            let found = shown(fields.peek(text).unwrap_or(&Value::Null));
            let (list, text) = (fields.columns.name(list), fields.columns.name(text));
            Err(format!("`{list}` is a list, and `{text}` is {found}; expected two texts or two lists of turns"))
        }
    }
}

/// An Alpaca example; with earlier turns in `history`, a conversation.
fn alpaca(fields: &mut Fields) -> Result<Example, String> {
    let instruction = fields.text("instruction")?;
    let input = fields.optional_text("input")?.unwrap_or_default();
    let output = fields.text("output")?;
    let system = fields.optional_text("system")?.filter(|system| !system.is_empty());
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
fn history(fields: &mut Fields) -> Result<Vec<Message>, String> {
    let key = fields.columns.name("history");
    let pairs = match fields.take_json("history")? {
        None => return Ok(Vec::new()),
        Some(Value::Array(pairs)) => pairs,
        Some(other) => return Err(format!("`{key}` is {}; expected a list of [question, answer]", shown(&other))),
    };
    let mut turns = Vec::with_capacity(2 * pairs.len());
    for (index, pair) in pairs.iter().enumerate() {
        match pair.as_array().map(Vec::as_slice) {
            Some([Value::String(question), Value::String(answer)]) => {
                turns.extend([Message::user(question.as_str()), Message::assistant(answer.as_str())]);
            }
            _ => return Err(format!("`{key}[{index}]` is {}; expected [question, answer]", shown(pair))),
        }
    }
    Ok(turns)
}

/// Puts the system text that stands beside the turns before them.
fn add_system(messages: &mut Vec<Message>, fields: &mut Fields) -> Result<(), String> {
    let Some(system) = fields.optional_text("system")?.filter(|system| !system.is_empty()) else { return Ok(()) };
    match messages.first() {
        Some(Message { role: Role::System, content, .. }) if *content == system => Ok(()),
        Some(Message { role: Role::System, .. }) => {
            let key = fields.columns.name("system");
            Err(format!("`{key}` stands beside the turns, and the first turn is another system text; expected one"))
        }
        _ => {
            messages.insert(0, Message::system(system));
            Ok(())
        }
    }
}

/// The tools of a conversation; none where they are missing, null or an empty list. `functions`, OpenAI's former list of
/// them, becomes one of tools.
fn tools(fields: &mut Fields) -> Result<Option<Value>, String> {
    let list = |fields: &mut Fields, key: &str| match fields.take_json(key)? {
        None => Ok(Vec::new()),
        Some(Value::Array(tools)) => Ok(tools),
        Some(other) => Err(format!("`{}` is {}; expected a list of tools", fields.columns.name(key), shown(&other))),
    };
    let mut tools = list(fields, "tools")?;
    let functions = list(fields, "functions")?;
    if !tools.is_empty() && !functions.is_empty() {
        return Err("`tools` and `functions` stand side by side; expected one".into());
    }
    tools.extend(functions.into_iter().map(|function| json!({"type": "function", "function": function})));
    Ok((!tools.is_empty()).then_some(Value::Array(tools)))
}
