//! Multiple choice by likelihood: questions with their choices, and the choice that a model finds likeliest.
//!
//! The definitions are those of lm-evaluation-harness (`output_type: multiple_choice`): a model chooses the text whose
//! log-likelihood after the prompt is the greatest, the first of equals; normalised, its log-likelihood for each character.

use std::path::Path;

use serde_json::{Map, Value};

use crate::data::{Message, Role};
use crate::error::{Error, Place, Result};
use crate::files::{json, open};

/// The largest file of questions.
const MAX_FILE_BYTES: u64 = 4 << 30;

/// The text before the choices.
#[derive(Debug, Clone, PartialEq)]
pub enum ChoicePrompt {
    /// A text as it stands; a space separates it from a choice.
    Text(String),
    /// Turns, rendered by the chat template; a choice is the answer of the assistant.
    Messages(Vec<Message>),
}

/// A question with several answers, one of them right.
#[derive(Debug, Clone, PartialEq)]
pub struct ChoiceQuestion {
    /// The line of the data file, counted from 1.
    pub line: usize,
    /// The text before the choices.
    pub prompt: ChoicePrompt,
    /// The answers to choose from; none is empty.
    pub choices: Vec<String>,
    /// The index of the right one.
    pub answer: usize,
    /// The value of the key by which results are grouped.
    pub group: Option<String>,
}

/// Reads the questions of a JSONL file; `None` where its first object has no `choices`, so that it is no file of questions. The
/// key `by` says to which group a question belongs.
///
/// # Errors
/// Input: every bad line.
pub fn read(path: &Path, by: Option<&str>) -> Result<Option<Vec<ChoiceQuestion>>> {
    parse(&open::read(path, MAX_FILE_BYTES)?, path, by)
}

fn parse(bytes: &[u8], path: &Path, by: Option<&str>) -> Result<Option<Vec<ChoiceQuestion>>> {
    let lines = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).split(|byte| *byte == b'\n').enumerate();
    let (mut questions, mut errors) = (Vec::new(), Vec::new());
    for (index, text) in lines.filter(|(_, text)| !text.iter().all(u8::is_ascii_whitespace)) {
        let place = Place::file(path).line(index + 1);
        let value = json::parse("", text);
        let is_first = questions.is_empty() && errors.is_empty();
        if is_first && !value.as_ref().is_ok_and(|value| value.get("choices").is_some()) {
            return Ok(None);
        }
        let read = value.and_then(|value| question(index + 1, &value, by).map_err(|message| Error::input("", message)));
        match read {
            Ok(question) => questions.push(question),
            Err(error) => errors.push(error.within(place)),
        }
    }
    Error::none_of(errors, (!questions.is_empty()).then_some(questions))
}

/// The question of an object: `prompt`, `question` or `messages`, `choices`, and `answer`.
fn question(line: usize, value: &Value, by: Option<&str>) -> Result<ChoiceQuestion, String> {
    let Value::Object(fields) = value else { return Err("expected an object".into()) };
    let (choices, labels) = choices(fields)?;
    let answer = fields.get("answer").or_else(|| fields.get("answerKey")).ok_or("`answer` is missing")?;
    let answer = right_choice(answer, &choices, &labels).ok_or_else(|| {
        format!("`answer` is {answer}; expected the number of a choice from 0, its label, or its text")
    })?;
    let group = match by {
        None => None,
        Some(key) => Some(match fields.get(key) {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => return Err(format!("`{key}` is missing; --by groups the results by it")),
        }),
    };
    Ok(ChoiceQuestion { line, prompt: prompt(fields)?, choices, answer, group })
}

fn prompt(fields: &Map<String, Value>) -> Result<ChoicePrompt, String> {
    if let Some(Value::Array(turns)) = fields.get("messages") {
        let message = |turn: &Value| {
            let (role, content) = (turn.get("role")?.as_str()?, turn.get("content")?.as_str()?);
            Some(Message::new(Role::of(role), content))
        };
        let messages: Option<Vec<Message>> = turns.iter().map(message).collect();
        return messages
            .map(ChoicePrompt::Messages)
            .ok_or_else(|| "`messages`: expected turns of role and content".into());
    }
    let text = ["prompt", "question"].into_iter().find_map(|key| fields.get(key)?.as_str());
    text.map(|text| ChoicePrompt::Text(text.to_owned()))
        .ok_or_else(|| "expected `prompt`, `question` or `messages`".into())
}

