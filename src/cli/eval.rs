//! `burnish eval`: the scores of a model on a data file.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use super::model::Model;
use super::terminal::Terminal;
use super::train::TrainProgress;
use crate::data::{Columns, LongPolicy};
use crate::error::Result;
use crate::eval::text::Extractor;
use crate::run::evaluate::{EvalData, EvalOptions, evaluate};
use crate::run::outcome::Requirement;

/// Measure a model on a data file: loss and token accuracy, with --generate the answers; multiple choice, preferences, labels
#[derive(Debug, Args)]
#[command(
    after_help = "With an adapter the base is measured too, and every difference gets a 95% interval. A JSONL file \
                        with `choices` and `answer` is multiple choice, answered by likelihood; pairs of preferences are compared by \
                        likelihood; a classifier gives labels to texts. docs/evaluation.md \
                        explains the figures."
)]
pub(super) struct Arguments {
    #[command(flatten)]
    model: Model,
    /// The data file, in any of the shapes that train reads, or with `choices` and `answer`
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Other names of its keys, as `[data.columns]` maps them: prompt=question,completion=answer
    #[arg(long, value_name = "KEY=NAME,...")]
    columns: Option<Columns>,
    /// The rows are texts with labels: which of the file's labels is the likeliest after this text, in which {text} stands for that of the
    /// row
    #[arg(long, value_name = "TEXT", conflicts_with = "generate")]
    label_prompt: Option<String>,
    /// Answer every example greedily: exact match, ROUGE-L, and calls of tools by name and arguments
    #[arg(long)]
    generate: bool,
    /// The longest answer, in tokens
    #[arg(long, default_value_t = 128, value_name = "N")]
    max_tokens: usize,
    /// Exact match compares what the first group of this regular expression finds in the reference and in the answer
    #[arg(long, value_name = "REGEX", requires = "generate")]
    extract: Option<String>,
    /// Write an object for each example, with prompt, answers and scores, to a new JSONL file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Give the figures by the values of this key or column of the rows, too
    #[arg(long, value_name = "FIELD")]
    by: Option<String>,
    /// Measure the first N rows only
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// The longest sequence, in tokens [default: the positions of the model]
    #[arg(long, value_name = "N")]
    max_seq_tokens: Option<usize>,
    /// The treatment of longer examples [default: drop with --max-seq-tokens, otherwise error]
    #[arg(long, value_enum, value_name = "POLICY")]
    overlong: Option<LongPolicy>,
    /// Seed of the resamples behind the interval
    #[arg(long, default_value_t = 0, env = "BURNISH_SEED", value_name = "N")]
    seed: u64,
    /// Exit with code 1 unless the verdict suffices
    #[arg(long, value_enum, value_name = "VERDICT", requires = "adapter")]
    require: Option<Requirement>,
}

pub(super) fn run(arguments: &Arguments, global: &Global, terminal: &Terminal) -> Result<()> {
    let by_length = if arguments.max_seq_tokens.is_some() { LongPolicy::Drop } else { LongPolicy::Error };
    let options = EvalOptions {
        generate: arguments.generate,
        max_tokens: arguments.max_tokens,
        extract: arguments.extract.as_deref().map(Extractor::new).transpose()?,
        by: arguments.by.clone(),
        columns: arguments.columns.clone(),
        classifies: arguments.model.is_classifier(),
        label_prompt: arguments.label_prompt.clone(),
        limit: arguments.limit,
        max_seq_tokens: arguments.max_seq_tokens,
        overlong: arguments.overlong.unwrap_or(by_length),
        out: arguments.out.clone(),
        seed: arguments.seed,
    };
    let data = EvalData::read(&arguments.data, &options)?;
    let model = arguments.model.load(global, terminal)?;
    let report = evaluate(&model, &data, &options, &mut TrainProgress::new(terminal))?;
    terminal.result(&report)?;
    arguments.require.map_or(Ok(()), |required| report.check(required))
}
