//! `burnish predict`: the labels of texts by a classifier.

use std::io::{self, Read};
use std::path::PathBuf;

use clap::Args;

use super::Global;
use super::model::Model;
use super::terminal::Terminal;
use super::train::TrainProgress;
use crate::data::{Columns, LongPolicy};
use crate::error::{Error, Result, counted};
use crate::run::predict::{PredictOptions, Texts, predict, write};

/// The most bytes of texts from stdin.
const MAX_STDIN_BYTES: u64 = 1 << 30;

/// Give texts labels, with the probability of each: an object a line
#[derive(Debug, Args)]
#[command(
    after_help = "The adapter is a classifier: one that `train.objective = \"classify\"` made, or PEFT's SEQ_CLS."
)]
pub(super) struct Arguments {
    /// A data file with the key or column `text`, or - for stdin: JSON objects, or a text on each line
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    model: Model,
    /// Another name of the key, as `[data.columns]` maps it: text=message
    #[arg(long, value_name = "KEY=NAME,...")]
    columns: Option<Columns>,
    /// Write the objects to a new JSONL file instead of stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The longest text, in tokens [default: the positions of the model]
    #[arg(long, value_name = "N")]
    max_seq_tokens: Option<usize>,
    /// Cut the beginning of longer texts, which are an error otherwise
    #[arg(long)]
    truncate: bool,
}

pub(super) fn run(arguments: &Arguments, global: &Global, terminal: &Terminal) -> Result<()> {
    let options = PredictOptions {
        columns: arguments.columns.clone(),
        max_seq_tokens: arguments.max_seq_tokens,
        overlong: if arguments.truncate { LongPolicy::TruncatePrompt } else { LongPolicy::Error },
        out: arguments.out.clone(),
    };
    let texts = match arguments.file.as_os_str() == "-" {
        true => Texts::parse(&read_stdin()?, "stdin", &options)?,
        false => Texts::read(&arguments.file, &options)?,
    };
    let model = arguments.model.load(global, terminal)?;
    let predictions = predict(&model, &texts, &options, &mut TrainProgress::new(terminal))?;
    if let Some(out) = &options.out {
        write(&predictions, out)?;
        terminal.message(format!("{}: {}", out.display(), counted(predictions.len(), "text")));
        return Ok(());
    }
    predictions.iter().try_for_each(|prediction| terminal.json(prediction))
}

fn read_stdin() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = io::stdin().lock().take(MAX_STDIN_BYTES).read_to_end(&mut bytes);
    read.map_err(|error| Error::input("stdin", format!("cannot be read: {error}")))?;
    Ok(bytes)
}
