//! The check of what a finished run remembers of its training examples: the exposure of its canaries, and how well losses tell training from
//! validation examples. The result stays in the run folder, for the report.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use serde::Serialize;
use serde_json::json;

use super::model::{LoadedModel, ModelChoice};
use super::prepare::{Examples, read_examples};
use super::watch::{Stage, Watch};
use crate::data::canaries::{Canary, FILE};
use crate::data::{Canaries, Encoded, Example, LongPolicy, Position, Row, batch};
use crate::device::DeviceChoice;
use crate::error::{Error, Place, Result, counted};
use crate::eval::bootstrap::Estimate;
use crate::eval::loss::{ExampleLoss, mean_loss};
use crate::eval::memorisation::{
    CHANCE_AUC, CHANCE_EXPOSURE, auc, difference, exposure, is_above, mean, most_exposure,
};
use crate::files::{atomic, lock};
use crate::nn::Adapter;
use crate::recipe::{Plan, Recipe};
use crate::report::{MEMORISATION_FILE, PAGE_FILE, RunFiles, page};
use crate::train::ObjectiveKind;
use crate::train::evaluate::evaluate;

/// The stream of the seed that chooses the examples that are compared.
const CHOICE_STREAM: u64 = u64::MAX - 5;

/// The extent of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorisationOptions {
    /// The most examples of each split.
    pub examples: usize,
    /// The alternatives among which a canary's secret is ranked.
    pub alternatives: usize,
}

/// The memory of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemorisationReport {
    /// The exposure of the canaries; none where the recipe has no `data.canaries`.
    pub canaries: Option<Exposures>,
    /// Whether losses tell the training examples; none without validation examples that are not among them.
    pub membership: Option<Membership>,
}

/// The exposures of canaries, in bits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Exposures {
    /// The number of times that each of the inserted canaries was among the training examples.
    pub repeats: usize,
    /// The alternatives of each.
    pub alternatives: usize,
    /// The greatest exposure that so many alternatives can show.
    pub most: f64,
    /// The mean exposure by chance.
    pub chance: f64,
    /// The canaries that were inserted.
    pub inserted: Vec<Exposed>,
    /// Canaries of the same form that were not.
    pub held_out: Vec<Exposed>,
    /// The mean exposure of the inserted ones.
    pub inserted_mean: f64,
    /// The mean exposure of the others.
    pub held_out_mean: f64,
    /// The difference of these means.
    pub difference: Estimate,
    /// Whether the inserted ones are remembered: the interval of the difference lies above 0; none for fewer than ten of either kind.
    pub is_remembered: Option<bool>,
}

/// The exposure of one canary.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Exposed {
    /// Its prompt.
    pub prompt: String,
    /// Its exposure, in bits.
    pub exposure: f64,
}

/// The skill of losses to tell training examples from validation examples.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Membership {
    /// Training examples.
    pub train_examples: usize,
    /// Validation examples, without those that are training examples too.
    pub valid_examples: usize,
    /// The area under the curve by the part of the mean loss of an example that the training took away.
    pub auc: Estimate,
    /// The same by the low loss with the adapter.
    pub auc_of_adapter: Estimate,
    /// The same by the low loss of the base, which has seen neither: what differs between the files themselves.
    pub auc_of_base: Estimate,
    /// Whether members are told: the interval of `auc` or of `auc_of_adapter` lies above 0.5; none for fewer than ten examples of a split.
    pub is_told: Option<bool>,
}

/// Measures what the run in the folder `dir` remembers, keeps it there and makes the run's page anew.
///
/// # Errors
/// Input: `dir` is no folder of a finished run, or is in use; its data has changed since; there is nothing to measure; a run that did not
/// learn from examples by their loss. Failed: a loss that is not finite; the files cannot be written.
pub fn check_memorisation(
    dir: &Path,
    choice: &DeviceChoice,
    options: MemorisationOptions,
    watch: &mut dyn Watch,
) -> Result<MemorisationReport> {
    let run = RunFiles::read(dir)?;
    lock::check_free(&dir.join("run.lock"))?;
    let recipe = dir.join("recipe.toml");
    let plan = Recipe::load(&recipe, &[])?.plan()?;
    if plan.train.objective != ObjectiveKind::Sft {
        let message = format!("trained by the objective `{}`", plan.train.objective);
        return Err(
            Error::input(dir, message).hint("memorisation is measured on runs by `sft`, by the losses of examples")
        );
    }
    watch.stage(Stage::ReadData);
    let examples = read_examples(&plan)?;
    let recorded = run.record.value["data"]["train_sha256"].as_str();
    if recorded.is_some_and(|recorded| recorded != examples.train_sha256) {
        let message = "has changed since the run: its examples are not those that were trained on";
        return Err(Error::input(plan.data.train_names(), message));
    }
    if plan.data.canaries.is_none() && examples.valid.is_empty() {
        return Err(Error::input(&recipe, "has neither validation examples nor canaries to compare with")
            .hint("`data.valid` gives the one, `[data.canaries]` the other; both are choices before the training"));
    }
    watch.stage(Stage::LoadWeights);
    let model = ModelChoice::base(plan.base.model.clone()).with_adapter(dir).load(choice, watch)?;
    watch.stage(Stage::Judge);
    let canaries = plan.data.canaries.as_ref();
    let canaries =
        canaries.map(|canaries| exposures(&model, &plan, canaries, &examples, options, watch)).transpose()?;
    let membership = membership(&model, &plan, &examples, options, watch)?;
    let report = MemorisationReport { canaries, membership };
    atomic::write_bytes(&dir.join(MEMORISATION_FILE), format!("{:#}\n", json!(report)).as_bytes())?;
    atomic::write_bytes(&dir.join(PAGE_FILE), page::of_folder(dir)?.as_bytes())?;
    Ok(report)
}

