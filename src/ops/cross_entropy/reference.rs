//! The definition of correct for [`cross_entropy`](super::cross_entropy()).

use burn::tensor::{DType, Int, Tensor, TensorData, activation};

use super::{Prediction, Targets, capped};
use crate::ops::linear::{Projected, linear, reference::project};

/// See [`cross_entropy`](super::cross_entropy()).
pub fn cross_entropy(
    hidden: Tensor<2>,
    head: &Projected<'_>,
    targets: &Targets,
    softcap: Option<f32>,
    smoothing: f32,
) -> Tensor<2> {
    let all = log_probabilities(hidden, head, targets, softcap);
    let loss = of_targets(all.clone(), targets).neg();
    match smoothing {
        0.0 => loss,
        share => loss.mul_scalar(1.0 - share) - all.mean_dim(1).mul_scalar(share),
    }
}

/// See [`predictions`](super::predictions).
pub fn predictions(
    hidden: Tensor<2>,
    head: &Projected<'_>,
    targets: &Targets,
    softcap: Option<f32>,
) -> Vec<Prediction> {
    let all = log_probabilities(hidden, head, targets, softcap);
    let values = |tensor: Tensor<2>| tensor.into_data().iter::<f32>().collect::<Vec<f32>>();
    let (largest, targets) = (values(all.clone().max_dim(1)), values(of_targets(all, targets)));
    let pairs = targets.iter().zip(largest);
    pairs.map(|(target, largest)| Prediction { loss: -target, is_likeliest: *target >= largest }).collect()
}

/// `[targets, vocabulary]`.
fn log_probabilities(hidden: Tensor<2>, head: &Projected<'_>, targets: &Targets, softcap: Option<f32>) -> Tensor<2> {
    let rows: Vec<u32> = targets.iter().map(|&(row, _)| row).collect();
    let indices = Tensor::<1, Int>::from_data(
        TensorData::new(rows.iter().map(|&row| row as i32).collect::<Vec<_>>(), [rows.len()]),
        &hidden.device(),
    );
    let picked = hidden.select(0, indices);
    // With a factor on each logit there is no dropout, which alone depends on the rows, and `linear` keeps the weight packed.
    let logits = match head.column_scale {
        Some(_) => linear(picked, std::slice::from_ref(head), None),
        None => project(picked, head, &rows),
    };
    let logits = logits.cast(DType::F32);
    activation::log_softmax(capped(logits, softcap), 1)
}

/// The value of each target in its row, `[targets, 1]`.
fn of_targets(values: Tensor<2>, targets: &Targets) -> Tensor<2> {
    let ids: Vec<i32> = targets.iter().map(|&(_, id)| id as i32).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [targets.len(), 1]), &values.device());
    values.gather(1, ids)
}
