//! Findings about data before anything is trained on it: what would teach the wrong thing, or nothing.
//!
//! Texts are looked at row by row, against the habits of their file (`survey`); rows are compared with each other
//! (`duplicates`); and where there is a base, its tokens are looked at (`tokens`). Every finding has a code of the
//! [`catalogue`], which also has the texts for people. The result does not depend on the number of threads.

pub mod catalogue;
pub mod clean;
pub mod codes;
pub mod findings;
pub mod lengths;
pub mod secrets;

mod answers;
mod classes;
mod conversation;
mod damage;
mod duplicates;
mod language;
mod preferences;
mod survey;
mod tokens;
mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use rayon::prelude::*;

pub use catalogue::{Code, Severity};
use duplicates::Digest;
use findings::Collector;
pub use findings::Finding;
use survey::Survey;
use view::View;

use super::encode::Encoder;
use super::example::Row;
use super::set::EncodedSet;

/// Rows in a file below which they are few.
const FEW_ROWS: usize = 10;
/// Bytes from which an answer is long.
const LONG_ANSWER: usize = 40;
/// Prompts under which the same long answer stands, from which on it is suspicious.
const REPEATED_ANSWER: usize = 5;
/// The share of one answer that makes it nearly the only one.
const ONE_ANSWER: f64 = 0.95;
/// Answers of the greatest length from which on a limit is likely.
const SAME_LENGTH: usize = 3;
/// Letters from which on equal lengths are no accident.
const SAME_LENGTH_CHARACTERS: usize = 200;

/// A part of the data.
#[derive(Debug, Clone, Copy)]
pub struct Split<'a> {
    /// `train` or `valid`.
    pub name: &'static str,
    /// The file, for messages.
    pub file: &'a str,
    /// Its rows.
    pub rows: &'a [Row],
    /// The same, encoded; `None` where there is no base to encode for.
    pub encoded: Option<&'a EncodedSet>,
}

/// A part of the data with all that was seen of it.
struct Seen<'a> {
    views: Vec<View<'a>>,
    digests: Vec<Digest>,
    found: Collector,
}

/// Looks at the data of a run: the most severe findings first.
pub fn preflight(train: Split<'_>, valid: Option<Split<'_>>, encoder: Option<&Encoder>) -> Vec<Finding> {
    let mut seen = look_at(train, encoder);
    let mut of_valid = valid.map(|valid| look_at(valid, encoder));
    compare(&mut seen, of_valid.as_mut());
    let mut findings = seen.found.finish();
    match of_valid {
        Some(valid) => findings.extend(valid.found.finish()),
        None => findings.push(Finding::about(Code::NoValidation, None, None, "")),
    }
    // Stable: within a kind, train comes before valid.
    findings.sort_by_key(|finding| (finding.severity, finding.code));
    findings
}

/// Everything that is found in one part without looking at the other.
fn look_at<'a>(split: Split<'a>, encoder: Option<&Encoder>) -> Seen<'a> {
    let views: Vec<View<'_>> = split.rows.par_iter().map(View::of).collect();
    let survey = Survey::of(&views);
    let digests: Vec<Digest> = views.par_iter().map(Digest::of).collect();
    let mut found = Collector::new(
        split.name,
        split.file,
        split.rows.windows(2).any(|pair| pair[0].position.file != pair[1].position.file),
    );
    let of_rows: Vec<Vec<(Code, String)>> = views.par_iter().map(|view| of_row(view, &survey)).collect();
    for (view, codes) in views.iter().zip(of_rows) {
        codes.into_iter().for_each(|(code, detail)| found.row(code, detail, view.position));
    }
    match (split.encoded, encoder) {
        (Some(set), Some(encoder)) => tokens::findings(&views, set, encoder, &mut found),
        _ => without_tokens(split.rows, &views, &mut found),
    }
    of_answers(&views, &digests, &mut found);
    match (split.name, views.len()) {
        ("valid", 1..FEW_ROWS) => found.whole(Code::FewValidation, views.len().to_string()),
        ("train", 1..FEW_ROWS) => found.whole(Code::FewRows, views.len().to_string()),
        _ => {}
    }
    Seen { views, digests, found }
}

/// The findings about the texts of one row, each once.
fn of_row(view: &View<'_>, survey: &Survey) -> Vec<(Code, String)> {
    let mut found = Vec::new();
    // A label is no answer in words.
    if view.class.is_none() {
        answers::findings(view, survey, &mut found);
    }
    damage::findings(view, &mut found);
    language::findings(view, survey, &mut found);
    secrets::findings(view, &mut found);
    conversation::findings(view, survey, &mut found);
    found.sort_unstable();
    found.dedup();
    found
}

