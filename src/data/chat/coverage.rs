//! The parts of a conversation that a chat template shows.
//!
//! Each text of the conversation gets a mark, a private-use character of its own, and the conversation is rendered once
//! more. A mark that comes out nowhere belongs to a text that the template leaves out; a mark of the assistant that comes
//! out where nothing is trained belongs to words that are never learned. The marks stand near the ends of the texts. Where
//! a text does not come out as it is, marks near the beginnings tell a text that is cut from one that is left out.

use std::ops::Range;

use serde_json::Value;

use super::stand_ins::{is_private, strings, unused};
use super::template::ChatTemplate;
use crate::data::example::{Message, Role};
use crate::data::remark::Remark;

/// Keys whose texts link a call with its result, or name a kind; templates compare them rather than show them.
const LINKS: [&str; 5] = ["id", "tool_call_id", "type", "index", "role"];

/// A text that carries a mark.
struct Marked {
    mark: char,
    /// The text without the mark and without white space around it.
    text: String,
    turn: Option<usize>,
    /// The key in the turn: `content`, `reasoning`, `tool_calls`.
    key: String,
}

/// The parts of a conversation that `template` leaves out. `text` is its rendering and `answers` are the trained parts of it.
pub(in crate::data) fn remarks(
    messages: &[Message],
    tools: Option<&Value>,
    template: &ChatTemplate,
    text: &str,
    answers: &[Range<usize>],
) -> Vec<Remark> {
    let Some((marked_messages, marked_tools, marks)) = mark(messages, tools, near_end) else { return Vec::new() };
    let marked_template = template.with_tools(marked_tools.as_ref());
    let Ok(rendered) = marked_template.render(&marked_messages, false) else { return Vec::new() };
    let (bare, places) = without_marks(&rendered, &marks);
    let mut remarks = Vec::new();
    let mut left_out: Vec<usize> = Vec::new();
    let ends_shown = |mark: char| places.iter().any(|(found, _)| *found == mark);
    let is_in_doubt = |marked: &Marked| !ends_shown(marked.mark) || !text.contains(&marked.text);
    let beginnings = marks.iter().any(is_in_doubt).then(|| shown_beginnings(messages, tools, template)).flatten();
    // Without beginnings to look at, a text counts as shown as far as its end is.
    let begins_shown = |mark: char| beginnings.as_ref().map_or_else(|| ends_shown(mark), |shown| shown.contains(&mark));
    let is_shown = |mark: char| ends_shown(mark) || begins_shown(mark);
    let is_whole = |marked: &Marked| ends_shown(marked.mark) && (begins_shown(marked.mark) || !is_in_doubt(marked));
    for (turn, message) in messages.iter().enumerate() {
        let of_turn = || marks.iter().filter(|marked| marked.turn == Some(turn));
        if of_turn().next().is_some() && of_turn().all(|marked| !is_shown(marked.mark)) {
            left_out.push(turn);
            remarks.push(Remark::TurnLeftOut { role: message.role.name().to_owned() });
        }
    }
    let mut keys_left_out: Vec<(Option<usize>, &str)> = Vec::new();
    for marked in &marks {
        let seen = keys_left_out.contains(&(marked.turn, marked.key.as_str()));
        let turn_is_left_out = marked.turn.is_some_and(|turn| left_out.contains(&turn));
        if seen || turn_is_left_out || is_whole(marked) {
            continue;
        }
        keys_left_out.push((marked.turn, &marked.key));
        // Of a key with several texts (a call with its arguments) a part may be shown.
        let group = |other: &&Marked| (other.turn, &other.key) == (marked.turn, &marked.key);
        let partly = marks.iter().filter(group).any(|other| is_shown(other.mark));
        let role = marked.turn.map(|turn| messages[turn].role.name().to_owned());
        remarks.push(Remark::KeyLeftOut { role, key: marked.key.clone(), partly });
    }
    for (turn, message) in messages.iter().enumerate() {
        remarks.extend(unread_keys(message, template).map(|key| Remark::KeyLeftOut {
            role: Some(message.role.name().to_owned()),
            key: key.to_owned(),
            partly: false,
        }));
        // Where the marks change the rendering otherwise, the places in it say nothing about the trained parts.
        if bare == text
            && message.is_answer()
            && !left_out.contains(&turn)
            && has_answer(turn, answers, &marks, &places)
        {
            let is_trained = |at: usize| answers.iter().any(|answer| answer.contains(&at));
            let untrained = marks.iter().filter(|marked| marked.turn == Some(turn)).find(|marked| {
                ends_shown(marked.mark)
                    && places.iter().filter(|(mark, _)| *mark == marked.mark).all(|(_, at)| !is_trained(*at))
            });
            remarks.extend(untrained.map(|marked| Remark::KeyNotTrained { key: marked.key.clone() }));
        }
    }
    remarks
}

/// The marks near the beginnings of the texts that `template` shows. `None` where it fails on them.
fn shown_beginnings(messages: &[Message], tools: Option<&Value>, template: &ChatTemplate) -> Option<Vec<char>> {
    let (messages, tools, marks) = mark(messages, tools, near_beginning)?;
    let rendered = template.with_tools(tools.as_ref()).render(&messages, false).ok()?;
    Some(without_marks(&rendered, &marks).1.into_iter().map(|(mark, _)| mark).collect())
}

