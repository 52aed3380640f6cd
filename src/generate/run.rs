//! Generation: several sequences at once, each until its end token or its limit.

use std::time::Instant;

use serde::Serialize;

use super::sample::{Sampler, SamplerConfig};
use crate::error::{Error, Result};
use crate::model::Decoder;
use crate::model::decoder::Sequence;
use crate::nn::Adapter;

/// Sequences that are decoded together: each weight is then read once for all of them.
pub const SEQUENCES_AT_ONCE: usize = 16;
/// Tokens that go through the model at once; longer prompts go through it piece by piece.
pub const TOKENS_AT_ONCE: usize = 2048;

/// The options of a generation.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The choice of the next token.
    pub sampler: SamplerConfig,
    /// The most tokens to add.
    pub max_tokens: usize,
    /// The tokens that end a continuation; they are not part of it.
    pub end_tokens: &'a [u32],
    /// No token is begun after this moment.
    pub until: Option<Instant>,
}

/// The tokens that follow a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// Token ids.
    pub ids: Vec<u32>,
    /// The reason why there are no more.
    pub finish: Finish,
}

/// The reason why a continuation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model gave an end token.
    EndToken,
    /// It has as many tokens as were asked for, or as the model has positions for.
    Length,
    /// The time was up.
    Time,
}

/// A sequence that is being continued.
struct RunningSequence {
    index: usize,
    sequence: Sequence,
    sampler: Sampler,
    /// Prompt and continuation.
    history: Vec<u32>,
    /// The index of the first token that the model has not seen yet.
    fed: usize,
    added: usize,
}

/// Continues each prompt; `emit(prompt's index, token)` sees every token as it comes. The prompts of a group of
/// [`SEQUENCES_AT_ONCE`] are finished before the next group begins. Sampling depends on the seed
/// and the prompt's index, not on what is decoded beside it.
///
/// # Errors
/// An empty prompt; more tokens than the model has positions; logits that are not numbers; what `emit` returns.
pub fn generate(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    prompts: &[Vec<u32>],
    request: &Request<'_>,
    mut emit: impl FnMut(usize, u32) -> Result<()>,
) -> Result<Vec<Continuation>> {
    let positions = decoder.config().max_positions;
    let is_over = || request.until.is_some_and(|until| Instant::now() >= until);
    let nothing = Continuation { ids: Vec::new(), finish: Finish::Length };
    let mut continuations = vec![nothing; prompts.len()];
    for (group, prompts) in prompts.chunks(SEQUENCES_AT_ONCE).enumerate() {
        let mut running = Vec::with_capacity(prompts.len());
        for (offset, prompt) in prompts.iter().enumerate() {
            let index = group * SEQUENCES_AT_ONCE + offset;
            check_prompt(prompt, positions).map_err(|error| error.within(format_args!("prompt {}", index + 1)))?;
            let seed = request.sampler.seed.wrapping_add(index as u64);
            running.push(RunningSequence {
                index,
                sequence: decoder.begin(),
                sampler: Sampler::new(SamplerConfig { seed, ..request.sampler.clone() })?,
                history: prompt.clone(),
                fed: 0,
                added: 0,
            });
        }
        while !running.is_empty() && request.max_tokens > 0 {
            if is_over() {
                running.iter().for_each(|one| continuations[one.index].finish = Finish::Time);
                break;
            }
            let logits = advance(decoder, adapter, &mut running, TOKENS_AT_ONCE);
            let mut next = Vec::with_capacity(running.len());
            for (mut one, logits) in running.into_iter().zip(logits) {
                let token = one.sampler.sample(&logits, &one.history)?;
                if request.end_tokens.contains(&token) {
                    continuations[one.index].finish = Finish::EndToken;
                    continue;
                }
                emit(one.index, token)?;
                continuations[one.index].ids.push(token);
                one.history.push(token);
                one.added += 1;
                if one.added < request.max_tokens && one.history.len() < positions {
                    next.push(one);
                }
            }
            running = next;
        }
    }
    Ok(continuations)
}

