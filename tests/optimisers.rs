//! Optimisers and schedules against PyTorch, transformers, bitsandbytes and PEFT; the state of an optimiser.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use burnish::nn::{Adapter, Delta, LowRank};
use burnish::train::{Optimiser, OptimiserKind, OptimiserState, Schedule, ScheduleKind, TrainSettings};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/optimisers")
}

/// The tensors of the fixture: shape and values.
fn tensors() -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(folder().join("updates.safetensors")).expect("a fixture");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("valid");
    let values = |bytes: &[u8]| bytes.chunks_exact(4).map(|v| f32::from_le_bytes(v.try_into().expect("4"))).collect();
    file.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), values(view.data())))).collect()
}

fn matrix(values: &[f32], shape: &[usize], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values.to_vec(), [shape[0], shape[1]]), device)
}

/// An adapter of one pair, and the gradients of 50 updates.
struct Pair {
    adapter: Adapter,
    gradients: [(Vec<usize>, Vec<f32>); 2],
    device: Device,
}

impl Pair {
    fn new(tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) -> Self {
        Self::on(&Device::flex(), tensors)
    }

    fn on(device: &Device, tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) -> Self {
        let parameter = |name: &str| {
            let (shape, values) = &tensors[name];
            Param::from_tensor(matrix(values, shape, &device.clone().autodiff()))
        };
        let pair =
            LowRank { a: parameter("start.a"), b: parameter("start.b"), scale: 1.0, dropout: 0.0, subtracted: None };
        let adapter = Adapter { deltas: vec![Delta::LowRank(pair)], by_site: vec![Some(0)], ..Adapter::default() };
        let gradients = ["gradients.a", "gradients.b"].map(|name| tensors[name].clone());
        Self { adapter, gradients, device: device.clone() }
    }

    /// The parameters by their names in the fixture.
    fn values(&self) -> [(char, Vec<f32>); 2] {
        let values = |parameter: &Param<Tensor<2>>| parameter.val().inner().into_data().iter::<f32>().collect();
        let [a, b] = self.parameters().map(values);
        [('a', a), ('b', b)]
    }

    /// `A` and `B`.
    fn parameters(&self) -> [&Param<Tensor<2>>; 2] {
        let parameters: Vec<_> = self.adapter.deltas[0].parameters().collect();
        parameters.try_into().expect("two")
    }

    /// Update number `index`, from 0.
    fn step(&mut self, optimiser: &mut Optimiser, rate: f64, index: usize) {
        let mut gradients = GradientsParams::new();
        for (parameter, (shape, values)) in self.parameters().into_iter().zip(&self.gradients) {
            let size = shape[1] * shape[2];
            let values = &values[index * size..][..size];
            gradients.register(parameter.id, matrix(values, &shape[1..], &self.device));
        }
        self.adapter = optimiser.step(rate, self.adapter.clone(), gradients);
    }
}

fn settings(case: &Value) -> TrainSettings {
    let number = |key: &str| case[key].as_f64().expect("a number");
    TrainSettings {
        optimiser: OptimiserKind::from_name(case["optimiser"].as_str().expect("a name")).expect("known"),
        beta1: number("beta1"),
        beta2: Some(number("beta2")),
        weight_decay: number("weight_decay"),
        b_rate_ratio: number("b_rate_ratio"),
        ..TrainSettings::default()
    }
}

fn cases() -> serde_json::Map<String, Value> {
    let text = fs::read_to_string(folder().join("cases.json")).expect("a fixture");
    serde_json::from_str(&text).expect("JSON")
}

/// The parameters that are off by more than `tolerance` of the largest value after any of fifty updates by each rule.
pub fn wrong_updates(device: &Device, tolerance: f32) -> Vec<String> {
    let tensors = tensors();
    let mut problems = Vec::new();
    for (name, case) in cases() {
        let mut pair = Pair::on(device, &tensors);
        let mut optimiser = Optimiser::new(&settings(&case));
        for index in 0..50 {
            pair.step(&mut optimiser, case["rate"].as_f64().expect("a rate"), index);
            for (matrix, ours) in pair.values() {
                let Some((_, theirs)) = tensors.get(&format!("{name}.{}.{matrix}", index + 1)) else { continue };
                let largest = theirs.iter().fold(0f32, |largest, value| largest.max(value.abs()));
                let off = ours.iter().zip(theirs).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f32::max);
                if off > tolerance * largest {
                    problems.push(format!("{name}, {matrix} after {}: off by {}", index + 1, off / largest));
                }
            }
        }
    }
    problems
}

