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
    losses(log_probabilities(hidden, head, targets, softcap), targets, smoothing)
}

/// See [`trained_cross_entropy`](super::trained_cross_entropy).
pub fn trained_cross_entropy(
    hidden: Tensor<2>,
    head: Tensor<2>,
    targets: &Targets,
    softcap: Option<f32>,
    smoothing: f32,
) -> Tensor<2> {
    losses(trained_log_probabilities(hidden, head, targets, softcap), targets, smoothing)
}

/// The loss of each target from the logarithms of all probabilities.
fn losses(all: Tensor<2>, targets: &Targets, smoothing: f32) -> Tensor<2> {
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
    predicted(log_probabilities(hidden, head, targets, softcap), targets)
}

/// See [`trained_predictions`](super::trained_predictions).
pub fn trained_predictions(
    hidden: Tensor<2>,
    head: Tensor<2>,
    targets: &Targets,
    softcap: Option<f32>,
) -> Vec<Prediction> {
    predicted(trained_log_probabilities(hidden, head, targets, softcap), targets)
}

fn predicted(all: Tensor<2>, targets: &Targets) -> Vec<Prediction> {
    let values = |tensor: Tensor<2>| tensor.into_data().iter::<f32>().collect::<Vec<f32>>();
    let (largest, targets) = (values(all.clone().max_dim(1)), values(of_targets(all, targets)));
    let pairs = targets.iter().zip(largest);
    pairs.map(|(target, largest)| Prediction { loss: -target, is_likeliest: *target >= largest }).collect()
}

/// `[targets, vocabulary]`.
fn log_probabilities(hidden: Tensor<2>, head: &Projected<'_>, targets: &Targets, softcap: Option<f32>) -> Tensor<2> {
    let rows: Vec<u32> = targets.iter().map(|&(row, _)| row).collect();
    let picked = rows_of_targets(hidden, targets);
    // With a factor on each logit there is no dropout, which alone depends on the rows, and `linear` keeps the weight packed.
    let logits = match head.column_scale {
        Some(_) => linear(picked, std::slice::from_ref(head), None),
        None => project(picked, head, &rows),
    };
    let logits = logits.cast(DType::F32);
    activation::log_softmax(capped(logits, softcap), 1)
}

/// The logarithms of all probabilities at each target, by a trained head.
///
/// # Shapes
/// - `hidden`: `[tokens, width]`
/// - `head`: `[vocabulary, width]` in f32
/// - output: `[targets, vocabulary]` in f32
pub fn trained_log_probabilities(
    hidden: Tensor<2>,
    head: Tensor<2>,
    targets: &Targets,
    softcap: Option<f32>,
) -> Tensor<2> {
    let logits = rows_of_targets(hidden, targets).cast(DType::F32).matmul(head.transpose());
    activation::log_softmax(capped(logits, softcap), 1)
}

/// The hidden states that the targets are predicted from, `[targets, width]`.
fn rows_of_targets(hidden: Tensor<2>, targets: &Targets) -> Tensor<2> {
    let rows: Vec<i32> = targets.iter().map(|&(row, _)| row as i32).collect();
    let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [targets.len()]), &hidden.device());
    hidden.select(0, rows)
}

/// The value of each target in its row, `[targets, 1]`.
fn of_targets(values: Tensor<2>, targets: &Targets) -> Tensor<2> {
    let ids: Vec<i32> = targets.iter().map(|&(_, id)| id as i32).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [targets.len(), 1]), &values.device());
    values.gather(1, ids)
}
