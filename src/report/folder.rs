//! The files of a run folder as a report reads them: also of a run that is under way, broke off, or was made by an older version.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{DETAILS_FILE, MEMORISATION_FILE};
use crate::error::{Error, Result};
use crate::files::{lock, open};
use crate::inspect::RUN_FILE;

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 512 << 20;
/// The section of the model card that says how the result is used.
const USE_HEADING: &str = "## Use\n";

/// The state of a run by its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// It is being trained.
    Training,
    /// It is trained, and base and adapter are being measured.
    Measuring,
    /// It came to its last step.
    Finished,
    /// Early stopping ended it.
    StoppedEarly,
    /// The user ended it.
    Interrupted,
    /// It failed.
    Failed,
    /// Its process ended without an outcome.
    BrokenOff,
}

impl RunState {
    /// The state in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Measuring => "measuring",
            Self::Finished => "finished",
            Self::StoppedEarly => "stopped early",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
            Self::BrokenOff => "broken off",
        }
    }
}

/// JSON objects, one a line, as they stand in a file.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    /// The text of each line, and its value.
    pub lines: Vec<(String, Value)>,
    /// Lines that hold no object, as the last one of a process that was killed.
    pub broken: usize,
}

impl Lines {
    /// The lines of a text. A last line without its end is left out while it is being written.
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            match serde_json::from_str::<Value>(line) {
                Ok(value) if value.is_object() => found.lines.push((line.to_owned(), value)),
                _ => found.broken += 1,
            }
        }
        found
    }

    fn read(path: &Path) -> Result<Option<Self>> {
        Ok(read_text(path)?.map(|text| Self::parse(&text)))
    }

    /// The values.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &Value> {
        self.lines.iter().map(|(_, value)| value)
    }
}

/// A JSON file, as it stands and as its value; null where it is missing or broken.
#[derive(Debug, Clone, Default)]
pub struct Document {
    /// The text; `null` where there is none.
    pub text: String,
    /// The value.
    pub value: Value,
}

impl Document {
    fn none() -> Self {
        Self { text: "null".to_owned(), value: Value::Null }
    }

    fn read(path: &Path, missing: &mut Vec<String>) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(text) = read_text(path)? else {
            missing.push(format!("{name} is not there"));
            return Ok(Self::none());
        };
        Ok(match serde_json::from_str(&text) {
            Ok(value) => Self { text, value },
            Err(error) => {
                missing.push(format!("{name} is no JSON: {error}"));
                Self::none()
            }
        })
    }
}

/// The files of a run folder.
#[derive(Debug, Clone)]
pub struct RunFiles {
    /// The folder.
    pub path: PathBuf,
    /// Its name.
    pub name: String,
    /// The state of the run.
    pub state: RunState,
    /// `run.json`.
    pub record: Document,
    /// `report.json`.
    pub details: Document,
    /// `memorisation.json`; null where nothing was measured.
    pub memorisation: Document,
    /// `recipe.toml`.
    pub recipe: Option<String>,
    /// `metrics.jsonl`.
    pub metrics: Lines,
    /// `timings.jsonl`.
    pub timings: Lines,
    /// `samples.jsonl`.
    pub samples: Lines,
    /// The use of the result, from the model card; Markdown.
    pub usage: Option<String>,
    /// Files that are missing or broken, in words.
    pub missing: Vec<String>,
}

impl RunFiles {
    /// Whether the folder at `path` is one of a run.
    pub fn is_run(path: &Path) -> bool {
        ["run.lock", RUN_FILE].iter().any(|name| path.join(name).is_file())
    }

