//! The main job: from a recipe to a run folder with the best adapter.

use serde::Serialize;
use serde_json::{Value, json};

use super::answer::{Answering, answer_ids};
use super::folder::RunFolder;
use super::held_out::MeasuredSet;
use super::outcome::{Sample, TrainReport};
use super::prepare::{Prepared, prepare};
use super::samples::Samples;
use super::verdict::Verdicts;
use super::watch::{Stage, Watch};
use crate::adapter::peft::SaveOptions;
use crate::bytes::Size;
use crate::data::EncodedSet;
use crate::device::DeviceChoice;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::Decoder;
use crate::nn::Adapter;
use crate::recipe::Recipe;
use crate::train::{Event, Job, Outcome, fit, peak_memory};

/// Trains as `recipe` says and writes its run folder.
///
/// # Errors
/// Those of [`prepare`], before a weight is loaded; those of training. A run that has recorded a step keeps its folder.
pub fn train(
    recipe: &Recipe,
    choice: &DeviceChoice,
    max_memory: Option<Size>,
    watch: &mut dyn Watch,
) -> Result<TrainReport> {
    let prepared = prepare(recipe, choice, max_memory, watch)?;
    let plan = &prepared.plan;
    watch.stage(Stage::LoadWeights);
    let decoder = prepared
        .base
        .load(&prepared.device, plan.base.compute, plan.base.quant, |done, total| watch.loading(done, total))
        .map_err(|error| recipe.locate(error))?;
    let before = sampled(Stage::SampleBefore, &prepared, &decoder, None, watch)?;

    // From here on a signal finds a run folder, and ends the run as a run ends.
    let finishing = interrupt::finish_first();
    let mut folder = RunFolder::create(&plan.output.dir)?;
    let mut record = record(recipe, choice, &prepared);
    folder.write("recipe.toml", &recipe.text)?;
    write_record(&folder, &record)?;
    prepared.base.encoder.tokenizer().save(folder.path())?;

    watch.stage(Stage::Train);
    let outcome = fit_into(&mut folder, &prepared, &decoder, watch);
    let outcome = outcome.inspect_err(|error| {
        // Why the run failed; where this cannot be written either, the error itself still says it.
        record["finished"] = json!(now());
        record["error"] = json!(error.to_string());
        let _ = write_record(&folder, &record);
    })?;
    let mut report = report(&prepared, choice, &outcome);
    record["finished"] = json!(now());
    record["outcome"] = json!(report);
    write_record(&folder, &record)?;

    // The outcome stands: a signal may end the process now.
    drop(finishing);
    let verdicts = Verdicts::of(&prepared, &decoder, &outcome, watch)?;
    (report.validation, report.test, report.guard) = (verdicts.validation, verdicts.test, verdicts.guard);
    if !outcome.interrupted {
        let adapter = outcome.adapter.attach(decoder.config(), &prepared.device)?;
        let after = sampled(Stage::SampleAfter, &prepared, &decoder, Some(&adapter), watch)?;
        let samples = plan.sample.prompts.iter().zip(before).zip(after);
        let samples = samples.map(|((prompt, before), after)| Sample { prompt: prompt.clone(), before, after });
        report.samples = samples.collect();
    }
    record["outcome"] = json!(report);
    write_record(&folder, &record)?;
    Ok(report)
}

