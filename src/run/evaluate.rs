//! Evaluation of a base, or of a base with an adapter beside it, on a data file.

mod choices;
mod classes;
mod examples;
mod pairs;
mod report;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

pub use report::{EvalReport, Group};

use super::model::LoadedModel;
use super::outcome::Validation;
use super::watch::Watch;
use crate::data::{self, Columns, Format, LongPolicy, Row, Shape};
use crate::error::{Error, Place, Result};
use crate::eval::choices::{ChoiceQuestion, read as read_choices};
use crate::eval::classes::ClassReport;
use crate::eval::loss::{ExampleLoss, perplexity};
use crate::eval::measure::{Measure, Shares, scores};
use crate::eval::text::Extractor;
use crate::files::atomic;
use crate::nn::Adapter;

/// The measures beside the loss, and the examples that are measured.
#[derive(Debug, Clone)]
pub struct EvalOptions {
    /// Answer every example greedily and score the answers.
    pub generate: bool,
    /// The longest answer, in tokens.
    pub max_tokens: usize,
    /// Finds the answers that are compared for exact match; without it, they are the whole texts.
    pub extract: Option<Extractor>,
    /// The key or column of a row by whose values figures are given too.
    pub by: Option<String>,
    /// Other names of the keys of the rows.
    pub columns: Option<Columns>,
    /// The adapter is a classifier: the rows are texts with labels.
    pub classifies: bool,
    /// A wording with `{text}` in it: the rows are texts with labels, and the label that is the likeliest after the wording counts.
    pub label_prompt: Option<String>,
    /// The first so many rows are measured; `None` for all.
    pub limit: Option<usize>,
    /// The longest sequence, in tokens; `None` for the positions of the model.
    pub max_seq_tokens: Option<usize>,
    /// The treatment of longer examples.
    pub overlong: LongPolicy,
    /// A file of one JSON object for each example. It must not exist.
    pub out: Option<PathBuf>,
    /// Decides the bootstrap's resamples.
    pub seed: u64,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self {
            generate: false,
            max_tokens: 128,
            extract: None,
            by: None,
            columns: None,
            classifies: false,
            label_prompt: None,
            limit: None,
            max_seq_tokens: None,
            overlong: LongPolicy::Error,
            out: None,
            seed: 0,
        }
    }
}

impl EvalOptions {
    /// The form of the objects in the data file; without a format, the first decides.
    fn shape(&self, format: Option<Format>) -> Shape {
        Shape { format, group: self.by.clone(), ..Shape::with_columns(self.columns.as_ref()) }
    }
}

/// The rows of a data file that is evaluated.
#[derive(Debug)]
pub struct EvalData {
    path: PathBuf,
    rows: Rows,
}

#[derive(Debug)]
enum Rows {
    /// Examples as in training.
    Examples(Vec<Row>),
    /// Questions with choices.
    Choices(Vec<ChoiceQuestion>),
    /// Pairs of preferences.
    Pairs(Vec<Row>),
    /// Texts with labels, for a classifier.
    Classes(Vec<Row>),
}

impl EvalData {
    /// Reads a data file: in any of the shapes of training, or as JSONL with `choices` and `answer`; texts with labels where the options
    /// say so.
    ///
    /// # Errors
    /// Input: every bad row; the file to write exists already.
    pub fn read(path: &Path, options: &EvalOptions) -> Result<Self> {
        if let Some(out) = &options.out {
            check_free(out)?;
        }
        let by = options.by.as_deref();
        let may_hold_choices = path.extension().is_some_and(|ending| ending == "jsonl" || ending == "ndjson");
        let choices = match &options.label_prompt {
            Some(wording) => Some(choices::of_labels(path, wording, options)?),
            None if may_hold_choices && !options.classifies => read_choices(path, by)?,
            None => None,
        };
        let most = options.limit.unwrap_or(usize::MAX);
        let rows = match choices {
            Some(mut questions) => {
                questions.truncate(most);
                Rows::Choices(questions)
            }
            None => {
                let mut rows = data::read(path, options.shape(options.classifies.then_some(Format::Class)))?;
                rows.truncate(most);
                // All rows of a file have one shape.
                match rows.first().map(|row| row.example.format()) {
                    Some(Format::Preference) => Rows::Pairs(rows),
                    Some(Format::Class) => Rows::Classes(rows),
                    _ => Rows::Examples(rows),
                }
            }
        };
        Ok(Self { path: path.to_owned(), rows })
    }
}

/// Whether the file to write can be made.
pub(super) fn check_free(out: &Path) -> Result<()> {
    let place = || Place::argument("--out");
    atomic::check_new(place(), out)?;
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        return Err(Error::input(place(), format!("{} is not a folder", folder.display())).hint("make it first"));
    }
    Ok(())
}

/// A model as it is measured: the base, or the base with the adapter.
struct System<'a> {
    /// The beginning of the keys of its figures in the file of examples.
    prefix: &'static str,
    adapter: Option<&'a Adapter>,
}

