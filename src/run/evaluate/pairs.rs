//! The figures of pairs of preferences: which of two answers a model finds likelier, and by how much.

use std::path::Path;

use serde_json::{Value, json};

use super::examples::encoded;
use super::{EvalOptions, Measured, System};
use crate::data::Row;
use crate::error::{Error, Place, Result};
use crate::eval::bootstrap::Share;
use crate::eval::loss::{ExampleLoss, mean_loss};
use crate::eval::measure::{Measure, Shares};
use crate::run::model::LoadedModel;
use crate::run::watch::Watch;
use crate::train::evaluate::evaluate as losses_of;
use crate::train::objective::pairs::draw_counts_half;

/// Measures every system on the pairs `rows`.
pub(super) fn measure(
    model: &LoadedModel,
    systems: &[System<'_>],
    path: &Path,
    rows: &[Row],
    options: &EvalOptions,
    watch: &mut dyn Watch,
) -> Result<Measured> {
    if options.generate {
        let message = format!("{} holds pairs of preferences", path.display());
        return Err(Error::input(Place::argument("--generate"), message)
            .hint("they are compared by likelihood, without --generate"));
    }
    let (set, _, mut measured) = encoded(model, path, rows, options, watch)?;
    let total = systems.len() * set.sequences.len();
    let mut base: Option<Vec<f64>> = None;
    for (index, system) in systems.iter().enumerate() {
        let losses = losses_of(&model.decoder, system.adapter, &set.sequences, &mut |done| {
            watch.evaluating(index * set.sequences.len() + done, total);
            Ok(())
        })?;
        mean_loss(&losses, |sequence| measured.places[sequence / 2].clone())?;
        let margins = add_pairs(&mut measured, system, &losses);
        // The base against itself is a draw everywhere.
        if systems.len() > 1 {
            let of_base = base.get_or_insert_with(|| margins.clone());
            add_rewards(&mut measured, system, &margins, of_base);
        }
    }
    Ok(measured)
}

/// Adds the figures of a system, whose losses are those of chosen and rejected answers in turn. Returns the margin of each pair.
fn add_pairs(measured: &mut Measured, system: &System<'_>, losses: &[ExampleLoss]) -> Vec<f64> {
    let mut shares = Shares::new();
    let mut margins = Vec::with_capacity(measured.records.len());
    for ([chosen, rejected], record) in losses.as_chunks::<2>().0.iter().zip(&mut measured.records) {
        let log_probability = |answer: &ExampleLoss| -answer.loss_sum;
        let by_token = |answer: &ExampleLoss| -answer.loss_sum / answer.tokens as f64;
        let margin = log_probability(chosen) - log_probability(rejected);
        let figures = [
            (Measure::Accuracy, draw_counts_half(margin)),
            (Measure::AccuracyNormalised, draw_counts_half(by_token(chosen) - by_token(rejected))),
            (Measure::Margin, margin),
            (Measure::ChosenLogProbability, log_probability(chosen)),
            (Measure::RejectedLogProbability, log_probability(rejected)),
        ];
        for (measure, value) in figures {
            shares.entry(measure).or_default().push(Some(Share::of_score(value)));
            record.insert(format!("{}{}", system.prefix, measure.name()), json!(value));
        }
        record.insert("chosen_tokens".to_owned(), json!(chosen.tokens));
        record.insert("rejected_tokens".to_owned(), json!(rejected.tokens));
        margins.push(margin);
    }
    measured.shares.push(shares);
    margins
}

/// Adds the figures of the rewards, which are the likelihoods against those of the base.
fn add_rewards(measured: &mut Measured, system: &System<'_>, margins: &[f64], of_base: &[f64]) {
    let gains: Vec<f64> = margins.iter().zip(of_base).map(|(margin, base)| margin - base).collect();
    let accuracies = gains.iter().map(|gain| Some(Share::of_score(draw_counts_half(*gain))));
    if let Some(shares) = measured.shares.last_mut() {
        shares.insert(Measure::RewardAccuracy, accuracies.collect());
    }
    if system.adapter.is_some() {
        let records = measured.records.iter_mut().zip(&gains);
        records.for_each(|(record, gain)| drop(record.insert("margin_gain".to_owned(), Value::from(*gain))));
    }
}
