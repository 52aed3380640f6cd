//! Training against torch.optim.AdamW over a PEFT model: losses, gradient norms and the final adapter.

use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use burnish::adapter::host::HostAdapter;
use burnish::data::{Encoded, Judged};
use burnish::model::decoder::Recompute;
use burnish::model::load::{Compute, LoadOptions, Quant};
use burnish::model::{BaseFiles, Batch, Decoder};
use burnish::nn::{Noise, token_numbers};
use burnish::train::evaluate::{evaluate, evaluate_at_once};
use burnish::train::objective::{Objective, SequenceLoss, Sft, Share, StepSize};
use burnish::train::step::{AdapterTrainer, Known, StepReport};
use burnish::train::{Alone, Batching, Event, Job, Layout, Part, Schedule, ScheduleKind, TrainSettings, fit};
use serde_json::Value;

use crate::model::{fixtures, load, turn};

fn batch(micro_batch: &Value) -> Batch {
    let mut batch = Batch { ids: Vec::new(), lengths: Vec::new(), trained: Vec::new() };
    for sequence in micro_batch.as_array().expect("sequences") {
        let ids = sequence["ids"].as_array().expect("ids");
        batch.ids.extend(ids.iter().map(|id| id.as_u64().expect("an id") as u32));
        let trained = sequence["trained"].as_array().expect("trained").iter();
        batch
            .trained
            .extend(trained.map(|trained| trained.as_bool().or(trained.as_u64().map(|t| t == 1)).expect("a mask")));
        batch.lengths.push(ids.len());
    }
    batch
}

fn close(ours: f64, theirs: f64, tolerance: f64, what: &str) {
    assert!((ours - theirs).abs() <= tolerance * theirs.abs().max(1.0), "{what}: {ours}, not {theirs}");
}

/// A recorded run: where it starts, how it is optimised, and what torch and PEFT came to at every step.
pub struct Run {
    pub base: PathBuf,
    pub start: HostAdapter,
    schedule: Schedule,
    weight_decay: f64,
    max_grad_norm: f64,
    pub steps: Vec<Value>,
}

impl Run {
    pub fn read(folder: &Path) -> Self {
        Self::of(folder, HostAdapter::load(&folder.join("start")).expect("an adapter"))
    }

    /// The run in `folder`, which begins with the adapter `start`.
    pub fn of(folder: &Path, start: HostAdapter) -> Self {
        let text = std::fs::read_to_string(folder.join("run.json")).expect("run.json");
        let run: Value = serde_json::from_str(&text).expect("JSON");
        let steps = run["steps"].as_array().expect("steps").clone();
        let schedule = Schedule {
            kind: match run["schedule"].as_str().expect("a schedule") {
                "linear" => ScheduleKind::Linear,
                "cosine" => ScheduleKind::Cosine,
                _ => ScheduleKind::Constant,
            },
            peak: run["learning_rate"].as_f64().expect("a rate"),
            warmup_steps: run["warmup_steps"].as_u64().expect("a number"),
            decay_steps: 0,
            total_steps: steps.len() as u64,
        };
        Self {
            base: Path::new(env!("CARGO_MANIFEST_DIR")).join(run["base"].as_str().expect("a base")),
            start,
            schedule,
            weight_decay: run["optimizer"]["weight_decay"].as_f64().expect("a number"),
            max_grad_norm: run["clip"].as_f64().unwrap_or(0.0),
            steps,
        }
    }

    /// Runs it again on the decoder's device: a report for each step, and the adapter it ends with.
    pub fn replay(&self, decoder: &Decoder, recompute: Recompute) -> (Vec<StepReport>, HostAdapter) {
        let settings = TrainSettings {
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm,
            ..TrainSettings::default()
        };
        let device = decoder.device().clone().autodiff();
        let adapter = self.start.attach(decoder.config(), &device).expect("fits");
        let mut trainer = AdapterTrainer::new(adapter, Box::new(Sft), &settings, recompute);
        let reports = self.steps.iter().enumerate().map(|(index, step)| {
            let batches: Vec<Batch> = step["micro_batches"].as_array().expect("batches").iter().map(batch).collect();
            trainer.step(decoder, &batches, self.schedule.rate(index as u64), 0)
        });
        let reports = reports.collect();
        (reports, self.start.with_values(decoder.config(), &trainer.adapter.valid()))
    }
}

