//! The kinds of findings: a code, a severity, and the texts that every report and page about it is made of.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

pub use super::codes::Code;

/// The weight of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The run would be worthless, or would not start.
    Error,
    /// The data teaches something that hardly anybody wants to teach.
    Warning,
    /// A fact to know, which may be as it should be.
    Note,
}

impl Severity {
    /// The severity in a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// The texts of a code.
#[derive(Debug)]
pub struct Entry {
    /// The code as it is printed: a letter and three digits.
    pub code: &'static str,
    /// The weight of such findings.
    pub severity: Severity,
    /// The finding, as a clause without a full stop.
    pub title: &'static str,
    /// The harm that it does.
    pub why: &'static str,
    /// The remedy.
    pub remedy: &'static str,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.entry().code)
    }
}

impl FromStr for Code {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|code| code.entry().code.eq_ignore_ascii_case(text.trim()));
        found.copied().ok_or_else(|| format!("`{text}` is no code of a finding"))
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.entry().code)
    }
}

/// The headings of the page, by the first two characters of the codes below them.
const GROUPS: [(&str, &str); 10] = [
    ("D0", "Preferences and labels"),
    ("D1", "Repeated rows"),
    ("D2", "Validation data"),
    ("D3", "Answers"),
    ("D4", "Text"),
    ("D5", "Markup and tokens"),
    ("D6", "Conversations"),
    ("D7", "Lengths"),
    ("D8", "Personal data and secrets"),
    ("D9", "The run"),
];

/// The codes as Markdown, a table a group: the list in `docs/findings.md`.
pub fn page() -> String {
    let mut page = String::new();
    for (prefix, heading) in GROUPS {
        page += &format!(
            "\n## {heading}\n\n| code | severity | finding | why it matters | what to do |\n|---|---|---|---|---|\n"
        );
        for entry in Code::ALL.iter().map(|code| code.entry()).filter(|entry| entry.code.starts_with(prefix)) {
            let Entry { code, severity, title, why, remedy } = entry;
            page += &format!("| {code} | {} | {title} | {why} | {remedy} |\n", severity.name());
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_in_order_and_in_a_group_each() {
        let codes: Vec<&str> = Code::ALL.iter().map(|code| code.entry().code).collect();
        assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
        assert!(codes.iter().all(|code| code.len() == 4 && GROUPS.iter().any(|(prefix, _)| code.starts_with(prefix))));
        assert!(Code::ALL.iter().all(|code| code.to_string().to_lowercase().parse() == Ok(*code)));
        assert!("D000".parse::<Code>().is_err());
    }

    #[test]
    fn the_texts_are_sentences() {
        for code in Code::ALL {
            let Entry { title, why, remedy, .. } = code.entry();
            assert!(!title.ends_with('.') && why.ends_with('.') && remedy.ends_with('.'), "{code}");
            assert!([title, why, remedy].iter().all(|text| !text.contains(['|', '\n'])), "{code}: a cell ends there");
        }
    }
}
