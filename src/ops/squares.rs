//! The sum of the squares of many vectors.

use burn::tensor::Tensor;

/// `Σ x²` over all values of all vectors, which lie on one device: summed in f64 on the processor; elsewhere each vector in f32
/// where it lies, and the sums in f64.
pub fn sum_of_squares(vectors: Vec<Tensor<1>>) -> f64 {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    if vectors.first().is_some_and(|vector| !super::is_processor(&vector.device())) {
        return super::cube::optimiser::square_sums(vectors).into_iter().map(f64::from).sum();
    }
    let of_one = |vector: Tensor<1>| vector.into_data().iter::<f64>().map(|value| value * value).sum::<f64>();
    vectors.into_iter().map(of_one).sum()
}
