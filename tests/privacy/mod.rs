//! Private training: its steps against Opacus, its runs, and the figures that they tell.

mod runs;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burnish::adapter::host::HostAdapter;
use burnish::model::decoder::Recompute;
use burnish::model::load::Compute;
use burnish::model::{Batch, Decoder};
use burnish::nn::Adapter;
use burnish::train::TrainSettings;
use burnish::train::objective::Sft;
use burnish::train::privacy::{Key, Mechanism};
use burnish::train::step::{AdapterTrainer, StepReport};
use serde_json::Value;

use crate::model::{load, relative_distance, turn};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The examples of the fixture, a micro-batch each.
fn examples(step: &Value) -> Vec<Batch> {
    let examples = step["examples"].as_array().expect("examples").iter();
    let batches = examples.map(|example| {
        let list = |key: &str| example[key].as_array().expect("a list").clone();
        let ids: Vec<u32> = list("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect();
        let trained = list("trained").iter().map(|trained| trained.as_bool().expect("a mask")).collect();
        Batch { lengths: vec![ids.len()], ids, trained }
    });
    batches.collect()
}

fn step_of_opacus() -> Value {
    serde_json::from_slice(&fs::read(fixtures().join("privacy/step.json")).expect("a fixture")).expect("JSON")
}

fn mechanism(clip_norm: f64, noise_multiplier: f64, batch_examples: usize) -> Mechanism {
    Mechanism { clip_norm, noise_multiplier, batch_examples, key: Key::of(b"secret", "run") }
}

/// One private step: its report, and its gradients by PEFT's names, which the first mean of AdamW keeps.
fn private_step(
    decoder: &Decoder,
    batches: &[Batch],
    mechanism: Mechanism,
) -> (StepReport, BTreeMap<String, Vec<f32>>) {
    let settings = TrainSettings { beta1: 0.5, ..TrainSettings::default() };
    let start = HostAdapter::load(&fixtures().join("training/seven_and_head/final")).expect("an adapter");
    let adapter = start.attach(decoder.config(), &decoder.device().clone().autodiff()).expect("fits");
    let mut trainer = AdapterTrainer::new(adapter, Box::new(Sft), &settings, Recompute::None);
    trainer.privacy = Some(mechanism);
    let report = trainer.step(decoder, batches, 1e-3, 7);
    let means = trainer.optimiser.state().tensors;
    (
        report,
        by_name(decoder, &trainer.adapter, |name| {
            means[&format!("{name}.mean")].iter().map(|value| value / 0.5).collect()
        }),
    )
}

/// The vectors of the factors of every pair, by PEFT's names.
fn by_name(decoder: &Decoder, adapter: &Adapter, vector: impl Fn(&str) -> Vec<f32>) -> BTreeMap<String, Vec<f32>> {
    let mut found = BTreeMap::new();
    for (site, number) in decoder.config().sites().iter().zip(&adapter.by_site) {
        let Some(number) = number else { continue };
        for (ours, theirs) in [("a", "lora_A"), ("b", "lora_B")] {
            let name = format!("base_model.model.{}.{theirs}.weight", site.module);
            found.insert(name, vector(&format!("deltas.{number}.LowRank.{ours}")));
        }
    }
    found
}

#[test]
fn clipped_gradients_are_those_of_opacus() {
    let _turn = turn();
    let record = step_of_opacus();
    let batches = examples(&record);
    let decoder = load(&fixtures().join("models/llama_gqa"), Compute::F32);
    let bytes = fs::read(fixtures().join("privacy/gradients.safetensors")).expect("a fixture");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("valid");
    let numbers = |key: &str| -> Vec<f64> {
        record[key].as_array().expect("a list").iter().map(|number| number.as_f64().expect("a number")).collect()
    };
    let (losses, norms) = (numbers("losses"), numbers("norms"));
    for (clip, name) in numbers("clips").into_iter().zip(["5", "20", "1e+06"]) {
        let (report, ours) = private_step(&decoder, &batches, mechanism(clip, 0.0, batches.len()));
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        assert!((report.loss - mean).abs() < 1e-4 * mean, "{} instead of {mean}", report.loss);
        assert_eq!(ours.len(), file.len() / 3);
        for (tensor, ours) in &ours {
            let view = file.tensor(&format!("{name}/{tensor}")).expect("of the same name");
            let theirs: Vec<f32> =
                view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four"))).collect();
            let off = relative_distance(ours, &theirs);
            assert!(off < 1e-4, "clipping norm {clip}, {tensor}: off by {off:e}");
        }
    }
    // Each example alone: its own norm, or the clipping norm.
    for (batch, norm) in batches.iter().zip(norms) {
        let alone = |clip| private_step(&decoder, std::slice::from_ref(batch), mechanism(clip, 0.0, 1)).0.grad_norm;
        assert!((alone(1e6) - norm).abs() < 1e-3 * norm, "{} instead of {norm}", alone(1e6));
        assert!((alone(2.0) - 2.0).abs() < 1e-5, "{}", alone(2.0));
    }
}

#[test]
fn a_step_has_its_noise_even_without_examples() {
    let _turn = turn();
    let decoder = load(&fixtures().join("models/llama_gqa"), Compute::F32);
    let (report, gradients) = private_step(&decoder, &[], mechanism(2.0, 1.5, 4));
    let values: Vec<f64> = gradients.values().flatten().map(|value| f64::from(*value)).collect();
    let deviation = (values.iter().map(|value| value * value).sum::<f64>() / values.len() as f64).sqrt();
    // 1.5 · 2 / 4, over some four thousand values: one per cent is the standard deviation of this.
    assert!(values.len() > 3000 && (deviation - 0.75).abs() < 0.04, "{deviation} over {}", values.len());
    assert!((report.grad_norm - deviation * (values.len() as f64).sqrt()).abs() < 1e-2, "{}", report.grad_norm);
    let batches = examples(&step_of_opacus());
    let (_, with_examples) = private_step(&decoder, &batches, mechanism(2.0, 1.5, 4));
    let (_, again) = private_step(&decoder, &batches, mechanism(2.0, 1.5, 4));
    assert_eq!(with_examples, again, "the noise of a step is always the same");
    let (_, without_noise) = private_step(&decoder, &batches, mechanism(2.0, 0.0, 4));
    for (name, with) in &with_examples {
        for ((with, noise), without) in with.iter().zip(&gradients[name]).zip(&without_noise[name]) {
            assert!((with - noise - without).abs() < 1e-4, "{name}: {with} is not {noise} and {without}");
        }
    }
}

#[test]
fn an_example_that_is_not_finite_counts_for_nothing() {
    let _turn = turn();
    let decoder = load(&fixtures().join("models/llama_gqa"), Compute::F32);
    let start = HostAdapter::load(&fixtures().join("training/seven_and_head/final")).expect("an adapter");
    let mut broken = start;
    broken.pairs.values_mut().for_each(|pair| pair.b[0] = f32::NAN);
    let adapter = broken.attach(decoder.config(), &decoder.device().clone().autodiff()).expect("fits");
    let mut trainer = AdapterTrainer::new(adapter, Box::new(Sft), &TrainSettings::default(), Recompute::None);
    trainer.privacy = Some(mechanism(1.0, 1.0, 4));
    let batches = examples(&step_of_opacus());
    let report = trainer.step(&decoder, &batches, 1e-3, 7);
    assert!(report.is_finite() && report.not_finite.len() == batches.len(), "{report:?}");
    assert_eq!(trainer.optimiser.state().updates, 1, "the step is made with its noise alone");
}
