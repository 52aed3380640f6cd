//! The main job: from a recipe to a run folder with the best adapter.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::answer::{Answering, answer_ids};
use super::card::{CARD_FILE, card};
use super::exact_match::Answered;
use super::folder::{RunFolder, now, resume_command};
use super::held_out::MeasuredSet;
use super::identity::{identity, instruction_set};
use super::log_command::LogCommand;
use super::outcome::{Sample, TrainReport};
use super::prepare::{Prepared, prepare};
use super::privacy;
use super::ranks;
use super::recorder::Recorder;
use super::resume::{self, Checkpoint, Extras, Start};
use super::shared_base::SharedBase;
use super::verdict::Verdicts;
use super::watch::{Stage, Watch};
use crate::adapter::host::provenance;
use crate::adapter::peft::SaveOptions;
use crate::allocator;
use crate::bytes::Size;
use crate::data::EncodedSet;
use crate::device::{self, DeviceChoice};
use crate::error::{Error, Place, Result};
use crate::files::space;
use crate::files::versions::Versions;
use crate::interrupt;
use crate::model::Decoder;
use crate::nn::Adapter;
use crate::recipe::{self, Recipe};
use crate::train::{Alone, Event, ExactMatch, Job, Mechanism, Outcome, Ranks, State, fit, peak_memory};

/// The place and the manner of a run, apart from its recipe: by default on the processor, in a new folder, with the memory that it
/// takes, in one process.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions<'a> {
    /// Where to compute.
    pub device: DeviceChoice,
    /// The most memory that the run may take.
    pub max_memory: Option<Size>,
    /// How the run begins.
    pub start: Start<'a>,
    /// A command of the shell that gets each line of the metrics on its stdin.
    pub log_to: Option<&'a str>,
    /// The processes that train together, of which each does this job.
    pub ranks: &'a dyn Ranks,
    /// The base that runs of this process share; `None` to load it for this run alone.
    pub base: Option<&'a SharedBase>,
    /// The end of this run's turn, if it is one of several.
    pub turn: Option<Turn<'a>>,
}

/// The turn of a run that takes turns with others. At its end the run saves its state, as if the user had interrupted it.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'a> {
    /// The step after which it ends; `None` for the last one.
    pub until_step: Option<u64>,
    /// It ends as soon as this is true.
    pub ends_now: &'a AtomicBool,
    /// The command that goes on with all of the runs.
    pub command: &'a str,
}

impl Turn<'_> {
    /// Whether the turn of a run with so many steps is over.
    fn is_over(&self, steps_done: u64) -> bool {
        self.until_step.is_some_and(|until| steps_done >= until) || self.ends_now.load(Ordering::Relaxed)
    }
}

impl Default for RunOptions<'_> {
    fn default() -> Self {
        Self {
            device: DeviceChoice::default(),
            max_memory: None,
            start: Start::default(),
            log_to: None,
            ranks: &Alone,
            base: None,
            turn: None,
        }
    }
}

