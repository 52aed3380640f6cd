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
    let controls: Vec<String> = tokenizer.special_tokens().map(|(text, _)| text.to_owned()).collect();
    let found = turn_tokens(&ordinary, &controls, template);
    if found.is_empty() {
        return tokenizer;
    }
    // The same file was read before, so nothing in it can be wrong now.
    tokenizer.with_control_tokens(&found).unwrap_or(tokenizer)
}

/// The tokens of `ordinary` in the headers and ends of the user's and the system's turns, the first token that opens an
/// answer, and the first one behind an answer. `controls` are the added tokens that are control tokens already.
fn turn_tokens(ordinary: &[String], controls: &[String], template: &ChatTemplate) -> HashSet<String> {
    let added: Vec<&str> = ordinary.iter().chain(controls).map(String::as_str).collect();
    let render = |messages: &[Message], asks: bool| template.render(messages, asks).unwrap_or_default();
    let (question, answer) = (Message::user(QUESTION), Message::assistant(ANSWER));
    let plain = render(std::slice::from_ref(&question), false);
    let asked = render(std::slice::from_ref(&question), true);
    let answered = render(&[question.clone(), answer.clone()], false);
    let instructed = render(&[Message::system(SYSTEM), question.clone()], false);
    let continued = render(&[question.clone(), answer, question], false);
    let opening = match asked.strip_prefix(&plain) {
        Some(prompt) if !prompt.is_empty() => prompt,
        _ => answered.strip_prefix(&plain).and_then(|rest| rest.split(ANSWER).next()).unwrap_or_default(),
    };
    let behind = |text: &str, content: &str| text.rsplit_once(content).map_or("", |(_, rest)| rest).to_owned();
    let behind_answer = behind(&answered, ANSWER);
    let mut found: Vec<&str> =
        [opening, &behind_answer].into_iter().filter_map(|markup| Some(first_of(&added, markup)?.1)).collect();
    let mut behind_question = first_run(&added, &behind(&plain, QUESTION));
    if asked == plain {
        // Without a generation prompt of its own, the markup behind a question may go on into the answer ("<think>").
        behind_question.truncate(1);
    }
    found.extend(behind_question);
    let markups = [
        behind(&instructed, SYSTEM),
        behind(&continued, ANSWER),
        plain.split(QUESTION).next().unwrap_or_default().to_owned(),
        instructed.split(SYSTEM).next().unwrap_or_default().to_owned(),
    ];
    for markup in &markups {
        found.extend(first_run(&added, markup));
    }
    let is_ordinary = |token: &&str| ordinary.iter().any(|other| other == token);
    found.into_iter().filter(is_ordinary).map(str::to_owned).collect()
}

/// The tokens of `added` with which `text` begins: between two of them is white space or a single word of letters, as the
/// role in `<|start_header_id|>user<|end_header_id|>`. Prose, as that of a default system text, ends them.
fn first_run<'a>(added: &[&'a str], text: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((at, token)) = first_of(added, rest) {
        let between = &rest[..at];
        let is_role = |word: &str| word.chars().all(|symbol| symbol.is_alphabetic() || symbol == '_');
        if !between.trim().is_empty() && !is_role(between) {
            break;
        }
        found.push(token);
        rest = &rest[at + token.len()..];
    }
    found
}

/// The token of `added` that stands first in `text`, the longest if several begin there, with its position.
fn first_of<'a>(added: &[&'a str], text: &str) -> Option<(usize, &'a str)> {
    // Runs of white space are added tokens of some tokenizers, and never what marks a turn.
    let visible = added.iter().filter(|token| !token.trim().is_empty());
    let places = visible.filter_map(|token| Some((text.find(token)?, *token)));
    places.min_by_key(|(at, token)| (*at, usize::MAX - token.len()))
}
