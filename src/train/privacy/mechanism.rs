//! The private part of a step of DP-SGD (Abadi et al. 2016): which examples it has, the bound on the gradient of each, and the noise.
//!
//! `g = (Σ gᵢ · min(1, C / ‖gᵢ‖) + N(0, σ²C²)) / B` over the sampled examples `i`, with the gradient `gᵢ` of the mean loss of an
//! example over all trained matrices together, and the *expected* number `B` of examples of a step.
//!
//! Sample and noise of a step follow from a secret key and the number of the step, so that a step that is computed again, after a
//! crash or on another rank, is the same one, and no second noise on the same sum gives anything away.

use std::f64::consts::TAU;
use std::fmt;

use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use sha2::{Digest, Sha256};

use crate::nn::Adapter;
use crate::train::clip::{norm_of, scaled_down};

/// The secret that sample and noise follow from. Whoever has it can take the noise away again.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

/// The secret does not get into any message.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// The key that follows from the secret of a run and from all that decides what the run learns. Another base, data set or recipe
    /// has other noise, so that no two runs of one secret can be subtracted from each other.
    pub fn of(secret: &[u8], identity: &str) -> Self {
        Self(hash(&[secret, identity.as_bytes()]))
    }

    /// The generator of one purpose, its stream by the step.
    fn generator(&self, purpose: &str, stream: u64) -> ChaCha20Rng {
        let mut generator = ChaCha20Rng::from_seed(hash(&[&self.0, purpose.as_bytes()]));
        generator.set_stream(stream);
        generator
    }
}

/// A SHA-256 over parts with their lengths.
fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// The private part of the steps of a run.
#[derive(Debug, Clone)]
pub struct Mechanism {
    /// The largest norm of the gradient of an example: `C`.
    pub clip_norm: f64,
    /// The standard deviation of the noise over `clip_norm`: `σ`. 0 clips and adds nothing, which protects nobody.
    pub noise_multiplier: f64,
    /// The expected number of examples of a step: `B`.
    pub batch_examples: usize,
    /// The secret.
    pub key: Key,
}

impl Mechanism {
    /// The steps of an epoch over `examples` examples: as many as would show each of them once, each with a Poisson sample of them. Every
    /// example is a micro-batch of its own.
    pub fn steps(&self, examples: usize, epoch: u64) -> Vec<Vec<Vec<usize>>> {
        let steps = examples.div_ceil(self.batch_examples.max(1)) as u64;
        (0..steps).map(|step| self.sample(examples, epoch * steps + step)).collect()
    }

    /// The examples of a step, each alone and each with the probability `B / examples`.
    fn sample(&self, examples: usize, step: u64) -> Vec<Vec<usize>> {
        let mut generator = self.key.generator("sample", step);
        let (batch, examples) = (self.batch_examples as u128, examples as u128);
        // A draw of 64 bits times the number of examples lies below `B · 2^64` with that probability, to 2^-64.
        let is_drawn = |_: &u128| u128::from(generator.next_u64()) * examples < batch << 64;
        (0..examples).filter(is_drawn).map(|index| vec![index as usize]).collect()
    }

    /// The gradients of one example, scaled down to `clip_norm` where their norm is greater; `None` for gradients that are not finite, which
    /// count for nothing.
    pub fn clipped(&self, adapter: &Adapter, gradients: GradientsParams) -> Option<GradientsParams> {
        let norm = norm_of(adapter, &gradients);
        norm.is_finite().then(|| scaled_down(adapter, gradients, norm, self.clip_norm))
    }

    /// The gradients of a step: the sum over its examples, which may be none, with the noise that belongs to the seed of the step, over the
    /// expected number of examples; and their norm. No two steps of a run have the same seed.
    pub fn noisy(
        &self,
        adapter: &Adapter,
        mut sums: GradientsParams,
        seed: u64,
        device: &Device,
    ) -> (GradientsParams, f64) {
        let mut noise = Normal { generator: self.key.generator("noise", seed), second: None };
        let (scale, count) = (self.noise_multiplier * self.clip_norm, self.batch_examples as f64);
        let (mut gradients, mut squares) = (GradientsParams::new(), 0.0);
        for matrix in adapter.matrices() {
            let dims = matrix.dims();
            let mut values = match sums.remove::<2>(matrix.id) {
                Some(sum) => sum.into_data().iter::<f32>().collect(),
                None => vec![0f32; dims.iter().product()],
            };
            for value in &mut values {
                *value = ((f64::from(*value) + scale * noise.draw()) / count) as f32;
                squares += f64::from(*value).powi(2);
            }
            gradients.register(matrix.id, Tensor::<2>::from_data(TensorData::new(values, dims), device));
        }
        (gradients, squares.sqrt())
    }
}

