//! Goes on with a run that was stopped or killed: `cargo run --release --example resume -- recipes/quickstart.toml`.
#![allow(clippy::print_stdout, reason = "an example prints its result")]

use std::path::Path;

use burnish::Result;
use burnish::recipe::Recipe;
use burnish::run::outcome::TrainReport;
use burnish::run::resume::Start;
use burnish::run::train::{RunOptions, train};

/// Goes on from the newest checkpoint in the recipe's `output.dir`, as if nothing had happened.
pub fn go_on(recipe: &Path) -> Result<TrainReport> {
    let recipe = Recipe::load(recipe, &[])?;
    // No change of data, base or settings is accepted; more epochs are none.
    let options = RunOptions { start: Start::Resumed(&[]), ..RunOptions::default() };
    train(&recipe, &options, &mut ())
}

fn main() -> Result<()> {
    let recipe = std::env::args().nth(1).unwrap_or_else(|| "recipes/quickstart.toml".to_owned());
    println!("{}", go_on(Path::new(&recipe))?);
    Ok(())
}
