//! The figures of texts with labels, by a classifier.

use std::path::Path;

use serde_json::json;

use super::examples::encoded;
use super::{EvalOptions, Measured};
use crate::adapter::host::HostClassifier;
use crate::data::Row;
use crate::error::Result;
use crate::eval::classes::{ClassReport, Classified};
use crate::eval::loss::{ExampleLoss, mean_loss};
use crate::eval::measure::{Measure, Shares};
use crate::nn::Adapter;
use crate::run::model::LoadedModel;
use crate::run::watch::Watch;
use crate::train::evaluate::classify;

/// Measures the classifier of `model` on `rows`.
pub(super) fn measure(
    model: &LoadedModel,
    (classifier, adapter): (&HostClassifier, &Adapter),
    path: &Path,
    rows: &[Row],
    options: &EvalOptions,
    watch: &mut dyn Watch,
) -> Result<Measured> {
    let (set, _, mut measured) = encoded(model, path, rows, options, watch)?;
    let total = set.sequences.len();
    let classified = classify(&model.decoder, adapter, &set.sequences, &mut |done| {
        watch.evaluating(done, total);
        Ok(())
    })?;
    let losses: Vec<ExampleLoss> = classified.iter().map(Classified::loss).collect();
    mean_loss(&losses, |index| measured.places[index].clone())?;
    let name = |number: usize| classifier.labels.get(number);
    for (record, one) in measured.records.iter_mut().zip(&classified) {
        record.insert("label".to_owned(), json!(name(one.label)));
        record.insert("predicted".to_owned(), json!(name(one.predicted())));
        record.insert("loss".to_owned(), json!(one.loss().loss_sum));
        let probabilities = classifier.labels.iter().cloned().zip(one.probabilities());
        record.insert("probabilities".to_owned(), probabilities.map(|(name, value)| (name, json!(value))).collect());
    }
    measured.shares.push(Shares::from([
        (Measure::Loss, losses.iter().map(|loss| Some(loss.share())).collect()),
        (Measure::Accuracy, losses.iter().map(|loss| Some(loss.share_of_correct())).collect()),
    ]));
    measured.classes = Some(ClassReport::of(&classified, &classifier.labels, options.seed));
    Ok(measured)
}
