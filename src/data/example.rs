//! One training example, in the shape the user wrote it.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::format::Format;
use super::position::Position;

/// The speaker of a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Instructions that come before the conversation.
    System,
    /// The user.
    User,
    /// The assistant, whose turns are trained.
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
            "tool" | "function" | "observation" | "tool_response" | "tool_result" | "function_response"
            | "function_result" => Role::Other("tool".to_owned()),
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
    /// A turn of plain text.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), more: Map::new(), trained: true, spells_calls: false }
    }

    /// Whether the loss covers this turn.
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
    /// The speaker.
    pub role: Role,
    /// The text of the turn.
    pub content: String,
    /// Further fields that a template may show: `tool_calls`, `tool_call_id`, `name`, … A `content` of null is here too.
    pub more: Map<String, Value>,
    /// Whether the loss covers this turn, if it is the assistant's. A `weight` of 0 in OpenAI's format excludes it.
    pub trained: bool,
    /// The content spells the same calls as `tool_calls`: a template is shown one of the two.
    pub spells_calls: bool,
}

/// An example and where it stands in its data file.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The begin of the row.
    pub position: Position,
    /// The example itself.
    pub example: Example,
    /// The keys of the row that no part of burnish reads.
    pub ignored: Vec<Arc<str>>,
    /// The value of the column `data.group`, where one is named.
    pub group: Option<String>,
    /// How often an epoch of training shows the example: 1, unless its source has another weight.
    pub weight: f64,
}

impl Row {
    /// A row of which everything is read, in no group, with the weight 1.
    pub fn new(position: Position, example: Example) -> Self {
        Self { position, example, ignored: Vec::new(), group: None, weight: 1.0 }
    }
}

/// One example of a data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Example {
    /// A prompt and its completion, encoded as written; the loss covers the completion and the end token.
    PromptCompletion {
        /// The text before the completion.
        prompt: String,
        /// The text to learn.
        completion: String,
    },
    /// An instruction with its answer, rendered by the model's chat template (by Alpaca's own prompt where the model has none).
    Alpaca {
        /// The task.
        instruction: String,
        /// The material of the task; may be empty.
        input: String,
        /// The answer to learn.
        output: String,
        /// The system prompt, if the row has one.
        system: Option<String>,
    },
    /// A conversation, rendered by the model's chat template; the loss covers the assistant's turns.
    Chat {
        /// The turns in order.
        messages: Vec<Message>,
        /// The tools that the assistant may call, in the form that the template shows.
        tools: Option<Value>,
    },
    /// A plain text; the loss covers every token.
    Text {
        /// The text.
        text: String,
    },
    /// A text with its label.
    Class {
        /// The text.
        text: String,
        /// The label.
        label: String,
    },
    /// Two answers to one prompt.
    Preference {
        /// The prompt with the preferred answer.
        chosen: Box<Example>,
        /// The prompt with the other answer.
        rejected: Box<Example>,
    },
    /// An answer that is judged alone.
    Labelled {
        /// The prompt with the answer.
        answered: Box<Example>,
        /// Whether the answer is desirable.
        is_desirable: bool,
    },
}

impl Example {
    /// The shape that the example was written in.
    pub fn format(&self) -> Format {
        match self {
            Example::PromptCompletion { .. } => Format::PromptCompletion,
            Example::Alpaca { .. } => Format::Alpaca,
            Example::Chat { .. } => Format::Chat,
            Example::Text { .. } => Format::Text,
            Example::Class { .. } => Format::Class,
            Example::Preference { .. } => Format::Preference,
            Example::Labelled { .. } => Format::Labelled,
        }
    }

    /// The example that shows the prompt, and an answer to it: of a pair the chosen one.
    pub fn plain(&self) -> &Self {
        match self {
            Example::Preference { chosen: plain, .. } | Example::Labelled { answered: plain, .. } => plain.plain(),
            plain => plain,
        }
    }
}
