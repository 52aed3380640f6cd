//! Limits: which values of a setting are accepted, and the words for them in messages and in the reference.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Which values of a type are accepted.
pub(crate) struct Limit<T> {
    /// For the message and the reference: `1 to 100`.
    pub(crate) expected: String,
    pub(crate) accepts: Box<dyn Fn(&T) -> bool>,
}

impl<T> Limit<T> {
    pub(crate) fn new(expected: impl Into<String>, accepts: impl Fn(&T) -> bool + 'static) -> Self {
        Self { expected: expected.into(), accepts: Box::new(accepts) }
    }
}

/// Whatever the type holds.
pub(crate) fn any<T>() -> Limit<T> {
    Limit::new("", |_| true)
}

/// From the first to the last, both included. NaN is in no range.
pub(crate) fn between<T: PartialOrd + Display + 'static>(range: RangeInclusive<T>) -> Limit<T> {
    Limit::new(format!("{} to {}", range.start(), range.end()), move |value| range.contains(value))
}

/// Above `low`, up to `high`.
pub(crate) fn above(low: f64, high: f64) -> Limit<f64> {
    Limit::new(format!("above {low}, up to {high}"), move |value| *value > low && *value <= high)
}

/// From `low` to below `high`.
pub(crate) fn below(low: f64, high: f64) -> Limit<f64> {
    Limit::new(format!("{low} to below {high}"), move |value| *value >= low && *value < high)
}

/// `limit` where there is a value.
pub(crate) fn optional<T: 'static>(limit: Limit<T>) -> Limit<Option<T>> {
    let accepts = limit.accepts;
    Limit::new(limit.expected, move |value: &Option<T>| value.as_ref().is_none_or(&accepts))
}

/// Not the empty string or list.
pub(crate) fn not_empty<T: IsEmpty>() -> Limit<T> {
    Limit::new("something not empty", |value: &T| !value.is_empty())
}

/// A type with an empty value.
pub(crate) trait IsEmpty {
    fn is_empty(&self) -> bool;
}

impl IsEmpty for String {
    fn is_empty(&self) -> bool {
        self.trim().is_empty()
    }
}

impl IsEmpty for PathBuf {
    fn is_empty(&self) -> bool {
        self.as_os_str().is_empty()
    }
}

impl<T> IsEmpty for Vec<T> {
    fn is_empty(&self) -> bool {
        Vec::is_empty(self)
    }
}

/// `a, b or c`.
pub(crate) fn one_of(words: &[&str]) -> String {
    match words {
        [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}
