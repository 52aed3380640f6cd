//! The places of the assistant's turns in a rendered conversation.
//!
//! Most templates write a conversation such that each prompt, and each answer behind it, is the beginning of the whole.
//! Others write a turn otherwise once the conversation goes on: they drop earlier thoughts, or move the system text to the
//! last question. There the marks in the texts ([`marks`](super::marks)) tell where a turn stands in the whole, and the
//! markup behind the text before it tells where its header ends.

use std::ops::Range;

use super::marks::{MarkedConversation, Shown};
use super::stand_ins::SpecialTexts;
use super::template::ChatTemplate;
use crate::data::example::{Message, Role};
use crate::error::Result;

/// A rendered conversation.
pub(in crate::data) struct Rendered {
    pub(in crate::data) text: String,
    /// The same text with the marks; `None` where the marks change the rendering otherwise.
    pub(in crate::data) shown: Option<Shown>,
    /// Whether the text is the prompt of the last answer and the answer behind it, which the template writes otherwise.
    pub(in crate::data) is_joined: bool,
    /// The trained parts of the text in bytes: the assistant's turns, their ends included.
    pub(in crate::data) answers: Vec<Range<usize>>,
    /// Turns of the assistant that should be trained and are not: their places in the whole are not known.
    pub(in crate::data) missing: usize,
    /// The beginning of the last answer in a prompt and in the whole, where these differ.
    pub(in crate::data) other_prompt: Option<OtherPrompt>,
}

/// A generation prompt that differs from what stands before a finished answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::data) struct OtherPrompt {
    /// The end of the prompt.
    pub(in crate::data) prompt: String,
    /// The text in its place in a finished conversation; empty where the answer follows at once.
    pub(in crate::data) finished: String,
}

impl OtherPrompt {
    /// The difference between `prompt` and `finished`, whose words begin at `start`.
    fn new(prompt: &str, finished: &str, start: usize) -> Self {
        let shared = shared_prefix(prompt, finished);
        let finished = finished.get(shared..start).unwrap_or_default();
        Self { prompt: prompt[shared..].to_owned(), finished: finished.to_owned() }
    }
}

/// A conversation whose answers are looked for.
struct Search<'a> {
    messages: &'a [Message],
    template: &'a ChatTemplate,
    specials: &'a SpecialTexts,
    marked: Option<(&'a MarkedConversation, Shown)>,
    text: String,
    /// The prompt of the last answer, by its turn.
    last_prompt: Option<(usize, String)>,
}

/// The place of an answer, and the beginning of it in a prompt where that is another one.
type Found = (Range<usize>, Option<OtherPrompt>);

/// Renders a conversation and finds the assistant's turns in it. `marked` is the same conversation with marks, and its
/// rendering.
///
/// # Errors
/// Those of the template.
pub(in crate::data) fn rendered(
    messages: &[Message],
    template: &ChatTemplate,
    specials: &SpecialTexts,
    marked: Option<(&MarkedConversation, Shown)>,
) -> Result<Rendered> {
    let text = template.render(messages, false)?;
    // Where the marks change the rendering otherwise, their places say nothing about it.
    let marked = marked.filter(|(_, shown)| shown.bare == text);
    let mut search = Search { messages, template, specials, marked, text, last_prompt: None };
    let is_joined = search.join_prompt()?;
    let mut answers: Vec<Range<usize>> = Vec::new();
    let mut other_prompt = None;
    let mut missing = 0;
    let messages = search.messages;
    for (turn, _) in messages.iter().enumerate().filter(|(_, message)| message.is_answer()) {
        let found = match search.by_beginning(turn)? {
            Some(found) => Some(found),
            None => search.by_marks(turn),
        };
        let done = answers.last().map_or(0, |answer| answer.end);
        match found.filter(|(range, _)| range.start >= done && range.start <= range.end) {
            Some((range, differing)) => {
                let start = range.start + empty_thought(&search.text[..range.end], range.start);
                // Of an answer without a word nothing may be left.
                answers.extend((start < range.end).then_some(start..range.end));
                other_prompt = differing;
            }
            None => missing += 1,
        }
    }
    let shown = search.marked.map(|(_, shown)| shown);
    Ok(Rendered { text: search.text, shown, is_joined, answers, missing, other_prompt })
}

