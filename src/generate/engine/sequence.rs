//! A request on its way: the sequence with its past, its sampler and its text.

use std::sync::Arc;
use std::time::Instant;

use super::lookup::Lookup;
use super::model::{Attached, Past};
use super::prefix::{BLOCK_TOKENS, Chain};
use super::request::{Event, Request, RequestId, Statistics, Usage};
use super::text::AnswerText;
use crate::error::Result;
use crate::generate::constraint::Constraint;
use crate::generate::run::Finish;
use crate::generate::sample::{Sampler, TokenLogProbability};
use crate::model::vision::features::Shown;
use crate::text::Tokenizer;

/// A sequence that is being continued, or waits for it.
pub(super) struct Running {
    id: RequestId,
    /// The request; its prompt has moved to `tokens`.
    request: Request,
    pub(super) adapter: Option<Arc<Attached>>,
    sampler: Sampler,
    /// The format of the answer, at the end of the answer so far.
    constraint: Option<Constraint>,
    text: AnswerText,
    /// Prompt and answer.
    pub(super) tokens: Vec<u32>,
    /// The pictures among them.
    pub(super) pictures: Vec<Shown>,
    pub(super) prompt_tokens: usize,
    /// Tokens that the model has seen.
    pub(super) fed: usize,
    /// Tokens that were known when the model read the last: they chose the rotation of positions.
    pub(super) read_as: usize,
    pub(super) past: Past,
    /// Tokens of the prompt that were in the cache when it began.
    pub(super) cached_prompt_tokens: usize,
    /// The hash of the blocks that are complete, and their number.
    pub(super) chain: Chain,
    pub(super) kept_blocks: usize,
    /// The tokens of this step that the model has not seen, guesses after the last included.
    pub(super) next: Vec<u32>,
    lookup: Lookup,
    /// The most tokens that it can come to have.
    most_tokens: usize,
    /// Bytes of the cache that they need.
    pub(super) reserved_bytes: usize,
    submitted: Instant,
    seconds_waiting: f64,
    seconds_to_first_token: f64,
}

impl Running {
    pub(super) fn new(
        id: RequestId,
        mut request: Request,
        pictures: Vec<Shown>,
        (adapter, sampler, past): (Option<Arc<Attached>>, Sampler, Past),
        tokenizer: &Tokenizer,
        (most_tokens, reserved_bytes): (usize, usize),
    ) -> Self {
        let tokens = std::mem::take(&mut request.prompt);
        let (own, constraint) = (request.tokenizer.take(), request.constraint.take());
        let tokenizer = own.as_ref().unwrap_or(tokenizer);
        Self {
            id,
            adapter,
            sampler,
            constraint,
            text: AnswerText::new(tokenizer, std::mem::take(&mut request.stop), request.keeps_special),
            prompt_tokens: tokens.len(),
            tokens,
            pictures,
            fed: 0,
            read_as: 0,
            past,
            cached_prompt_tokens: 0,
            chain: Chain::new(None, false),
            kept_blocks: 0,
            next: Vec::new(),
            lookup: Lookup::default(),
            most_tokens,
            reserved_bytes,
            submitted: Instant::now(),
            seconds_waiting: 0.0,
            seconds_to_first_token: 0.0,
            request,
        }
    }

    /// Begins with a past of `cached` tokens, whole blocks of this hash.
    pub(super) fn begin(&mut self, cached: usize, chain: Chain) {
        self.seconds_waiting = self.submitted.elapsed().as_secs_f64();
        (self.fed, self.read_as, self.cached_prompt_tokens) = (cached, self.tokens.len(), cached);
        (self.chain, self.kept_blocks) = (chain, cached / BLOCK_TOKENS);
    }

    /// Begins again from the first token.
    pub(super) fn read_anew(&mut self, past: Past, chain: Chain) {
        (self.past, self.fed, self.chain, self.kept_blocks) = (past, 0, chain, 0);
    }

    pub(super) fn max_tokens(&self) -> usize {
        self.request.max_tokens
    }

    /// Whether the answer has a token.
    pub(super) fn has_begun(&self) -> bool {
        self.tokens.len() > self.prompt_tokens
    }

    /// The reason to end it before its next token, if there is one.
    pub(super) fn is_unwanted(&self, cancelled: &[RequestId], now: Instant) -> Option<Finish> {
        if cancelled.contains(&self.id) {
            return Some(Finish::Cancelled);
        }
        self.request.until.is_some_and(|until| now >= until).then_some(Finish::Time)
    }

