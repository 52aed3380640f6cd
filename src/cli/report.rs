//! `burnish report`: pages, tables and files of other tools, from run folders alone.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::Global;
use super::terminal::Terminal;
use crate::error::{Error, Place, Result, counted};
use crate::files::atomic;
use crate::report::compare::compare;
use crate::report::confusion::confusion;
use crate::report::sentence::sentence;
use crate::report::table::Table;
use crate::report::trainer_state::trainer_state;
use crate::report::{PAGE_FILE, RunFiles, page, tensorboard};

/// Make the page of a run, or compare runs, from their folders
#[derive(Debug, Args)]
#[command(after_help = "One run gets its report.html again; several are compared, the best first, as a table or with \
                        `--format html --out FILE` as a page. docs/reports.md explains what stands in it.")]
pub(super) struct Arguments {
    /// The folders of the runs
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The form of the report [default: html for one run, text for several]
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Format>,
    /// Write to this new file instead of the run folder (html) or stdout (the others)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace e-mail addresses, phone numbers, accounts and keys in the report by placeholders such as [EMAIL]
    #[arg(long)]
    redact: bool,
    /// Write TensorBoard's event files into this folder, those of each of several runs into a folder of its name
    #[arg(long, value_name = "DIR", conflicts_with_all = ["format", "out"])]
    tensorboard: Option<PathBuf>,
}

/// The form of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A page that opens offline
    Html,
    /// The verdict, or a table
    Text,
    /// One object
    Json,
    /// A line for each step of one run, or for each of several runs
    Csv,
    /// The trainer_state.json that transformers would have written, of one run
    TrainerState,
}

pub(super) fn run(arguments: &Arguments, global: &Global, terminal: &Terminal) -> Result<()> {
    let Arguments { runs: paths, format, out, redact, tensorboard: events } = arguments;
    let read = paths.iter().map(|path| RunFiles::read(path));
    let (runs, errors): (Vec<_>, Vec<_>) = read.partition(Result::is_ok);
    let mut runs: Vec<RunFiles> = Error::none_of(errors.into_iter().filter_map(Result::err).collect(), runs)?
        .into_iter()
        .filter_map(Result::ok)
        .collect();
    tell_apart(&mut runs);
    if *redact {
        let count: usize = runs.iter_mut().map(RunFiles::redact).sum();
        terminal.message(format!("{} replaced; names and postal addresses are not found", counted(count, "secret")));
    }
    if let Some(out) = out {
        atomic::check_new(Place::argument("--out"), out)?;
    }
    for run in &runs {
        run.missing.iter().for_each(|text| terminal.message(format!("{}: {text}", run.path.display())));
    }
    if let Some(folder) = events {
        return write_events(&runs, folder, terminal);
    }
    let usual = match (global.json, &runs[..]) {
        (true, _) => Format::Json,
        (false, [_]) => Format::Html,
        (false, _) => Format::Text,
    };
    let text = match (format.unwrap_or(usual), &runs[..]) {
        (Format::Html, [run]) => {
            let path = out.clone().unwrap_or_else(|| run.path.join(PAGE_FILE));
            return write_page(&path, &page::of_runs(&runs), terminal);
        }
        (Format::Html, _) => {
            let error = Error::input(Place::argument("--out"), "is needed for the page of several runs");
            let path = out.as_ref().ok_or_else(|| error.hint("as `--out comparison.html`"))?;
            return write_page(path, &page::of_runs(&runs), terminal);
        }
        (Format::Text, [run]) => text_of(run),
        (Format::Text, _) => compare(&runs).to_string(),
        (Format::Json, [run]) => json_of(run).to_string(),
        (Format::Json, _) => json!(compare(&runs)).to_string(),
        (Format::Csv, [run]) => steps(run).csv(),
        (Format::Csv, _) => compare(&runs).table().csv(),
        (Format::TrainerState, [run]) => format!("{:#}", trainer_state(run)),
        (Format::TrainerState, _) => {
            return Err(Error::input(Place::argument("--format"), "trainer-state is the form of one run"));
        }
    };
    match out {
        Some(path) => {
            atomic::write_bytes(path, format!("{}\n", text.trim_end()).as_bytes())?;
            terminal.message(path.display());
            Ok(())
        }
        None => terminal.line(text.trim_end()),
    }
}

/// Gives runs of the same name the names of their folders as they were typed.
fn tell_apart(runs: &mut [RunFiles]) {
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    for run in runs {
        if names.iter().filter(|name| **name == run.name).count() > 1 {
            run.name = run.path.display().to_string();
        }
    }
}

fn write_page(path: &Path, page: &str, terminal: &Terminal) -> Result<()> {
    atomic::write_bytes(path, page.as_bytes())?;
    if terminal.is_json() {
        terminal.json(&json!({ "page": path }))
    } else {
        terminal.line(&path.display().to_string())
    }
}

fn write_events(runs: &[RunFiles], folder: &Path, terminal: &Terminal) -> Result<()> {
    let mut written = Vec::new();
    for run in runs {
        let folder = if runs.len() == 1 { folder.to_owned() } else { folder.join(run.name.replace(['/', '\\'], "-")) };
        written.push(folder.join(tensorboard::write(run, &folder)?));
    }
    if terminal.is_json() {
        return terminal.json(&json!({ "events": written }));
    }
    written.iter().try_for_each(|path| terminal.line(&path.display().to_string()))
}

/// The verdict of a run, and the fact sheet below it.
fn text_of(run: &RunFiles) -> String {
    let comparison = compare(std::slice::from_ref(run));
    let labels = confusion(run).map_or_else(String::new, |table| format!("\n{table}"));
    format!("{} ({})\n{}\n\n{}{labels}", run.name, run.state.name(), sentence(run).text, comparison.table())
}

fn json_of(run: &RunFiles) -> serde_json::Value {
    let row = compare(std::slice::from_ref(run)).runs.remove(0);
    json!({
        "name": run.name, "state": run.state.name(), "sentence": sentence(run).text, "summary": row,
        "record": run.record.value, "details": run.details.value, "missing": run.missing,
    })
}

/// A line for each step, its evaluation and its timing beside it.
fn steps(run: &RunFiles) -> Table {
    let mut keys: Vec<String> = Vec::new();
    let mut rows: std::collections::BTreeMap<u64, serde_json::Map<String, serde_json::Value>> = Default::default();
    for line in run.metrics.values().chain(run.timings.values()) {
        let Some(step) = line["step"].as_u64() else { continue };
        for (key, value) in line.as_object().into_iter().flatten().filter(|(key, _)| *key != "step") {
            if !keys.contains(key) {
                keys.push(key.clone());
            }
            rows.entry(step).or_default().insert(key.clone(), value.clone());
        }
    }
    let names: Vec<&str> = std::iter::once("step").chain(keys.iter().map(String::as_str)).collect();
    let mut table = Table::new(&names);
    for (step, row) in rows {
        let cell = |key: &String| match row.get(key) {
            None | Some(serde_json::Value::Null) => String::new(),
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        };
        table.add(std::iter::once(step.to_string()).chain(keys.iter().map(cell)).collect());
    }
    table
}
