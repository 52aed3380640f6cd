//! The definition of correct for [`linear`](super::linear()), in plain tensor code that Burn differentiates.

use burn::tensor::{DType, Tensor, TensorData};

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

/// `c ⊙ (x·Wᵀ + s·(drop(x)·Aᵀ)·Bᵀ) + b` where the rows of `x` are these `rows` of the tensor that dropout counts its elements in.
///
/// # Shapes
/// - `x`: `[rows, in]`
/// - output: `[rows, out]`
pub(in crate::ops) fn project(x: Tensor<2>, projected: &Projected<'_>, rows: &[u32]) -> Tensor<2> {
    let device = x.device();
    let format = x.dtype();
    let mut y = projected.weight.times_transposed(x.clone());
    if let Some(pair) = &projected.low_rank {
        let input = match &pair.dropout {
            Some(dropout) => drop(x, dropout, rows),
            None => x,
        };
        let dtype = input.dtype();
        let low = input.matmul(pair.a.clone().cast(dtype).transpose()).mul_scalar(pair.scale);
        y = y + low.matmul(pair.b.clone().cast(dtype).transpose());
    }
    if let Some(scale) = &projected.column_scale {
        y = (y.cast(DType::F32) * scale.clone()).cast(format);
    }
    match projected.bias {
        Some(bias) => y + Tensor::<1>::from_data(TensorData::from(bias), &device).cast(format).unsqueeze(),
        None => y,
    }
}

fn drop(x: Tensor<2>, dropout: &Dropout, rows: &[u32]) -> Tensor<2> {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    if crate::ops::on_gpu(&x) {
        return crate::ops::cube::dropout::dropped(x, dropout, rows);
    }
    let width = x.dims()[1];
    let of_row = |row: &u32| {
        let dropout = dropout.of_row(*row as usize, width);
        (0..width as u64).map(move |column| dropout.factor(column))
    };
    let factors: Vec<f32> = rows.iter().flat_map(of_row).collect();
    let factors = Tensor::<2>::from_data(TensorData::new(factors, [rows.len(), width]), &x.device());
    let dtype = x.dtype();
    x * factors.cast(dtype)
}
