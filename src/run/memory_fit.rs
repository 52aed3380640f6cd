//! Making a run fit into a limit of memory: the first layout of its micro-batches whose plan does.
//!
//! A layout changes no step: a micro-batch goes through the model in parts, in the same order, with the same noise, and the
//! gradients of its parts are summed.

use super::memory_plan::{MemoryPlan, Workload};
use crate::bytes::Size;
use crate::data::{DataSettings, EncodedSet};
use crate::error::{Error, Place, Result};
use crate::generate::engine as generate;
use crate::model::decoder::Recompute;
use crate::train::{Layout, Part, TrainSettings, evaluate};

/// The numbers of a run that decide what a step takes.
pub struct Demand<'a> {
    /// How to train.
    pub train: &'a TrainSettings,
    /// How the data is cut.
    pub data: &'a DataSettings,
    /// Length and trained tokens of each training sequence, the longest first.
    lengths: Vec<(usize, usize)>,
    /// Tokens of all training sequences.
    tokens: usize,
    /// Tokens that go through the model at once between steps.
    evaluated_tokens: usize,
    /// Tokens whose keys and values are cached at once between steps.
    cached_tokens: usize,
    /// Bytes of the encoded examples.
    data_bytes: u64,
}

impl<'a> Demand<'a> {
    /// The demand of a run over these sequences, which answers `prompts` with up to `max_tokens` tokens each.
    pub fn of(
        train: &'a TrainSettings,
        data: &'a DataSettings,
        examples: &EncodedSet,
        valid: &EncodedSet,
        (prompts, max_tokens): (&[Vec<u32>], usize),
    ) -> Self {
        let mut lengths: Vec<(usize, usize)> =
            examples.sequences.iter().map(|sequence| (sequence.ids.len(), sequence.trained_tokens())).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let evaluated: usize = valid.sequences.iter().map(|sequence| sequence.ids.len()).sum();
        let longest = valid.sequences.iter().map(|sequence| sequence.ids.len()).max().unwrap_or(0);
        let cached_in_evaluation = if longest > evaluate::TOKENS_AT_ONCE { longest } else { 0 };
        let together = || prompts.chunks(generate::SEQUENCES_AT_ONCE);
        let tokens = |prompts: &[Vec<u32>]| prompts.iter().map(Vec::len).sum::<usize>();
        // The reference sees one training example after the other.
        let referred = match train.objective().has_reference() {
            true => lengths.first().map_or(0, |(length, _)| (*length).min(evaluate::TOKENS_AT_ONCE)),
            false => 0,
        };
        let prompted =
            together().map(tokens).max().unwrap_or(0).min(generate::PIECE_TOKENS + generate::SEQUENCES_AT_ONCE);
        let answered = together().map(|prompts| tokens(prompts) + prompts.len() * max_tokens).max().unwrap_or(0);
        Self {
            train,
            data,
            lengths,
            tokens: examples.tokens,
            evaluated_tokens: evaluated.min(evaluate::TOKENS_AT_ONCE).max(prompted).max(referred),
            cached_tokens: cached_in_evaluation.max(answered),
            data_bytes: examples.bytes() + valid.bytes(),
        }
    }

    /// The work of one part of a micro-batch, at most.
    pub fn workload(&self, layout: Layout) -> Workload {
        let longest = self.lengths.first().map_or(0, |(length, _)| *length);
        let sequences = |count: usize| self.lengths.iter().take(count).map(|(length, _)| length).sum::<usize>();
        let largest_trained = self.lengths.iter().map(|(_, trained)| *trained).max().unwrap_or(0);
        let packed = |tokens: usize| (tokens.max(longest).min(self.tokens), usize::MAX);
        let (tokens, trained_tokens) = match layout.part {
            Part::MicroBatch if self.data.packing => packed(self.train.micro_batch_seqs * self.data.max_seq_tokens),
            Part::MicroBatch => (sequences(self.train.micro_batch_seqs), largest_trained * self.train.micro_batch_seqs),
            Part::Sequences(count) => (sequences(count), largest_trained * count),
            Part::Tokens(tokens) => packed(tokens),
        };
        Workload {
            tokens,
            trained_tokens: trained_tokens.min(tokens),
            evaluated_tokens: self.evaluated_tokens,
            cached_tokens: self.cached_tokens,
            recompute: layout.recompute,
            optimiser: self.train.optimiser,
            has_sum: self.train.accumulate_steps > 1 || layout.part != Part::MicroBatch,
            data_bytes: self.data_bytes,
        }
    }

    /// The layouts to try: as the recipe says first, then what takes less memory. Smaller parts come before computing again,
    /// which costs a third more arithmetic.
    pub fn layouts(&self) -> Vec<Layout> {
        let most = self.train.micro_batch_seqs;
        let mut sizes: Vec<usize> = (2..=most).map(|parts| most.div_ceil(parts)).collect();
        sizes.dedup();
        let smaller = sizes.into_iter().map(|size| match self.data.packing {
            true => Part::Tokens(size * self.data.max_seq_tokens),
            false => Part::Sequences(size),
        });
        let parts: Vec<Part> = std::iter::once(Part::MicroBatch).chain(smaller).collect();
        let ways = match self.train.recompute {
            Recompute::None => vec![Recompute::None, Recompute::Block],
            Recompute::Block => vec![Recompute::Block],
        };
        ways.into_iter().flat_map(|recompute| parts.iter().map(move |&part| Layout { part, recompute })).collect()
    }
}

