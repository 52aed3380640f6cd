//! `burnish doctor`: the facts about this machine, and a test of the kernels.

use clap::Args;

use super::terminal::Terminal;
use super::{Ending, Global};
use crate::error::Result;
use crate::run::doctor::health;

/// Report what this machine offers: instruction set, memory, cache, devices, and whether its kernels compute rightly
#[derive(Debug, Args)]
pub(super) struct Arguments {}

pub(super) fn run(global: &Global, terminal: &Terminal) -> Result<Ending> {
    let health = health(&global.device)?;
    terminal.result(&health)?;
    Ok(if health.is_good() { Ending::Done } else { Ending::Unfit })
}
