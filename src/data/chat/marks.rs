//! Marks: private-use characters in the texts of a conversation, which show what a template makes of each text.

use std::collections::HashSet;

use serde_json::Value;

use super::stand_ins::{is_private, strings, unused};
use super::template::ChatTemplate;
use crate::data::example::Message;
use crate::error::Result;

/// Keys whose texts link a call with its result, name a kind or name other keys; templates compare them rather than show
/// them.
pub(super) const LINKS: [&str; 6] = ["id", "tool_call_id", "type", "index", "role", "required"];
/// The most marks in one text.
const MAX_MARKS: usize = 64;
/// The first of the numbers that stand for others: no text is likely to have them.
const FIRST_NUMBER: u64 = 7_318_504_201;

/// The places of the marks in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marking {
    /// Two, near the beginning and near the end: what comes out is the text without them, as far as that is possible.
    Ends,
    /// One in every word, and other numbers in place of the numbers in calls.
    Words,
}

/// A text, or a number, that carries marks.
#[derive(Debug)]
pub(super) struct Marked {
    /// The text without the marks and without white space around it.
    pub(super) text: String,
    pub(super) turn: Option<usize>,
    /// The key in the turn (`content`, `reasoning`, `tool_calls`), or in the row (`tools`).
    pub(super) key: String,
    pub(super) signs: Signs,
}

/// The marks of a text.
#[derive(Debug)]
pub(super) enum Signs {
    /// Characters in a text.
    Symbols(Vec<char>),
    /// The number in place of a number.
    Number(String),
}

/// A conversation with marks in its texts.
#[derive(Debug)]
pub(in crate::data) struct MarkedConversation {
    pub(super) messages: Vec<Message>,
    pub(super) texts: Vec<Marked>,
    template: ChatTemplate,
    symbols: HashSet<char>,
}

/// A rendering of a marked conversation.
#[derive(Debug, Clone)]
pub(in crate::data) struct Shown {
    /// The rendering without the marks.
    pub(super) bare: String,
    /// The marks and their positions in `bare`, in order.
    pub(super) places: Vec<(char, usize)>,
}

impl MarkedConversation {
    /// A copy of the conversation with marks in its texts. `None` where there are not enough marks.
    pub(super) fn new(
        messages: &[Message],
        tools: Option<&Value>,
        template: &ChatTemplate,
        marking: Marking,
    ) -> Option<Self> {
        let mut texts: Vec<&str> = Vec::new();
        for message in messages {
            texts.extend([message.role.name(), message.content.as_str()]);
            message.more.values().for_each(|value| strings(value, &mut texts));
        }
        tools.into_iter().for_each(|tools| strings(tools, &mut texts));
        let mut pen = Pen { free: unused(texts), number: FIRST_NUMBER, marking, texts: Vec::new() };
        let mut marked = messages.to_vec();
        for (turn, message) in marked.iter_mut().enumerate() {
            match message.part_texts_mut() {
                Some(texts) => texts.into_iter().try_for_each(|text| pen.text(text, "content", Some(turn)))?,
                None => pen.text(&mut message.content, "content", Some(turn))?,
            }
            for (key, value) in message.more.iter_mut().filter(|(key, _)| *key != "content") {
                pen.value(value, key, key, Some(turn))?;
            }
        }
        let mut tools = tools.cloned();
        for tool in tools.iter_mut().filter_map(Value::as_array_mut).flatten() {
            pen.value(tool, "", "tools", None)?;
        }
        let symbols = pen.texts.iter().flat_map(Marked::symbols).copied().collect();
        Some(Self { messages: marked, texts: pen.texts, template: template.with_tools(tools.as_ref()), symbols })
    }

    /// The rendering of the first `turns` turns. With `add_generation_prompt` it ends where an answer begins.
    pub(super) fn render(&self, turns: usize, add_generation_prompt: bool) -> Result<Shown> {
        let messages = self.messages.get(..turns).unwrap_or(&self.messages);
        Ok(self.shown(&self.template.render(messages, add_generation_prompt)?))
    }

    /// The marks that the whole conversation shows, and its rendering as it is.
    pub(super) fn render_all(&self) -> Result<(HashSet<char>, String)> {
        let rendered = self.template.render(&self.messages, false)?;
        Ok((self.shown(&rendered).symbols(), rendered))
    }

    /// The rendering with another turn in the place of one. Where the template fails on that, the turn ends the conversation.
    pub(super) fn render_replacing(&self, turn: usize, other: Message) -> Result<Shown> {
        let mut messages = self.messages.clone();
        messages[turn] = other;
        let rendered = self.template.render(&messages, false);
        Ok(self.shown(&rendered.or_else(|_| self.template.render(&messages[..=turn], false))?))
    }

