//! The engine: many sequences are continued at once, each by its own adapter, sampling and limits.
//!
//! One thread owns an engine and calls it in a loop: [`Engine::submit`] takes requests, [`Engine::step`] runs the model once and
//! returns what happened. Requests begin, are cancelled and end between two steps. A step feeds one token of each answer that has
//! begun and a limited piece of the prompts that have not been read, so that a long prompt does not stall the answers beside it.
//! The rows of all of them go through each weight at once, whatever adapter each has. On the processor an answer does not depend
//! on what else runs, bit for bit.
//!
//! A request can hold its answer to a format ([`constraint`](super::constraint)): tokens that it does not admit are excluded before the
//! choice.
//!
//! Where the last tokens of a greedy answer stood before, those after them are guessed and checked in the same step (`lookup`).
//!
//! The bytes of the keys and values that a request can come to need are set aside before it begins: it waits until there are as
//! many, and is refused where there never will be. Bytes that no running request needs keep beginnings of earlier sequences
//! (`prefix`), which later requests share.
//!
//! A request brings the features of the pictures that its prompt shows, and the decoder is shown them until it ends.

#[cfg(feature = "cpu")]
mod host;
mod lookup;
mod model;
mod prefix;
mod request;
mod sequence;
mod text;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use self::model::{Attached, Model, Piece};
use self::prefix::{BLOCK_TOKENS, Chain, Prefixes};
pub use self::request::{Event, Request, RequestId, Statistics, Usage};
use self::sequence::Running;
use super::constraint::Vocabulary;
use super::run::{Finish, check_prompt};
use super::sample::Sampler;
pub use super::sample::TokenLogProbability;
use crate::bytes::Size;
use crate::error::{Error, Result};
use crate::model::{Decoder, ModelConfig};
use crate::nn::Adapter;
use crate::ops::attention::CacheFormat;
use crate::quant::Compute;
use crate::text::Tokenizer;

/// Sequences that are decoded together, unless an option says otherwise: each weight is read once for all of them.
pub const SEQUENCES_AT_ONCE: usize = 16;
/// Tokens of a step, guesses included, up to which tokens are guessed.
const GUESSED_ROWS: usize = 8;
/// Prompt tokens of a step, unless an option says otherwise.
pub const PIECE_TOKENS: usize = 256;

/// The kernels of an engine on the processor. Elsewhere it computes as the decoder does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// The weights as they lie in memory, in f32.
    Exact,
    /// The weights repacked for products with activations in int8, or in bf16 where they are floats.
    Fast,
}

impl Precision {
    /// Exact for products in f32, fast for those in bf16.
    pub fn of(compute: Compute) -> Self {
        match compute {
            Compute::F32 => Self::Exact,
            Compute::Bf16 => Self::Fast,
        }
    }
}

/// The options of an engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The kernels.
    pub precision: Precision,
    /// The number format of keys and values on the processor; `None` for f32 with exact kernels and bf16 with fast ones. Adapters that
    /// are no low-rank pairs on projections have theirs in f32 in any case.
    pub cache: Option<CacheFormat>,
    /// Sequences that are decoded together, at least 1.
    pub max_sequences: usize,
    /// Requests that wait for a place; a further one is refused.
    pub max_waiting: usize,
    /// Bytes of the keys and values of all sequences, kept beginnings included.
    pub max_cache_bytes: usize,
    /// The most bytes of them for kept beginnings.
    pub max_prefix_bytes: usize,
    /// Prompt tokens that go through the model in one step, at least 1.
    pub piece_tokens: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            precision: Precision::Exact,
            cache: None,
            max_sequences: SEQUENCES_AT_ONCE,
            max_waiting: usize::MAX,
            max_cache_bytes: 1 << 30,
            max_prefix_bytes: 256 << 20,
            piece_tokens: PIECE_TOKENS,
        }
    }
}

impl EngineOptions {
    /// The default for a precision, without a limit of the cache for sequences: for prompts of the caller's own.
    pub fn unbounded(precision: Precision) -> Self {
        Self { precision, max_cache_bytes: usize::MAX, ..Self::default() }
    }
}

