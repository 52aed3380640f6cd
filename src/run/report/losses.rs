//! The losses in a report: of single tokens, of single examples, and with parts of the adapter switched off.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::data::{Encoded, Judged, batch};
use crate::eval::loss::ExampleLoss;
use crate::files::hex;
use crate::model::vision::short_name;
use crate::model::{Batch, Decoder};
use crate::nn::Adapter;
use crate::run::prepare::Prepared;
use crate::text::token_texts;
use crate::train::Outcome;

/// The stream of the seed that chooses examples: neither that of an epoch nor that of another choice.
const CHOICE_STREAM: u64 = u64::MAX - 3;
/// The examples of which every token is measured.
const EXAMPLES: usize = 4;
/// The tokens of such an example; the rest is cut off.
const EXAMPLE_TOKENS: usize = 256;
/// The most examples whose losses are kept.
const MOST_LOSSES: usize = 50_000;

/// The validation examples of which every token is measured, cut, with their places.
pub(super) fn chosen(prepared: &Prepared) -> (Vec<Encoded>, Vec<String>) {
    let valid = &prepared.valid;
    let mut examples = Vec::new();
    for index in batch::order(valid.sequences.len(), prepared.plan.train.seed, CHOICE_STREAM) {
        let Some((ids, trained)) = valid.sequences[index].sequences().next() else { continue };
        let kept = ids.len().min(EXAMPLE_TOKENS);
        let cut = Encoded {
            ids: ids[..kept].to_vec(),
            trained: trained[..kept].to_vec(),
            judged: Judged::Not,
            ..valid.sequences[index].clone()
        };
        if cut.trained_tokens() > 0 {
            examples.push((cut, valid.positions[index].to_string()));
        }
        if examples.len() == EXAMPLES {
            break;
        }
    }
    examples.into_iter().unzip()
}

/// The losses of the tokens of some validation examples.
#[derive(Debug, Serialize)]
pub(super) struct TokenLosses {
    /// The steps of the adapter that was measured last.
    pub(super) after_step: Option<u64>,
    examples: Vec<ExampleTokens>,
}

/// The tokens of one example; a loss stands where one is taken.
#[derive(Debug, Serialize)]
struct ExampleTokens {
    place: String,
    tokens: Vec<String>,
    /// With the base alone.
    before: Vec<Option<f32>>,
    /// With the adapter.
    after: Vec<Option<f32>>,
}

impl TokenLosses {
    /// The tokens, without losses.
    pub(super) fn unmeasured(prepared: &Prepared, examples: &[Encoded], places: Vec<String>) -> Self {
        let of = |(example, place): (&Encoded, String)| ExampleTokens {
            place,
            tokens: token_texts(prepared.base.encoder.tokenizer(), &example.ids),
            before: Vec::new(),
            after: Vec::new(),
        };
        Self { after_step: None, examples: examples.iter().zip(places).map(of).collect() }
    }

    /// Whether the base was measured.
    pub(super) fn is_measured(&self) -> bool {
        self.examples.iter().all(|example| !example.before.is_empty())
    }

    /// Measures the base alone.
    pub(super) fn set_before(&mut self, decoder: &Decoder, examples: &[Encoded]) {
        for (example, losses) in self.examples.iter_mut().zip(token_losses(decoder, None, examples)) {
            example.before = losses;
        }
    }

    /// Measures the adapter of `step`.
    pub(super) fn set_after(&mut self, step: u64, decoder: &Decoder, adapter: &Adapter, examples: &[Encoded]) {
        for (example, losses) in self.examples.iter_mut().zip(token_losses(decoder, Some(adapter), examples)) {
            example.after = losses;
        }
        self.after_step = Some(step);
    }
}

/// The loss of each token of each example, where it is trained on.
pub(super) fn token_losses(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    examples: &[Encoded],
) -> Vec<Vec<Option<f32>>> {
    let of = |example: &Encoded| {
        let batch = Batch::join(example.sequences());
        let mut losses = vec![None; example.ids.len()];
        for ((row, _), prediction) in batch.targets().iter().zip(decoder.predictions(&batch, adapter)) {
            losses[*row as usize + 1] = Some(prediction.loss);
        }
        losses
    };
    examples.iter().map(of).collect()
}

