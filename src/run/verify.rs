//! The proof that a merged model computes what base and adapter compute together: the same texts go through both.

use std::fmt;
use std::path::Path;

use burn::tensor::{DType, Tensor};
use serde::Serialize;

use super::base::OpenBase;
use super::merge::Hardware;
use crate::adapter::host::HostAdapter;
use crate::data::Encoder;
use crate::error::{Error, Result, counted};
use crate::files::Dtype;
use crate::model::load::LoadOptions;
use crate::model::{BaseFiles, Decoder};
use crate::nn::Adapter;
use crate::quant::{Compute, Quant};

/// Texts of several kinds and scripts, for every model.
const TEXTS: [&str; 6] = [
    "Question: A train leaves at 09:40 and arrives at 13:05. How long does the journey take?\nAnswer: three hours and 25 minutes.",
    "The customer writes that the parcel has not arrived. Ask politely for the order number and promise a reply by Friday.",
    "def mean(values):\n    \"\"\"The arithmetic mean of a list of numbers.\"\"\"\n    return sum(values) / len(values)\n",
    "请用一句话说明光合作用：植物利用阳光，把水和二氧化碳变成糖和氧气。",
    "SELECT name, count(*) FROM orders WHERE year = 2024 GROUP BY name ORDER BY 2 DESC;",
    "Pourquoi le ciel est-il bleu ? Parce que l'air disperse davantage la lumière bleue que la lumière rouge.",
];
/// The most tokens that are compared: their logits are in memory at once.
const MAX_TOKENS: usize = 256;
/// The share of the adapter's own effect that a merge may lose to rounding.
const MAX_SHARE_OF_EFFECT: f64 = 0.05;

/// The closeness of a merged model to base and adapter, over the next-token distributions of some text. KL divergences are in nats,
/// a mean over tokens, from the distributions with the adapter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Agreement {
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
    /// Mean loss of base and adapter on the text.
    pub loss_with_adapter: f64,
    /// Mean loss of the merged model on the text.
    pub loss_merged: f64,
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tokens, kl_divergence, kl_divergence_of_base, loss_with_adapter, loss_merged, .. } = self;
        write!(
            f,
            "ran on {tokens} tokens of text: KL divergence {kl_divergence:.1e} from base and adapter (the adapter's own effect is \
             {kl_divergence_of_base:.1e}), loss {loss_merged:.4} and {loss_with_adapter:.4}, the same first choice for {:.0}%, \
             largest difference of a logit {:.1e}",
            self.top1_agreement * 100.0,
            self.largest_logit_difference
        )
    }
}

/// The distributions that base and adapter give, and what the base alone has in common with them.
pub struct Expected {
    texts: Vec<Vec<u32>>,
    /// Logits of every position of every text, `[tokens, vocabulary]`.
    logits: Vec<f32>,
    loss: f64,
    kl_divergence_of_base: f64,
    hardware: Hardware,
}

impl Expected {
    /// Runs the texts through `base`, quantised as `quant` says, with `adapter` (where there is one) and without.
    ///
    /// # Errors
    /// Those of loading and encoding.
    pub fn of(base: &OpenBase, adapter: Option<&HostAdapter>, quant: Quant, hardware: Hardware) -> Result<Self> {
        let texts = encoded(&base.encoder)?;
        let decoder = base.load(&hardware.device, hardware.compute, quant, |_, _| {})?;
        let attached = adapter.map(|adapter| adapter.attach(decoder.config(), &hardware.device)).transpose()?;
        let alone = all_logits(&decoder, &texts, None);
        let logits = attached.map(|attached| all_logits(&decoder, &texts, Some(&attached)));
        let logits = logits.unwrap_or_else(|| alone.clone());
        let measured = compare(&texts, &logits, &alone);
        Ok(Self {
            texts,
            loss: measured.loss_expected,
            kl_divergence_of_base: measured.kl_divergence,
            logits,
            hardware,
        })
    }

