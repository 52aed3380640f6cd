//! The loss on held-out sequences: sums only, every sequence, the last partial batch included.

use super::parallel::{Alone, Ranks};
use crate::data::Encoded;
use crate::error::Result;
use crate::eval::classes::Classified;
use crate::eval::loss::ExampleLoss;
use crate::interrupt;
use crate::model::decoder::Sequence;
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
    Ok(pieces.losses(&Alone, decoder, adapter, progress)?.concat().iter().map(|numbers| loss(numbers)).collect())
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
    let own = pieces.losses(ranks, decoder, adapter, progress)?;
    let all = exchanged(ranks, pieces.count(), Some(own)).unwrap_or_default();
    Ok(all.iter().map(|numbers| loss(numbers)).collect())
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
    let own = interrupt::cancellable(|| pieces.losses(ranks, decoder, adapter, progress)).transpose()?;
    let all = exchanged(ranks, pieces.count(), own);
    Ok(all.map(|all| all.iter().map(|numbers| loss(numbers)).collect()))
}

/// The labels of texts and their log-probabilities under the classifier `adapter`, in order; the rest is [`evaluate`].
///
/// # Errors
/// Those of `progress`.
pub fn classify(
    decoder: &Decoder,
    adapter: &Adapter,
    texts: &[Encoded],
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<Classified>> {
    let found = Pieces::of(texts, TOKENS_AT_ONCE).labels(&Alone, decoder, adapter, progress)?;
    Ok(classified(texts, found.concat()))
}

/// [`classify`] by several ranks, as [`evaluate_cancellable`].
///
/// # Errors
/// Those of `progress`.
pub fn classify_cancellable(
    ranks: &dyn Ranks,
    decoder: &Decoder,
    adapter: &Adapter,
    texts: &[Encoded],
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Option<Vec<Classified>>> {
    let pieces = Pieces::of(texts, TOKENS_AT_ONCE);
    let own = interrupt::cancellable(|| pieces.labels(ranks, decoder, adapter, progress)).transpose()?;
    Ok(exchanged(ranks, pieces.count(), own).map(|found| classified(texts, found)))
}

fn classified(texts: &[Encoded], found: Vec<Vec<f64>>) -> Vec<Classified> {
    let labels = texts.iter().map(Encoded::label);
    labels.zip(found).map(|(label, log_probabilities)| Classified { label, log_probabilities }).collect()
}

/// The loss of a sequence as numbers, for [`exchanged`].
pub(super) fn numbers(loss: &ExampleLoss) -> Vec<f64> {
    vec![loss.loss_sum, loss.tokens as f64, loss.correct_tokens as f64]
}

/// The inverse of [`numbers`].
pub(super) fn loss(numbers: &[f64]) -> ExampleLoss {
    let [loss_sum, tokens, correct_tokens] = [0, 1, 2].map(|index| numbers.get(index).copied().unwrap_or_default());
    ExampleLoss { loss_sum, tokens: tokens as usize, correct_tokens: correct_tokens as usize }
}

/// The numbers of each sequence of `count` pieces of work, of which this rank has done its `own` in their order; `None`, on every
/// rank, where one of them has not.
pub(super) fn exchanged(ranks: &dyn Ranks, count: usize, own: Option<Vec<Vec<Vec<f64>>>>) -> Option<Vec<Vec<f64>>> {
    if ranks.count() == 1 {
        return own.map(|pieces| pieces.concat());
    }
    // The numbers of a sequence after their count, the sequences of a piece after theirs. A rank that has not done its own sends
    // one byte.
    let encoded = |pieces: &Vec<Vec<Vec<f64>>>| {
        let mut bytes = Vec::new();
        for sequences in pieces {
            bytes.extend((sequences.len() as u64).to_le_bytes());
            for numbers in sequences {
                bytes.extend((numbers.len() as u64).to_le_bytes());
                bytes.extend(numbers.iter().flat_map(|number| number.to_bits().to_le_bytes()));
            }
        }
        bytes
    };
    let gathered = ranks.gather(&own.as_ref().map_or(vec![0], encoded));
    if gathered.iter().any(|bytes| bytes.len() == 1) {
        return None;
    }
    let mut by_rank: Vec<_> =
        gathered.iter().map(|bytes| bytes.as_chunks().0.iter().copied().map(u64::from_le_bytes)).collect();
    let mut all = Vec::new();
    for piece in 0..count {
        let words = &mut by_rank[piece % ranks.count()];
        for _ in 0..words.next().unwrap_or_default() {
            let length = words.next().unwrap_or_default() as usize;
            all.push(words.by_ref().take(length).map(f64::from_bits).collect());
        }
    }
    Some(all)
}

/// The values of a decoder at the targets `(row of the piece, token id)` of a piece of a sequence.
type OfPiece<'a, T> = &'a dyn Fn(&[u32], &[(u32, u32)], &mut Sequence) -> Vec<T>;

/// The values of a decoder at the targets of sequences.
struct OfTargets<'a, T> {
    /// Those of sequences that go through it together.
    together: &'a dyn Fn(&Batch) -> Vec<T>,
    /// Those of a piece of a sequence.
    of_piece: OfPiece<'a, T>,
}

/// Sequences by the pieces in which they go through the model, of which each rank does its share.
struct Pieces<'a> {
    /// Ids and trained tokens of every sequence.
    parts: Vec<(&'a [u32], &'a [bool])>,
    /// The end of each piece among them.
    ends: Vec<usize>,
    tokens_at_once: usize,
    examples: usize,
}

