//! The proof that a merged model computes what base and adapter compute together: the same texts go through both.

mod texts;

use std::fmt;
use std::path::Path;

use burn::tensor::Device;
use serde::Serialize;

use super::base::OpenBase;
use crate::adapter::host::HostAdapter;
use crate::data::Encoded;
use crate::error::{Error, Result, counted};
use crate::files::Dtype;
use crate::model::load::LoadOptions;
use crate::model::{BaseFiles, Decoder};
use crate::nn::Adapter;
use crate::ops::is_processor;
use crate::quant::{Compute, Quant};
pub use texts::{TextSource, Texts, TextsUsed};

/// Positions whose logits are made at once.
const ROWS_AT_ONCE: usize = 32;
/// The share of the adapter's own effect that a merge may lose to rounding.
const MAX_SHARE_OF_EFFECT: f64 = 0.05;

/// The closeness of a merged model to base and adapter, over the next-token distributions of some text. KL divergences are in nats,
/// a mean over tokens, from the distributions with the adapter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Agreement {
    /// The texts.
    pub texts: TextsUsed,
    /// Tokens whose distributions were compared.
    pub tokens: usize,
    /// The largest difference of a logit.
    pub largest_logit_difference: f64,
    /// The mean difference of a logit, without signs.
    pub mean_logit_difference: f64,
    /// KL divergence to the merged model.
    pub kl_divergence: f64,
    /// KL divergence to the base without the adapter: the adapter's effect.
    pub kl_divergence_of_base: f64,
    /// The largest KL divergence that the merge is accepted with.
    pub allowed_kl_divergence: f64,
    /// Share of tokens for which both predict the same next token first.
    pub top1_agreement: f64,
    /// Mean loss of base and adapter over the trained tokens of examples, or all of other texts.
    pub loss_with_adapter: f64,
    /// The same of the merged model.
    pub loss_merged: f64,
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { texts, tokens, kl_divergence, kl_divergence_of_base, loss_with_adapter, loss_merged, .. } = self;
        write!(
            f,
            "ran on {tokens} tokens of {texts}: KL divergence {kl_divergence:.1e} from base and adapter (the adapter's own effect is \
             {kl_divergence_of_base:.1e}), loss {loss_merged:.4} and {loss_with_adapter:.4}, the same first choice for {:.0}%, \
             largest difference of a logit {:.1e}",
            self.top1_agreement * 100.0,
            self.largest_logit_difference
        )
    }
}

/// The device and precision that losses are measured with.
#[derive(Debug, Clone)]
pub struct Hardware {
    /// The device that the model is loaded onto.
    pub device: Device,
    /// Precision of the frozen matrix products.
    pub compute: Compute,
}

impl Hardware {
    /// The options of loading `files`, quantised as `quant` says, with the least memory.
    pub(super) fn load_options(&self, files: &BaseFiles, quant: Quant) -> LoadOptions {
        let Self { device, compute } = self;
        // Blocks that stay as they are have the same values, and take less memory than their decoded ones.
        let quant = if quant == Quant::None && files.is_gguf() && is_processor(device) { Quant::Keep } else { quant };
        LoadOptions { device: device.clone(), compute: *compute, quant }
    }
}

/// The examination of a written model: where it runs, and on what.
#[derive(Debug, Clone)]
pub struct Examination {
    /// The device and precision.
    pub hardware: Hardware,
    /// The texts.
    pub texts: Texts,
}

/// The distributions that base and adapter give, and what the base alone has in common with them. Models are read a layer at a
/// time, so that memory holds a layer, the head and the logits of one of them.
pub struct Expected {
    examination: Examination,
    /// Logits of every position of every text, `[tokens, vocabulary]`.
    logits: Vec<f32>,
    loss: f64,
    kl_divergence_of_base: f64,
}

impl Expected {
    /// Runs the texts through `base`, quantised as `quant` says, with `adapter` (where there is one) and without.
    ///
    /// # Errors
    /// Those of loading.
    pub fn of(base: &OpenBase, adapter: Option<&HostAdapter>, quant: Quant, examination: Examination) -> Result<Self> {
        let device = &examination.hardware.device;
        let attached = adapter.map(|adapter| adapter.attach(base.files.config(), device)).transpose()?;
        // Without an adapter, the base is compared with itself.
        let adapters: Vec<Option<&Adapter>> = std::iter::once(None).chain(attached.as_ref().map(Some)).collect();
        let following = following(&examination.texts.sequences);
        let vocabulary = base.files.config().vocab_size;
        let (mut comparison, mut logits) = (Comparison::default(), Vec::with_capacity(following.len() * vocabulary));
        examination.stream(&base.files, quant, &adapters, &mut |first, found| {
            let (Some(alone), Some(expected)) = (found.first(), found.last()) else { return };
            comparison.add(vocabulary, expected, alone, &following[first..]);
            logits.extend_from_slice(expected);
        })?;
        let measured = comparison.measured();
        Ok(Self { loss: measured.loss_expected, kl_divergence_of_base: measured.kl_divergence, logits, examination })
    }

