//! OpenAI's protocol: the objects that its clients send and read.

pub(super) mod chat;
pub(super) mod completions;
pub(super) mod embeddings;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::failure::{Failure, Outcome};
use super::fields::Fields;
use super::stream::Completed;
use crate::generate::engine::Usage;
use crate::generate::run::Finish;

/// The facts that every object about one request repeats.
#[derive(Debug, Clone)]
pub(super) struct Head {
    id: String,
    created: i64,
    model: String,
}

impl Head {
    fn new(prefix: &str, model: &str) -> Self {
        let created = OffsetDateTime::now_utc().unix_timestamp();
        Self { id: identifier(prefix), created, model: model.to_owned() }
    }

    /// An object of this kind with `choices`.
    fn object(&self, kind: &str, choices: Vec<Value>) -> Value {
        json!({ "id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices })
    }
}

/// A new id.
fn identifier(prefix: &str) -> String {
    format!("{prefix}{:032x}", rand::random::<u128>())
}

/// OpenAI's word for the end of an answer.
fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::EndToken | Finish::Stop | Finish::Complete => "stop",
        Finish::Length | Finish::Time | Finish::Cancelled => "length",
    }
}

/// The tokens of a request: its prompts counted once each, the answers all.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tokens {
    prompt: usize,
    cached: usize,
    answer: usize,
}

impl Tokens {
    /// Counts an answer, and its prompt where it is the first to that prompt.
    fn add(&mut self, usage: &Usage, is_first: bool) {
        if is_first {
            self.prompt += usage.prompt_tokens;
            self.cached += usage.cached_prompt_tokens;
        }
        self.answer += usage.answer_tokens;
    }

    /// Those of whole answers, `choices` to each prompt.
    fn of(completed: &[Completed], choices: usize) -> Self {
        let mut tokens = Self::default();
        completed.iter().enumerate().for_each(|(index, one)| tokens.add(&one.usage, index % choices == 0));
        tokens
    }

    fn object(self) -> Value {
        json!({
            "prompt_tokens": self.prompt, "completion_tokens": self.answer, "total_tokens": self.prompt + self.answer,
            "prompt_tokens_details": { "cached_tokens": self.cached },
        })
    }
}

/// The way in which an answer is sent.
#[derive(Debug, Clone, Copy)]
struct Delivery {
    streams: bool,
    /// A last object of the stream has the number of tokens.
    with_usage: bool,
}

impl Delivery {
    fn read(fields: &mut Fields) -> Outcome<Self> {
        let streams = fields.flag("stream")?;
        let mut with_usage = false;
        if let Some(mut options) = fields.object("stream_options")? {
            if !streams {
                return Err(Failure::field("stream_options", "is given without `stream`"));
            }
            with_usage = options.flag("include_usage")?;
            options.without_effect(&["include_obfuscation"]);
            options.finish()?;
        }
        Ok(Self { streams, with_usage })
    }

    /// The object after the last answer of a stream.
    fn last(self, head: &Head, kind: &str, tokens: Tokens) -> Vec<Value> {
        let mut object = head.object(kind, Vec::new());
        object["usage"] = tokens.object();
        if self.with_usage { vec![object] } else { Vec::new() }
    }

    /// An object of a stream; where a last one has the usage, all others say that they have none.
    fn object(self, head: &Head, kind: &str, choice: Value) -> Value {
        let mut object = head.object(kind, vec![choice]);
        if self.with_usage {
            object["usage"] = Value::Null;
        }
        object
    }
}

/// Takes the fields of OpenAI's API that have no effect here: accounts, caches and storage of the service.
fn take_fields_of_the_service(fields: &mut Fields) {
    fields.without_effect(&[
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    ]);
}
