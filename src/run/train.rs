//! The main job: from a plan to a run folder with the best adapter.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::json;

use super::base::{OpenBase, sha256_of};
use super::folder::RunFolder;
use super::infer::{Answering, answer};
use crate::adapter::attach::AdapterSpec;
use crate::adapter::file::{SaveOptions, provenance};
use crate::data::encode::{EncodedSet, LongPolicy};
use crate::data::{self, Example, batch, jsonl};
use crate::device::{self, DeviceChoice};
use crate::error::{Error, Result};
use crate::eval::loss::{Comparison, compare, perplexity};
use crate::generate::sample::SamplerConfig;
use crate::model::decoder;
use crate::model::load::{Compute, Quant};
use crate::pull;
use crate::recipe::{self as plan, Recipe};
use crate::train::step::Optimiser;
use crate::train::{EarlyStopping, Event, ScheduleKind, Settings, fit, memory};

/// Who watches a run.
pub trait Watch {
    /// A download.
    fn pull(&mut self, event: pull::Event<'_>);
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
    pub parameters: usize,
    pub tokens_per_second: f64,
    pub peak_bytes: u64,
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

/// Examples of both splits, encoded.
struct Splits {
    train: EncodedSet,
    valid: EncodedSet,
    /// The examples do not go through the chat template, so samples do not either.
    raw: bool,
}

/// Trains as `recipe` says and writes its run folder.
///
/// # Errors
/// Everything that is wrong with the recipe's files, before a weight is loaded; what training says.
pub fn train(recipe: &Recipe, choice: &DeviceChoice, watch: &mut dyn Watch) -> Result<TrainReport> {
    let plan = &recipe.plan()?;
    RunFolder::check_free(&plan.output.dir)?;
    let device = device::open(choice)?;
    let base = OpenBase::open(&plan.base.model, &mut |event| watch.pull(event))?;
    let splits = read_splits(plan, &base, watch)?;
    let (compute, quant) = precision(plan);
    let spec = adapter_spec(plan);
    let mut start = spec.initialise(base.files.config(), plan.train.seed)?;
    let (base_hash, data_hash) = (base.files.content_hash()?, sha256_of(&plan.data.train)?);
    start.metadata.extend(
        [
            (provenance::BASE_SHA256, base_hash.clone()),
            (provenance::QUANT, quant.name().to_owned()),
            (provenance::DATA_SHA256, data_hash.clone()),
            (provenance::SEED, plan.train.seed.to_string()),
            (provenance::VERSION, env!("CARGO_PKG_VERSION").to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    let decoder = base.load(&device, compute, quant)?;
    let answering = |prompts: &[String], adapter: Option<&crate::nn::LowRanks>| {
        let request =
            Answering { sampler: SamplerConfig::default(), max_tokens: plan.sample.max_tokens, raw: splits.raw };
        answer(&decoder, &base.encoder, adapter, prompts, &request, |_, _| Ok(()))
    };
    let before = answering(&plan.sample.prompts, None)?;

    let mut folder = RunFolder::create(&plan.output.dir)?;
    folder.write("recipe.toml", &recipe.text)?;
    let about = json!({
        "burnish": env!("CARGO_PKG_VERSION"),
        "started": now(),
        "overrides": recipe.overrides,
        "plan": plan,
        "device": choice.to_string(),
        "base": { "name": base.name, "path": base.path(), "sha256": base_hash },
        "data": {
            "train_sha256": data_hash,
            "train": describe(&splits.train),
            "valid": describe(&splits.valid),
        },
    });
    folder.write("run.json", &format!("{about:#}\n"))?;
    base.encoder.tokenizer().save(folder.path())?;

    let hub_name = base.hub_name();
    let options = SaveOptions { targets: &spec.targets, base_name: Some(&hub_name), rslora: spec.rslora };
    let settings = settings(plan);
    let mut parameters = 0;
    let outcome = fit(&decoder, &start, &splits.train.sequences, &splits.valid.sequences, &settings, |event| {
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
            Event::Best { adapter, .. } => adapter.save(folder.path(), &options)?,
            Event::Stopped { .. } => {}
        }
        Ok(())
    })?;

    let validation = if outcome.valid_before.is_empty() {
        None
    } else {
        let comparison = compare(&outcome.valid_before, &outcome.valid_after, plan.train.seed)?;
        let tokens = outcome.valid_after.iter().map(|loss| loss.tokens).sum();
        Some(Validation::of(&comparison, tokens))
    };
    let after = answering(&plan.sample.prompts, Some(&outcome.adapter.attach(decoder.config(), &device)?))?;
    let samples = plan.sample.prompts.iter().zip(before).zip(after);
    let samples = samples.map(|((prompt, before), after)| Sample { prompt: prompt.clone(), before, after });
    let report = TrainReport {
        dir: plan.output.dir.clone(),
        steps: outcome.steps,
        best_step: outcome.best_step,
        stopped_early: outcome.stopped_early,
        parameters,
        tokens_per_second: outcome.tokens_per_second,
        peak_bytes: memory::peak_bytes(),
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
    })
}

/// Reads and encodes the data; tells what was left out.
fn read_splits(plan: &plan::Plan, base: &OpenBase, watch: &mut dyn Watch) -> Result<Splits> {
    let format = match plan.data.format {
        plan::DataFormat::Auto => None,
        plan::DataFormat::Alpaca => Some(jsonl::Format::Alpaca),
        plan::DataFormat::Chat => Some(jsonl::Format::Chat),
        plan::DataFormat::PromptCompletion => Some(jsonl::Format::PromptCompletion),
        plan::DataFormat::Text => Some(jsonl::Format::Text),
    };
    let policy = match plan.data.overlong {
        plan::Overlong::Error => LongPolicy::Error,
        plan::Overlong::Drop => LongPolicy::Drop,
        plan::Overlong::TruncatePrompt => LongPolicy::TruncatePrompt,
    };
    let train = data::read(&plan.data.train, format);
    let valid = plan.data.valid.as_ref().map(|path| data::read(path, format)).transpose();
    let (train, valid) = match (train, valid) {
        (Ok(train), Ok(valid)) => (train, valid),
        (train, valid) => {
            let errors = [train.err(), valid.err()].into_iter().flatten();
            return Err(Error::join(errors).unwrap_or_else(|| Error::input("data", "cannot be read")));
        }
    };
    let (train, valid): (Vec<Example>, Vec<Example>) = match (valid, plan.data.valid_fraction) {
        (Some(valid), _) => (train, valid),
        (None, Some(fraction)) => batch::split_valid(train, fraction, plan.train.seed)?,
        (None, None) => (train, Vec::new()),
    };
    let encode = |examples: &[Example]| base.encoder.encode_all(examples, plan.data.max_seq_tokens, policy);
    let raw = matches!(train.first(), Some(Example::PromptCompletion { .. } | Example::Text { .. }));
    let splits = Splits { train: encode(&train)?, valid: encode(&valid)?, raw };
    for (name, set) in [("train", &splits.train), ("valid", &splits.valid)] {
        for (count, what) in [
            (set.dropped_long, "left out: longer than max_seq_tokens"),
            (set.truncated, "had their prompt cut to max_seq_tokens"),
            (set.dropped_untrained, "left out: nothing in them is trained"),
        ] {
            if count > 0 {
                watch.notice(&format!("{name}: {count} examples {what}"));
            }
        }
    }
    let seen = batch::seen_in_training(&splits.train.sequences, &splits.valid.sequences);
    if seen > 0 {
        watch.notice(&format!("valid: {seen} examples are in the training data too: the validation loss flatters"));
    }
    Ok(splits)
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
            recompute: match train.recompute {
                plan::Recompute::None => decoder::Recompute::None,
                plan::Recompute::Block => decoder::Recompute::Block,
            },
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
        let early = if self.stopped_early { ", stopped early" } else { "" };
        let megabytes = self.peak_bytes / 1_000_000;
        writeln!(
            f,
            "{steps} steps{early}, best at {best}; {:.0} tokens/s; peak memory {megabytes} MB",
            self.tokens_per_second
        )?;
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
