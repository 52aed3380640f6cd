//! The choice of the next token from logits: greedy, or sampled after filters. The vocabulary is never sorted.
//!
//! Filters and their order are those of transformers' `generate` (5.x, `generation/logits_process.py`):
//! repetition penalty, temperature, top-k, top-p, min-p, each applied to the result of the one before. The bias and the penalties
//! by frequency and presence are those of OpenAI's API; they come before the temperature.

mod filters;
mod logits;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;

use crate::error::{Error, Result};

/// The smallest temperature above 0; below it, dividing a logit may overflow.
const LEAST_TEMPERATURE: f64 = 1e-6;
/// The greatest magnitude of a penalty by frequency or presence, as in OpenAI's API.
const GREATEST_PENALTY: f64 = 2.0;
/// The greatest magnitude of a bias, as in OpenAI's API: it excludes a token, or takes no other.
const GREATEST_BIAS: f64 = 100.0;

/// The options of the choice of a token.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerConfig {
    /// Logits are divided by it; 0 is greedy (only bias and penalties apply).
    pub temperature: f64,
    /// Keep this many of the likeliest (and what ties with the last); 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest whose probabilities reach this sum; 1 keeps all.
    pub top_p: f64,
    /// Keep what has at least this share of the likeliest's probability; 0 keeps all.
    pub min_p: f64,
    /// Logits of tokens seen before, in the prompt too, are divided by it if positive, else multiplied; 1 changes nothing.
    pub repetition_penalty: f64,
    /// Taken from the logit of a token for each time that the answer has it already; 0 changes nothing.
    pub frequency_penalty: f64,
    /// Taken once from the logit of each token that the answer has already; 0 changes nothing.
    pub presence_penalty: f64,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f64)>,
    /// The seed: the same seed and the same logits give the same tokens.
    pub seed: u64,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplerConfig {
    /// Checks that every value lies in its range.
    ///
    /// # Errors
    /// Every value outside its range.
    pub fn check(&self) -> Result<()> {
        let (fraction, penalty) = (0.0..=1.0, -GREATEST_PENALTY..=GREATEST_PENALTY);
        let temperature = self.temperature == 0.0 || (LEAST_TEMPERATURE..=f64::MAX).contains(&self.temperature);
        let repetition = (f64::MIN_POSITIVE..=f64::MAX).contains(&self.repetition_penalty);
        let is_bias = |bias: f64| bias.abs() <= GREATEST_BIAS;
        let bias = self.logit_bias.iter().map(|(_, bias)| *bias).find(|bias| !is_bias(*bias));
        let checks = [
            ("temperature", self.temperature, temperature, "0 (greedy), or at least 0.000001"),
            ("top_p", self.top_p, fraction.contains(&self.top_p), "from 0 to 1"),
            ("min_p", self.min_p, fraction.contains(&self.min_p), "from 0 to 1"),
            ("repetition_penalty", self.repetition_penalty, repetition, "above 0"),
            ("frequency_penalty", self.frequency_penalty, penalty.contains(&self.frequency_penalty), "from -2 to 2"),
            ("presence_penalty", self.presence_penalty, penalty.contains(&self.presence_penalty), "from -2 to 2"),
            ("logit_bias", bias.unwrap_or(0.0), bias.is_none(), "from -100 to 100"),
        ];
        let wrong = checks.into_iter().filter(|(_, _, holds, _)| !holds);
        let errors =
            wrong.map(|(name, found, _, range)| Error::input(name, format!("expected {range}; found {found}")));
        Error::none_of(errors.collect(), ())
    }

    /// Whether the logits are used as the model gives them.
    pub(super) fn leaves_logits(&self) -> bool {
        self.repetition_penalty == 1.0
            && self.frequency_penalty == 0.0
            && self.presence_penalty == 0.0
            && self.logit_bias.is_empty()
    }
}

/// The log-probability of a token that was chosen, by the model alone: at temperature 1, without filters, penalties, bias and formats.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogProbability {
    /// The token.
    pub token: u32,
    /// Its log-probability.
    pub log_probability: f64,
    /// The likeliest tokens with theirs, the likeliest first.
    pub likeliest: Vec<(u32, f64)>,
}

impl TokenLogProbability {
    /// The log-probabilities of `token` and of the `likeliest` tokens by these logits, which the sampler has taken.
    pub fn of(logits: &[f32], token: u32, likeliest: usize) -> Self {
        let log_sum = logits::log_sum(logits);
        let log_probability = |logit: f32| f64::from(logit) - log_sum;
        let found = logits::greatest_indices(logits, likeliest).into_iter();
        Self {
            token,
            log_probability: log_probability(logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY)),
            likeliest: found.map(|(token, logit)| (token, log_probability(logit))).collect(),
        }
    }
}

/// Chooses tokens, one call a token.
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplerConfig,
    rng: ChaCha12Rng,
}

/// A token that is still in the running, with its probability up to a factor.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    token: u32,
    weight: f32,
}

