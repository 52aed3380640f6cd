//! `burnish inspect`: reports what a file or folder is, without fetching anything.

use clap::Args;

use super::terminal::Terminal;
use crate::error::{Error, Result};
use crate::inspect;
use crate::pull::{self, Presence};

/// Report the kind and the facts of a base model, GGUF file, adapter, run folder, data file or recipe
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A folder, a .gguf file, a data file, a recipe, or the name of a base model
    path: String,
}

pub(super) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    match pull::look_up(&arguments.path)? {
        Presence::Here(path) => terminal.result(&inspect::inspect(&path)?),
        Presence::Fetchable(what) => {
            let error = Error::input(format!("`{}`", arguments.path), "is not on this machine");
            Err(error.hint(format!("`burnish pull {}` fetches {what}", arguments.path)))
        }
    }
}
