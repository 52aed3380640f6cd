//! Rows that are the same, or almost: within a file and between two.
//!
//! Texts are cut into shingles, runs of five characters of their letters and digits. The sketch of a row is one-permutation
//! MinHash (Li, Owen, Zhang 2012) with empty bins filled by rotation (Shrivastava, Li 2014): the share of equal bins of two
//! sketches estimates the share of shingles that both rows have (Jaccard). Rows with equal bands of bins are candidates, and
//! of these the shingles themselves decide.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use rayon::prelude::*;

use super::view::View;

/// Characters of a shingle.
const SHINGLE: usize = 5;
/// Bins of a sketch.
const BINS: usize = 64;
/// Bins of a band: with 16 bands, 99.9% of the pairs that have 85% of their shingles in common become candidates.
const BAND: usize = 4;
/// The share of shingles that almost equal texts have in common.
const ALMOST: f64 = 0.85;
/// Texts with fewer letters and digits are the same or different, never almost the same.
const MIN_LETTERS: usize = 20;
/// Rows of equal bands that a row is compared with: the first, and so many before it.
const COMPARED: usize = 4;

/// A row as far as it matters here.
pub(super) struct Digest {
    /// All of the row as it is, but for white space at its edges.
    pub(super) whole: u64,
    /// The words before the last answer, without regard to case and white space; `None` where there are none.
    pub(super) prompt: Option<u64>,
    /// The last answer in the same way.
    pub(super) answer: u64,
    sketch: Option<[u32; BINS]>,
}

impl Digest {
    pub(super) fn of(view: &View<'_>) -> Self {
        let (before, answer) = view.last_exchange().unwrap_or((&view.parts, ""));
        let mut prompt = DefaultHasher::new();
        before.iter().for_each(|(_, text)| hash_words(text, &mut prompt));
        let has_prompt = before.iter().any(|(_, text)| !text.trim().is_empty());
        let mut whole = DefaultHasher::new();
        view.parts.iter().for_each(|(part, text)| (*part, text.trim()).hash(&mut whole));
        Self {
            whole: whole.finish(),
            prompt: has_prompt.then(|| prompt.finish()),
            answer: hash_of_answer(answer),
            sketch: sketch(&shingles(view.texts())),
        }
    }
}

/// The hash of an answer by its words.
pub(super) fn hash_of_answer(answer: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hash_words(answer, &mut hasher);
    hasher.finish()
}

fn hash_words(text: &str, hasher: &mut DefaultHasher) {
    text.split_whitespace().for_each(|word| word.to_lowercase().hash(hasher));
    hasher.write_u8(0xff);
}

/// The letters and digits of texts, in lower case, with one space between words.
fn letters<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<char> {
    let mut letters = Vec::new();
    for text in texts {
        for symbol in text.chars().flat_map(char::to_lowercase) {
            match symbol.is_alphanumeric() {
                true => letters.push(symbol),
                false if letters.last().is_some_and(|last| *last != ' ') => letters.push(' '),
                false => {}
            }
        }
        letters.push(' ');
    }
    letters
}

/// The hashes of the shingles of texts, sorted, each once.
fn shingles<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<u64> {
    let letters = letters(texts);
    let hash = |window: &[char]| {
        let joined = window
            .iter()
            .fold(0u64, |hash, letter| hash.wrapping_mul(0x0010_0000_01b3) ^ u64::from(u32::from(*letter)));
        mixed(joined)
    };
    let mut shingles: Vec<u64> = letters.windows(SHINGLE).map(hash).collect();
    shingles.sort_unstable();
    shingles.dedup();
    shingles
}

/// The last steps of SplitMix64: every bit of the input changes half of the bits.
fn mixed(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// The sketch of some shingles; `None` where there are too few.
fn sketch(shingles: &[u64]) -> Option<[u32; BINS]> {
    if shingles.len() < MIN_LETTERS {
        return None;
    }
    let mut bins = [None; BINS];
    for shingle in shingles {
        let bin = &mut bins[(shingle >> 58) as usize];
        let value = *shingle as u32;
        *bin = Some(bin.map_or(value, |least: u32| least.min(value)));
    }
    // Nearest filled bin to the right; its distance keeps bins that are filled in this way apart.
    let filled = |at: usize| {
        (0..BINS).find_map(|far| bins[(at + far) % BINS].map(|value| value.wrapping_add(far as u32 * 0x9e37_79b9)))
    };
    Some(std::array::from_fn(|at| filled(at).unwrap_or_default()))
}

/// The share of shingles that both have, of those that one of them has.
fn jaccard(a: &[u64], b: &[u64]) -> f64 {
    let (mut at, mut both) = (0, 0usize);
    for shingle in a {
        while b.get(at).is_some_and(|other| other < shingle) {
            at += 1;
        }
        both += usize::from(b.get(at) == Some(shingle));
    }
    both as f64 / (a.len() + b.len() - both).max(1) as f64
}

/// Whether two rows are almost the same: their prompts, and their answers.
fn are_almost_equal(a: &View<'_>, b: &View<'_>) -> bool {
    fn split<'a>(view: &View<'a>) -> [Vec<&'a str>; 2] {
        let (before, answer) = view.last_exchange().unwrap_or((&view.parts, ""));
        [before.iter().map(|(_, text)| *text).collect(), vec![answer]]
    }
    split(a).into_iter().zip(split(b)).all(|(a, b)| {
        let (short_a, short_b) = (letters(a.iter().copied()), letters(b.iter().copied()));
        match short_a.len().min(short_b.len()) < MIN_LETTERS {
            true => short_a == short_b,
            false => jaccard(&shingles(a.into_iter()), &shingles(b.into_iter())) >= ALMOST,
        }
    })
}

