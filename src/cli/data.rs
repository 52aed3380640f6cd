//! `burnish data`: work on data files.

use std::fmt;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::terminal::Terminal;
use crate::data;
use crate::data::preflight::clean::{Cleaned, Copies, Redacted, Removed, clean};
use crate::error::{Error, Place, Result, counted};
use crate::files::atomic;

/// Work on data files
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Clean(CleanArguments),
}

/// Write data files without copies of rows and without secrets, as `check` proposes
#[derive(Debug, Args)]
struct CleanArguments {
    /// Data files of any kind that train reads; their rows are written as JSONL, one after the other
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Remove rows that are copies of an earlier one
    #[arg(long, value_enum, value_name = "KIND", num_args = 0..=1, require_equals = true, default_missing_value = "exact")]
    dedupe: Option<Copies>,
    /// Replace e-mail addresses, phone numbers, accounts and keys by placeholders such as [EMAIL]
    #[arg(long)]
    redact: bool,
    /// The file to write, which must not exist yet
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Lines that are named one by one.
const MAX_NAMED: usize = 20;

/// The outcome of `clean`.
#[derive(Debug, Serialize)]
struct Written {
    out: PathBuf,
    rows_read: usize,
    rows_written: usize,
    removed: Vec<Removed>,
    redacted: Vec<Redacted>,
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (removed, redacted) = (&self.removed, &self.redacted);
        write!(f, "{}: {} of {} rows", self.out.display(), self.rows_written, self.rows_read)?;
        if !removed.is_empty() {
            write!(f, "\nremoved {}:", counted(removed.len(), "row"))?;
            for Removed { file, line, code, kept_file, kept_line } in removed.iter().take(MAX_NAMED) {
                write!(f, "\n  {file}:{line}  {code}, as {kept_file}:{kept_line}")?;
            }
            more(f, removed.len())?;
        }
        if !redacted.is_empty() {
            write!(f, "\nreplaced secrets in {}:", counted(redacted.len(), "line"))?;
            for Redacted { file, line, secrets } in redacted.iter().take(MAX_NAMED) {
                let kinds: Vec<String> = secrets.iter().map(|(code, count)| format!("{count} {code}")).collect();
                write!(f, "\n  {file}:{line}  {}", kinds.join(", "))?;
            }
            more(f, redacted.len())?;
        }
        Ok(())
    }
}

fn more(f: &mut fmt::Formatter<'_>, count: usize) -> fmt::Result {
    match count.checked_sub(MAX_NAMED) {
        None | Some(0) => Ok(()),
        Some(more) => write!(f, "\n  and {more} more; --json names them all"),
    }
}

pub(super) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let Command::Clean(arguments) = &arguments.command;
    let CleanArguments { files, dedupe, redact, out } = arguments;
    if dedupe.is_none() && !redact {
        let error = Error::input(Place::argument("--dedupe, --redact"), "are both missing: there is nothing to do");
        return Err(error.hint("`burnish check FILE` says which of them the file needs"));
    }
    if out.symlink_metadata().is_ok() {
        return Err(Error::input(out.display(), "exists already").hint("choose another --out, or remove it"));
    }
    let (mut read_files, mut errors) = (Vec::new(), Vec::new());
    for path in files {
        data::lines(path).map_or_else(|error| errors.push(error), |file| read_files.push(file));
    }
    Error::none_of(errors, ())?;
    let Cleaned { bytes, rows, removed, redacted } = clean(&read_files, *dedupe, *redact)?;
    atomic::write_bytes(out, &bytes)?;
    let rows_written = rows - removed.len();
    terminal.result(&Written { out: out.clone(), rows_read: rows, rows_written, removed, redacted })
}
