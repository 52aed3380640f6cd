//! The loss on held-out sequences: sums only, every sequence, the last partial batch included.

use crate::data::Encoded;
use crate::error::Result;
use crate::eval::classes::Classified;
use crate::eval::loss::ExampleLoss;
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
    let of_targets = OfTargets {
        together: &|batch| decoder.predictions(batch, adapter),
        of_piece: &|ids, targets, past| decoder.next_predictions(ids, targets, past, adapter),
    };
    let loss = |of_sequence: &[Prediction]| ExampleLoss {
        loss_sum: of_sequence.iter().map(|token| f64::from(token.loss)).sum(),
        tokens: of_sequence.len(),
        correct_tokens: of_sequence.iter().filter(|token| token.is_likeliest).count(),
    };
    by_sequence(decoder, sequences, tokens_at_once, &of_targets, loss, progress)
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
    let of_targets = OfTargets {
        together: &|batch| decoder.label_log_probabilities(batch, adapter),
        of_piece: &|ids, targets, past| decoder.next_label_log_probabilities(ids, targets, past, adapter),
    };
    let first = |of_text: &[Vec<f64>]| of_text.first().cloned().unwrap_or_default();
    let found = by_sequence(decoder, texts, TOKENS_AT_ONCE, &of_targets, first, progress)?;
    let labels = texts.iter().map(Encoded::label);
    Ok(labels.zip(found).map(|(label, log_probabilities)| Classified { label, log_probabilities }).collect())
}

/// The values of a decoder at the targets of sequences.
struct OfTargets<'a, T> {
    /// Those of sequences that go through it together.
    together: &'a dyn Fn(&Batch) -> Vec<T>,
    /// Those of a piece of a sequence, at the targets `(row of the piece, token id)`.
    of_piece: &'a dyn Fn(&[u32], &[(u32, u32)], &mut Sequence) -> Vec<T>,
}

/// Runs the sequences of the examples through the decoder, and makes a value of those of the targets of each.
fn by_sequence<T: Clone, R>(
    decoder: &Decoder,
    examples: &[Encoded],
    tokens_at_once: usize,
    of_targets: &OfTargets<'_, T>,
    value: impl Fn(&[T]) -> R,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<R>> {
    let parts: Vec<(&[u32], &[bool])> = examples.iter().flat_map(Encoded::sequences).collect();
    let mut values = Vec::with_capacity(parts.len());
    let mut rest = parts.as_slice();
    while let Some(first) = rest.first() {
        let together = fitting(rest, tokens_at_once);
        let (these, after) = rest.split_at(together.max(1));
        let found = match together {
            0 => in_pieces(decoder, *first, tokens_at_once, of_targets.of_piece),
            _ => (of_targets.together)(&Batch::join(these.iter().copied())),
        };
        let mut left = found.as_slice();
        values.extend(these.iter().map(|(_, trained)| {
            let (of_sequence, of_others) = left.split_at(trained.iter().skip(1).filter(|trained| **trained).count());
            left = of_others;
            value(of_sequence)
        }));
        rest = after;
        // All examples of a set have as many sequences.
        progress(values.len() * examples.len() / parts.len())?;
    }
    Ok(values)
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
    of_piece: &dyn Fn(&[u32], &[(u32, u32)], &mut Sequence) -> Vec<T>,
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
