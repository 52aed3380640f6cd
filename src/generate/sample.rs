//! The choice of the next token from logits: greedy, or sampled after filters.
//!
//! Filters and their order are those of transformers' `generate` (5.x, `generation/logits_process.py`):
//! repetition penalty, temperature, top-k, top-p, min-p, each applied to the result of the one before.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;

use crate::error::{Error, Result};

/// The smallest temperature above 0; below it, dividing a logit may overflow.
const LEAST_TEMPERATURE: f64 = 1e-6;

/// The options of the choice of a token.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerConfig {
    /// Logits are divided by it; 0 is greedy (only the repetition penalty applies).
    pub temperature: f64,
    /// Keep this many of the likeliest (and what ties with the last); 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest whose probabilities reach this sum; 1 keeps all.
    pub top_p: f64,
    /// Keep what has at least this share of the likeliest's probability; 0 keeps all.
    pub min_p: f64,
    /// Logits of tokens seen before are divided by it if positive, else multiplied; 1 changes nothing.
    pub repetition_penalty: f64,
    /// The seed: the same seed and the same logits give the same tokens.
    pub seed: u64,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl SamplerConfig {
    /// Checks that every value lies in its range.
    ///
    /// # Errors
    /// Every value outside its range.
    pub fn check(&self) -> Result<()> {
        let fraction = 0.0..=1.0;
        let temperature = self.temperature == 0.0 || (LEAST_TEMPERATURE..=f64::MAX).contains(&self.temperature);
        let penalty = (f64::MIN_POSITIVE..=f64::MAX).contains(&self.repetition_penalty);
        let checks = [
            ("temperature", self.temperature, temperature, "0 (greedy), or at least 0.000001"),
            ("top_p", self.top_p, fraction.contains(&self.top_p), "from 0 to 1"),
            ("min_p", self.min_p, fraction.contains(&self.min_p), "from 0 to 1"),
            ("repetition_penalty", self.repetition_penalty, penalty, "above 0"),
        ];
        let wrong = checks.into_iter().filter(|(_, _, holds, _)| !holds);
        let errors =
            wrong.map(|(name, found, _, range)| Error::input(name, format!("expected {range}; found {found}")));
        Error::none_of(errors.collect(), ())
    }
}

/// Chooses tokens, one call a token.
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplerConfig,
    rng: ChaCha12Rng,
}

/// A token that is still in the running.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: u32,
    /// The logit after the filters so far.
    logit: f64,
}

impl Sampler {
    /// A sampler at the start of its random stream.
    pub fn new(config: SamplerConfig) -> Result<Self> {
        config.check()?;
        let rng = ChaCha12Rng::seed_from_u64(config.seed);
        Ok(Self { config, rng })
    }

    /// The next token. `logits`: `[vocab]`. `history`: the tokens so far, prompt included (for the repetition
    /// penalty). Greedy choices and ties go to the lowest id.
    ///
    /// # Errors
    /// No logits, a logit that is not a number or +infinity, or none above -infinity.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32> {
        let candidates = self.candidates(logits, history)?;
        Ok(self.draw(&candidates))
    }

    /// The distribution that [`sample`](Self::sample) draws from: tokens with their probabilities, the likeliest first.
    pub fn distribution(&self, logits: &[f32], history: &[u32]) -> Result<Vec<(u32, f64)>> {
        let candidates = self.candidates(logits, history)?;
        let weights = weights(&candidates);
        let total: f64 = weights.iter().sum();
        Ok(candidates.iter().zip(weights).map(|(one, weight)| (one.token, weight / total)).collect())
    }

    /// The candidates that the filters leave, the likeliest first, ties by id.
    fn candidates(&self, logits: &[f32], history: &[u32]) -> Result<Vec<Candidate>> {
        check_logits(logits)?;
        let mut logits: Vec<f64> = logits.iter().copied().map(f64::from).collect();
        penalise_repetition(&mut logits, history, self.config.repetition_penalty);
        if self.config.temperature == 0.0 {
            return Ok(vec![likeliest(&logits)]);
        }
        let scaled = logits.iter().map(|logit| logit / self.config.temperature);
        let all = (0u32..).zip(scaled).map(|(token, logit)| Candidate { token, logit });
        let mut candidates: Vec<Candidate> = all.filter(|one| one.logit > f64::NEG_INFINITY).collect();
        keep_top_k(&mut candidates, self.config.top_k);
        candidates.sort_by(|left, right| right.logit.total_cmp(&left.logit));
        keep_top_p(&mut candidates, self.config.top_p);
        keep_min_p(&mut candidates, self.config.min_p);
        Ok(candidates)
    }

    /// A token, each with its probability among the candidates.
    fn draw(&mut self, candidates: &[Candidate]) -> u32 {
        let weights = weights(candidates);
        let mut left = self.rng.random::<f64>() * weights.iter().sum::<f64>();
        let mut chosen = 0;
        for (candidate, weight) in candidates.iter().zip(weights) {
            // Rounding may leave a sliver after the last: it is then the last one's.
            chosen = candidate.token;
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
        chosen
    }
}