/// The text of a conversation up to where the assistant's next answer begins. Where the template writes no generation
/// prompt, the header that it writes before an answer is added.
///
/// # Errors
/// Those of the template.
pub(in crate::data) fn prompt(messages: &[Message], template: &ChatTemplate) -> Result<String> {
    let prompt = template.render(messages, true)?;
    let header = header(messages, &prompt, template);
    Ok(prompt + &header)
}

/// The markup that the template writes between a conversation and the words of an answer, if it has no generation prompt
/// of its own. White space alone belongs to the answer.
fn header(messages: &[Message], prompt: &str, template: &ChatTemplate) -> String {
    if template.writes_generation_prompt() {
        return String::new();
    }
    let answered = |answer: &str| {
        let with = [messages, &[Message::assistant(answer)]].concat();
        template.render(&with, false).unwrap_or_default()
    };
    let (one, other) = (answered("x"), answered("y"));
    let between = one.get(prompt.len()..shared_prefix(&one, &other)).filter(|_| one.starts_with(prompt));
    between.filter(|between| !between.trim().is_empty()).unwrap_or_default().to_owned()
}

impl Search<'_> {
    /// Joins the prompt of the last answer with the answer where the whole begins otherwise: Mistral's template shows the
    /// system text only in a last turn that is the user's. Generation would see it, so training does.
    fn join_prompt(&mut self) -> Result<bool> {
        let is_assistant = |message: &Message| message.role == Role::Assistant;
        let Some(last) = self.messages.iter().rposition(is_assistant).filter(|last| *last > 0) else {
            return Ok(false);
        };
        let before = &self.messages[..last];
        let prompt = prompt(before, self.template)?;
        let begins = self.text.starts_with(&prompt) || self.text.starts_with(&self.template.render(before, false)?);
        self.last_prompt = Some((last, prompt));
        if begins {
            return Ok(false);
        }
        let (Some((range, _)), Some((conversation, whole))) = (self.by_marks(last), &self.marked) else {
            return Ok(false);
        };
        let header = self.header(last);
        let Ok(mut joined) = conversation.render(last, true) else { return Ok(false) };
        joined.bare.push_str(&header);
        let moved = |(symbol, at): &(char, usize)| (*symbol, at - range.start + joined.bare.len());
        let answer = whole.places.iter().filter(|(_, at)| range.contains(at));
        let places: Vec<(char, usize)> = answer.map(moved).collect();
        joined.places.extend(places);
        joined.bare.push_str(&self.text[range.clone()]);
        // White space behind the end stays, as in the whole.
        let rest = &self.text[range.end..];
        joined.bare.push_str(&rest[..rest.len() - rest.trim_start().len()]);
        self.messages = &self.messages[..=last];
        self.text.clone_from(&joined.bare);
        self.marked = Some((*conversation, joined));
        Ok(true)
    }

    /// The place of a turn if the whole begins like the conversation before the turn, and like the one that ends with it.
    fn by_beginning(&mut self, turn: usize) -> Result<Option<Found>> {
        let messages = &self.messages[..=turn];
        let (start, differing) = match turn {
            0 => (self.content_start(turn)?, None),
            _ => {
                let prompt = match self.last_prompt.take_if(|(last, _)| *last == turn) {
                    Some((_, prompt)) => prompt,
                    None => prompt(&messages[..turn], self.template)?,
                };
                if self.text.starts_with(&prompt) {
                    (prompt.len(), None)
                } else if self.text.starts_with(&self.template.render(&messages[..turn], false)?) {
                    // Some templates begin the answer for generation ("<think>") but not in a finished turn.
                    let start = self.content_start(turn)?;
                    (start, Some(OtherPrompt::new(&prompt, &self.text, start)))
                } else {
                    return Ok(None);
                }
            }
        };
        let with = match turn + 1 == self.messages.len() {
            true => self.text.clone(),
            false => self.template.render(messages, false)?,
        };
        let words = messages.last().map(|message| message.content.trim_end()).filter(|words| !words.is_empty());
        let words_end = words.and_then(|words| Some(start + with.get(start..)?.rfind(words)? + words.len()));
        let with = self.ended(turn, &with, words_end.unwrap_or(start.min(with.len())));
        let Some(shown) = begins(with, &self.text, self.specials) else { return Ok(None) };
        Ok(Some((start..end_of_turn(shown, start.min(shown.len()), self.specials), differing)))
    }

    /// The place of a turn by the marks in its texts.
    fn by_marks(&self, turn: usize) -> Option<Found> {
        let (conversation, whole) = self.marked.as_ref()?;
        let is_of_turn = |symbol: char| {
            conversation.texts.iter().any(|text| text.turn == Some(turn) && text.symbols().contains(&symbol))
        };
        let first = whole.places.iter().position(|(symbol, _)| is_of_turn(*symbol))?;
        let (last, words_end) = whole.places.iter().rfind(|(symbol, _)| is_of_turn(*symbol))?;
        let (before, before_end) = whole.places[..first].last()?;

        // From the last text before the turn to the first text in it.
        let gap = &self.text[*before_end..whole.places[first].1];
        let prompt = conversation.render(turn, true).ok()?;
        let asked = behind(&prompt, *before)?.to_owned() + &self.header(turn);
        let (start, differing) = match gap.starts_with(asked.as_str()) {
            true => (asked.len(), None),
            false => {
                let plain = conversation.render_replacing(turn, other_words(&self.messages[turn])).ok()?;
                let start = shared_prefix(gap, behind(&plain, *before)?);
                (start, Some(OtherPrompt::new(&asked, gap, start)))
            }
        };
        let with = conversation.render(turn + 1, false).ok()?;
        let (_, with_end) = with.places.iter().rfind(|(symbol, _)| symbol == last)?;
        let tail = self.ended(turn, &with.bare, *with_end).get(*with_end..)?;
        let tail = begins(tail, &self.text[*words_end..], self.specials)?;
        let end = end_of_turn(&self.text[..words_end + tail.len()], *words_end, self.specials);
        Some((before_end + start..end, differing))
    }

    /// The begin of a turn behind its header: the point where a turn of other words first differs. Where the template fails on
    /// those in the whole, they end the conversation.
    fn content_start(&self, turn: usize) -> Result<usize> {
        let mut messages = self.messages.to_vec();
        messages[turn] = other_words(&self.messages[turn]);
        let other =
            self.template.render(&messages, false).or_else(|_| self.template.render(&messages[..=turn], false))?;
        Ok(shared_prefix(&other, &self.text))
    }

    /// The header that a template without generation prompt writes behind the conversation before a turn.
    fn header(&self, turn: usize) -> String {
        if self.template.writes_generation_prompt() {
            return String::new();
        }
        let before = &self.messages[..turn];
        let prompt = self.template.render(before, true);
        prompt.map_or_else(|_| String::new(), |prompt| header(before, &prompt, self.template))
    }

    /// `with`, the conversation that ends with a turn, up to the end of the turn: without what the template writes only at
    /// the end of a conversation. That is the header of the next answer, whether it is asked for or not, or another end token.
    fn ended<'t>(&self, turn: usize, with: &'t str, words_end: usize) -> &'t str {
        if let Some(closing) = closing(self.template, self.specials)
            && let Some(rest) = with.trim_end().strip_suffix(closing.as_str())
            && rest.len() > words_end
        {
            return rest;
        }
        let before = &self.messages[..turn];
        if self.template.writes_generation_prompt() || before.is_empty() {
            return with;
        }
        let Ok(plain) = self.template.render(before, false) else { return with };
        // The end of turn is the first control token behind the words.
        let Some((at, token)) = with.get(words_end..).and_then(|behind| self.specials.find(behind)) else {
            return with;
        };
        let turn_end = words_end + at + token.len();
        let rest = with[turn_end..].trim_start();
        if !rest.is_empty() && plain.ends_with(rest) { &with[..turn_end] } else { with }
    }
}

