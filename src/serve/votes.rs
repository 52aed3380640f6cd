//! Votes between two answers, kept in a local file, and the win rates that follow from them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::failure::{Failure, Outcome};
use super::fields::Fields;
use crate::error::{Error, Place, Result};
use crate::files::output::log::Log;

/// The longest text of a vote.
const MAX_TEXT_BYTES: usize = 64 << 10;
/// The normal quantile of a two-sided interval of 95%.
const QUANTILE: f64 = 1.959_963_984_540_054;

/// One vote, a line of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Vote {
    /// When, in UTC.
    time: String,
    /// The models that answered.
    models: [String; 2],
    /// The one whose answer is better; none where they are as good.
    winner: Option<String>,
    prompt: String,
    /// The answers, in the order of the models.
    answers: [String; 2],
    seed: Option<i64>,
}

/// The votes of two models, by name, the lesser first.
#[derive(Debug, Clone, Default, Serialize)]
struct Tally {
    wins: [u64; 2],
    ties: u64,
}

/// The file of votes.
#[derive(Debug)]
pub(super) struct Votes(Mutex<(Log, BTreeMap<[String; 2], Tally>)>);

impl Votes {
    /// Opens the file of earlier votes, or makes one.
    ///
    /// # Errors
    /// Input: a line that is no vote. Failed: the file cannot be opened.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed = |error: std::io::Error| Error::write(path, &error);
        let mut log = Log::at_end(path).map_err(failed)?;
        let text = log.content().map_err(failed)?;
        let mut tallies = BTreeMap::new();
        let lines = text.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
        for (index, line) in lines {
            let vote: Vote = serde_json::from_slice(line).map_err(|error| {
                Error::input(Place::file(path).line(index + 1), format!("is no vote: {error}"))
                    .hint("the file of `--votes` holds votes and nothing else")
            })?;
            count(&mut tallies, &vote);
        }
        Ok(Self(Mutex::new((log, tallies))))
    }

    /// Takes the vote that a body spells.
    pub(super) fn add(&self, mut fields: Fields) -> Outcome<Value> {
        let pair = |texts: Vec<String>, field: &str| {
            <[String; 2]>::try_from(texts).map_err(|_| Failure::field(field, "must have two texts"))
        };
        let models = pair(fields.texts("models", 2, 1024)?, "models")?;
        let answers = pair(fields.texts("answers", 2, MAX_TEXT_BYTES)?, "answers")?;
        let winner = fields.text("winner")?;
        let prompt = fields.text("prompt")?.unwrap_or_default();
        let seed = fields.integer("seed", i64::MIN..=i64::MAX)?;
        fields.finish()?;
        if models[0] == models[1] || winner.as_ref().is_some_and(|winner| !models.contains(winner)) {
            return Err(Failure::field("winner", "must be one of two models that differ, or null"));
        }
        if prompt.len() > MAX_TEXT_BYTES {
            return Err(Failure::field("prompt", format!("has more than {MAX_TEXT_BYTES} bytes")));
        }
        let time = OffsetDateTime::now_utc().format(&Rfc3339).map_err(|_| Failure::internal())?;
        let vote = Vote { time, models, winner, prompt, answers, seed };
        let line = serde_json::to_string(&vote).map_err(|_| Failure::internal())?;
        {
            let (log, tallies) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // A line that finds no room on the disk waits in memory.
            log.add(&line).map_err(|_| Failure::internal())?;
            count(tallies, &vote);
        }
        Ok(self.summary())
    }

    /// The win rate of each pair of models.
    pub(super) fn summary(&self) -> Value {
        let (_, tallies) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pairs = tallies.iter().map(|(models, tally)| {
            let votes = tally.wins[0] + tally.wins[1] + tally.ties;
            let rate = (tally.wins[0] as f64 + tally.ties as f64 / 2.0) / votes as f64;
            let (low, high) = interval(rate, votes);
            json!({ "models": models, "wins": tally.wins, "ties": tally.ties, "votes": votes, "win_rate": rate, "low": low, "high": high })
        });
        json!({ "pairs": pairs.collect::<Vec<_>>() })
    }
}

fn count(tallies: &mut BTreeMap<[String; 2], Tally>, vote: &Vote) {
    let mut models = vote.models.clone();
    models.sort_unstable();
    let winner = vote.winner.as_ref().and_then(|winner| models.iter().position(|model| model == winner));
    let tally = tallies.entry(models).or_default();
    match winner {
        Some(index) => tally.wins[index] += 1,
        None => tally.ties += 1,
    }
}

/// Wilson's interval of 95% for the share `rate` of `votes` votes, a tie counted as half a win (Wilson 1927).
fn interval(rate: f64, votes: u64) -> (f64, f64) {
    let count = votes as f64;
    let square = QUANTILE * QUANTILE / count;
    let middle = rate + square / 2.0;
    let half = QUANTILE * (rate * (1.0 - rate) / count + square / (4.0 * count)).sqrt();
    (((middle - half) / (1.0 + square)).max(0.0), ((middle + half) / (1.0 + square)).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_wilsons() {
        // statsmodels' proportion_confint(8, 10, method="wilson").
        let (low, high) = interval(0.8, 10);
        assert!((low - 0.490_162_5).abs() < 1e-6 && (high - 0.943_317_8).abs() < 1e-6, "{low} {high}");
        assert!(interval(0.0, 3).0 < 1e-12);
        assert_eq!(interval(1.0, 3).1, 1.0);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test makes its input")]
    fn votes_outlive_the_process() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("votes.jsonl");
        let vote = |votes: &Votes, winner: &str, models: &str| {
            let body = format!(
                r#"{{"models": {models}, "answers": ["x", "y"], "prompt": "p", "seed": 3, "winner": {winner}}}"#
            );
            votes.add(Fields::parse(body.as_bytes()).expect("an object"))
        };
        {
            let votes = Votes::open(&path).expect("opened");
            vote(&votes, "\"b\"", r#"["a", "b"]"#).expect("taken");
            vote(&votes, "\"b\"", r#"["b", "a"]"#).expect("taken");
        }
        let votes = Votes::open(&path).expect("opened");
        let summary = vote(&votes, "null", r#"["a", "b"]"#).expect("taken");
        let pair = &summary["pairs"][0];
        assert_eq!((&pair["models"], &pair["wins"], &pair["ties"]), (&json!(["a", "b"]), &json!([0, 2]), &json!(1)));
        assert!((pair["win_rate"].as_f64().expect("a rate") - 1.0 / 6.0).abs() < 1e-12);
        assert!(vote(&votes, "\"c\"", r#"["a", "b"]"#).is_err() && vote(&votes, "null", r#"["a", "a"]"#).is_err());
        std::fs::write(&path, "no vote\n").expect("written");
        assert!(Votes::open(&path).expect_err("no vote").to_string().contains("votes.jsonl:1: is no vote"));
    }
}