impl Sampler {
    /// A sampler at the start of its random stream.
    ///
    /// # Errors
    /// Those of [`SamplerConfig::check`].
    pub fn new(config: SamplerConfig) -> Result<Self> {
        config.check()?;
        let rng = ChaCha12Rng::seed_from_u64(config.seed);
        Ok(Self { config, rng })
    }

    /// The next token. `logits`: `[vocabulary]`. `prompt`, `answer`: the tokens so far, for the penalties. Greedy choices and
    /// ties go to the lowest id.
    ///
    /// # Errors
    /// No logits, a logit that is not a number or +infinity, or none above -infinity.
    pub fn sample(&mut self, logits: &[f32], prompt: &[u32], answer: &[u32]) -> Result<u32> {
        let candidates = self.candidates(logits, prompt, answer)?;
        if let [only] = candidates.as_slice() {
            return Ok(only.token);
        }
        Ok(self.draw(&candidates))
    }

    /// The distribution that [`sample`](Self::sample) draws from: tokens with their probabilities, the likeliest first.
    ///
    /// # Errors
    /// Those of [`sample`](Self::sample).
    pub fn distribution(&self, logits: &[f32], prompt: &[u32], answer: &[u32]) -> Result<Vec<(u32, f64)>> {
        let mut candidates = self.candidates(logits, prompt, answer)?;
        candidates.sort_by(|left, right| right.weight.total_cmp(&left.weight));
        let total: f64 = candidates.iter().map(|one| f64::from(one.weight)).sum();
        Ok(candidates.iter().map(|one| (one.token, f64::from(one.weight) / total)).collect())
    }

    /// The candidates that the filters leave.
    fn candidates(&self, logits: &[f32], prompt: &[u32], answer: &[u32]) -> Result<Vec<Candidate>> {
        check_logits(logits)?;
        if self.config.leaves_logits() {
            return Ok(self.filtered(logits));
        }
        let mut changed = logits.to_vec();
        filters::penalise(&mut changed, prompt, answer, &self.config);
        // A penalty may carry a logit beyond the numbers of f32.
        changed.iter_mut().for_each(|logit| *logit = logit.min(f32::MAX));
        Ok(self.filtered(&changed))
    }

    fn filtered(&self, logits: &[f32]) -> Vec<Candidate> {
        let greatest = logits::greatest(logits);
        if self.config.temperature == 0.0 {
            let token = logits.iter().position(|logit| *logit == greatest).unwrap_or(0) as u32;
            return vec![Candidate { token, weight: 1.0 }];
        }
        let least = match self.config.top_k {
            0 => f32::NEG_INFINITY,
            count if count >= logits.len() => f32::NEG_INFINITY,
            count => logits::nth_greatest(logits, count),
        };
        let weights = logits::weights(logits, greatest, self.config.temperature);
        let all = (0u32..).zip(logits).zip(weights);
        let kept = all.filter(|((_, logit), _)| **logit >= least && **logit > f32::NEG_INFINITY);
        let mut candidates: Vec<Candidate> = kept.map(|((token, _), weight)| Candidate { token, weight }).collect();
        filters::keep_top_p(&mut candidates, self.config.top_p);
        filters::keep_min_p(&mut candidates, self.config.min_p);
        candidates
    }

    /// A token, each with its probability among the candidates.
    fn draw(&mut self, candidates: &[Candidate]) -> u32 {
        let total: f64 = candidates.iter().map(|one| f64::from(one.weight)).sum();
        let mut left = self.rng.random::<f64>() * total;
        let mut chosen = 0;
        for candidate in candidates.iter().filter(|one| one.weight > 0.0) {
            // Rounding may leave a sliver after the last: it is then the last one's.
            chosen = candidate.token;
            left -= f64::from(candidate.weight);
            if left < 0.0 {
                break;
            }
        }
        chosen
    }
}