#[test]
fn eight_steps_follow_torch_and_peft() {
    let _turn = turn();
    for folder in fixtures("training") {
        let run = Run::read(&folder);
        let decoder = load(&run.base, Compute::F32);
        for recompute in [Recompute::None, Recompute::Block] {
            let (reports, ours) = run.replay(&decoder, recompute);
            for (index, (report, step)) in reports.iter().zip(&run.steps).enumerate() {
                let place = format!("{} {recompute:?} step {index}", folder.display());
                let rate = run.schedule.rate(index as u64);
                close(rate, step["learning_rate"].as_f64().expect("a rate"), 1e-9, &place);
                assert_eq!(report.trained_tokens as u64, step["trained_tokens"].as_u64().expect("tokens"), "{place}");
                close(report.loss, step["loss"].as_f64().expect("a loss"), 1e-4, &place);
                close(report.grad_norm, step["grad_norm"].as_f64().expect("a norm"), 1e-3, &place);
            }
            let theirs = HostAdapter::load(&folder.join("final")).expect("an adapter");
            assert!(ours.vectors().count() == theirs.vectors().count(), "{}", folder.display());
            for ((name, ours), (_, theirs)) in ours.vectors().zip(theirs.vectors()) {
                for (ours, theirs) in ours.iter().zip(theirs) {
                    // Adam divides by the root of the squared gradient: a tiny gradient's sign is worth a step.
                    assert!((ours - theirs).abs() <= 2e-3, "{} {name}: {ours}, not {theirs}", folder.display());
                }
            }
        }
    }
}

#[test]
fn training_changes_not_one_byte_of_the_base() {
    let _turn = turn();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/training/seven_and_head");
    let text = std::fs::read_to_string(folder.join("run.json")).expect("run.json");
    let run: Value = serde_json::from_str(&text).expect("JSON");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(run["base"].as_str().expect("a base"));
    let base = BaseFiles::open(&path).expect("a base");
    let bytes = || -> Vec<Vec<u8>> {
        base.tensor_names().map(|name| base.tensor(name).expect("a tensor").bytes.to_vec()).collect()
    };
    // Dense weights lie in the mapped file; quantised ones only in memory, where the logits tell.
    for quant in [Quant::None, Quant::Nf4Double, Quant::Int8] {
        let options = LoadOptions { device: Device::flex(), compute: Compute::F32, quant };
        let decoder = Decoder::load(&base, &options, |_, _| {}).expect("loads");
        let ids: Vec<u32> = (0..20).collect();
        let logits = || -> Vec<f32> { decoder.logits(&ids, &[20], None).into_data().iter::<f32>().collect() };
        let (bytes_before, logits_before) = (bytes(), logits());
        let adapter = HostAdapter::load(&folder.join("start")).expect("an adapter");
        let adapter = adapter.attach(decoder.config(), &Device::flex().autodiff()).expect("fits");
        let settings = TrainSettings { weight_decay: 0.1, ..TrainSettings::default() };
        let mut trainer = AdapterTrainer::new(adapter, Box::new(Sft), &settings, Recompute::None);
        for step in run["steps"].as_array().expect("steps") {
            let batches: Vec<Batch> = step["micro_batches"].as_array().expect("batches").iter().map(batch).collect();
            let report = trainer.step(&decoder, &batches, 1e-2, 0);
            assert!(report.loss.is_finite() && report.grad_norm > 0.0);
        }
        assert_eq!(bytes(), bytes_before, "{quant:?}");
        assert_eq!(logits(), logits_before, "{quant:?}");
    }
}

/// Sequences of the vocabulary's first tokens, every token but the first third trained.
fn sequences(lengths: &[usize]) -> Vec<Encoded> {
    let sequence = |(index, &length): (usize, &usize)| Encoded {
        ids: (0..length).map(|position| ((7 * index + 5 * position) % 60 + 3) as u32).collect(),
        trained: (0..length).map(|position| position >= length / 3).collect(),
        untrained_turns: 0,
        weight: 1.0,
        judged: Judged::Not,
    };
    lengths.iter().enumerate().map(sequence).collect()
}

