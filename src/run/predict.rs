//! The labels that a classifier gives to texts.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use super::evaluate::check_free;
use super::model::LoadedModel;
use super::watch::Watch;
use crate::data::{self, Columns, Example, Format, LongPolicy, Position, Row, Shape, jsonl};
use crate::error::{Error, Place, Result};
use crate::eval::classes::Classified;
use crate::train::evaluate::classify;

/// The reading of texts, and the place of their labels.
#[derive(Debug, Clone)]
pub struct PredictOptions {
    /// Other names of the key `text`.
    pub columns: Option<Columns>,
    /// The longest text, in tokens; `None` for the positions of the model.
    pub max_seq_tokens: Option<usize>,
    /// The treatment of longer texts. None is left out.
    pub overlong: LongPolicy,
    /// A file of one JSON object for each text. It must not exist.
    pub out: Option<PathBuf>,
}

/// Texts with their places.
#[derive(Debug)]
pub struct Texts(Vec<(Position, String)>);

/// The label of a text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// The place of the text: its file and line or row.
    pub place: String,
    /// The text.
    pub text: String,
    /// The likeliest label.
    pub label: String,
    /// Its probability.
    pub probability: f64,
    /// The probability of each label, in their order.
    pub probabilities: Map<String, Value>,
}

impl Texts {
    /// Reads the texts of a data file: the key or column `text` of each row, whatever else it has.
    ///
    /// # Errors
    /// Input: every bad row; the file to write exists already.
    pub fn read(path: &Path, options: &PredictOptions) -> Result<Self> {
        options.check()?;
        data::read(path, options.shape()).map(Self::of)
    }

    /// The texts of `input`, which messages call `name`: of JSON objects, by line or in a list, the key `text`; else every line is one.
    ///
    /// # Errors
    /// Those of [`Self::read`].
    pub fn parse(input: &[u8], name: &str, options: &PredictOptions) -> Result<Self> {
        options.check()?;
        if let Some(b'{' | b'[') = input.iter().find(|byte| !byte.is_ascii_whitespace()) {
            return jsonl::parse(input, name, options.shape()).map(Self::of);
        }
        let input = std::str::from_utf8(input).map_err(|_| Error::input(name, "is not UTF-8 text"))?;
        let lines = input.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let texts = lines.map(|(index, line)| (Position::line(name, index + 1), line.to_owned()));
        Ok(Self(texts.collect()))
    }

    fn of(rows: Vec<Row>) -> Self {
        let text = |row: Row| match row.example {
            Example::Text { text } => Some((row.position, text)),
            _ => None,
        };
        Self(rows.into_iter().filter_map(text).collect())
    }
}

impl PredictOptions {
    fn shape(&self) -> Shape {
        Shape { format: Some(Format::Text), ..Shape::with_columns(self.columns.as_ref()) }
    }

    fn check(&self) -> Result<()> {
        self.out.as_ref().map_or(Ok(()), |out| check_free(out))
    }
}

/// The label of every text, in their order.
///
/// # Errors
/// Input: the adapter is no classifier; a text is too long, or has no token. Failed: logits that are not numbers.
pub fn predict(
    model: &LoadedModel,
    texts: &Texts,
    options: &PredictOptions,
    watch: &mut dyn Watch,
) -> Result<Vec<Prediction>> {
    let classifier = model.adapter.as_ref().and_then(|adapter| adapter.classifier.as_ref());
    let (Some(classifier), Some(attached)) = (classifier, &model.attached) else {
        let message = match &model.adapter {
            Some(_) => "is no classifier: it gives text, and no labels",
            None => "is missing: the labels are those of a classifier",
        };
        let hint = "`train.objective = \"classify\"` makes one; `burnish eval --label-prompt` measures the likelihood of label words";
        return Err(Error::input(Place::argument("--adapter"), message).hint(hint));
    };
    let labels = &classifier.labels;
    // The right label is not known; which one stands in its place changes nothing.
    let row = |(position, text): &(Position, String)| {
        let label = labels.first().cloned().unwrap_or_default();
        Row::new(position.clone(), Example::Class { text: text.clone(), label })
    };
    let rows: Vec<Row> = texts.0.iter().map(row).collect();
    let positions = model.decoder.config().max_positions;
    let limit = options.max_seq_tokens.unwrap_or(positions).min(positions);
    let set = model.base.encoder.encode_all(&rows, limit, options.overlong)?;
    set.notices.iter().for_each(|text| watch.notice(text));
    if let Some(missing) = (0..rows.len()).find(|index| set.indices.get(*index) != Some(index)) {
        let error = Error::input(rows[missing].position.place(), "has no token to read a label from");
        return Err(error.hint("an empty text has no label"));
    }
    let total = rows.len();
    let classified = classify(&model.decoder, attached, &set.sequences, &mut |done| {
        watch.evaluating(done, total);
        Ok(())
    })?;
    let prediction = |((position, text), classified): (&(Position, String), &Classified)| {
        let (number, probabilities) = (classified.predicted(), classified.probabilities());
        if probabilities.iter().any(|probability| !probability.is_finite()) {
            return Err(Error::failed(position.to_string(), "its logits are not numbers")
                .hint("base or adapter may be damaged, or trained to divergence"));
        }
        Ok(Prediction {
            place: position.to_string(),
            text: text.clone(),
            label: labels[number].clone(),
            probability: probabilities[number],
            probabilities: labels.iter().cloned().zip(probabilities.into_iter().map(Value::from)).collect(),
        })
    };
    texts.0.iter().zip(&classified).map(prediction).collect()
}

/// Writes an object for each text on a line of the file `out`.
///
/// # Errors
/// Failed: it cannot be written.
pub fn write(predictions: &[Prediction], out: &Path) -> Result<()> {
    let mut text = String::new();
    for prediction in predictions {
        text += &serde_json::to_string(prediction).map_err(|error| Error::failed(out, error.to_string()))?;
        text.push('\n');
    }
    crate::files::atomic::write_bytes(out, text.as_bytes())
}
