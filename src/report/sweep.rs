//! The trials of a sweep beside each other: a table, the best first, and a page.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::folder::RunFiles;
use super::page::{PROGRAM, for_script, list, with_data};
use super::table::Table;
use crate::error::{counted, printable};

/// The trials of a sweep.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The name of its folder.
    pub name: String,
    /// The objective that ranks the trials.
    pub objective: &'static str,
    /// Whether larger values of it are better.
    pub higher_is_better: bool,
    /// Whether it is a share.
    pub is_share: bool,
    /// The settings that are searched.
    pub keys: Vec<String>,
    /// The trials, the best first.
    pub trials: Vec<SummaryRow>,
    /// The result in a sentence.
    pub sentence: String,
}

/// A trial of a sweep.
#[derive(Debug, Clone, Serialize)]
pub struct SummaryRow {
    /// The name of its run folder.
    pub name: String,
    /// `waiting`, `paused`, `finished`, `stopped` or `failed`.
    pub state: &'static str,
    /// The values of the settings that are searched, by key.
    pub values: Map<String, Value>,
    /// The objective at its best evaluation.
    pub score: Option<f64>,
    /// The validation loss before the first step.
    pub loss_before: Option<f64>,
    /// The validation loss of its best evaluation.
    pub loss: Option<f64>,
    /// The step of its best evaluation.
    pub best_step: Option<u64>,
    /// Steps done.
    pub steps: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// The time of its training steps, in seconds.
    pub seconds: f64,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Summary {
    /// The summary of the sweep in `dir` by an objective: its name, whether larger values are better, whether it is a share.
    pub fn new(
        dir: &Path,
        (objective, higher_is_better, is_share): (&'static str, bool, bool),
        trials: Vec<SummaryRow>,
    ) -> Self {
        let name = dir.file_name().map_or_else(|| "sweep".into(), |name| name.to_string_lossy()).into_owned();
        let keys = trials.first().map(|trial| trial.values.keys().cloned().collect()).unwrap_or_default();
        let mut summary = Self { name, objective, higher_is_better, is_share, keys, trials, sentence: String::new() };
        summary.sentence = summary.in_words();
        summary
    }

    fn in_words(&self) -> String {
        let of_state = |states: &[&str]| self.trials.iter().filter(|trial| states.contains(&trial.state)).count();
        let trials = counted(self.trials.len(), "trial");
        let open = of_state(&["waiting", "paused"]);
        let mut parts = vec![format!("{} finished", of_state(&["finished"]))];
        for (count, words) in
            [(open, "to go on"), (of_state(&["stopped"]), "stopped at a rung"), (of_state(&["failed"]), "failed")]
        {
            parts.extend((count > 0).then(|| format!("{count} {words}")));
        }
        let best = match self.trials.first().filter(|trial| trial.score.is_some()) {
            Some(best) => {
                let so_far = if open > 0 { " so far" } else { "" };
                format!("; the best by {}{so_far} is {}, {}", self.objective, best.name, best.shown(self))
            }
            None => String::new(),
        };
        format!("{trials}: {}{best}.", parts.join(", "))
    }

    /// The objective of a trial as a text.
    fn score(&self, trial: &SummaryRow) -> String {
        match trial.score {
            Some(score) if self.is_share => format!("{:.1}%", 100.0 * score),
            Some(score) => format!("{score:.4}"),
            None => "-".to_owned(),
        }
    }

    /// The trials as a table.
    pub fn table(&self) -> Table {
        let objective = if self.objective == "loss" { vec![] } else { vec![self.objective] };
        let names = ["trial", "state"].into_iter().chain(self.keys.iter().map(String::as_str)).chain(objective);
        let names: Vec<&str> = names.chain(["loss", "best at", "steps", "seconds"]).collect();
        let mut table = Table::new(&names);
        for trial in &self.trials {
            let mut row = vec![trial.name.clone(), trial.state.to_owned()];
            row.extend(self.keys.iter().map(|key| trial.value(key)));
            row.extend((self.objective != "loss").then(|| self.score(trial)));
            row.push(trial.loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}")));
            row.push(trial.best_step.map_or_else(|| "-".to_owned(), |step| step.to_string()));
            row.push(format!("{} of {}", trial.steps, trial.total_steps));
            row.push(format!("{:.0}", trial.seconds));
            table.add(row);
        }
        table
    }
}

impl SummaryRow {
    /// The value of a setting as a text.
    fn value(&self, key: &str) -> String {
        match self.values.get(key) {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => "-".to_owned(),
        }
    }

    /// The values of its settings and its objective in words.
    pub fn shown(&self, summary: &Summary) -> String {
        let values: Vec<String> = self.values.keys().map(|key| format!("{key} = {}", self.value(key))).collect();
        printable(&format!("{} ({})", summary.score(self), values.join(", "))).replace(['\n', '\t'], " ")
    }
}

/// The page of a sweep, with the curves of `runs`, its best trials.
pub fn page(summary: &Summary, runs: &[RunFiles]) -> String {
    let runs: Vec<String> = runs.iter().map(of_trial).collect();
    let data = format!("{{\"program\":{},\"sweep\":{},\"runs\":[{}]}}", json!(PROGRAM), json!(summary), runs.join(","));
    with_data(&summary.name, &summary.sentence, &for_script(&data))
}

/// The parts of a run that its curves are drawn from; lines are those of the files, digit for digit.
fn of_trial(run: &RunFiles) -> String {
    let record = json!({ "planned_bytes": run.record.value["planned_bytes"] });
    format!(
        "{{\"name\":{},\"state\":{},\"missing\":[],\"record\":{record},\"metrics\":{},\"timings\":{}}}",
        json!(run.name),
        json!(run.state.name()),
        list(&run.metrics),
        list(&run.timings)
    )
}