/// Trains; metrics and the best adapter go to the run folder as they come.
fn fit_into(folder: &mut RunFolder, prepared: &Prepared, decoder: &Decoder, watch: &mut dyn Watch) -> Result<Outcome> {
    let Prepared { plan, base, start, train, valid, held_out, batching, layout, .. } = prepared;
    let augmenter = prepared.augmenter();
    let (hub_name, revision) = (base.hub_name(), base.hub_revision());
    let targets = plan.adapter.targets.names(base.files.config())?;
    let options = SaveOptions {
        targets: &targets,
        base_name: Some(&hub_name),
        revision: revision.as_deref(),
        rslora: plan.adapter.rslora,
    };
    let job = Job {
        decoder,
        start,
        train: &train.sequences,
        augment: augmenter.as_ref(),
        valid: held_out.valid_at_steps(valid),
        settings: &plan.train,
        batching: *batching,
        layout: *layout,
    };
    let mut samples = Samples::begin(prepared);
    fit(&job, interrupt::requested, |event| {
        watch.event(&event);
        match event {
            Event::Step { step, learning_rate, report, tokens_per_second, peak_bytes, epoch } => {
                folder.record(&json!({
                    "step": step, "epoch": epoch, "loss": report.loss, "learning_rate": learning_rate,
                    "grad_norm": report.grad_norm, "tokens": report.tokens, "trained_tokens": report.trained_tokens,
                    "tokens_per_second": tokens_per_second, "peak_bytes": peak_bytes,
                }))?;
                folder.keep();
            }
            Event::Evaluation { step, valid_loss, tokens, correct_tokens, is_best, adapter } => {
                folder.record(&json!({
                    "step": step, "valid_loss": valid_loss, "valid_tokens": tokens,
                    "valid_token_accuracy": correct_tokens as f64 / tokens as f64, "is_best": is_best,
                }))?;
                samples.answer(step, decoder, adapter, folder, watch)?;
            }
            Event::Best { adapter, .. } => {
                adapter.save(folder.path(), &options)?;
                folder.keep();
            }
            Event::Begin { .. } | Event::Evaluating { .. } | Event::Stopped { .. } => {}
        }
        Ok(())
    })
}

/// The answers to the sample prompts; nothing to announce where there is none.
fn sampled(
    stage: Stage,
    prepared: &Prepared,
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    watch: &mut dyn Watch,
) -> Result<Vec<String>> {
    let sample = &prepared.plan.sample;
    if sample.prompts.is_empty() {
        return Ok(Vec::new());
    }
    watch.stage(stage);
    let answering = Answering { max_tokens: sample.max_tokens, ..Answering::default() };
    let encoder = &prepared.base.encoder;
    let answers = answer_ids(decoder, encoder, adapter, &prepared.prompts, &answering, |_, _| Ok(()))?;
    Ok(answers.into_iter().map(|answer| answer.text).collect())
}

fn report(prepared: &Prepared, choice: &DeviceChoice, outcome: &Outcome) -> TrainReport {
    let pairs = outcome.adapter.pairs.values();
    TrainReport {
        dir: prepared.plan.output.dir.clone(),
        steps: outcome.steps,
        best_step: outcome.best_step,
        stopped_early: outcome.stopped_early,
        interrupted: outcome.interrupted,
        parameters: pairs.map(|pair| pair.a.len() + pair.b.len()).sum(),
        tokens_per_second: outcome.tokens_per_second,
        peak_bytes: peak_memory::peak_bytes(),
        planned_bytes: (*choice == DeviceChoice::Cpu).then(|| prepared.memory.total()),
        validation: None,
        test: None,
        guard: None,
        samples: Vec::new(),
    }
}

/// The contents of `run.json` as far as they are known before the first step.
fn record(recipe: &Recipe, choice: &DeviceChoice, prepared: &Prepared) -> Value {
    let Prepared {
        plan, base, base_sha256, train_sha256, valid_sha256, train, valid, held_out, layout, memory, ..
    } = prepared;
    json!({
        "burnish": env!("CARGO_PKG_VERSION"),
        "started": now(),
        "overrides": recipe.overrides,
        "plan": plan,
        "device": choice.to_string(),
        "base": { "name": base.name, "path": base.path(), "sha256": base_sha256 },
        "layout": layout,
        "memory_plan": memory,
        "data": {
            "train_sha256": train_sha256, "valid_sha256": valid_sha256, "format": train.format,
            "train": describe(train), "valid": describe(valid),
            "test": held_out.test.as_ref().map(describe_measured), "guard": held_out.guard.as_ref().map(describe_measured),
        },
    })
}

fn write_record(folder: &RunFolder, record: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(record).map_err(|error| Error::failed("run.json", error.to_string()))?;
    folder.write("run.json", &format!("{text}\n"))
}

fn describe(set: &EncodedSet) -> Value {
    json!({
        "examples": set.sequences.len(), "tokens": set.tokens, "trained_tokens": set.trained_tokens,
        "dropped_long": set.dropped_long, "truncated": set.truncated, "dropped_untrained": set.dropped_untrained,
        "untrained_turns": set.untrained_turns,
    })
}

fn describe_measured(measured: &MeasuredSet) -> Value {
    json!({ "path": measured.path, "sha256": measured.sha256, "examples": describe(&measured.set) })
}

/// The time in UTC, as RFC 3339 writes it.
fn now() -> String {
    let now = time::OffsetDateTime::now_utc();
    now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}
