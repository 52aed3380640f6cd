//! Measures of labels: accuracy, F1, confusion and calibration, with bootstrap intervals.

use std::fmt;

use rayon::prelude::*;
use serde::Serialize;

use super::bootstrap::{Estimate, RESAMPLES, draws, interval};
use super::loss::ExampleLoss;

/// The classes of confidence, of equal width, by which the calibration is measured.
const CONFIDENCE_CLASSES: usize = 15;
/// The most labels of which every pair gets an interval: their number grows with the square.
const MOST_LABELS_WITH_CELLS: usize = 32;

/// A text with its label, and the opinion of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Classified {
    /// The number of the right label.
    pub label: usize,
    /// The logarithm of the probability of each label.
    pub log_probabilities: Vec<f64>,
}

impl Classified {
    /// The number of the likeliest label, the first of equals.
    pub fn predicted(&self) -> usize {
        let first = (0, f64::NEG_INFINITY);
        let values = self.log_probabilities.iter().enumerate();
        values.fold(first, |best, (index, &value)| if value > best.1 { (index, value) } else { best }).0
    }

    /// The probability of each label.
    pub fn probabilities(&self) -> Vec<f64> {
        self.log_probabilities.iter().map(|value| value.exp()).collect()
    }

    /// Whether the likeliest label is the right one.
    pub fn is_right(&self) -> bool {
        self.predicted() == self.label
    }

    /// The cross entropy of the right label, as the loss of one token.
    pub fn loss(&self) -> ExampleLoss {
        let loss_sum = self.log_probabilities.get(self.label).map_or(f64::INFINITY, |value| -value);
        ExampleLoss { loss_sum, tokens: 1, correct_tokens: usize::from(self.is_right()) }
    }
}

/// The measures of a set without intervals.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ClassFigures {
    /// The share of examples whose likeliest label is the right one.
    pub accuracy: f64,
    /// The mean of the F1 of all labels that occur, among the examples or among the predictions.
    pub macro_f1: f64,
    /// The expected calibration error (Guo et al. 2017): the mean distance between the probability of the likeliest label and the share
    /// in which it is right, over classes of that probability.
    pub calibration_error: f64,
}

/// The examples of a set by right and by predicted label, and by confidence.
struct Tally {
    labels: usize,
    /// The examples with the label `row` that were given the label `column`, at `row * labels + column`.
    cells: Vec<u32>,
    /// Of each class of confidence: the examples, the sum of the probabilities, those that are right.
    confidence: [(f64, f64, f64); CONFIDENCE_CLASSES],
}

/// The precision, recall and F1 of a label; NaN where it is undefined.
type OfLabel = [f64; 3];

impl Tally {
    fn of<'a>(examples: impl Iterator<Item = &'a Outcome>, labels: usize) -> Self {
        let mut tally = Self { labels, cells: vec![0; labels * labels], confidence: Default::default() };
        for Outcome { label, predicted, probability } in examples {
            tally.cells[label * labels + predicted] += 1;
            let class = ((probability * CONFIDENCE_CLASSES as f64) as usize).min(CONFIDENCE_CLASSES - 1);
            let (count, sum, right) = &mut tally.confidence[class];
            *count += 1.0;
            *sum += probability;
            *right += f64::from(u8::from(label == predicted));
        }
        tally
    }

    fn of_label(&self, label: usize) -> OfLabel {
        let cell = |row: usize, column: usize| f64::from(self.cells[row * self.labels + column]);
        let right = cell(label, label);
        let examples: f64 = (0..self.labels).map(|column| cell(label, column)).sum();
        let predictions: f64 = (0..self.labels).map(|row| cell(row, label)).sum();
        // NaN where nothing is divided by nothing.
        [right / predictions, right / examples, 2.0 * right / (examples + predictions)]
    }

    fn figures(&self) -> ClassFigures {
        let examples: f64 = self.confidence.iter().map(|(count, ..)| count).sum();
        let right: f64 = self.confidence.iter().map(|(.., right)| right).sum();
        let f1 = (0..self.labels).map(|label| self.of_label(label)[2]).filter(|f1| !f1.is_nan());
        let (sum, occurring) = f1.fold((0.0, 0.0), |(sum, count), f1| (sum + f1, count + 1.0));
        let distances = self.confidence.iter().map(|(_, sum, right)| (sum - right).abs());
        ClassFigures {
            accuracy: right / examples,
            macro_f1: sum / occurring,
            calibration_error: distances.sum::<f64>() / examples,
        }
    }

    /// All that gets an interval: the figures, those of each label, and the cells where there are not too many.
    fn values(&self) -> Vec<f64> {
        let ClassFigures { accuracy, macro_f1, calibration_error } = self.figures();
        let mut values = vec![accuracy, macro_f1, calibration_error];
        values.extend((0..self.labels).flat_map(|label| self.of_label(label)));
        if self.labels <= MOST_LABELS_WITH_CELLS {
            values.extend(self.cells.iter().map(|count| f64::from(*count)));
        }
        values
    }
}