#[test]
fn a_long_sequence_is_evaluated_piece_by_piece() {
    let _turn = turn();
    let run = Run::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/training/seven_and_head"));
    let decoder = load(&run.base, Compute::F32);
    let adapter = run.start.attach(decoder.config(), decoder.device()).expect("fits");
    let sequences = sequences(&[40, 9, 33, 64]);
    let mut done = Vec::new();
    let whole = evaluate(&decoder, Some(&adapter), &sequences, &mut |count| {
        done.push(count);
        Ok(())
    })
    .expect("evaluated");
    assert_eq!(done.last(), Some(&sequences.len()));
    for tokens_at_once in [1, 7, 16, 33, 50] {
        let pieces = evaluate_at_once(&decoder, Some(&adapter), &sequences, tokens_at_once, &mut |_| Ok(()));
        let pieces = pieces.expect("evaluated");
        for (piece, whole) in pieces.iter().zip(&whole) {
            assert_eq!((piece.tokens, piece.correct_tokens), (whole.tokens, whole.correct_tokens));
            let off = (piece.loss_sum / whole.loss_sum - 1.0).abs();
            assert!(off < 1e-5, "{tokens_at_once}: {} instead of {}", piece.loss_sum, whole.loss_sum);
        }
    }
}

#[test]
fn without_validation_data_the_adapter_is_reported_as_it_goes() {
    let _turn = turn();
    let run = Run::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/training/seven_and_head"));
    let decoder = load(&run.base, Compute::F32);
    let train = sequences(&[12; 10]);
    let settings = TrainSettings { micro_batch_seqs: 2, max_steps: Some(5), eval_steps: 2, ..TrainSettings::default() };
    let job = Job {
        decoder: &decoder,
        start: &run.start,
        train: &train,
        augment: None,
        valid: &[],
        exact_match: None,
        settings: &settings,
        batching: Batching { micro_batch_seqs: 2, packed_tokens: None, accumulate_steps: 1, seed: 0 },
        layout: Layout { part: Part::MicroBatch, recomputed_layers: 0, parts_a_pass: None },
        privacy: None,
        state: None,
        ranks: &Alone,
    };
    let mut kept = Vec::new();
    let outcome = fit(
        &job,
        || false,
        |event| {
            if let Event::Best { step, adapter } = event {
                kept.push((step, adapter.clone()));
            }
            Ok(())
        },
    );
    let outcome = outcome.expect("trained");
    assert_eq!(kept.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [2, 4, 5]);
    assert!(kept[0].1 != kept[1].1 && kept[2].1 == outcome.adapter && outcome.best_step == 5);
}

/// One step from the start of a recorded run: what it reported, and the adapter after it.
fn one_step(settings: &TrainSettings, micro_batches: &[Batch]) -> (StepReport, HostAdapter) {
    let run = Run::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/training/seven_and_head"));
    let decoder = load(&run.base, Compute::F32);
    let adapter = run.start.attach(decoder.config(), &decoder.device().clone().autodiff()).expect("fits");
    let mut trainer = AdapterTrainer::new(adapter, Box::new(Sft), settings, Recompute::None);
    let report = trainer.step(&decoder, micro_batches, 1e-3, 7);
    (report, run.start.with_values(decoder.config(), &trainer.adapter.valid()))
}

/// A model, and a trainer of an adapter that changes something and has dropout.
fn trainer_with_dropout(settings: &TrainSettings) -> (Decoder, AdapterTrainer) {
    let run = Run::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/training/seven_and_head"));
    let decoder = load(&run.base, Compute::F32);
    let mut start = HostAdapter { dropout: 0.3, ..run.start };
    for pair in start.pairs.values_mut() {
        pair.b.iter_mut().enumerate().for_each(|(index, value)| *value = (index % 7) as f32 * 0.05 - 0.15);
    }
    let adapter = start.attach(decoder.config(), &decoder.device().clone().autodiff()).expect("fits");
    let trainer = AdapterTrainer::new(adapter, Box::new(Sft), settings, Recompute::None);
    (decoder, trainer)
}

fn joined(sequences: &[Encoded], by: usize) -> Vec<Batch> {
    sequences.chunks(by).map(|chunk| Batch::join(chunk.iter().flat_map(Encoded::sequences))).collect()
}

#[test]
fn accumulated_micro_batches_are_one_large_batch() {
    let _turn = turn();
    let sequences = sequences(&[12, 20, 7, 15]);
    let settings =
        TrainSettings { max_grad_norm: 0.0, label_smoothing: 0.1, neftune_alpha: 5.0, ..TrainSettings::default() };
    let (whole, _) = one_step(&settings, &joined(&sequences, 4));
    for by in [1, 2, 3] {
        let (parts, _) = one_step(&settings, &joined(&sequences, by));
        assert_eq!((parts.tokens, parts.trained_tokens), (whole.tokens, whole.trained_tokens));
        for (parts, whole) in [(parts.loss, whole.loss), (parts.grad_norm, whole.grad_norm)] {
            assert!((parts - whole).abs() <= 1e-6 * whole, "{by} at a time: {parts}, not {whole}");
        }
    }
}

