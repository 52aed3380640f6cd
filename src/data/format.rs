//! The shapes of the objects in a data file.

use std::fmt;

/// The shape of the objects of a data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `{"prompt", "completion"}`.
    PromptCompletion,
    /// `{"instruction", "input", "output"}`.
    Alpaca,
    /// `{"messages"}` or `{"conversations"}`.
    Chat,
    /// `{"text"}`.
    Text,
}

impl Format {
    /// All of them, in the order in which detection tries them.
    pub const ALL: [Format; 4] = [Format::PromptCompletion, Format::Alpaca, Format::Chat, Format::Text];

    /// The name in recipes and in an adapter's metadata.
    pub fn name(self) -> &'static str {
        match self {
            Format::PromptCompletion => "prompt-completion",
            Format::Alpaca => "alpaca",
            Format::Chat => "chat",
            Format::Text => "text",
        }
    }

    /// Whether examples of this shape go through the chat template of a model that has one.
    pub fn uses_template(self) -> bool {
        matches!(self, Format::Alpaca | Format::Chat)
    }

    /// The format that has these keys.
    pub(super) fn of_keys(has: impl Fn(&str) -> bool) -> Option<Self> {
        Self::ALL.into_iter().find(|format| match format {
            Format::PromptCompletion => has("prompt") && has("completion"),
            Format::Alpaca => has("instruction"),
            Format::Chat => has("messages") || has("conversations"),
            Format::Text => has("text"),
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The keys of each shape, for messages.
pub(super) const SHAPES: &str = "expected one of {\"prompt\", \"completion\"}, {\"instruction\", \"output\"}, \
                                 {\"messages\"}, {\"conversations\"}, {\"text\"}";