/// The mean loss over some examples with parts of the adapter switched off.
#[derive(Debug, Serialize)]
pub(super) struct Ablation {
    /// The examples and their trained tokens.
    examples: usize,
    tokens: usize,
    /// The mean loss with the whole adapter.
    loss: f64,
    /// Without the adapter at the modules of a name.
    by_name: Vec<Without>,
    /// Without it in a layer; empty where the time did not suffice.
    by_layer: Vec<Without>,
    /// Without it at a single module; empty where the time did not suffice.
    by_module: Vec<Without>,
}

/// The mean loss without a part of the adapter.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Without {
    /// The name of the module, the number of the layer, or the path of the module.
    pub(super) part: String,
    /// The mean loss.
    pub(super) loss: f64,
}

/// Switches parts of the adapter off, as many as `budget` allows; `pass` is the time of one pass over all examples. `None` where it
/// does not even suffice for the names over one example.
pub(super) fn ablate(
    decoder: &Decoder,
    adapter: &Adapter,
    examples: &[Encoded],
    pass: Duration,
    budget: Duration,
) -> Option<Ablation> {
    let mut names: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut layers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut modules = Vec::new();
    for (number, site) in decoder.config().modules().into_iter().enumerate() {
        if adapter.changes(number) {
            names.entry(short_name(&site.module)).or_default().push(number);
            if let Some(layer) = site.layer {
                layers.entry(layer).or_default().push(number);
            }
            modules.push((site.module, vec![number]));
        }
    }
    let layers: Vec<(String, Vec<usize>)> =
        layers.into_iter().map(|(layer, numbers)| (layer.to_string(), numbers)).collect();
    let names: Vec<(String, Vec<usize>)> = names.into_iter().collect();
    // As many examples as leave time for names and layers, or else for the names.
    let count_for = |passes: usize| {
        let time = |count: usize| pass.mul_f64((passes + 1) as f64 * count as f64 / examples.len() as f64);
        (1..=examples.len()).rev().find(|count| time(*count) <= budget)
    };
    let count = count_for(names.len() + layers.len()).or_else(|| count_for(names.len()))?;
    let examples = &examples[..count];
    let began = Instant::now();
    let loss = mean_loss(decoder, adapter, examples);
    let pass = began.elapsed();
    let measure = |parts: &[(String, Vec<usize>)]| -> Vec<Without> {
        if began.elapsed() + pass * parts.len() as u32 > budget {
            return Vec::new();
        }
        let of = |(part, numbers): &(String, Vec<usize>)| Without {
            part: part.clone(),
            loss: mean_loss(decoder, &without(adapter, numbers), examples),
        };
        parts.iter().map(of).collect()
    };
    let by_name = measure(&names);
    let by_layer = measure(&layers);
    let by_module = measure(&modules);
    let tokens = examples.iter().map(Encoded::trained_tokens).sum();
    (!by_name.is_empty()).then_some(Ablation { examples: count, tokens, loss, by_name, by_layer, by_module })
}

/// The adapter without its changes of some modules.
fn without(adapter: &Adapter, modules: &[usize]) -> Adapter {
    let mut rest = adapter.clone();
    for number in modules {
        if let Some(delta) = rest.by_site.get_mut(*number) {
            *delta = None;
        }
        rest.weights.remove(number);
        rest.biases.remove(number);
    }
    rest
}

fn mean_loss(decoder: &Decoder, adapter: &Adapter, examples: &[Encoded]) -> f64 {
    let losses: Vec<f64> =
        token_losses(decoder, Some(adapter), examples).into_iter().flatten().flatten().map(f64::from).collect();
    losses.iter().sum::<f64>() / losses.len().max(1) as f64
}

/// The losses of the validation examples of each evaluation.
#[derive(Debug, Serialize)]
pub(super) struct Losses {
    /// A hash of the examples as they were encoded: runs with the same one were measured on the same tokens.
    split: String,
    /// The trained tokens of each example.
    tokens: Vec<usize>,
    /// The summed loss of each, before the training.
    before: Vec<f64>,
    /// The same with the best adapter.
    after: Vec<f64>,
}