    /// The most tokens that can be guessed: none where the choice of a token is not the greatest logit alone.
    fn most_guesses(&self) -> usize {
        let is_greedy = self.request.sampler.temperature == 0.0 && self.request.sampler.leaves_logits();
        if is_greedy { self.most_tokens.saturating_sub(self.tokens.len() + 1) } else { 0 }
    }

    /// Guesses of the tokens that follow, at most `most`.
    pub(super) fn guess(&mut self, most: usize) -> &[u32] {
        let guessed = self.lookup.guess(&self.tokens, most.min(self.most_guesses()));
        // What the format does not admit is certainly wrong.
        let admitted = self.constraint.as_mut().map_or(guessed.len(), |constraint| constraint.count_admitted(guessed));
        &guessed[..admitted]
    }

    /// Chooses the tokens that follow, by the logits after the last token and after each guess, as far as the guesses are right;
    /// whether the answer goes on.
    pub(super) fn take_all(&mut self, logits: &[Vec<f32>], totals: &mut Statistics, events: &mut Vec<Event>) -> bool {
        let first_guess = self.next.len() + 1 - logits.len();
        let mut right = 0;
        for logits in logits {
            if !self.take(logits, totals, events) {
                return false;
            }
            if self.next.get(first_guess + right) != self.tokens.last() {
                break;
            }
            right += 1;
        }
        self.fed += right;
        totals.guessed_tokens += right as u64;
        self.lookup.learn(logits.len() - 1, right);
        true
    }

    /// Chooses the next token from the logits after the last; whether the answer goes on.
    fn take(&mut self, logits: &[f32], totals: &mut Statistics, events: &mut Vec<Event>) -> bool {
        match self.try_take(logits, totals, events) {
            Ok(None) => true,
            Ok(Some(finish)) => {
                self.finish(finish, events);
                false
            }
            Err(error) => {
                events.push(Event::Failed { request: self.id, error });
                false
            }
        }
    }

    /// The reason why the answer ends with this token, if it does.
    fn try_take(&mut self, logits: &[f32], totals: &mut Statistics, events: &mut Vec<Event>) -> Result<Option<Finish>> {
        let (prompt, answer) = self.tokens.split_at(self.prompt_tokens);
        let token = match &mut self.constraint {
            Some(constraint) => self.sampler.sample(&constraint.admitted(logits)?, prompt, answer)?,
            None => self.sampler.sample(logits, prompt, answer)?,
        };
        if !self.has_begun() {
            self.seconds_to_first_token = self.submitted.elapsed().as_secs_f64();
        }
        if self.request.end_tokens.contains(&token) {
            return Ok(Some(Finish::EndToken));
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.advance(token)?;
        }
        let log_probability =
            self.request.log_probabilities.map(|likeliest| TokenLogProbability::of(logits, token, likeliest));
        let (text, is_stopped) = self.text.push(token)?;
        events.push(Event::Token { request: self.id, token, text, log_probability });
        self.tokens.push(token);
        totals.answer_tokens += 1;
        let is_complete = self.constraint.as_ref().is_some_and(Constraint::is_complete);
        let is_full = self.tokens.len() >= self.most_tokens;
        let ends = [(is_stopped, Finish::Stop), (is_complete, Finish::Complete), (is_full, Finish::Length)];
        Ok(ends.into_iter().find_map(|(ends, finish)| ends.then_some(finish)))
    }

    /// Reports the end of the answer.
    pub(super) fn finish(&mut self, finish: Finish, events: &mut Vec<Event>) {
        let usage = Usage {
            prompt_tokens: self.prompt_tokens,
            cached_prompt_tokens: self.cached_prompt_tokens,
            answer_tokens: self.tokens.len() - self.prompt_tokens,
            seconds_waiting: self.seconds_waiting,
            seconds_to_first_token: self.seconds_to_first_token,
            seconds: self.submitted.elapsed().as_secs_f64(),
        };
        let rest = if finish == Finish::Stop { Ok((String::new(), false)) } else { self.text.finish() };
        events.push(match rest {
            Ok((text, is_stopped)) => {
                let finish = if is_stopped { Finish::Stop } else { finish };
                Event::Finished { request: self.id, text, finish, usage }
            }
            Err(error) => Event::Failed { request: self.id, error },
        });
    }
}