/// Ranks the secret of each canary among its alternatives.
fn exposures(
    model: &LoadedModel,
    plan: &Plan,
    canaries: &Canaries,
    examples: &Examples,
    options: MemorisationOptions,
    watch: &mut dyn Watch,
) -> Result<Exposures> {
    let like = examples.train.first().map(|row| &row.example);
    let drawn = canaries.draw(plan.train.seed);
    let count = drawn.inserted.len() + drawn.held_out.len();
    let mut done = 0;
    let mut of_each = |canaries: &[Canary]| -> Result<Vec<Exposed>> {
        let exposed = canaries.iter().map(|canary| {
            let exposure = exposure_of(model, canary, like, options.alternatives, plan.train.seed)?;
            done += 1;
            watch.evaluating(done, count);
            Ok(Exposed { prompt: canary.prompt.clone(), exposure })
        });
        exposed.collect()
    };
    let (inserted, held_out) = (of_each(&drawn.inserted)?, of_each(&drawn.held_out)?);
    let values = |exposed: &[Exposed]| exposed.iter().map(|one| one.exposure).collect::<Vec<f64>>();
    let (of, against) = (values(&inserted), values(&held_out));
    let difference = difference(&of, &against, plan.train.seed);
    Ok(Exposures {
        repeats: canaries.repeats,
        alternatives: options.alternatives,
        most: most_exposure(options.alternatives),
        chance: CHANCE_EXPOSURE,
        inserted_mean: mean(&of),
        held_out_mean: mean(&against),
        is_remembered: is_above(&difference, 0.0, [of.len(), against.len()]),
        difference,
        inserted,
        held_out,
    })
}

fn exposure_of(
    model: &LoadedModel,
    canary: &Canary,
    like: Option<&Example>,
    alternatives: usize,
    seed: u64,
) -> Result<f64> {
    let secrets = std::iter::once(canary.secret.clone()).chain(canary.alternatives(alternatives, seed));
    let row =
        |(index, secret): (usize, String)| Row::new(Position::line(FILE, index + 1), canary.example(&secret, like));
    let rows: Vec<Row> = secrets.enumerate().map(row).collect();
    let positions = model.decoder.config().max_positions;
    let set = model.base.encoder.encode_all(&rows, positions, LongPolicy::Error)?;
    let losses = evaluate(&model.decoder, model.attached.as_ref(), &set.sequences, &mut |_| Ok(()))?;
    mean_loss(&losses, |index| set.positions[index].to_string())?;
    let sums: Vec<f64> = losses.iter().map(|loss| loss.loss_sum).collect();
    match sums.split_first() {
        Some((loss, others)) if !others.is_empty() => Ok(exposure(*loss, others)),
        _ => Err(Error::failed(FILE, "nothing of it is trained in the shape of the data")),
    }
}

