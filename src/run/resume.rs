//! Going on with a run: its newest whole checkpoint, and what has changed since.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::folder::{Found, RunFolder};
use super::identity::{Change, Difference, differences};
use super::prepare::Prepared;
use super::watch::Watch;
use crate::data::Encoded;
use crate::error::{Error, Result};
use crate::files::versions::{Draft, Newest, Version, Versions};
use crate::train::best::Evaluations;
use crate::train::{State, preference};

const EXTRAS_FILE: &str = "run.json";
const METRICS_FILE: &str = "metrics.jsonl";

/// How a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start<'a> {
    /// In a new folder.
    #[default]
    Fresh,
    /// From the newest checkpoint in the folder; from the beginning where there is none yet. Changes of these kinds are
    /// accepted, others are errors.
    Resumed(&'a [Change]),
}

/// The part of a checkpoint that training knows nothing of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Extras {
    /// The sample prompts, as they were encoded.
    pub(super) prompts: Vec<Vec<u32>>,
    /// The longest answer, in tokens.
    pub(super) max_tokens: usize,
    /// The answers before training.
    pub(super) answers: Vec<String>,
}

impl Extras {
    /// Writes the files.
    pub(super) fn write(&self, metrics: &[u8], draft: &mut Draft<'_>) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(|error| Error::failed(EXTRAS_FILE, error.to_string()))?;
        for (name, content) in [(EXTRAS_FILE, &text[..]), (METRICS_FILE, metrics)] {
            draft.file(name, |writer| {
                writer.write_all(content).map_err(|error| Error::write(Path::new(name), &error))
            })?;
        }
        Ok(())
    }

    fn read(version: &Version) -> Result<Self> {
        serde_json::from_slice(&version.read(EXTRAS_FILE)?)
            .map_err(|error| Error::input(version.path.join(EXTRAS_FILE), format!("is not understood: {error}")))
    }
}

/// A checkpoint that a run goes on from.
pub(super) struct Checkpoint {
    pub(super) state: State,
    pub(super) extras: Extras,
    pub(super) metrics: Vec<u8>,
}

/// Opens the folder of the run to go on with, which no other process may enter from now on; `None` where there is nothing.
///
/// # Errors
/// Input: another process is training into it; it is no run folder, or a finished run that has no checkpoint.
pub(super) fn reopen(path: &Path) -> Result<Option<RunFolder>> {
    match Found::at(path) {
        Found::Nothing => Ok(None),
        Found::Other => {
            Err(RunFolder::check_free(path).err().unwrap_or_else(|| Error::input(path, "is no run folder")))
        }
        found => {
            let folder = RunFolder::reopen(path)?;
            if found == Found::Finished && !path.join(RunFolder::CHECKPOINTS).is_dir() {
                return Err(Error::input(path, "holds a finished run without checkpoints: nothing can go on from it")
                    .hint("begin a new run from its adapter, with `--from-adapter`"));
            }
            Ok(Some(folder))
        }
    }
}

/// The newest whole checkpoint in `versions`; `None` where there is none yet.
///
/// # Errors
/// Input: every checkpoint is damaged; something has changed that was not accepted.
pub(super) fn newest(
    versions: &mut Versions,
    prepared: &Prepared,
    identity: &Value,
    accepted: &[Change],
    watch: &mut dyn Watch,
) -> Result<Option<Checkpoint>> {
    let Newest { version, damaged } = versions.newest()?;
    let Some(version) = version else {
        // Not even one is whole: that is for the user to decide about.
        return match Error::join(damaged) {
            Some(error) => Err(error.hint("no checkpoint is whole; remove the folder `checkpoints` to begin again")),
            None => Ok(None),
        };
    };
    for error in damaged {
        watch.notice(&format!("warning: {error}; the checkpoint of step {} is used", version.step));
    }
    let found = differences(&version.identity, identity);
    let is_longer = prepared.total_steps > version.step;
    let is_accepted = |found: &Difference| accepted.contains(&found.change) || (is_longer && found.is_length());
    let refused: Vec<&Difference> = found.iter().filter(|found| !is_accepted(found)).collect();
    if !refused.is_empty() {
        return Err(changed(&version, &refused));
    }
    for difference in &found {
        watch.notice(&format!("since the checkpoint the {} has changed: {difference}", difference.change));
    }
    if found.iter().any(Difference::is_length) {
        watch.notice(&format!(
            "the learning rate follows the schedule `{}` over {} steps from here on; the {} steps behind followed the old one",
            prepared.plan.train.schedule, prepared.total_steps, version.step
        ));
    }
    let mut state = State::read(&version, &prepared.start)?;
    let measured = state.best.evaluations.losses_before.iter().map(|loss| loss.tokens);
    let valid = prepared.held_out.valid_at_steps(&prepared.valid);
    let valid = preference::evaluated(&*prepared.plan.train.objective(), valid)?;
    let now = valid.iter().flat_map(Encoded::trained_by_sequence);
    let is_other = found.iter().any(|found| found.change == Change::Data && found.name == "valid") || measured.ne(now);
    if is_other && !state.best.evaluations.losses_before.is_empty() {
        // Losses on other examples say nothing about these.
        state.best.evaluations = Evaluations::default();
    }
    Ok(Some(Checkpoint { state, extras: Extras::read(&version)?, metrics: version.read(METRICS_FILE)? }))
}

/// The error of a run that is another one than its checkpoint's.
fn changed(version: &Version, refused: &[&Difference]) -> Error {
    let errors = refused.iter().map(|found| {
        Error::input(&*version.path, format!("the {} has changed since this checkpoint: {found}", found.change))
    });
    let mut kinds: Vec<String> = refused.iter().map(|found| format!("--accept-change {}", found.change)).collect();
    kinds.dedup();
    let hint =
        format!("undo the change, or go on all the same with `{}`: the result is that of neither run", kinds.join(" "));
    Error::join(errors).unwrap_or_else(|| Error::input(&*version.path, "has changed")).hint(hint)
}
