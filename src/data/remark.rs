//! Remarks on rows of a data file that are read, but not as their author may think.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::example::Row;
use super::position::{At, Position};
use crate::error::counted;

/// One thing to say about a row. Equal remarks of several rows are said once, with their count.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Remark {
    /// A key, or a column, that nothing reads.
    KeyIgnored {
        /// The key.
        key: String,
    },
    /// The chat template shows nothing of a turn.
    TurnLeftOut {
        /// Its role.
        role: String,
    },
    /// The chat template does not show a key of a turn, or of the row.
    KeyLeftOut {
        /// The role of the turn; `None` for a key of the row.
        role: Option<String>,
        /// The key.
        key: String,
        /// Some of its texts, or a part of its text, are shown.
        partly: bool,
    },
    /// A text of the assistant is shown where no loss is taken.
    KeyNotTrained {
        /// The key of the turn.
        key: String,
    },
    /// Generation begins an answer otherwise than finished conversations show one.
    OtherPrompt {
        /// The end of the generation prompt.
        prompt: String,
        /// The text in its place before a finished answer.
        finished: String,
    },
    /// No loss is ever taken on the turns of a role that is none of the known ones.
    RoleNotTrained {
        /// The role.
        role: String,
    },
    /// A text spells control tokens; they are encoded as ordinary text.
    SpellsControl {
        /// One of them.
        token: String,
        /// The text stands in a conversation, which gets its control tokens from the chat template.
        in_chat: bool,
    },
    /// An answer or completion without a word: only its end is trained.
    EmptyAnswer,
    /// The chat template shows another text than the turn has, beyond white space.
    TextChanged {
        /// The role of the turn.
        role: String,
    },
    /// Not one token of the row is trained.
    NothingTrained,
    /// A turn of the assistant is not trained: the chat template shows it differently once the conversation goes on.
    TurnNotTrained,
    /// The row is left out because of its length.
    TooLong {
        /// The most tokens that fit.
        max: usize,
    },
    /// The start of the prompt is cut off.
    PromptCut {
        /// The tokens that are left.
        max: usize,
    },
}

impl Remark {
    /// The same remark with another spelling of the role that it names.
    pub(in crate::data) fn with_role(mut self, spelled: impl Fn(&str) -> String) -> Self {
        match &mut self {
            Self::TurnLeftOut { role }
            | Self::RoleNotTrained { role }
            | Self::TextChanged { role }
            | Self::KeyLeftOut { role: Some(role), .. } => {
                *role = spelled(role);
            }
            _ => {}
        }
        self
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyIgnored { key } => write!(f, "the key `{key}` is ignored"),
            Self::TurnLeftOut { role } => {
                write!(f, "turns of the role `{role}` are left out: the chat template does not show them")
            }
            Self::KeyLeftOut { role: Some(role), key, partly } => {
                let verb = if *partly { "shows only a part of" } else { "does not show" };
                write!(f, "the chat template {verb} `{key}` of turns of the role `{role}`")
            }
            Self::KeyLeftOut { role: None, key, partly } => {
                let verb = if *partly { "shows only a part of" } else { "does not show" };
                write!(f, "the chat template {verb} `{key}`")
            }
            Self::KeyNotTrained { key } => {
                write!(f, "`{key}` of the assistant's turns is shown outside the answer, and is not trained")
            }
            Self::OtherPrompt { prompt, finished } => {
                write!(
                    f,
                    "the generation prompt of the chat template ends with {prompt:?}, and before a finished answer "
                )?;
                match finished.is_empty() {
                    true => write!(f, "that is missing: answers are learned without it"),
                    false => write!(f, "stands the header {finished:?} in its place"),
                }
            }
            Self::RoleNotTrained { role } => {
                write!(f, "no loss is taken on turns of the role `{role}`")?;
                match likely_role(role) {
                    Some(known) => write!(f, "; did you mean `{known}`?"),
                    None => write!(f, ": only turns of the role `assistant` are trained"),
                }
            }
            Self::SpellsControl { token, in_chat } => {
                write!(f, "the text spells control tokens (`{token}`), which are encoded as ordinary letters")?;
                match in_chat {
                    true => Ok(()),
                    false => write!(
                        f,
                        "; `data.control_tokens = \"tokens\"` trains them as control tokens, and conversations in the shape \
                         {{\"messages\"}} get their own"
                    ),
                }
            }
            Self::EmptyAnswer => write!(f, "the answer is empty: only the end of it is trained"),
            Self::TextChanged { role } => write!(f, "the chat template changes the text of turns of the role `{role}`"),
            Self::NothingTrained => write!(f, "left out: nothing in it is trained"),
            Self::TurnNotTrained => write!(
                f,
                "a turn of the assistant is left out of training: the chat template shows such turns differently once the \
                 conversation goes on"
            ),
            Self::TooLong { max } => write!(f, "left out: longer than {max} tokens"),
            Self::PromptCut { max } => write!(f, "the prompt is cut to {max} tokens"),
        }
    }
}

/// The known role that a misspelt one is nearest to.
fn likely_role(role: &str) -> Option<&'static str> {
    let near = |known: &&str| strsim::damerau_levenshtein(known, &role.to_ascii_lowercase()) <= 2;
    ["system", "user", "assistant", "tool"].into_iter().find(near)
}

