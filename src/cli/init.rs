//! `burnish init`: a first recipe for a data file.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use super::terminal::Terminal;
use super::train::TrainProgress;
use crate::error::{Error, Result};
use crate::files::atomic;
use crate::run::init::recipe_for;

/// Write a first recipe for a data file, with comments: its settings follow from the examples and from this machine's memory
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The training examples
    data: PathBuf,
    /// The base: smollm2-135m-instruct, hf:ORG/REPO, a Hugging Face folder or a .gguf file
    #[arg(long, value_name = "BASE", default_value = "smollm2-135m-instruct")]
    base: String,
    /// The recipe to write; it must not exist [default: the name of the data file, in this folder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, global: &Global, terminal: &Terminal) -> Result<()> {
    let name = arguments.data.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let own = format!("{}.toml", name.split('.').next().unwrap_or_default());
    let out = arguments.out.clone().unwrap_or_else(|| own.into());
    if out.exists() {
        return Err(Error::input(&out, "exists").hint("give another name with --out"));
    }
    let mut progress = TrainProgress::new(terminal);
    let text = recipe_for(&arguments.data, &arguments.base, &global.device, &mut progress)?;
    atomic::write_bytes(&out, text.as_bytes())?;
    terminal.message(format_args!("{}: `burnish check {0}`, then `burnish train {0}`", out.display()));
    terminal.print(&text)
}