/// The part of an example that the measures see.
struct Outcome {
    label: usize,
    predicted: usize,
    /// Of the predicted label.
    probability: f64,
}

fn outcomes(examples: &[Classified]) -> Vec<Outcome> {
    let outcome = |example: &Classified| {
        let predicted = example.predicted();
        let probability = example.log_probabilities.get(predicted).map_or(0.0, |value| value.exp());
        Outcome { label: example.label, predicted, probability }
    };
    examples.iter().map(outcome).collect()
}

/// The measures of examples, of which there is one at least, without intervals.
pub fn figures(examples: &[Classified], labels: usize) -> ClassFigures {
    Tally::of(outcomes(examples).iter(), labels).figures()
}

/// The measures of one label.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LabelFigures {
    /// The label.
    pub label: String,
    /// Examples that have it.
    pub examples: usize,
    /// The share of the predictions of this label that are right; none without such a prediction.
    pub precision: Option<Estimate>,
    /// The share of the examples with this label that are predicted so; none without such an example.
    pub recall: Option<Estimate>,
    /// The harmonic mean of the two; none where neither is.
    pub f1: Option<Estimate>,
}

/// The measures of a set with their intervals.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassReport {
    /// Examples.
    pub examples: usize,
    /// [`ClassFigures::accuracy`].
    pub accuracy: Estimate,
    /// The accuracy of giving every example the most frequent label.
    pub majority_accuracy: f64,
    /// [`ClassFigures::macro_f1`].
    pub macro_f1: Estimate,
    /// [`ClassFigures::calibration_error`].
    pub calibration_error: Estimate,
    /// The measures of each label, in their order.
    pub labels: Vec<LabelFigures>,
    /// For each label a row: the examples that have it, by the label that they were given.
    pub confusion: Vec<Vec<usize>>,
    /// The intervals of these numbers, low and high; none where there are more than 32 labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub confusion_intervals: Vec<Vec<[f64; 2]>>,
}

impl ClassReport {
    /// The measures of `examples`, of which there is one at least, by the names of their labels. The same `seed` gives the same intervals
    /// on every machine.
    pub fn of(examples: &[Classified], names: &[String], seed: u64) -> Self {
        let (outcomes, labels) = (outcomes(examples), names.len());
        let tally = Tally::of(outcomes.iter(), labels);
        let values = tally.values();
        let resampled: Vec<Vec<f64>> = (0..RESAMPLES as u64)
            .into_par_iter()
            .map(|resample| Tally::of(draws(seed, resample, outcomes.len()).map(|at| &outcomes[at]), labels).values())
            .collect();
        let measured = |at: usize| -> Option<Estimate> {
            // A resample may lack a label.
            let (low, high) = interval(resampled.iter().map(|values| values[at]).filter(|v| !v.is_nan()).collect());
            (!values[at].is_nan()).then_some(Estimate { value: values[at], low, high })
        };
        let whole = |at: usize| measured(at).unwrap_or(Estimate { value: 0.0, low: 0.0, high: 0.0 });
        let confusion: Vec<Vec<usize>> =
            tally.cells.chunks(labels.max(1)).map(|row| row.iter().map(|count| *count as usize).collect()).collect();
        let of_label = |(number, name): (usize, &String)| LabelFigures {
            label: name.clone(),
            examples: confusion[number].iter().sum(),
            precision: measured(3 + 3 * number),
            recall: measured(4 + 3 * number),
            f1: measured(5 + 3 * number),
        };
        let cells: Vec<[f64; 2]> =
            (3 + 3 * labels..values.len()).map(whole).map(|cell| [cell.low, cell.high]).collect();
        let most = confusion.iter().map(|row| row.iter().sum::<usize>()).max().unwrap_or_default();
        Self {
            examples: examples.len(),
            accuracy: whole(0),
            majority_accuracy: most as f64 / examples.len() as f64,
            macro_f1: whole(1),
            calibration_error: whole(2),
            labels: names.iter().enumerate().map(of_label).collect(),
            confusion_intervals: cells.chunks(labels.max(1)).map(<[_]>::to_vec).collect(),
            confusion,
        }
    }

    /// The signs of a model that has not learned to tell the labels apart, in words.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.accuracy.low <= self.majority_accuracy {
            warnings.push(format!(
                "the accuracy is not above that of always giving the most frequent label ({:.1}%)",
                100.0 * self.majority_accuracy
            ));
        }
        let never = self.labels.iter().filter(|label| label.examples > 0 && label.precision.is_none());
        let never: Vec<String> = never.map(|label| format!("`{}`", label.label)).collect();
        if !never.is_empty() {
            warnings.push(format!("never predicted: {}", never.join(", ")));
        }
        warnings
    }
}

/// A share with its interval.
fn percent(measured: &Estimate) -> String {
    let Estimate { value, low, high } = measured;
    format!("{:.1}% ({:.1} to {:.1})", 100.0 * value, 100.0 * low, 100.0 * high)
}

