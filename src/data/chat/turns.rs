//! The places of the assistant's turns in a rendered conversation.

use std::ops::Range;

use super::stand_ins::SpecialTexts;
use super::template::ChatTemplate;
use crate::data::example::{Message, Role};
use crate::error::{Error, Result};

/// A rendered conversation.
pub(in crate::data) struct Rendered {
    pub(in crate::data) text: String,
    /// The trained parts of the text in bytes: the assistant's turns, their ends included.
    pub(in crate::data) answers: Vec<Range<usize>>,
    /// Turns of the assistant that should be trained and are not: the template shows them differently in the whole.
    pub(in crate::data) missing: usize,
}

/// Renders a conversation and finds the assistant's turns in it.
///
/// # Errors
/// Those of the template; an answer that cannot be matched with its prompt.
pub(in crate::data) fn rendered(
    messages: &[Message],
    template: &ChatTemplate,
    specials: &SpecialTexts,
) -> Result<Rendered> {
    let text = template.render(messages, false)?;
    let (text, answers) = match answers(messages, &text, template, specials)? {
        Some(answers) => (text, answers),
        None => last_answer(messages, template, specials)?,
    };
    let turns = messages.iter().filter(|message| message.is_answer()).count();
    Ok(Rendered { text, missing: turns.saturating_sub(answers.len()), answers })
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

/// The places of the assistant's turns in the rendered `text`, end of turn included, by rendering the
/// conversation up to each turn and again with it. `None` if the rendering with a turn does not begin like
/// the one that generation of this turn sees.
fn answers(
    messages: &[Message],
    text: &str,
    template: &ChatTemplate,
    specials: &SpecialTexts,
) -> Result<Option<Vec<Range<usize>>>> {
    let mut answers = Vec::new();
    for (index, _) in messages.iter().enumerate().filter(|(_, message)| message.is_answer()) {
        let with = match index + 1 == messages.len() {
            true => text.to_owned(),
            false => template.render(&messages[..=index], false)?,
        };
        let Some(shown) = shown(&with, text, specials) else {
            // The template shows this turn differently once the conversation goes on (some drop a turn's
            // reasoning): there is no text in the whole that the model would have had to write.
            continue;
        };
        let Some(start) = answer_start(&messages[..=index], &with, template)? else { return Ok(None) };
        // Of an answer without a word nothing may be left.
        if start < shown.len() {
            let end = end_of_turn(shown, start, specials);
            answers.push(start..without_next_header(&messages[..=index], shown, start..end, template, specials));
        }
    }
    Ok(Some(answers))
}

/// The begin of `text` that `with` shows too: all of it, except end tokens that some templates (Phi-3's) write only at the
/// end of a conversation. `None` where words would be missing.
fn shown<'a>(with: &'a str, text: &str, specials: &SpecialTexts) -> Option<&'a str> {
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

/// The end of an answer for templates that write the header of the next answer whether it is asked for or not: the
/// header is no part of this one.
fn without_next_header(
    messages: &[Message],
    text: &str,
    answer: Range<usize>,
    template: &ChatTemplate,
    specials: &SpecialTexts,
) -> usize {
    let (start, end) = (answer.start, answer.end);
    let before = &messages[..messages.len() - 1];
    if template.writes_generation_prompt() || before.is_empty() {
        return end;
    }
    let Ok(plain) = template.render(before, false) else { return end };
    let after_end = |text: &str| specials.find(text).map(|(at, token)| at + token.len());
    // The end of turn is the first control token behind the words.
    let words = messages.last().map_or("", |message| message.content.trim_end());
    let Some(words_end) = text[start..].find(words).map(|at| start + at + words.len()) else { return end };
    match after_end(&text[words_end..]) {
        Some(length) if !text[words_end + length..].trim().is_empty() => {
            let rest = text[words_end + length..].trim_start();
            if plain.ends_with(rest) { words_end + length } else { end }
        }
        _ => end,
    }
}

/// For templates that write what comes before an answer differently once the answer is there (Mistral's puts
/// the system text into the last message, if that is the user's): the text that generation of the last answer
/// sees, and after it the answer as the template ends it.
fn last_answer(
    messages: &[Message],
    template: &ChatTemplate,
    specials: &SpecialTexts,
) -> Result<(String, Vec<Range<usize>>)> {
    let last = messages.iter().rposition(|message| message.role == Role::Assistant).unwrap_or_default();
    let messages = &messages[..=last];
    let with = template.render(messages, false)?;
    let prompt = prompt(&messages[..last], template)?;
    let words = content_start(messages, &with, template)?;
    // The markup between prompt and words: cut where the text before looks most like the prompt's end.
    let cut = with[..words]
        .char_indices()
        .map(|(at, _)| at)
        .chain([words])
        .max_by_key(|at| shared_suffix(&with[..*at], &prompt))
        .filter(|at| shared_suffix(&with[..*at], &prompt) > 0);
    let Some(cut) = cut else {
        let message = "writes a finished answer so differently from its prompt that they cannot be matched";
        return Err(Error::input(template.place(), message));
    };
    let text = format!("{prompt}{}", &with[cut..]);
    let end = end_of_turn(&text, prompt.len(), specials);
    let trained = messages[last].trained;
    Ok((text, std::iter::once(prompt.len()..end).filter(|_| trained).collect()))
}

/// The begin in `with`, the rendering, of the last of `messages`, the assistant's.
fn answer_start(messages: &[Message], with: &str, template: &ChatTemplate) -> Result<Option<usize>> {
    let Some((_, before)) = messages.split_last() else { return Ok(None) };
    if before.is_empty() {
        return content_start(messages, with, template).map(Some);
    }
    let prompt = prompt(before, template)?;
    if with.starts_with(&prompt) {
        return Ok(Some(prompt.len()));
    }
    // Some templates begin the answer for generation ("<think>") but not in a finished turn.
    let plain = template.render(before, false)?;
    // The answer itself may go on like what they begin.
    let shared = shared_prefix(&prompt, with).min(content_start(messages, with, template)?);
    Ok(Some(shared).filter(|shared| *shared >= plain.len()))
}

/// The begin in `with`, the rendering, of the words of the last message: the point where another content first differs.
fn content_start(messages: &[Message], with: &str, template: &ChatTemplate) -> Result<usize> {
    let mut other = messages.to_vec();
    if let Some(last) = other.last_mut() {
        // Letters that the content does not begin with.
        let letter = if last.content.trim_start().starts_with('x') { 'y' } else { 'x' };
        last.content = letter.to_string();
        last.more.remove("content");
    }
    Ok(shared_prefix(&template.render(&other, false)?, with))
}

/// Bytes that both end with, beginning at a character.
fn shared_suffix(a: &str, b: &str) -> usize {
    a.chars().rev().zip(b.chars().rev()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}

/// Bytes that both begin with, ending at a character.
fn shared_prefix(a: &str, b: &str) -> usize {
    a.char_indices().zip(b.chars()).find(|((_, x), y)| x != y).map_or(a.len().min(b.len()), |((at, _), _)| at)
}