#[test]
fn fifty_updates_are_those_of_pytorch_transformers_bitsandbytes_and_peft() {
    let wrong = wrong_updates(&Device::flex(), 1e-6);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_restored_optimiser_goes_on_bit_for_bit() {
    let tensors = tensors();
    for (name, case) in cases() {
        let fresh = || Optimiser::new(&settings(&case));
        let (mut pair, mut optimiser) = (Pair::new(&tensors), fresh());
        let mut states = Vec::new();
        for index in 0..20 {
            states.push((optimiser.state(), pair.adapter.clone()));
            pair.step(&mut optimiser, 1e-2, index);
        }
        for (index, (state, adapter)) in states.into_iter().enumerate().step_by(7) {
            let mut again = Pair { adapter, ..Pair::new(&tensors) };
            let mut restored = fresh();
            restored.restore(&again.adapter, &state).expect("its own state");
            assert_eq!(restored.state(), state, "{name}");
            (index..20).for_each(|index| again.step(&mut restored, 1e-2, index));
            assert_eq!(again.values(), pair.values(), "{name} from {index}");
            assert_eq!(restored.state(), optimiser.state(), "{name} from {index}");
        }
    }
}

#[test]
fn a_state_of_another_adapter_or_optimiser_is_refused() {
    let tensors = tensors();
    let kept = |optimiser| {
        let settings = TrainSettings { optimiser, ..TrainSettings::default() };
        let (mut pair, mut optimiser) = (Pair::new(&tensors), Optimiser::new(&settings));
        pair.step(&mut optimiser, 1e-2, 0);
        optimiser.state()
    };
    let state = kept(OptimiserKind::AdamW);
    let changed = |change: &dyn Fn(&mut OptimiserState)| {
        let mut state = state.clone();
        change(&mut state);
        let mut optimiser = Optimiser::new(&TrainSettings::default());
        let error = optimiser.restore(&Pair::new(&tensors).adapter, &state).expect_err("refused").to_string();
        assert_eq!(optimiser.state(), OptimiserState::default());
        error
    };
    let mean = "deltas.0.LowRank.a.mean";
    let error = changed(&|state| drop(state.tensors.remove(mean)));
    assert!(error.contains(mean) && error.contains("expected 21 values, found none"), "{error}");
    let error = changed(&|state| state.tensors.get_mut(mean).expect("a mean").truncate(20));
    assert!(error.contains("found 20"), "{error}");
    let error = changed(&|state| drop(state.tensors.insert("deltas.1.LowRank.a.mean".into(), vec![0.0])));
    assert!(error.contains("deltas.1") && error.contains("no parameter"), "{error}");
    let error = changed(&|state| *state = kept(OptimiserKind::Lion));
    assert!(error.contains("mean_square"), "{error}");
}

#[test]
fn rates_are_those_of_transformers() {
    let text = fs::read_to_string(folder().join("schedules.json")).expect("a fixture");
    let schedules: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    for wanted in schedules {
        let number = |key: &str| wanted[key].as_u64().expect("a number");
        let rates = wanted["rates"].as_array().expect("rates");
        let schedule = Schedule {
            kind: ScheduleKind::from_name(wanted["kind"].as_str().expect("a kind")).expect("known"),
            peak: 3e-4,
            warmup_steps: number("warmup_steps"),
            decay_steps: number("decay_steps"),
            total_steps: rates.len() as u64,
        };
        for (step, rate) in rates.iter().enumerate() {
            let (ours, theirs) = (schedule.rate(step as u64), rate.as_f64().expect("a rate"));
            assert!((ours - theirs).abs() <= 1e-6 * 3e-4, "{schedule:?} step {step}: {ours}, not {theirs}");
        }
    }
}

#[test]
fn shares_of_a_run_become_steps() {
    let settings = TrainSettings {
        schedule: ScheduleKind::WarmupStableDecay,
        warmup_share: Some(0.05),
        decay_share: 0.1,
        ..TrainSettings::default()
    };
    let Schedule { warmup_steps, decay_steps, .. } = settings.schedule(150);
    assert_eq!((warmup_steps, decay_steps), (8, 15), "rounded up");
    let steps = TrainSettings { warmup_share: None, warmup_steps: 3, ..settings };
    assert_eq!(steps.schedule(150).warmup_steps, 3);
}

/// A matrix that has had no gradient, as that of a tower before the first picture, has no state to restore.
#[test]
fn a_parameter_without_a_gradient_so_far_has_no_vectors() {
    let tensors = tensors();
    let (mut pair, mut optimiser) = (Pair::new(&tensors), Optimiser::new(&TrainSettings::default()));
    pair.step(&mut optimiser, 1e-2, 0);
    let mut state = optimiser.state();
    state.tensors.retain(|name, _| !name.contains("LowRank.a."));
    let mut restored = Optimiser::new(&TrainSettings::default());
    restored.restore(&pair.adapter, &state).expect("the state of the others");
    assert_eq!(restored.state(), state);
}