/// Trains as `recipe` says and writes its run folder, or goes on with the run that is in it. Of several ranks, the first writes.
///
/// # Errors
/// Those of [`prepare`], before a weight is loaded; a run folder that does not suit `start`; those of training. A run that has
/// recorded a step keeps its folder.
pub fn train(recipe: &Recipe, how: &RunOptions<'_>, watch: &mut dyn Watch) -> Result<TrainReport> {
    let RunOptions { device: choice, max_memory, start, log_to, ranks, base, turn } = how;
    let dir = recipe.plan()?.output.dir;
    let command = match turn {
        Some(turn) => turn.command.to_owned(),
        None => resume_command(&dir) + &options(choice, *max_memory),
    };
    let located = |error| recipe.locate(error);
    let (folder, accepted) = match start {
        _ if !ranks.is_first() => (None, &[][..]),
        Start::Fresh => {
            RunFolder::check_free(&dir).map_err(located)?;
            (None, &[][..])
        }
        Start::Resumed(accepted) => (resume::reopen(&dir).map_err(located)?, *accepted),
    };
    let goes_on = folder.is_some();
    interrupt::set_going_on((goes_on || turn.is_some()).then(|| format!("nothing is lost: `{command}` goes on")));
    let prepared = prepare(recipe, choice, *max_memory, watch)?;
    let plan = &prepared.plan;
    if let Some([label]) = prepared.start.classifier.as_ref().map(|classifier| classifier.labels.as_slice()) {
        let message = format!("has the label {label:?} alone: there is nothing to tell apart");
        return Err(located(Error::input(Place::setting("data.train"), message)));
    }
    if !goes_on && ranks.is_first() {
        space::check(&dir, prepared.disk_bytes())?;
    }
    let identity = identity(&prepared, choice);
    ranks::check(*ranks, &prepared, &identity, watch).map_err(located)?;
    let mut versions = Versions::open(&dir.join(RunFolder::CHECKPOINTS), plan.train.keep_checkpoints);
    let checkpoint = match goes_on {
        true => resume::newest(&mut versions, &prepared, &identity, accepted, watch)?,
        false => None,
    };
    match (&checkpoint, start) {
        _ if !ranks.is_first() => {}
        (Some(found), _) => {
            watch.notice(&format!("going on from the checkpoint of step {}", found.state.progress.step))
        }
        (None, Start::Resumed(_)) => {
            watch.notice(&format!("there is no checkpoint in {} yet: the run begins", dir.display()));
        }
        (None, Start::Fresh) => {}
    }
    let (state, checkpoint) = match checkpoint {
        Some(Checkpoint { state, extras, metrics }) => (Some(state), Some((extras, metrics))),
        None => (None, None),
    };
    let state = State::broadcast(state, &prepared.start, *ranks)?;

    let decoder = match base {
        Some(shared) => shared.load(&prepared, watch),
        None => prepared.load(watch).map(Arc::new),
    };
    let decoder = decoder.map_err(located)?;
    let decoder = &*decoder;
    if !ranks.is_first() {
        let privacy = privacy::mechanism(&prepared, Vec::new(), &identity, *ranks);
        return follow(&prepared, choice, (decoder, privacy.as_ref()), state.as_ref(), *ranks);
    }
    let (extras, metrics) = checkpoint.unwrap_or_default();
    let (prompts, max_tokens) = (prepared.prompts.clone(), plan.sample.max_tokens);
    let answers = match extras.prompts == prompts && extras.max_tokens == max_tokens {
        true => extras.answers,
        false => sampled(Stage::SampleBefore, &prepared, decoder, None, watch)?,
    };
    let before = Extras { prompts, max_tokens, answers };

    // From here on a signal finds a run folder, and ends the run as a run ends.
    let finishing = interrupt::finish_first("stopping: the state is being saved; a second signal stops at once");
    interrupt::set_going_on(Some(format!("`{command}` goes on")));
    let mut folder = folder.map_or_else(|| RunFolder::create(&dir), Ok)?;
    let mut record = record(recipe, choice, &prepared, folder.record_before());
    record["ranks"] = json!(ranks.count());
    let steps_done = state.as_ref().map(|state| state.progress.step);
    let secret = match prepared.privacy {
        Some(_) => privacy::secret(folder.path(), steps_done, watch)?,
        None => Vec::new(),
    };
    let mechanism = privacy::mechanism(&prepared, secret, &identity, *ranks);
    folder.set_metrics(&metrics)?;
    folder.write_recipe(&recipe::resolved(&recipe.plan()?)?)?;
    folder.write_record(&record)?;
    prepared.base.encoder.tokenizer().save(folder.path())?;

    watch.stage(Stage::Train);
    allocator::give_back_freed_memory();
    let (hub_name, revision) = (prepared.base.hub_name(), prepared.base.hub_revision());
    let config = prepared.base.files.config();
    let targets = plan.adapter.target_names(config)?;
    let options = SaveOptions {
        targets: &targets,
        base_name: Some(&hub_name),
        revision: revision.as_deref(),
        rslora: plan.adapter.rslora,
        bias: plan.adapter.bias,
        head: Some(config.names.head),
    };
    let mut recorder = Recorder::new(folder, versions, before, identity, (&prepared, decoder), options);
    recorder.log = log_to.map(LogCommand::start).transpose()?;
    let job = (&prepared, (decoder, mechanism.as_ref()), state.as_ref());
    let outcome = fit_among(*ranks, Some(&mut recorder), job, turn.as_ref(), watch);
    drop(state);
    let mut outcome = outcome.inspect_err(|error| {
        // Why the run failed; where this cannot be written either, the error itself still says it.
        record["finished"] = json!(now());
        record["error"] = json!(error.to_string());
        let _ = recorder.folder.write_record(&record);
        recorder.write_report(watch);
    })?;
    let mut report = report(&prepared, choice, &outcome);
    report.resume = outcome.interrupted.then_some(command);
    record["finished"] = json!(now());
    record["outcome"] = json!(report);
    recorder.folder.write_record(&record)?;

    if !outcome.interrupted && prepared.privacy.is_some() {
        privacy::forget(recorder.folder.path(), watch);
    }
    // The outcome stands: a signal may end the process now.
    drop(finishing);
    let verdicts = Verdicts::of(*ranks, &prepared, decoder, &outcome, watch)?;
    (report.validation, report.test, report.guard) = (verdicts.validation, verdicts.test, verdicts.guard);
    if !outcome.interrupted {
        let adapter = outcome.adapter.attach(decoder.config(), &prepared.device)?;
        let after = sampled(Stage::SampleAfter, &prepared, decoder, Some(&adapter), watch)?;
        let samples = plan.sample.prompts.iter().zip(recorder.before()).zip(after);
        let samples =
            samples.map(|((prompt, before), after)| Sample { prompt: prompt.clone(), before: before.clone(), after });
        report.samples = samples.collect();
        if let Some(verdicts) = report.verdicts() {
            outcome.adapter.metadata.insert(provenance::VERDICT.to_owned(), verdicts.to_string());
            outcome.adapter.save(recorder.folder.path(), &options)?;
        }
    }
    recorder.measure_outcome(&outcome);
    recorder.folder.write(CARD_FILE, &card(&prepared, &report, &targets))?;
    record["outcome"] = json!(report);
    recorder.folder.write_record(&record)?;
    recorder.write_report(watch);
    Ok(report)
}

