//! The main job: from a plan to a run folder with the best adapter.

use std::fmt;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde::Serialize;
use serde_json::json;

use super::base::{OpenBase, sha256_of};
use super::folder::RunFolder;
use super::infer::{Answering, answer};
use super::memory_plan::{MemoryPlan, Size, Workload, does_not_fit, layouts};
use crate::adapter::attach::AdapterSpec;
use crate::adapter::host::{HostAdapter, provenance};
use crate::adapter::peft::SaveOptions;
use crate::data::encode::{EncodedSet, LongPolicy};
use crate::data::{self, Example, Row, batch, jsonl};
use crate::device::{self, DeviceChoice};
use crate::error::{Error, Result};
use crate::eval::loss::{Comparison, compare, perplexity};
use crate::generate::sample::SamplerConfig;
use crate::interrupt;
use crate::model::decoder::Recompute;
use crate::model::load::{Compute, LoadOptions, Quant};
use crate::pull;
use crate::recipe::{self as plan, Recipe};
use crate::train::evaluate::TOKENS_AT_ONCE;
use crate::train::step::Optimiser;
use crate::train::{EarlyStopping, Event, ScheduleKind, Settings, fit, memory};

/// Who watches a run.
pub trait Watch {
    /// A download.
    fn pull(&mut self, event: pull::Event<'_>);
    /// The base is being loaded: tensors done, tensors in all.
    fn loading(&mut self, done: usize, total: usize);
    /// A line for the user.
    fn notice(&mut self, text: &str);
    /// The training.
    fn event(&mut self, event: &Event<'_>);
}

/// A prompt answered before and after.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    pub prompt: String,
    pub before: String,
    pub after: String,
}

/// What a run came to.
#[derive(Debug, Clone, Serialize)]
pub struct TrainReport {
    pub dir: PathBuf,
    pub steps: u64,
    pub best_step: u64,
    pub stopped_early: bool,
    pub interrupted: bool,
    pub parameters: usize,
    pub tokens_per_second: f64,
    pub peak_bytes: u64,
    /// What the memory plan said the peak would be; none where the model lies in another memory than the process.
    pub planned_bytes: Option<u64>,
    /// Validation loss before and after, with a 95% interval of the difference; none without validation data.
    pub validation: Option<Validation>,
    pub samples: Vec<Sample>,
}

/// The verdict on the validation split.
#[derive(Debug, Clone, Serialize)]
pub struct Validation {
    pub loss_before: f64,
    pub loss_after: f64,
    pub perplexity_before: f64,
    pub perplexity_after: f64,
    pub tokens: usize,
    pub examples: usize,
    pub difference: f64,
    pub low: f64,
    pub high: f64,
    pub verdict: &'static str,
}

impl Validation {
    pub(super) fn of(comparison: &Comparison, tokens: usize) -> Self {
        Self {
            loss_before: comparison.before,
            loss_after: comparison.after,
            perplexity_before: perplexity(comparison.before),
            perplexity_after: perplexity(comparison.after),
            tokens,
            examples: comparison.examples,
            difference: comparison.difference,
            low: comparison.low,
            high: comparison.high,
            verdict: comparison.verdict.name(),
        }
    }
}

/// All that a run needs, short of the weights.
pub struct Prepared {
    pub plan: plan::Plan,
    pub device: Device,
    pub base: OpenBase,
    pub base_sha256: String,
    pub data_sha256: String,
    pub train: EncodedSet,
    /// Empty without validation data.
    pub valid: EncodedSet,
    /// Validation sequences that are training sequences too.
    pub seen_in_training: usize,
    /// The adapter before the first step.
    pub start: HostAdapter,
    pub settings: Settings,
    pub total_steps: u64,
    /// What the run will take.
    pub memory: MemoryPlan,
    /// The examples do not go through the chat template, so samples do not either.
    pub raw: bool,
}

/// Prepares what `recipe` asks for, and loads no weight.
///
/// # Errors
/// All that is wrong with the recipe and the files it names; then all that is wrong with the data, the base and what
/// they make of each other, at the line of the recipe where a setting is to blame.
pub fn prepare(
    recipe: &Recipe,
    choice: &DeviceChoice,
    max_memory: Option<Size>,
    watch: &mut dyn Watch,
) -> Result<Prepared> {
    let plan = recipe.plan()?;
    RunFolder::check_free(&plan.output.dir)?;
    let prepared = prepare_plan(plan, choice, max_memory, watch).map_err(|error| recipe.locate(&error))?;
    tell_left_out(&prepared, watch);
    Ok(prepared)
}

fn prepare_plan(
    mut plan: plan::Plan,
    choice: &DeviceChoice,
    max_memory: Option<Size>,
    watch: &mut dyn Watch,
) -> Result<Prepared> {
    let device = device::open(choice)?;
    let base = OpenBase::open(&plan.base.model, &mut |event| watch.pull(event));
    let ((train, valid), base) = Error::both(read_examples(&plan), base)?;
    let raw =
        matches!(train.first().map(|row| &row.example), Some(Example::PromptCompletion { .. } | Example::Text { .. }));
    let config = base.files.config();
    let (compute, quant) = precision(&plan);
    let load = LoadOptions { device: device.clone(), compute, quant };
    let fits_device = load.check();
    let precise = Error::both(base.check_quant("base.quant", quant), fits_device);
    let start = Error::both(precise, adapter_spec(&plan).initialise(config, plan.train.seed));
    let limit = plan.data.max_seq_tokens.min(config.max_positions);
    let encode = |path: &Path, rows: &[Row]| base.encoder.encode_all(path.display(), rows, limit, long_policy(&plan));
    let valid_path = plan.data.valid.as_ref().unwrap_or(&plan.data.train);
    let encoded = Error::both(encode(&plan.data.train, &train), encode(valid_path, &valid));
    let ((_, mut start), (train, valid)) = Error::both(start, encoded)?;
    let no_valid = plan.data.valid.is_none() && plan.data.valid_fraction.is_none();
    let some = [(&plan.data.train, &train, false), (valid_path, &valid, no_valid)];
    let empty = some.into_iter().filter(|(_, set, may_be)| set.sequences.is_empty() && !may_be);
    let errors = empty.map(|(path, set, _)| nothing_trained(path, set, limit)).collect();
    Error::none_of(errors, ())?;
    let (layout, memory) = fit_memory(&plan, &base, &load, &start, (&train, &valid), max_memory)?;
    if layout != (plan.train.micro_batch_seqs, plan.train.accumulate_steps, recompute(plan.train.recompute)) {
        let (micro_batch_seqs, accumulate_steps, recompute) = layout;
        let recompute = if recompute == Recompute::Block { plan::Recompute::Block } else { plan::Recompute::None };
        (plan.train.micro_batch_seqs, plan.train.accumulate_steps) = (micro_batch_seqs, accumulate_steps);
        plan.train.recompute = recompute;
        watch.notice(&format!(
            "to fit --max-memory: micro_batch_seqs {micro_batch_seqs}, accumulate_steps {accumulate_steps}, recompute {recompute}"
        ));
    }
    let settings = settings(&plan);
    let total_steps = settings.total_steps(&train.sequences)?;
    if settings.warmup_steps > total_steps {
        let message = format!("is {}, more than the {total_steps} steps there are", settings.warmup_steps);
        return Err(Error::input("train.warmup_steps", message));
    }
    let (base_sha256, data_sha256) = (base.files.content_hash()?, sha256_of(&plan.data.train)?);
    start.metadata.extend(
        [
            (provenance::BASE_SHA256, base_sha256.clone()),
            (provenance::QUANT, plan.base.quant.to_string()),
            (provenance::DATA_SHA256, data_sha256.clone()),
            (provenance::SEED, plan.train.seed.to_string()),
            (provenance::VERSION, env!("CARGO_PKG_VERSION").to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    let seen_in_training = batch::seen_in_training(&train.sequences, &valid.sequences);
    Ok(Prepared {
        plan,
        device,
        base,
        base_sha256,
        data_sha256,
        train,
        valid,
        seen_in_training,
        start,
        settings,
        total_steps,
        memory,
        raw,
    })
}

/// A file of which not one example is left.
fn nothing_trained(path: &Path, set: &EncodedSet, limit: usize) -> Error {
    let (long, untrained) = (set.dropped_long, set.dropped_untrained);
    let message =
        format!("no example is left: {long} have more than {limit} tokens, in {untrained} nothing is trained");
    let error = Error::input(path.display(), message);
    match long {
        0 => error.hint("loss is taken on completions, answers and the turns of the role `assistant`: are there any?"),
        _ => error.hint("raise `data.max_seq_tokens`, up to the positions of the model, or cut with `data.overlong`"),
    }
}

/// Trains as `recipe` says and writes its run folder.
///
/// # Errors
/// What [`prepare`] says, before a weight is loaded; what training says.
pub fn train(
    recipe: &Recipe,
    choice: &DeviceChoice,
    max_memory: Option<Size>,
    watch: &mut dyn Watch,
) -> Result<TrainReport> {
    let prepared = prepare(recipe, choice, max_memory, watch)?;
    let Prepared { plan, device, base, base_sha256, data_sha256, train, valid, start, settings, .. } = &prepared;
    let (compute, quant) = precision(plan);
    let decoder = base
        .load(device, compute, quant, |done, total| watch.loading(done, total))
        .map_err(|error| recipe.locate(&error))?;
    let answering = |prompts: &[String], adapter: Option<&crate::nn::LowRanks>| {
        let request =
            Answering { sampler: SamplerConfig::default(), max_tokens: plan.sample.max_tokens, raw: prepared.raw };
        answer(&decoder, &base.encoder, adapter, prompts, &request, |_, _| Ok(()))
    };
    let before = answering(&plan.sample.prompts, None)?;

    let about = json!({
        "burnish": env!("CARGO_PKG_VERSION"),
        "started": now(),
        "overrides": recipe.overrides,
        "plan": plan,
        "device": choice.to_string(),
        "base": { "name": base.name, "path": base.path(), "sha256": base_sha256 },
        "memory_plan": prepared.memory,
        "data": {
            "train_sha256": data_sha256,
            "train": describe(train),
            "valid": describe(valid),
        },
    });
    // From here on a signal finds a run folder, and ends the run as a run ends.
    let finishing = interrupt::finish_first();
    let mut folder = RunFolder::create(&plan.output.dir)?;
    folder.write("recipe.toml", &recipe.text)?;
    folder.write("run.json", &format!("{about:#}\n"))?;
    base.encoder.tokenizer().save(folder.path())?;

    let hub_name = base.hub_name();
    let revision = base.hub_revision();
    let options = SaveOptions {
        targets: &plan.adapter.targets,
        base_name: Some(&hub_name),
        revision: revision.as_deref(),
        rslora: plan.adapter.rslora,
    };
    let mut parameters = 0;
    let outcome = fit(&decoder, start, &train.sequences, &valid.sequences, settings, interrupt::requested, |event| {
        watch.event(&event);
        match event {
            Event::Begin { parameters: count, .. } => parameters = count,
            Event::Step { step, learning_rate, report, tokens_per_second, peak_bytes, epoch } => {
                folder.record(&json!({
                    "step": step, "epoch": epoch, "loss": report.loss, "learning_rate": learning_rate,
                    "grad_norm": report.grad_norm, "tokens": report.tokens, "trained_tokens": report.trained_tokens,
                    "tokens_per_second": tokens_per_second, "peak_bytes": peak_bytes,
                }))?
            }
            Event::Evaluation { step, valid_loss, tokens, is_best } => folder.record(&json!({
                "step": step, "valid_loss": valid_loss, "valid_tokens": tokens, "is_best": is_best,
            }))?,
            Event::Best { adapter, .. } => {
                adapter.save(folder.path(), &options)?;
                folder.keep();
            }
            Event::Stopped { .. } => {}
        }
        Ok(())
    })?;

    drop(finishing);
    let validation = if outcome.valid_before.is_empty() {
        None
    } else {
        let comparison = compare(&outcome.valid_before, &outcome.valid_after, plan.train.seed)?;
        let tokens = outcome.valid_after.iter().map(|loss| loss.tokens).sum();
        Some(Validation::of(&comparison, tokens))
    };
    // Whoever interrupts a run does not want to wait for samples.
    let prompts = if outcome.interrupted { &[][..] } else { &plan.sample.prompts[..] };
    let after = answering(prompts, Some(&outcome.adapter.attach(decoder.config(), device)?))?;
    let samples = plan.sample.prompts.iter().zip(before).zip(after);
    let samples = samples.map(|((prompt, before), after)| Sample { prompt: prompt.clone(), before, after });
    let report = TrainReport {
        dir: plan.output.dir.clone(),
        steps: outcome.steps,
        best_step: outcome.best_step,
        stopped_early: outcome.stopped_early,
        interrupted: outcome.interrupted,
        parameters,
        tokens_per_second: outcome.tokens_per_second,
        peak_bytes: memory::peak_bytes(),
        planned_bytes: (*choice == DeviceChoice::Cpu).then(|| prepared.memory.total()),
        validation,
        samples: samples.collect(),
    };
    let mut about = about;
    about["finished"] = json!(now());
    about["outcome"] = json!(report);
    folder.write("run.json", &format!("{about:#}\n"))?;
    Ok(report)
}

fn now() -> String {
    let now = time::OffsetDateTime::now_utc();
    now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

fn describe(set: &EncodedSet) -> serde_json::Value {
    let trained: usize = set.sequences.iter().map(|sequence| sequence.trained_tokens()).sum();
    json!({
        "examples": set.sequences.len(), "tokens": set.tokens, "trained_tokens": trained,
        "dropped_long": set.dropped_long, "truncated": set.truncated, "dropped_untrained": set.dropped_untrained,
        "untrained_turns": set.untrained_turns,
    })
}

/// Reads the examples of both splits.
fn read_examples(plan: &plan::Plan) -> Result<(Vec<Row>, Vec<Row>)> {
    let format = match plan.data.format {
        plan::DataFormat::Auto => None,
        plan::DataFormat::Alpaca => Some(jsonl::Format::Alpaca),
        plan::DataFormat::Chat => Some(jsonl::Format::Chat),
        plan::DataFormat::PromptCompletion => Some(jsonl::Format::PromptCompletion),
        plan::DataFormat::Text => Some(jsonl::Format::Text),
    };
    let valid = plan.data.valid.as_ref().map(|path| data::read(path, format)).transpose();
    let (train, valid) = Error::both(data::read(&plan.data.train, format), valid)?;
    match (valid, plan.data.valid_fraction) {
        (Some(valid), _) => Ok((train, valid)),
        (None, Some(fraction)) => batch::split_valid(train, fraction, plan.train.seed),
        (None, None) => Ok((train, Vec::new())),
    }
}

fn long_policy(plan: &plan::Plan) -> LongPolicy {
    match plan.data.overlong {
        plan::Overlong::Error => LongPolicy::Error,
        plan::Overlong::Drop => LongPolicy::Drop,
        plan::Overlong::TruncatePrompt => LongPolicy::TruncatePrompt,
    }
}

/// What of the data is not used, and what flatters.
fn tell_left_out(prepared: &Prepared, watch: &mut dyn Watch) {
    let limit = prepared.plan.data.max_seq_tokens.min(prepared.base.files.config().max_positions);
    for (name, set) in [("train", &prepared.train), ("valid", &prepared.valid)] {
        for (count, what) in [
            (set.dropped_long, format!("left out: longer than {limit} tokens")),
            (set.truncated, format!("had their prompt cut to {limit} tokens")),
            (set.dropped_untrained, "left out: nothing in them is trained".to_owned()),
        ] {
            if count > 0 {
                watch.notice(&format!("{name}: {count} examples {what}"));
            }
        }
        if set.untrained_turns > 0 {
            watch.notice(&format!(
                "{name}: {} turns of the assistant are not trained: the chat template shows them differently once the \
                 conversation goes on",
                set.untrained_turns
            ));
        }
    }
    let encoder = &prepared.base.encoder;
    let ends = if prepared.raw { encoder.tokenizer().eos_tokens() } else { encoder.stop_tokens() };
    if ends.is_empty() {
        watch.notice(
            "the tokenizer names no end token (`eos_token`): no end is trained, and answers go on to their limit",
        );
    }
    if prepared.seen_in_training > 0 {
        let seen = prepared.seen_in_training;
        watch.notice(&format!("valid: {seen} examples are in the training data too: the validation loss flatters"));
    }
}

fn precision(plan: &plan::Plan) -> (Compute, Quant) {
    let compute = match plan.base.compute {
        plan::Compute::F32 => Compute::F32,
        plan::Compute::Bf16 => Compute::Bf16,
    };
    let quant = match plan.base.quant {
        plan::Quant::None => Quant::None,
        plan::Quant::Keep => Quant::Keep,
        plan::Quant::Nf4 => Quant::Nf4 { double: false },
        plan::Quant::Nf4Double => Quant::Nf4 { double: true },
        plan::Quant::Int8 => Quant::Int8,
    };
    (compute, quant)
}

fn recompute(recompute: plan::Recompute) -> Recompute {
    match recompute {
        plan::Recompute::None => Recompute::None,
        plan::Recompute::Block => Recompute::Block,
    }
}

/// The first layout of micro-batches that fits, with what it takes; without a limit, the plan's own.
fn fit_memory(
    plan: &plan::Plan,
    base: &OpenBase,
    load: &LoadOptions,
    start: &HostAdapter,
    (train, valid): (&EncodedSet, &EncodedSet),
    limit: Option<Size>,
) -> Result<((usize, usize, Recompute), MemoryPlan)> {
    let mut lengths: Vec<(usize, usize)> =
        train.sequences.iter().map(|sequence| (sequence.ids.len(), sequence.trained_tokens())).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    let largest_trained = lengths.iter().map(|(_, trained)| *trained).max().unwrap_or(0);
    let evaluated: usize = valid.sequences.iter().map(|sequence| sequence.ids.len()).sum();
    let of = |micro_batch_seqs: usize, recompute: Recompute| {
        let (tokens, trained_tokens) = if plan.data.packing {
            let tokens = (micro_batch_seqs * plan.data.max_seq_tokens).min(train.tokens);
            (tokens, tokens)
        } else {
            let tokens = lengths.iter().take(micro_batch_seqs).map(|(length, _)| length).sum();
            (tokens, largest_trained * micro_batch_seqs)
        };
        let evaluated_tokens = evaluated.min(TOKENS_AT_ONCE);
        let work = Workload { tokens, trained_tokens: trained_tokens.min(tokens), evaluated_tokens, recompute };
        MemoryPlan::of(&base.files, load, start, &work)
    };
    let train = &plan.train;
    let mut tried = None;
    for layout in layouts(train.micro_batch_seqs, train.accumulate_steps, recompute(train.recompute)) {
        let memory = of(layout.0, layout.2);
        if limit.is_none_or(|limit| memory.total() <= limit.0) {
            return Ok((layout, memory));
        }
        tried = Some(memory);
    }
    match (limit, tried) {
        (Some(limit), Some(least)) => Err(does_not_fit(limit, &least)),
        _ => unreachable!("without a limit the first layout fits"),
    }
}

fn adapter_spec(plan: &plan::Plan) -> AdapterSpec {
    let plan::Adapter { rank, alpha, dropout, targets, rslora } = &plan.adapter;
    AdapterSpec { rank: *rank, alpha: *alpha, dropout: *dropout, rslora: *rslora, targets: targets.clone() }
}

fn settings(plan: &plan::Plan) -> Settings {
    let train = &plan.train;
    Settings {
        epochs: train.epochs,
        max_steps: train.max_steps,
        micro_batch_seqs: train.micro_batch_seqs,
        accumulate_steps: train.accumulate_steps,
        packing: plan.data.packing,
        max_seq_tokens: plan.data.max_seq_tokens,
        learning_rate: train.learning_rate,
        schedule: match train.schedule {
            plan::Schedule::Constant => ScheduleKind::Constant,
            plan::Schedule::Linear => ScheduleKind::Linear,
            plan::Schedule::Cosine => ScheduleKind::Cosine,
        },
        warmup_steps: train.warmup_steps,
        eval_steps: train.eval_steps,
        optimiser: Optimiser {
            beta1: train.beta1,
            beta2: train.beta2,
            weight_decay: train.weight_decay,
            max_grad_norm: train.max_grad_norm,
            recompute: recompute(train.recompute),
        },
        early_stopping: train
            .early_stopping
            .as_ref()
            .map(|stopping| EarlyStopping { patience_evals: stopping.patience_evals, min_delta: stopping.min_delta }),
        seed: train.seed,
    }
}

impl fmt::Display for TrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for sample in &self.samples {
            writeln!(f, "prompt: {}", sample.prompt.trim())?;
            writeln!(f, "  before: {}", sample.before.trim())?;
            writeln!(f, "  after:  {}\n", sample.after.trim())?;
        }
        if let Some(valid) = &self.validation {
            writeln!(f, "{valid}")?;
        }
        let (steps, best) = (self.steps, self.best_step);
        let early = match (self.interrupted, self.stopped_early) {
            (true, _) => ", interrupted",
            (_, true) => ", stopped early",
            _ => "",
        };
        let (speed, peak) = (self.tokens_per_second, Size(self.peak_bytes));
        write!(f, "{steps} steps{early}, best at {best}; {speed:.0} tokens/s; peak memory {peak}")?;
        match self.planned_bytes {
            Some(planned) => writeln!(f, " (planned {})", Size(planned))?,
            None => writeln!(f)?,
        }
        write!(f, "adapter: {} ({} parameters)", self.dir.display(), self.parameters)
    }
}

impl fmt::Display for Validation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "validation loss {:.4} -> {:.4} over {} tokens ({:+.4}, 95% interval {:+.4} to {:+.4}): {}",
            self.loss_before, self.loss_after, self.tokens, self.difference, self.low, self.high, self.verdict
        )
    }
}
