//! The recording of a run while it trains: metrics, the best adapter, checkpoints. A disk that is full or fails ends no
//! training: what could not be written is tried again at the next occasion.

use serde_json::{Value, json};

use super::folder::{RunFolder, now};
use super::log_command::LogCommand;
use super::prepare::Prepared;
use super::report::Reporter;
use super::resume::Extras;
use super::samples::Samples;
use super::watch::Watch;
use crate::adapter::host::HostAdapter;
use crate::adapter::peft::SaveOptions;
use crate::error::{Error, Result, counted};
use crate::files::versions::Versions;
use crate::interrupt;
use crate::model::Decoder;
use crate::train::{Event, Outcome, State};

/// The most examples of a bad step that are named.
const NAMED_EXAMPLES: usize = 8;

/// Writes the events of a run to its folder.
pub(super) struct Recorder<'a> {
    pub(super) folder: RunFolder,
    versions: Versions,
    extras: Extras,
    identity: Value,
    prepared: &'a Prepared,
    decoder: &'a Decoder,
    samples: Samples<'a>,
    report: Reporter<'a>,
    /// The command that gets the lines of the metrics.
    pub(super) log: Option<LogCommand>,
    options: SaveOptions<'a>,
    /// The best adapter, where it could not be written.
    unsaved_adapter: Option<(HostAdapter, Error)>,
    /// The steps of the best adapter and of the checkpoint on the disk.
    saved_adapter: Option<u64>,
    saved_checkpoint: Option<u64>,
    /// Why the last checkpoint could not be written.
    unsaved_checkpoint: Option<Error>,
    lines_wait: bool,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(
        folder: RunFolder,
        versions: Versions,
        extras: Extras,
        identity: Value,
        (prepared, decoder): (&'a Prepared, &'a Decoder),
        options: SaveOptions<'a>,
    ) -> Self {
        Self {
            folder,
            versions,
            extras,
            identity,
            prepared,
            decoder,
            samples: Samples::begin(prepared),
            report: Reporter::begin(prepared),
            log: None,
            options,
            unsaved_adapter: None,
            saved_adapter: None,
            saved_checkpoint: None,
            unsaved_checkpoint: None,
            lines_wait: false,
        }
    }

    /// Records an event.
    pub(super) fn take(&mut self, event: &Event<'_>, watch: &mut dyn Watch) {
        match *event {
            Event::Step { step, epoch, learning_rate, report, bad_sequences, seconds, peak_bytes } => {
                let places = &self.prepared.train.positions;
                let places = bad_sequences.iter().filter_map(|index| places.get(*index));
                let examples: Vec<String> = places.map(ToString::to_string).collect();
                let mut line = json!({
                    "step": step, "epoch": epoch, "loss": report.loss, "learning_rate": learning_rate,
                    "grad_norm": report.grad_norm, "tokens": report.tokens, "trained_tokens": report.trained_tokens,
                });
                if let (Some(margin), Some(accuracy)) = (report.rewards.margin(), report.rewards.accuracy()) {
                    line["reward_margin"] = json!(margin);
                    line["reward_accuracy"] = json!(accuracy);
                }
                if report.is_finite() && !report.not_finite.is_empty() {
                    // Examples of a private step that counted for nothing.
                    line["not_finite"] = json!(report.not_finite.len());
                }
                if !report.is_finite() {
                    watch.notice(&bad_step(step, report.loss, report.grad_norm, &examples));
                    line["skipped"] = json!(true);
                    line["examples"] = json!(examples);
                }
                self.record(&line, watch);
                // Timings are not what a run is about: one that finds no room waits in silence.
                let _ = self.folder.record_timing(&json!({
                    "step": step, "time": now(), "seconds": seconds, "tokens": report.tokens,
                    "tokens_per_second": report.tokens as f64 / seconds, "peak_bytes": peak_bytes,
                }));
                self.folder.keep();
            }
            Event::Evaluation {
                step,
                valid_loss,
                tokens,
                correct_tokens,
                exact_match,
                preferences,
                classes,
                is_best,
                adapter,
            } => {
                let mut line = json!({
                    "step": step, "valid_loss": valid_loss, "valid_tokens": tokens, "is_best": is_best,
                });
                let measures = match (preferences, classes) {
                    (Some(preferences), _) => json!(preferences),
                    (None, Some(classes)) => json!(classes),
                    (None, None) => json!({ "token_accuracy": correct_tokens as f64 / tokens as f64 }),
                };
                let measures = measures.as_object().into_iter().flatten().filter(|(name, _)| *name != "loss");
                measures.for_each(|(name, value)| line[format!("valid_{name}")] = value.clone());
                if let Some(share) = exact_match {
                    line["valid_exact_match"] = json!(share);
                }
                self.record(&line, watch);
                let Self { samples, decoder, folder, .. } = self;
                let answered = interrupt::cancellable(|| samples.answer(step, decoder, adapter, folder, watch));
                if let Some(Err(error)) = answered {
                    watch.notice(&format!("warning: no samples of step {step}: {error}"));
                }
            }
            Event::Best { step, adapter } => self.save_adapter(step, adapter, watch),
            Event::Checkpoint { state } => self.save_checkpoint(state, watch),
            Event::Begin { .. } | Event::Evaluating { .. } | Event::Stopped { .. } => {}
        }
        let Self { report, samples, decoder, folder, .. } = self;
        report.take(event, decoder, samples, folder, watch);
    }

    /// Measures what the report of a run that has come to its end tells.
    pub(super) fn measure_outcome(&mut self, outcome: &Outcome) {
        self.report.measure_outcome(outcome, self.decoder, &mut self.samples);
    }

    /// Writes the report by the files as they are now.
    pub(super) fn write_report(&mut self, watch: &mut dyn Watch) {
        self.report.write(&self.folder, watch);
    }

    /// Writes what could not be written so far.
    ///
    /// # Errors
    /// Failed: the best adapter, the last checkpoint or lines of the metrics are not on the disk.
    pub(super) fn finish(&mut self) -> Result<()> {
        if let Some((adapter, error)) = self.unsaved_adapter.take()
            && adapter.save(self.folder.path(), &self.options).is_err()
        {
            return Err(error.within("the best adapter is not saved"));
        }
        if let Some(error) = self.unsaved_checkpoint.take() {
            return Err(error.within("the last checkpoint is not saved"));
        }
        self.folder.flush_metrics()
    }

    /// The answers to the sample prompts before training.
    pub(super) fn before(&self) -> &[String] {
        &self.extras.answers
    }

    /// Records a line of the metrics.
    fn record(&mut self, line: &Value, watch: &mut dyn Watch) {
        if let Some(log) = &mut self.log {
            log.send(line, watch);
        }
        let recorded = self.folder.record(line);
        if let (Err(error), false) = (&recorded, self.lines_wait) {
            watch.notice(&format!("warning: {error}; training goes on, and its lines are written once there is room"));
        }
        self.lines_wait = recorded.is_err();
    }

    fn save_adapter(&mut self, step: u64, adapter: &HostAdapter, watch: &mut dyn Watch) {
        match adapter.save(self.folder.path(), &self.options) {
            Ok(()) => {
                self.unsaved_adapter = None;
                self.saved_adapter = Some(step);
                self.folder.keep();
            }
            Err(error) => {
                watch.notice(&format!(
                    "warning: the adapter of step {step} is not saved: {error}\n  {}; it is tried again",
                    self.kept()
                ));
                self.unsaved_adapter = Some((adapter.clone(), error));
            }
        }
    }

    fn save_checkpoint(&mut self, state: &State, watch: &mut dyn Watch) {
        if let Some((adapter, _)) = self.unsaved_adapter.take() {
            self.save_adapter(state.best.evaluations.best_step, &adapter, watch);
        }
        let step = state.progress.step;
        let Self { folder, extras, .. } = self;
        let saved = folder.metrics().and_then(|metrics| {
            self.versions.save(step, &self.identity, |draft| {
                state.write(draft)?;
                extras.write(&metrics, draft)
            })
        });
        match saved {
            Ok(not_removed) => {
                self.saved_checkpoint = Some(step);
                self.unsaved_checkpoint = None;
                self.folder.keep();
                for error in not_removed {
                    watch.notice(&format!("warning: an old checkpoint stays: {error}"));
                }
            }
            Err(error) => {
                watch.notice(&format!(
                    "warning: the checkpoint of step {step} is not saved: {error}\n  {}; training goes on, and the next \
                     checkpoint is tried as usual: make room on the disk",
                    self.kept()
                ));
                self.unsaved_checkpoint = Some(error);
            }
        }
    }

    /// The results that are on the disk, in words.
    fn kept(&self) -> String {
        let kept: Vec<String> = [("adapter", self.saved_adapter), ("checkpoint", self.saved_checkpoint)]
            .into_iter()
            .filter_map(|(what, step)| Some(format!("the {what} of step {}", step?)))
            .collect();
        if kept.is_empty() { "nothing is kept so far".to_owned() } else { format!("{} is kept", kept.join(" and ")) }
    }
}

/// A step that changed nothing, in words.
fn bad_step(step: u64, loss: f64, norm: f64, examples: &[String]) -> String {
    let named = examples.iter().take(NAMED_EXAMPLES).cloned().collect::<Vec<_>>().join(", ");
    let more = match examples.len().saturating_sub(NAMED_EXAMPLES) {
        0 => String::new(),
        more => format!(" and {}", counted(more, "more example")),
    };
    format!("warning: step {step} changes nothing: its loss is {loss}, the gradient's norm {norm}; from {named}{more}")
}
