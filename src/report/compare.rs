//! Several runs beside each other: the best first, each against the best on the same examples, and the settings that differ.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::folder::RunFiles;
use super::table::Table;
use crate::bytes::Size;
use crate::error::printable;
use crate::eval::bootstrap::{self, Better, Share, Verdict};
use crate::files::hex;

/// The seed of the resamples.
const SEED: u64 = 0;
/// The reason why a run is not compared with another.
const UNKNOWN: &str = "the losses of single examples are not known";
/// The characters of a hash that are shown.
const HASH_CHARACTERS: usize = 12;
/// Settings that differ between any two runs and say nothing.
const PASSED_OVER: &[&str] = &["output.dir"];

/// Several runs, the best first.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The runs: those with a validation loss by that loss, then the others in the order in which they were given.
    pub runs: Vec<Row>,
    /// The run that the others are compared with, the best of which single examples are known.
    pub reference: Option<String>,
    /// The settings and origins that differ between them.
    pub settings: Vec<Setting>,
}

/// A run in a comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Its index among the runs that were given.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: &'static str,
    /// Its verdict against its base.
    pub verdict: Option<String>,
    /// The validation loss of the base.
    pub loss_before: Option<f64>,
    /// The validation loss of the best adapter, or the lowest so far.
    pub loss: Option<f64>,
    /// The step of the best adapter.
    pub best_step: Option<u64>,
    /// Steps done.
    pub steps: u64,
    /// The training time of the steps, in seconds.
    pub seconds: f64,
    /// Tokens by second of training.
    pub tokens_per_second: Option<f64>,
    /// The peak of resident memory.
    pub peak_bytes: Option<u64>,
    /// Its loss against that of the reference.
    pub against: Against,
}

/// A run against the reference.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Against {
    /// The difference of the losses, this run less the reference, with its 95% interval.
    Paired(Paired),
    /// The reason why there is none.
    Not(String),
}

/// A paired difference over the examples that both runs were measured on.
#[derive(Debug, Clone, Serialize)]
pub struct Paired {
    /// The difference of the mean losses.
    pub difference: f64,
    /// Lower end of its interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Examples.
    pub examples: usize,
    /// `better`, `worse` or `no evidence`.
    pub verdict: &'static str,
}

/// A setting that differs.
#[derive(Debug, Clone, Serialize)]
pub struct Setting {
    /// Its key.
    pub key: String,
    /// Its value in each run, in the order of the rows.
    pub values: Vec<Value>,
}

/// Compares runs.
pub fn compare(runs: &[RunFiles]) -> Comparison {
    let mut rows: Vec<Row> = runs.iter().enumerate().map(|(index, run)| row(index, run)).collect();
    // The sort is stable.
    rows.sort_by(|a, b| a.loss.unwrap_or(f64::INFINITY).total_cmp(&b.loss.unwrap_or(f64::INFINITY)));
    // The best run of which single examples are known; one that broke off has none.
    let reference = rows.iter().map(|row| row.index).find(|index| losses(&runs[*index]).is_some());
    for row in &mut rows {
        row.against = match reference {
            Some(reference) if reference == row.index => Against::Not("the others are compared with it".to_owned()),
            Some(reference) => against(&runs[row.index], &runs[reference]),
            None => Against::Not(UNKNOWN.to_owned()),
        };
    }
    let settings = differing(&rows.iter().map(|row| settings(&runs[row.index])).collect::<Vec<_>>());
    Comparison { runs: rows, reference: reference.map(|index| runs[index].name.clone()), settings }
}

fn row(index: usize, run: &RunFiles) -> Row {
    let outcome = run.outcome();
    let validation = &outcome["validation"];
    let losses = || run.evaluations().filter_map(|line| Some((line["valid_loss"].as_f64()?, line["step"].as_u64()?)));
    let best = losses().min_by(|(a, _), (b, _)| a.total_cmp(b));
    let timings = run.timings_by_step();
    let sum = |key: &str| timings.values().filter_map(|line| line[key].as_f64()).sum::<f64>();
    let (tokens, seconds) = (sum("tokens"), sum("seconds"));
    Row {
        index,
        name: run.name.clone(),
        state: run.state.name(),
        verdict: super::sentence::sentence(run).verdict,
        loss_before: validation["loss_before"]
            .as_f64()
            .or_else(|| losses().find(|(_, step)| *step == 0).map(|one| one.0)),
        loss: validation["loss_after"].as_f64().or(best.map(|one| one.0)),
        best_step: outcome["best_step"].as_u64().or(best.map(|one| one.1)),
        steps: run.last_step(),
        seconds,
        tokens_per_second: (seconds > 0.0).then(|| tokens / seconds),
        peak_bytes: timings.values().filter_map(|line| line["peak_bytes"].as_u64()).max(),
        against: Against::Not(String::new()),
    }
}

/// The losses of single examples in `report.json`.
struct Losses<'a> {
    split: &'a str,
    shares: Vec<Share>,
}

