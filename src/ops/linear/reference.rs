//! The definition of correct for [`linear`](super::linear()), in plain tensor code that Burn differentiates.

use burn::tensor::{Tensor, TensorData};

use super::{Dropout, Projected};

/// See [`linear`](super::linear()).
pub fn linear(x: Tensor<2>, group: &[Projected<'_>], residual: Option<Tensor<2>>) -> Tensor<2> {
    let rows: Vec<u32> = (0..x.dims()[0] as u32).collect();
    let outputs = group.iter().map(|projected| project(x.clone(), projected, &rows)).collect();
    let y = Tensor::cat(outputs, 1);
    match residual {
        Some(residual) => y + residual,
        None => y,
    }
}

/// `x·Wᵀ + b + s·(drop(x)·Aᵀ)·Bᵀ` where the rows of `x` are these `rows` of the tensor that dropout counts its elements in.
///
/// # Shapes
/// - `x`: `[rows, in]`
/// - output: `[rows, out]`
pub(in crate::ops) fn project(x: Tensor<2>, projected: &Projected<'_>, rows: &[u32]) -> Tensor<2> {
    let device = x.device();
    let mut y = projected.weight.times_transposed(x.clone());
    if let Some(bias) = projected.bias {
        let bias = Tensor::<1>::from_data(TensorData::from(bias), &device).cast(x.dtype());
        y = y + bias.unsqueeze();
    }
    if let Some(pair) = &projected.low_rank {
        let input = match pair.dropout {
            Some(dropout) => drop(x, dropout, rows),
            None => x,
        };
        let dtype = input.dtype();
        let low = input.matmul(pair.a.clone().cast(dtype).transpose()).mul_scalar(pair.scale);
        y = y + low.matmul(pair.b.clone().cast(dtype).transpose());
    }
    y
}

fn drop(x: Tensor<2>, dropout: Dropout, rows: &[u32]) -> Tensor<2> {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    if crate::ops::on_gpu(&x) {
        return crate::ops::cube::dropout::dropped(x, dropout, rows);
    }
    let width = x.dims()[1];
    let of_row = |row: u32| (0..width as u64).map(move |column| dropout.factor(u64::from(row) * width as u64 + column));
    let factors: Vec<f32> = rows.iter().flat_map(|&row| of_row(row)).collect();
    let factors = Tensor::<2>::from_data(TensorData::new(factors, [rows.len(), width]), &x.device());
    let dtype = x.dtype();
    x * factors.cast(dtype)
}
