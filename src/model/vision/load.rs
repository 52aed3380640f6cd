//! The weights of tower and connector, each put where the device wants it.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device};

use crate::error::Result;
use crate::model::base::BaseFiles;
use crate::model::load::{LoadOptions, dtype};
use crate::model::place::Placing;
use crate::nn::{Norm, NormKind, Projection};
use crate::ops::frozen::FrozenWeight;

/// Reads weights of a base, which have been checked when it was opened.
pub(super) struct Loader<'a> {
    pub(super) base: &'a BaseFiles,
    pub(super) options: &'a LoadOptions,
    /// The numbers of the modules among those of the model, by their paths.
    pub(super) numbers: BTreeMap<String, usize>,
}

impl<'a> Loader<'a> {
    pub(super) fn new(base: &'a BaseFiles, options: &'a LoadOptions) -> Self {
        let modules = base.config().modules().into_iter().enumerate();
        let numbers = modules.filter(|(_, module)| module.kind.is_of_vision());
        Self { base, options, numbers: numbers.map(|(number, module)| (module.module, number)).collect() }
    }

    /// The number of a module.
    pub(super) fn number(&self, module: &str) -> usize {
        self.numbers.get(module).copied().unwrap_or(usize::MAX)
    }

    pub(super) fn device(&self) -> &Device {
        &self.options.device
    }

    pub(super) fn compute(&self) -> DType {
        dtype(self.options.compute)
    }

    pub(super) fn vector(&self, name: &str) -> Result<Vec<f32>> {
        self.base.tensor(name)?.to_f32()
    }

    /// A matrix of `[rows, columns]`, whatever shape the file gives its columns. Quantisation leaves it as it is.
    pub(super) fn matrix(&self, name: &str, [rows, columns]: [usize; 2]) -> Result<FrozenWeight> {
        let place = format!("{}: tensor {name}", self.base.path().display());
        let placing = Placing { place: &place, is_projection: false, options: self.options };
        placing.weight(self.base.weight(name)?, rows, columns)
    }

    pub(super) fn linear(&self, module: &str, shape: [usize; 2], bias: bool) -> Result<Projection> {
        Ok(Projection {
            weight: self.matrix(&format!("{module}.weight"), shape)?,
            bias: bias.then(|| self.vector(&format!("{module}.bias"))).transpose()?,
            site: self.number(module),
        })
    }

    pub(super) fn norm(&self, module: &str, eps: f64) -> Result<Norm> {
        Ok(Norm {
            kind: NormKind::Layer,
            weight: self.vector(&format!("{module}.weight"))?,
            offset: 0.0,
            bias: Some(self.vector(&format!("{module}.bias"))?),
            eps,
            number: self.number(module),
        })
    }
}