/// The first layout whose plan fits into `limit`, with its plan; without a limit, the recipe's own.
///
/// # Errors
/// Input: none fits.
pub fn fit_memory(
    demand: &Demand<'_>,
    limit: Option<Size>,
    plan_of: impl Fn(&Workload) -> MemoryPlan,
) -> Result<(Layout, MemoryPlan)> {
    let mut least: Option<MemoryPlan> = None;
    for layout in demand.layouts() {
        let plan = plan_of(&demand.workload(layout));
        if limit.is_none_or(|limit| plan.total() <= limit.0) {
            return Ok((layout, plan));
        }
        if least.is_none_or(|least| plan.total() < least.total()) {
            least = Some(plan);
        }
    }
    match (limit, least) {
        (Some(limit), Some(least)) => Err(does_not_fit(limit, &least)),
        _ => unreachable!("without a limit the first layout fits"),
    }
}

/// The error where nothing fits.
fn does_not_fit(limit: Size, least: &MemoryPlan) -> Error {
    /// Below this, a number was typed without its unit.
    const LEAST_MEANT: u64 = 1 << 20;
    let message = format!("{limit} is not enough: {} at least ({least})", Size(least.total()));
    let error = Error::input(Place::argument("--max-memory"), message);
    match limit.0 {
        bytes if bytes < LEAST_MEANT => error.hint(format!("without a unit, it is bytes: `{bytes}MiB`, `{bytes}GiB`?")),
        _ => error.hint("`base.quant = \"nf4\"` makes weights smaller, a lower `data.max_seq_tokens` activations"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Encoded, Judged};

    fn demand<'a>(train: &'a TrainSettings, data: &'a DataSettings) -> Demand<'a> {
        let sequence = |length: usize| Encoded {
            ids: vec![0; length],
            trained: vec![true; length],
            untrained_turns: 0,
            weight: 1.0,
            judged: Judged::Not,
        };
        let sequences: Vec<Encoded> = [5, 40, 20, 30].map(sequence).into();
        let tokens = sequences.iter().map(|sequence| sequence.ids.len()).sum();
        let set = EncodedSet { sequences, tokens, ..EncodedSet::default() };
        Demand::of(train, data, &set, &EncodedSet::default(), (&[], 0))
    }

    #[test]
    fn smaller_parts_come_before_computing_again() {
        let train = TrainSettings { micro_batch_seqs: 4, ..TrainSettings::default() };
        let data = |packing| DataSettings { packing, ..crate::data::settings::tests::over("t.jsonl", 50) };
        let counted = data(false);
        let found: Vec<_> = demand(&train, &counted).layouts().iter().map(|l| (l.part, l.recompute)).collect();
        let parts = [Part::MicroBatch, Part::Sequences(2), Part::Sequences(1)];
        let expected =
            [Recompute::None, Recompute::Block].map(|recompute| parts.map(|part| (part, recompute))).concat();
        assert_eq!(found, expected);
        let packed = data(true);
        let parts: Vec<_> = demand(&train, &packed).layouts().iter().map(|layout| layout.part).take(3).collect();
        assert_eq!(parts, [Part::MicroBatch, Part::Tokens(100), Part::Tokens(50)]);
    }

    #[test]
    fn long_evaluations_and_samples_are_counted() {
        let (train, data) = (TrainSettings::default(), crate::data::settings::tests::over("t.jsonl", 50));
        let (ids, trained) = (vec![0; 5000], vec![true; 5000]);
        let sequence = Encoded { ids, trained, untrained_turns: 0, weight: 1.0, judged: Judged::Not };
        let valid = EncodedSet { sequences: vec![sequence], tokens: 5000, ..EncodedSet::default() };
        let counted = |valid: &EncodedSet, prompts: &[Vec<u32>]| {
            let demand = Demand::of(&train, &data, &EncodedSet::default(), valid, (prompts, 100));
            let work = demand.workload(Layout { part: Part::MicroBatch, recompute: Recompute::None });
            (work.evaluated_tokens, work.cached_tokens)
        };
        assert_eq!(counted(&EncodedSet::default(), &[]), (0, 0));
        assert_eq!(counted(&valid, &[]), (2048, 5000), "what does not go through at once has a cache");
        let prompts = vec![vec![0; 200]; 17];
        assert_eq!(
            counted(&EncodedSet::default(), &prompts),
            (256 + 16, 16 * 300),
            "a piece of a prompt, and 16 answers at once"
        );
    }

    #[test]
    fn a_part_holds_its_longest_sequences() {
        let train = TrainSettings { micro_batch_seqs: 2, ..TrainSettings::default() };
        let data = crate::data::settings::tests::over("t.jsonl", 50);
        let demand = demand(&train, &data);
        let tokens = |part| demand.workload(Layout { part, recompute: Recompute::None }).tokens;
        assert_eq!(tokens(Part::MicroBatch), 70);
        assert_eq!(tokens(Part::Sequences(1)), 40);
        assert_eq!(tokens(Part::Tokens(60)), 60);
        assert_eq!(tokens(Part::Tokens(10)), 40, "a longer sequence is a part of its own");
        assert_eq!(tokens(Part::Tokens(1000)), 95, "there are no more tokens than that");
    }
}