/// Checks that a model of so many positions can continue a prompt.
///
/// # Errors
/// The prompt is empty or too long.
pub fn check_prompt(prompt: &[u32], positions: usize) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::input("", "has no tokens"));
    }
    if prompt.len() >= positions {
        let message = format!("has {} tokens; the model has {positions} positions", prompt.len());
        return Err(Error::input("", message));
    }
    Ok(())
}

/// Feeds each sequence the tokens that the model has not seen, at most `tokens_at_once` of all at a time, so that many or
/// long prompts take no more memory; the logits after each sequence.
fn advance(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    running: &mut [RunningSequence],
    tokens_at_once: usize,
) -> Vec<Vec<f32>> {
    let mut logits = vec![Vec::new(); running.len()];
    loop {
        let (mut room, mut new, mut sequences, mut ends) = (tokens_at_once, Vec::new(), Vec::new(), Vec::new());
        for (index, RunningSequence { sequence, history, fed, .. }) in running.iter_mut().enumerate() {
            let count = (history.len() - *fed).min(room);
            if count > 0 {
                new.push(&history[*fed..*fed + count]);
                sequences.push(sequence);
                *fed += count;
                room -= count;
                ends.push(index);
            }
        }
        if new.is_empty() {
            return logits;
        }
        for (index, after) in ends.into_iter().zip(decoder.next_logits(&new, &mut sequences, adapter)) {
            logits[index] = after;
        }
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::device::{self, DeviceChoice};
    use crate::model::BaseFiles;
    use crate::model::load::LoadOptions;
    use crate::quant::{Compute, Quant};

    fn tiny_decoder() -> Decoder {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/smollm.gguf");
        let base = BaseFiles::open(&path).expect("a base");
        let device = device::open(&DeviceChoice::Cpu).expect("the processor");
        let options = LoadOptions { device, compute: Compute::F32, quant: Quant::None };
        Decoder::load(&base, &options, |_, _| {}).expect("loaded")
    }

    #[test]
    fn a_continuation_says_why_it_ends() {
        let decoder = tiny_decoder();
        let prompts = vec![vec![7, 8, 9]; SEQUENCES_AT_ONCE + 1];
        let continued = |end_tokens: &[u32], until| {
            let request = Request { sampler: SamplerConfig::default(), max_tokens: 3, end_tokens, until };
            let all = generate(&decoder, None, &prompts, &request, |_, _| Ok(())).expect("continued");
            assert!(all.iter().all(|one| *one == all[0]) && all.len() == prompts.len());
            all[0].clone()
        };
        let whole = continued(&[], None);
        assert_eq!((whole.ids.len(), whole.finish), (3, Finish::Length));
        let ended = continued(&whole.ids[..1], None);
        assert_eq!((ended.ids.len(), ended.finish), (0, Finish::EndToken));
        let late = continued(&[], Some(Instant::now()));
        assert_eq!((late.ids.len(), late.finish), (0, Finish::Time));
    }

    #[test]
    fn prompts_go_through_the_model_piece_by_piece() {
        let decoder = tiny_decoder();
        let logits = |tokens_at_once: usize| {
            let running = [30u32, 3, 17].map(|length| RunningSequence {
                index: 0,
                sequence: decoder.begin(),
                sampler: Sampler::new(SamplerConfig::default()).expect("a sampler"),
                history: (0..length).map(|token| token * 11 % 300).collect(),
                fed: 0,
                added: 0,
            });
            let mut running = Vec::from(running);
            let logits = advance(&decoder, None, &mut running, tokens_at_once);
            assert!(running.iter().all(|one| one.fed == one.history.len() && one.sequence.length() == one.fed));
            logits
        };
        let whole = logits(usize::MAX);
        for tokens_at_once in [1, 8, 31] {
            for (piece, whole) in logits(tokens_at_once).iter().zip(&whole) {
                let off = piece.iter().zip(whole).map(|(piece, whole)| (piece - whole).abs()).fold(0.0, f32::max);
                assert!(piece.len() == whole.len() && off < 1e-4, "{tokens_at_once}: {off}");
            }
        }
    }
}
