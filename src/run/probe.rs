//! The time of a run, estimated from a few of its steps.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::time::Instant;

use burn::module::Module;
use serde::Serialize;

use super::prepare::Prepared;
use super::watch::{Stage, Watch};
use crate::data::Encoded;
use crate::error::{Result, counted};
use crate::model::Batch;
use crate::train::Ranks;
use crate::train::evaluate::evaluate_among;
use crate::train::reference::References;
use crate::train::step::Step;

/// Steps that are timed, after one that is not: the first pays for memory and for threads.
const STEPS: usize = 3;
/// Timing ends after so many seconds.
const MAX_SECONDS: f64 = 20.0;
/// Validation tokens that are timed.
const EVALUATED_TOKENS: usize = 2048;

/// The time that a run will take, by its first steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TimeEstimate {
    /// Seconds of all steps.
    pub training_seconds: f64,
    /// Seconds of all evaluations.
    pub evaluation_seconds: f64,
    /// Tokens through the model in training, by second.
    pub tokens_per_second: f64,
    /// Steps that were timed.
    pub timed_steps: usize,
    /// The exchange between ranks; `None` for one process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub communication: Option<Communication>,
}

/// The exchange between ranks in a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Communication {
    /// Ranks.
    pub ranks: usize,
    /// Bytes that a rank sends to others in a step.
    pub bytes: u64,
    /// The time that adding up takes once all ranks have come to it, measured.
    pub seconds: f64,
    /// The same over the time of a step.
    pub share: f64,
    /// Sequences of a step, those of all ranks together.
    pub step_seqs: usize,
    /// Steps of an epoch.
    pub steps_per_epoch: usize,
}

impl fmt::Display for Communication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ranks, bytes, seconds, share, step_seqs, steps_per_epoch } = *self;
        let (megabytes, milliseconds, percent) = (bytes as f64 / 1e6, 1e3 * seconds, 100.0 * share);
        write!(
            f,
            "{ranks} ranks: {milliseconds:.1} ms of a step are communication ({percent:.1}%, {megabytes:.1} MB sent by each); {} in \
             an epoch, of {}",
            counted(steps_per_epoch, "step"),
            counted(step_seqs, "sequence")
        )
    }
}

/// Ranks whose sums are timed, apart from the time that a rank waits for the others.
#[derive(Debug)]
struct Timed<'a> {
    ranks: &'a dyn Ranks,
    seconds: Cell<f64>,
}

impl Ranks for Timed<'_> {
    fn rank(&self) -> usize {
        self.ranks.rank()
    }

    fn count(&self) -> usize {
        self.ranks.count()
    }

    fn name(&self, rank: usize) -> String {
        self.ranks.name(rank)
    }

    fn sum(&self, values: &mut [i64]) {
        // All have come to it once they have this sum.
        self.ranks.sum(&mut [0]);
        let began = Instant::now();
        self.ranks.sum(values);
        self.seconds.set(self.seconds.get() + began.elapsed().as_secs_f64());
    }

    fn sent_bytes(&self) -> u64 {
        self.ranks.sent_bytes()
    }

    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.ranks.gather(bytes)
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        self.ranks.broadcast(bytes)
    }
}

