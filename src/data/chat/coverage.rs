//! The parts of a conversation that a chat template shows.
//!
//! Each text of the conversation gets marks ([`marks`](super::marks)), and the conversation is rendered once more. A text
//! whose marks come out nowhere is left out; a text of the assistant whose marks come out where nothing is trained is never
//! learned. Where a text does not come out as it is, a mark in every word tells a text that is cut from one that is
//! only written otherwise.

use std::collections::HashSet;

use serde_json::Value;

use super::marks::{LINKS, Marked, MarkedConversation, Marking, Shown, Signs};
use super::stand_ins::strings;
use super::template::ChatTemplate;
use super::turns::Rendered;
use crate::data::example::{Message, Role};
use crate::data::remark::Remark;

/// The share of a text that comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    Nothing,
    Part,
    Whole,
}

/// A conversation with marks near the ends of its texts, and its rendering. `None` where the template fails on them.
pub(in crate::data) fn marked(
    messages: &[Message],
    tools: Option<&Value>,
    template: &ChatTemplate,
) -> Option<(MarkedConversation, Shown)> {
    let marked = MarkedConversation::new(messages, tools, template, Marking::Ends)?;
    let shown = marked.render(messages.len(), false).ok()?;
    Some((marked, shown))
}

/// The parts of a conversation that `template` leaves out. `whole` is the rendering of `marked`, and `rendered` the text that
/// is trained.
pub(in crate::data) fn remarks(
    messages: &[Message],
    tools: Option<&Value>,
    template: &ChatTemplate,
    (marked, whole): (&MarkedConversation, &Shown),
    rendered: &Rendered,
) -> Vec<Remark> {
    let (texts, text) = (&marked.texts, rendered.text.as_str());
    let shares = shares(messages, tools, template, (marked, rendered.shown.as_ref().unwrap_or(whole)), rendered);
    let mut remarks = Vec::new();
    let mut left_out: Vec<usize> = Vec::new();
    for (turn, message) in messages.iter().enumerate() {
        let mut of_turn = shares.iter().filter(|(of, _, _)| *of == Some(turn)).peekable();
        if of_turn.peek().is_some() && of_turn.all(|(_, _, share)| *share == Share::Nothing) {
            left_out.push(turn);
            remarks.push(Remark::TurnLeftOut { role: message.role.name().to_owned() });
        }
    }
    let mut keys_left_out: Vec<(Option<usize>, &str)> = Vec::new();
    for (turn, key, share) in &shares {
        let turn_is_left_out = turn.is_some_and(|turn| left_out.contains(&turn));
        if *share == Share::Whole || turn_is_left_out || keys_left_out.contains(&(*turn, key)) {
            continue;
        }
        keys_left_out.push((*turn, key));
        // Of a key with several texts (a call with its arguments) a part may be shown.
        let partly = shares.iter().any(|(of, other, share)| (of, other) == (turn, key) && *share != Share::Nothing);
        let role = turn.map(|turn| messages[turn].role.name().to_owned());
        remarks.push(Remark::KeyLeftOut { role, key: (*key).to_owned(), partly });
    }
    if !keys_left_out.contains(&(None, "tools")) && tools.is_some_and(|tools| !names_parameters(tools, text)) {
        remarks.push(Remark::KeyLeftOut { role: None, key: "tools".to_owned(), partly: true });
    }
    for (turn, message) in messages.iter().enumerate() {
        remarks.extend(unread_keys(message, template).map(|key| Remark::KeyLeftOut {
            role: Some(message.role.name().to_owned()),
            key: key.to_owned(),
            partly: false,
        }));
        // Where the marks change the rendering otherwise, the places in it say nothing about the trained parts.
        if let Some(shown) = &rendered.shown
            && message.is_answer()
        {
            let of_turn = || texts.iter().filter(|text| text.turn == Some(turn));
            let is_trained = |at: usize| rendered.answers.iter().any(|answer| answer.contains(&at));
            let places = |text: &Marked| -> Vec<bool> {
                let of_text = shown.places.iter().filter(|(mark, _)| text.symbols().contains(mark));
                of_text.map(|(_, at)| is_trained(*at)).collect()
            };
            // A turn that is shown and not trained at all is counted elsewhere.
            if of_turn().any(|text| places(text).contains(&true)) {
                let untrained = of_turn().find(|text| {
                    let places = places(text);
                    !places.is_empty() && !places.contains(&true)
                });
                remarks.extend(untrained.map(|text| Remark::KeyNotTrained { key: text.key.clone() }));
            }
        }
    }
    remarks
}

