//! `burnish ui`: the runs of a folder in the browser, live.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::serve::Owner;
use super::terminal::Terminal;
use crate::error::Result;
use crate::interrupt;
use crate::serve::watch_runs;

/// Show the runs of a folder in the browser while they go on, several over one another
#[derive(Debug, Args)]
#[command(after_help = "The page is for this machine alone. It reads the run folders and changes nothing.")]
pub(super) struct Arguments {
    /// A folder with run folders in it, or one of them
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// The port to listen at; 0 takes a free one
    #[arg(long, default_value_t = 8081, env = "BURNISH_UI_PORT", value_name = "PORT")]
    port: u16,
}

pub(super) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let _finishing = interrupt::finish_first("");
    watch_runs(&arguments.folder, SocketAddr::from(([127, 0, 0, 1], arguments.port)), Arc::new(Owner::page(terminal)))
}
