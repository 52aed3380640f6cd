//! Fine-tunes by a recipe: `cargo run --release --example train -- recipes/quickstart.toml`.
#![allow(clippy::print_stdout, reason = "an example prints its result")]

use std::path::Path;

use burnish::Result;
use burnish::recipe::Recipe;
use burnish::run::outcome::TrainReport;
use burnish::run::train::{RunOptions, train};

/// Trains as the recipe says. The best adapter stands in its `output.dir` afterwards.
pub fn fine_tune(recipe: &Path) -> Result<TrainReport> {
    let recipe = Recipe::load(recipe, &[])?;
    // `()` ignores the progress; anything that implements `Watch` can show it.
    train(&recipe, &RunOptions::default(), &mut ())
}

fn main() -> Result<()> {
    let recipe = std::env::args().nth(1).unwrap_or_else(|| "recipes/quickstart.toml".to_owned());
    println!("{}", fine_tune(Path::new(&recipe))?);
    Ok(())
}
