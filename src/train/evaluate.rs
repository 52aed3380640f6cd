//! The loss on held-out sequences: sums only, every sequence, the last partial batch included.

use super::parallel::Ranks;
use crate::data::Encoded;
use crate::error::Result;
use crate::eval::loss::ExampleLoss;
use crate::interrupt;
use crate::model::{Batch, Decoder};
use crate::nn::Adapter;
use crate::ops::cross_entropy::Prediction;

/// Tokens that go through the model at once. A longer sequence goes through it piece by piece, its past in a cache.
pub const TOKENS_AT_ONCE: usize = 2048;

/// The loss of each sequence, in order; a pair of preferences has two. `adapter` is on the decoder's device, without autodiff. `progress` gets the number of
/// examples done each time that some went through the model; its error ends the evaluation.
///
/// # Errors
/// Those of `progress`.
pub fn evaluate(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    sequences: &[Encoded],
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<ExampleLoss>> {
    evaluate_at_once(decoder, adapter, sequences, TOKENS_AT_ONCE, progress)
}

/// [`evaluate`] with at most `tokens_at_once` tokens in the model at once.
///
/// # Errors
/// Those of [`evaluate`].
pub fn evaluate_at_once(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    sequences: &[Encoded],
    tokens_at_once: usize,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<ExampleLoss>> {
    let pieces = Pieces::of(sequences, tokens_at_once);
    let mut losses = Vec::with_capacity(pieces.parts.len());
    for index in 0..pieces.count() {
        losses.extend(pieces.evaluate(index, decoder, adapter));
        progress(pieces.examples_done(index))?;
    }
    Ok(losses)
}

/// [`evaluate`] by several ranks, each of which evaluates its share. Every rank gets all losses, those of one process to the bit.
///
/// # Errors
/// Those of `progress`.
pub fn evaluate_among(
    ranks: &dyn Ranks,
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    sequences: &[Encoded],
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<ExampleLoss>> {
    let pieces = Pieces::of(sequences, TOKENS_AT_ONCE);
    let own = pieces.own(ranks, decoder, adapter, progress)?;
    Ok(exchanged(ranks, pieces.count(), Some(own)).unwrap_or_default().concat())
}

/// [`evaluate_among`] that ends, with `None` on every rank, once one of them was asked to stop.
///
/// # Errors
/// Those of `progress`.
pub fn evaluate_cancellable(
    ranks: &dyn Ranks,
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    sequences: &[Encoded],
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Option<Vec<ExampleLoss>>> {
    let pieces = Pieces::of(sequences, TOKENS_AT_ONCE);
    let own = interrupt::cancellable(|| pieces.own(ranks, decoder, adapter, progress)).transpose()?;
    Ok(exchanged(ranks, pieces.count(), own).map(|losses| losses.concat()))
}

/// The losses of `count` pieces of work, of which this rank has done its `own` in their order; `None`, on every rank, where one of
/// them has not.
pub(super) fn exchanged(
    ranks: &dyn Ranks,
    count: usize,
    own: Option<Vec<Vec<ExampleLoss>>>,
) -> Option<Vec<Vec<ExampleLoss>>> {
    if ranks.count() == 1 {
        return own;
    }
    // Those of a piece after their number. A rank that has not done its own sends one byte.
    let encoded = |pieces: &Vec<Vec<ExampleLoss>>| {
        let numbers = pieces.iter().flat_map(|losses| {
            let of_each =
                losses.iter().flat_map(|loss| [loss.loss_sum.to_bits(), loss.tokens as u64, loss.correct_tokens as u64]);
            std::iter::once(losses.len() as u64).chain(of_each)
        });
        numbers.flat_map(u64::to_le_bytes).collect::<Vec<u8>>()
    };
    let gathered = ranks.gather(&own.as_ref().map_or(vec![0], encoded));
    if gathered.iter().any(|bytes| bytes.len() == 1) {
        return None;
    }
    let mut by_rank: Vec<_> = gathered.iter().map(|bytes| bytes.as_chunks().0.iter().copied().map(u64::from_le_bytes)).collect();
    let piece = |index: usize| {
        let numbers = &mut by_rank[index % ranks.count()];
        let mut next = || numbers.next().unwrap_or_default();
        let losses = (0..next()).map(|_| ExampleLoss {
            loss_sum: f64::from_bits(next()),
            tokens: next() as usize,
            correct_tokens: next() as usize,
        });
        losses.collect()
    };
    Some((0..count).map(piece).collect())
}

/// Sequences by the pieces in which they go through the model.
struct Pieces<'a> {
    /// Ids and trained tokens of every sequence.
    parts: Vec<(&'a [u32], &'a [bool])>,
    /// The end of each piece among them.
    ends: Vec<usize>,
    tokens_at_once: usize,
    examples: usize,
}

impl<'a> Pieces<'a> {
    fn of(sequences: &'a [Encoded], tokens_at_once: usize) -> Self {
        let parts: Vec<(&[u32], &[bool])> = sequences.iter().flat_map(Encoded::sequences).collect();
        let (mut ends, mut end) = (Vec::new(), 0);
        while end < parts.len() {
            end += fitting(&parts[end..], tokens_at_once).max(1);
            ends.push(end);
        }
        Self { parts, ends, tokens_at_once, examples: sequences.len() }
    }

    fn count(&self) -> usize {
        self.ends.len()
    }

    /// The examples up to the end of a piece. All examples of a set have as many sequences.
    fn examples_done(&self, piece: usize) -> usize {
        self.ends[piece] * self.examples / self.parts.len()
    }

    /// The losses of the pieces of this rank.
    fn own(
        &self,
        ranks: &dyn Ranks,
        decoder: &Decoder,
        adapter: Option<&Adapter>,
        progress: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Vec<ExampleLoss>>> {
        let mine = (0..self.count()).filter(|piece| ranks.is_mine(*piece));
        let evaluated = mine.map(|piece| {
            let losses = self.evaluate(piece, decoder, adapter);
            progress(self.examples_done(piece)).map(|()| losses)
        });
        evaluated.collect()
    }

    /// The losses of the sequences of a piece.
    fn evaluate(&self, piece: usize, decoder: &Decoder, adapter: Option<&Adapter>) -> Vec<ExampleLoss> {
        let first = if piece == 0 { 0 } else { self.ends[piece - 1] };
        let these = &self.parts[first..self.ends[piece]];
        let predictions = match these {
            [one] if one.0.len() > self.tokens_at_once => in_pieces(decoder, adapter, *one, self.tokens_at_once),
            _ => decoder.predictions(&Batch::join(these.iter().copied()), adapter),
        };
        let mut left = predictions.as_slice();
        let losses = these.iter().map(|(_, trained)| {
            let (of_sequence, of_others) = left.split_at(trained.iter().skip(1).filter(|trained| **trained).count());
            left = of_others;
            ExampleLoss {
                loss_sum: of_sequence.iter().map(|token| f64::from(token.loss)).sum(),
                tokens: of_sequence.len(),
                correct_tokens: of_sequence.iter().filter(|token| token.is_likeliest).count(),
            }
        });
        losses.collect()
    }
}

/// The number of sequences, from the first on, that go through the model together; 0 if the first alone is too long.
fn fitting(sequences: &[(&[u32], &[bool])], tokens_at_once: usize) -> usize {
    let mut tokens = 0;
    let fitting = sequences.iter().take_while(|(ids, _)| {
        tokens += ids.len();
        tokens <= tokens_at_once
    });
    fitting.count()
}

/// The prediction of each trained token of one sequence, `tokens_at_once` tokens at a time.
fn in_pieces(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    (all_ids, trained): (&[u32], &[bool]),
    tokens_at_once: usize,
) -> Vec<Prediction> {
    let mut past = decoder.begin();
    let mut predictions = Vec::new();
    for (index, ids) in all_ids.chunks(tokens_at_once).enumerate() {
        let first = index * tokens_at_once;
        // The state at a position predicts the next one, which may lie in the next piece.
        let targets: Vec<(u32, u32)> = (0..ids.len())
            .filter(|row| trained.get(first + row + 1).is_some_and(|trained| *trained))
            .map(|row| (row as u32, all_ids[first + row + 1]))
            .collect();
        predictions.extend(decoder.next_predictions(ids, &targets, &mut past, adapter));
    }
    predictions
}
