//! Causal attention over sequences laid end to end, with a hand-written backward pass: batched products by Burn, and kernels
//! for the steps between them.
//!
//! Sequences of about the same length go through together, padded on the right to the longest of them. No token sees what
//! stands right of it, so the padding needs no mask; it is zeros, and its results are never read.

mod heads;
mod pieces;
mod scores;

use burn::tensor::{DType, Tensor};
use burn_backend::ops::FloatTensorOps;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};

use super::autograd::{apply, dims, empty};
use crate::ops::attention::Geometry;
use heads::{Heads, Rotation};
use pieces::{Piece, pieces};

/// See [`attention`](crate::ops::attention::attention()).
pub fn attention(qkv: Tensor<2>, lengths: &[usize], geometry: &Geometry) -> Tensor<2> {
    let long_above = geometry.rope.as_ref().map_or(usize::MAX, |rope| rope.long_above());
    let device = qkv.device().inner();
    let pieces = pieces(lengths, long_above, &device);
    let geometry = geometry.clone();
    apply(qkv, |qkv| {
        let [tokens, width] = dims(&qkv);
        let y = empty(&qkv, [tokens, geometry.heads * geometry.head_dim], qkv.dtype);
        let mut saved = Vec::with_capacity(pieces.len());
        for piece in pieces.iter() {
            let rotation = Rotation::of(piece, &geometry, &device);
            let heads = Heads::split(&qkv, piece, &rotation, &geometry);
            let weights = scores::softmax(scores(&heads), &geometry, qkv.dtype);
            heads::join_output(product(&weights, &heads.values), piece, &geometry, &y);
            saved.push((rotation, heads, weights));
        }
        let dtype = qkv.dtype;
        let backward = move |gradient: CubeTensor| {
            let result = empty(&gradient, [tokens, width], dtype);
            for (piece, (rotation, heads, weights)) in pieces.iter().zip(saved) {
                let gradients = piece_gradients(&gradient, piece, &heads, weights, &geometry);
                heads::join_gradients(gradients, piece, &rotation, &geometry, &result);
            }
            result
        };
        (y, backward)
    })
}

/// `q·kᵀ`, `[sequences · heads, length, length]` in f32.
fn scores(heads: &Heads) -> CubeTensor {
    product(&heads.queries, &transposed(&heads.keys))
}

/// The gradients of queries, keys and values as they went into the products.
fn piece_gradients(
    gradient: &CubeTensor,
    piece: &Piece,
    heads: &Heads,
    weights: CubeTensor,
    geometry: &Geometry,
) -> [CubeTensor; 3] {
    let gradient = heads::split_gradient(gradient, piece, geometry, heads.queries.dtype);
    let d_values = product(&transposed(&weights), &gradient);
    let d_weights = product(&gradient, &transposed(&heads.values));
    // The slope of the cap depends on the scores, which are made again.
    let raw = geometry.softcap.map(|_| scores(heads));
    let d_scores = scores::gradient(weights, d_weights, raw, geometry);
    [product(&d_scores, &heads.keys), product(&transposed(&d_scores), &heads.queries), d_values]
}

/// Batched product of `[batch, m, k]` and `[batch, k, n]` in f32.
fn product(left: &CubeTensor, right: &CubeTensor) -> CubeTensor {
    let product = matmul(left.clone(), right.clone(), None, MatmulStrategy::default(), DType::F32);
    into_contiguous(product.expect("the shapes fit"))
}

fn transposed(tensor: &CubeTensor) -> CubeTensor {
    CubeBackend::float_swap_dims(tensor.clone(), 1, 2)
}