/// Compares the losses of training and validation examples, before and after the training.
fn membership(
    model: &LoadedModel,
    plan: &Plan,
    examples: &Examples,
    options: MemorisationOptions,
    watch: &mut dyn Watch,
) -> Result<Option<Membership>> {
    let limit = plan.data.max_seq_tokens.min(model.decoder.config().max_positions);
    let encode = |rows: &[Row]| model.base.encoder.encode_all(rows, limit, plan.data.overlong);
    let mut train = encode(&examples.train[..examples.own])?.sequences;
    let known: HashSet<&[u32]> = train.iter().map(|sequence| sequence.ids.as_slice()).collect();
    let mut valid = if examples.valid.is_empty() { Vec::new() } else { encode(&examples.valid)?.sequences };
    model.show_pictures(watch)?;
    valid.retain(|sequence| !known.contains(sequence.ids.as_slice()));
    let choose = |sequences: &mut Vec<Encoded>| {
        let order = batch::order(sequences.len(), plan.train.seed, CHOICE_STREAM);
        *sequences = order.into_iter().take(options.examples).map(|index| sequences[index].clone()).collect();
    };
    choose(&mut train);
    choose(&mut valid);
    if train.is_empty() || valid.is_empty() {
        return Ok(None);
    }
    let sizes = [train.len(), valid.len()];
    let sequences = [train, valid].concat();
    let total = 2 * sequences.len();
    let mut mean_losses = |adapter: Option<&Adapter>, first: usize| -> Result<Vec<f64>> {
        let losses = evaluate(&model.decoder, adapter, &sequences, &mut |done| {
            watch.evaluating(first + done, total);
            Ok(())
        })?;
        mean_loss(&losses, |index| format!("example {} of the comparison", index + 1))?;
        Ok(losses.iter().map(|loss: &ExampleLoss| loss.loss_sum / loss.tokens.max(1) as f64).collect())
    };
    let before = mean_losses(None, 0)?;
    let after = mean_losses(model.attached.as_ref(), sequences.len())?;
    let seed = plan.train.seed;
    let area = |scores: Vec<f64>| {
        let (members, others) = scores.split_at(sizes[0]);
        auc(members, others, seed)
    };
    let low = |losses: &[f64]| area(losses.iter().map(|loss| -loss).collect());
    let taken = area(before.iter().zip(&after).map(|(before, after)| before - after).collect());
    let of_adapter = low(&after);
    let is_told = |auc: &Estimate| is_above(auc, CHANCE_AUC, sizes);
    Ok(Some(Membership {
        train_examples: sizes[0],
        valid_examples: sizes[1],
        auc: taken,
        auc_of_adapter: of_adapter,
        auc_of_base: low(&before),
        is_told: is_told(&taken).zip(is_told(&of_adapter)).map(|(taken, of_adapter)| taken || of_adapter),
    }))
}

impl MemorisationOptions {
    /// Checks that there is something to count.
    ///
    /// # Errors
    /// Input: a number of 0.
    pub fn check(self) -> Result<Self> {
        for (name, value) in [("--examples", self.examples), ("--alternatives", self.alternatives)] {
            if value == 0 {
                return Err(Error::input(Place::argument(name), "is 0; expected 1 or more"));
            }
        }
        Ok(self)
    }
}

/// The words for a conclusion.
fn concluded(found: Option<bool>, yes: &str, no: &str) -> String {
    match found {
        Some(true) => yes.to_owned(),
        Some(false) => no.to_owned(),
        None => "no verdict: fewer than ten of a kind".to_owned(),
    }
}

impl fmt::Display for MemorisationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.canaries {
            Some(found) => {
                let Exposures { repeats, most, chance, inserted_mean, held_out_mean, .. } = found;
                let Estimate { value, low, high } = found.difference;
                writeln!(
                    f,
                    "canaries    {}, {} each: exposure {inserted_mean:.2} bits on average, of {most:.2} at most and {chance:.2} by chance; {} \
                     never inserted: {held_out_mean:.2} bits\n            difference {value:+.2} bits, 95% interval {low:+.2} to {high:+.2}: {}",
                    counted(found.inserted.len(), "secret"),
                    counted(*repeats, "time"),
                    found.held_out.len(),
                    concluded(found.is_remembered, "remembered", "no evidence that they are remembered")
                )?;
            }
            None => writeln!(f, "canaries    none: `[data.canaries]` inserts made-up secrets to measure by")?,
        }
        match &self.membership {
            Some(found) => {
                let area = |auc: &Estimate| {
                    let Estimate { value, low, high } = auc;
                    format!("AUC {value:.3}, 95% interval {low:.3} to {high:.3}")
                };
                let (yes, no) = ("losses tell training examples", "no evidence that losses tell training examples");
                writeln!(
                    f,
                    "membership  {}, over {} training and {} validation examples (0.5 by chance)",
                    concluded(found.is_told, yes, no),
                    found.train_examples,
                    found.valid_examples
                )?;
                writeln!(f, "            by the loss that the training took away: {}", area(&found.auc))?;
                writeln!(f, "            by the loss with the adapter: {}", area(&found.auc_of_adapter))?;
                let base = area(&found.auc_of_base);
                write!(f, "            by the base's loss, which shows how far the files differ in themselves: {base}")
            }
            None => write!(f, "membership  not measured: no validation example that is not a training example too"),
        }
    }
}
