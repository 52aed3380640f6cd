//! Tensors on the host.

use burn::tensor::{Tensor, TensorData, Transaction};

/// The values of each matrix, in order. Those of a GPU come in one transfer; those of the processor one by one, each when it is asked
/// for.
///
/// # Shapes
/// - `matrices`: of any shapes, on one device, without autodiff
pub fn on_host(matrices: Vec<Tensor<2>>) -> Box<dyn Iterator<Item = TensorData>> {
    match matrices.first() {
        Some(first) if !super::is_processor(&first.device()) => {
            let all = matrices.into_iter().fold(Transaction::default(), |all, matrix| all.register(matrix));
            Box::new(all.execute().into_iter())
        }
        _ => Box::new(matrices.into_iter().map(Tensor::into_data)),
    }
}
