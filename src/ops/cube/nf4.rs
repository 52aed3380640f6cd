//! An NF4 weight in a GPU's memory, packed as it is on the host.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_cubecl::{CubeBackend, cubecl, tensor::CubeTensor};
use cubecl::prelude::*;

use crate::files::bitsandbytes::{Nf4Scales, Nf4Tensor};

/// A `[rows, columns]` weight in NF4 on a CubeCL device. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct DeviceNf4 {
    device: Device,
    rows: usize,
    columns: usize,
    block: usize,
    codes: CubeTensor,
    scales: DeviceScales,
}

/// [`Nf4Scales`] on the device.
#[derive(Debug, Clone)]
enum DeviceScales {
    Single(Box<CubeTensor>),
    Nested(Box<DeviceNested>),
}

#[derive(Debug, Clone)]
struct DeviceNested {
    codes: CubeTensor,
    absmax: CubeTensor,
    map: CubeTensor,
    block: usize,
    offset: f32,
}

impl DeviceNf4 {
    /// Copies `weight`, of shape `[rows, columns]`, to a wgpu or CUDA device.
    ///
    /// # Panics
    /// If the weight is of another size: the kernel trusts it.
    pub fn new(weight: &Nf4Tensor, [rows, columns]: [usize; 2], device: &Device) -> Self {
        assert_eq!(weight.elements(), rows * columns);
        let device = device.clone().inner();
        let scales = match &weight.scales {
            Nf4Scales::Single(scales) => DeviceScales::Single(Box::new(floats(scales, &device))),
            Nf4Scales::Nested { codes, absmax, block, offset, map } => DeviceScales::Nested(Box::new(DeviceNested {
                codes: words(codes, &device),
                absmax: floats(absmax, &device),
                map: floats(&map[..], &device),
                block: *block,
                offset: *offset,
            })),
        };
        let codes = words(&weight.packed, &device);
        Self { device, rows, columns, block: weight.block, codes, scales }
    }

    /// `[rows, columns]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// Where it lies, without autodiff.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The weight as a kernel's argument.
    pub(super) fn argument(&self) -> PackedLaunch {
        let buffer = |tensor: &CubeTensor| tensor.clone().into_buffer_arg();
        let scales = match &self.scales {
            DeviceScales::Single(scales) => ScalesArgs::Single(buffer(scales)),
            DeviceScales::Nested(nested) => ScalesArgs::Nested(NestedLaunch::new(
                buffer(&nested.codes),
                buffer(&nested.absmax),
                buffer(&nested.map),
                nested.offset,
                nested.block,
            )),
        };
        PackedLaunch::new(buffer(&self.codes), scales, self.block)
    }
}

/// Bytes as 32-bit words, the first byte lowest: shaders address nothing smaller.
fn words(bytes: &[u8], device: &Device) -> CubeTensor {
    let mut words = vec![0u32; bytes.len().div_ceil(4)];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks(4)) {
        let mut padded = [0; 4];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = u32::from_le_bytes(padded);
    }
    let count = words.len();
    let tensor = Tensor::<1, Int>::from_data(TensorData::new(words, [count]), (device, DType::U32));
    tensor.try_into_primitive::<CubeBackend>().expect("packed weights lie on CubeCL devices")
}

fn floats(values: &[f32], device: &Device) -> CubeTensor {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    let tensor = Tensor::<1>::from_data(data, (device, DType::F32));
    tensor.try_into_primitive::<CubeBackend>().expect("packed weights lie on CubeCL devices")
}

/// [`DeviceNf4`] as a kernel sees it.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Packed {
    codes: Box<[u32]>,
    scales: Scales,
    #[cube(comptime)]
    block: usize,
}

// Kernels are built from what the derives make of these; the compiler sees nobody make them.
#[allow(dead_code)]
#[derive(CubeType, CubeLaunch)]
pub(super) enum Scales {
    Single(Box<[f32]>),
    Nested(Nested),
}

#[derive(CubeType, CubeLaunch)]
pub(super) struct Nested {
    codes: Box<[u32]>,
    absmax: Box<[f32]>,
    map: Box<[f32]>,
    offset: f32,
    #[cube(comptime)]
    block: usize,
}

#[cube]
impl Packed {
    /// Value `index` of the flattened weight, with the sixteen values of NF4's codes in `table`.
    pub(super) fn value(&self, index: usize, table: &Shared<[f32]>) -> f32 {
        // The first code of a byte is in its high nibble.
        let shift = ((index % 8) ^ 1) * 4;
        let code = (self.codes[index / 8] >> (shift as u32)) & 15;
        table[code as usize] * self.scales.of_block(index / self.block)
    }
}

#[cube]
impl Scales {
    fn of_block(&self, block: usize) -> f32 {
        match self {
            Scales::Single(scales) => scales[block],
            Scales::Nested(nested) => {
                let code = (nested.codes[block / 4] >> ((block % 4 * 8) as u32)) & 255;
                nested.map[code as usize] * nested.absmax[block / nested.block] + nested.offset
            }
        }
    }
}
