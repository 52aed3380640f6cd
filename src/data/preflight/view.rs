//! The texts of a row by the part that they play, whatever the shape of the row.

use serde_json::Value;

use crate::data::chat::stand_ins::strings;
use crate::data::example::{Example, Message, Role, Row};
use crate::data::position::Position;

/// The part that a text plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Part {
    /// A system text.
    System,
    /// Words of the user, or the bare prompt.
    Prompt,
    /// Words that are trained.
    Answer,
    /// Any other text that is shown: results of tools, turns that are not trained, fields of turns.
    Other,
    /// The path of a picture.
    Picture,
}

/// A row by its texts.
pub(super) struct View<'a> {
    pub(super) position: &'a Position,
    /// The texts in their order.
    pub(super) parts: Vec<(Part, &'a str)>,
    /// The turns, where the row is a conversation.
    pub(super) messages: &'a [Message],
    /// The tools that the conversation declares.
    pub(super) tools: Option<&'a Value>,
    /// Whether the row is a prompt with its completion, or a plain text.
    pub(super) is_bare: bool,
    /// The last answer that is not preferred, where the row is a pair. It stands among the parts too, as [`Part::Other`].
    pub(super) rejected: Option<&'a str>,
    /// Whether the answer is desirable, where the row says so.
    pub(super) label: Option<bool>,
    /// The label of the text, where the row is a text with one. It stands among the parts too, as [`Part::Answer`].
    pub(super) class: Option<&'a str>,
}

impl<'a> View<'a> {
    pub(super) fn of(row: &'a Row) -> Self {
        let mut view = Self::of_example(&row.position, row.example.plain());
        match &row.example {
            Example::Preference { rejected, .. } => {
                let rejected = Self::of_example(&row.position, rejected);
                view.parts.extend(rejected.answers().map(|answer| (Part::Other, answer)));
                view.rejected = rejected.answers().last();
            }
            Example::Labelled { is_desirable, .. } => view.label = Some(*is_desirable),
            Example::Class { label, .. } => view.class = Some(label),
            _ => {}
        }
        view
    }

    /// The view of an example that is no preference.
    fn of_example(position: &'a Position, example: &'a Example) -> Self {
        let (mut messages, mut tools_of_row): (&[Message], _) = (&[], None);
        let mut parts = Vec::new();
        match example {
            Example::PromptCompletion { prompt, completion } => {
                parts.extend([(Part::Prompt, prompt.as_str()), (Part::Answer, completion)]);
            }
            Example::Alpaca { instruction, input, output, system } => {
                parts.extend(system.iter().map(|system| (Part::System, system.as_str())));
                parts.push((Part::Prompt, instruction));
                parts.extend((!input.is_empty()).then_some((Part::Prompt, input.as_str())));
                parts.push((Part::Answer, output));
            }
            Example::Chat { messages: turns, tools } => {
                (messages, tools_of_row) = (turns, tools.as_ref());
                turns.iter().for_each(|turn| add_turn(turn, &mut parts));
            }
            Example::Text { text } => parts.push((Part::Answer, text)),
            Example::Class { text, label } => parts.extend([(Part::Prompt, text.as_str()), (Part::Answer, label)]),
            Example::Preference { .. } | Example::Labelled { .. } => {}
        }
        let is_bare = matches!(example, Example::PromptCompletion { .. } | Example::Text { .. });
        Self { position, parts, messages, tools: tools_of_row, is_bare, rejected: None, label: None, class: None }
    }

    /// The texts that are trained.
    pub(super) fn answers(&self) -> impl Iterator<Item = &'a str> {
        self.parts.iter().filter(|(part, _)| *part == Part::Answer).map(|(_, text)| *text)
    }

    /// All texts.
    pub(super) fn texts(&self) -> impl Iterator<Item = &'a str> {
        self.parts.iter().filter(|(part, _)| *part != Part::Picture).map(|(_, text)| *text)
    }

    /// The texts before the last answer, and that answer; `None` without an answer.
    pub(super) fn last_exchange(&self) -> Option<(&[(Part, &'a str)], &'a str)> {
        let at = self.parts.iter().rposition(|(part, _)| *part == Part::Answer)?;
        Some((&self.parts[..at], self.parts[at].1))
    }

    /// The words of the user before the last answer, the last ones if there are several turns.
    pub(super) fn last_prompt(&self) -> Option<&'a str> {
        let (before, _) = self.last_exchange()?;
        before.iter().rev().find(|(part, _)| *part == Part::Prompt).map(|(_, text)| *text)
    }

    /// Whether the row judges answers, of which several may belong to one prompt.
    pub(super) fn is_preference(&self) -> bool {
        self.rejected.is_some() || self.label.is_some()
    }

    pub(super) fn has_system(&self) -> bool {
        self.parts.iter().any(|(part, _)| *part == Part::System)
    }
}

fn add_turn<'a>(turn: &'a Message, parts: &mut Vec<(Part, &'a str)>) {
    let part = match &turn.role {
        Role::System => Part::System,
        Role::User => Part::Prompt,
        Role::Assistant if turn.is_answer() => Part::Answer,
        _ => Part::Other,
    };
    // A turn that is a call has no words of its own.
    if part != Part::Answer || !turn.more.contains_key("tool_calls") || !turn.content.is_empty() {
        parts.push((part, &turn.content));
    }
    let mut fields = Vec::new();
    parts.extend(turn.pictures().map(|path| (Part::Picture, path)));
    turn.more.iter().filter(|(key, _)| *key != "content").for_each(|(_, value)| strings(value, &mut fields));
    parts.extend(fields.into_iter().map(|text| (Part::Other, text)));
}