fn check_logits(logits: &[f32]) -> Result<()> {
    let bad = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY);
    if let Some(token) = bad {
        let found = logits.get(token).copied().unwrap_or(f32::NAN);
        let message = format!("the model's logit of token {token} is {found}: no token can be chosen");
        return Err(Error::failed("generate", message).hint("base or adapter may be damaged, or trained to divergence"));
    }
    if logits.iter().all(|logit| *logit == f32::NEG_INFINITY) {
        return Err(Error::failed("generate", "the model gives no token any probability"));
    }
    Ok(())
}

/// The lowest id among those with the greatest logit.
fn likeliest(logits: &[f64]) -> Candidate {
    let first = Candidate { token: 0, logit: f64::NEG_INFINITY };
    let all = (0u32..).zip(logits).map(|(token, &logit)| Candidate { token, logit });
    all.fold(first, |best, next| if next.logit > best.logit { next } else { best })
}

/// `logit < 0 ? logit * penalty : logit / penalty`, once for each token in `history`
/// (transformers `RepetitionPenaltyLogitsProcessor`).
fn penalise_repetition(logits: &mut [f64], history: &[u32], penalty: f64) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = vec![false; logits.len()];
    for &token in history {
        let index = token as usize;
        if let (Some(logit), Some(seen)) = (logits.get_mut(index), seen.get_mut(index))
            && !std::mem::replace(seen, true)
        {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

/// Keeps the `top_k` likeliest and whatever ties with the last of them (`TopKLogitsWarper`).
fn keep_top_k(candidates: &mut Vec<Candidate>, top_k: usize) {
    if top_k == 0 || top_k >= candidates.len() {
        return;
    }
    let mut logits: Vec<f64> = candidates.iter().map(|one| one.logit).collect();
    let (_, &mut last, _) = logits.select_nth_unstable_by(top_k - 1, |left, right| right.total_cmp(left));
    candidates.retain(|one| one.logit >= last);
}

/// Drops, from the unlikeliest up, what together has a probability of at most `1 - top_p`; one always stays
/// (`TopPLogitsWarper`). `candidates` come likeliest first, here and below.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f64) {
    if top_p >= 1.0 {
        return;
    }
    let weights = weights(candidates);
    let total: f64 = weights.iter().sum();
    // Compared in f32 as transformers does: of ten equal tokens, `top_p = 0.9` drops exactly one.
    let threshold = (1.0 - top_p) as f32;
    let mut sum = 0.0;
    let dropped = weights.iter().rev().take_while(|weight| {
        sum += **weight / total;
        sum as f32 <= threshold
    });
    let kept = candidates.len() - dropped.count();
    candidates.truncate(kept.max(1));
}

/// Keeps what has at least `min_p` times the first's probability (`MinPLogitsWarper`).
fn keep_min_p(candidates: &mut Vec<Candidate>, min_p: f64) {
    if min_p <= 0.0 {
        return;
    }
    let kept = weights(candidates).iter().take_while(|weight| **weight >= min_p).count();
    candidates.truncate(kept.max(1));
}

/// Probabilities up to a factor, the first's being 1.
fn weights(candidates: &[Candidate]) -> Vec<f64> {
    let greatest = candidates.first().map_or(0.0, |first| first.logit);
    candidates.iter().map(|one| (one.logit - greatest).exp()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(config: SamplerConfig) -> Sampler {
        Sampler::new(config).expect("in range")
    }

    fn kept(config: SamplerConfig, logits: &[f32]) -> Vec<u32> {
        let distribution = sampler(config).distribution(logits, &[]).expect("finite logits");
        distribution.into_iter().map(|(token, _)| token).collect()
    }

    fn warm() -> SamplerConfig {
        SamplerConfig { temperature: 1.0, ..SamplerConfig::default() }
    }

    #[test]
    fn greedy_takes_the_lowest_of_the_greatest_and_ignores_the_filters() {
        let config = SamplerConfig { top_k: 1, top_p: 0.1, min_p: 0.9, ..SamplerConfig::default() };
        assert_eq!(sampler(config).sample(&[0.5, 2.0, 2.0, -1.0], &[]).unwrap(), 1);
    }

    #[test]
    fn a_repetition_penalty_acts_once_a_token_and_on_both_signs() {
        let config = SamplerConfig { repetition_penalty: 2.0, ..SamplerConfig::default() };
        let mut greedy = sampler(config);
        assert_eq!(greedy.sample(&[3.0, 1.6, 1.4], &[0, 0, 0]).unwrap(), 1);
        assert_eq!(greedy.sample(&[-1.0, -1.5], &[0]).unwrap(), 1);
        assert_eq!(greedy.sample(&[3.0, 1.0], &[7, u32::MAX]).unwrap(), 0);
    }

    #[test]
    fn ties_with_the_last_of_the_top_k_stay() {
        assert_eq!(kept(SamplerConfig { top_k: 2, ..warm() }, &[1.0, 3.0, 1.0, 0.0]), [1, 0, 2]);
        assert_eq!(kept(SamplerConfig { top_k: 9, ..warm() }, &[1.0, 3.0]), [1, 0]);
    }

    #[test]
    fn a_tenth_is_dropped_at_nine_tenths_and_one_token_always_stays() {
        assert_eq!(kept(SamplerConfig { top_p: 0.9, ..warm() }, &[0.0; 10]).len(), 9);
        assert_eq!(kept(SamplerConfig { top_p: 0.0, ..warm() }, &[0.0, 1.0, 0.5]), [1]);
        assert_eq!(kept(SamplerConfig { min_p: 1.0, ..warm() }, &[0.0, 1.0, 0.5]), [1]);
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        const DRAWS: usize = 20_000;
        let probabilities = [0.5f64, 0.3, 0.15, 0.05];
        let logits = probabilities.map(|probability| probability.ln() as f32);
        let draw = |seed| {
            let mut sampler = sampler(SamplerConfig { seed, ..warm() });
            (0..DRAWS).map(|_| sampler.sample(&logits, &[]).unwrap()).collect::<Vec<_>>()
        };
        let drawn = draw(1);
        assert_eq!(drawn, draw(1));
        assert_ne!(drawn, draw(2));
        for (token, probability) in (0u32..).zip(probabilities) {
            let share = drawn.iter().filter(|one| **one == token).count() as f64 / DRAWS as f64;
            let deviation = (probability * (1.0 - probability) / DRAWS as f64).sqrt();
            assert!((share - probability).abs() < 4.0 * deviation, "token {token}: {share} for {probability}");
        }
    }

    #[test]
    fn logits_that_allow_no_choice_are_errors() {
        for logits in [&[][..], &[0.0, f32::NAN], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY; 2]] {
            for config in [SamplerConfig::default(), warm()] {
                assert_eq!(sampler(config).sample(logits, &[]).unwrap_err().exit_code(), 1);
            }
        }
        assert_eq!(sampler(warm()).sample(&[f32::NEG_INFINITY, -1e30], &[]).unwrap(), 1);
        assert_eq!(kept(SamplerConfig { temperature: 1e-6, ..warm() }, &[f32::MAX, f32::MIN, 0.0])[0], 0);
    }

    #[test]
    fn values_out_of_range_are_reported_together() {
        let config = SamplerConfig {
            temperature: f64::NAN,
            top_p: 1.1,
            min_p: -0.1,
            repetition_penalty: 0.0,
            ..SamplerConfig::default()
        };
        let error = Sampler::new(config).unwrap_err();
        assert_eq!((error.exit_code(), error.problems().len()), (2, 4));
    }
}