/// The text that the template writes behind the end token of an answer only at the end of a conversation, as Phi-3's does
/// with `<|endoftext|>`.
fn closing(template: &ChatTemplate, specials: &SpecialTexts) -> Option<String> {
    let closing = template.closing(|template| {
        const WORDS: &str = "It is shut.";
        let mut talk = vec![Message::user("a"), Message::assistant(WORDS)];
        let ended = template.render(&talk, false).ok()?;
        talk.push(Message::user("c"));
        let continued = template.render(&talk, false).ok()?;
        let words_end = ended.rfind(WORDS)? + WORDS.len();
        let (at, token) = specials.find(&ended[words_end..])?;
        let turn_end = words_end + at + token.len();
        let closing = ended[turn_end..].trim_end();
        let is_shared = |length: usize| continued.starts_with(&ended[..length]);
        let is_own = is_shared(turn_end) && !is_shared(turn_end + closing.len());
        (is_own && specials.ends(closing)).then(|| closing.to_owned())
    });
    closing.map(str::to_owned)
}

/// The begin of `text` that `with` shows too: all of it, except end tokens that some templates (Phi-3's) write only at the
/// end of a conversation. `None` where words would be missing.
fn begins<'a>(with: &'a str, text: &str, specials: &SpecialTexts) -> Option<&'a str> {
    let mut shown = with;
    while !text.starts_with(shown) {
        shown = specials.without_last(shown.trim_end())?;
    }
    Some(shown)
}

