//! The shapes of the objects in a data file.

use crate::settings::choice;

choice! {
    /// The shape of the objects of a data file, in the order in which detection tries them.
    Format {
        /// `{"prompt", "chosen", "rejected"}`: two answers, of which one is preferred.
        Preference = "preference",
        /// `{"prompt", "completion", "label"}`: an answer and whether it is desirable. Never detected: it is named, or follows from
        /// `train.objective`.
        Labelled = "labelled",
        /// `{"text", "label"}`: a text and its label, a text or a whole number. Never detected: it is named, or follows from
        /// `train.objective`.
        Class = "class",
        /// `{"prompt", "completion"}`.
        PromptCompletion = "prompt-completion",
        /// `{"instruction", "input", "output"}`.
        Alpaca = "alpaca",
        /// `{"messages": [{"role", "content"}]}`.
        Chat = "chat",
        /// `{"text"}`.
        Text = "text",
    }
}

impl Format {
    /// Whether examples of this shape go through the chat template of a model that has one.
    pub fn uses_template(self) -> bool {
        matches!(self, Format::Alpaca | Format::Chat)
    }

    /// The format that has these keys.
    pub(super) fn of_keys(has: impl Fn(&str) -> bool) -> Option<Self> {
        Self::ALL.into_iter().find(|format| match format {
            Format::Preference => has("chosen") && has("rejected"),
            Format::Labelled | Format::Class => false,
            Format::PromptCompletion => has("prompt") && has("completion"),
            Format::Alpaca => has("instruction"),
            Format::Chat => has("messages") || has("conversations"),
            Format::Text => has("text"),
        })
    }
}

/// The keys of each shape, for messages.
pub(super) const SHAPES: &str = "expected one of {\"prompt\", \"completion\"}, {\"instruction\", \"output\"}, \
                                 {\"messages\"}, {\"conversations\"}, {\"text\"}, {\"prompt\", \"chosen\", \"rejected\"}";
