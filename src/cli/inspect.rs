//! `burnish inspect`: reports what a file or folder is, without fetching anything; or what a model does inside with a prompt.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::Global;
use super::prompts;
use super::terminal::Terminal;
use super::train::TrainProgress;
use crate::error::{Error, Place, Result};
use crate::files::atomic;
use crate::inspect;
use crate::pull::{self, Presence};
use crate::report::page;
use crate::run::inside::{Inside, InsideOptions, look_inside};
use crate::run::model::ModelChoice;

/// Report the kind and the facts of a base model, GGUF file, adapter, run folder, data file or recipe
#[derive(Debug, Args)]
#[command(
    after_help = "With --attention the path is a base, and the result a page: where each head of a layer looks while the model reads \
                        the prompt, with the adapter beside it. docs/inspecting.md explains it."
)]
pub(super) struct Arguments {
    /// A folder, a .gguf file, a data file, a recipe, or the name of a base model
    path: String,
    /// Look into the base while it reads this prompt: a text, @FILE for the text of a file, - for stdin
    #[arg(long, value_name = "PROMPT", requires = "layer")]
    attention: Option<String>,
    /// The layer whose attention is shown, from 0
    #[arg(long, value_name = "N", requires = "attention")]
    layer: Option<usize>,
    /// Show the likeliest next tokens after every layer, too (logit lens)
    #[arg(long, requires = "attention")]
    lens: bool,
    /// An adapter folder in PEFT's format, to compare with the base
    #[arg(long, value_name = "DIR", requires = "attention")]
    adapter: Option<PathBuf>,
    /// Use the prompt as typed, without the chat template; control tokens that it spells are control tokens
    #[arg(long, requires = "attention")]
    raw: bool,
    /// The new file of the page
    #[arg(long, value_name = "FILE", requires = "attention")]
    out: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, global: &Global, terminal: &Terminal) -> Result<()> {
    if let (Some(prompt), Some(layer)) = (&arguments.attention, arguments.layer) {
        return inside(arguments, prompt, layer, global, terminal);
    }
    match pull::look_up(&arguments.path)? {
        Presence::Here(path) => terminal.result(&inspect::inspect(&path)?),
        Presence::Fetchable(what) => {
            let error = Error::input(format!("`{}`", arguments.path), "is not on this machine");
            Err(error.hint(format!("`burnish pull {}` fetches {what}", arguments.path)))
        }
    }
}

/// Looks into a model, and writes the page.
fn inside(arguments: &Arguments, prompt: &str, layer: usize, global: &Global, terminal: &Terminal) -> Result<()> {
    let Arguments { path, lens, adapter, raw, out, .. } = arguments;
    match out {
        Some(out) => atomic::check_new(Place::argument("--out"), out)?,
        None if !terminal.is_json() => {
            let error = Error::input(Place::argument("--out"), "is missing: the result is a page");
            return Err(error.hint("as `--out attention.html`, or `--json` for the numbers"));
        }
        None => {}
    }
    let options = InsideOptions { prompt: prompts::of_argument(prompt)?, raw: *raw, layer, lens: *lens };
    let choice = ModelChoice { adapter: adapter.clone(), ..ModelChoice::base(path.clone()) };
    let model = choice.load(&global.device, &mut TrainProgress::new(terminal))?;
    let found = look_inside(&model, &options)?;
    if let Some(out) = out {
        atomic::write_bytes(out, page_of(&found).as_bytes())?;
        terminal.message(out.display());
    }
    terminal.result(&found)
}

fn page_of(found: &Inside) -> String {
    let mut data = json!(found);
    data["program"] = json!(page::PROGRAM);
    page::of_inside(&format!("Layer {}", found.layer), &found.to_string(), &data)
}