    /// Compares the model at `path` with these distributions.
    ///
    /// # Errors
    /// Failed: the distributions are further apart than the rounding of the stored type explains, and than a twentieth of the
    /// adapter's effect; the model cannot be loaded.
    pub fn check(&self, path: &Path) -> Result<Agreement> {
        self.compare(path).map_err(Error::into_failure)
    }

    fn compare(&self, path: &Path) -> Result<Agreement> {
        let Examination { hardware, texts } = &self.examination;
        let files = BaseFiles::open(path)?;
        let rounding = rounding(&files, hardware.compute);
        let following = following(&texts.sequences);
        let vocabulary = files.config().vocab_size;
        if vocabulary * following.len() != self.logits.len() {
            return Err(Error::failed("the merged model", format!("has another vocabulary, of {vocabulary} tokens")));
        }
        let mut comparison = Comparison::default();
        self.examination.stream(&files, Quant::None, &[None], &mut |first, found| {
            let Some(found) = found.first() else { return };
            comparison.add(vocabulary, &self.logits[first * vocabulary..], found, &following[first..]);
        })?;
        let measured = comparison.measured();
        let agreement = Agreement {
            texts: texts.used(),
            tokens: measured.tokens,
            largest_logit_difference: measured.largest_difference,
            mean_logit_difference: measured.mean_difference,
            kl_divergence: measured.kl_divergence,
            kl_divergence_of_base: self.kl_divergence_of_base,
            allowed_kl_divergence: rounding.max(MAX_SHARE_OF_EFFECT * self.kl_divergence_of_base),
            top1_agreement: measured.top1_agreement,
            loss_with_adapter: self.loss,
            loss_merged: measured.loss_found,
        };
        if agreement.kl_divergence <= agreement.allowed_kl_divergence {
            return Ok(agreement);
        }
        let message = format!(
            "does not compute what base and adapter compute: over {}, the KL divergence is {:.2e}, more than {:.2e}; the loss \
             is {:.4}, expected {:.4}",
            counted(agreement.tokens, "token"),
            agreement.kl_divergence,
            agreement.allowed_kl_divergence,
            agreement.loss_merged,
            agreement.loss_with_adapter
        );
        Err(Error::failed("the merged model", message).hint("nothing was kept; a type with more bits rounds less"))
    }
}

impl Examination {
    /// Runs the texts through `files`, quantised as `quant` says, with each of `adapters`; `visit` gets the logits.
    fn stream(
        &self,
        files: &BaseFiles,
        quant: Quant,
        adapters: &[Option<&Adapter>],
        visit: &mut dyn FnMut(usize, &[Vec<f32>]),
    ) -> Result<()> {
        let options = self.hardware.load_options(files, quant);
        let sequences = &self.texts.sequences;
        let ids: Vec<u32> = sequences.iter().flat_map(|text| text.ids.iter().copied()).collect();
        let lengths: Vec<usize> = sequences.iter().map(|text| text.ids.len()).collect();
        Decoder::stream_logits(files, &options, (&ids, &lengths), adapters, ROWS_AT_ONCE, visit)
    }
}

/// The KL divergence, in nats, that rounding alone may cause: generous bounds, since a mistake in a merge shows in multiples of
/// them (docs/merging.md has measured ones).
fn rounding(files: &BaseFiles, compute: Compute) -> f64 {
    let stored: Vec<Dtype> = files.tensor_names().filter_map(|name| files.dtype(name)).collect();
    if stored.iter().any(|dtype| !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16)) {
        0.5
    } else if compute == Compute::Bf16 || stored.contains(&Dtype::Bf16) {
        5e-3
    } else if stored.contains(&Dtype::F16) {
        5e-4
    } else {
        1e-6
    }
}

/// The token that follows at each position and is trained; none at the end of a text.
fn following(texts: &[Encoded]) -> Vec<Option<u32>> {
    let of_text = |text: &Encoded| {
        let next = text.ids.iter().zip(&text.trained).skip(1);
        next.map(|(id, trained)| trained.then_some(*id)).chain([None]).take(text.ids.len()).collect::<Vec<_>>()
    };
    texts.iter().flat_map(of_text).collect()
}

