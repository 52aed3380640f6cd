//! `burnish recipes`: the recipes that come with the program.

use std::fmt;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::terminal::Terminal;
use crate::error::{Error, Place, Result};
use crate::recipe::shipped::{SHIPPED, Shipped};

/// List the recipes that come with burnish, or print one
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the names, and what each is for
    List,
    /// Print a recipe, as in `burnish recipes show wikisql > my.toml`
    Show {
        /// The name of the recipe
        name: String,
    },
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Listed(Vec<Entry>);

#[derive(Debug, Serialize)]
struct Entry {
    name: &'static str,
    about: String,
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(|Entry { name, about }| format!("{name:<18}{about}")).collect();
        f.write_str(&lines.join("\n"))
    }
}

pub(super) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    match &arguments.action {
        Action::List => {
            let entries = SHIPPED.iter().map(|shipped| Entry { name: shipped.name, about: shipped.about() });
            terminal.result(&Listed(entries.collect()))
        }
        Action::Show { name } => {
            let found = SHIPPED.iter().find(|shipped| shipped.name == name.trim_end_matches(".toml"));
            let Shipped { text, .. } = found.ok_or_else(|| {
                let names: Vec<&str> = SHIPPED.iter().map(|shipped| shipped.name).collect();
                Error::input(Place::argument("NAME"), format!("there is no recipe `{name}`"))
                    .hint(format!("there are {}", names.join(", ")))
            })?;
            terminal.print(text)
        }
    }
}
