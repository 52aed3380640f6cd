//! Every model family on a GPU: logits as transformers', generation with a cache, and steps over f32 and NF4 as the processor's.

use burn::tensor::Device;
use burnish::adapter::host::HostAdapter;
use burnish::model::BaseFiles;
use burnish::model::decoder::Recompute;
use burnish::model::load::{Compute, Quant};
use burnish::train::TrainSettings;
use burnish::train::objective::Sft;
use burnish::train::step::{AdapterTrainer, StepReport};
use serde_json::Value;

use super::{TOLERANCE, gpu, load_quantised};
use crate::families::{assert_near, batch, training};
use crate::model::{Expected, fixtures, load_on, logits};

/// The positions that are generated one by one.
const GENERATED: std::ops::Range<usize> = 20..26;

#[test]
fn every_family_has_the_logits_of_transformers_at_once_and_with_a_cache() {
    for folder in fixtures("families") {
        let place = folder.display().to_string();
        let expected = Expected::read(&folder);
        let (ids, wanted) = (expected.ids(), expected.floats("logits"));
        let decoder = load_on(gpu(), &folder, Compute::F32);
        assert_near(&logits(&decoder, &ids, None), &wanted, TOLERANCE, &place);
        let (vocabulary, mut past) = (decoder.config().vocab_size, decoder.begin());
        let begin = [(0, GENERATED.start)].into_iter();
        for (start, end) in begin.chain(GENERATED.map(|position| (position, position + 1))) {
            let next = decoder.next_logits(&[&ids[start..end]], &mut [&mut past], None);
            let row = &wanted[(end - 1) * vocabulary..end * vocabulary];
            assert_near(&next[0], row, TOLERANCE, &format!("{place} at {end}"));
        }
    }
}

#[test]
fn every_family_trains_as_peft_does_and_over_nf4_as_on_the_processor() {
    for folder in fixtures("families") {
        let run = training(&folder);
        let number = |value: &Value| value.as_f64().expect("a number");
        let rate = number(&run["learning_rate"]);
        let settings = TrainSettings {
            weight_decay: number(&run["weight_decay"]),
            max_grad_norm: 0.0,
            ..TrainSettings::default()
        };
        let steps = &run["steps"].as_array().expect("steps")[..3];
        let adapter = HostAdapter::load_over(&folder.join("adapter"), &BaseFiles::open(&folder).expect("a base"));
        let adapter = adapter.expect("PEFT's adapter");
        for (quant, recompute) in [(Quant::None, Recompute::Block), (Quant::Nf4, Recompute::None)] {
            // Several sequences lie end to end in a micro-batch.
            let [ours, expected] = [gpu(), &Device::flex()].map(|device| -> Vec<StepReport> {
                let decoder = load_quantised(device, &folder, quant);
                let attached = adapter.attach(decoder.config(), &device.clone().autodiff()).expect("fits");
                let mut trainer = AdapterTrainer::new(attached, Box::new(Sft), &settings, recompute);
                steps.iter().map(|step| trainer.step(&decoder, &[batch(&step["sequences"])], rate, 0)).collect()
            });
            for (index, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
                let place = format!("{} {quant:?} step {index}", folder.display());
                if quant == Quant::None {
                    let theirs = number(&steps[index]["loss"]);
                    assert!(
                        (ours.loss - theirs).abs() <= f64::from(TOLERANCE),
                        "{place}: {}, PEFT {theirs}",
                        ours.loss
                    );
                }
                let (loss, norm) = (ours.loss - expected.loss, ours.grad_norm - expected.grad_norm);
                assert!(loss.abs() <= f64::from(TOLERANCE), "{place}: loss {} - {}", ours.loss, expected.loss);
                assert!(
                    norm.abs() <= 2e-3 * expected.grad_norm,
                    "{place}: {} - {}",
                    ours.grad_norm,
                    expected.grad_norm
                );
            }
        }
    }
}
