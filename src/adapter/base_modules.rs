//! The modules of a base that can carry a low-rank pair, and whether an adapter's pairs fit them.

use std::collections::BTreeMap;

use super::spec::Target;
use crate::error::{Error, Result};
use crate::model::{ModelConfig, names};

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
    let mut shapes = BTreeMap::from([(Target::LmHead.path(0), (base.hidden_size, base.vocab_size))]);
    for tensor in names::tensors(base) {
        let module = tensor.hf.strip_suffix(".weight");
        let adaptable = module.filter(|module| is_projection(module));
        if let (Some(module), [output, input]) = (adaptable, tensor.shape.as_slice()) {
            shapes.insert(module.to_owned(), (*input, *output));
        }
    }
    shapes
}

/// Whether a module's last segment names a projection.
fn is_projection(module: &str) -> bool {
    module.rsplit('.').next().is_some_and(|name| name.parse::<Target>().is_ok())
}

fn unknown_module(place: &str, module: &str, base: &ModelConfig) -> Error {
    let last = base.layers.saturating_sub(1);
    let projections: Vec<&str> = Target::ALL.iter().map(|target| target.name()).collect();
    Error::input(
        format_args!("{place}: {module}"),
        format!("the base has no such module; it has layers 0 to {last} with {}", projections.join(", ")),
    )
}