/// Standard normal values by Box and Muller, from 64 bits each.
struct Normal {
    generator: ChaCha20Rng,
    /// The second value of a pair.
    second: Option<f64>,
}

impl Normal {
    fn draw(&mut self) -> f64 {
        if let Some(value) = self.second.take() {
            return value;
        }
        /// The distance of two uniform values of 53 bits.
        const STEP: f64 = 1.0 / (1u64 << 53) as f64;
        let mut uniform = || ((self.generator.next_u64() >> 11) as f64 + 0.5) * STEP;
        let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), TAU * uniform());
        self.second = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mechanism(batch_examples: usize) -> Mechanism {
        Mechanism { clip_norm: 1.0, noise_multiplier: 1.0, batch_examples, key: Key::of(b"secret", "run") }
    }

    #[test]
    fn a_sample_is_a_poisson_sample_by_key_and_step() {
        let drawn = |step| mechanism(20).sample(200, step);
        assert_eq!(drawn(3), drawn(3));
        assert_ne!(drawn(3), drawn(4));
        let other = Mechanism { key: Key::of(b"secret", "another run"), ..mechanism(20) };
        assert_ne!(drawn(3), other.sample(200, 3));
        let (mut by_example, mut sizes) = (vec![0u32; 200], Vec::new());
        for step in 0..2000 {
            let sample = drawn(step);
            sizes.push(sample.len() as f64);
            sample.concat().into_iter().for_each(|index| by_example[index] += 1);
        }
        // Binomial: mean 20 and variance 18 of the sizes, mean 200 and standard deviation 13.4 of each example.
        let mean = sizes.iter().sum::<f64>() / 2000.0;
        let variance = sizes.iter().map(|size| (size - mean).powi(2)).sum::<f64>() / 1999.0;
        assert!((mean - 20.0).abs() < 0.4 && (variance - 18.0).abs() < 2.5, "{mean}, {variance}");
        assert!(by_example.iter().all(|count| (140..260).contains(count)), "{by_example:?}");
        assert_eq!(mechanism(5).sample(5, 0).concat(), [0, 1, 2, 3, 4], "everything, where all are expected");
    }

    #[test]
    fn an_epoch_has_as_many_steps_as_without_privacy() {
        let steps = mechanism(8).steps(20, 0);
        assert_eq!(steps.len(), 3);
        assert_eq!(mechanism(8).steps(20, 2)[1], mechanism(8).sample(20, 7));
    }

    #[test]
    fn the_noise_is_normal() {
        let mut noise = Normal { generator: mechanism(1).key.generator("noise", 5), second: None };
        let values: Vec<f64> = (0..100_000).map(|_| noise.draw()).collect();
        let moment = |power: i32| values.iter().map(|value| value.powi(power)).sum::<f64>() / values.len() as f64;
        // Standard deviations of the four means: 0.003, 0.004, 0.012, 0.031.
        let moments = [moment(1), moment(2), moment(3), moment(4)];
        for (found, (expected, tolerance)) in moments.iter().zip([(0.0, 0.013), (1.0, 0.018), (0.0, 0.05), (3.0, 0.13)])
        {
            assert!((found - expected).abs() < tolerance, "{moments:?}");
        }
        let beyond = values.iter().filter(|value| value.abs() > 1.959_964).count();
        assert!((4700..5300).contains(&beyond), "{beyond} of 5000");
    }

    #[test]
    fn a_key_is_never_shown() {
        assert_eq!(format!("{:?}", Key::of(b"secret", "")), "Key(…)");
    }
}
