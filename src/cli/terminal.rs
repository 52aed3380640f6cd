//! Output to stdout and stderr, and its colour.

use std::env;
use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;

use super::Global;
use crate::error::{Error, Result};

/// The choice whether stderr is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum Colour {
    /// If it is a terminal, `NO_COLOR` is not set and `TERM` is not `dumb`
    #[default]
    Auto,
    Always,
    Never,
}

/// The amount of output, and its form.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terminal {
    json: bool,
    quiet: bool,
    verbose: bool,
    colour: bool,
    /// Whether stderr is a terminal, for progress bars.
    is_terminal: bool,
}

impl Terminal {
    pub(super) fn new(global: &Global) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
        let colour = match global.color {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto if is_set("NO_COLOR") => false,
            Colour::Auto if is_set("FORCE_COLOR") || is_set("CLICOLOR_FORCE") => true,
            Colour::Auto => is_terminal && env::var_os("TERM").is_none_or(|terminal| terminal != "dumb"),
        };
        Self { json: global.json, quiet: global.quiet, verbose: global.verbose > 0, colour, is_terminal }
    }

    /// Whether progress is shown as a bar rather than as lines.
    pub(super) fn shows_bars(&self) -> bool {
        self.is_terminal && !self.quiet
    }

    /// A line for the user, on stderr.
    pub(super) fn message(&self, text: impl Display) {
        if !self.quiet {
            // A closed stderr leaves no place to report to.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// A warning that licences of the base do not lie beside the weights in `folder`.
    pub(super) fn licences_left_out(&self, folder: &std::path::Path, names: &[String]) {
        for name in names {
            let folder = folder.display();
            self.message(format!("warning: {name} of the base is too large for a licence, and is not in {folder}"));
        }
    }

    /// A line for the user who asked for more of them.
    pub(super) fn detail(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            self.message(text());
        }
    }

    /// Every problem, on stderr.
    pub(super) fn error(&self, error: &Error) {
        let text: Vec<String> = error.paragraphs().iter().map(|paragraph| format!("error: {paragraph}")).collect();
        let text = text.join("\n");
        let text = if self.colour { coloured(&text) } else { text };
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// The result, on stdout: for people, or as one JSON object.
    ///
    /// # Errors
    /// Failed: stdout cannot be written to. A reader that has gone away is no error.
    pub(super) fn result(&self, result: &(impl Display + Serialize)) -> Result<()> {
        match self.json {
            true => self.json(result),
            false => line(&result.to_string()),
        }
    }

    /// One JSON object, on stdout.
    ///
    /// # Errors
    /// Those of [`Self::result`].
    pub(super) fn json(&self, result: &impl Serialize) -> Result<()> {
        line(&serde_json::to_string(result).map_err(|error| Error::failed("stdout", error.to_string()))?)
    }
}

/// A line on stdout.
fn line(text: &str) -> Result<()> {
    match writeln!(io::stdout(), "{text}").and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::failed("stdout", format!("cannot be written: {error}")))
        }
        _ => Ok(()),
    }
}

fn coloured(text: &str) -> String {
    let lines = text.split('\n').map(|line| match (line.strip_prefix("error:"), line.strip_prefix("  hint:")) {
        (Some(rest), _) => format!("\x1b[1;31merror:\x1b[0m{rest}"),
        (_, Some(rest)) => format!("  \x1b[1;36mhint:\x1b[0m{rest}"),
        _ => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}