/// Loads the weights, does a few steps of the run and a part of an evaluation, and keeps nothing of it. Every rank does so together.
///
/// # Errors
/// Those of loading; an adapter that does not fit.
pub(super) fn probe(prepared: &Prepared, ranks: &dyn Ranks, watch: &mut dyn Watch) -> Result<TimeEstimate> {
    let plan = &prepared.plan;
    let decoder = prepared.load(watch)?;
    watch.stage(Stage::Probe);
    let device = decoder.device().clone().autodiff();
    let adapter = prepared.start.attach(decoder.config(), &device)?;
    let mut trainer = prepared.layout.trainer(adapter, &plan.train);
    let sequences = &prepared.train.sequences;
    let mut references = References::of(&decoder, &prepared.start, sequences, &plan.train)?;
    let steps = prepared.batching.steps(sequences, 0);
    let (mut tokens, mut seconds, mut timed) = (0usize, 0.0, 0usize);
    let (exchange, mut bytes) = (Timed { ranks, seconds: Cell::new(0.0) }, 0);
    // A run of one step times that one.
    for (index, micro_batches) in steps.iter().cycle().take(STEPS + 1).enumerate() {
        let parts = prepared.layout.part.split(micro_batches, sequences);
        let examples = |part: &Vec<usize>| part.iter().map(|&index| Cow::Borrowed(&sequences[index])).collect();
        let examples: Vec<Vec<Cow<'_, Encoded>>> = parts.iter().map(examples).collect();
        let join = |examples: &Vec<Cow<'_, Encoded>>| Batch::join(examples.iter().flat_map(|one| one.sequences()));
        let batches: Vec<Batch> = examples.iter().map(join).collect();
        let began = Instant::now();
        let known = references.known(ranks, &trainer.adapter, &parts, &examples, false)?.unwrap_or_default();
        // The steps change the adapter, which is thrown away: as long as a factor is zero, the gradient of the other is, and sums are shorter.
        let rate = plan.train.learning_rate;
        let step = Step { decoder: &decoder, micro_batches: &batches, known: &known, rate, seed: index as u64 };
        let sent_before = ranks.sent_bytes();
        let report = trainer.step_among(&exchange, &step, false);
        if index == 0 {
            exchange.seconds.set(0.0);
        } else {
            (tokens, seconds, timed) = (tokens + report.tokens, seconds + began.elapsed().as_secs_f64(), timed + 1);
            bytes += ranks.sent_bytes() - sent_before;
        }
        // All ranks end after the same step.
        let mut is_enough = [i64::from(ranks.is_first() && seconds > MAX_SECONDS)];
        ranks.sum(&mut is_enough);
        if is_enough[0] > 0 {
            break;
        }
    }
    let tokens_per_second = tokens as f64 / seconds;
    let all_tokens = prepared.train.tokens as f64 * prepared.total_steps as f64 / steps.len() as f64;
    let measured = prepared.held_out.valid_at_steps(&prepared.valid);
    let evaluation_seconds = match measured.iter().map(|sequence| sequence.ids.len()).sum::<usize>() {
        0 => 0.0,
        valid_tokens => {
            let mut timed_tokens = 0;
            let few = measured.iter().take_while(|sequence| {
                let is_wanted = timed_tokens < EVALUATED_TOKENS;
                timed_tokens += sequence.ids.len();
                is_wanted
            });
            let few: Vec<_> = few.cloned().collect();
            let few_tokens: usize = few.iter().map(|sequence| sequence.ids.len()).sum();
            let began = Instant::now();
            evaluate_among(ranks, &decoder, Some(&trainer.adapter.valid()), &few, &mut |_| Ok(()))?;
            // Before the first step, every `eval_steps`, and after the last.
            let evaluations = 1 + prepared.total_steps.div_ceil(plan.train.eval_steps);
            began.elapsed().as_secs_f64() * valid_tokens as f64 / few_tokens.max(1) as f64 * evaluations as f64
        }
    };
    let communication = (ranks.count() > 1).then(|| Communication {
        ranks: ranks.count(),
        bytes: bytes / timed as u64,
        seconds: exchange.seconds.get() / timed as f64,
        share: exchange.seconds.get() / seconds,
        step_seqs: plan.train.micro_batch_seqs * plan.train.accumulate_steps,
        steps_per_epoch: steps.len(),
    });
    Ok(TimeEstimate {
        training_seconds: all_tokens / tokens_per_second,
        evaluation_seconds,
        tokens_per_second,
        timed_steps: timed,
        communication,
    })
}

impl fmt::Display for TimeEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { training_seconds, evaluation_seconds, tokens_per_second, timed_steps, communication } = *self;
        let total = words(training_seconds + evaluation_seconds);
        write!(
            f,
            "about {total}: training {}, evaluations {} ({tokens_per_second:.0} tokens/s in {timed_steps} steps of this run)",
            words(training_seconds),
            words(evaluation_seconds)
        )?;
        communication.map_or(Ok(()), |communication| write!(f, "; {communication}"))
    }
}

/// A time in the unit that suits it.
pub(super) fn words(seconds: f64) -> String {
    match seconds {
        ..90.0 => format!("{seconds:.0} s"),
        ..5400.0 => format!("{:.0} min", seconds / 60.0),
        ..172_800.0 => format!("{:.1} h", seconds / 3600.0),
        _ => format!("{:.1} days", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_unit_that_suits_them() {
        assert_eq!([0.4, 89.0, 600.0, 7200.0, 432_000.0].map(words), ["0 s", "89 s", "10 min", "2.0 h", "5.0 days"]);
    }
}
