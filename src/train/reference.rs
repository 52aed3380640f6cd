//! The part of an objective that is known beside the losses of a step: the reference of an objective over preferences, and the weights of
//! labels. The reference is the model as it was before the first step, which is the base where the adapter is a fresh one.
//!
//! Its log-probabilities are computed when an example comes for the first time, one example at a time, and stay in memory: a few
//! bytes each. Alone in its pass, an example has the same values in every step and after every resumption.

use std::borrow::Cow;

use burn::module::Module;

use super::evaluate::{evaluate, evaluate_cancellable, exchanged, loss, numbers};
use super::objective::Facts;
use super::parallel::Ranks;
use super::preference::{divergence, mismatched};
use super::settings::TrainSettings;
use super::step::Known;
use crate::adapter::host::HostAdapter;
use crate::data::{Encoded, Judged};
use crate::error::Result;
use crate::eval::loss::ExampleLoss;
use crate::interrupt;
use crate::model::Decoder;
use crate::nn::Adapter;

/// The reference of a run and the weights of its labels, as far as its objective has them.
pub struct References<'a> {
    decoder: &'a Decoder,
    /// The adapter before the first step; `None` for an objective without a reference.
    adapter: Option<Adapter>,
    /// The loss sums of the sequences of each training example, as far as they are known.
    sums: Vec<Option<Vec<f64>>>,
    /// The prompt of each training example with the answer to another prompt; empty for an objective that needs no divergence.
    mismatched: Vec<Encoded>,
    /// Their losses, as far as they are known.
    of_mismatched: Vec<Option<ExampleLoss>>,
    /// The weight of each label; empty for an objective without labels.
    label_weights: Vec<f64>,
}

impl<'a> References<'a> {
    /// The reference of a run over `train` that begins with `start`.
    ///
    /// # Errors
    /// An adapter that does not fit; those of [`mismatched`] and of [`LabelWeights::of`](super::label_weights::LabelWeights::of).
    pub fn of(decoder: &'a Decoder, start: &HostAdapter, train: &[Encoded], settings: &TrainSettings) -> Result<Self> {
        let objective = settings.objective();
        let adapter = match objective.has_reference() {
            true => Some(start.attach(decoder.config(), decoder.device())?),
            false => None,
        };
        let labels = start.classifier.as_ref().map(|classifier| classifier.labels.as_slice());
        let label_weights = labels.map_or(Ok(Vec::new()), |labels| settings.label_weights.of(labels, train))?;
        let mismatched = if objective.needs_divergence() { mismatched(train)? } else { Vec::new() };
        let of_mismatched = vec![None; mismatched.len()];
        Ok(Self { decoder, adapter, sums: vec![None; train.len()], mismatched, of_mismatched, label_weights })
    }

    /// The part of a step that its objective knows beside the losses of the model with `adapter`: `indices` are those of the
    /// training examples by micro-batch, `examples` the same as they are in this epoch. Of the micro-batches of other ranks, no facts
    /// are known. `None` where this rank was asked to stop, before (`is_stopped`) or meanwhile.
    ///
    /// # Errors
    /// None that an evaluation does not have.
    pub fn known(
        &mut self,
        ranks: &dyn Ranks,
        adapter: &Adapter,
        indices: &[Vec<usize>],
        examples: &[Vec<Cow<'_, Encoded>>],
        is_stopped: bool,
    ) -> Result<Option<Known>> {
        let mut facts = || {
            let of_part = |(part, (indices, examples)): (usize, (&Vec<usize>, &Vec<Cow<'_, Encoded>>))| {
                if ranks.is_mine(part) { self.facts(indices, examples) } else { Ok(Vec::new()) }
            };
            indices.iter().zip(examples).enumerate().map(of_part).collect::<Result<Vec<_>>>()
        };
        let facts = if is_stopped { None } else { interrupt::cancellable(&mut facts).transpose()? };
        let divergence = match self.mismatched.is_empty() {
            true => Some(0.0),
            false => self.divergence(ranks, adapter, &indices.concat(), facts.is_some())?,
        };
        Ok(facts.zip(divergence).map(|(facts, divergence)| Known { facts, divergence, ..Known::default() }))
    }

    /// The facts of the sequences of a micro-batch.
    fn facts(&mut self, indices: &[usize], examples: &[Cow<'_, Encoded>]) -> Result<Vec<Facts>> {
        let mut facts = Vec::new();
        for (index, example) in indices.iter().zip(examples) {
            let is_desirable = example.judged == Judged::Labelled(true);
            let sums = self.sums_of(*index, example)?;
            let weight = self.label_weights.get(example.label()).copied().unwrap_or(1.0);
            facts.extend(sums.into_iter().map(|reference| Facts { reference, is_desirable, weight }));
        }
        Ok(facts)
    }

    /// The loss sums of the sequences of an example under the reference.
    #[expect(clippy::ptr_arg, reason = "a borrowed example is one that does not change")]
    fn sums_of(&mut self, index: usize, example: &Cow<'_, Encoded>) -> Result<Vec<f64>> {
        let Some(adapter) = &self.adapter else { return Ok(vec![0.0; example.sequences().count()]) };
        if let (Cow::Borrowed(_), Some(sums)) = (example, &self.sums[index]) {
            return Ok(sums.clone());
        }
        let losses = evaluate(self.decoder, Some(adapter), std::slice::from_ref(&**example), &mut |_| Ok(()))?;
        let sums: Vec<f64> = losses.iter().map(|loss| loss.loss_sum).collect();
        // An example that changes from epoch to epoch is another one the next time.
        if matches!(example, Cow::Borrowed(_)) {
            self.sums[index] = Some(sums.clone());
        }
        Ok(sums)
    }

    /// The estimate of the divergence of the model with `adapter` from the reference, over these examples; `None`, on every rank,
    /// where one of them was asked to stop, before (`goes_on`) or meanwhile.
    fn divergence(
        &mut self,
        ranks: &dyn Ranks,
        adapter: &Adapter,
        indices: &[usize],
        goes_on: bool,
    ) -> Result<Option<f64>> {
        let mut unknown: Vec<usize> =
            indices.iter().copied().filter(|index| self.of_mismatched[*index].is_none()).collect();
        unknown.sort_unstable();
        unknown.dedup();
        let mine = unknown.iter().enumerate().filter(|(place, _)| ranks.is_mine(*place));
        let one = |(_, &index): (usize, &usize)| {
            let losses =
                evaluate(self.decoder, self.adapter.as_ref(), &self.mismatched[index..=index], &mut |_| Ok(()))?;
            Ok(losses.iter().map(numbers).collect::<Vec<_>>())
        };
        let own = match goes_on {
            true => interrupt::cancellable(|| mine.map(one).collect::<Result<Vec<_>>>()).transpose()?,
            false => None,
        };
        let Some(found) = exchanged(ranks, unknown.len(), own) else { return Ok(None) };
        for (index, numbers) in unknown.into_iter().zip(found) {
            self.of_mismatched[index] = Some(loss(&numbers));
        }
        let reference: Vec<ExampleLoss> = indices.iter().filter_map(|&index| self.of_mismatched[index]).collect();
        let of_step: Vec<Encoded> = indices.iter().map(|&index| self.mismatched[index].clone()).collect();
        let now = adapter.valid();
        let losses = evaluate_cancellable(ranks, self.decoder, Some(&now), &of_step, &mut |_| Ok(()))?;
        Ok(losses.map(|losses| divergence(&losses, &reference)))
    }
}