    /// A rendering without the marks, and the position of each in what is left.
    pub(super) fn shown(&self, rendered: &str) -> Shown {
        let mut bare = String::with_capacity(rendered.len());
        let mut places = Vec::new();
        for symbol in rendered.chars() {
            match is_private(symbol) && self.symbols.contains(&symbol) {
                true => places.push((symbol, bare.len())),
                false => bare.push(symbol),
            }
        }
        Shown { bare, places }
    }
}

impl Shown {
    /// The marks in the rendering.
    pub(super) fn symbols(&self) -> HashSet<char> {
        self.places.iter().map(|(symbol, _)| *symbol).collect()
    }
}

impl Marked {
    pub(super) fn symbols(&self) -> &[char] {
        match &self.signs {
            Signs::Symbols(symbols) => symbols,
            Signs::Number(_) => &[],
        }
    }
}

/// Puts marks into texts.
struct Pen<I> {
    free: I,
    number: u64,
    marking: Marking,
    texts: Vec<Marked>,
}

impl<I: Iterator<Item = char>> Pen<I> {
    /// Marks every text of a value but the links. `name` is the innermost key, `key` the outermost. `None` where no mark is
    /// left.
    fn value(&mut self, value: &mut Value, name: &str, key: &str, turn: Option<usize>) -> Option<()> {
        match value {
            _ if LINKS.contains(&name) => Some(()),
            Value::String(text) => self.text(text, key, turn),
            Value::Array(items) => items.iter_mut().try_for_each(|item| self.value(item, "", key, turn)),
            Value::Object(fields) => fields.iter_mut().try_for_each(|(name, item)| self.value(item, name, key, turn)),
            Value::Number(_) | Value::Bool(_) if self.marking == Marking::Words && key == "tool_calls" => {
                self.number += 1;
                let sign = self.number.to_string();
                let text = value.to_string();
                *value = Value::from(self.number);
                self.texts.push(Marked { text, turn, key: key.to_owned(), signs: Signs::Number(sign) });
                Some(())
            }
            _ => Some(()),
        }
    }

    /// Marks a text that is not blank.
    fn text(&mut self, text: &mut String, key: &str, turn: Option<usize>) -> Option<()> {
        if text.trim().is_empty() {
            return Some(());
        }
        let places = match self.marking {
            Marking::Ends => vec![near_beginning(text), near_end(text)],
            Marking::Words => in_words(text),
        };
        let bare = text.trim().to_owned();
        let mut marked = String::with_capacity(text.len() + 4 * places.len());
        let mut symbols = Vec::with_capacity(places.len());
        let mut done = 0;
        for place in places {
            let symbol = self.free.next()?;
            // In a text of one letter the two ends meet.
            let place = place.max(done);
            marked.push_str(&text[done..place]);
            marked.push(symbol);
            symbols.push(symbol);
            done = place;
        }
        marked.push_str(&text[done..]);
        *text = marked;
        self.texts.push(Marked { text: bare, turn, key: key.to_owned(), signs: Signs::Symbols(symbols) });
        Some(())
    }
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

/// Before the last letter of every word outside tags, of so many words as there may be marks; near the end of a text
/// without words.
fn in_words(text: &str) -> Vec<usize> {
    let mut places = Vec::new();
    let mut last = None;
    let mut in_tag = false;
    for (at, symbol) in text.char_indices() {
        let is_letter = symbol.is_alphanumeric();
        if !is_letter && let Some(place) = last.take() {
            places.push(place);
        }
        in_tag = match symbol {
            '<' => text[at..].contains('>'),
            '>' => false,
            _ => in_tag,
        };
        if is_letter && !in_tag {
            last = Some(at);
        }
    }
    places.extend(last);
    if places.is_empty() {
        return vec![near_end(text)];
    }
    let step = places.len().div_ceil(MAX_MARKS);
    let end = places.last().copied();
    let mut places: Vec<usize> = places.into_iter().step_by(step).collect();
    places.extend(end.filter(|end| places.last() != Some(end)));
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_marked_outside_tags_up_to_a_number() {
        let marked = |text: &str| {
            let mut out = text.to_owned();
            in_words(text).into_iter().rev().for_each(|at| out.insert(at, '|'));
            out
        };
        assert_eq!(marked("<a>So b</a> 3 < 4x"), "<a>S|o |b</a> |3 < 4|x");
        assert_eq!(marked("?!"), "?!|");
        let many = "word ".repeat(10 * MAX_MARKS) + "last";
        assert!(in_words(&many).len() <= MAX_MARKS + 1 && marked(&many).ends_with("las|t"));
    }
}