/// The systems that are measured, the base first.
fn systems(model: &LoadedModel) -> Vec<System<'_>> {
    match &model.attached {
        Some(adapter) => vec![System { prefix: "base_", adapter: None }, System { prefix: "", adapter: Some(adapter) }],
        None => vec![System { prefix: "", adapter: None }],
    }
}

/// The figures of every example.
#[derive(Default)]
struct Measured {
    /// The place of each example, for messages and for the file of examples.
    places: Vec<String>,
    /// The group of each example.
    groups: Vec<Option<String>>,
    /// The object of each in the file of examples.
    records: Vec<Map<String, Value>>,
    /// The shares of each system in every measure.
    shares: Vec<Shares>,
    /// The losses of each system by token; empty for questions with choices, pairs and labels.
    losses: Vec<Vec<ExampleLoss>>,
    /// The measures of labels, by a classifier.
    classes: Option<ClassReport>,
    left_out: usize,
    truncated: usize,
}

/// Evaluates a model on a data file; `watch` gets the progress, and a line for everything that the user should know.
///
/// # Errors
/// An example that cannot be encoded, or is too long; no trained token; no answers to score; logits that are not numbers; the
/// file of examples cannot be written.
pub fn evaluate(
    model: &LoadedModel,
    data: &EvalData,
    options: &EvalOptions,
    watch: &mut dyn Watch,
) -> Result<EvalReport> {
    let systems = systems(model);
    let classifier =
        model.adapter.as_ref().and_then(|adapter| adapter.classifier.as_ref()).zip(model.attached.as_ref());
    let measured = match &data.rows {
        Rows::Classes(rows) => match classifier {
            Some(classifier) => classes::measure(model, classifier, &data.path, rows, options, watch)?,
            None => {
                let error = Error::input(&*data.path, "holds texts with labels, and the adapter is no classifier");
                return Err(error.hint("`--label-prompt` measures the likelihood of label words"));
            }
        },
        _ if classifier.is_some() => {
            let message =
                "does not hold texts with labels, and the adapter is a classifier: it gives labels and no text";
            return Err(Error::input(&*data.path, message).hint("the keys are `text` and `label`"));
        }
        Rows::Pairs(rows) => pairs::measure(model, &systems, &data.path, rows, options, watch)?,
        Rows::Examples(rows) => examples::measure(model, &systems, &data.path, rows, options, watch)?,
        Rows::Choices(questions) => choices::measure(model, &systems, &data.path, questions, options, watch)?,
    };
    let against_base = match measured.losses.as_slice() {
        [before, after] => {
            let place = |index: usize| measured.places[index].clone();
            Some(Validation::of("validation", (before, after), options.seed, place)?)
        }
        _ => None,
    };
    let report = report_of(model, options, &measured, against_base);
    if let Some(out) = &options.out {
        write_examples(out, &measured)?;
    }
    Ok(report)
}

fn report_of(
    model: &LoadedModel,
    options: &EvalOptions,
    measured: &Measured,
    against_base: Option<Validation>,
) -> EvalReport {
    let (shares, of_base) = match measured.shares.as_slice() {
        [base, shares] => (shares, Some(base)),
        [shares, ..] => (shares, None),
        [] => unreachable!("at least one system is measured"),
    };
    let names: BTreeSet<&String> = measured.groups.iter().flatten().collect();
    let groups = names.into_iter().map(|name| {
        let is_in = |index: usize| measured.groups[index].as_ref() == Some(name);
        let examples = (0..measured.groups.len()).filter(|index| is_in(*index)).count();
        Group { group: name.clone(), examples, scores: scores(shares, of_base, options.seed, &is_in) }
    });
    let scores_of_all = scores(shares, of_base, options.seed, &|_| true);
    let loss = scores_of_all.get(&Measure::Loss).map(|score| score.value);
    EvalReport {
        loss,
        perplexity: loss.filter(|_| measured.classes.is_none()).map(perplexity),
        tokens: measured.losses.last().map(|losses| losses.iter().map(|loss| loss.tokens).sum()),
        classes: measured.classes.clone(),
        examples: measured.records.len(),
        left_out: measured.left_out,
        truncated: measured.truncated,
        quant: model.quant,
        compute: model.compute,
        scores: scores_of_all,
        against_base,
        by: options.by.clone(),
        groups: groups.collect(),
    }
}

/// Writes an object for each example.
fn write_examples(out: &Path, measured: &Measured) -> Result<()> {
    let mut text = String::new();
    let rows = measured.places.iter().zip(&measured.groups).zip(&measured.records);
    for ((place, group), record) in rows {
        let mut line = Map::new();
        line.insert("place".to_owned(), json!(place));
        if let Some(group) = group {
            line.insert("group".to_owned(), json!(group));
        }
        line.extend(record.clone());
        text += &format!("{}\n", Value::Object(line));
    }
    atomic::write_bytes(out, text.as_bytes())
}