impl<'a> Pieces<'a> {
    fn of(examples: &'a [Encoded], tokens_at_once: usize) -> Self {
        let parts: Vec<(&[u32], &[bool])> = examples.iter().flat_map(Encoded::sequences).collect();
        let (mut ends, mut end) = (Vec::new(), 0);
        while end < parts.len() {
            end += fitting(&parts[end..], tokens_at_once).max(1);
            ends.push(end);
        }
        Self { parts, ends, tokens_at_once, examples: examples.len() }
    }

    fn count(&self) -> usize {
        self.ends.len()
    }

    /// The losses of the sequences of each piece of this rank.
    fn losses(
        &self,
        ranks: &dyn Ranks,
        decoder: &Decoder,
        adapter: Option<&Adapter>,
        progress: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Vec<Vec<f64>>>> {
        let of_targets = OfTargets {
            together: &|batch| decoder.predictions(batch, adapter),
            of_piece: &|ids, targets, past| decoder.next_predictions(ids, targets, past, adapter),
        };
        let loss = |of_sequence: &[Prediction]| {
            numbers(&ExampleLoss {
                loss_sum: of_sequence.iter().map(|token| f64::from(token.loss)).sum(),
                tokens: of_sequence.len(),
                correct_tokens: of_sequence.iter().filter(|token| token.is_likeliest).count(),
            })
        };
        self.own(ranks, decoder, &of_targets, loss, progress)
    }

    /// The log-probabilities of labels of the texts of each piece of this rank.
    fn labels(
        &self,
        ranks: &dyn Ranks,
        decoder: &Decoder,
        adapter: &Adapter,
        progress: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Vec<Vec<f64>>>> {
        let of_targets = OfTargets {
            together: &|batch| decoder.label_log_probabilities(batch, adapter),
            of_piece: &|ids, targets, past| decoder.next_label_log_probabilities(ids, targets, past, adapter),
        };
        let first = |of_text: &[Vec<f64>]| of_text.first().cloned().unwrap_or_default();
        self.own(ranks, decoder, &of_targets, first, progress)
    }

    /// Runs the pieces of this rank through the decoder, and makes numbers of the values at the targets of each sequence.
    fn own<T: Clone>(
        &self,
        ranks: &dyn Ranks,
        decoder: &Decoder,
        of_targets: &OfTargets<'_, T>,
        numbers: impl Fn(&[T]) -> Vec<f64>,
        progress: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Vec<Vec<f64>>>> {
        let of_piece = |piece: usize| {
            let first = if piece == 0 { 0 } else { self.ends[piece - 1] };
            let these = &self.parts[first..self.ends[piece]];
            let found = match these {
                [one] if one.0.len() > self.tokens_at_once => {
                    in_pieces(decoder, *one, self.tokens_at_once, of_targets.of_piece)
                }
                _ => (of_targets.together)(&Batch::join(these.iter().copied())),
            };
            let mut left = found.as_slice();
            let of_each = these.iter().map(|(_, trained)| {
                let targets = trained.iter().skip(1).filter(|trained| **trained).count();
                let (of_sequence, of_others) = left.split_at(targets);
                left = of_others;
                numbers(of_sequence)
            });
            let of_each = of_each.collect();
            // All examples of a set have as many sequences.
            progress(self.ends[piece] * self.examples / self.parts.len()).map(|()| of_each)
        };
        (0..self.count()).filter(|piece| ranks.is_mine(*piece)).map(of_piece).collect()
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

/// The value of each trained token of one sequence, `tokens_at_once` tokens at a time.
fn in_pieces<T>(
    decoder: &Decoder,
    (all_ids, trained): (&[u32], &[bool]),
    tokens_at_once: usize,
    of_piece: OfPiece<'_, T>,
) -> Vec<T> {
    let mut past = decoder.begin();
    let mut values = Vec::new();
    for (index, ids) in all_ids.chunks(tokens_at_once).enumerate() {
        let first = index * tokens_at_once;
        // The state at a position predicts the next one, which may lie in the next piece.
        let targets: Vec<(u32, u32)> = (0..ids.len())
            .filter(|row| trained.get(first + row + 1).is_some_and(|trained| *trained))
            .map(|row| (row as u32, all_ids[first + row + 1]))
            .collect();
        values.extend(of_piece(ids, &targets, &mut past));
    }
    values
}
