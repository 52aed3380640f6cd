//! `burnish check`: every problem with a recipe, its base and its data, and the findings about the data.

use std::path::Path;

use clap::Args;

use super::terminal::Terminal;
use super::train::{self, TrainProgress};
use super::{Ending, Global};
use crate::error::{Error, Place, Result, printable};
use crate::recipe::Recipe;
use crate::run::check::{CheckOptions, Report, Shown, check, check_file};
use crate::run::memorisation::{MemorisationOptions, check_memorisation};
use crate::run::watch::Watch;
use crate::train::Ranks;
use crate::train::parallel::launch;

/// Find every problem with a recipe, its base and its data, before it is trained
#[derive(Debug, Args)]
#[command(
    after_help = "The path may also be a data file: its texts are checked, and with --base its tokens. Exit code 2 means that \
                        the run would be worthless or would not start. `burnish explain` lists the findings."
)]
pub(super) struct Arguments {
    #[command(flatten)]
    job: train::Arguments,
    /// Check a data file for this base, without a recipe
    #[arg(long, value_name = "BASE")]
    base: Option<String>,
    /// Show training example N as the model sees it, the trained part in colour or in double brackets
    #[arg(long, value_name = "N")]
    show: Option<usize>,
    /// Load the weights and time a few steps, to estimate how long the run takes
    #[arg(long)]
    time: bool,
    /// The path is the folder of a finished run: measure what it remembers of its training examples
    #[arg(long, conflicts_with_all = ["base", "show", "time", "set", "from_adapter"])]
    memorisation: bool,
    /// The most training and validation examples that are compared
    #[arg(long, requires = "memorisation", default_value_t = 200, value_name = "N")]
    examples: usize,
    /// The made-up secrets among which each canary is ranked
    #[arg(long, requires = "memorisation", default_value_t = 500, value_name = "N")]
    alternatives: usize,
}

/// The endings of data files.
const DATA: [&str; 7] = ["jsonl", "json", "csv", "tsv", "parquet", "gz", "zst"];

impl Arguments {
    /// The data file or folder, where the path names one instead of a recipe.
    fn data_file(&self) -> Option<&Path> {
        let path = self.job.path();
        if path.is_dir() {
            return Some(path);
        }
        let ending = path.extension()?.to_str()?;
        DATA.iter().any(|data| data.eq_ignore_ascii_case(ending)).then_some(path)
    }

    /// The recipe: that of the path, or one for the data file and the base.
    fn recipe(&self) -> Result<Recipe> {
        match (self.data_file(), &self.base) {
            (Some(data), Some(base)) => {
                let quoted = |text: &str| toml::Value::String(text.to_owned());
                let data = data.display().to_string();
                let text = format!(
                    "[base]\nmodel = {}\n[data]\ntrain = {}\n[output]\ndir = \"adapter\"\n",
                    quoted(base),
                    quoted(&data)
                );
                Recipe::parse(&text, &data, self.job.overrides().as_slice())
            }
            (None, Some(_)) => {
                Err(Error::input(Place::argument("--base"), "goes with a data file; a recipe names its base"))
            }
            _ => self.job.recipe(),
        }
    }
}

pub(super) fn run(arguments: &Arguments, global: &Global, terminal: &Terminal) -> Result<Ending> {
    if arguments.memorisation {
        let options =
            MemorisationOptions { examples: arguments.examples, alternatives: arguments.alternatives }.check()?;
        let watch = &mut TrainProgress::new(terminal);
        let report = check_memorisation(arguments.job.path(), &global.device, options, watch)?;
        terminal.result(&report)?;
        return Ok(Ending::Done);
    }
    let report = match arguments.data_file() {
        Some(file) if arguments.base.is_none() => {
            if let Some(option) = arguments.show.map(|_| "--show").or(arguments.time.then_some("--time")) {
                return Err(Error::input(Place::argument(option), "needs a base")
                    .hint("name one with --base, or check a recipe"));
            }
            check_file(file)?
        }
        _ if arguments.time => return run_among_ranks(arguments, global, terminal),
        _ => check_recipe(arguments, global, &arguments.recipe()?, None, &mut TrainProgress::new(terminal))?,
    };
    show(&report, terminal)?;
    Ok(ending(&report))
}

/// Checks a recipe and times its steps, with the processes that a launcher has started together.
fn run_among_ranks(arguments: &Arguments, global: &Global, terminal: &Terminal) -> Result<Ending> {
    let recipe = arguments.recipe()?;
    let on_loss = *terminal;
    let ranks = launch::join(&recipe.plan()?.parallel, move |error| on_loss.error(error))?;
    let report = match ranks.is_first() {
        true => {
            let progress = &mut TrainProgress::new(terminal);
            let report = check_recipe(arguments, global, &recipe, Some(&*ranks), progress)?;
            show(&report, terminal)?;
            report
        }
        false => check_recipe(arguments, global, &recipe, Some(&*ranks), &mut ())?,
    };
    ranks.leave();
    Ok(ending(&report))
}

fn check_recipe(
    arguments: &Arguments,
    global: &Global,
    recipe: &Recipe,
    time: Option<&dyn Ranks>,
    watch: &mut dyn Watch,
) -> Result<Report> {
    let options = CheckOptions { show: arguments.show, time };
    check(recipe, &global.device, arguments.job.max_memory, options, watch)
}

fn ending(report: &Report) -> Ending {
    if report.is_worthless() { Ending::Unfit } else { Ending::Done }
}

fn show(report: &Report, terminal: &Terminal) -> Result<()> {
    terminal.result(report)?;
    match &report.shown {
        Some(example) if !terminal.is_json() => terminal.line(&rendered(example, terminal.colours_result())),
        _ => Ok(()),
    }
}

/// The example with its trained parts in green, or in double brackets.
fn rendered(example: &Shown, colour: bool) -> String {
    let (open, close) = if colour { ("\x1b[32m", "\x1b[0m") } else { ("[[", "]]") };
    let legend = format!("{open}trained{close}");
    let mut text = format!("example {} ({}), {} tokens, {legend}:\n", example.number, example.place, example.tokens);
    for part in &example.parts {
        let shown = printable(&part.text);
        text += &if part.trained { format!("{open}{shown}{close}") } else { shown.into_owned() };
    }
    text
}
