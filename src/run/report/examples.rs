//! The examples of a run in its report: their lengths, and some of them as the model sees them.

use serde::Serialize;

use crate::data::{Encoded, EncodedSet};
use crate::run::prepare::Prepared;
use crate::text::token_texts;

/// Training examples that are shown with their masks, and their tokens.
const RENDERED: usize = 12;
const RENDERED_TOKENS: usize = 512;
/// Bars of a histogram, at most.
const BARS: usize = 32;

/// A histogram of the lengths of a set's examples, in tokens.
#[derive(Debug, Serialize)]
pub(super) struct Lengths {
    /// `train` or `valid`.
    set: &'static str,
    /// Examples.
    examples: usize,
    /// The limit of the recipe.
    max_seq_tokens: usize,
    /// The longest and the middle one.
    longest: usize,
    median: usize,
    /// The width of a bar; the first begins at 1.
    bar_tokens: usize,
    /// Examples of each bar.
    bars: Vec<usize>,
    /// Examples that were left out or cut for their length.
    dropped_long: usize,
    truncated: usize,
}

/// The lengths of the training and the validation examples.
pub(super) fn lengths(prepared: &Prepared) -> Vec<Lengths> {
    let of = |(set, examples): (&'static str, &EncodedSet)| {
        let mut tokens: Vec<usize> = examples.sequences.iter().map(Encoded::longest_tokens).collect();
        tokens.sort_unstable();
        let longest = *tokens.last()?;
        let bar_tokens = longest.div_ceil(BARS).max(1);
        let mut bars = vec![0; longest.div_ceil(bar_tokens)];
        tokens.iter().for_each(|tokens| bars[tokens.saturating_sub(1) / bar_tokens] += 1);
        Some(Lengths {
            set,
            examples: tokens.len(),
            max_seq_tokens: prepared.plan.data.max_seq_tokens,
            longest,
            median: tokens[tokens.len() / 2],
            bar_tokens,
            bars,
            dropped_long: examples.dropped_long,
            truncated: examples.truncated,
        })
    };
    [("train", &prepared.train), ("valid", &prepared.valid)].into_iter().filter_map(of).collect()
}

/// An example as its tokens, with the mask of what is trained.
#[derive(Debug, Serialize)]
pub(super) struct Rendered {
    /// The place of its row.
    place: String,
    /// The text of each token.
    tokens: Vec<String>,
    /// Whether loss is taken on it.
    trained: Vec<bool>,
    /// Tokens that are not shown.
    cut: usize,
}

/// Some training examples, the first of them.
pub(super) fn rendered(prepared: &Prepared) -> Vec<Rendered> {
    let train = &prepared.train;
    let shown = train.sequences.iter().zip(&train.positions).take(RENDERED);
    let shown = shown.filter_map(|(example, position)| {
        let (ids, trained) = example.sequences().next()?;
        let kept = ids.len().min(RENDERED_TOKENS);
        let mut tokens = token_texts(prepared.base.encoder.tokenizer(), &ids[..kept]);
        if let (Some(classifier), true, Some(last)) = (&prepared.start.classifier, kept == ids.len(), tokens.last_mut())
        {
            // The number of the label stands in the place of a token.
            *last = format!(" → {}", classifier.labels.get(example.label()).map_or("", String::as_str));
        }
        Some(Rendered { place: position.to_string(), tokens, trained: trained[..kept].to_vec(), cut: ids.len() - kept })
    });
    shown.collect()
}
