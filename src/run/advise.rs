//! Advice on the model to fine-tune: for each of a catalogue the memory, the time and the disk that a run takes on this machine, before
//! anything is fetched, and the recipe of the one that is recommended.
//!
//! Memory is that of the memory plan, over a base of made-up values. Time follows from the operations of a run and the speeds of a few timed
//! steps ([`Machine`]).

mod catalogue;
mod cost;
mod examples;
mod machine;
mod report;

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use catalogue::{Candidate, catalogue};
use cost::{answer_tokens_per_second, planned_adapter, training_seconds};
use examples::{Examples, Measured, set_of};
pub use machine::{Machine, Speed};
pub use report::{Advice, Method, Model};

use super::OpenBase;
use super::doctor::memory_to_plan_with;
use super::init::{Facts, Savings, text};
use super::memory::{Demand, Planner};
use super::prepare::disk_bytes;
use super::watch::Watch;
use crate::adapter::spec::Targets;
use crate::bytes::Size;
use crate::device::{self, DeviceChoice};
use crate::error::{Error, Place, Result};
use crate::model::BaseFiles;
use crate::model::decoder::Recompute;
use crate::model::load::LoadOptions;
use crate::quant::Quant;
use crate::recipe::Recipe;
use crate::train::{Layout, Part};

/// The modules that the adapters of advised runs change, those of the recipes of `init`.
const TARGETS: Targets = Targets::AllLinear;
/// The ways to hold the weights and the activations.
const METHODS: [(Quant, Recompute); 5] = [
    (Quant::None, Recompute::None),
    (Quant::None, Recompute::Block),
    (Quant::Nf4, Recompute::None),
    (Quant::Nf4, Recompute::Block),
    (Quant::Nf4Double, Recompute::Block),
];
/// The longest run that is recommended where no limit is given, in seconds.
const USUAL_SECONDS: f64 = 2.0 * 3600.0;
/// The file of the examples in the recipe, where none is given.
const NO_DATA: &str = "data.jsonl";
/// The width of the wide model of the probe.
const WIDE: usize = 2048;

/// The limits and the data of advice.
#[derive(Debug, Clone, Copy)]
pub struct AdviseOptions<'a> {
    /// Where to compute: the processor.
    pub device: DeviceChoice,
    /// The memory that a run may take; by default four fifths of what is available.
    pub memory: Option<Size>,
    /// The training examples; by default usual ones.
    pub data: Option<&'a Path>,
    /// The longest run that is recommended, in seconds.
    pub seconds: Option<f64>,
    /// Bases of the user's, instead of the catalogue.
    pub bases: &'a [String],
}

/// Advises a model. The recipe of the recommended one is in the advice, where there are examples.
///
/// # Errors
/// Input: a device other than the processor; those of the data and of the bases.
pub fn advise(options: &AdviseOptions<'_>, watch: &mut dyn Watch) -> Result<Advice> {
    if options.device != DeviceChoice::Cpu {
        let message = format!("is {}; advice is for the processor", options.device);
        return Err(Error::input(Place::argument("--device"), message));
    }
    let known = catalogue()?;
    let (examples, opened) = Error::both(Examples::read(options.data), open(options.bases, watch))?;
    let own = opened.iter().map(|base| (Candidate::own(base), Some(base)));
    let candidates: Vec<(Candidate, Option<&OpenBase>)> = match opened.is_empty() {
        true => known.iter().map(|candidate| (candidate.clone(), None)).collect(),
        false => own.collect(),
    };
    let memory = options.memory.map(|Size(bytes)| bytes).or_else(memory_to_plan_with);
    let seconds = options.seconds.unwrap_or(USUAL_SECONDS);
    let sizes = known.iter().position(|candidate| candidate.config.hidden_size == WIDE);
    let narrow = known.first().ok_or_else(|| Error::failed("catalogue", "is empty"))?;
    let wide = sizes.map_or(narrow, |index| &known[index]);
    let measured = candidates.iter().map(|(candidate, base)| examples.measure(candidate, *base));
    let measured = measured.collect::<Result<Vec<_>>>()?;
    let device = device::open(&options.device)?;
    let machine = Machine::measure(&device, (narrow, wide), &measured[0].lengths)?;
    let data = options.data.unwrap_or(Path::new(NO_DATA));
    let models = candidates.iter().zip(&measured);
    let models = models.map(|((candidate, _), measured)| model(candidate, measured, data, (&machine, &device), memory));
    let mut models = models.collect::<Result<Vec<_>>>()?;
    let fits = |model: &Model| {
        let knows = candidates.iter().any(|(one, _)| one.base == model.base && one.knows(examples.language));
        knows && model.chosen().is_some_and(|method| method.seconds() <= seconds)
    };
    // The catalogue is sorted by size: the last that fits is the largest. Without consent it cannot be fetched, so an open one goes first.
    let recommended = models.iter().rposition(|model| fits(model) && !model.is_gated);
    let recommended = recommended.or_else(|| models.iter().rposition(fits));
    let recipe = match (recommended, options.data) {
        (Some(index), Some(_)) => models[index].recipe.take(),
        _ => None,
    };
    Ok(Advice {
        machine,
        memory_bytes: memory,
        limit_seconds: seconds,
        data: options.data.map(PathBuf::from),
        examples: measured[0].lengths.len(),
        tokens: measured[0].lengths.iter().map(|(tokens, _)| tokens).sum(),
        language: examples.language,
        recommended: recommended.map(|index| models[index].name.clone()),
        models,
        recipe,
    })
}

