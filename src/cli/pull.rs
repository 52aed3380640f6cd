//! `burnish pull`: gets a base model into the cache.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::progress::Downloads;
use super::terminal::Terminal;
use crate::error::Result;
use crate::pull::{self, Freshness};

/// Fetch a base model into the cache, and print its path
#[derive(Debug, Args)]
#[command(after_help = "Environment: HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE as in Python; \
                        BURNISH_CACHE for what does not come from the hub.")]
pub(super) struct Arguments {
    /// smollm2-135m-instruct, hf:ORG/REPO[@REVISION], hf:ORG/REPO/FILE.gguf, or a path
    name: String,
}

/// The place of the model.
#[derive(Debug, Serialize)]
struct Pulled {
    name: String,
    path: PathBuf,
}

impl fmt::Display for Pulled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

pub(super) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let mut downloads = Downloads::new(terminal);
    let path = pull::resolve_with(&arguments.name, Freshness::Newest, &mut |event| downloads.show(event))?;
    terminal.result(&Pulled { name: arguments.name.clone(), path })
}