/// The comparison of two sets of distributions.
struct Measured {
    tokens: usize,
    largest_difference: f64,
    mean_difference: f64,
    kl_divergence: f64,
    top1_agreement: f64,
    loss_expected: f64,
    loss_found: f64,
}

/// The sums of a comparison, position by position.
#[derive(Debug, Default)]
struct Comparison {
    tokens: usize,
    values: usize,
    largest: f64,
    sum: f64,
    divergence: f64,
    agreeing: usize,
    targets: usize,
    loss_expected: f64,
    loss_found: f64,
}

impl Comparison {
    /// Compares the logits `[positions, vocabulary]` of two models at the next positions, as many as both have; `following` has the
    /// token after each.
    fn add(&mut self, vocabulary: usize, expected: &[f32], found: &[f32], following: &[Option<u32>]) {
        let rows = expected.chunks(vocabulary).zip(found.chunks(vocabulary));
        for ((expected, found), next) in rows.zip(following) {
            let (expected_log_sum, found_log_sum) = (log_sum(expected), log_sum(found));
            for (expected, found) in expected.iter().zip(found) {
                let (expected, found) = (f64::from(*expected), f64::from(*found));
                self.largest = self.largest.max((expected - found).abs());
                self.sum += (expected - found).abs();
                let log_share = expected - expected_log_sum;
                self.divergence += log_share.exp() * (log_share - (found - found_log_sum));
            }
            self.tokens += 1;
            self.values += expected.len();
            self.agreeing += usize::from(likeliest(expected) == likeliest(found));
            if let Some(next) = *next {
                self.loss_expected += expected_log_sum - f64::from(expected[next as usize]);
                self.loss_found += found_log_sum - f64::from(found[next as usize]);
                self.targets += 1;
            }
        }
    }

    fn measured(&self) -> Measured {
        let mean = |sum: f64, count: usize| sum / count.max(1) as f64;
        Measured {
            tokens: self.tokens,
            // A difference that is not a number is no agreement.
            largest_difference: if self.sum.is_nan() { f64::NAN } else { self.largest },
            mean_difference: mean(self.sum, self.values),
            kl_divergence: mean(self.divergence, self.tokens),
            top1_agreement: mean(self.agreeing as f64, self.tokens),
            loss_expected: mean(self.loss_expected, self.targets),
            loss_found: mean(self.loss_found, self.targets),
        }
    }
}

/// `log Σ exp`.
fn log_sum(logits: &[f32]) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |largest, logit| largest.max(*logit));
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    f64::from(largest) + sum.ln()
}

fn likeliest(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_distributions_agree_and_others_do_not() {
        // The one trained token is 1, after 0.
        let following = [Some(1), None, None];
        let logits = [0.5, 1.0, -1.0, 0.0, 2.0, 0.0, 1.0, 1.0, 3.0];
        let compare = |expected: &[f32], found: &[f32]| {
            let mut comparison = Comparison::default();
            comparison.add(3, &expected[..3], &found[..3], &following);
            comparison.add(3, &expected[3..], &found[3..], &following[1..]);
            comparison.measured()
        };
        let same = compare(&logits, &logits);
        assert_eq!((same.kl_divergence, same.largest_difference, same.top1_agreement), (0.0, 0.0, 1.0));
        assert_eq!((same.loss_expected, same.tokens), (same.loss_found, 3));
        let expected_loss = (0.5f64.exp() + 1f64.exp() + (-1f64).exp()).ln() - 1.0;
        assert!((same.loss_expected - expected_loss).abs() < 1e-6);
        // A shift of all logits is the same distribution.
        let shifted = logits.map(|logit| logit + 3.0);
        assert!(compare(&logits, &shifted).kl_divergence.abs() < 1e-6);
        let mut other = logits;
        other.swap(3, 4);
        let measured = compare(&logits, &other);
        assert!(measured.kl_divergence > 0.1 && measured.largest_difference == 2.0 && measured.top1_agreement < 1.0);
    }

    #[test]
    fn the_loss_is_that_of_the_trained_tokens() {
        let text = |ids: &[u32], trained: &[bool]| Encoded {
            ids: ids.to_vec(),
            trained: trained.to_vec(),
            untrained_turns: 0,
            weight: 1.0,
            judged: crate::data::Judged::Not,
        };
        let texts = [text(&[5, 6, 7], &[true, false, true]), text(&[8], &[true]), text(&[], &[])];
        assert_eq!(following(&texts), [None, Some(7), None, None]);
    }
}
