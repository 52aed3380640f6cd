//! The definition of correct for [`cross_entropy`](super::cross_entropy()).

use burn::tensor::{DType, Int, Tensor, TensorData, activation};

use super::{Targets, capped};
use crate::ops::linear::{Projected, reference::project};

/// See [`cross_entropy`](super::cross_entropy()).
pub fn cross_entropy(
    hidden: Tensor<2>,
    head: &Projected<'_>,
    targets: &Targets,
    softcap: Option<f32>,
    smoothing: f32,
) -> Tensor<2> {
    let device = hidden.device();
    let indices = |values: Vec<i32>| {
        let count = values.len();
        Tensor::<1, Int>::from_data(TensorData::new(values, [count]), &device)
    };
    let rows: Vec<u32> = targets.iter().map(|&(row, _)| row).collect();
    let picked = hidden.select(0, indices(rows.iter().map(|&row| row as i32).collect()));
    let ids = indices(targets.iter().map(|&(_, id)| id as i32).collect());
    let logits = project(picked, head, &rows).cast(DType::F32);
    let log_probabilities = activation::log_softmax(capped(logits, softcap), 1);
    let of_targets = log_probabilities.clone().gather(1, ids.reshape([targets.len() as i32, 1])).neg();
    match smoothing {
        0.0 => of_targets,
        share => of_targets.mul_scalar(1.0 - share) - log_probabilities.mean_dim(1).mul_scalar(share),
    }
}
