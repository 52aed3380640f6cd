//! `burnish eval`: the scores of a model on a data file.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use super::model::Model;
use super::terminal::Terminal;
use crate::data::{self, Columns, Shape};
use crate::error::{Result, printable};
use crate::run::evaluate::{EvalOptions, evaluate};

/// Measure loss and perplexity on a data file, and with --generate exact match and ROUGE-L
#[derive(Debug, Args)]
#[command(after_help = "With an adapter the base is measured too, and the difference gets a 95% interval.")]
pub(super) struct Arguments {
    #[command(flatten)]
    model: Model,
    /// The data file, in any of the shapes that train reads
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Other names of its keys, as `[data.columns]` maps them: prompt=question,completion=answer
    #[arg(long, value_name = "KEY=NAME,...")]
    columns: Option<Columns>,
    /// Answer every example greedily and score the answers
    #[arg(long)]
    generate: bool,
    /// The longest answer, in tokens
    #[arg(long, default_value_t = 128, value_name = "N")]
    max_tokens: usize,
    /// Seed of the resamples behind the interval
    #[arg(long, default_value_t = 0, env = "BURNISH_SEED", value_name = "N")]
    seed: u64,
}

pub(super) fn run(arguments: &Arguments, global: &Global, terminal: &Terminal) -> Result<()> {
    let rows = data::read(&arguments.data, Shape::with_columns(arguments.columns.as_ref()))?;
    let model = arguments.model.load(global, terminal)?;
    let options = EvalOptions {
        generate: arguments.generate,
        max_tokens: arguments.max_tokens,
        seed: arguments.seed,
        quant: model.quant,
    };
    let adapter = model.adapter.as_ref();
    let mut notice = |text: &str| terminal.message(printable(text));
    let report = evaluate(&model.base, &model.decoder, adapter, &rows, &arguments.data, &options, &mut notice)?;
    terminal.result(&report)
}
