//! The figures of a trial by its run folder, their order by the objective of a sweep, and the trials that go on after a rung.

use std::cmp::{Ordering, Reverse};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::journal::{Journal, Trial, TrialState};
use crate::files::json::exact;
use crate::recipe::SweepObjective;
use crate::report::RunFiles;

/// The figures of a trial after a turn, by its best evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Figures {
    /// Steps done.
    pub(super) steps: u64,
    /// The step of the best evaluation.
    pub(super) best_step: u64,
    /// The validation loss before the first step.
    #[serde(with = "exact")]
    pub(super) loss_before: f64,
    /// The validation loss of the best evaluation.
    #[serde(with = "exact")]
    pub(super) loss: f64,
    /// The share of exact answers in it, where they choose the best adapter.
    #[serde(with = "exact::option")]
    pub(super) exact_match: Option<f64>,
    /// The share of right labels in it, of a classifier.
    #[serde(with = "exact::option")]
    pub(super) accuracy: Option<f64>,
    /// The time of its training steps.
    #[serde(with = "exact")]
    pub(super) seconds: f64,
}

impl Figures {
    /// The figures of a run; `None` before its first evaluation.
    pub(super) fn of(run: &RunFiles) -> Option<Self> {
        let best = run.evaluations().rfind(|line| line["is_best"] == true)?;
        let first = run.evaluations().next()?;
        let seconds = run.timings_by_step().into_values().filter_map(|line| line["seconds"].as_f64());
        Some(Self {
            steps: run.last_step(),
            best_step: best["step"].as_u64()?,
            loss_before: first["valid_loss"].as_f64()?,
            loss: best["valid_loss"].as_f64()?,
            exact_match: best["valid_exact_match"].as_f64(),
            accuracy: best["valid_accuracy"].as_f64(),
            seconds: seconds.sum(),
        })
    }

    /// The value of the objective.
    pub(super) fn score(&self, objective: SweepObjective) -> Option<f64> {
        match objective {
            SweepObjective::Loss => Some(self.loss),
            SweepObjective::ExactMatch => self.exact_match,
            SweepObjective::Accuracy => self.accuracy,
            SweepObjective::LossGainPerHour => {
                (self.seconds > 0.0).then(|| (self.loss_before - self.loss) * 3600.0 / self.seconds)
            }
        }
    }
}

/// The order in which better figures come first: by the objective, and among equals by the loss. Missing ones come last.
fn better_first(objective: SweepObjective, left: Option<&Figures>, right: Option<&Figures>) -> Ordering {
    let signed = |score: f64| if objective.higher_is_better() { -score } else { score };
    let score =
        |figures: Option<&Figures>| figures.and_then(|figures| figures.score(objective)).map_or(f64::INFINITY, signed);
    let loss = |figures: Option<&Figures>| figures.map_or(f64::INFINITY, |figures| figures.loss);
    score(left).total_cmp(&score(right)).then(loss(left).total_cmp(&loss(right)))
}

/// Whether a run ended because its last step gave no finite loss or gradient.
pub(super) fn has_diverged(run: &RunFiles) -> bool {
    run.steps().next_back().is_some_and(|line| line["skipped"] == Value::Bool(true))
}

impl Journal {
    /// The trials, the best first: those at their end, then those that came furthest; within these by the objective, failed ones last.
    pub(super) fn ranked(&self, objective: SweepObjective) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.trials.len()).collect();
        let place = |trial: &Trial| match (trial.state, trial.figures.len()) {
            (TrialState::Finished, _) => (0, Reverse(0)),
            (TrialState::Open | TrialState::Stopped, turns) => (1, Reverse(turns)),
            (TrialState::Failed, turns) => (2, Reverse(turns)),
        };
        order.sort_by(|&left, &right| {
            let (left, right) = (&self.trials[left], &self.trials[right]);
            let by_figures = || better_first(objective, left.figures.last(), right.figures.last());
            place(left).cmp(&place(right)).then_with(by_figures)
        });
        order
    }

    /// Stops all active trials but the best at the next rung, one of `reduction`, rounded up. Of equals, the earlier trials go on.
    pub(super) fn decide(&mut self, objective: SweepObjective, reduction: usize) {
        let rung = self.rungs_done;
        let mut active = self.active();
        let failed =
            self.trials.iter().filter(|trial| trial.state == TrialState::Failed && trial.figures.len() == rung);
        let kept = (active.len() + failed.count()).div_ceil(reduction);
        let at_rung = |index: usize| self.trials[index].figures.get(rung);
        active.sort_by(|&left, &right| better_first(objective, at_rung(left), at_rung(right)));
        for &index in active.iter().skip(kept) {
            // One that came to its end before this rung has nothing left to stop.
            if self.trials[index].state == TrialState::Open {
                self.trials[index].state = TrialState::Stopped;
            }
        }
        self.rungs_done += 1;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    fn figures(loss: f64) -> Figures {
        let (exact_match, accuracy) = (Some(1.0 - loss / 10.0), None);
        Figures { steps: 5, best_step: 5, loss_before: 4.0, loss, exact_match, accuracy, seconds: 10.0 * loss }
    }

    fn journal(losses: &[f64]) -> Journal {
        let trial = |(index, &loss): (usize, &f64)| Trial {
            name: format!("trial-{index}"),
            values: Map::new(),
            state: TrialState::Open,
            figures: vec![figures(loss)],
            error: None,
        };
        let trials: Vec<Trial> = losses.iter().enumerate().map(trial).collect();
        serde_json::from_value(serde_json::json!({ "settings": {}, "rungs_done": 0, "trials": trials }))
            .expect("it is one")
    }

    #[test]
    fn the_better_half_goes_on_and_of_equals_the_earlier() {
        let mut journal = journal(&[3.0, 1.0, 2.0, 2.0, 5.0]);
        journal.decide(SweepObjective::Loss, 2);
        assert_eq!((journal.active(), journal.rungs_done), (vec![1, 2, 3], 1));
        for (index, loss) in [(1, 1.5), (2, 0.5), (3, 0.7)] {
            journal.trials[index].figures.push(figures(loss));
        }
        journal.decide(SweepObjective::Loss, 2);
        assert_eq!(journal.active(), [2, 3]);
        journal.trials[3].state = TrialState::Finished;
        journal.trials[2].state = TrialState::Failed;
        // At its end, then by how far they came, then by loss.
        assert_eq!(journal.ranked(SweepObjective::Loss), [3, 1, 0, 4, 2]);
    }

    #[test]
    fn a_trial_that_failed_at_a_rung_takes_the_place_of_a_loser() {
        let mut journal = journal(&[1.0, 2.0, 3.0, 4.0]);
        (journal.trials[0].state, journal.trials[0].figures) = (TrialState::Failed, Vec::new());
        journal.decide(SweepObjective::Loss, 2);
        assert_eq!(journal.active(), [1, 2], "two of four");
    }

    #[test]
    fn objectives_have_their_own_order() {
        let journal = journal(&[3.0, 1.0, 2.0]);
        for objective in [SweepObjective::Loss, SweepObjective::ExactMatch] {
            assert_eq!(journal.ranked(objective), [1, 2, 0], "{objective}");
        }
        assert_eq!(figures(2.0).score(SweepObjective::LossGainPerHour), Some(360.0));
        assert_eq!(figures(2.0).score(SweepObjective::Accuracy), None);
        // A trial without the measure comes last.
        let mut other = journal;
        other.trials[1].figures[0].exact_match = None;
        assert_eq!(other.ranked(SweepObjective::ExactMatch), [2, 0, 1]);
    }
}