fn check_logits(logits: &[f32]) -> Result<()> {
    if let Some(token) = logits::first_unusable(logits) {
        let found = logits.get(token).copied().unwrap_or(f32::NAN);
        let message = format!("the model's logit of token {token} is {found}: no token can be chosen");
        return Err(Error::failed("generate", message).hint("base or adapter may be damaged, or trained to divergence"));
    }
    if logits::greatest(logits) == f32::NEG_INFINITY {
        return Err(Error::failed("generate", "the model gives no token any probability"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(config: SamplerConfig) -> Sampler {
        Sampler::new(config).expect("in range")
    }

    fn kept(config: SamplerConfig, logits: &[f32]) -> Vec<u32> {
        let distribution = sampler(config).distribution(logits, &[], &[]).expect("finite logits");
        distribution.into_iter().map(|(token, _)| token).collect()
    }

    fn warm() -> SamplerConfig {
        SamplerConfig { temperature: 1.0, ..SamplerConfig::default() }
    }

    #[test]
    fn greedy_takes_the_lowest_of_the_greatest_and_ignores_the_filters() {
        let config = SamplerConfig { top_k: 1, top_p: 0.1, min_p: 0.9, ..SamplerConfig::default() };
        assert_eq!(sampler(config).sample(&[0.5, 2.0, 2.0, -1.0], &[], &[]).unwrap(), 1);
    }

    #[test]
    fn a_repetition_penalty_acts_once_a_token_and_on_both_signs() {
        let config = SamplerConfig { repetition_penalty: 2.0, ..SamplerConfig::default() };
        let mut greedy = sampler(config);
        assert_eq!(greedy.sample(&[3.0, 1.6, 1.4], &[0, 0], &[0]).unwrap(), 1);
        assert_eq!(greedy.sample(&[-1.0, -1.5], &[0], &[]).unwrap(), 1);
        assert_eq!(greedy.sample(&[3.0, 1.0], &[7, u32::MAX], &[]).unwrap(), 0);
    }

    #[test]
    fn frequency_and_presence_count_the_answer_alone_and_a_bias_excludes_a_token() {
        let logits = [3.0, 2.4, 2.1];
        let choice = |config: SamplerConfig, prompt: &[u32], answer: &[u32]| {
            sampler(config).sample(&logits, prompt, answer).unwrap()
        };
        let presence = SamplerConfig { presence_penalty: 0.7, ..SamplerConfig::default() };
        assert_eq!(choice(presence.clone(), &[0], &[]), 0);
        assert_eq!(choice(presence.clone(), &[], &[0, 0]), 1);
        assert_eq!(choice(presence, &[], &[0, 1]), 0);
        let frequency = SamplerConfig { frequency_penalty: 0.4, ..SamplerConfig::default() };
        assert_eq!(choice(frequency.clone(), &[], &[0]), 0);
        assert_eq!(choice(frequency, &[], &[0, 0]), 1);
        let bias = SamplerConfig { logit_bias: vec![(0, -100.0), (2, 0.5), (9, 1.0)], ..SamplerConfig::default() };
        assert_eq!(choice(bias, &[], &[]), 2);
    }

    #[test]
    fn log_probabilities_are_those_of_the_model() {
        let probabilities = [0.5f64, 0.3, 0.15, 0.05];
        let logits = probabilities.map(|probability| 2.0 + probability.ln() as f32);
        let found = TokenLogProbability::of(&logits, 2, 2);
        let near = |found: f64, probability: f64| (found - probability.ln()).abs() < 1e-6;
        assert!(near(found.log_probability, 0.15), "{found:?}");
        assert_eq!(found.likeliest.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [0, 1]);
        assert!(near(found.likeliest[0].1, 0.5) && near(found.likeliest[1].1, 0.3), "{found:?}");
    }

    #[test]
    fn the_filters_of_a_large_vocabulary_keep_what_sorting_it_would() {
        let logits: Vec<f32> =
            (0..5000u32).map(|token| (token.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e6).collect();
        let greatest = logits.iter().copied().fold(f32::MIN, f32::max);
        let mut sorted: Vec<(u32, f64)> =
            (0..).zip(logits.iter().map(|logit| f64::from(logit - greatest).exp())).collect();
        sorted.sort_by(|left, right| right.1.total_cmp(&left.1));
        let total: f64 = sorted.iter().map(|one| one.1).sum();
        for top_p in [0.01, 0.3, 0.9, 0.999, 0.999_999] {
            let (mut sum, mut count) = (0.0, 0);
            while sum < top_p * total {
                sum += sorted[count].1;
                count += 1;
            }
            let found = kept(SamplerConfig { top_p, ..warm() }, &logits);
            assert!(found.len().abs_diff(count) <= 1 + count / 1000, "{top_p}: {} for {count}", found.len());
            let common = found.len().min(count);
            assert!(found[..common].iter().eq(sorted[..common].iter().map(|(token, _)| token)), "{top_p}");
        }
        assert!(kept(SamplerConfig { top_k: 50, ..warm() }, &logits).iter().eq(sorted[..50].iter().map(|one| &one.0)));
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
            (0..DRAWS).map(|_| sampler.sample(&logits, &[], &[]).unwrap()).collect::<Vec<_>>()
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
                assert_eq!(sampler(config).sample(logits, &[], &[]).unwrap_err().exit_code(), 1);
            }
        }
        assert_eq!(sampler(warm()).sample(&[f32::NEG_INFINITY, -1e30], &[], &[]).unwrap(), 1);
        assert_eq!(kept(SamplerConfig { temperature: 1e-6, ..warm() }, &[f32::MAX, f32::MIN, 0.0])[0], 0);
    }

    #[test]
    fn values_out_of_range_are_reported_together() {
        let config = SamplerConfig {
            temperature: f64::NAN,
            top_p: 1.1,
            min_p: -0.1,
            repetition_penalty: 0.0,
            frequency_penalty: 2.5,
            presence_penalty: f64::NAN,
            logit_bias: vec![(0, 100.0), (1, 101.0)],
            ..SamplerConfig::default()
        };
        let error = Sampler::new(config).unwrap_err();
        assert_eq!((error.exit_code(), error.problems().len()), (2, 7));
    }
}