/// Continues sequences.
pub struct Engine {
    model: Model,
    tokenizer: Tokenizer,
    options: EngineOptions,
    adapters: BTreeMap<String, Arc<Attached>>,
    adapters_so_far: u64,
    requests_so_far: u64,
    waiting: VecDeque<Running>,
    running: Vec<Running>,
    cancelled: Vec<RequestId>,
    prefixes: Prefixes,
    totals: Statistics,
}

impl Engine {
    /// An engine without adapters. `tokenizer` turns answers into text. Repacking the weights for [`Precision::Fast`] takes some
    /// tenths of a second for each 100 million of them.
    pub fn new(decoder: Decoder, tokenizer: &Tokenizer, options: EngineOptions) -> Self {
        Self {
            model: Model::new(decoder, &options),
            tokenizer: tokenizer.clone(),
            options,
            adapters: BTreeMap::new(),
            adapters_so_far: 0,
            requests_so_far: 0,
            waiting: VecDeque::new(),
            running: Vec::new(),
            cancelled: Vec::new(),
            prefixes: Prefixes::default(),
            totals: Statistics::default(),
        }
    }

    /// The shape of the model.
    pub fn decoder_config(&self) -> &ModelConfig {
        self.model.decoder().config()
    }

    /// Adds an adapter, in place of one of the same name. Answers that have begun keep theirs until they end.
    pub fn add_adapter(&mut self, name: &str, adapter: &Adapter) {
        self.adapters_so_far += 1;
        let attached = self.model.attach(adapter, self.adapters_so_far);
        self.adapters.insert(name.to_owned(), Arc::new(attached));
    }

    /// Removes an adapter; whether there was one of this name. Answers that have begun keep it until they end.
    pub fn remove_adapter(&mut self, name: &str) -> bool {
        self.adapters.remove(name).is_some()
    }

    /// The names of the adapters, in order.
    pub fn adapter_names(&self) -> impl Iterator<Item = &str> {
        self.adapters.keys().map(String::as_str)
    }

    /// The vocabulary for formats of answers that end with any of these tokens.
    ///
    /// # Errors
    /// Those of [`Vocabulary::new`].
    pub fn vocabulary(&self, end_tokens: &[u32]) -> Result<Vocabulary> {
        Vocabulary::new(&self.tokenizer, end_tokens, self.decoder_config().vocab_size)
    }

    /// Bytes of the keys and values of a sequence of so many tokens.
    pub fn cache_bytes(&self, tokens: usize) -> usize {
        self.model.cache_bytes(tokens, self.options.piece_tokens)
    }