fn open(bases: &[String], watch: &mut dyn Watch) -> Result<Vec<OpenBase>> {
    bases.iter().map(|base| OpenBase::open(base, &mut |event| watch.pull(event))).collect()
}

/// A model with the costs of each method; the fastest that fits is chosen.
fn model(
    candidate: &Candidate,
    measured: &Measured,
    data: &Path,
    (machine, device): (&Machine, &Device),
    memory: Option<u64>,
) -> Result<Model> {
    let config = &candidate.config;
    let lengths = measured.lengths.iter().map(|(tokens, _)| *tokens).collect();
    let facts = Facts::of(lengths, measured.format, config.max_positions);
    let facts = facts.ok_or_else(|| Error::failed("advice", "there are no examples"))?;
    let recipe = |savings: Option<&Savings>| text(data, &candidate.base, &facts, savings);
    // The methods decide nothing but how weights and activations are held.
    let plan = Recipe::parse(&recipe(None), "recipe", &[])?.settings()?;
    // Longer examples are left out.
    let kept: Vec<(usize, usize)> =
        measured.lengths.iter().copied().filter(|(tokens, _)| *tokens <= plan.data.max_seq_tokens).collect();
    let valid_count = (kept.len() as f64 * plan.data.valid_fraction.unwrap_or(0.0)).round() as usize;
    let (valid, train) = kept.split_at(valid_count);
    let adapter = planned_adapter(&plan.adapter, config)?;
    let prompts: Vec<Vec<u32>> = valid
        .iter()
        .take(plan.sample.valid_prompts)
        .map(|(tokens, trained)| vec![0; tokens.saturating_sub(*trained)])
        .collect();
    let sample = (&prompts[..], plan.sample.max_tokens);
    let demand = Demand::of(&plan.train, &plan.data, &set_of(train), &set_of(valid), sample);
    let train_tokens: f64 = train.iter().map(|(tokens, _)| *tokens as f64).sum();
    let valid_tokens: f64 = valid.iter().map(|(tokens, _)| *tokens as f64).sum();
    let steps = plan.train.epochs * (train.len() as u64).div_ceil(plan.train.micro_batch_seqs as u64);
    let evaluations = if valid.is_empty() { 0 } else { 1 + steps.div_ceil(plan.train.eval_steps) };
    let base = BaseFiles::synthetic(config.clone());
    let methods = METHODS.map(|(quant, recompute)| {
        let recomputed_layers = if recompute == Recompute::Block { config.layers } else { 0 };
        let layout = Layout { part: Part::MicroBatch, recomputed_layers, parts_a_pass: None };
        let load = LoadOptions { device: device.clone(), compute: plan.base.compute, quant };
        let peak_bytes = Planner::new(&base, &load, &adapter).plan(&demand.workload(layout)).total();
        let pass = training_seconds(machine, config, (quant, recompute), train);
        let without_again = training_seconds(machine, config, (quant, Recompute::None), train);
        let a_token = machine.evaluation * without_again / train_tokens.max(1.0);
        Method {
            quant,
            recompute,
            peak_bytes,
            fits: memory.is_none_or(|memory| peak_bytes <= memory),
            training_seconds: plan.train.epochs as f64 * pass,
            evaluation_seconds: evaluations as f64 * valid_tokens * a_token,
            tokens_per_second: train_tokens / pass,
            disk_bytes: base.file_bytes() as u64 + disk_bytes(&adapter, &plan.train),
        }
    });
    let fitting = methods.iter().enumerate().filter(|(_, method)| method.fits);
    let chosen = fitting.min_by(|(_, a), (_, b)| a.seconds().total_cmp(&b.seconds())).map(|(index, _)| index);
    let with_savings = |index: usize| {
        let Method { quant, recompute, .. } = methods[index];
        let limit = memory.map_or_else(String::new, |bytes| format!(", for {} of memory", Size(bytes)));
        recipe(Some(&Savings { quant, recompute, reason: format!("by `burnish advise`{limit}") }))
    };
    Ok(Model {
        base: candidate.base.clone(),
        name: candidate.name.clone(),
        parameters: config.parameters(),
        licence: candidate.licence.clone(),
        is_gated: candidate.is_gated,
        languages: candidate.languages.clone(),
        tokens_are_exact: measured.is_exact,
        answer_tokens_per_second: answer_tokens_per_second(machine, config),
        recipe: chosen.map(with_savings),
        chosen,
        methods: methods.to_vec(),
    })
}
