//! The weights that an adapter is added to.

use super::MergeBase;
use crate::error::Result;
use crate::files::{Dtype, FloatType, RawTensor};
use crate::model::{BaseFiles, StoredWeight, names};

/// A base as it is, or as it looked to an adapter that was trained over its packed weights.
pub(super) struct Source<'a> {
    pub base: &'a BaseFiles,
    pub weights: MergeBase,
}

impl Source<'_> {
    /// A tensor by its Hugging Face name.
    pub fn tensor(&self, name: &str) -> Result<RawTensor> {
        let MergeBase::Dequantized(quant) = self.weights else { return self.base.tensor(name) };
        if !names::is_projection(name) {
            return self.base.tensor(name);
        }
        let place = format!("{}: tensor {name}", self.base.path().display());
        match self.base.weight(name)?.packed(&place, quant)? {
            StoredWeight::Dense(tensor) => Ok(tensor),
            packed => Ok(RawTensor {
                dtype: Dtype::F32,
                shape: packed.shape().to_vec(),
                bytes: FloatType::F32.encode(&packed.to_f32()?).into(),
            }),
        }
    }
}
