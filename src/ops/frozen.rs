//! A weight that never changes, where the device wants it.

use std::sync::{Arc, OnceLock};

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use rayon::prelude::*;

#[cfg(feature = "cpu")]
use super::cpu::matrix::Matrix;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use super::cube::{autograd, nf4::DeviceNf4};
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use crate::files::bitsandbytes::Nf4Tensor;
use crate::files::fetch::Fetcher;

/// Rows that are decoded at once to sum up their squares.
const ROWS_PER_PIECE: usize = 64;

/// A frozen `[rows, columns]` weight: on the processor as it was stored, elsewhere as a tensor or packed in NF4.
#[derive(Debug, Clone)]
pub struct FrozenWeight {
    place: Place,
    /// `‖W_r‖²` of every row, once they have been asked for.
    squared_row_norms: Arc<OnceLock<Vec<f32>>>,
}

#[derive(Debug, Clone)]
enum Place {
    #[cfg(feature = "cpu")]
    Matrix(Arc<Matrix>),
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    Nf4(Arc<DeviceNf4>),
    Tensor(Box<Tensor<2>>),
}

impl FrozenWeight {
    /// A weight for the processor's kernels.
    #[cfg(feature = "cpu")]
    pub fn from_matrix(matrix: Matrix) -> Self {
        Self::at(Place::Matrix(Arc::new(matrix)))
    }

    /// A weight for any other device: `rows * columns` values, row-major, which are kept in `dtype` there.
    pub fn from_values(values: Vec<f32>, rows: usize, columns: usize, device: &Device, dtype: DType) -> Self {
        let data = TensorData::new(values, [rows, columns]).convert_dtype(dtype);
        Self::at(Place::Tensor(Box::new(Tensor::from_data(data, (device, dtype)))))
    }

    /// A weight of shape `[rows, columns]` that stays packed on a wgpu or CUDA device; products decode it a tile at a
    /// time.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub fn from_nf4(weight: &Nf4Tensor, rows: usize, columns: usize, device: &Device) -> Self {
        Self::at(Place::Nf4(Arc::new(DeviceNf4::new(weight, [rows, columns], device))))
    }

    fn at(place: Place) -> Self {
        Self { place, squared_row_norms: Arc::default() }
    }

    /// `[rows, columns]`.
    pub fn dims(&self) -> [usize; 2] {
        match &self.place {
            #[cfg(feature = "cpu")]
            Place::Matrix(matrix) => [matrix.rows(), matrix.columns()],
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Place::Nf4(weight) => weight.dims(),
            Place::Tensor(tensor) => tensor.dims(),
        }
    }

    /// The processor's matrix, if it is one.
    #[cfg(feature = "cpu")]
    pub fn matrix(&self) -> Option<&Arc<Matrix>> {
        match &self.place {
            Place::Matrix(matrix) => Some(matrix),
            _ => None,
        }
    }

    /// Has the system read the values that lie in a mapped file.
    pub fn fetch(&self, fetcher: &Fetcher) {
        #[cfg(feature = "cpu")]
        self.matrix().into_iter().flat_map(|matrix| matrix.stored()).for_each(|bytes| fetcher.fetch(bytes));
        #[cfg(not(feature = "cpu"))]
        let _ = fetcher;
    }

    /// Returns the memory of values in a mapped file to the system, which reads them again on the next access.
    pub fn release(&self) {
        #[cfg(feature = "cpu")]
        self.matrix().into_iter().for_each(|matrix| matrix.release());
    }

    /// `x·Wᵀ` for `x` `[tokens, columns]`, differentiable: by the kernel where the weight lies packed on a GPU, or else
    /// in plain tensor code with the decoded weight.
    pub fn times_transposed(&self, x: Tensor<2>) -> Tensor<2> {
        match &self.place {
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Place::Nf4(weight) => autograd::times_transposed(x, weight),
            _ => {
                let weight = self.tensor(&x.device()).cast(x.dtype());
                x.matmul(weight.transpose())
            }
        }
    }

    /// The decoded weight as a tensor on `device` (the reference's way; the kernels never decode it whole).
    pub fn tensor(&self, device: &Device) -> Tensor<2> {
        match &self.place {
            #[cfg(feature = "cpu")]
            Place::Matrix(matrix) => {
                let [rows, columns] = self.dims();
                let mut values = vec![0f32; rows * columns];
                for (row, values) in values.chunks_exact_mut(columns).enumerate() {
                    matrix.decode(row, 0, values);
                }
                Tensor::from_data(TensorData::new(values, [rows, columns]), device)
            }
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Place::Nf4(weight) => {
                let all: Vec<u32> = (0..weight.dims()[0] as u32).collect();
                autograd::rows(weight, &all)
            }
            Place::Tensor(tensor) => (**tensor).clone().to_device(&device.clone().inner()),
        }
    }

    /// Rows `ids` on a device, which must be the weight's own: the embedding of tokens. Values that lie there already do
    /// not pass through the host.
    ///
    /// # Shapes
    /// - output: `[ids, columns]` in f32, without autodiff
    pub fn rows(&self, ids: &[u32], device: &Device) -> Tensor<2> {
        match &self.place {
            #[cfg(feature = "cpu")]
            Place::Matrix(matrix) => {
                let data = TensorData::new(self.select(ids), [ids.len(), matrix.columns()]);
                Tensor::from_data(data, &device.clone().inner())
            }
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Place::Nf4(weight) => autograd::rows(weight, ids),
            Place::Tensor(tensor) => selected(tensor, ids).cast(DType::F32).to_device(&device.clone().inner()),
        }
    }

    /// `‖W_r‖²` of every row. They are computed once, from a few decoded rows at a time.
    ///
    /// # Shapes
    /// - output: `[rows, 1]` in f32, without autodiff
    pub fn squared_row_norms(&self, device: &Device) -> Tensor<2> {
        let [rows, columns] = self.dims();
        let square_sum = |row: &[f32]| row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() as f32;
        let norms = self.squared_row_norms.get_or_init(|| {
            let ids: Vec<u32> = (0..rows as u32).collect();
            let pieces = ids.par_chunks(ROWS_PER_PIECE);
            pieces.flat_map_iter(|ids| self.select(ids).chunks(columns).map(square_sum).collect::<Vec<_>>()).collect()
        });
        Tensor::from_data(TensorData::new(norms.clone(), [rows, 1]), &device.clone().inner())
    }

    /// The values of rows `ids` on the host, one after another.
    pub fn select(&self, ids: &[u32]) -> Vec<f32> {
        match &self.place {
            #[cfg(feature = "cpu")]
            Place::Matrix(matrix) => {
                let columns = matrix.columns();
                let mut values = vec![0f32; ids.len() * columns];
                for (id, values) in ids.iter().zip(values.chunks_exact_mut(columns)) {
                    matrix.decode(*id as usize, 0, values);
                }
                values
            }
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Place::Nf4(weight) => autograd::rows(weight, ids).into_data().iter::<f32>().collect(),
            Place::Tensor(tensor) => selected(tensor, ids).into_data().iter::<f32>().collect(),
        }
    }
}

/// Rows `ids` of a tensor, where it lies.
fn selected(tensor: &Tensor<2>, ids: &[u32]) -> Tensor<2> {
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let count = ids.len();
    let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), &tensor.device());
    tensor.clone().select(0, ids)
}