fn losses(run: &RunFiles) -> Option<Losses<'_>> {
    let losses = &run.details.value["losses"];
    let tokens = losses["tokens"].as_array()?.iter().map(Value::as_f64);
    let sums = losses["after"].as_array()?.iter().map(Value::as_f64);
    let shares: Option<Vec<Share>> =
        sums.zip(tokens).map(|(sum, weight)| Some(Share { sum: sum?, weight: weight? })).collect();
    Some(Losses { split: losses["split"].as_str()?, shares: shares.filter(|shares| !shares.is_empty())? })
}

fn against(run: &RunFiles, reference: &RunFiles) -> Against {
    let (Some(own), Some(other)) = (losses(run), losses(reference)) else {
        return Against::Not(UNKNOWN.to_owned());
    };
    if own.split != other.split || own.shares.len() != other.shares.len() {
        return Against::Not("measured on other examples".to_owned());
    }
    let compared = bootstrap::compare(&other.shares, &own.shares, Better::Lower, SEED);
    let verdict = match compared.verdict {
        Verdict::Improved => "better",
        Verdict::Worse => "worse",
        Verdict::NoEvidence => "no evidence",
    };
    let bootstrap::Comparison { difference, low, high, examples, .. } = compared;
    Against::Paired(Paired { difference, low, high, examples, verdict })
}

/// The settings of a run, and the hashes of what went in, by key.
fn settings(run: &RunFiles) -> BTreeMap<String, Value> {
    let record = &run.record.value;
    let mut settings = BTreeMap::new();
    flatten("", &record["plan"], &mut settings);
    for (key, pointer) in [
        ("base, SHA-256", "/base/sha256"),
        ("training data, SHA-256", "/data/train_sha256"),
        ("validation data, SHA-256", "/data/valid_sha256"),
        ("program", "/build"),
        ("device", "/device"),
    ] {
        settings.insert(key.to_owned(), record.pointer(pointer).cloned().unwrap_or_default());
    }
    settings
}

fn flatten(key: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            flatten(&key, value, into);
        }),
        _ => drop(into.insert(key.to_owned(), value.clone())),
    }
}

fn differing(runs: &[BTreeMap<String, Value>]) -> Vec<Setting> {
    let mut keys: Vec<&String> = runs.iter().flat_map(BTreeMap::keys).collect();
    keys.sort();
    keys.dedup();
    let of = |key: &String| Setting {
        key: key.clone(),
        values: runs.iter().map(|settings| settings.get(key).cloned().unwrap_or_default()).collect(),
    };
    let differs = |setting: &Setting| setting.values.windows(2).any(|pair| pair[0] != pair[1]);
    keys.into_iter().filter(|key| !PASSED_OVER.contains(&key.as_str())).map(of).filter(differs).collect()
}

impl Comparison {
    /// The rows of the comparison as a table.
    pub fn table(&self) -> Table {
        let against = format!("against {}", self.reference.as_deref().unwrap_or("another"));
        let mut table = Table::new(&[
            "run", "state", "verdict", "base", "loss", &against, "interval", "best at", "steps", "seconds", "tokens/s",
            "peak",
        ]);
        let loss = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"));
        for row in &self.runs {
            let (against, interval) = match &row.against {
                Against::Paired(Paired { difference, low, high, verdict, .. }) => {
                    (format!("{difference:+.4}"), format!("{low:+.4} to {high:+.4}: {verdict}"))
                }
                Against::Not(reason) => ("-".to_owned(), reason.clone()),
            };
            table.add(vec![
                row.name.clone(),
                row.state.to_owned(),
                row.verdict.clone().unwrap_or_else(|| "-".to_owned()),
                loss(row.loss_before),
                loss(row.loss),
                against,
                interval,
                row.best_step.map_or_else(|| "-".to_owned(), |step| step.to_string()),
                row.steps.to_string(),
                format!("{:.0}", row.seconds),
                row.tokens_per_second.map_or_else(|| "-".to_owned(), |speed| format!("{speed:.0}")),
                row.peak_bytes.map_or_else(|| "-".to_owned(), |bytes| Size(bytes).to_string()),
            ]);
        }
        table
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.table())?;
        if self.settings.is_empty() {
            return write!(f, "\nno setting differs");
        }
        let names: Vec<&str> =
            std::iter::once("setting").chain(self.runs.iter().map(|row| row.name.as_str())).collect();
        let mut table = Table::new(&names);
        for Setting { key, values } in &self.settings {
            let shown = |value: &Value| match value {
                Value::String(text) if hex::is_hexadecimal(text, 32) => format!("{}…", &text[..HASH_CHARACTERS]),
                Value::String(text) => printable(text).into_owned(),
                Value::Null => "-".to_owned(),
                value => value.to_string(),
            };
            table.add(std::iter::once(key.clone()).chain(values.iter().map(shown)).collect());
        }
        write!(f, "\n{table}")
    }
}
