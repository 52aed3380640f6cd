//! The speed of this machine: a few training steps of small made-up models, timed.
//!
//! A step is timed rather than a product, because norms, attention and the adapter take their share, and because packed weights are decoded
//! on the way. Two widths tell how the speed grows with the model: the narrow one is that of SmolLM2 135M, the wide one that of Llama 3.2 1B.

use std::time::Instant;

use burn::module::Module;
use burn::tensor::Device;
use rayon::prelude::*;
use serde::Serialize;

use super::catalogue::Candidate;
use super::cost::{head_operations, layer_operations};
use super::examples::set_of;
use crate::adapter::spec::AdapterSpec;
use crate::device;
use crate::error::Result;
use crate::model::decoder::Recompute;
use crate::model::load::LoadOptions;
use crate::model::{BaseFiles, Batch, Decoder, ModelConfig};
use crate::quant::{Compute, Quant};
use crate::run::init::MICRO_BATCH_SEQS;
use crate::train::TrainSettings;
use crate::train::evaluate::evaluate;
use crate::train::step::AdapterTrainer;

/// Steps that are timed after one that is not; the fastest counts.
const STEPS: usize = 2;
/// Tokens of a step, at most.
const MAX_TOKENS: usize = 1024;
/// Layers of the narrow model, few and many: the head takes the same time in both.
const LAYERS: [usize; 2] = [2, 6];
/// The vocabulary of the wide model: its own would take longer than its layers.
const WIDE_VOCABULARY: usize = 4096;
/// Bytes that are read to measure the bandwidth of the memory.
const READ_BYTES: usize = 256 << 20;

/// The speeds of this machine.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: Option<String>,
    /// Threads that compute.
    pub threads: usize,
    /// Operations a second in the layers of a narrow and of a wide model, by [`Speed`].
    pub layers: [Speed; 2],
    /// Operations a second in the head.
    pub head: f64,
    /// The time of a step that computes activations again over that of one that keeps them, in the layers.
    pub recompute: f64,
    /// The time of an evaluation by token over that of training.
    pub evaluation: f64,
    /// Bytes a second that are read from memory.
    pub bandwidth: f64,
    /// The time that measuring took, in seconds.
    pub seconds: f64,
}

/// Operations a second in the layers of a model of some width.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Speed {
    /// The width.
    pub hidden_size: usize,
    /// With weights in bf16.
    pub dense: f64,
    /// With weights in NF4.
    pub packed: f64,
}

