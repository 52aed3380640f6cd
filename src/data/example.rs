//! One training example, in the shape the user wrote it.

/// Who speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    System,
    User,
    Assistant,
    /// `tool` and other roles a template may know.
    Other(String),
}

/// A turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

/// One example of a data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Example {
    /// Taken as it is; loss on the completion and the end token.
    PromptCompletion { prompt: String, completion: String },
    /// Rendered by the model's chat template (or Alpaca's own prompt where the model has none).
    Alpaca { instruction: String, input: String, output: String, system: Option<String> },
    /// Rendered by the model's chat template; loss on the assistant's turns.
    Chat { messages: Vec<Message> },
    /// Loss on every token.
    Text { text: String },
}
