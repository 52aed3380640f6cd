//! `burnish explain`: the meaning of the findings of `burnish check`.

use std::fmt;

use clap::Args;
use serde::Serialize;

use super::terminal::Terminal;
use crate::data::preflight::catalogue::{Code, Entry, Severity};
use crate::error::Result;

/// Explain a finding of `check`: what it means, why it matters and what to do; without a code, list them all
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The code of the finding, as D101
    code: Option<Code>,
}

/// The texts of some codes.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Explanations(Vec<Explanation>);

#[derive(Debug, Serialize)]
struct Explanation {
    code: &'static str,
    severity: Severity,
    finding: &'static str,
    why: &'static str,
    remedy: &'static str,
}

impl Explanation {
    fn of(code: Code) -> Self {
        let Entry { code, severity, title, why, remedy } = *code.entry();
        Self { code, severity, finding: title, why, remedy }
    }
}

impl fmt::Display for Explanations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [Explanation { code, severity, finding, why, remedy }] => {
                write!(f, "{code} ({}): {finding}\n\nWhy it matters: {why}\n\nWhat to do: {remedy}", severity.name())
            }
            all => {
                let lines: Vec<String> = all
                    .iter()
                    .map(|one| format!("{}  {:<7}  {}", one.code, one.severity.name(), one.finding))
                    .collect();
                f.write_str(&lines.join("\n"))
            }
        }
    }
}

pub(super) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let codes = arguments.code.map_or_else(|| Code::ALL.to_vec(), |code| vec![code]);
    terminal.result(&Explanations(codes.into_iter().map(Explanation::of).collect()))
}
