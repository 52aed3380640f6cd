//! `burnish import`: a recipe from another program's configuration.

use std::path::PathBuf;

use clap::Args;

use super::terminal::Terminal;
use crate::error::{Error, Result, counted};
use crate::files::atomic;
use crate::import::{Imported, Tool, import};

/// Write a recipe from a configuration of axolotl, LLaMA-Factory, Unsloth, mlx-lm, PEFT or TRL: every key becomes a setting, or
/// a comment that says why it has no equal
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The configuration: YAML, JSON, or a script in Python, which is read and not run
    file: PathBuf,
    /// The program that it belongs to [default: told by its keys]
    #[arg(long, value_enum, value_name = "TOOL")]
    from: Option<Tool>,
    /// The recipe to write; it must not exist [default: printed]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let Arguments { file, from, out } = arguments;
    if let Some(out) = out.as_ref().filter(|out| out.exists()) {
        return Err(Error::input(out, "exists").hint("give another name with --out"));
    }
    let imported = import(file, *from)?;
    if let Some(out) = out {
        atomic::write_bytes(out, imported.recipe.as_bytes())?;
    }
    let Imported { tool, carried_over, left_out, recipe } = &imported;
    let of_them = left_out.len();
    terminal.message(format_args!(
        "{tool}: {} carried over, {of_them} without an equal, each named at the end of the recipe",
        counted(*carried_over, "setting")
    ));
    match (terminal.is_json(), out) {
        (true, _) => terminal.json(&imported),
        (false, None) => terminal.print(recipe),
        (false, Some(out)) => {
            terminal.message(format_args!("{}: `burnish check {0}`, then `burnish train {0}`", out.display()));
            Ok(())
        }
    }
}
