//! Findings that only tokens show: begin and stop tokens, unknown letters, lengths.

use std::collections::{BTreeSet, HashSet};

use rayon::prelude::*;

use super::catalogue::Code;
use super::findings::Collector;
use super::view::View;
use crate::data::encode::Encoder;
use crate::data::encoded::Encoded;
use crate::data::format::Format;
use crate::data::remark::Remark;
use crate::data::set::EncodedSet;

/// The longest sequences count as very long from so many medians on.
const VERY_LONG_MEDIANS: usize = 10;
/// Sequences of fewer tokens are never very long.
const VERY_LONG_TOKENS: usize = 256;
/// The share of trained tokens below which it is small.
const FEW_TRAINED: f64 = 0.05;
/// Letters that are named one by one.
const SHOWN_LETTERS: usize = 5;

/// Adds the findings about an encoded file.
pub(super) fn findings(views: &[View<'_>], set: &EncodedSet, encoder: &Encoder, found: &mut Collector) {
    for (remark, rows) in set.remarks.iter() {
        if let Some((code, detail)) = of_remark(remark) {
            found.rows(code, detail, rows);
        }
    }
    // The number of a label ends no text, and is trained alone.
    let is_class = set.format == Some(Format::Class);
    let stops = if is_class { Vec::new() } else { encoder.stop_tokens() };
    let of_sequences: Vec<Vec<Code>> =
        set.sequences.par_iter().map(|sequence| of_sequence(sequence, encoder, &stops)).collect();
    for (codes, position) in of_sequences.into_iter().zip(&set.positions) {
        codes.into_iter().for_each(|code| found.row(code, "", position));
    }
    let Letters { unknown, changed } = Letters::of(views, encoder);
    for (code, letters) in [(Code::UnknownToken, unknown), (Code::TokenizerChangesText, changed)] {
        let shown: Vec<String> =
            letters.iter().take(SHOWN_LETTERS).map(|letter| format!("`{}`", letter.escape_debug())).collect();
        let rows = views.iter().filter(|view| {
            !letters.is_empty() && view.texts().any(|text| text.chars().any(|letter| letters.contains(&letter)))
        });
        rows.for_each(|view| found.row(code, shown.join(" "), view.position));
    }
    let mut lengths: Vec<usize> = set.sequences.iter().map(|sequence| sequence.ids.len()).collect();
    lengths.sort_unstable();
    let limit = (lengths.get(lengths.len() / 2).copied().unwrap_or_default() * VERY_LONG_MEDIANS).max(VERY_LONG_TOKENS);
    for (sequence, position) in set.sequences.iter().zip(&set.positions) {
        if sequence.ids.len() > limit {
            found.row(Code::VeryLong, "", position);
        }
    }
    if !is_class && !set.sequences.is_empty() && (set.trained_tokens as f64) < FEW_TRAINED * set.tokens as f64 {
        found.whole(Code::FewTrained, format!("{} of {}", set.trained_tokens, set.tokens));
    }
}

/// The code of a remark, and the detail by which its rows are counted apart; `None` where the text of the row tells it too.
fn of_remark(remark: &Remark) -> Option<(Code, String)> {
    let none = String::new;
    Some(match remark {
        Remark::KeyIgnored { key } => (Code::KeyIgnored, format!("`{key}`")),
        Remark::TurnLeftOut { role } => (Code::TurnLeftOut, format!("`{role}`")),
        Remark::KeyLeftOut { key, partly, .. } => {
            (Code::KeyLeftOut, format!("`{key}`{}", if *partly { ", of which a part is shown" } else { "" }))
        }
        Remark::KeyNotTrained { key } => (Code::KeyNotTrained, format!("`{key}`")),
        Remark::RoleNotTrained { role } => (Code::RoleNotTrained, format!("`{role}`")),
        Remark::OtherPrompt { prompt, finished } => (Code::OtherPrompt, format!("{prompt:?} instead of {finished:?}")),
        Remark::SpellsControl { token, .. } => (Code::SpellsControl, format!("`{token}`")),
        Remark::TextChanged { role } => (Code::TextChanged, format!("`{role}`")),
        Remark::EmptyAnswer => return None,
        Remark::NothingTrained => (Code::NothingTrained, none()),
        Remark::TurnNotTrained => (Code::TurnNotTrained, none()),
        Remark::TooLong { max } => (Code::TooLong, max.to_string()),
        Remark::PromptCut { max } => (Code::PromptCut, max.to_string()),
    })
}

fn of_sequence(sequence: &Encoded, encoder: &Encoder, stops: &[u32]) -> Vec<Code> {
    let tokenizer = encoder.tokenizer();
    let mut codes = Vec::new();
    if let (Some(bos), [first, second, ..]) = (tokenizer.bos(), sequence.ids.as_slice())
        && (*first, *second) == (bos, bos)
    {
        codes.push(Code::TwoBegins);
    }
    let last = sequence.ids.iter().zip(&sequence.trained).rev().find(|(_, trained)| **trained);
    if !stops.is_empty() && last.is_some_and(|(id, _)| !stops.contains(id)) {
        codes.push(Code::NoStop);
    }
    codes
}

/// The letters of a file that do not survive the tokenizer.
struct Letters {
    /// Those that become the unknown token.
    unknown: BTreeSet<char>,
    /// Those that come back as something else, or not at all.
    changed: BTreeSet<char>,
}

impl Letters {
    fn of(views: &[View<'_>], encoder: &Encoder) -> Self {
        let used: HashSet<char> = views
            .par_chunks(1024)
            .map(|views| views.iter().flat_map(View::texts).flat_map(str::chars).collect::<HashSet<char>>())
            .reduce(HashSet::new, |all, more| {
                if all.len() < more.len() {
                    more.union(&all).copied().collect()
                } else {
                    all.union(&more).copied().collect()
                }
            });
        let tokenizer = encoder.tokenizer();
        let (mut unknown, mut changed) = (BTreeSet::new(), BTreeSet::new());
        for letter in used.into_iter().filter(|letter| !letter.is_whitespace() && !letter.is_control()) {
            let text = letter.to_string();
            let Ok(ids) = tokenizer.encode(&text) else { continue };
            if tokenizer.unknown().is_some_and(|id| ids.contains(&id)) {
                unknown.insert(letter);
            } else if tokenizer.decode(&ids, false).is_ok_and(|decoded| decoded.trim() != text) {
                changed.insert(letter);
            }
        }
        Self { unknown, changed }
    }
}
