//! `burnish inspect`: what a base, an adapter or a run folder is.

use clap::Args;

use super::progress::Downloads;
use super::terminal::Terminal;
use crate::error::Result;
use crate::{inspect, pull};

/// Say what a base model, GGUF file, adapter or run folder is
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A folder, a .gguf file, or the name of a base model
    path: String,
}

pub(super) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let mut downloads = Downloads::new(terminal);
    let path = pull::resolve(&arguments.path, &mut |event| downloads.show(event))?;
    terminal.result(&inspect::inspect(&path)?)
}
