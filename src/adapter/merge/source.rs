//! The weights that an adapter is added to.

use super::MergeBase;
use crate::error::Result;
use crate::files::RawTensor;
use crate::model::BaseFiles;

/// A base as it is, or as it looked to an adapter that was trained over its packed weights.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The base.
    pub base: &'a BaseFiles,
    /// Its weights or the decoded ones.
    pub weights: MergeBase,
}

impl Source<'_> {
    /// A tensor by its Hugging Face name.
    ///
    /// # Errors
    /// Those of [`BaseFiles::weight`] and of packing.
    pub fn tensor(&self, name: &str) -> Result<RawTensor> {
        let MergeBase::Dequantized(quant) = self.weights else { return self.base.tensor(name) };
        if !self.base.is_projection(name) {
            return self.base.tensor(name);
        }
        let place = format!("{}: tensor {name}", self.base.path().display());
        self.base.weight(name)?.packed(&place, quant)?.into_dense()
    }
}
