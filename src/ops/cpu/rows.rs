//! Matrices of activations, row by row: what kernels read and write, in f32 or bf16.

use std::mem::MaybeUninit;

use half::{bf16, f16};

use super::isa::vectorised;
use super::shared::as_uninit;

/// A number that a matrix can be stored in.
pub trait Stored: bytemuck::Pod + Send + Sync {
    /// The value as f32, exactly.
    fn to_f32(self) -> f32;

    /// [`Stored::to_f32`] of a slice at once.
    fn widen_into(from: &[Self], to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32());
    }
}

impl Stored for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    fn widen_into(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn widen_into(from: &[bf16], to: &mut [f32]) {
        widen(from, to);
    }
}

impl Stored for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        crate::quant::float::f16_bits_to_f32(self.to_bits())
    }
}

/// A row-major matrix, read only; `stride` is the distance between rows.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    /// Values in f32.
    F32 {
        /// Every row, one after another.
        data: &'a [f32],
        /// Distance between rows.
        stride: usize,
    },
    /// Values in bf16.
    Bf16 {
        /// Every row, one after another.
        data: &'a [bf16],
        /// Distance between rows.
        stride: usize,
    },
}

impl<'a> Rows<'a> {
    /// The columns from `first` on, all rows.
    pub fn from_column(self, first: usize) -> Self {
        match self {
            Self::F32 { data, stride } => Self::F32 { data: &data[first.min(data.len())..], stride },
            Self::Bf16 { data, stride } => Self::Bf16 { data: &data[first.min(data.len())..], stride },
        }
    }

    /// The rows from `first` on.
    pub fn from_row(self, first: usize) -> Self {
        match self {
            Self::F32 { data, stride } => Self::F32 { data: &data[first * stride..], stride },
            Self::Bf16 { data, stride } => Self::Bf16 { data: &data[first * stride..], stride },
        }
    }

    /// Whether both are the same values in memory.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::F32 { data, stride }, Self::F32 { data: others, stride: distance }) => {
                std::ptr::eq(*data, *others) && stride == distance
            }
            (Self::Bf16 { data, stride }, Self::Bf16 { data: others, stride: distance }) => {
                std::ptr::eq(*data, *others) && stride == distance
            }
            _ => false,
        }
    }

    /// Widens the values of row `row` from column `first` on into `out`, as many as it has.
    pub fn read(&self, row: usize, first: usize, out: &mut [f32]) {
        match self {
            Self::F32 { data, stride } => out.copy_from_slice(&data[row * stride + first..][..out.len()]),
            Self::Bf16 { data, stride } => widen(&data[row * stride + first..][..out.len()], out),
        }
    }
}

/// The matrix that a product writes; its rows are `stride` apart.
pub struct OutputBuffer<'a> {
    data: OutputData<'a>,
    stride: usize,
    is_initialised: bool,
}

/// Memory that is only ever overwritten with values.
pub(super) enum OutputData<'a> {
    F32(&'a mut [MaybeUninit<f32>]),
    Bf16(&'a mut [MaybeUninit<bf16>]),
}

impl<'a> OutputBuffer<'a> {
    /// Values that are there already, to be replaced or added to.
    pub fn f32(data: &'a mut [f32], stride: usize) -> Self {
        // SAFETY: products, which alone have the data of an output buffer, write nothing uninitialised.
        Self { data: OutputData::F32(unsafe { as_uninit(data) }), stride, is_initialised: true }
    }

    /// Memory for f32 values that are not there yet.
    pub fn fresh_f32(data: &'a mut [MaybeUninit<f32>], stride: usize) -> Self {
        Self { data: OutputData::F32(data), stride, is_initialised: false }
    }

    /// Memory for bf16 values that are not there yet.
    pub fn fresh_bf16(data: &'a mut [MaybeUninit<bf16>], stride: usize) -> Self {
        Self { data: OutputData::Bf16(data), stride, is_initialised: false }
    }

    /// Whether there are values that a product may add to.
    pub(super) fn is_initialised(&self) -> bool {
        self.is_initialised
    }

    /// The memory, and the distance between rows.
    pub(super) fn into_parts(self) -> (OutputData<'a>, usize) {
        (self.data, self.stride)
    }
}

vectorised! {
    /// bf16 to f32, exact.
    pub fn widen(from: &[bf16], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(from.to_bits()) << 16);
        }
    }
}

/// f32 to bf16, to nearest, ties to even.
pub fn narrow(from: &[f32], to: &mut [bf16]) {
    // SAFETY: `narrow_fresh` writes values only.
    narrow_fresh(from, unsafe { as_uninit(to) });
}

vectorised! {
    /// [`narrow`] into memory that has no values yet; each place with a value in `from` gets one.
    pub fn narrow_fresh(from: &[f32], to: &mut [MaybeUninit<bf16>]) {
        for (to, from) in to.iter_mut().zip(from) {
            to.write(bf16::from_bits(crate::quant::float::f32_to_bf16_bits(*from)));
        }
    }
}
