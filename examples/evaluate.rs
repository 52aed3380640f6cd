//! Measures an adapter against its base: `cargo run --release --example evaluate -- BASE ADAPTER DATA`.
#![allow(clippy::print_stdout, reason = "an example prints its result")]

use std::path::Path;

use burnish::Result;
use burnish::device::DeviceChoice;
use burnish::run::evaluate::{EvalData, EvalOptions, EvalReport, evaluate};
use burnish::run::model::ModelChoice;

/// Losses, greedy answers and their scores, those of the base beside them.
pub fn measure(base: &str, adapter: &Path, data: &Path) -> Result<EvalReport> {
    let options = EvalOptions { generate: true, max_tokens: 32, ..EvalOptions::default() };
    let data = EvalData::read(data, &options)?;
    let model = ModelChoice::base(base).with_adapter(adapter).load(&DeviceChoice::default(), &mut ())?;
    evaluate(&model, &data, &options, &mut ())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base, adapter, data] = arguments.as_slice() else {
        println!("usage: evaluate BASE ADAPTER DATA");
        return Ok(());
    };
    println!("{}", measure(base, Path::new(adapter), Path::new(data))?);
    Ok(())
}
