//! The habits of a file as a whole, against which single rows are judged.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use rayon::prelude::*;
use unicode_script::Script;

use super::answers::{Edge, LABEL, ends_like_a_sentence, prompt_end};
use super::language::{Lang, language, script, words};
use super::view::View;

/// The share of rows that makes a habit.
const HABIT: f64 = 0.9;
/// The share of answers that makes ends of sentences a habit: lists, titles and code have none.
const SENTENCES: f64 = 0.98;
/// The fewest rows in which a habit can be seen.
const MIN_ROWS: usize = 10;
/// The share of rows above which a short answer is a label, and no placeholder.
const LABEL_SHARE: f64 = 0.02;

/// Rows whose language is told, to find that of the file.
const ROWS_FOR_LANGUAGE: usize = 1000;
/// The words of a language by which most of its texts can be told.
const COMMON_WORDS: usize = 40;

/// The habits of a file.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Answers of some length end like sentences.
    pub(super) sentences_are_usual: bool,
    /// Answers are JSON objects or lists.
    pub(super) json_is_usual: bool,
    /// Answers begin with the name of a speaker.
    pub(super) label_is_usual: bool,
    /// Rows have a system text.
    pub(super) system_is_usual: bool,
    /// White space at the edges of answers.
    pub(super) usual_edge: Option<Edge>,
    /// The end of prompts.
    pub(super) usual_prompt_end: Option<String>,
    /// The script of answers.
    pub(super) usual_script: Option<Script>,
    /// The language of answers.
    pub(super) usual_language: Option<Lang>,
    /// The most frequent words of answers in that language.
    pub(super) common_words: HashSet<String>,
    /// Short answers that many rows have.
    pub(super) labels: Vec<String>,
}

/// The traits of one row.
struct Traits {
    sentence: Option<bool>,
    json: bool,
    label: bool,
    system: Option<bool>,
    edge: Option<Edge>,
    prompt_end: Option<String>,
    script: Option<Script>,
    language: Option<Lang>,
    short_answer: Option<String>,
}

impl Traits {
    fn of(view: &View<'_>, with_language: bool) -> Option<Self> {
        let (before, answer) = view.last_exchange()?;
        let trimmed = answer.trim();
        let is_bare = view.is_bare && !before.is_empty();
        Some(Self {
            sentence: (trimmed.len() >= 40).then(|| ends_like_a_sentence(trimmed)),
            json: trimmed.starts_with(['{', '[']) && serde_json::from_str::<serde_json::Value>(trimmed).is_ok(),
            label: LABEL.is_match(trimmed),
            system: (!view.messages.is_empty()).then(|| view.has_system()),
            edge: is_bare.then(|| Edge::of(answer)),
            prompt_end: is_bare.then(|| prompt_end(view.last_prompt().unwrap_or_default())),
            script: script(trimmed),
            language: if with_language { language(trimmed) } else { None },
            short_answer: (trimmed.len() <= 20).then(|| trimmed.to_owned()),
        })
    }
}

impl Survey {
    pub(super) fn of(views: &[View<'_>]) -> Self {
        let stride = views.len().div_ceil(ROWS_FOR_LANGUAGE).max(1);
        let of_row = |(index, view)| Traits::of(view, index % stride == 0);
        let traits: Vec<Traits> = views.par_iter().enumerate().filter_map(of_row).collect();
        let usual_language = habit(traits.iter().filter_map(|traits| traits.language));
        let sample = || views.iter().step_by(stride).filter_map(View::last_exchange).map(|(_, answer)| answer);
        let is_usual = |flags: Vec<bool>, share: f64| {
            let with = flags.iter().filter(|flag| **flag).count();
            flags.len() >= MIN_ROWS && with as f64 >= share * flags.len() as f64
        };
        let short = traits.iter().filter_map(|traits| traits.short_answer.clone());
        let labels = counts(short)
            .into_iter()
            .filter(|(_, count)| *count >= 2 && *count as f64 >= LABEL_SHARE * traits.len() as f64);
        Self {
            sentences_are_usual: is_usual(traits.iter().filter_map(|traits| traits.sentence).collect(), SENTENCES),
            json_is_usual: is_usual(traits.iter().map(|traits| traits.json).collect(), HABIT),
            label_is_usual: is_usual(traits.iter().map(|traits| traits.label).collect(), HABIT),
            system_is_usual: is_usual(traits.iter().filter_map(|traits| traits.system).collect(), HABIT),
            usual_edge: habit(traits.iter().filter_map(|traits| traits.edge)),
            usual_prompt_end: habit(traits.iter().filter_map(|traits| traits.prompt_end.clone())),
            usual_script: habit(traits.iter().filter_map(|traits| traits.script)),
            usual_language,
            common_words: if usual_language.is_some() { frequent(sample()) } else { HashSet::new() },
            labels: labels.map(|(answer, _)| answer).collect(),
        }
    }

    /// Whether so many rows have this answer that it is one of a few to choose from.
    pub(super) fn is_label(&self, answer: &str) -> bool {
        self.labels.iter().any(|label| label == answer)
    }
}

/// The most frequent words of texts.
fn frequent<'a>(texts: impl Iterator<Item = &'a str>) -> HashSet<String> {
    let mut counted: Vec<(String, usize)> =
        counts(texts.flat_map(|text| words(text).collect::<Vec<_>>())).into_iter().collect();
    counted.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counted.into_iter().take(COMMON_WORDS).map(|(word, _)| word).collect()
}

fn counts<T: Eq + Hash>(values: impl Iterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts
}

/// The value that nearly all have; `None` where there is none, or too few to tell.
fn habit<T: Eq + Hash>(values: impl Iterator<Item = T>) -> Option<T> {
    let counts = counts(values);
    let total: usize = counts.values().sum();
    counts
        .into_iter()
        .find(|(_, count)| total >= MIN_ROWS && *count as f64 >= HABIT * total as f64)
        .map(|(value, _)| value)
}
