//! From prompts to answers, and from examples to questions with the answers that they expect.

use std::fmt;
use std::time::Instant;

use crate::data::{Encoder, Example, Format, Message, Role};
use crate::error::Result;
use crate::eval::tool_calls::{ToolCall, calls_of_turn};
use crate::generate::run::{Finish, Request, generate};
use crate::generate::sample::SamplerConfig;
use crate::model::Decoder;
use crate::nn::Adapter;

/// The form of a prompt, which decides its encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptForm {
    /// A question of the user, through the chat template; through Alpaca's prompt where the model has no template.
    Conversation,
    /// A text without markup; control tokens that it spells are ordinary text, as in training data.
    Bare,
    /// A text without markup; control tokens that it spells are control tokens.
    Typed,
}

impl PromptForm {
    /// The form of the prompts in training data of this shape.
    pub fn of(format: Format) -> Self {
        if format.uses_template() { Self::Conversation } else { Self::Bare }
    }

    /// The ids of a prompt in this form.
    ///
    /// # Errors
    /// Input: what template and tokenizer say.
    pub fn encode(self, encoder: &Encoder, prompt: &str) -> Result<Vec<u32>> {
        match self {
            Self::Conversation => encoder.encode_prompt(&[Message::user(prompt)]),
            Self::Bare => encoder.encode_raw_prompt(prompt),
            Self::Typed => encoder.encode_typed_prompt(prompt),
        }
    }
}

/// The answer that an example expects.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    /// A text.
    Text(String),
    /// Calls of tools.
    Calls(Vec<ToolCall>),
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Calls(calls) => f.write_str(&calls.iter().map(ToolCall::to_string).collect::<Vec<_>>().join(", ")),
        }
    }
}

/// The prompt of an example, and the answer that it expects.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The prompt for people: the last turn that is not the assistant's, or the text as it stands.
    pub prompt: String,
    /// The whole prompt as tokens.
    pub ids: Vec<u32>,
    /// The answer.
    pub expected: Expected,
}

impl Question {
    /// The question that `example` asks; `None` for plain text and for conversations that do not end with the assistant.
    ///
    /// # Errors
    /// Input: what template and tokenizer say.
    pub fn of(encoder: &Encoder, example: &Example) -> Result<Option<Self>> {
        let Some((ids, answer)) = encoder.prompt_and_answer(example)? else { return Ok(None) };
        let prompt = match example {
            Example::PromptCompletion { prompt, .. } => prompt.clone(),
            Example::Alpaca { instruction, input, .. } if input.is_empty() => instruction.clone(),
            Example::Alpaca { instruction, input, .. } => format!("{instruction}\n{input}"),
            Example::Chat { messages, .. } => {
                let last = messages.iter().rev().skip(1).find(|message| message.role != Role::Assistant);
                last.map_or_else(String::new, |message| message.content.clone())
            }
            Example::Preference { .. } | Example::Labelled { .. } => return Self::of(encoder, example.plain()),
            Example::Text { .. } => return Ok(None),
        };
        let calls = match example {
            Example::Chat { messages, .. } => messages.last().map(calls_of_turn).unwrap_or_default(),
            _ => Vec::new(),
        };
        let expected = if calls.is_empty() { Expected::Text(answer) } else { Expected::Calls(calls) };
        Ok(Some(Self { prompt, ids, expected }))
    }
}

/// How prompts are answered.
#[derive(Debug, Clone, Default)]
pub struct Answering {
    /// How the next token is chosen.
    pub sampler: SamplerConfig,
    /// The longest answer, in tokens.
    pub max_tokens: usize,
    /// No token is begun after this moment.
    pub until: Option<Instant>,
}

/// The answer to a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The text, without control tokens.
    pub text: String,
    /// Its tokens, control tokens included; the end token is not counted.
    pub tokens: usize,
    /// The reason why it ends.
    pub finish: Finish,
}

/// Answers prompts that are encoded already; `emit(prompt's index, token)` sees every token as it comes.
///
/// # Errors
/// Those of [`generate`](crate::generate).
pub fn answer_ids(
    decoder: &Decoder,
    encoder: &Encoder,
    adapter: Option<&Adapter>,
    prompts: &[Vec<u32>],
    answering: &Answering,
    emit: impl FnMut(usize, u32) -> Result<()>,
) -> Result<Vec<Answer>> {
    let mut end_tokens = encoder.stop_tokens();
    end_tokens.extend(&decoder.config().eos_tokens);
    let request = Request {
        sampler: answering.sampler.clone(),
        max_tokens: answering.max_tokens,
        end_tokens: &end_tokens,
        until: answering.until,
    };
    let continuations = generate(decoder, adapter, prompts, &request, emit)?;
    let answers = continuations.into_iter().map(|one| {
        let text = encoder.tokenizer().decode(&one.ids, true)?;
        Ok(Answer { text, tokens: one.ids.len(), finish: one.finish })
    });
    answers.collect()
}
