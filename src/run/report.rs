//! The report of a run while the run has the model in memory: measures for `report.json`, and the page beside it.
//!
//! Whatever needs the model is measured here, within the share of time that samples have; the page itself is made of the run folder's
//! files ([`crate::report`]).

mod examples;
mod losses;
mod pictures;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use examples::{Lengths, Rendered, lengths, rendered};
use losses::{Ablation, Losses, TokenLosses, ablate, chosen, losses};
use pictures::{Thumbnail, thumbnails};

use super::folder::RunFolder;
use super::prepare::Prepared;
use super::samples::{Samples, Taken};
use super::watch::Watch;
use crate::adapter::map::{ModuleUpdate, map};
use crate::data::Encoded;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::Decoder;
use crate::nn::Adapter;
use crate::report::{DETAILS_FILE, PAGE_FILE, page};
use crate::train::{Event, Outcome};

/// The reason of a part that is left out.
const NO_TIME: &str = "`sample.time_share` left no time for it";
/// A page is made anew once the time since the last one is so many times its own.
const PAGE_INTERVALS: u32 = 100;

/// The content of `report.json`.
#[derive(Debug, Default, Serialize)]
struct Details {
    /// The tokens of the examples.
    lengths: Vec<Lengths>,
    /// Some training examples with their masks.
    rendered: Vec<Rendered>,
    /// The pictures of these and of the samples, by their SHA-256.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pictures: BTreeMap<String, Thumbnail>,
    /// Losses of single tokens before and after the training.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<TokenLosses>,
    /// The update at each module.
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<Vec<ModuleUpdate>>,
    /// The loss with parts of the adapter switched off.
    #[serde(skip_serializing_if = "Option::is_none")]
    modules: Option<Ablation>,
    /// The losses of single examples, for comparisons with other runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    losses: Option<Losses>,
    /// The time that samples and report took.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<Taken>,
    /// The reasons of missing parts, by key.
    left_out: BTreeMap<&'static str, String>,
}

/// Measures for the report of a run and writes it. Nothing that fails here ends a run.
pub(super) struct Reporter<'a> {
    prepared: &'a Prepared,
    details: Details,
    /// The validation examples of which every token is measured.
    examples: Vec<Encoded>,
    /// The time that one pass over these examples takes.
    pass: Option<Duration>,
    /// The seconds by token of the last training step, which takes longer than a pass over as many.
    step_seconds: Option<f64>,
    written: Option<Instant>,
    /// The time that the last page took.
    cost: Duration,
    is_warned: bool,
}

impl<'a> Reporter<'a> {
    /// Nothing is measured yet.
    pub(super) fn begin(prepared: &'a Prepared) -> Self {
        let (examples, places) = chosen(prepared);
        let (lengths, rendered, pictures) = (lengths(prepared), rendered(prepared), thumbnails(prepared));
        let mut details = Details { lengths, rendered, pictures, ..Details::default() };
        let reason = match (examples.is_empty(), &prepared.start.classifier) {
            (true, _) => Some("there are no validation examples"),
            (false, Some(_)) => Some("a classifier gives labels, and no tokens"),
            (false, None) => None,
        };
        match reason {
            Some(reason) => drop(details.left_out.insert("tokens", reason.to_owned())),
            None => details.tokens = Some(TokenLosses::unmeasured(prepared, &examples, places)),
        }
        Self {
            prepared,
            details,
            examples,
            pass: None,
            step_seconds: None,
            written: None,
            cost: Duration::ZERO,
            is_warned: false,
        }
    }

    /// Takes an event: measures where the adapter is the best so far, and writes the report.
    pub(super) fn take(
        &mut self,
        event: &Event<'_>,
        decoder: &Decoder,
        samples: &mut Samples<'_>,
        folder: &RunFolder,
        watch: &mut dyn Watch,
    ) {
        match *event {
            Event::Begin { .. } => samples.charge(self.write(folder, watch)),
            Event::Evaluation { step, is_best, adapter, .. } => {
                if is_best || self.pass.is_none() {
                    let estimate = self.estimate().unwrap_or_else(|| samples.evaluating(self.tokens()));
                    let left = samples.left(step);
                    let spent = self.measure_tokens(step, decoder, adapter, (estimate, left));
                    samples.charge(spent);
                }
                samples.charge(self.write_where_cheap(folder, watch));
            }
            Event::Best { .. } if self.prepared.valid.sequences.is_empty() => {
                samples.charge(self.write_where_cheap(folder, watch));
            }
            Event::Step { report, seconds, .. } => self.step_seconds = Some(seconds / report.tokens.max(1) as f64),
            Event::Best { .. } | Event::Evaluating { .. } | Event::Checkpoint { .. } | Event::Stopped { .. } => {}
        }
    }

