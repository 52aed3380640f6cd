//! A base without files, of made-up values: for memory plans and timings of models that are not on this machine.

use std::path::PathBuf;

use super::{BaseFiles, Source};
use crate::files::{Bytes, Dtype, RawTensor};
use crate::model::config::ModelConfig;
use crate::quant::float;

/// Values that repeat. A prime, so that no two rows of a usual width are the same.
const PERIOD: usize = 65_521;
/// The standard deviation that weights usually begin with.
const SCALE: f32 = 0.02;

impl BaseFiles {
    /// A base of this shape in bf16, whose values mean nothing.
    pub fn synthetic(config: ModelConfig) -> Self {
        Self::of(PathBuf::new(), config, Source::Synthetic)
    }
}

/// The bytes of a tensor.
pub(super) fn bytes(shape: &[usize]) -> usize {
    2 * shape.iter().product::<usize>()
}

/// A tensor: ones for a norm or a bias, for a matrix small values of both signs.
pub(super) fn tensor(shape: &[usize]) -> RawTensor {
    let bytes = match shape {
        [_] => float::encode_bf16(&vec![1.0; shape[0]]),
        _ => {
            let unit = |index: usize| (index * 40_503 % PERIOD) as f32 / PERIOD as f32 - 0.5;
            let period: Vec<f32> = (0..PERIOD).map(|index| 2.0 * 3f32.sqrt() * SCALE * unit(index)).collect();
            let mut bytes = float::encode_bf16(&period);
            let wanted = self::bytes(shape);
            while bytes.len() < wanted {
                bytes.extend_from_within(..bytes.len().min(wanted - bytes.len()));
            }
            bytes.truncate(wanted);
            bytes
        }
    };
    RawTensor { dtype: Dtype::Bf16, shape: shape.to_vec(), bytes: Bytes::from(bytes) }
}
