//! The ranks of a run before they train together: whether all were started with the same.

use serde_json::{Value, json};

use super::identity::{Difference, differences};
use super::prepare::Prepared;
use super::watch::Watch;
use crate::error::{Error, Place, Result};
use crate::train::Ranks;

/// Compares what the ranks would train, `identity` and the data that they measure at the end, and their number with the
/// micro-batches of a step.
///
/// # Errors
/// Input: more ranks than micro-batches; a rank with another base, data, recipe, program or instruction set than rank 0.
pub(super) fn check(ranks: &dyn Ranks, prepared: &Prepared, identity: &Value, watch: &mut dyn Watch) -> Result<()> {
    let count = ranks.count();
    if count == 1 {
        return Ok(());
    }
    same(ranks, prepared, identity)?;
    let micro_batches = prepared.plan.train.accumulate_steps;
    if micro_batches < count {
        let message =
            format!("is {micro_batches}, and {count} ranks train together: a step has no micro-batch for each");
        return Err(Error::input(Place::setting("train.accumulate_steps"), message).hint(format!(
            "`--set train.accumulate_steps={count}`, with a smaller `train.micro_batch_seqs` where the step is to stay as \
             large as it is"
        )));
    }
    let names: Vec<String> = (0..count).map(|rank| ranks.name(rank)).collect();
    watch.notice(&format!("{count} ranks train together: {}", names.join(", ")));
    let (each, left) = (micro_batches / count, micro_batches % count);
    if left > 0 {
        watch.notice(&format!(
            "warning: the {micro_batches} micro-batches of a step are {each} or {} for a rank: those with fewer wait",
            each + 1
        ));
    }
    Ok(())
}

fn same(ranks: &dyn Ranks, prepared: &Prepared, identity: &Value) -> Result<()> {
    let held_out = &prepared.held_out;
    let mut own = identity.clone();
    for (name, set) in [("test", &held_out.test), ("guard", &held_out.guard)] {
        own["data"][name] = json!(set.as_ref().map(|set| &set.sha256));
    }
    let all = ranks.gather(own.to_string().as_bytes());
    let all: Vec<Value> = all.iter().map(|bytes| serde_json::from_slice(bytes).unwrap_or_default()).collect();
    let errors = all.iter().enumerate().skip(1).flat_map(|(rank, identity)| {
        differences(&all[0], identity).into_iter().map(move |difference| {
            let Difference { change, name, was, is } = difference;
            let message = format!("the {change} is not that of {}: {name} is {is}, and {was} there", ranks.name(0));
            Error::input(ranks.name(rank), message)
        })
    });
    match Error::join(errors) {
        None => Ok(()),
        Some(error) => {
            Err(error.hint("every machine needs the same burnish, recipe, base and data, and one kind of processor"))
        }
    }
}