/// The findings of encoding that the texts alone show too.
fn without_tokens(rows: &[Row], views: &[View<'_>], found: &mut Collector) {
    for (row, view) in rows.iter().zip(views) {
        row.ignored.iter().for_each(|key| found.row(Code::KeyIgnored, format!("`{key}`"), &row.position));
        let calls = view.messages.iter().any(|turn| turn.is_answer());
        if view.answers().next().is_none() && !calls {
            found.row(Code::NothingTrained, "", view.position);
        }
    }
}

/// The findings about the answers of a file together.
fn of_answers(views: &[View<'_>], digests: &[Digest], found: &mut Collector) {
    let answers: Vec<&str> = views.iter().flat_map(View::answers).collect();
    if !answers.is_empty() && answers.iter().all(|answer| answer.trim().is_empty()) {
        found.whole(Code::AllAnswersEmpty, "");
        return;
    }
    let last: Vec<(usize, &str)> = views
        .iter()
        .enumerate()
        .filter_map(|(index, view)| Some((index, view.last_exchange().filter(|(before, _)| !before.is_empty())?.1)))
        .collect();
    let mut by_answer: HashMap<&str, Vec<usize>> = HashMap::new();
    last.iter().for_each(|(index, answer)| by_answer.entry(answer.trim()).or_default().push(*index));
    let most = by_answer.values().map(Vec::len).max().unwrap_or_default();
    if last.len() > FEW_ROWS && most as f64 > ONE_ANSWER * last.len() as f64 {
        found.whole(Code::OneAnswer, format!("{most} of {}", last.len()));
    } else if 2 * by_answer.len() > last.len() {
        // Where most answers differ, one that comes again and again is no label.
        let mut repeated = BTreeSet::new();
        for (_, rows) in by_answer.into_iter().filter(|(answer, _)| answer.len() >= LONG_ANSWER) {
            let prompts: HashSet<Option<u64>> = rows.iter().map(|index| digests[*index].prompt).collect();
            if prompts.len() >= REPEATED_ANSWER {
                repeated.extend(rows);
            }
        }
        repeated.into_iter().for_each(|index| found.row(Code::RepeatedAnswer, "", views[index].position));
    }
    let lengths: Vec<(usize, usize)> = last.iter().map(|(index, answer)| (answer.chars().count(), *index)).collect();
    let longest = lengths.iter().map(|(length, _)| *length).max().unwrap_or_default();
    let at_limit: Vec<usize> =
        lengths.iter().filter(|(length, _)| *length == longest).map(|(_, index)| *index).collect();
    let distinct: HashSet<u64> = at_limit.iter().map(|index| digests[*index].answer).collect();
    if longest >= SAME_LENGTH_CHARACTERS && distinct.len() >= SAME_LENGTH {
        at_limit.into_iter().for_each(|index| found.row(Code::SameLength, longest.to_string(), views[index].position));
    }
    contradictions(views, digests, found);
    preferences::findings(views, digests, found);
    classes::findings(views, found);
}

/// Rows of one prompt with different answers.
fn contradictions(views: &[View<'_>], digests: &[Digest], found: &mut Collector) {
    let mut by_prompt: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (index, digest) in digests.iter().enumerate() {
        // Judged answers are several by nature.
        if let Some(prompt) = digest.prompt.filter(|_| !views[index].is_preference()) {
            by_prompt.entry(prompt).or_default().push(index);
        }
    }
    let differ = |rows: &&Vec<usize>| rows.iter().any(|index| digests[*index].answer != digests[rows[0]].answer);
    let rows: BTreeSet<usize> = by_prompt.values().filter(differ).flatten().copied().collect();
    rows.into_iter().for_each(|index| found.row(Code::Contradiction, "", views[index].position));
}

/// Rows that are the same or almost: within each part, and of the validation data in the training data.
fn compare(train: &mut Seen<'_>, valid: Option<&mut Seen<'_>>) {
    copies(train);
    let Some(valid) = valid else {
        let (views, digests): (Vec<&View<'_>>, Vec<&Digest>) = train.views.iter().zip(&train.digests).unzip();
        let pairs = duplicates::almost_equal(&views, &digests);
        return near_copies(&pairs, 0, train);
    };
    copies(valid);
    classes::unseen(&train.views, &valid.views, &mut valid.found);
    let whole: HashSet<u64> = train.digests.iter().map(|digest| digest.whole).collect();
    let prompts: HashSet<u64> = train.digests.iter().filter_map(|digest| digest.prompt).collect();
    let mut exact = HashSet::new();
    for (index, (digest, view)) in valid.digests.iter().zip(&valid.views).enumerate() {
        if whole.contains(&digest.whole) {
            exact.insert(index);
            valid.found.row(Code::LeakedRow, "", view.position);
        } else if digest.prompt.is_some_and(|prompt| prompts.contains(&prompt)) {
            valid.found.row(Code::LeakedPrompt, "", view.position);
        }
    }
    if exact.len() == valid.views.len() && !exact.is_empty() {
        valid.found.whole(Code::AllLeaked, "");
    }
    let count = train.views.len();
    let views: Vec<&View<'_>> = train.views.iter().chain(&valid.views).collect();
    let digests: Vec<&Digest> = train.digests.iter().chain(&valid.digests).collect();
    let pairs = duplicates::almost_equal(&views, &digests);
    let (within, across): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|(a, b)| (*a < count) == (*b < count));
    let (of_train, of_valid): (Vec<_>, Vec<_>) = within.into_iter().partition(|(a, _)| *a < count);
    near_copies(&of_train, 0, train);
    near_copies(&of_valid, count, valid);
    let leaked: BTreeSet<usize> =
        across.into_iter().map(|(_, b)| b - count).filter(|index| !exact.contains(index)).collect();
    leaked.into_iter().for_each(|index| valid.found.row(Code::NearlyLeakedRow, "", valid.views[index].position));
}

/// Adds the rows that are the same as an earlier one.
fn copies(seen: &mut Seen<'_>) {
    let mut earlier = HashSet::new();
    for (digest, view) in seen.digests.iter().zip(&seen.views) {
        if !earlier.insert(digest.whole) {
            seen.found.row(Code::ExactDuplicate, "", view.position);
        }
    }
}

/// Adds the later row of each pair, whose numbers begin at `first`.
fn near_copies(pairs: &[(usize, usize)], first: usize, seen: &mut Seen<'_>) {
    let later: BTreeSet<usize> = pairs.iter().map(|(_, later)| later - first).collect();
    later.into_iter().for_each(|index| seen.found.row(Code::NearDuplicate, "", seen.views[index].position));
}