/// The part of a rank that writes nothing.
fn follow(
    prepared: &Prepared,
    choice: &DeviceChoice,
    (decoder, privacy): (&Decoder, Option<&Mechanism>),
    state: Option<&State>,
    ranks: &dyn Ranks,
) -> Result<TrainReport> {
    let finishing = interrupt::finish_first("");
    let outcome = fit_among(ranks, None, (prepared, (decoder, privacy), state), None, &mut ())?;
    drop(finishing);
    let verdicts = Verdicts::of(ranks, prepared, decoder, &outcome, &mut ())?;
    let Verdicts { validation, test, guard } = verdicts;
    Ok(TrainReport { validation, test, guard, ..report(prepared, choice, &outcome) })
}

/// Trains; metrics, checkpoints and the best adapter go to the recorder, and so to the run folder, as they come.
fn fit_among(
    ranks: &dyn Ranks,
    mut recorder: Option<&mut Recorder<'_>>,
    (prepared, (decoder, privacy), state): (&Prepared, (&Decoder, Option<&Mechanism>), Option<&State>),
    turn: Option<&Turn<'_>>,
    watch: &mut dyn Watch,
) -> Result<Outcome> {
    let Prepared { plan, base, start, train, valid, held_out, batching, layout, .. } = prepared;
    let augmenter = prepared.augmenter();
    let questions = &held_out.scored;
    let exact_match = Answered { decoder, encoder: &base.encoder, questions };
    let job = Job {
        decoder,
        start,
        train: &train.sequences,
        augment: augmenter.as_ref(),
        valid: held_out.valid_at_steps(valid),
        exact_match: (!questions.is_empty()).then_some(&exact_match as &dyn ExactMatch),
        settings: &plan.train,
        batching: *batching,
        layout: *layout,
        privacy,
        state,
        ranks,
    };
    let steps = Cell::new(0);
    let stop = || interrupt::requested() || turn.is_some_and(|turn| turn.is_over(steps.get()));
    let outcome = fit(&job, stop, |event| {
        if let Event::Begin { steps_done: done, .. } | Event::Step { step: done, .. } = event {
            steps.set(done);
        }
        watch.event(&event);
        if let Some(recorder) = &mut recorder {
            recorder.take(&event, watch);
        }
        Ok(())
    });
    let finished = recorder.map_or(Ok(()), Recorder::finish);
    let (outcome, ()) = Error::both(outcome, finished)?;
    Ok(outcome)
}

