//! The modules of a base that can carry a low-rank pair, and whether an adapter's pairs fit them.

use std::collections::BTreeMap;

use super::spec::existing;
use crate::error::{Error, Result};
use crate::model::{ModelConfig, Site};

/// Whether every module is one of `base`, with the given sizes of input and output.
pub(super) fn check_sizes<'a>(
    place: &str,
    modules: impl Iterator<Item = (&'a str, (usize, usize))>,
    base: &ModelConfig,
) -> Result<()> {
    let shapes = module_shapes(base);
    let mut errors = Vec::new();
    for (module, (from, to)) in modules {
        match shapes.get(module) {
            None => errors.push(unknown_module(place, module, base)),
            Some(&(input, output)) if (input, output) != (from, to) => {
                let message =
                    format!("is for a projection from {from} to {to} values; the base's goes from {input} to {output}");
                errors.push(Error::input(format_args!("{place}: {module}"), message));
            }
            Some(_) => {}
        }
    }
    match Error::join(errors) {
        None => Ok(()),
        Some(error) => Err(error.hint("is this the base that the adapter was trained on?")),
    }
}

/// Every module that can carry a pair, with its input and output size. The head counts even where it is tied.
pub(super) fn module_shapes(base: &ModelConfig) -> BTreeMap<String, (usize, usize)> {
    base.all_sites().into_iter().map(|(_, site)| (site.module, (site.columns, site.rows))).collect()
}

fn unknown_module(place: &str, module: &str, base: &ModelConfig) -> Error {
    let last = base.layers.saturating_sub(1);
    let sites: Vec<Site> = base.all_sites().into_iter().map(|(_, site)| site).collect();
    Error::input(
        format_args!("{place}: {module}"),
        format!("the base has no such module; it has layers 0 to {last} with {}", existing(&sites).join(", ")),
    )
}

/// Whether every tensor is one of `base` that can be trained as a whole, with its shape.
pub(super) fn check_whole<'a>(
    place: &str,
    tensors: impl Iterator<Item = (&'a str, &'a [usize])>,
    base: &ModelConfig,
) -> Result<()> {
    let known = base.whole_tensors();
    let mut errors = Vec::new();
    for (name, shape) in tensors {
        let place = format!("{place}: tensor {name}");
        match known.get(name) {
            None => errors.push(Error::input(place, "is none of the base that can be trained as a whole")),
            Some(own) if own.shape != shape => {
                errors.push(Error::input(place, format!("has shape {shape:?}; the base's has {:?}", own.shape)));
            }
            Some(_) => {}
        }
    }
    Error::none_of(errors, ())
}
