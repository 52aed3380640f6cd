//! One training example, in the shape the user wrote it.

use std::fmt;

use serde_json::{Map, Value};

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
    /// The role of a name; ShareGPT's `human` and `gpt` are users and assistants.
    pub fn of(name: &str) -> Self {
        match name {
            "system" => Role::System,
            "user" | "human" => Role::User,
            "assistant" | "gpt" | "chatgpt" => Role::Assistant,
            other => Role::Other(other.to_owned()),
        }
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
        Self { role, content: content.into(), more: Map::new(), trained: true }
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
}

/// An example and where it stands in its data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub position: Position,
    pub example: Example,
}

/// Where a row of a data file begins; counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    Line(usize),
    /// Of a table.
    Row(usize),
}

impl Position {
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
