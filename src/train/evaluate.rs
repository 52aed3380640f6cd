//! The loss on held-out sequences: sums only, every sequence, the last partial batch included.

use crate::data::Encoded;
use crate::eval::loss::ExampleLoss;
use crate::model::{Batch, Decoder};
use crate::nn::Adapter;

/// Tokens that go through the model at once.
pub const TOKENS_AT_ONCE: usize = 2048;

/// The loss of each sequence, in order. `adapter` is on the decoder's device, without autodiff.
pub fn evaluate(decoder: &Decoder, adapter: Option<&Adapter>, sequences: &[Encoded]) -> Vec<ExampleLoss> {
    let mut losses = Vec::with_capacity(sequences.len());
    let mut rest = sequences;
    while !rest.is_empty() {
        let (these, after) = rest.split_at(fitting(rest));
        let by_token = decoder.losses(&Batch::join(these.iter().map(Encoded::parts)), adapter);
        let mut by_token = by_token.into_iter().map(f64::from);
        losses.extend(these.iter().map(|sequence| {
            let tokens = sequence.trained_tokens();
            ExampleLoss { loss_sum: by_token.by_ref().take(tokens).sum(), tokens }
        }));
        rest = after;
    }
    losses
}

/// How many of the first sequences go through the model together.
fn fitting(sequences: &[Encoded]) -> usize {
    let mut tokens = 0;
    let fitting = sequences.iter().take_while(|sequence| {
        tokens += sequence.ids.len();
        tokens <= TOKENS_AT_ONCE
    });
    fitting.count().max(1)
}