    /// Compares the model at `path` with these distributions.
    ///
    /// # Errors
    /// Failed: the distributions are further apart than the rounding of the stored type explains, and than a twentieth of the
    /// adapter's effect; the model cannot be loaded.
    pub fn check(&self, path: &Path) -> Result<Agreement> {
        let Hardware { device, compute } = &self.hardware;
        let files = BaseFiles::open(path)?;
        let rounding = rounding(&files, *compute);
        let options = LoadOptions { device: device.clone(), compute: *compute, quant: Quant::None };
        let decoder = Decoder::load(&files, &options, |_, _| {})?;
        let measured = compare(&self.texts, &self.logits, &all_logits(&decoder, &self.texts, None));
        let agreement = Agreement {
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

/// The texts as tokens, as many as are compared.
fn encoded(encoder: &Encoder) -> Result<Vec<Vec<u32>>> {
    let each = MAX_TOKENS / TEXTS.len();
    TEXTS.iter().map(|text| Ok(encoder.encode_raw_prompt(text)?.into_iter().take(each).collect())).collect()
}

fn all_logits(decoder: &Decoder, texts: &[Vec<u32>], adapter: Option<&Adapter>) -> Vec<f32> {
    let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
    let logits: Tensor<2> = decoder.logits(&texts.concat(), &lengths, adapter);
    logits.cast(DType::F32).into_data().iter::<f32>().collect()
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

/// Compares the logits `[tokens, vocabulary]` of two models on the same texts.
fn compare(texts: &[Vec<u32>], expected: &[f32], found: &[f32]) -> Measured {
    let tokens: usize = texts.iter().map(Vec::len).sum();
    let vocabulary = expected.len() / tokens.max(1);
    // The token that follows at each position; none at the end of a text.
    let following = texts.iter().flat_map(|text| text.iter().skip(1).map(|id| Some(*id)).chain([None]));
    let (mut largest, mut sum, mut divergence, mut agreeing) = (0f64, 0f64, 0f64, 0usize);
    let (mut loss_expected, mut loss_found, mut targets) = (0.0, 0.0, 0usize);
    let rows = expected.chunks(vocabulary.max(1)).zip(found.chunks(vocabulary.max(1)));
    for ((expected, found), next) in rows.zip(following) {
        let (expected_log_sum, found_log_sum) = (log_sum(expected), log_sum(found));
        for (expected, found) in expected.iter().zip(found) {
            let (expected, found) = (f64::from(*expected), f64::from(*found));
            largest = largest.max((expected - found).abs());
            sum += (expected - found).abs();
            let log_share = expected - expected_log_sum;
            divergence += log_share.exp() * (log_share - (found - found_log_sum));
        }
        agreeing += usize::from(likeliest(expected) == likeliest(found));
        if let Some(next) = next {
            loss_expected += expected_log_sum - f64::from(expected[next as usize]);
            loss_found += found_log_sum - f64::from(found[next as usize]);
            targets += 1;
        }
    }
    let mean = |sum: f64, count: usize| sum / count.max(1) as f64;
    Measured {
        tokens,
        // A difference that is not a number is no agreement.
        largest_difference: if sum.is_nan() { f64::NAN } else { largest },
        mean_difference: mean(sum, expected.len()),
        kl_divergence: mean(divergence, tokens),
        top1_agreement: mean(agreeing as f64, tokens),
        loss_expected: mean(loss_expected, targets),
        loss_found: mean(loss_found, targets),
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
        let texts = vec![vec![0, 1], vec![2]];
        let logits = [0.5, 1.0, -1.0, 0.0, 2.0, 0.0, 1.0, 1.0, 3.0];
        let same = compare(&texts, &logits, &logits);
        assert_eq!((same.kl_divergence, same.largest_difference, same.top1_agreement), (0.0, 0.0, 1.0));
        assert_eq!(same.loss_expected, same.loss_found);
        // The one target is token 1 after token 0.
        let expected_loss = (0.5f64.exp() + 1f64.exp() + (-1f64).exp()).ln() - 1.0;
        assert!((same.loss_expected - expected_loss).abs() < 1e-6);
        // A shift of all logits is the same distribution.
        let shifted = logits.map(|logit| logit + 3.0);
        assert!(compare(&texts, &logits, &shifted).kl_divergence.abs() < 1e-6);
        let mut other = logits;
        other.swap(3, 4);
        let measured = compare(&texts, &logits, &other);
        assert!(measured.kl_divergence > 0.1 && measured.largest_difference == 2.0 && measured.top1_agreement < 1.0);
    }
}
