//! Output to stdout and stderr, and its colour.

use std::env;
use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};

use super::Global;
use crate::error::{Error, Place, Result, printable};

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
    /// The same for the result on stdout.
    colours_result: bool,
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
        let colours_result = colour && (global.color == Colour::Always || io::stdout().is_terminal());
        let (json, quiet, verbose) = (global.json, global.quiet, global.verbose > 0);
        Self { json, quiet, verbose, colour, colours_result, is_terminal }
    }

    /// Whether the result is one JSON object.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Whether the result has colours.
    pub(super) fn colours_result(&self) -> bool {
        self.colours_result
    }

    /// A line on stdout, beside the result.
    ///
    /// # Errors
    /// Those of [`Self::result`].
    pub(super) fn line(&self, text: &str) -> Result<()> {
        line(text)
    }

    /// Text to stdout at once, as it comes. A terminal gets no character that would control it. A reader that has gone away
    /// ends the program quietly.
    ///
    /// # Errors
    /// Those of [`Self::result`].
    pub(super) fn print(&self, text: &str) -> Result<()> {
        let text = if io::stdout().is_terminal() { printable(text) } else { text.into() };
        match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
            Err(error) => Err(Error::failed("stdout", format!("cannot be written: {error}"))),
            Ok(()) => Ok(()),
        }
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

    /// Every problem, on stderr; as one JSON object on stdout, too, where the result would be one.
    pub(super) fn error(&self, error: &Error) {
        if self.json && !HAS_RESULT.load(Ordering::Relaxed) {
            // The text on stderr says it all the same.
            let _ = line(&error_object(error).to_string());
        }
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
        let text = serde_json::to_string(result).map_err(|error| Error::failed("stdout", error.to_string()))?;
        HAS_RESULT.store(true, Ordering::Relaxed);
        line(&text)
    }
}

/// Whether an object is printed already: there is one, and no more.
static HAS_RESULT: AtomicBool = AtomicBool::new(false);

/// The problems of an error as one object.
pub(super) fn error_object(error: &Error) -> Value {
    let problems = error.problems().iter().map(|problem| {
        let (file, line, column) = match &problem.place {
            Place::File { path, line, column } => (Some(path.display().to_string()), *line, *column),
            _ => (None, None, None),
        };
        let place = problem.place.to_string();
        json!({ "place": place, "file": file, "line": line, "column": column, "message": problem.message, "hint": problem.hint })
    });
    json!({ "errors": problems.collect::<Vec<Value>>(), "exit_code": error.exit_code() })
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
