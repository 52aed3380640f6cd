//! The loss on held-out sequences: sums only, every sequence, the last partial batch included.

use crate::data::Encoded;
use crate::eval::loss::ExampleLoss;
use crate::model::{Batch, Decoder};
use crate::nn::Adapter;

/// Tokens that go through the model at once. A longer sequence goes through it piece by piece, its past in a cache.
pub const TOKENS_AT_ONCE: usize = 2048;

/// The loss of each sequence, in order. `adapter` is on the decoder's device, without autodiff.
pub fn evaluate(decoder: &Decoder, adapter: Option<&Adapter>, sequences: &[Encoded]) -> Vec<ExampleLoss> {
    evaluate_at_once(decoder, adapter, sequences, TOKENS_AT_ONCE)
}

/// [`evaluate`] with at most `tokens_at_once` tokens in the model at once.
pub fn evaluate_at_once(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    sequences: &[Encoded],
    tokens_at_once: usize,
) -> Vec<ExampleLoss> {
    let mut losses = Vec::with_capacity(sequences.len());
    let mut rest = sequences;
    while let Some(first) = rest.first() {
        let together = fitting(rest, tokens_at_once);
        let (these, after) = rest.split_at(together.max(1));
        let by_token = match together {
            0 => in_pieces(decoder, adapter, first, tokens_at_once),
            _ => decoder.losses(&Batch::join(these.iter().map(Encoded::parts)), adapter),
        };
        let mut by_token = by_token.into_iter().map(f64::from);
        losses.extend(these.iter().map(|sequence| {
            let tokens = sequence.trained_tokens();
            ExampleLoss { loss_sum: by_token.by_ref().take(tokens).sum(), tokens }
        }));
        rest = after;
    }
    losses
}

/// The number of sequences, from the first on, that go through the model together; 0 if the first alone is too long.
fn fitting(sequences: &[Encoded], tokens_at_once: usize) -> usize {
    let mut tokens = 0;
    let fitting = sequences.iter().take_while(|sequence| {
        tokens += sequence.ids.len();
        tokens <= tokens_at_once
    });
    fitting.count()
}

/// The loss of each trained token of one sequence, `tokens_at_once` tokens at a time.
fn in_pieces(decoder: &Decoder, adapter: Option<&Adapter>, sequence: &Encoded, tokens_at_once: usize) -> Vec<f32> {
    let mut past = decoder.begin();
    let mut losses = Vec::with_capacity(sequence.trained_tokens());
    for (index, ids) in sequence.ids.chunks(tokens_at_once).enumerate() {
        let first = index * tokens_at_once;
        // The state at a position predicts the next one, which may lie in the next piece.
        let targets: Vec<(u32, u32)> = (0..ids.len())
            .filter(|row| sequence.trained.get(first + row + 1).is_some_and(|trained| *trained))
            .map(|row| (row as u32, sequence.ids[first + row + 1]))
            .collect();
        losses.extend(decoder.next_losses(ids, &targets, &mut past, adapter));
    }
    losses
}