/// The turn and the key of every text and of every number in a call, and the share of it that the template shows.
fn shares<'a>(
    messages: &[Message],
    tools: Option<&Value>,
    template: &ChatTemplate,
    (marked, shown): (&'a MarkedConversation, &Shown),
    rendered: &Rendered,
) -> Vec<(Option<usize>, &'a str, Share)> {
    let symbols = shown.symbols();
    let is_plain =
        |one: &Marked| one.symbols().iter().all(|mark| symbols.contains(mark)) && rendered.text.contains(&one.text);
    let plain = || marked.texts.iter().map(|one| (one.turn, one.key.as_str(), share(one, &symbols, "")));
    if marked.texts.iter().all(is_plain) && !messages.iter().any(has_numbers) {
        return plain().collect();
    }
    let Some(words) = MarkedConversation::new(messages, tools, template, Marking::Words) else {
        return plain().collect();
    };
    let Ok((mut symbols, text)) = words.render_all() else { return plain().collect() };
    if let Some(last) =
        messages.iter().rposition(|message| message.role == Role::Assistant).filter(|_| rendered.is_joined)
        && let Ok(prompt) = words.render(last, true)
    {
        symbols.extend(prompt.symbols());
    }
    let mut ends = marked.texts.iter();
    let found = words.texts.iter().map(|one| {
        let share = share(one, &symbols, &text);
        match &one.signs {
            Signs::Number(_) => (one.turn, "tool_calls", share),
            // Both markings mark the same texts in the same order.
            Signs::Symbols(_) => match ends.next() {
                Some(end) if is_plain(end) => (end.turn, end.key.as_str(), Share::Whole),
                Some(end) => (end.turn, end.key.as_str(), share),
                None => (one.turn, "content", share),
            },
        }
    });
    found.collect()
}

/// The share of the marks of a text that come out.
fn share(text: &Marked, symbols: &HashSet<char>, rendered: &str) -> Share {
    let (found, all) = match &text.signs {
        Signs::Symbols(marks) => (marks.iter().filter(|mark| symbols.contains(mark)).count(), marks.len()),
        Signs::Number(number) => (usize::from(rendered.contains(number)), 1),
    };
    match found {
        0 => Share::Nothing,
        _ if found == all => Share::Whole,
        _ => Share::Part,
    }
}

/// Whether the arguments of some call hold a number or a flag.
fn has_numbers(message: &Message) -> bool {
    fn is_inside(value: &Value) -> bool {
        match value {
            Value::Number(_) | Value::Bool(_) => true,
            Value::Array(items) => items.iter().any(is_inside),
            Value::Object(fields) => {
                fields.iter().any(|(key, value)| !LINKS.contains(&key.as_str()) && is_inside(value))
            }
            _ => false,
        }
    }
    message.more.get("tool_calls").is_some_and(is_inside)
}

/// Whether `text` has the names of all parameters of `tools`.
fn names_parameters(tools: &Value, text: &str) -> bool {
    let functions = tools.as_array().into_iter().flatten().map(|tool| match &tool["function"] {
        function if function.is_object() => function,
        _ => tool,
    });
    let mut names =
        functions.filter_map(|function| function["parameters"]["properties"].as_object()).flat_map(|of| of.keys());
    names.all(|name| text.contains(name.as_str()))
}

/// The turns whose content the template leaves out of a prompt.
pub(in crate::data) fn left_out(messages: &[Message], template: &ChatTemplate) -> Vec<usize> {
    let marked = MarkedConversation::new(messages, None, template, Marking::Words);
    let Some(marked) = marked else { return Vec::new() };
    let Ok(shown) = marked.render(messages.len(), true) else { return Vec::new() };
    let symbols = shown.symbols();
    let hidden =
        marked.texts.iter().filter(|text| text.key == "content" && share(text, &symbols, "") == Share::Nothing);
    hidden.filter_map(|text| text.turn).collect()
}

/// The keys of a turn without any text (numbers, flags) that the template does not mention.
fn unread_keys<'a>(message: &'a Message, template: &'a ChatTemplate) -> impl Iterator<Item = &'a str> {
    message.more.iter().filter_map(|(key, value)| {
        let mut texts = Vec::new();
        strings(value, &mut texts);
        let is_silent = texts.is_empty() && !value.is_null() && *value != Value::Array(Vec::new());
        (is_silent && key != "content" && !LINKS.contains(&key.as_str()) && !template.mentions(key))
            .then_some(key.as_str())
    })
}

/// The remark on roles that are never trained.
pub(in crate::data) fn untrained_roles(messages: &[Message]) -> Vec<Remark> {
    const KNOWN: [&str; 5] = ["tool", "developer", "function", "ipython", "environment"];
    let others = messages.iter().filter_map(|message| match &message.role {
        Role::Other(name) if !KNOWN.contains(&name.as_str()) => Some(Remark::RoleNotTrained { role: name.clone() }),
        _ => None,
    });
    others.collect()
}