/// Supervised fine-tuning whose value is so many times as large.
struct Times(f64);

impl Objective for Times {
    fn share(&self, losses: &[SequenceLoss], step: &StepSize) -> Share {
        let Share { value, weights, rewards } = Sft.share(losses, step);
        let weights = weights.into_iter().map(|weight| weight * self.0).collect();
        Share { value: value * self.0, weights, rewards }
    }
}

#[test]
fn gradients_of_any_size_are_added_up() {
    let _turn = turn();
    let run = Run::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/training/seven_and_head"));
    let decoder = load(&run.base, Compute::F32);
    let batches = joined(&sequences(&[12, 20, 7, 15]), 1);
    let norm = |factor: f64| {
        let adapter = run.start.attach(decoder.config(), &decoder.device().clone().autodiff()).expect("fits");
        let settings = TrainSettings::default();
        let mut trainer = AdapterTrainer::new(adapter, Box::new(Times(factor)), &settings, Recompute::None);
        trainer.step(&decoder, &batches, 1e-3, 7).grad_norm / factor
    };
    let expected = norm(1.0);
    for factor in [1e-6, 1e3, 1e9, 1e20] {
        close(norm(factor), expected, 1e-6, &format!("{factor} times"));
    }
}

#[test]
fn smoothing_and_noise_change_training_and_no_evaluation() {
    let _turn = turn();
    let batches = joined(&sequences(&[12, 20]), 2);
    let plain = one_step(&TrainSettings::default(), &batches);
    let smoothed = one_step(&TrainSettings { label_smoothing: 0.1, ..TrainSettings::default() }, &batches);
    let noisy = one_step(&TrainSettings { neftune_alpha: 5.0, ..TrainSettings::default() }, &batches);
    let again = one_step(&TrainSettings { neftune_alpha: 5.0, ..TrainSettings::default() }, &batches);
    assert!(plain.0.loss != smoothed.0.loss && plain.0.loss != noisy.0.loss);
    assert!(plain.1 != smoothed.1 && plain.1 != noisy.1 && noisy == again);
}

#[test]
fn noise_belongs_to_an_example_and_not_to_its_place_in_the_step() {
    let _turn = turn();
    let all = sequences(&[12, 20, 9, 15]);
    let settings = TrainSettings { neftune_alpha: 5.0, ..TrainSettings::default() };
    let step = |order: [usize; 4], numbers: [u64; 4], by: usize| {
        let (decoder, mut trainer) = trainer_with_dropout(&settings);
        let ordered: Vec<Encoded> = order.iter().map(|index| all[*index].clone()).collect();
        {
            let known = Known { sequences: numbers.to_vec(), ..Known::default() };
            trainer.step_knowing(&decoder, &joined(&ordered, by), &known, 1e-3, 7).loss
        }
    };
    let first = step([0, 1, 2, 3], [0, 1, 2, 3], 4);
    for (order, numbers, by) in [([3, 1, 0, 2], [3, 1, 0, 2], 4), ([1, 0, 3, 2], [1, 0, 3, 2], 2)] {
        let other = step(order, numbers, by);
        assert!((other - first).abs() < 1e-5, "{other} and {first}");
    }
    let renumbered = step([0, 1, 2, 3], [5, 1, 2, 3], 4);
    assert!((renumbered - first).abs() > 1e-4, "another example has other noise: {renumbered} and {first}");
}

#[test]
fn the_noise_on_embeddings_has_the_size_of_the_paper() {
    let tokens = token_numbers(&[9, 4], &[50, 200]);
    let noise = Noise { seed: 3, embedding_alpha: 5.0, tokens, ..Noise::default() };
    let values = noise.of_embeddings(&[50, 200], 32).expect("noise");
    for (length, values) in [(50, &values[..50 * 32]), (200, &values[50 * 32..])] {
        let bound = 5.0 / (length as f32 * 32.0).sqrt();
        assert!(values.iter().all(|value| value.abs() <= bound));
        // A uniform distribution has the standard deviation bound / √3.
        let square = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
        assert!((square.sqrt() / (bound / 3f32.sqrt()) - 1.0).abs() < 0.05, "{length}");
    }
    // The second sequence as a batch of its own.
    let rest = Noise { tokens: token_numbers(&[4], &[200]), ..noise }.of_embeddings(&[200], 32).expect("noise");
    assert_eq!(rest, values[50 * 32..]);
    assert!(Noise::default().of_embeddings(&[5], 32).is_none());
}