/// The options of the command that goes on, as far as they decide something about the result.
pub(super) fn options(choice: &DeviceChoice, max_memory: Option<Size>) -> String {
    let device = if *choice == DeviceChoice::default() { String::new() } else { format!(" --device {choice}") };
    let memory = max_memory.map(|Size(bytes)| format!(" --max-memory {bytes}"));
    device + &memory.unwrap_or_default()
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
    let answers = answer_ids(decoder, encoder, adapter, &prepared.prompts, &answering)?;
    Ok(answers.into_iter().map(|answer| answer.text).collect())
}

fn report(prepared: &Prepared, choice: &DeviceChoice, outcome: &Outcome) -> TrainReport {
    TrainReport {
        dir: prepared.plan.output.dir.clone(),
        steps: outcome.steps,
        bad_steps: outcome.bad_steps,
        best_step: outcome.best_step,
        stopped_early: outcome.stopped_early,
        interrupted: outcome.interrupted,
        resume: None,
        parameters: outcome.adapter.parameters(),
        tokens_per_second: outcome.tokens_per_second,
        peak_bytes: peak_memory::peak_bytes(),
        planned_bytes: planned_bytes(prepared, choice),
        privacy: prepared.privacy,
        validation: None,
        test: None,
        guard: None,
        samples: Vec::new(),
    }
}

/// The planned peak of the process; none where the model lies in another memory.
fn planned_bytes(prepared: &Prepared, choice: &DeviceChoice) -> Option<u64> {
    (*choice == DeviceChoice::Cpu).then(|| prepared.memory.total())
}

/// The contents of `run.json` as far as they are known before the first step. `before` is what the file held so far.
fn record(recipe: &Recipe, choice: &DeviceChoice, prepared: &Prepared, mut before: Value) -> Value {
    let Prepared {
        plan, base, base_sha256, train_sha256, valid_sha256, train, valid, held_out, layout, memory, ..
    } = prepared;
    let started = before["started"].take();
    let mut resumed = before["resumed"].take().as_array().cloned().unwrap_or_default();
    if !started.is_null() {
        resumed.push(json!(now()));
    }
    json!({
        "burnish": env!("CARGO_PKG_VERSION"),
        "build": env!("BURNISH_BUILD"),
        "started": if started.is_null() { json!(now()) } else { started },
        "resumed": resumed,
        "overrides": recipe.overrides,
        "plan": plan,
        "device": choice.to_string(),
        "instruction_set": instruction_set(choice),
        "threads": rayon::current_num_threads(),
        "processor": device::processor(),
        "base": { "name": base.name, "path": base.path(), "sha256": base_sha256 },
        // The seed, and the hashes of quantiser, tokenizer and chat template among others.
        "provenance": prepared.start.metadata,
        "privacy": prepared.privacy,
        "layout": layout,
        "memory_plan": memory,
        "planned_bytes": planned_bytes(prepared, choice),
        "data": {
            "train_sha256": train_sha256, "valid_sha256": valid_sha256, "format": train.format,
            "train": describe(train), "valid": describe(valid),
            "test": held_out.test.as_ref().map(describe_measured), "guard": held_out.guard.as_ref().map(describe_measured),
        },
    })
}

fn describe(set: &EncodedSet) -> Value {
    json!({
        "examples": set.sequences.len(), "tokens": set.tokens, "trained_tokens": set.trained_tokens,
        "dropped_long": set.dropped_long, "truncated": set.truncated, "dropped_untrained": set.dropped_untrained,
        "untrained_turns": set.untrained_turns,
    })
}

fn describe_measured(measured: &MeasuredSet) -> Value {
    json!({ "path": measured.paths, "sha256": measured.sha256, "examples": describe(&measured.set) })
}
