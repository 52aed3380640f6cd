//! `burnish sweep`: trials of a recipe with other values, ranked.

use clap::Args;
use serde_json::{Map, Value};

use super::Global;
use super::terminal::Terminal;
use super::train::{self, TrainProgress};
use crate::error::{Result, counted, printable};
use crate::recipe::SweepObjective;
use crate::run::sweep::{SweepEvent, SweepOptions, sweep};

/// Try values of settings, by the section [sweep] of a recipe, and rank them
#[derive(Debug, Args)]
#[command(
    after_help = "Each trial is a run in a folder of its own below the recipe's `output.dir`. Beside them stand sweep.html, a page, \
                        and best.toml, the recipe of the best. docs/sweeps.md explains it."
)]
pub(super) struct Arguments {
    #[command(flatten)]
    job: train::Arguments,
    /// Go on with the sweep in the recipe's folder
    #[arg(long)]
    resume: bool,
    /// Trials that train at once, each on its share of the threads; fewer where memory is short
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    parallel: u16,
    /// The measure that ranks the trials (short for --set sweep.objective=…)
    #[arg(long, value_enum, value_name = "MEASURE")]
    objective: Option<SweepObjective>,
}

pub(super) fn run(arguments: &Arguments, global: &Global, terminal: &Terminal) -> Result<()> {
    let Arguments { job, resume, parallel, objective } = arguments;
    let objective = objective.map(|objective| format!("sweep.objective={objective}"));
    let recipe = job.recipe_with(objective)?;
    let options = SweepOptions {
        device: global.device,
        max_memory: job.max_memory,
        parallel: usize::from(*parallel),
        goes_on: *resume,
    };
    let report = sweep(&recipe, &options, &mut TrainProgress::new(terminal), &mut |event| show(terminal, &event))?;
    terminal.result(&report)
}

/// Shows an event as a line.
fn show(terminal: &Terminal, event: &SweepEvent<'_>) {
    match event {
        SweepEvent::Begins { trials, at_once } => {
            let at_once = if *at_once > 1 { format!(", {at_once} at once") } else { String::new() };
            terminal.message(format_args!("{}{at_once}", counted(*trials, "trial")));
        }
        SweepEvent::Notice(text) => terminal.message(printable(text)),
        SweepEvent::TrialBegins { trial, values, until_step } => {
            let until = until_step.map_or_else(|| "to its end".to_owned(), |step| format!("to step {step}"));
            terminal.message(format_args!("{trial}: {until}, {}", in_words(values)));
        }
        SweepEvent::Evaluated { trial, step, loss } => {
            terminal.detail(|| format!("{trial}: step {step}: validation loss {loss:.4}"));
        }
        SweepEvent::TrialEnds(row) => {
            let loss = row.loss.map_or_else(|| "no loss".to_owned(), |loss| format!("validation loss {loss:.4}"));
            let error = row.error.as_ref().map_or_else(String::new, |error| format!(": {}", printable(error)));
            let (trial, state, steps, total, seconds) = (&row.name, row.state, row.steps, row.total_steps, row.seconds);
            terminal
                .message(format_args!("{trial}: {state} at step {steps} of {total}, {loss}, {seconds:.0} s{error}"));
        }
        SweepEvent::Compared(summary) => terminal.message(format_args!("{}\n{}", summary.table(), summary.sentence)),
    }
}

fn in_words(values: &Map<String, Value>) -> String {
    let words: Vec<String> = values.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    printable(&words.join(", ")).into_owned()
}
