//! Requests to the engine, and the events that answer them.

use std::sync::Arc;
use std::time::Instant;

use crate::error::Error;
use crate::generate::constraint::Constraint;
use crate::generate::run::Finish;
use crate::generate::sample::{SamplerConfig, TokenLogProbability};
use crate::model::vision::features::PictureFeatures;
use crate::text::Tokenizer;

/// The number of a request. An engine gives each number once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u64);

/// A prompt to continue.
#[derive(Debug, Clone)]
pub struct Request {
    /// Token ids.
    pub prompt: Vec<u32>,
    /// The pictures that the prompt shows: the rows of their features, one picture after another, are the ids from
    /// [`FIRST_ID`](crate::model::vision::features::FIRST_ID) on. Without any, such ids are the rows of pictures that the decoder was
    /// shown for good.
    pub pictures: Vec<Arc<PictureFeatures>>,
    /// The name of an adapter; `None` runs the base alone.
    pub adapter: Option<String>,
    /// The choice of the next token, with its seed.
    pub sampler: SamplerConfig,
    /// The most tokens to add.
    pub max_tokens: usize,
    /// The tokens that end the answer; they are not part of it.
    pub end_tokens: Vec<u32>,
    /// The texts that end the answer; they are not part of it, and may lie across the borders of tokens.
    pub stop: Vec<String>,
    /// Log-probabilities of each token and of this many of the likeliest.
    pub log_probabilities: Option<usize>,
    /// The format that the answer is held to; of a vocabulary with the model's rows and these end tokens.
    pub constraint: Option<Constraint>,
    /// No token is begun after this moment.
    pub until: Option<Instant>,
    /// Whether control tokens show in the text.
    pub keeps_special: bool,
    /// The tokenizer of the answer where it is not the engine's: an adapter may have been trained with one of its own.
    pub tokenizer: Option<Tokenizer>,
}

impl Request {
    /// The base's greedy continuation of a prompt, at most 256 tokens without any end token.
    pub fn new(prompt: Vec<u32>) -> Self {
        Self {
            prompt,
            pictures: Vec::new(),
            adapter: None,
            sampler: SamplerConfig::default(),
            max_tokens: 256,
            end_tokens: Vec::new(),
            stop: Vec::new(),
            log_probabilities: None,
            constraint: None,
            until: None,
            keeps_special: false,
            tokenizer: None,
        }
    }
}

/// Something that happened to a request.
#[derive(Debug, Clone)]
pub enum Event {
    /// The answer has a further token.
    Token {
        /// The request.
        request: RequestId,
        /// The token.
        token: u32,
        /// The text that is certain now. It is empty where the token ends inside a character, or inside a possible stop string.
        text: String,
        /// Its log-probability, if the request asks for it.
        log_probability: Option<TokenLogProbability>,
    },
    /// The answer is complete.
    Finished {
        /// The request.
        request: RequestId,
        /// The text that was held back.
        text: String,
        /// The reason of the end.
        finish: Finish,
        /// Tokens and times.
        usage: Usage,
    },
    /// The answer cannot go on. Other requests are not concerned.
    Failed {
        /// The request.
        request: RequestId,
        /// The reason.
        error: Error,
    },
}

impl Event {
    /// The request that it belongs to.
    pub fn request(&self) -> RequestId {
        match self {
            Self::Token { request, .. } | Self::Finished { request, .. } | Self::Failed { request, .. } => *request,
        }
    }
}

/// The tokens and times of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those among them whose keys and values were there from an earlier request.
    pub cached_prompt_tokens: usize,
    /// Tokens of the answer, without an end token.
    pub answer_tokens: usize,
    /// From submission to the step that reads the first piece of the prompt.
    pub seconds_waiting: f64,
    /// From submission to the first token; 0 where there is none.
    pub seconds_to_first_token: f64,
    /// From submission to the end.
    pub seconds: f64,
}

impl Usage {
    /// Tokens of the prompt that were read in a second, those in the cache left out; `None` where there is no first token.
    pub fn prompt_tokens_per_second(&self) -> Option<f64> {
        let seconds = self.seconds_to_first_token - self.seconds_waiting;
        (seconds > 0.0).then(|| (self.prompt_tokens - self.cached_prompt_tokens) as f64 / seconds)
    }

    /// Tokens of the answer in a second, from the first on; `None` where there are fewer than two.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let seconds = self.seconds - self.seconds_to_first_token;
        (self.answer_tokens > 1 && seconds > 0.0).then(|| (self.answer_tokens - 1) as f64 / seconds)
    }
}

/// The state of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Requests that are being answered.
    pub running: usize,
    /// Requests that wait for a place.
    pub waiting: usize,
    /// Bytes that are set aside for the keys and values of running requests, or hold those of kept prefixes.
    pub cache_bytes: usize,
    /// The most such bytes.
    pub max_cache_bytes: usize,
    /// Tokens of prompts so far, of all requests that began.
    pub prompt_tokens: u64,
    /// Those among them that were in the cache.
    pub cached_prompt_tokens: u64,
    /// Tokens of answers so far.
    pub answer_tokens: u64,
    /// Those among them that were guessed, and so came without a step of their own.
    pub guessed_tokens: u64,
}
