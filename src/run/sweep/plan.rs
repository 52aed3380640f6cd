//! The plans of trials: whether each would start, what it takes, and where its rungs lie.

use std::path::Path;

use super::SweepOptions;
use crate::error::{Error, Place, Result};
use crate::recipe::{Plan, Recipe, SweepObjective};
use crate::run::SharedBase;
use crate::run::prepare::prepare;
use crate::run::watch::Watch;
use crate::settings::Node;
use crate::train::EvalOn;

/// The plan of a trial.
pub(super) struct Planned {
    /// Its recipe.
    pub(super) recipe: Recipe,
    /// Steps of its run.
    pub(super) total_steps: u64,
    eval_steps: u64,
    /// Bytes of the base and of the program, which trials can share.
    shared_bytes: u64,
    /// Bytes of all else.
    own_bytes: u64,
    /// Room on the disk.
    pub(super) disk_bytes: u64,
    /// The identity of the weights.
    pub(super) base: String,
}

impl Planned {
    /// Prepares a trial as its run will be, and keeps the numbers.
    ///
    /// # Errors
    /// Those of [`prepare`]; Input: the run would not have the measure that ranks it.
    pub(super) fn of(
        recipe: Recipe,
        objective: SweepObjective,
        options: &SweepOptions,
        watch: &mut dyn Watch,
    ) -> Result<Self> {
        check_objective(&recipe.plan()?, objective).map_err(|error| recipe.locate(error))?;
        let prepared = prepare(&recipe, &options.device, options.max_memory, watch)?;
        let shared_bytes = prepared.memory.weights + prepared.memory.program;
        Ok(Self {
            total_steps: prepared.total_steps,
            eval_steps: prepared.plan.train.eval_steps,
            shared_bytes,
            own_bytes: prepared.memory.total().saturating_sub(shared_bytes),
            disk_bytes: prepared.disk_bytes(),
            base: SharedBase::identity(&prepared),
            recipe,
        })
    }

    /// The step of a rung: the first evaluation at or after `share` of the steps. `None` where that is the end.
    pub(super) fn rung_step(&self, share: f64) -> Option<u64> {
        rung_step(share, self.total_steps, self.eval_steps)
    }
}

/// The memory that any `count` of the trials take at once. Trials of one base share it.
pub(super) fn bytes_at_once(planned: &[Planned], count: usize) -> u64 {
    let is_one_base = planned.windows(2).all(|pair| pair[0].base == pair[1].base);
    let shared = if is_one_base { planned.iter().map(|one| one.shared_bytes).max().unwrap_or(0) } else { 0 };
    let own = |one: &Planned| one.own_bytes + if is_one_base { 0 } else { one.shared_bytes };
    let mut own: Vec<u64> = planned.iter().map(own).collect();
    own.sort_unstable_by(|a, b| b.cmp(a));
    shared + own.iter().take(count).sum::<u64>()
}

/// The folder of a trial as a value of a recipe.
pub(super) fn dir_node(dir: &Path) -> Result<Node> {
    let text = dir.to_str().ok_or_else(|| Error::input(dir, "is no text, and the recipes of trials are"))?;
    Ok(Node::text(text))
}

/// Whether the runs of a plan have the measure that ranks them.
fn check_objective(plan: &Plan, objective: SweepObjective) -> Result<()> {
    if plan.data.valid.is_none() && plan.data.valid_fraction.is_none() {
        let message = "is missing: trials are ranked by validation examples, and there are none";
        return Err(
            Error::input(Place::setting("data.valid"), message).hint("give `data.valid` or `data.valid_fraction`")
        );
    }
    let needed = match objective {
        SweepObjective::Loss | SweepObjective::LossGainPerHour => return Ok(()),
        SweepObjective::ExactMatch => EvalOn::ExactMatch,
        SweepObjective::Accuracy => EvalOn::Accuracy,
    };
    match plan.train.eval_on {
        eval_on if eval_on == needed => Ok(()),
        eval_on => {
            let message = format!("is \"{eval_on}\"; the sweep ranks by `{objective}`, which needs \"{needed}\"");
            Err(Error::input(Place::setting("train.eval_on"), message))
        }
    }
}

fn rung_step(share: f64, total_steps: u64, eval_steps: u64) -> Option<u64> {
    let step = ((share * total_steps as f64).ceil() as u64).max(1).next_multiple_of(eval_steps);
    (step < total_steps).then_some(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_lie_at_evaluations_before_the_end() {
        assert_eq!(rung_step(0.125, 96, 12), Some(12));
        assert_eq!(rung_step(0.13, 96, 12), Some(24));
        assert_eq!(rung_step(0.001, 96, 1), Some(1));
        assert_eq!(rung_step(0.5, 10, 50), None);
        assert_eq!(rung_step(0.9, 100, 50), None);
    }
}
