//! Stand-ins: private-use characters that take the place of control tokens spelled in what people wrote.
//!
//! A template renders text in which control tokens are spelled out. What people wrote may spell them too; there they
//! must stay text. So before rendering, every such spelling in a message is replaced by one private-use character, which
//! survives whatever the template does with the message, and after rendering each of those is encoded as the ordinary
//! text it stands for.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use serde_json::Value;

use crate::data::example::{Message, Role};
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// Private-use characters (plane 15) stand for the texts of special tokens.
const PRIVATE_USE: Range<u32> = 0xF_0000..0xF_FFFE;

/// The texts of the control tokens, for finding them in what people wrote.
#[derive(Debug, Clone)]
pub(in crate::data) struct SpecialTexts {
    /// By first character; the longest text first.
    by_first: HashMap<char, Vec<String>>,
}

/// The control token's text behind each stand-in character.
#[derive(Debug, Default)]
pub(in crate::data) struct StandIns {
    pub(in crate::data) texts: HashMap<char, String>,
}

/// A conversation in which stand-ins hide what spells special tokens.
#[derive(Debug)]
pub(in crate::data) struct Hidden {
    pub(in crate::data) messages: Vec<Message>,
    pub(in crate::data) tools: Option<Value>,
    pub(in crate::data) stand_ins: StandIns,
}

impl StandIns {
    /// `text` as its author wrote it: with the control tokens in place of the stand-ins.
    pub(in crate::data) fn as_written(&self, text: &str) -> String {
        let mut written = String::with_capacity(text.len());
        for symbol in text.chars() {
            match self.texts.get(&symbol) {
                Some(token) => written.push_str(token),
                None => written.push(symbol),
            }
        }
        written
    }
}

impl SpecialTexts {
    pub(in crate::data) fn of(tokenizer: &Tokenizer) -> Self {
        let mut by_first: HashMap<char, Vec<String>> = HashMap::new();
        for (text, _) in tokenizer.special_tokens() {
            if let Some(first) = text.chars().next() {
                by_first.entry(first).or_default().push(text.to_owned());
            }
        }
        for texts in by_first.values_mut() {
            texts.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
        }
        Self { by_first }
    }

    /// The special text that `text` starts with, the longest if several.
    pub(super) fn at_start(&self, text: &str) -> Option<&str> {
        let candidates = self.by_first.get(&text.chars().next()?)?;
        candidates.iter().find(|candidate| text.starts_with(candidate.as_str())).map(String::as_str)
    }

    /// Whether `text` ends with a special text.
    pub(in crate::data) fn ends(&self, text: &str) -> bool {
        self.without_last(text).is_some()
    }

    /// `text` without the special text that it ends with, the longest if several.
    pub(super) fn without_last<'a>(&self, text: &'a str) -> Option<&'a str> {
        let stripped = self.by_first.values().flatten().filter_map(|special| text.strip_suffix(special.as_str()));
        stripped.min_by_key(|rest| rest.len())
    }

    /// The first special text in `text`, with its position.
    pub(in crate::data) fn find<'a>(&'a self, text: &str) -> Option<(usize, &'a str)> {
        text.char_indices().find_map(|(at, first)| {
            self.by_first.get(&first)?;
            Some((at, self.at_start(&text[at..])?))
        })
    }

    /// Replaces the special texts that messages and tools spell by one stand-in character each.
    pub(in crate::data) fn hide(&self, messages: &[Message], tools: Option<&Value>) -> Result<Hidden> {
        let mut texts: Vec<&str> = Vec::new();
        for message in messages {
            texts.extend([message.role.name(), message.content.as_str()]);
            message.more.values().for_each(|value| strings(value, &mut texts));
        }
        tools.into_iter().for_each(|tools| strings(tools, &mut texts));
        if texts.iter().all(|text| self.find(text).is_none()) {
            let (messages, tools) = (messages.to_vec(), tools.cloned());
            return Ok(Hidden { messages, tools, stand_ins: StandIns::default() });
        }
        let mut free = unused(texts);
        let mut stand_ins: HashMap<&str, char> = HashMap::new();
        let mut replaced = |text: &str| -> Result<String> {
            let mut out = String::with_capacity(text.len());
            let mut rest = text;
            while let Some((at, special)) = self.find(rest) {
                let stand_in = match stand_ins.get(special) {
                    Some(stand_in) => *stand_in,
                    None => {
                        let next = free
                            .next()
                            .ok_or_else(|| Error::input("", "the text uses up all private-use characters"))?;
                        stand_ins.insert(special, next);
                        next
                    }
                };
                out.push_str(&rest[..at]);
                out.push(stand_in);
                rest = &rest[at + special.len()..];
            }
            out.push_str(rest);
            Ok(out)
        };
        let mut hidden = messages.to_vec();
        for message in &mut hidden {
            message.role = Role::of(&replaced(message.role.name())?);
            message.content = replaced(&message.content)?;
            message.more.values_mut().try_for_each(|value| replace_strings(value, &mut replaced))?;
        }
        let mut tools = tools.cloned();
        tools.iter_mut().try_for_each(|tools| replace_strings(tools, &mut replaced))?;
        let texts = stand_ins.into_iter().map(|(text, symbol)| (symbol, text.to_owned())).collect();
        Ok(Hidden { messages: hidden, tools, stand_ins: StandIns { texts } })
    }
}

/// The private-use characters that none of `texts` holds.
pub(super) fn unused<'a>(texts: impl IntoIterator<Item = &'a str>) -> impl Iterator<Item = char> {
    let used: HashSet<char> = texts.into_iter().flat_map(str::chars).filter(|symbol| is_private(*symbol)).collect();
    PRIVATE_USE.filter_map(char::from_u32).filter(move |symbol| !used.contains(symbol))
}

/// Every text in a JSON value; not the keys.
pub(in crate::data) fn strings<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(values) => values.iter().for_each(|value| strings(value, found)),
        Value::Object(fields) => fields.values().for_each(|value| strings(value, found)),
        _ => {}
    }
}

/// Puts another text for every text in a JSON value.
fn replace_strings(value: &mut Value, replaced: &mut impl FnMut(&str) -> Result<String>) -> Result<()> {
    match value {
        Value::String(text) => {
            *text = replaced(text)?;
            Ok(())
        }
        Value::Array(values) => values.iter_mut().try_for_each(|value| replace_strings(value, replaced)),
        Value::Object(fields) => fields.values_mut().try_for_each(|value| replace_strings(value, replaced)),
        _ => Ok(()),
    }
}

/// Whether `symbol` may be a stand-in or a mark.
pub(super) fn is_private(symbol: char) -> bool {
    PRIVATE_USE.contains(&u32::from(symbol))
}