    /// Reads the folder of a run; files that are missing or broken are named in [`Self::missing`].
    ///
    /// # Errors
    /// Input: `path` is no run folder; a file is larger than half a gigabyte.
    pub fn read(path: &Path) -> Result<Self> {
        if !Self::is_run(path) {
            let found = if path.exists() { "is no run folder" } else { "does not exist" };
            return Err(Error::input(path, found).hint(format!("expected a folder with {RUN_FILE}")));
        }
        let mut missing = Vec::new();
        let record = Document::read(&path.join(RUN_FILE), &mut missing)?;
        let details = Document::read(&path.join(DETAILS_FILE), &mut missing)?;
        let memorisation = match path.join(MEMORISATION_FILE) {
            file if file.is_file() => Document::read(&file, &mut missing)?,
            _ => Document::none(),
        };
        let mut lines = |name: &str, is_needed: bool| -> Result<Lines> {
            let lines = Lines::read(&path.join(name))?;
            match &lines {
                None if is_needed => missing.push(format!("{name} is not there")),
                Some(Lines { broken: 1.., .. }) => missing.push(format!("{name} has a line that is no JSON object")),
                _ => {}
            }
            Ok(lines.unwrap_or_default())
        };
        let (metrics, timings) = (lines("metrics.jsonl", true)?, lines("timings.jsonl", true)?);
        let samples = lines("samples.jsonl", false)?;
        let usage = read_text(&path.join("README.md"))?.and_then(|card| section(&card, USE_HEADING));
        let absolute = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let name = absolute.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy());
        Ok(Self {
            state: state(path, &record.value),
            name: name.into_owned(),
            path: path.to_owned(),
            recipe: read_text(&path.join("recipe.toml"))?,
            record,
            details,
            memorisation,
            metrics,
            timings,
            samples,
            usage,
            missing,
        })
    }

    /// The lines of the metrics that are steps.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = &Value> {
        self.metrics.values().filter(|line| line.get("learning_rate").is_some())
    }

    /// The lines of the metrics that are evaluations.
    pub fn evaluations(&self) -> impl DoubleEndedIterator<Item = &Value> {
        self.metrics.values().filter(|line| line.get("valid_loss").is_some())
    }

    /// The timing of each step: the last one, where a step was made again after a kill.
    pub fn timings_by_step(&self) -> BTreeMap<u64, &Value> {
        self.timings.values().filter_map(|line| Some((line["step"].as_u64()?, line))).collect()
    }

    /// The last step that was done.
    pub fn last_step(&self) -> u64 {
        self.metrics.values().filter_map(|line| line["step"].as_u64()).max().unwrap_or(0)
    }

    /// The outcome in `run.json`; null where there is none.
    pub fn outcome(&self) -> &Value {
        &self.record.value["outcome"]
    }
}

/// The text of a file; `None` where it is missing. Broken UTF-8 is replaced.
fn read_text(path: &Path) -> Result<Option<String>> {
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = open::read(path, MAX_BYTES)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// The section of a Markdown text under `heading`, without it.
fn section(text: &str, heading: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("\n{heading}"))?;
    let end = rest.find("\n## ").unwrap_or(rest.len());
    Some(rest[..end].trim().to_owned())
}

fn state(path: &Path, record: &Value) -> RunState {
    let outcome = &record["outcome"];
    let is_held = || lock::check_free(&path.join("run.lock")).is_err();
    if outcome.is_object() {
        let verdict_waits =
            outcome["validation"].is_null() && outcome["interrupted"] == false && has_validation(record);
        return if verdict_waits && is_held() {
            RunState::Measuring
        } else if outcome["interrupted"] == true {
            RunState::Interrupted
        } else if outcome["stopped_early"] == true {
            RunState::StoppedEarly
        } else {
            RunState::Finished
        };
    }
    if record["error"].is_string() {
        RunState::Failed
    } else if is_held() {
        RunState::Training
    } else {
        RunState::BrokenOff
    }
}

/// Whether the run has validation examples.
fn has_validation(record: &Value) -> bool {
    record["data"]["valid"]["examples"].as_u64().is_some_and(|examples| examples > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_use_is_the_section_of_the_card() {
        let card = "---\nx: y\n---\n\n# name\n\n## Use\n\nPrompts.\n\n### a\n\n## Results\n\nmore\n";
        assert_eq!(section(card, USE_HEADING).as_deref(), Some("Prompts.\n\n### a"));
        assert_eq!(section("# name\n", USE_HEADING), None);
    }

    #[test]
    fn a_line_that_was_cut_off_is_counted_and_left_out() {
        let lines = Lines::parse("{\"step\": 1}\n\n[1]\n{\"step\": 2, \"lo");
        assert_eq!((lines.lines.len(), lines.broken), (1, 2));
        assert_eq!(lines.lines[0].0, "{\"step\": 1}");
    }
}