/// The turns whose content the template leaves out.
pub(in crate::data) fn left_out(messages: &[Message], template: &ChatTemplate) -> Vec<usize> {
    let hidden = |position: fn(&str) -> usize| {
        let Some((marked, _, marks)) = mark(messages, None, position) else { return Vec::new() };
        let Ok(rendered) = template.render(&marked, true) else { return Vec::new() };
        let hidden = marks.iter().filter(|marked| marked.key == "content" && !rendered.contains(marked.mark));
        hidden.filter_map(|marked| marked.turn).collect::<Vec<usize>>()
    };
    let mut turns = hidden(near_end);
    if !turns.is_empty() {
        let others = hidden(near_beginning);
        turns.retain(|turn| others.contains(turn));
    }
    turns
}

/// Whether some text of the turn is trained: a turn that is shown and not trained at all is counted elsewhere.
fn has_answer(turn: usize, answers: &[Range<usize>], marks: &[Marked], places: &[(char, usize)]) -> bool {
    let of_turn = |mark: char| marks.iter().any(|marked| marked.turn == Some(turn) && marked.mark == mark);
    places.iter().any(|(mark, at)| of_turn(*mark) && answers.iter().any(|answer| answer.contains(at)))
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

/// A copy of the conversation with a mark in each text, at the place that `position` gives. The marks of a conversation
/// are the same for every `position`. `None` where there are not enough marks.
fn mark(
    messages: &[Message],
    tools: Option<&Value>,
    position: fn(&str) -> usize,
) -> Option<(Vec<Message>, Option<Value>, Vec<Marked>)> {
    let mut texts: Vec<&str> = Vec::new();
    for message in messages {
        texts.extend([message.role.name(), message.content.as_str()]);
        message.more.values().for_each(|value| strings(value, &mut texts));
    }
    tools.into_iter().for_each(|tools| strings(tools, &mut texts));
    let mut free = unused(texts);
    let mut marks = Vec::new();
    let mut marked = messages.to_vec();
    for (turn, message) in marked.iter_mut().enumerate() {
        let mut put = |text: &mut String, key: &str| put_mark(text, key, Some(turn), position, &mut free, &mut marks);
        put(&mut message.content, "content")?;
        for (key, value) in message.more.iter_mut().filter(|(key, _)| *key != "content") {
            put_marks(value, key, &mut |text| put(text, key))?;
        }
    }
    let mut tools = tools.cloned();
    for tool in tools.iter_mut().filter_map(Value::as_array_mut).flatten() {
        let function = if tool["function"].is_object() { &mut tool["function"] } else { tool };
        if let Some(Value::String(name)) = function.get_mut("name") {
            put_mark(name, "tools", None, position, &mut free, &mut marks)?;
        }
    }
    Some((marked, tools, marks))
}

/// Marks every text of a value but the links.
fn put_marks(value: &mut Value, key: &str, put: &mut impl FnMut(&mut String) -> Option<()>) -> Option<()> {
    match value {
        Value::String(text) if !LINKS.contains(&key) => put(text),
        Value::Array(items) => items.iter_mut().try_for_each(|item| put_marks(item, key, put)),
        Value::Object(fields) => fields.iter_mut().try_for_each(|(key, item)| put_marks(item, key, put)),
        _ => Some(()),
    }
}

/// Puts the next mark into a text that is not blank. `None` where none is left.
fn put_mark(
    text: &mut String,
    key: &str,
    turn: Option<usize>,
    position: fn(&str) -> usize,
    free: &mut impl Iterator<Item = char>,
    marks: &mut Vec<Marked>,
) -> Option<()> {
    if text.trim().is_empty() {
        return Some(());
    }
    let mark = free.next()?;
    let bare = text.trim().to_owned();
    text.insert(position(text), mark);
    marks.push(Marked { mark, text: bare, turn, key: key.to_owned() });
    Some(())
}

/// Before the last letter outside tags: templates look at how a text begins and ends, and cut it at tags.
fn near_end(text: &str) -> usize {
    let mut end = text.trim_end();
    while let Some(open) = end.ends_with('>').then(|| end.rfind('<')).flatten().filter(|open| *open > 0) {
        end = end[..open].trim_end();
    }
    let end = if end.is_empty() { text } else { end };
    end.char_indices().rev().find(|(_, symbol)| symbol.is_alphanumeric()).map_or(end.len(), |(at, _)| at)
}

/// Behind the first letter outside tags.
fn near_beginning(text: &str) -> usize {
    let mut rest = text.trim_start();
    while let Some(close) = rest.starts_with('<').then(|| rest.find('>')).flatten() {
        rest = rest[close + 1..].trim_start();
    }
    let start = text.len() - rest.len();
    let first = rest.char_indices().find(|(_, symbol)| symbol.is_alphanumeric());
    first.map_or(start, |(at, symbol)| start + at + symbol.len_utf8())
}

/// A rendering without the marks, and where each stood in what is left.
fn without_marks(rendered: &str, marks: &[Marked]) -> (String, Vec<(char, usize)>) {
    let mut bare = String::with_capacity(rendered.len());
    let mut places = Vec::new();
    for symbol in rendered.chars() {
        match is_private(symbol) && marks.iter().any(|marked| marked.mark == symbol) {
            true => places.push((symbol, bare.len())),
            false => bare.push(symbol),
        }
    }
    (bare, places)
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