impl fmt::Display for ClassReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { accuracy, macro_f1, calibration_error, .. } = self;
        write!(
            f,
            "  accuracy {}, macro F1 {}, calibration error {}; 95% intervals",
            percent(accuracy),
            percent(macro_f1),
            percent(calibration_error)
        )?;
        let head = ["label", "examples", "precision", "recall", "F1", "given"].map(str::to_owned);
        let mut table = vec![head.to_vec()];
        for (figures, row) in self.labels.iter().zip(&self.confusion) {
            let shown = |measured: &Option<Estimate>| measured.as_ref().map_or_else(|| "-".to_owned(), percent);
            let LabelFigures { label, examples, precision, recall, f1 } = figures;
            let given = row.iter().zip(&self.labels).filter(|(count, _)| **count > 0);
            let given: Vec<String> = given.map(|(count, other)| format!("{count} {}", other.label)).collect();
            let cells = [shown(precision), shown(recall), shown(f1), given.join(", ")];
            table.push([label.clone(), examples.to_string()].into_iter().chain(cells).collect());
        }
        let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..table[0].len()).map(width).collect();
        for row in &table {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            write!(f, "\n  {}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        self.warnings().iter().try_for_each(|warning| write!(f, "\n  warning: {warning}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Examples with the label `label`, given `predicted` with the probability `probability` of three labels.
    fn examples(outcomes: &[(usize, usize, f64)]) -> Vec<Classified> {
        let example = |&(label, predicted, probability): &(usize, usize, f64)| {
            let rest = ((1.0 - probability) / 2.0).ln();
            let log = |number: usize| if number == predicted { probability.ln() } else { rest };
            Classified { label, log_probabilities: (0..3).map(log).collect() }
        };
        outcomes.iter().map(example).collect()
    }

    fn names() -> Vec<String> {
        ["a", "b", "c"].map(str::to_owned).to_vec()
    }

    /// Expected values by scikit-learn's `precision_recall_fscore_support`, and by hand.
    #[test]
    fn the_measures_are_those_of_their_definitions() {
        let set = examples(&[(0, 0, 0.9), (0, 1, 0.5), (1, 1, 0.7), (1, 1, 0.9)]);
        let ClassFigures { accuracy, macro_f1, calibration_error } = figures(&set, 3);
        assert_eq!(accuracy, 0.75);
        // F1 of a: 2·1/(2+1); of b: 2·2/(2+3). c occurs nowhere.
        assert!((macro_f1 - (2.0 / 3.0 + 0.8) / 2.0).abs() < 1e-12);
        // At 0.9 two of two are right, at 0.5 none, at 0.7 one of one.
        assert!((calibration_error - (0.2 + 0.5 + 0.3) / 4.0).abs() < 1e-12);
        let report = ClassReport::of(&set, &names(), 0);
        assert_eq!(report.confusion, [[1, 1, 0], [0, 2, 0], [0, 0, 0]]);
        assert_eq!(report.majority_accuracy, 0.5);
        let [a, b, c] = &report.labels[..] else { panic!("three labels") };
        assert_eq!((a.precision.expect("given").value, a.recall.expect("there").value), (1.0, 0.5));
        assert!((b.precision.expect("given").value - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!((c.precision, c.recall, c.f1), (None, None, None));
        assert!((set[0].loss().loss_sum + 0.9f64.ln()).abs() < 1e-12 && set[1].loss().correct_tokens == 0);
    }

    #[test]
    fn intervals_are_those_of_the_share() {
        // 80 of 100 are right: the interval of a share is 0.8 ± 1.96·√(0.8·0.2/100) = 0.8 ± 0.078.
        let set = examples(&(0..100).map(|at| (at % 2, (at % 2 + usize::from(at < 20)) % 3, 0.8)).collect::<Vec<_>>());
        let report = ClassReport::of(&set, &names(), 0);
        let Estimate { value, low, high } = report.accuracy;
        assert!(value == 0.8 && (low - 0.722).abs() < 0.02 && (high - 0.878).abs() < 0.02, "{low} to {high}");
        assert_eq!(report, ClassReport::of(&set, &names(), 0));
        assert_ne!(report, ClassReport::of(&set, &names(), 1));
        let [low, high] = report.confusion_intervals[0][0];
        assert!(low < 40.0 && high > 40.0 && report.confusion[0][0] == 40, "{low} to {high}");
        assert!(report.calibration_error.value < 1e-9 && report.warnings().is_empty());
    }

    #[test]
    fn a_model_that_gives_one_label_is_warned_of() {
        let set = examples(&(0..40).map(|at| (usize::from(at % 4 == 0), 0, 0.6)).collect::<Vec<_>>());
        let text = ClassReport::of(&set, &names(), 0).to_string();
        assert!(text.contains("not above that of always giving the most frequent label (75.0%)"), "{text}");
        assert!(text.contains("never predicted: `b`") && text.contains("10 a"), "{text}");
    }
}
