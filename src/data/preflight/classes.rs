//! Findings about texts with labels: labels that say nothing, rare ones, and ones that only the validation data has.

use std::collections::BTreeMap;

use super::catalogue::Code;
use super::findings::Collector;
use super::view::View;

/// The examples of the most frequent label for each of the rarest one, from which on the labels are out of balance.
const IMBALANCE: usize = 10;

/// The number of examples of each label.
pub(super) fn counts<'a>(views: &[View<'a>]) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for label in views.iter().filter_map(|view| view.class) {
        *counts.entry(label).or_default() += 1;
    }
    counts
}

/// Adds the findings about the labels of a file.
pub(super) fn findings(views: &[View<'_>], found: &mut Collector) {
    let counts = counts(views);
    let by_count = |(_, count): &(&&str, &usize)| **count;
    let (Some(rarest), Some(most)) = (counts.iter().min_by_key(by_count), counts.iter().max_by_key(by_count)) else {
        return;
    };
    if counts.len() == 1 && *most.1 > 1 {
        found.whole(Code::OneLabel, format!("`{}`", most.0));
    } else if *most.1 >= IMBALANCE * rarest.1 {
        found.whole(Code::RareLabel, format!("{} of `{}`, {} of `{}`", rarest.1, rarest.0, most.1, most.0));
    }
}

/// Adds the validation rows whose label no training row has.
pub(super) fn unseen(train: &[View<'_>], valid: &[View<'_>], found: &mut Collector) {
    let known = counts(train);
    for view in valid {
        if let Some(label) = view.class.filter(|label| !known.contains_key(label)) {
            found.row(Code::UnseenLabel, format!("`{label}`"), view.position);
        }
    }
}