/// The losses of each example in `outcome`, or why they are not kept.
pub(super) fn losses(prepared: &Prepared, outcome: &Outcome) -> Result<Losses, String> {
    let examples = prepared.held_out.valid_at_steps(&prepared.valid);
    if prepared.plan.train.objective.is_preference() {
        return Err("losses of preferences depend on the reference of the run".to_owned());
    }
    if examples.is_empty() || outcome.valid_after.len() != examples.len() {
        return Err("there are no validation examples".to_owned());
    }
    if examples.len() > MOST_LOSSES {
        return Err(format!("there are more than {MOST_LOSSES} validation examples"));
    }
    let mut hasher = Sha256::new();
    for example in examples {
        hasher.update((example.ids.len() as u64).to_le_bytes());
        for (id, trained) in example.ids.iter().zip(&example.trained) {
            hasher.update(id.to_le_bytes());
            hasher.update([u8::from(*trained)]);
        }
    }
    let sums = |losses: &[ExampleLoss]| losses.iter().map(|loss| loss.loss_sum).collect();
    Ok(Losses {
        split: hex::encode(&hasher.finalize()),
        tokens: outcome.valid_after.iter().map(|loss| loss.tokens).collect(),
        before: sums(&outcome.valid_before),
        after: sums(&outcome.valid_after),
    })
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use std::path::Path;

    use burn::tensor::Device;
    use serde_json::Value;

    use super::*;
    use crate::adapter::host::HostAdapter;
    use crate::adapter::map::map;
    use crate::model::BaseFiles;
    use crate::model::load::LoadOptions;
    use crate::quant::{Compute, Quant};

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
    }

    fn close(found: f64, expected: &Value, what: &str) {
        let expected = expected.as_f64().expect("a number");
        assert!((found - expected).abs() < 1e-4 * expected.abs().max(1.0), "{what}: {found}, not {expected}");
    }

    #[test]
    fn map_token_losses_and_parts_are_those_of_numpy_and_transformers() {
        let text = std::fs::read(fixture("report.json")).expect("the fixture");
        let cases: Vec<Value> = serde_json::from_slice(&text).expect("JSON");
        for case in &cases {
            let name = case["adapter"].as_str().expect("a name");
            let base = BaseFiles::open(&fixture(case["base"].as_str().expect("a base"))).expect("a base");
            let host = HostAdapter::load(&fixture("adapters").join(name)).expect("an adapter");
            let updates = map(&host, &base, Quant::None, &|| true).expect("a map");
            assert_eq!(updates.len(), case["map"].as_object().map_or(0, serde_json::Map::len), "{name}");
            for update in &updates {
                let expected = &case["map"][&update.module];
                close(update.update_norm, &expected["update_norm"], &update.module);
                close(update.spectral_norm, &expected["spectral_norm"], &update.module);
                close(update.effective_rank, &expected["effective_rank"], &update.module);
                close(update.weight_norm.expect("time"), &expected["weight_norm"], &update.module);
            }
            let late = map(&host, &base, Quant::None, &|| false).expect("a map");
            assert!(late.iter().all(|update| update.weight_norm.is_none() && update.update_norm > 0.0));

            let device = Device::flex();
            let options = LoadOptions { device: device.clone(), compute: Compute::F32, quant: Quant::None };
            let decoder = Decoder::load(&base, &options, |_, _| {}).expect("loaded");
            let adapter = host.attach(decoder.config(), &device).expect("attached");
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).expect("ids");
            let trained = vec![true; ids.len()];
            let example = Encoded { ids, trained, untrained_turns: 0, weight: 1.0, judged: Judged::Not };
            let examples = [example];
            for (adapter, key) in [(None, "before"), (Some(&adapter), "after")] {
                let losses = token_losses(&decoder, adapter, &examples).remove(0);
                assert_eq!(losses[0], None, "nothing stands before the first token");
                for (index, loss) in losses[1..].iter().enumerate() {
                    close(loss.expect("a loss").into(), &case[key][index], key);
                }
            }
            let all = (Duration::ZERO, Duration::MAX);
            let ablation = ablate(&decoder, &adapter, &examples, all.0, all.1).expect("time");
            close(ablation.loss, &case["loss"], "the whole adapter");
            for (key, parts) in
                [("by_name", &ablation.by_name), ("by_layer", &ablation.by_layer), ("by_module", &ablation.by_module)]
            {
                assert_eq!(Some(parts.len()), case[key].as_object().map(serde_json::Map::len), "{name} {key}");
                parts.iter().for_each(|part| close(part.loss, &case[key][&part.part], &part.part));
            }
            assert_eq!(ablate(&decoder, &adapter, &examples, Duration::from_secs(1), Duration::ZERO).map(drop), None);
        }
    }
}
