//! The control tokens that a tokenizer does not mark as such: those that the chat template puts around turns.
//!
//! Some files type `<|im_start|>` and `<|im_end|>` as ordinary added tokens. Left so, the end of a turn would not be known
//! as one, and a user's text that spells it would become it. Other added tokens, as `<think>`, are written by the
//! assistant itself and stay what the file says.

use std::collections::HashSet;

use super::template::ChatTemplate;
use crate::data::example::Message;
use crate::text::Tokenizer;

/// Contents that no template looks for.
const SYSTEM: &str = "\u{FFF00}";
const QUESTION: &str = "\u{FFF01}";
const ANSWER: &str = "\u{FFF02}";

/// `tokenizer` with the tokens around `template`'s turns as control tokens.
pub(in crate::data) fn with_turn_tokens(tokenizer: Tokenizer, template: &ChatTemplate) -> Tokenizer {
    let ordinary = tokenizer.ordinary_added_tokens();
    if ordinary.is_empty() {
        return tokenizer;
    }
    let found = turn_tokens(&ordinary, template);
    if found.is_empty() {
        return tokenizer;
    }
    // The same file was read before, so nothing in it can be wrong now.
    tokenizer.with_control_tokens(&found).unwrap_or(tokenizer)
}

/// The tokens of `added` in the markup of the user's and the system's turns, the first that opens an answer, and the
/// first behind an answer.
fn turn_tokens(added: &[String], template: &ChatTemplate) -> HashSet<String> {
    let render = |messages: &[Message], asks: bool| template.render(messages, asks).unwrap_or_default();
    let question = Message::user(QUESTION);
    let plain = render(std::slice::from_ref(&question), false);
    let asked = render(std::slice::from_ref(&question), true);
    let answered = render(&[question.clone(), Message::assistant(ANSWER)], false);
    let instructed = render(&[Message::system(SYSTEM), question], false);
    let mut found: HashSet<String> = added
        .iter()
        .filter(|token| plain.contains(token.as_str()) || instructed.contains(token.as_str()))
        .cloned()
        .collect();
    let opening = match asked.strip_prefix(&plain) {
        Some(prompt) if !prompt.is_empty() => prompt,
        _ => answered.strip_prefix(&plain).and_then(|rest| rest.split(ANSWER).next()).unwrap_or_default(),
    };
    let behind = answered.split(ANSWER).nth(1).unwrap_or_default();
    found.extend([opening, behind].into_iter().filter_map(|markup| first_of(added, markup)).cloned());
    found
}

/// The token of `added` that stands first in `text`, the longest if several begin there.
fn first_of<'a>(added: &'a [String], text: &str) -> Option<&'a String> {
    let places = added.iter().filter_map(|token| Some((text.find(token.as_str())?, token)));
    places.min_by_key(|(at, token)| (*at, usize::MAX - token.len())).map(|(_, token)| token)
}