/// The choices with their labels: a list of texts, or `{"text": […], "label": […]}` as in ARC. Without labels they are A, B, C, …
fn choices(fields: &Map<String, Value>) -> Result<(Vec<String>, Vec<String>), String> {
    let texts = |value: &Value| -> Option<Vec<String>> {
        value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let letters = |count: usize| ('A'..='Z').take(count).map(String::from).collect();
    let found = fields.get("choices").and_then(|value| match value {
        Value::Object(parts) => Some((texts(parts.get("text")?)?, parts.get("label").and_then(texts)?)),
        list => texts(list).map(|choices| (choices, Vec::new())),
    });
    let (choices, labels) = found.ok_or("`choices`: expected a list of texts")?;
    if choices.len() < 2 || choices.iter().any(String::is_empty) {
        return Err("`choices`: expected at least two texts, none of them empty".into());
    }
    let labels = if labels.is_empty() { letters(choices.len()) } else { labels };
    Ok((choices, labels))
}

/// The index of the right choice: its number from 0, its text, or its label.
fn right_choice(answer: &Value, choices: &[String], labels: &[String]) -> Option<usize> {
    match answer {
        Value::Number(number) => usize::try_from(number.as_u64()?).ok().filter(|index| *index < choices.len()),
        Value::String(text) => {
            let place = |among: &[String]| among.iter().position(|one| one == text);
            place(choices).or_else(|| place(labels)).filter(|index| *index < choices.len())
        }
        _ => None,
    }
}

/// The choices of a model: by log-likelihood, and by log-likelihood for each character.
///
/// `log_likelihoods` are those of `choices`, in nats.
pub fn chosen(log_likelihoods: &[f64], choices: &[String]) -> (usize, usize) {
    let by_character = log_likelihoods.iter().zip(choices).map(|(sum, choice)| sum / choice.chars().count() as f64);
    (first_greatest(log_likelihoods.iter().copied()), first_greatest(by_character))
}

fn first_greatest(values: impl Iterator<Item = f64>) -> usize {
    let first = (0, f64::NEG_INFINITY);
    values.enumerate().fold(first, |best, (index, value)| if value > best.1 { (index, value) } else { best }).0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Vec<ChoiceQuestion>>> {
        parse(text.as_bytes(), Path::new("q.jsonl"), Some("subject"))
    }

    #[test]
    fn the_right_choice_is_a_number_a_label_or_a_text() {
        let row = |choices: &str, answer: &str| {
            let text = format!("{{\"question\": \"q\", \"choices\": {choices}, \"answer\": {answer}, \"subject\": 3}}");
            read(&text).map(|read| read.unwrap().remove(0).answer)
        };
        let list = r#"["red", "B", "blue"]"#;
        assert_eq!(row(list, "2").unwrap(), 2);
        assert_eq!(row(list, "\"C\"").unwrap(), 2);
        assert_eq!(row(list, "\"B\"").unwrap(), 1, "a text before a label");
        assert_eq!(row(r#"{"text": ["x", "y"], "label": ["1", "2"]}"#, "\"2\"").unwrap(), 1);
        for (choices, answer) in
            [(list, "3"), (list, "\"D\""), (list, "null"), (r#"["a"]"#, "0"), (r#"["a", ""]"#, "0")]
        {
            let error = row(choices, answer).unwrap_err();
            assert!(error.to_string().starts_with("q.jsonl:1: "), "{error}");
        }
    }

    #[test]
    fn other_files_are_left_to_other_readers_and_every_bad_line_is_reported() {
        assert!(read("{\"prompt\": \"a\", \"completion\": \"b\"}").unwrap().is_none());
        assert!(read("no JSON").unwrap().is_none());
        let good = r#"{"prompt": "p", "choices": ["a", "b"], "answer": 0, "subject": "x"}"#;
        let error = read(&format!("{good}\n\n{{}}\n{}", good.replace("subject", "topic"))).unwrap_err().to_string();
        assert!(error.contains("q.jsonl:3: ") && error.contains("q.jsonl:4: `subject` is missing"), "{error}");
        let chat =
            r#"{"messages": [{"role": "user", "content": "hi"}], "choices": ["a", "b"], "answer": 1, "subject": "s"}"#;
        let questions = read(chat).unwrap().unwrap();
        assert_eq!(questions[0].prompt, ChoicePrompt::Messages(vec![Message::user("hi")]));
        assert_eq!(questions[0].group.as_deref(), Some("s"));
    }

    #[test]
    fn the_first_of_equals_is_chosen_and_long_choices_are_normalised_by_their_characters() {
        let choices = ["a", "bbbb", "éé"].map(str::to_owned);
        assert_eq!(chosen(&[-2.0, -4.0, -2.0], &choices), (0, 1), "two bytes are one character");
        assert_eq!(chosen(&[-3.0, -2.9, -2.0], &choices), (2, 1));
    }
}
