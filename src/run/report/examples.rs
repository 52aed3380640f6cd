//! The examples of a run in its report: their lengths, and some of them as the model sees them.

use serde::Serialize;

use crate::data::{Encoded, EncodedSet};
use crate::error::counted;
use crate::model::vision::features::is_feature;
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
    /// The text of each token; the rows of a picture that lie together are one text.
    tokens: Vec<String>,
    /// Whether loss is taken on it.
    trained: Vec<bool>,
    /// Tokens that are not shown.
    cut: usize,
    /// Tokens of the example.
    count: usize,
    /// The SHA-256 of the pictures that it shows, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pictures: Vec<String>,
}

/// The ids and masks of the training examples that are shown, with their numbers.
pub(super) fn shown_examples(prepared: &Prepared) -> impl Iterator<Item = (&[u32], &[bool], usize)> {
    let sequences = prepared.train.sequences.iter().enumerate().take(RENDERED);
    sequences.filter_map(|(number, example)| example.sequences().next().map(|(ids, trained)| (ids, trained, number)))
}

/// Some training examples, the first of them.
pub(super) fn rendered(prepared: &Prepared) -> Vec<Rendered> {
    let (train, encoder) = (&prepared.train, &prepared.base.encoder);
    let shown = shown_examples(prepared).map(|(ids, trained, number)| {
        let together = |a: &u32, b: &u32| is_feature(*a) && *b == a + 1;
        let runs: Vec<&[u32]> = ids.chunk_by(together).take(RENDERED_TOKENS).collect();
        let kept: usize = runs.iter().map(|run| run.len()).sum();
        let texts = token_texts(encoder.tokenizer(), &ids[..kept]);
        let (mut tokens, mut masks, mut at) = (Vec::new(), Vec::new(), 0);
        for run in runs {
            tokens.push(match is_feature(run[0]) {
                true => format!("[{} of a picture]", counted(run.len(), "token")),
                false => texts[at].clone(),
            });
            masks.push(trained[at]);
            at += run.len();
        }
        if let (Some(classifier), true, Some(last)) = (&prepared.start.classifier, kept == ids.len(), tokens.last_mut())
        {
            // The number of the label stands in the place of a token.
            let label = train.sequences[number].label();
            *last = format!(" → {}", classifier.labels.get(label).map_or("", String::as_str));
        }
        let pictures = encoder.pictures().map(|pictures| pictures.shown_in(ids)).unwrap_or_default();
        Rendered {
            place: train.positions[number].to_string(),
            tokens,
            trained: masks,
            cut: ids.len() - kept,
            count: ids.len(),
            pictures: pictures.into_iter().map(|picture| picture.sha256).collect(),
        }
    });
    shown.collect()
}