    /// Whether a further request may wait.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < self.options.max_waiting
    }

    /// Takes a request, which begins with one of the next steps.
    ///
    /// # Errors
    /// Input, with the place `adapter`, `prompt`, `queue`, or that of an option of the sampler: an adapter that is not here; a
    /// prompt that is empty or has more tokens than the model has positions; a row of pictures that the request does not bring; a
    /// prompt and an answer whose keys and values would take more than all bytes there are; a full queue; an option outside its
    /// range.
    pub fn submit(&mut self, mut request: Request) -> Result<RequestId> {
        if !self.has_room() {
            let message = format!("{} requests wait already", self.waiting.len());
            return Err(Error::input("queue", message).hint("try again later"));
        }
        let attached = match &request.adapter {
            None => None,
            Some(name) => Some(self.attached(name)?),
        };
        let positions = self.decoder_config().max_positions;
        check_prompt(&request.prompt, positions).map_err(|error| error.within("prompt"))?;
        let sampler = Sampler::new(request.sampler.clone())?;
        let tokens = request.prompt.len().saturating_add(request.max_tokens).min(positions);
        let (bytes, most) = (self.cache_bytes(tokens), self.options.max_cache_bytes);
        if bytes > most {
            let [bytes, most] = [bytes, most].map(|bytes| Size(bytes as u64));
            let message = format!("the keys and values of {tokens} tokens take {bytes}; the cache has {most}");
            return Err(Error::input("prompt", message).hint("ask for fewer tokens, or enlarge the cache"));
        }
        let pictures = self.model.show(std::mem::take(&mut request.pictures), &mut request.prompt)?;
        self.requests_so_far += 1;
        let id = RequestId(self.requests_so_far);
        let past = self.model.begin(attached.as_deref());
        let (parts, sizes) = ((attached, sampler, past), (tokens, bytes));
        self.waiting.push_back(Running::new(id, request, pictures, parts, &self.tokenizer, sizes));
        Ok(id)
    }

    fn attached(&self, name: &str) -> Result<Arc<Attached>> {
        self.adapters.get(name).cloned().ok_or_else(|| {
            let names: Vec<&str> = self.adapter_names().collect();
            let known = if names.is_empty() { "there is none".to_owned() } else { names.join(", ") };
            Error::input("adapter", format!("`{name}` is not here; known: {known}"))
        })
    }

    /// Ends a request with the next step, as [`Finish::Cancelled`]. A request that is over or unknown is ignored.
    pub fn cancel(&mut self, request: RequestId) {
        self.cancelled.push(request);
    }

    /// Whether nothing runs or waits.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// The state of the engine.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            running: self.running.len(),
            waiting: self.waiting.len(),
            cache_bytes: self.reserved_bytes() + self.prefixes.len() * self.model.block_bytes(),
            max_cache_bytes: self.options.max_cache_bytes,
            ..self.totals
        }
    }

    /// Bytes that are set aside for running requests.
    fn reserved_bytes(&self) -> usize {
        self.running.iter().map(|one| one.reserved_bytes).sum()
    }

    /// The mean of the last hidden states of a prompt, after the final norm: `[hidden]`.
    ///
    /// # Errors
    /// Input: an adapter that is not here; a prompt that is empty or too long.
    pub fn embed(&mut self, prompt: &[u32], adapter: Option<&str>) -> Result<Vec<f32>> {
        let attached = adapter.map(|name| self.attached(name)).transpose()?;
        check_prompt(prompt, self.decoder_config().max_positions).map_err(|error| error.within("prompt"))?;
        Ok(self.model.embed(prompt, attached.as_deref()))
    }

    /// Admits requests, runs the model once, and ends what is complete. Returns no event where nothing runs or waits.
    pub fn step(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.end_unwanted(&mut events);
        self.admit(&mut events);
        let logits = self.advance();
        let mut going_on = Vec::with_capacity(self.running.len());
        for (mut one, logits) in std::mem::take(&mut self.running).into_iter().zip(logits) {
            // Without logits a part of the prompt is still to be read.
            let is_going_on = logits.is_empty() || one.take_all(&logits, &mut self.totals, &mut events);
            if logits.len() > 1 {
                Model::truncate(&mut one.past, one.fed);
            }
            self.keep_blocks(&mut one);
            if is_going_on {
                going_on.push(one);
            }
        }
        self.running = going_on;
        self.shrink_prefixes(self.reserved_bytes());
        events
    }

    /// Ends what is cancelled or out of time.
    fn end_unwanted(&mut self, events: &mut Vec<Event>) {
        let cancelled = std::mem::take(&mut self.cancelled);
        let now = Instant::now();
        let mut wanted = |one: &mut Running| match one.is_unwanted(&cancelled, now) {
            Some(finish) => {
                one.finish(finish, events);
                false
            }
            None => true,
        };
        self.waiting.retain_mut(&mut wanted);
        self.running.retain_mut(wanted);
    }

    /// Lets waiting requests begin, in their order, as long as there are places and bytes.
    fn admit(&mut self, events: &mut Vec<Event>) {
        let mut reserved = self.reserved_bytes();
        while let Some(next) = self.waiting.front() {
            let fits = reserved + next.reserved_bytes <= self.options.max_cache_bytes;
            if self.running.len() >= self.options.max_sequences.max(1) || !fits {
                break;
            }
            let Some(mut next) = self.waiting.pop_front() else { break };
            if next.max_tokens() == 0 {
                next.finish(Finish::Length, events);
                continue;
            }
            reserved += next.reserved_bytes;
            // At least one token is read: its logits begin the answer.
            let start = self.chain(&next);
            let (blocks, chain) = self.prefixes.find(start, &next.tokens[..next.prompt_tokens - 1], &next.pictures);
            if !blocks.is_empty() {
                next.past = self.model.begin_with(&blocks, next.adapter.as_deref());
            }
            next.begin(blocks.len() * BLOCK_TOKENS, chain);
            self.totals.prompt_tokens += next.prompt_tokens as u64;
            self.totals.cached_prompt_tokens += next.cached_prompt_tokens as u64;
            self.running.push(next);
        }
        self.shrink_prefixes(reserved);
    }

    /// The hash of the beginning of a sequence without tokens.
    fn chain(&self, one: &Running) -> Chain {
        let is_long = self.model.switches(1, one.tokens.len());
        Chain::new(one.adapter.as_ref().map(|adapter| adapter.number), is_long)
    }

    /// Keeps no more beginnings than there are bytes beside the `reserved` ones.
    fn shrink_prefixes(&mut self, reserved: usize) {
        let most = (self.options.max_cache_bytes - reserved).min(self.options.max_prefix_bytes);
        self.prefixes.shrink_to(most / self.model.block_bytes().max(1));
    }

    /// Keeps the blocks of a sequence that a step has completed, and lets go of what no query needs any more.
    fn keep_blocks(&mut self, one: &mut Running) {
        while (one.kept_blocks + 1) * BLOCK_TOKENS <= one.fed {
            let first = one.kept_blocks * BLOCK_TOKENS;
            one.chain = one.chain.with(&one.tokens[first..first + BLOCK_TOKENS], &one.pictures);
            one.kept_blocks += 1;
            if !self.prefixes.has(one.chain)
                && let Some(block) = self.model.block(&one.past, one.kept_blocks - 1)
            {
                self.prefixes.keep(one.chain, block);
            }
        }
        self.model.forget(&mut one.past);
    }

    /// Feeds the model; for each running sequence the logits after its last token and after each guess, or none while its prompt is
    /// being read.
    fn advance(&mut self) -> Vec<Vec<Vec<f32>>> {
        for index in 0..self.running.len() {
            let one = &self.running[index];
            if one.fed > 0 && self.model.switches(one.read_as, one.tokens.len()) {
                let (past, chain) = (self.model.begin(one.adapter.as_deref()), self.chain(one));
                self.running[index].read_anew(past, chain);
            }
        }
        let mut room = self.options.piece_tokens.max(1);
        // Rows of guesses are nearly free as long as all rows of a step are few.
        let guesses = GUESSED_ROWS / self.running.len().max(1);
        let (mut pieces, mut wanted) = (Vec::new(), Vec::with_capacity(self.running.len()));
        for one in &mut self.running {
            let (missing, total) = (one.tokens.len() - one.fed, one.tokens.len());
            // The last token of an answer always goes through.
            let count = if missing == 1 { 1 } else { missing.min(room) };
            room -= count.min(room);
            one.next = one.tokens[one.fed..one.fed + count].to_vec();
            (one.fed, one.read_as) = (one.fed + count, total);
            if missing == 1 && Model::forgets(&one.past) {
                let guessed = one.guess(guesses.saturating_sub(1)).to_vec();
                if !self.model.switches(total, total + guessed.len()) {
                    one.next.extend(guessed);
                }
            }
            wanted.push(if count == missing { one.next.len() + 1 - count } else { 0 });
            if count > 0 {
                let (new, past, adapter) = (one.next.as_slice(), &mut one.past, one.adapter.as_deref());
                pieces.push(Piece { new, past, adapter, total, wanted: wanted[wanted.len() - 1] });
            }
        }
        if pieces.is_empty() {
            return Vec::new();
        }
        let mut logits = self.model.advance(&mut pieces).into_iter();
        wanted.into_iter().map(|wanted| logits.by_ref().take(wanted).collect()).collect()
    }
}
