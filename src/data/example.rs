//! One training example, in the shape the user wrote it.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::format::Format;
use crate::error::Place;

/// Who speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    System,
    User,
    Assistant,
    /// `tool` and other roles a template may know.
    Other(String),
}

impl Role {
    /// The role of a name, in any case of its letters. The names that data sets give users, assistants and results of
    /// tools (ShareGPT's `human`, `gpt` and `observation`, Gemma's `model`, …) are those roles.
    pub fn of(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "system" => Role::System,
            "user" | "human" => Role::User,
            "assistant" | "gpt" | "chatgpt" | "bot" | "model" | "ai" => Role::Assistant,
            "tool" | "observation" | "tool_response" | "tool_result" | "function_response" | "function_result" => {
                Role::Other("tool".to_owned())
            }
            _ => Role::Other(name.to_owned()),
        }
    }

    /// Whether turns of this name are calls of the assistant, spelled in their content.
    pub(super) fn spells_calls(name: &str) -> bool {
        matches!(name.to_ascii_lowercase().as_str(), "function_call" | "function-call" | "tool_call")
    }

    /// The name that chat templates know.
    pub fn name(&self) -> &str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Other(name) => name,
        }
    }
}

impl Message {
    /// A turn that is words and nothing else.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), more: Map::new(), trained: true, spells_calls: false }
    }

    /// Whether loss is taken on it.
    pub fn is_answer(&self) -> bool {
        self.role == Role::Assistant && self.trained
    }

    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// A turn of the assistant.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }

    /// Instructions that come before the conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }
}

/// A turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub role: Role,
    pub content: String,
    /// What else the template may show: `tool_calls`, `tool_call_id`, `name`, … A `content` of null is here too.
    pub more: Map<String, Value>,
    /// Of the assistant: whether loss is taken on it. `weight` of OpenAI's format says no with a 0.
    pub trained: bool,
    /// The content spells the same calls as `tool_calls`: a template is shown one of the two.
    pub spells_calls: bool,
}

/// An example and where it stands in its data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Where the row begins.
    pub position: Position,
    /// What it holds.
    pub example: Example,
    /// Its keys that nothing reads.
    pub ignored: Vec<Arc<str>>,
}

/// Where a row of a data file begins; counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    Line(usize),
    /// Of a table.
    Row(usize),
}

impl Position {
    /// The place in `file`.
    pub fn place(self, file: impl fmt::Display) -> Place {
        let file = Place::file(file.to_string());
        match self {
            Position::Line(line) => file.line(line),
            Position::Row(row) => file.part(format!("row {row}")),
        }
    }

    /// The number of the line or row.
    pub fn number(self) -> usize {
        match self {
            Position::Line(number) | Position::Row(number) => number,
        }
    }

    /// The place in `file`, for messages.
    pub fn within(self, file: impl fmt::Display) -> String {
        match self {
            Position::Line(line) => format!("{file}:{line}"),
            Position::Row(row) => format!("{file}: row {row}"),
        }
    }
}

/// One example of a data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Example {
    /// Taken as it is; loss on the completion and the end token.
    PromptCompletion { prompt: String, completion: String },
    /// Rendered by the model's chat template (or Alpaca's own prompt where the model has none).
    Alpaca { instruction: String, input: String, output: String, system: Option<String> },
    /// Rendered by the model's chat template, with the tools that the assistant may call; loss on the assistant's turns.
    Chat { messages: Vec<Message>, tools: Option<Value> },
    /// Loss on every token.
    Text { text: String },
}

impl Example {
    /// The shape it was written in.
    pub fn format(&self) -> Format {
        match self {
            Example::PromptCompletion { .. } => Format::PromptCompletion,
            Example::Alpaca { .. } => Format::Alpaca,
            Example::Chat { .. } => Format::Chat,
            Example::Text { .. } => Format::Text,
        }
    }
}
