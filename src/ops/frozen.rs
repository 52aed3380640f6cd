//! A weight that never changes, where the device wants it.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

#[cfg(feature = "cpu")]
use super::cpu::matrix::Matrix;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use super::cube::{autograd, nf4::DeviceNf4};
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use crate::files::bitsandbytes::Nf4Tensor;

/// A frozen `[rows, columns]` weight: on the processor as it was stored, elsewhere as a tensor or packed in NF4.
#[derive(Debug, Clone)]
pub struct FrozenWeight {
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    #[cfg(feature = "cpu")]
    Matrix(std::sync::Arc<Matrix>),
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    Nf4(std::sync::Arc<DeviceNf4>),
    Tensor(Box<Tensor<2>>),
}

impl FrozenWeight {
    /// A weight for the processor's kernels.
    #[cfg(feature = "cpu")]
    pub fn from_matrix(matrix: Matrix) -> Self {
        Self { place: Place::Matrix(std::sync::Arc::new(matrix)) }
    }

    /// A weight for any other device: `rows * columns` values, row-major, which are kept in `dtype` there.
    pub fn from_values(values: Vec<f32>, rows: usize, columns: usize, device: &Device, dtype: DType) -> Self {
        let data = TensorData::new(values, [rows, columns]).convert_dtype(dtype);
        Self { place: Place::Tensor(Box::new(Tensor::from_data(data, (device, dtype)))) }
    }

    /// A weight of shape `[rows, columns]` that stays packed on a wgpu or CUDA device; products decode it a tile at a
    /// time.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub fn from_nf4(weight: &Nf4Tensor, rows: usize, columns: usize, device: &Device) -> Self {
        Self { place: Place::Nf4(std::sync::Arc::new(DeviceNf4::new(weight, [rows, columns], device))) }
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
    pub fn matrix(&self) -> Option<&std::sync::Arc<Matrix>> {
        match &self.place {
            Place::Matrix(matrix) => Some(matrix),
            _ => None,
        }
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