/// The most rows that are named one by one in a line of text.
const MAX_NAMED: usize = 3;
/// The most rows of which the positions are kept.
const MAX_KEPT: usize = 10;

/// Remarks with the rows that they are about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remarks {
    rows: BTreeMap<Remark, Rows>,
    /// The rows lie in several files.
    several_files: bool,
}

/// Rows that have something in common.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rows {
    /// Their number.
    pub count: usize,
    /// The first of them.
    pub first: Vec<Position>,
}

impl Remarks {
    /// None yet about these rows. Where they lie in several files, each is named with its own.
    pub fn about(rows: &[Row]) -> Self {
        let several_files = rows.windows(2).any(|pair| pair[0].position.file != pair[1].position.file);
        Self { several_files, ..Self::default() }
    }

    /// Adds what is to be said about the row at `position`; the same remark counts once.
    pub fn add(&mut self, position: &Position, mut remarks: Vec<Remark>) {
        remarks.sort_unstable();
        remarks.dedup();
        for remark in remarks {
            self.rows.entry(remark).or_default().add(position.clone());
        }
    }

    /// Each remark with its rows.
    pub fn iter(&self) -> impl Iterator<Item = (&Remark, &Rows)> {
        self.rows.iter()
    }

    /// One line for each remark, with the number of its rows and the first of them; ignored keys are one line together.
    pub fn lines(&self) -> Vec<String> {
        let ignored = self.rows.iter().filter_map(|(remark, rows)| match remark {
            Remark::KeyIgnored { key } => Some(format!("{key} ({})", counted(rows.count, "row"))),
            _ => None,
        });
        let ignored: Vec<String> = ignored.collect();
        let mut lines = Vec::new();
        if !ignored.is_empty() {
            lines.push(format!("ignored keys: {}", ignored.join(", ")));
        }
        let others = self.rows.iter().filter(|(remark, _)| !matches!(remark, Remark::KeyIgnored { .. }));
        lines.extend(others.map(|(remark, rows)| format!("{remark} ({})", rows.places(self.several_files))));
        lines
    }
}

impl Extend<(Remark, Rows)> for Remarks {
    fn extend<I: IntoIterator<Item = (Remark, Rows)>>(&mut self, rows: I) {
        self.rows.extend(rows);
    }
}

impl Rows {
    /// Adds the next row.
    pub fn add(&mut self, position: Position) {
        self.count += 1;
        if self.first.len() < MAX_KEPT {
            self.first.push(position);
        }
    }

    /// `3 rows: lines 1, 5, 9`; with `several_files`, `3 rows: a.jsonl:1, a.jsonl:5, b.jsonl:9`.
    pub fn places(&self, several_files: bool) -> String {
        let unit = match self.first.first().map(|position| position.at) {
            _ if several_files => "",
            Some(At::Row(_)) => "row",
            _ => "line",
        };
        let name = |position: &Position| match several_files {
            true => position.to_string(),
            false => position.number().to_string(),
        };
        let names: Vec<String> = self.first.iter().take(MAX_NAMED).map(name).collect();
        let plural = if names.len() > 1 && !several_files { "s" } else { "" };
        let more = if self.count > MAX_NAMED { ", …" } else { "" };
        format!("{}: {}{more}", counted(self.count, "row"), format!("{unit}{plural} {}", names.join(", ")).trim_start())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_remarks_are_one_line_with_their_rows() {
        let mut remarks = Remarks::default();
        let ignored = |key: &str| Remark::KeyIgnored { key: key.into() };
        for line in 1..=5 {
            remarks
                .add(&Position::line("d.jsonl", line), vec![ignored("id"), Remark::EmptyAnswer, Remark::EmptyAnswer]);
        }
        remarks.add(
            &Position::line("d.jsonl", 9),
            vec![ignored("history"), Remark::RoleNotTrained { role: "Asistant".into() }],
        );
        assert_eq!(
            remarks.lines(),
            [
                "ignored keys: history (1 row), id (5 rows)",
                "no loss is taken on turns of the role `Asistant`; did you mean `assistant`? (1 row: line 9)",
                "the answer is empty: only the end of it is trained (5 rows: lines 1, 2, 3, …)",
            ]
        );
    }

    #[test]
    fn rows_of_several_files_are_named_with_their_file() {
        let text = crate::data::Example::Text { text: "a".into() };
        let row = |file: &str, line| Row::new(Position::line(file, line), text.clone());
        let rows = [row("a.jsonl", 3), row("b.jsonl", 1)];
        let lines = |about: &[Row]| {
            let mut remarks = Remarks::about(&rows);
            about.iter().for_each(|row| remarks.add(&row.position, vec![Remark::EmptyAnswer]));
            remarks.lines().remove(0)
        };
        assert!(lines(&rows).ends_with("(2 rows: a.jsonl:3, b.jsonl:1)"), "{}", lines(&rows));
        assert!(lines(&rows[1..]).ends_with("(1 row: b.jsonl:1)"), "{}", lines(&rows[1..]));
    }
}
