//! `burnish combine`: several adapters as one.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::terminal::Terminal;
use crate::adapter::combine::{CombineOptions, Majority, Method};
use crate::error::Result;
use crate::run::combine::{CombineReport, combine};

/// Combine several adapters of one base into one
#[derive(Debug, Args)]
#[command(
    after_help = "The methods are PEFT's (add_weighted_adapter). `cat` is the exact weighted sum of the updates; \
                        `svd` brings it down to a rank."
)]
pub(super) struct Arguments {
    /// Adapter folders in PEFT's format
    #[arg(required = true, value_name = "ADAPTER")]
    adapters: Vec<PathBuf>,
    /// A weight for each adapter, as 0.7,0.3; negative ones subtract [default: equal weights with the sum 1]
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, value_name = "WEIGHTS")]
    weights: Vec<f64>,
    /// The method
    #[arg(long, value_enum, default_value_t = Method::Cat, value_name = "METHOD")]
    method: Method,
    /// The share of values that ties, dare, dare-ties and magnitude-prune keep [default: 0.5]
    #[arg(long, value_name = "SHARE")]
    density: Option<f64>,
    /// The vote of ties and dare-ties on the sign of a value
    #[arg(long, value_enum, default_value_t = Majority::Total, value_name = "VOTE")]
    majority: Majority,
    /// The rank that svd brings the sum down to [default: the largest of the adapters']
    #[arg(long, value_name = "RANK", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    rank: Option<u32>,
    /// Decides which values dare and dare-ties drop
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    seed: u64,
    /// The folder to write; it must not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Serialize)]
struct Combined {
    out: PathBuf,
    #[serde(flatten)]
    report: CombineReport,
}

pub(super) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let count = arguments.adapters.len();
    let weights =
        if arguments.weights.is_empty() { vec![1.0 / count as f64; count] } else { arguments.weights.clone() };
    let options = CombineOptions {
        method: arguments.method,
        weights,
        density: arguments.density,
        majority: arguments.majority,
        rank: arguments.rank.map(|rank| rank as usize),
        seed: arguments.seed,
    };
    let report = combine(&arguments.adapters, &arguments.out, &options)?;
    report.notices.iter().for_each(|notice| terminal.message(notice));
    terminal.result(&Combined { out: arguments.out.clone(), report })
}

impl fmt::Display for Combined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CombineReport { modules, rank, parameters, .. } = &self.report;
        write!(f, "{}: {modules} modules, rank {rank}, {parameters} parameters", self.out.display())
    }
}
