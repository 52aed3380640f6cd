//! The definition of correct for [`linear`](super::linear()), in plain tensor code that Burn differentiates.

use burn::tensor::{Tensor, TensorData};

use super::{Dropout, Projected};

/// See [`linear`](super::linear()).
pub fn linear(x: Tensor<2>, group: &[Projected<'_>], residual: Option<Tensor<2>>) -> Tensor<2> {
    let outputs = group.iter().map(|projected| one(x.clone(), projected)).collect();
    let y = Tensor::cat(outputs, 1);
    match residual {
        Some(residual) => y + residual,
        None => y,
    }
}

fn one(x: Tensor<2>, projected: &Projected<'_>) -> Tensor<2> {
    let device = x.device();
    let mut y = projected.weight.times_transposed(x.clone());
    if let Some(bias) = projected.bias {
        let bias = Tensor::<1>::from_data(TensorData::from(bias), &device).cast(x.dtype());
        y = y + bias.unsqueeze();
    }
    if let Some(pair) = &projected.low_rank {
        let input = match pair.dropout {
            Some(dropout) => drop(x, dropout),
            None => x,
        };
        let dtype = input.dtype();
        let low = input.matmul(pair.a.clone().cast(dtype).transpose());
        y = y + low.matmul(pair.b.clone().cast(dtype).transpose()).mul_scalar(pair.scale);
    }
    y
}

fn drop(x: Tensor<2>, dropout: Dropout) -> Tensor<2> {
    let [tokens, width] = x.dims();
    let factors: Vec<f32> = (0..tokens * width).map(|index| dropout.factor(index as u64)).collect();
    let factors = Tensor::<2>::from_data(TensorData::new(factors, [tokens, width]), &x.device());
    let dtype = x.dtype();
    x * factors.cast(dtype)
}
