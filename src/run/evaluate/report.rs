//! The outcome of an evaluation, for people and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::error::{Result, counted, printable};
use crate::eval::classes::ClassReport;
use crate::eval::measure::{Measure, Score};
use crate::quant::{Compute, Quant};
use crate::run::outcome::{Requirement, Validation};

/// The outcome of an evaluation.
#[derive(Debug, Clone, Serialize)]
pub struct EvalReport {
    /// Mean loss by trained token, with the adapter if there is one; of a classifier, by text. None for questions with choices and pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// `exp` of the loss by token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// Trained tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Examples that were measured.
    pub examples: usize,
    /// Examples that were not, because they are too long or nothing in them is trained.
    pub left_out: usize,
    /// Examples that had the beginning of their prompt cut.
    pub truncated: usize,
    /// How the base's weights were kept in memory.
    pub quant: Quant,
    /// The precision of the products.
    pub compute: Compute,
    /// Every measure, with the base's beside it where there is an adapter.
    pub scores: BTreeMap<Measure, Score>,
    /// The measures of labels, where the adapter is a classifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<ClassReport>,
    /// The verdict by the loss; none without an adapter, and for questions with choices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against_base: Option<Validation>,
    /// The key that `groups` are made by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The same measures by group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
}

/// The examples with the same value of a key.
#[derive(Debug, Clone, Serialize)]
pub struct Group {
    /// The value.
    pub group: String,
    /// Their number.
    pub examples: usize,
    /// Every measure that concerns them.
    pub scores: BTreeMap<Measure, Score>,
}

impl EvalReport {
    /// Checks the verdict that decides: by the loss, or for questions with choices and for pairs by the accuracy.
    ///
    /// # Errors
    /// Those of [`Requirement::check`].
    pub fn check(&self, required: Requirement) -> Result<()> {
        let by_loss = self.against_base.as_ref().map(|against| (against.name, against.verdict));
        let accuracy = self.scores.get(&Measure::Accuracy).and_then(|score| score.against_base);
        required.check(by_loss.or(accuracy.map(|against| ("accuracy", against.verdict))), None)
    }
}

impl fmt::Display for EvalReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(loss), Some(perplexity), Some(tokens)) = (self.loss, self.perplexity, self.tokens) {
            write!(f, "loss {loss:.4}, perplexity {perplexity:.3} over {} of ", counted(tokens, "token"))?;
        } else if let Some(loss) = self.loss {
            write!(f, "loss {loss:.4} over ")?;
        }
        write!(f, "{}", counted(self.examples, "example"))?;
        if self.left_out > 0 {
            write!(f, ", {} left out", self.left_out)?;
        }
        if self.truncated > 0 {
            write!(f, ", {} cut", self.truncated)?;
        }
        if self.quant != Quant::None {
            write!(f, ", base held as {}", self.quant)?;
        }
        write!(f, ", {}", self.compute)?;
        if let Some(against) = &self.against_base {
            write!(f, "\n{against}")?;
        }
        // The table of labels has their accuracy.
        let is_shown = |measure: &Measure| *measure != Measure::Loss && self.classes.is_none();
        let others: Vec<_> = self.scores.iter().filter(|(measure, _)| is_shown(measure)).collect();
        let has_base = others.iter().any(|(_, score)| score.against_base.is_some());
        if has_base {
            write!(f, "\n{:<24} {:>9} {:>9}  difference", "", "base", "adapter")?;
        }
        for (measure, score) in others {
            let (name, value) = (measure.name().replace('_', " "), measure.shown(score.value));
            write!(f, "\n{name:<24} ")?;
            match &score.against_base {
                None if has_base => write!(f, "{:>9} {value:>9}", "")?,
                None => write!(f, "{value:>9}")?,
                Some(against) => {
                    let shown = |value| measure.shown_difference(value);
                    write!(
                        f,
                        "{:>9} {value:>9}  {} (95% interval {} to {}): {}",
                        measure.shown(against.before),
                        shown(against.difference),
                        shown(against.low),
                        shown(against.high),
                        against.verdict.name()
                    )?;
                }
            }
        }
        if let Some(classes) = &self.classes {
            write!(f, "\n{classes}")?;
        }
        self.write_groups(f)
    }
}

impl EvalReport {
    /// A table of the groups: a column for each measure, `base -> adapter` where there is an adapter.
    fn write_groups(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(by) = &self.by else { return Ok(()) };
        let mut table = vec![vec![by.clone(), "examples".to_owned()]];
        table[0].extend(self.scores.keys().map(|measure| measure.name().replace('_', " ")));
        for Group { group, examples, scores } in &self.groups {
            let cells = self.scores.keys().map(|measure| match scores.get(measure) {
                None => "-".to_owned(),
                Some(Score { value, against_base: None, .. }) => measure.shown(*value),
                Some(Score { value, against_base: Some(against), .. }) => {
                    format!("{} -> {}", measure.shown(against.before), measure.shown(*value))
                }
            });
            table.push([printable(group).into_owned(), examples.to_string()].into_iter().chain(cells).collect());
        }
        let widths: Vec<usize> = (0..table[0].len())
            .map(|column| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        for row in &table {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            write!(f, "\n{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}