impl Machine {
    /// Times steps of sequences of these lengths, as far as they are few.
    ///
    /// # Errors
    /// A weight cannot be placed on the device.
    pub(super) fn measure(
        device: &Device,
        (narrow, wide): (&Candidate, &Candidate),
        lengths: &[(usize, usize)],
    ) -> Result<Self> {
        let began = Instant::now();
        let lengths = usual(lengths);
        let timed = |config: &ModelConfig, quant, recompute| timed(device, config, quant, recompute, &lengths);
        let of_layers = |layers| ModelConfig { layers, ..narrow.config.clone() };
        let [few, many] = LAYERS.map(of_layers);
        let few_seconds = timed(&few, Quant::None, Recompute::None)?.step;
        let dense = timed(&many, Quant::None, Recompute::None)?;
        let operations = layer_operations(&narrow.config, &lengths);
        let of_head = head_operations(&narrow.config, &lengths);
        // A busy machine makes nonsense of differences: no part is taken for more than three times as fast or as slow as the whole.
        let an_operation = dense.step / (LAYERS[1] as f64 * operations + of_head);
        let plausible = |seconds: f64, operations: f64| {
            seconds.clamp(an_operation * operations / 3.0, an_operation * operations * 3.0)
        };
        let per_layer = plausible((dense.step - few_seconds) / (LAYERS[1] - LAYERS[0]) as f64, operations);
        let head_seconds = plausible(dense.step - per_layer * LAYERS[1] as f64, of_head);
        let in_layers = |seconds: f64| (seconds - head_seconds).max(0.1 * seconds) / LAYERS[1] as f64;
        let again = in_layers(timed(&many, Quant::None, Recompute::Block)?.step);
        let packed = in_layers(timed(&many, Quant::Nf4, Recompute::None)?.step);
        let head = of_head / head_seconds;
        let narrow_speed = Speed {
            hidden_size: narrow.config.hidden_size,
            dense: operations / per_layer,
            packed: operations / packed,
        };

        let config = ModelConfig { layers: 1, vocab_size: WIDE_VOCABULARY, ..wide.config.clone() };
        let head_seconds = head_operations(&config, &lengths) / head;
        let operations = layer_operations(&config, &lengths);
        let of_layer = |quant| -> Result<f64> {
            let seconds = timed(&config, quant, Recompute::None)?.step;
            Ok(operations / (seconds - head_seconds).max(0.5 * seconds))
        };
        let wide_speed =
            Speed { hidden_size: config.hidden_size, dense: of_layer(Quant::None)?, packed: of_layer(Quant::Nf4)? };
        Ok(Self {
            processor: device::processor(),
            threads: rayon::current_num_threads(),
            layers: [narrow_speed, wide_speed],
            head,
            recompute: (again / per_layer).max(1.0),
            evaluation: dense.evaluation / dense.step,
            bandwidth: bandwidth(),
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    /// Operations a second in the layers of a model: between the two widths by the logarithm, beyond them those of the nearer one.
    pub(super) fn layer_speed(&self, hidden_size: usize, quant: Quant) -> f64 {
        let [narrow, wide] = &self.layers;
        let of = |speed: &Speed| if quant == Quant::None { speed.dense } else { speed.packed };
        let logarithm = |width: usize| (width as f64).ln();
        let share = (logarithm(hidden_size) - logarithm(narrow.hidden_size))
            / (logarithm(wide.hidden_size) - logarithm(narrow.hidden_size));
        of(narrow) + share.clamp(0.0, 1.0) * (of(wide) - of(narrow))
    }
}

/// The sequences of a usual micro-batch: those in the middle of each quarter of the lengths, cut where they make more than a short step.
fn usual(lengths: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let mut sorted = lengths.to_vec();
    sorted.sort_unstable();
    let middle = |part: usize| sorted.get((2 * part + 1) * sorted.len() / (2 * MICRO_BATCH_SEQS)).copied();
    let mut left = MAX_TOKENS;
    let mut kept = Vec::new();
    for (tokens, trained) in (0..MICRO_BATCH_SEQS).filter_map(middle) {
        let tokens = tokens.max(2).min(left);
        if tokens < 2 {
            break;
        }
        kept.push((tokens, trained.clamp(1, tokens - 1)));
        left -= tokens;
    }
    kept
}

/// The fastest step and an evaluation of the same sequences, in seconds.
struct Timed {
    step: f64,
    evaluation: f64,
}

fn timed(
    device: &Device,
    config: &ModelConfig,
    quant: Quant,
    recompute: Recompute,
    lengths: &[(usize, usize)],
) -> Result<Timed> {
    let base = BaseFiles::synthetic(config.clone());
    let options = LoadOptions { device: device.clone(), compute: Compute::Bf16, quant };
    let decoder = Decoder::load(&base, &options, |_, _| {})?;
    let spec = AdapterSpec { targets: super::TARGETS, ..AdapterSpec::default() };
    let adapter = spec.initialise(&base, quant, 0)?.attach(config, &device.clone().autodiff())?;
    let settings = TrainSettings::default();
    let mut trainer = AdapterTrainer::new(adapter, settings.objective(), &settings, recompute);
    let mut sequences = set_of(lengths).sequences;
    let ids = sequences.iter_mut().flat_map(|sequence| &mut sequence.ids);
    ids.enumerate().for_each(|(index, id)| *id = (index * 7919 % config.vocab_size) as u32);
    let batch = [Batch::join(sequences.iter().flat_map(|sequence| sequence.sequences()))];
    let mut step = f64::INFINITY;
    for index in 0..=STEPS {
        let began = Instant::now();
        trainer.step(&decoder, &batch, 0.0, index as u64);
        if index > 0 {
            step = step.min(began.elapsed().as_secs_f64());
        }
    }
    let began = Instant::now();
    evaluate(&decoder, Some(&trainer.adapter.valid()), &sequences, &mut |_| Ok(()))?;
    Ok(Timed { step, evaluation: began.elapsed().as_secs_f64() })
}

/// Bytes a second that all threads read from memory together; the faster of two times.
fn bandwidth() -> f64 {
    const PIECE: usize = 1 << 16;
    let values = vec![1u64; READ_BYTES / size_of::<u64>()];
    let seconds = (0..2).map(|_| {
        let began = Instant::now();
        let sum: u64 = values.par_chunks(PIECE).map(|piece| piece.iter().copied().fold(0, u64::wrapping_add)).sum();
        std::hint::black_box(sum);
        began.elapsed().as_secs_f64()
    });
    READ_BYTES as f64 / seconds.fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_lies_between_the_two_widths() {
        let speed = |hidden_size, dense, packed| Speed { hidden_size, dense, packed };
        let machine = Machine {
            processor: None,
            threads: 1,
            layers: [speed(512, 100.0, 50.0), speed(2048, 200.0, 180.0)],
            head: 1.0,
            recompute: 1.5,
            evaluation: 0.4,
            bandwidth: 1.0,
            seconds: 1.0,
        };
        let of = |width, quant| machine.layer_speed(width, quant);
        assert_eq!([of(256, Quant::None), of(512, Quant::None), of(4096, Quant::None)], [100.0, 100.0, 200.0]);
        assert!((of(1024, Quant::None) - 150.0).abs() < 1e-9);
        assert!((of(1024, Quant::Nf4Double) - 115.0).abs() < 1e-9);
    }

    #[test]
    fn a_usual_step_has_short_and_long_sequences_and_is_quick() {
        let many: Vec<(usize, usize)> = (1..=80).map(|tokens| (tokens, 1)).collect();
        assert_eq!(usual(&many), [(11, 1), (31, 1), (51, 1), (71, 1)]);
        assert_eq!(usual(&[(600, 100), (600, 500), (9, 3)]), [(9, 3), (600, 100), (415, 100)]);
        assert_eq!(usual(&[(5, 9), (1, 0)]), [(2, 1), (2, 1), (5, 4), (5, 4)]);
    }
}
