//! The language-model head and its loss in one: logits are made for trained positions only, a chunk at a time.
//!
//! `loss = ln Σ_v exp(z_v) − (1 − ε)·z_target − ε·mean_v(z_v)` with `z = cap(logits)` and label smoothing ε (Szegedy et al.
//! 2016), for every target by itself: an objective weighs and sums them.

#[cfg(feature = "cpu")]
mod cpu;
pub mod reference;

use burn::tensor::Tensor;

use super::linear::Projected;

/// Logits that the processor's kernel holds at once, in bytes.
const LOGITS_BYTES: usize = 48 << 20;

/// `(row of the hidden states, token id that it must predict)`.
pub type Targets = [(u32, u32)];

/// Targets whose logits the processor's kernel holds at once, in f32.
pub fn targets_per_chunk(vocabulary: usize) -> usize {
    (LOGITS_BYTES / (vocabulary * size_of::<f32>()).max(1)).clamp(16, 1024)
}

/// The loss of each target, with its gradient.
///
/// # Shapes
/// - `hidden`: `[tokens, width]`
/// - `head`: a weight `[vocabulary, width]`
/// - `softcap`: logits `z` become `cap · tanh(z / cap)` (Gemma 2)
/// - `smoothing`: the share ε of a target that is spread evenly over the vocabulary; 0 for none
/// - output: `[targets, 1]` in f32, in the order of the targets
pub fn cross_entropy(
    hidden: Tensor<2>,
    head: &Projected<'_>,
    targets: &Targets,
    softcap: Option<f32>,
    smoothing: f32,
) -> Tensor<2> {
    #[cfg(feature = "cpu")]
    if has_kernel(head) {
        return cpu::cross_entropy(hidden, head, targets, softcap, smoothing);
    }
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    if super::on_gpu(&hidden) {
        return super::cube::cross_entropy::cross_entropy(hidden, head, targets, softcap, smoothing);
    }
    reference::cross_entropy(hidden, head, targets, softcap, smoothing)
}

/// The prediction of a target.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Prediction {
    /// The value of [`cross_entropy`] without label smoothing.
    pub loss: f32,
    /// No other token has a greater logit.
    pub is_likeliest: bool,
}

/// The values of [`cross_entropy`] without label smoothing, without a gradient.
pub fn predictions(
    hidden: Tensor<2>,
    head: &Projected<'_>,
    targets: &Targets,
    softcap: Option<f32>,
) -> Vec<Prediction> {
    #[cfg(feature = "cpu")]
    if has_kernel(head) {
        return cpu::predictions(hidden, head, targets, softcap);
    }
    let chunks = targets.chunks(targets_per_chunk(head.weight.dims()[0]));
    chunks.flat_map(|targets| reference::predictions(hidden.clone(), head, targets, softcap)).collect()
}

/// Whether the processor's kernel computes the loss of this head. It knows no factors on the logits (DoRA): there the logits of
/// all targets are held at once.
#[cfg(feature = "cpu")]
fn has_kernel(head: &Projected<'_>) -> bool {
    head.weight.matrix().is_some() && head.column_scale.is_none()
}

/// [`cross_entropy`] with a trained head, in plain tensor code on every device: the logits of all targets are held at once.
///
/// # Shapes
/// - `hidden`: `[tokens, width]`
/// - `head`: `[vocabulary, width]` in f32
/// - output: `[targets, 1]` in f32, in the order of the targets
pub fn trained_cross_entropy(
    hidden: Tensor<2>,
    head: Tensor<2>,
    targets: &Targets,
    softcap: Option<f32>,
    smoothing: f32,
) -> Tensor<2> {
    reference::trained_cross_entropy(hidden, head, targets, softcap, smoothing)
}

/// [`predictions`] with a trained head, some targets at a time.
///
/// # Shapes
/// - `hidden`: `[tokens, width]`
/// - `head`: `[vocabulary, width]` in f32
pub fn trained_predictions(
    hidden: Tensor<2>,
    head: Tensor<2>,
    targets: &Targets,
    softcap: Option<f32>,
) -> Vec<Prediction> {
    let chunks = targets.chunks(targets_per_chunk(head.dims()[0]));
    let of_chunk = |targets| reference::trained_predictions(hidden.clone(), head.clone(), targets, softcap);
    chunks.flat_map(of_chunk).collect()
}

/// `cap · tanh(logits / cap)`, or the logits themselves without a cap.
///
/// # Shapes
/// - `logits`, output: `[tokens, vocabulary]`
pub fn capped(logits: Tensor<2>, softcap: Option<f32>) -> Tensor<2> {
    match softcap {
        Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
        None => logits,
    }
}
