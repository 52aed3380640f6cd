//! `burnish completions`, `burnish man` and `burnish schema`: files for shells, manuals and editors.

use std::path::{Path, PathBuf};

use clap::Args;
use clap_complete::Shell;

use super::terminal::Terminal;
use crate::error::{Error, Result};
use crate::files::atomic;
use crate::recipe;

/// Print the completions of a shell, as in `burnish completions bash > ~/.local/share/bash-completion/completions/burnish`
#[derive(Debug, Args)]
pub(super) struct CompletionsArguments {
    /// The shell
    shell: Shell,
}

pub(super) fn completions(arguments: &CompletionsArguments, terminal: &Terminal) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut super::command(), "burnish", &mut text);
    terminal.print(&String::from_utf8_lossy(&text))
}

/// Write the manual pages of all commands into a folder, as in `burnish man ~/.local/share/man/man1`
#[derive(Debug, Args)]
pub(super) struct ManArguments {
    /// The folder; it is made where it is missing, and pages of the same names are replaced
    folder: PathBuf,
}

pub(super) fn man(arguments: &ManArguments, terminal: &Terminal) -> Result<()> {
    std::fs::create_dir_all(&arguments.folder).map_err(|error| Error::write(&arguments.folder, &error))?;
    let mut command = super::command();
    command.build();
    let pages = write_pages(&command, "burnish", &arguments.folder)?;
    terminal.message(format_args!("{pages} pages in {}", arguments.folder.display()));
    Ok(())
}

/// Writes the page of a command and those of its own commands; their number.
fn write_pages(command: &clap::Command, name: &str, folder: &Path) -> Result<usize> {
    let path = folder.join(format!("{name}.1"));
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(name)
        .render(&mut page)
        .map_err(|error| Error::write(&path, &error))?;
    atomic::write_bytes(&path, &page)?;
    let mut pages = 1;
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        pages += write_pages(inner, &format!("{name}-{}", inner.get_name()), folder)?;
    }
    Ok(pages)
}

/// Print the JSON Schema of recipes, by which editors complete and check them (`#:schema` at the top of a recipe)
#[derive(Debug, Args)]
pub(super) struct SchemaArguments {}

pub(super) fn schema(terminal: &Terminal) -> Result<()> {
    let text =
        serde_json::to_string_pretty(&recipe::schema()).map_err(|error| Error::failed("schema", error.to_string()))?;
    terminal.print(&(text + "\n"))
}