/// The end of the turn that begins at `start`: whitespace after the end of turn belongs to the markup
/// between turns.
fn end_of_turn(text: &str, start: usize, specials: &SpecialTexts) -> usize {
    let written = text[start..].trim_end();
    if specials.ends(written) { start + written.len() } else { text.len() }
}

/// The text behind the last place of a mark.
fn behind(shown: &Shown, symbol: char) -> Option<&str> {
    let (_, at) = shown.places.iter().rfind(|(other, _)| *other == symbol)?;
    Some(&shown.bare[*at..])
}

/// The length of a thought without a word at `start`, the beginning of an answer in `text`, with the white space around it:
/// templates write one where a turn has no reasoning, and the model is not to learn that. The prompt may have opened it.
fn empty_thought(text: &str, start: usize) -> usize {
    const MARKS: [(&str, &str); 6] = [
        ("<think>", "</think>"),
        ("<thinking>", "</thinking>"),
        ("<reasoning>", "</reasoning>"),
        ("<seed:think>", "</seed:think>"),
        ("[THINK]", "[/THINK]"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
    ];
    let (prompt, answer) = (text[..start].trim_end(), &text[start..]);
    let begun = answer.trim_start();
    let thought = MARKS.into_iter().find_map(|(open, close)| match prompt.ends_with(open) {
        true => begun.strip_prefix(close),
        false => begun.strip_prefix(open)?.trim_start().strip_prefix(close),
    });
    thought.map_or(0, |rest| answer.len() - rest.trim_start().len())
}

/// An answer that does not begin like another.
fn other_words(message: &Message) -> Message {
    Message::assistant(if message.content.trim_start().starts_with('x') { "y" } else { "x" })
}

/// Bytes that both begin with, ending at a character.
fn shared_prefix(a: &str, b: &str) -> usize {
    a.char_indices().zip(b.chars()).find(|((_, x), y)| x != y).map_or(a.len().min(b.len()), |((at, _), _)| at)
}