/// Pairs of rows that are almost the same and not the same, each as `(earlier, later)`.
pub(super) fn almost_equal(views: &[&View<'_>], digests: &[&Digest]) -> Vec<(usize, usize)> {
    let mut first_of: HashMap<u64, usize> = HashMap::new();
    let is_first = |(index, digest): (usize, &&Digest)| *first_of.entry(digest.whole).or_insert(index) == index;
    let distinct: Vec<bool> = digests.iter().enumerate().map(is_first).collect();
    let mut candidates: BTreeSet<(usize, usize)> = BTreeSet::new();
    for band in 0..BINS / BAND {
        let of_band = |bins: [u32; BINS]| {
            bins[band * BAND..(band + 1) * BAND].iter().fold(0, |hash, bin| mixed(hash ^ u64::from(*bin)))
        };
        let rows = digests.iter().enumerate().filter(|(index, _)| distinct[*index]);
        let mut keys: Vec<(u64, usize)> =
            rows.filter_map(|(index, digest)| Some((of_band(digest.sketch?), index))).collect();
        keys.sort_unstable();
        for group in keys.chunk_by(|a, b| a.0 == b.0) {
            for (at, (_, later)) in group.iter().enumerate() {
                let before =
                    group[at.saturating_sub(COMPARED)..at].iter().chain(group.first().filter(|_| at > COMPARED));
                candidates.extend(before.map(|(_, earlier)| (*earlier, *later)));
            }
        }
    }
    let candidates: Vec<(usize, usize)> =
        candidates.into_iter().filter(|(a, b)| are_alike(digests[*a], digests[*b])).collect();
    candidates.into_par_iter().filter(|(a, b)| are_almost_equal(views[*a], views[*b])).collect()
}

/// Whether so many bins are equal that the shingles are worth comparing.
fn are_alike(a: &Digest, b: &Digest) -> bool {
    let (Some(a), Some(b)) = (&a.sketch, &b.sketch) else { return false };
    a.iter().zip(b).filter(|(a, b)| a == b).count() * 10 >= BINS * 6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::example::{Example, Row};
    use crate::data::position::Position;

    fn rows(texts: &[(&str, &str)]) -> Vec<Row> {
        let row = |(index, (prompt, completion)): (usize, &(&str, &str))| {
            let example = Example::PromptCompletion { prompt: (*prompt).into(), completion: (*completion).into() };
            Row::new(Position::line("d.jsonl", index + 1), example)
        };
        texts.iter().enumerate().map(row).collect()
    }

    fn pairs(texts: &[(&str, &str)]) -> Vec<(usize, usize)> {
        let rows = rows(texts);
        let views: Vec<View<'_>> = rows.iter().map(View::of).collect();
        let digests: Vec<Digest> = views.iter().map(Digest::of).collect();
        let (views, digests): (Vec<&View<'_>>, Vec<&Digest>) = views.iter().zip(&digests).unzip();
        almost_equal(&views, &digests)
    }

    const QUESTION: &str = "How long may I keep a book that I have borrowed from the library in the old town hall?";
    const ANSWER: &str =
        "Four weeks, and you can extend it twice as long as nobody else is waiting for the very same book.";

    #[test]
    fn rows_that_differ_in_a_few_letters_are_almost_the_same() {
        let near = (QUESTION.replace("How long", "how long"), ANSWER.replace("twice", "twic"));
        assert_eq!(pairs(&[(QUESTION, ANSWER), ("Something else entirely", "No"), (&near.0, &near.1)]), [(0, 2)]);
    }

    #[test]
    fn equal_rows_and_rows_with_another_answer_are_not() {
        assert_eq!(pairs(&[(QUESTION, ANSWER), (QUESTION, ANSWER)]), [], "they are the same");
        let other = "You may keep it for a fortnight; then it has to go back to its shelf, or a fee is due each day.";
        assert_eq!(pairs(&[(QUESTION, ANSWER), (QUESTION, other)]), []);
        assert_eq!(pairs(&[(QUESTION, "yes"), (QUESTION, "no")]), [], "short answers are compared whole");
    }

    #[test]
    fn every_one_of_many_near_copies_is_found() {
        let copies: Vec<String> = (0..200).map(|copy| format!("{ANSWER} {copy}")).collect();
        let texts: Vec<(&str, &str)> = copies.iter().map(|copy| (QUESTION, copy.as_str())).collect();
        let later: BTreeSet<usize> = pairs(&texts).into_iter().map(|(_, later)| later).collect();
        assert_eq!(later.len(), 199);
    }

    #[test]
    fn a_sketch_estimates_the_share_of_common_shingles() {
        let text = |from: usize| (from..from + 400).map(|word| format!("word{word} ")).collect::<String>();
        let (a, b) = (text(0), text(40));
        let (a, b) = (shingles(std::iter::once(a.as_str())), shingles(std::iter::once(b.as_str())));
        let (sketch_a, sketch_b) = (sketch(&a).expect("long"), sketch(&b).expect("long"));
        let equal = sketch_a.iter().zip(sketch_b).filter(|(a, b)| **a == *b).count() as f64 / BINS as f64;
        let exact = jaccard(&a, &b);
        // The standard deviation of a share of 64 is at most 1/16.
        assert!((equal - exact).abs() < 0.2 && (0.6..0.95).contains(&exact), "{equal} {exact}");
    }
}
