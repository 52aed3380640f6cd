//! The texts that a written model is compared on: the validation examples of the adapter's run, examples of a file, or built-in ones.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use crate::adapter::host::{HostAdapter, provenance};
use crate::data::{self, Encoded, Encoder, Judged, LongPolicy, Paths, Row, Shape};
use crate::error::{Error, Result, counted};
use crate::model::vision::features::has_features;
use crate::recipe::Recipe;
use crate::run::prepare::{Examples, read_examples};
use crate::settings::choice;

/// Texts of several kinds and scripts, for every model.
const BUILT_IN: [&str; 6] = [
    "Question: A train leaves at 09:40 and arrives at 13:05. How long does the journey take?\nAnswer: three hours and 25 minutes.",
    "The customer writes that the parcel has not arrived. Ask politely for the order number and promise a reply by Friday.",
    "def mean(values):\n    \"\"\"The arithmetic mean of a list of numbers.\"\"\"\n    return sum(values) / len(values)\n",
    "请用一句话说明光合作用：植物利用阳光，把水和二氧化碳变成糖和氧气。",
    "SELECT name, count(*) FROM orders WHERE year = 2024 GROUP BY name ORDER BY 2 DESC;",
    "Pourquoi le ciel est-il bleu ? Parce que l'air disperse davantage la lumière bleue que la lumière rouge.",
];
/// The most tokens that are compared: their logits are in memory at once.
const MAX_TOKENS: usize = 256;
/// The most rows of a data file among which examples are chosen.
const MAX_ROWS: usize = 64;

choice! {
    /// The origin of the texts.
    TextSource {
        /// The validation examples of the run that made the adapter.
        Validation = "validation",
        /// The file that an argument names.
        Data = "data",
        /// Texts of several kinds and scripts.
        BuiltIn = "built-in",
    }
}

/// The texts that a written model is compared on.
#[derive(Debug, Clone, PartialEq)]
pub struct Texts {
    pub(super) sequences: Vec<Encoded>,
    /// Their origin.
    pub source: TextSource,
}

/// The texts in a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TextsUsed {
    /// Their origin.
    pub source: TextSource,
    /// Their number.
    pub examples: usize,
}

impl fmt::Display for TextsUsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source {
            TextSource::Validation => write!(f, "{} of the run", counted(self.examples, "validation example")),
            TextSource::Data => write!(f, "{} of --data", counted(self.examples, "example")),
            TextSource::BuiltIn => write!(f, "{}", counted(self.examples, "built-in text")),
        }
    }
}

impl Texts {
    /// The built-in texts, each cut to its share of the tokens.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn built_in(encoder: &Encoder) -> Result<Self> {
        let encoded = |text: &&str| {
            let mut ids = encoder.encode_raw_prompt(text)?;
            ids.truncate(MAX_TOKENS / BUILT_IN.len());
            let trained = vec![true; ids.len()];
            Ok(Encoded { ids, trained, untrained_turns: 0, weight: 1.0, judged: Judged::Not })
        };
        Ok(Self { sequences: BUILT_IN.iter().map(encoded).collect::<Result<_>>()?, source: TextSource::BuiltIn })
    }

    /// The first examples of data files, as many as are compared.
    ///
    /// # Errors
    /// Input: the files cannot be read; a row that cannot be encoded; no example with a trained token.
    pub fn of_data(encoder: &Encoder, path: &Path, shape: Shape) -> Result<Self> {
        let rows = data::read(path, shape)?;
        let sequences = chosen(encoder, &rows)?;
        if sequences.is_empty() {
            return Err(Error::input(path.display(), "has no example with a trained token"));
        }
        Ok(Self { sequences, source: TextSource::Data })
    }

    /// The validation examples of the run in the adapter's folder, where its files are still those of the run, or else the built-in
    /// texts, with the reason in words if there should have been examples.
    ///
    /// # Errors
    /// Those of [`Self::built_in`].
    pub fn of_run(encoder: &Encoder, folder: &Path, adapter: &HostAdapter) -> Result<(Self, Option<String>)> {
        match validation(encoder, folder, adapter) {
            Ok(sequences) if !sequences.is_empty() => Ok((Self { sequences, source: TextSource::Validation }, None)),
            Ok(_) => Ok((Self::built_in(encoder)?, None)),
            Err(error) => {
                let why = error.to_string();
                let why = why.lines().next().unwrap_or_default();
                let notice =
                    format!("the comparison uses built-in texts, not the validation examples of the run: {why}");
                Ok((Self::built_in(encoder)?, Some(notice)))
            }
        }
    }

    /// The texts in a report.
    pub(super) fn used(&self) -> TextsUsed {
        TextsUsed { source: self.source, examples: self.sequences.len() }
    }
}

/// The validation examples of the run in `folder`; none where it is no run folder, or had none.
fn validation(encoder: &Encoder, folder: &Path, adapter: &HostAdapter) -> Result<Vec<Encoded>> {
    let path = folder.join("recipe.toml");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let plan = Recipe::load(&path, &[])?.plan()?;
    let is_as_recorded = |key: &str, found: &str| adapter.metadata.get(key).is_none_or(|recorded| recorded == found);
    let changed = |names: String| Error::input(names, "has changed since the run");
    let rows = match &plan.data.valid {
        Some(paths) => {
            let Some(valid) = plan.data.read_valid()? else { return Ok(Vec::new()) };
            if !is_as_recorded(provenance::VALID_SHA256, &valid.sha256()) {
                return Err(changed(Paths::to_string(paths)));
            }
            valid.rows
        }
        None if plan.data.valid_fraction.is_some() => {
            let Examples { valid, train_sha256, .. } = read_examples(&plan)?;
            if !is_as_recorded(provenance::DATA_SHA256, &train_sha256) {
                return Err(changed(plan.data.train_names()));
            }
            valid
        }
        None => Vec::new(),
    };
    chosen(encoder, &rows)
}

/// The first examples that fit into the tokens that are compared. A longer one is passed over, unless all are, and so are those with
/// pictures, which merging does not touch.
fn chosen(encoder: &Encoder, rows: &[Row]) -> Result<Vec<Encoded>> {
    // Of a pair of preferences, the chosen answer.
    let plain = |row: &Row| Row { example: row.example.plain().clone(), ..row.clone() };
    let rows: Vec<Row> = rows.iter().take(MAX_ROWS).map(plain).collect();
    let mut encoded = encoder.encode_all(&rows, usize::MAX, LongPolicy::Drop)?.sequences;
    encoded.retain(|example| !has_features(&example.ids));
    let mut left = MAX_TOKENS;
    let fits = |example: &&Encoded| {
        let fits = example.ids.len() <= left;
        left -= if fits { example.ids.len() } else { 0 };
        fits
    };
    let fitting: Vec<Encoded> = encoded.iter().filter(fits).cloned().collect();
    if !fitting.is_empty() {
        return Ok(fitting);
    }
    let first = encoded.into_iter().next().map(|mut example| {
        example.ids.truncate(MAX_TOKENS);
        example.trained.truncate(MAX_TOKENS);
        example
    });
    Ok(first.into_iter().collect())
}
