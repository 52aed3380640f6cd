//! Making a run fit into a limit of memory: the first layout of its micro-batches whose plan does.
//!
//! A layout changes no step: a micro-batch goes through the model in parts, in the same order, with the same noise, and the
//! gradients of its parts are summed. Recomputed layers and layers that are read from the disk change no bit.

use super::plan::{MemoryPlan, Workload};
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
        let parts_of_micro_batch = match layout.part {
            Part::MicroBatch => 1,
            Part::Sequences(count) => self.train.micro_batch_seqs.div_ceil(count.max(1)),
            Part::Tokens(tokens) => {
                self.train.micro_batch_seqs.saturating_mul(self.data.max_seq_tokens).div_ceil(tokens.max(1))
            }
        };
        Workload {
            tokens,
            trained_tokens: trained_tokens.min(tokens),
            evaluated_tokens: self.evaluated_tokens,
            cached_tokens: self.cached_tokens,
            recomputed_layers: layout.recomputed_layers,
            parts: parts_of_micro_batch * self.train.accumulate_steps,
            shared_pass: layout.parts_a_pass,
            optimiser: self.train.optimiser,
            has_sum: self.train.accumulate_steps > 1 || layout.part != Part::MicroBatch,
            data_bytes: self.data_bytes,
        }
    }

    /// The layouts to try for a model of so many layers: as the recipe says first, then what takes less memory and more time. Smaller
    /// parts come before computing again, which costs up to a third more arithmetic, layer by layer; layers that are read from the
    /// disk (`can_stream`) come last, with as many parts for each reading as there is room for.
    pub fn layouts(&self, layers: usize, can_stream: bool) -> impl Iterator<Item = Layout> {
        let most = self.train.micro_batch_seqs;
        let mut sizes: Vec<usize> = (2..=most).map(|parts| most.div_ceil(parts)).collect();
        sizes.dedup();
        let smaller = sizes.into_iter().map(|size| match self.data.packing {
            true => Part::Tokens(size * self.data.max_seq_tokens),
            false => Part::Sequences(size),
        });
        let parts: Vec<Part> = std::iter::once(Part::MicroBatch).chain(smaller).collect();
        let kept = match self.train.recompute {
            Recompute::None => parts.clone(),
            Recompute::Block => Vec::new(),
        };
        let again = match self.train.recompute {
            Recompute::None => 1..=layers,
            Recompute::Block => layers..=layers,
        };
        let resident = |part, recomputed_layers| Layout { part, recomputed_layers, parts_a_pass: None };
        let kept = kept.into_iter().map(move |part| resident(part, 0));
        let recomputed =
            parts.clone().into_iter().flat_map(move |part| again.clone().map(move |count| resident(part, count)));
        let streamed = parts.into_iter().filter(move |_| can_stream).flat_map(move |part| {
            let all = self.workload(resident(part, layers)).parts.max(1);
            let halves = std::iter::successors(Some(all), |count| (*count > 1).then(|| count.div_ceil(2)));
            halves.map(move |count| Layout { part, recomputed_layers: layers, parts_a_pass: Some(count) })
        });
        kept.chain(recomputed).chain(streamed)
    }
}

/// The first layout whose plan fits into `limit`, with its plan; without a limit, the recipe's own. The model has so many layers, and they
/// can be read from the disk or not.
///
/// # Errors
/// Input: none fits.
pub fn fit_memory(
    demand: &Demand<'_>,
    limit: Option<Size>,
    (layers, can_stream): (usize, bool),
    plan_of: impl Fn(&Workload) -> MemoryPlan,
) -> Result<(Layout, MemoryPlan)> {
    let mut least: Option<MemoryPlan> = None;
    for layout in demand.layouts(layers, can_stream) {
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
        _ => error.hint(
            "`base.quant = \"nf4\"` makes weights smaller, a lower `data.max_seq_tokens` activations; the layers of a base that \
             `burnish quantize` wrote need not be in memory",
        ),
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
        fn layouts(train: &TrainSettings, data: &DataSettings, can_stream: bool) -> Vec<(Part, usize, Option<usize>)> {
            let layouts = demand(train, data);
            let layouts = layouts.layouts(2, can_stream);
            layouts.map(|layout| (layout.part, layout.recomputed_layers, layout.parts_a_pass)).collect()
        }
        let parts = [Part::MicroBatch, Part::Sequences(2), Part::Sequences(1)];
        let again = parts.map(|part| [1, 2].map(|count| (part, count, None))).concat();
        let mut expected = [parts.map(|part| (part, 0, None)).to_vec(), again].concat();
        assert_eq!(layouts(&train, &counted, false), expected);
        let halves = [(0, 1), (1, 2), (1, 1), (2, 4), (2, 2), (2, 1)];
        expected.extend(halves.map(|(part, together)| (parts[part], 2, Some(together))));
        assert_eq!(layouts(&train, &counted, true), expected, "the disk comes last");
        let block = TrainSettings { recompute: Recompute::Block, ..train.clone() };
        assert_eq!(layouts(&block, &counted, false), parts.map(|part| (part, 2, None)), "the recipe wants it");
        let packed = data(true);
        let parts: Vec<_> = layouts(&train, &packed, false).into_iter().map(|(part, ..)| part).take(3).collect();
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
            let work = demand.workload(Layout { part: Part::MicroBatch, recomputed_layers: 0, parts_a_pass: None });
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
        let tokens = |part| demand.workload(Layout { part, recomputed_layers: 0, parts_a_pass: None }).tokens;
        assert_eq!(tokens(Part::MicroBatch), 70);
        assert_eq!(tokens(Part::Sequences(1)), 40);
        assert_eq!(tokens(Part::Tokens(60)), 60);
        assert_eq!(tokens(Part::Tokens(10)), 40, "a longer sequence is a part of its own");
        assert_eq!(tokens(Part::Tokens(1000)), 95, "there are no more tokens than that");
    }
}
