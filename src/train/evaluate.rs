//! The loss on held-out sequences: sums only, every sequence, the last partial batch included.

use crate::data::Encoded;
use crate::error::Result;
use crate::eval::loss::ExampleLoss;
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
    let parts: Vec<(&[u32], &[bool])> = sequences.iter().flat_map(Encoded::sequences).collect();
    let mut losses = Vec::with_capacity(parts.len());
    let mut rest = parts.as_slice();
    while let Some(first) = rest.first() {
        let together = fitting(rest, tokens_at_once);
        let (these, after) = rest.split_at(together.max(1));
        let predictions = match together {
            0 => in_pieces(decoder, adapter, *first, tokens_at_once),
            _ => decoder.predictions(&Batch::join(these.iter().copied()), adapter),
        };
        let mut left = predictions.as_slice();
        losses.extend(these.iter().map(|(_, trained)| {
            let (of_sequence, of_others) = left.split_at(trained.iter().skip(1).filter(|trained| **trained).count());
            left = of_others;
            ExampleLoss {
                loss_sum: of_sequence.iter().map(|token| f64::from(token.loss)).sum(),
                tokens: of_sequence.len(),
                correct_tokens: of_sequence.iter().filter(|token| token.is_likeliest).count(),
            }
        }));
        rest = after;
        // All examples of a set have as many sequences.
        progress(losses.len() * sequences.len() / parts.len())?;
    }
    Ok(losses)
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
