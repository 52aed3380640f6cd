//! The journal of a sweep: its trials, and what each has shown so far. It and the run folders are all that a sweep goes on from.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::figures::Figures;
use crate::error::{Error, Place, Result};
use crate::files::{atomic, json as json_file};
use crate::recipe::{Plan, SweepSettings};
use crate::run::identity::{differences, recipe_of};

/// The name of the journal in the folder of a sweep.
pub(super) const JOURNAL_FILE: &str = "sweep.json";

/// The journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Journal {
    /// The settings of all trials and those of the sweep, by key; as texts.
    settings: Value,
    /// Rungs after which it is decided who goes on.
    pub(super) rungs_done: usize,
    /// The trials.
    pub(super) trials: Vec<Trial>,
}

/// A trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Trial {
    /// The name of its run folder.
    pub(super) name: String,
    /// The values of the settings that are searched, by key.
    pub(super) values: Map<String, Value>,
    /// Its state.
    pub(super) state: TrialState,
    /// Its figures at each rung, and at its end.
    pub(super) figures: Vec<Figures>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) error: Option<String>,
}

/// The state of a trial between two turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TrialState {
    /// It has steps before it.
    Open,
    /// It came to its end.
    Finished,
    /// Others were better at a rung.
    Stopped,
    /// Its loss or gradient was not finite too often.
    Failed,
}

impl Journal {
    /// The journal of a sweep that has not begun.
    pub(super) fn new(plan: &Plan, settings: &SweepSettings, trials: Vec<Trial>) -> Self {
        let mut all = recipe_of(plan);
        for (key, value) in json!(settings).as_object().into_iter().flatten() {
            all.insert(format!("sweep.{key}"), json!(value.to_string()));
        }
        Self { settings: Value::Object(all), rungs_done: 0, trials }
    }

    /// The journal at `path`, which must be one of the same sweep as `new`.
    ///
    /// # Errors
    /// Input: it is none; settings have changed since, each with both values.
    pub(super) fn read(path: &Path, new: &Self) -> Result<Self> {
        let broken = |error: serde_json::Error| Error::input(path, format!("is not the journal of a sweep: {error}"));
        let found: Self = serde_json::from_value(json_file::read(path)?).map_err(broken)?;
        let changed = differences(&json!({ "recipe": found.settings }), &json!({ "recipe": new.settings }));
        let errors = changed.iter().map(|change| Error::input(path, format!("{change}, in the recipe of this sweep")));
        if let Some(error) = Error::join(errors) {
            return Err(error.hint("undo the change, or choose another `output.dir` for a new sweep"));
        }
        if found.trials.len() != new.trials.len() {
            let message = format!("has {} trials; the recipe has {}", found.trials.len(), new.trials.len());
            return Err(Error::input(path, message).hint("go on with the version of burnish that began the sweep"));
        }
        let trials = found.trials.into_iter().zip(&new.trials);
        let trials = trials.map(|(trial, Trial { name, values, .. })| Trial {
            name: name.clone(),
            values: values.clone(),
            ..trial
        });
        Ok(Self { trials: trials.collect(), ..found })
    }

    /// Writes the journal.
    ///
    /// # Errors
    /// It cannot be written; then the one before stands.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|error| Error::failed(path, error.to_string()))?;
        atomic::write_bytes(path, (text + "\n").as_bytes())
    }

    /// The trials that others have not beaten.
    pub(super) fn active(&self) -> Vec<usize> {
        let is_active = |index: &usize| matches!(self.trials[*index].state, TrialState::Open | TrialState::Finished);
        (0..self.trials.len()).filter(is_active).collect()
    }
}

/// The refusal of a folder that a new sweep cannot have, or an old one is not in.
///
/// # Errors
/// Input: there is a sweep and it is not to go on; there is something else.
pub(super) fn check_folder(dir: &Path, lock_file: &str, goes_on: bool, command: &str) -> Result<()> {
    let has_journal = dir.join(JOURNAL_FILE).is_file();
    let is_free = match std::fs::read_dir(dir) {
        // A sweep that was killed at once has left nothing else.
        Ok(entries) => entries.flatten().all(|entry| {
            let name = entry.file_name();
            name == lock_file || name.to_string_lossy().starts_with(".burnish-")
        }),
        Err(_) => dir.symlink_metadata().is_err(),
    };
    let place = Place::setting("output.dir");
    let dir = dir.display();
    match (has_journal, is_free) {
        (true, _) if !goes_on => Err(Error::input(place, format!("is {dir}, which holds a sweep"))
            .hint(format!("`{command}` goes on with it; for another sweep choose another `dir` under [output]"))),
        (false, false) => Err(Error::input(place, format!("is {dir}, which exists and holds no sweep"))
            .hint("choose another `dir` under [output]; the trials go into folders of their own in it")),
        _ => Ok(()),
    }
}