    /// Measures what a run that has come to its end can tell: the losses of its examples, the map of the adapter, the parts of it.
    pub(super) fn measure_outcome(&mut self, outcome: &Outcome, decoder: &Decoder, samples: &mut Samples<'_>) {
        match losses(self.prepared, outcome) {
            Ok(losses) => self.details.losses = Some(losses),
            Err(reason) => drop(self.details.left_out.insert("losses", reason)),
        }
        if outcome.interrupted {
            for part in ["adapter", "modules"] {
                self.details.left_out.insert(part, "the run was interrupted".to_owned());
            }
            return;
        }
        match outcome.adapter.attach(decoder.config(), &self.prepared.device) {
            Ok(adapter) => self.measure_adapter(outcome, decoder, &adapter, samples),
            Err(error) => drop(self.details.left_out.insert("modules", error.to_string())),
        }
        match self.map(outcome, samples) {
            Ok(updates) if updates.is_empty() => {
                self.details.left_out.insert("adapter", "the adapter has no low-rank pairs".to_owned());
            }
            Ok(updates) => self.details.adapter = Some(updates),
            Err(error) => drop(self.details.left_out.insert("adapter", error.to_string())),
        }
        self.details.seconds = Some(samples.taken());
    }

    /// Measures the token losses of the best adapter, where they are not known, and its parts.
    fn measure_adapter(&mut self, outcome: &Outcome, decoder: &Decoder, adapter: &Adapter, samples: &mut Samples<'_>) {
        let is_measured = |tokens: &TokenLosses| tokens.after_step == Some(outcome.best_step);
        if let (Some(pass), Some(false)) = (self.estimate(), self.details.tokens.as_ref().map(is_measured)) {
            let left = samples.left(outcome.steps);
            samples.charge(self.measure_tokens(outcome.best_step, decoder, adapter, (pass, left)));
        }
        self.ablate(outcome.steps, decoder, adapter, samples);
    }

    /// The map of the best adapter.
    fn map(&self, outcome: &Outcome, samples: &mut Samples<'_>) -> Result<Vec<ModuleUpdate>> {
        let Prepared { plan, base, .. } = self.prepared;
        let began = Instant::now();
        let budget = samples.left(outcome.steps);
        let updates = map(&outcome.adapter, &base.files, plan.base.quant, &|| began.elapsed() < budget);
        samples.charge(began.elapsed());
        updates
    }

    /// Writes `report.json` and `report.html`; the first failure is reported. The time that it took.
    pub(super) fn write(&mut self, folder: &RunFolder, watch: &mut dyn Watch) -> Duration {
        let began = Instant::now();
        let written = serde_json::to_string(&self.details)
            .map_err(|error| Error::failed(DETAILS_FILE, error.to_string()))
            .and_then(|details| folder.write(DETAILS_FILE, &details))
            .and_then(|()| folder.write(PAGE_FILE, &page::of_folder(folder.path())?));
        if let (Err(error), false) = (written, self.is_warned) {
            watch.notice(&format!("warning: the report is not written: {error}; training goes on"));
            self.is_warned = true;
        }
        (self.written, self.cost) = (Some(Instant::now()), began.elapsed());
        self.cost
    }

    fn write_where_cheap(&mut self, folder: &RunFolder, watch: &mut dyn Watch) -> Duration {
        match self.written.is_none_or(|written| written.elapsed() >= self.cost * PAGE_INTERVALS) {
            true => self.write(folder, watch),
            false => Duration::ZERO,
        }
    }

    /// The tokens of a pass over the examples.
    fn tokens(&self) -> usize {
        self.examples.iter().map(|example| example.ids.len()).sum()
    }

    /// The time of a pass over the examples: measured, or by the time of a step.
    fn estimate(&self) -> Option<Duration> {
        let by_steps = self.step_seconds.map(|seconds| seconds * self.tokens() as f64);
        self.pass.or(by_steps.map(Duration::from_secs_f64))
    }

    /// Measures the token losses of the base, once, and of `adapter`, where a pass fits into what is left of the time. The time
    /// that it took.
    fn measure_tokens(
        &mut self,
        step: u64,
        decoder: &Decoder,
        adapter: &Adapter,
        (pass, left): (Duration, Duration),
    ) -> Duration {
        let Some(tokens) = &mut self.details.tokens else { return Duration::ZERO };
        let passes = if tokens.is_measured() { 1 } else { 2 };
        if pass * passes > left {
            // What an earlier step gave is kept: the page names the step.
            if !tokens.is_measured() {
                self.details.left_out.insert("tokens", NO_TIME.to_owned());
            }
            return Duration::ZERO;
        }
        let began = Instant::now();
        let measured = interrupt::cancellable(|| {
            if !tokens.is_measured() {
                tokens.set_before(decoder, &self.examples);
            }
            let began = Instant::now();
            tokens.set_after(step, decoder, adapter, &self.examples);
            began.elapsed()
        });
        self.pass = measured.or(self.pass);
        self.details.left_out.remove("tokens");
        began.elapsed()
    }

    /// Measures the parts of the adapter, as far as the time goes.
    fn ablate(&mut self, steps: u64, decoder: &Decoder, adapter: &Adapter, samples: &mut Samples<'_>) {
        let began = Instant::now();
        let ablated = match self.estimate().filter(|_| !self.examples.is_empty()) {
            Some(pass) => {
                let budget = samples.left(steps);
                interrupt::cancellable(|| ablate(decoder, adapter, &self.examples, pass, budget)).flatten()
            }
            None => None,
        };
        samples.charge(began.elapsed());
        match ablated {
            Some(ablated) => self.details.modules = Some(ablated),
            None => {
                let reason = match self.examples.is_empty() {
                    true => "there are no validation examples",
                    false => NO_TIME,
                };
                self.details.left_out.insert("modules", reason.to_owned());
            }
        }
    }
}
