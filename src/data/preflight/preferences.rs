//! Findings about preferences: pairs that say nothing, pairs that contradict each other, and lengths that decide.

use std::collections::HashSet;

use super::catalogue::Code;
use super::duplicates::{Digest, hash_of_answer};
use super::findings::Collector;
use super::view::View;

/// Pairs from which on a length bias is no accident.
const LEAST_PAIRS: usize = 20;
/// The share of pairs in which the chosen answer is the longer (or the shorter) one, from which on that is a rule.
const BIASED: f64 = 0.75;

/// Adds the findings about the preferences of a file.
pub(super) fn findings(views: &[View<'_>], digests: &[Digest], found: &mut Collector) {
    let pairs = || views.iter().zip(digests).filter_map(|(view, digest)| Some((view, digest, view.rejected?)));
    let preferred: HashSet<(Option<u64>, u64, u64)> =
        pairs().map(|(_, digest, rejected)| (digest.prompt, digest.answer, hash_of_answer(rejected))).collect();
    for (view, digest, rejected) in pairs() {
        let rejected = hash_of_answer(rejected);
        if digest.answer == rejected {
            found.row(Code::IdenticalPair, "", view.position);
        } else if preferred.contains(&(digest.prompt, rejected, digest.answer)) {
            found.row(Code::SwappedPair, "", view.position);
        }
    }
    length_bias(pairs().filter_map(|(view, _, rejected)| Some((view.last_exchange()?.1, rejected))), found);
    let labels: Vec<bool> = views.iter().filter_map(|view| view.label).collect();
    if labels.len() > 1 && labels.iter().all(|label| *label == labels[0]) {
        found.whole(Code::OneLabel, labels[0].to_string());
    }
}

/// The finding where the chosen answers are the longer or the shorter ones by a rule.
fn length_bias<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>, found: &mut Collector) {
    let letters = |text: &str| text.chars().count();
    let lengths: Vec<(usize, usize)> = pairs.map(|(chosen, rejected)| (letters(chosen), letters(rejected))).collect();
    if lengths.len() < LEAST_PAIRS {
        return;
    }
    let share = |is_wanted: &dyn Fn(&(usize, usize)) -> bool| {
        lengths.iter().filter(|pair| is_wanted(pair)).count() as f64 / lengths.len() as f64
    };
    let (longer, shorter) = (share(&|pair| pair.0 > pair.1), share(&|pair| pair.0 < pair.1));
    let (chosen, rejected) = lengths.iter().fold((0, 0), |sums, pair| (sums.0 + pair.0, sums.1 + pair.1));
    let (word, share) = if longer >= shorter { ("longer", longer) } else { ("shorter", shorter) };
    if share >= BIASED {
        let ratio = chosen as f64 / rejected.max(1) as f64;
        found.whole(
            Code::LengthBias,
            format!("{word} in {:.0}% of {} pairs, {ratio:.2} times the letters", 100.0 * share, lengths.len()),
        );
    }
}
