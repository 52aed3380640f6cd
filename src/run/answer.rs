//! From prompts to answers, and from examples to questions with the answers that they expect.

use std::collections::HashMap;
use std::fmt;
use std::time::Instant;

use crate::data::{Encoder, Example, Format, Message, Role};
use crate::error::Result;
use crate::eval::tool_calls::{ToolCall, calls_of_turn};
use crate::generate::constraint::{Constraint, Vocabulary};
use crate::generate::engine::{Engine, EngineOptions, Event, Precision, Request, Usage};
use crate::generate::run::Finish;
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
            Example::Text { .. } | Example::Class { .. } => return Ok(None),
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
    /// How the next token is chosen. The prompt at index `i` has the seed `seed + i`.
    pub sampler: SamplerConfig,
    /// The longest answer, in tokens.
    pub max_tokens: usize,
    /// The texts before which an answer ends.
    pub stop: Vec<String>,
    /// The format that answers are held to, of [`Answerer::vocabulary`].
    pub constraint: Option<Constraint>,
    /// No token is begun after this moment.
    pub until: Option<Instant>,
}

/// The answer to a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The text, without control tokens.
    pub text: String,
    /// Its tokens, control tokens included; the end token is not counted.
    pub tokens: usize,
    /// The reason why it ends.
    pub finish: Finish,
    /// Tokens and times.
    pub usage: Usage,
}

/// News of the answer to a prompt.
#[derive(Debug)]
pub enum Progress {
    /// Further text, which may be empty while a token ends inside a character.
    Text(String),
    /// The whole answer.
    Done(Answer),
}

/// Answers prompts by a base, with and without adapters.
pub struct Answerer {
    engine: Engine,
    end_tokens: Vec<u32>,
}

impl Answerer {
    /// An answerer without adapters.
    pub fn new(decoder: &Decoder, encoder: &Encoder, options: EngineOptions) -> Self {
        let mut end_tokens = encoder.stop_tokens();
        end_tokens.extend(&decoder.config().eos_tokens);
        let engine = Engine::new(decoder.clone(), encoder.tokenizer(), options);
        Self { engine, end_tokens }
    }

    /// The vocabulary for formats of answers.
    ///
    /// # Errors
    /// Those of [`Engine::vocabulary`].
    pub fn vocabulary(&self) -> Result<Vocabulary> {
        self.engine.vocabulary(&self.end_tokens)
    }

    /// Adds an adapter.
    pub fn add_adapter(&mut self, name: &str, adapter: &Adapter) {
        self.engine.add_adapter(name, adapter);
    }

    /// Answers prompts that are encoded already; `news(prompt's index, progress)` hears of all text as it comes, and of
    /// every whole answer.
    ///
    /// # Errors
    /// Those of [`Engine::submit`], at `prompt 1` and so on; logits that are not numbers; what `news` returns.
    pub fn answer_each(
        &mut self,
        adapter: Option<&str>,
        prompts: &[Vec<u32>],
        answering: &Answering,
        mut news: impl FnMut(usize, Progress) -> Result<()>,
    ) -> Result<()> {
        let mut texts = HashMap::new();
        for (index, prompt) in prompts.iter().enumerate() {
            let seed = answering.sampler.seed.wrapping_add(index as u64);
            let request = Request {
                adapter: adapter.map(str::to_owned),
                sampler: SamplerConfig { seed, ..answering.sampler.clone() },
                max_tokens: answering.max_tokens,
                end_tokens: self.end_tokens.clone(),
                stop: answering.stop.clone(),
                constraint: answering.constraint.clone(),
                until: answering.until,
                ..Request::new(prompt.clone())
            };
            let id = self.engine.submit(request);
            let id = id.map_err(|error| error.within(format_args!("prompt {}", index + 1).to_string()))?;
            texts.insert(id, (index, String::new()));
        }
        while !texts.is_empty() {
            for event in self.engine.step() {
                let Some((index, text)) = texts.get_mut(&event.request()) else { continue };
                match event {
                    Event::Token { text: more, .. } => {
                        text.push_str(&more);
                        news(*index, Progress::Text(more))?;
                    }
                    Event::Finished { request, text: more, finish, usage } => {
                        let index = *index;
                        let text = texts.remove(&request).map_or_else(String::new, |(_, text)| text);
                        let text = text + &more;
                        news(index, Progress::Text(more))?;
                        let answer = Answer { text, tokens: usage.answer_tokens, finish, usage };
                        news(index, Progress::Done(answer))?;
                    }
                    Event::Failed { error, .. } => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// [`answer_each`](Self::answer_each), and the answers in the order of the prompts.
    ///
    /// # Errors
    /// Those of [`answer_each`](Self::answer_each).
    pub fn answers(
        &mut self,
        adapter: Option<&str>,
        prompts: &[Vec<u32>],
        answering: &Answering,
    ) -> Result<Vec<Answer>> {
        let mut answers = vec![None; prompts.len()];
        self.answer_each(adapter, prompts, answering, |index, progress| {
            if let Progress::Done(answer) = progress {
                answers[index] = Some(answer);
            }
            Ok(())
        })?;
        Ok(answers.into_iter().flatten().collect())
    }
}

/// Answers prompts by a decoder and perhaps one adapter, with the kernels and the precision of training.
///
/// # Errors
/// Those of [`Answerer::answer_each`].
pub fn answer_ids(
    decoder: &Decoder,
    encoder: &Encoder,
    adapter: Option<&Adapter>,
    prompts: &[Vec<u32>],
    answering: &Answering,
) -> Result<Vec<Answer>> {
    const NAME: &str = "adapter";
    let mut answerer = Answerer::new(decoder, encoder, EngineOptions::unbounded(Precision::Exact));
    if let Some(adapter) = adapter {
        answerer.add_adapter(NAME, adapter);
    }
    answerer.answers(adapter.map(|_| NAME), prompts, answering)
}
