//! Values of a stored matrix as f32, a part of a row at a time.

use std::cell::RefCell;

use half::{bf16, f16};

use super::storage::{Matrix, Storage, cast};
use crate::files::bitsandbytes::{Int8Tensor, Nf4Tensor};
use crate::ops::cpu::isa::vectorised;
use crate::ops::cpu::rows::widen;
use crate::quant::BlockType;

thread_local! {
    /// Decoded values.
    pub(super) static DECODED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Decoded values rounded to bf16.
    pub(super) static NARROWED: RefCell<Vec<bf16>> = const { RefCell::new(Vec::new()) };
}

/// Lends a thread-local buffer that keeps its size from call to call.
pub(super) fn lend<T: Clone, R>(
    cell: &'static std::thread::LocalKey<RefCell<Vec<T>>>,
    count: usize,
    zero: T,
    work: impl FnOnce(&mut [T]) -> R,
) -> R {
    let mut buffer = cell.with(|cell| std::mem::take(&mut *cell.borrow_mut()));
    if buffer.len() < count {
        buffer.resize(count, zero);
    }
    let result = work(&mut buffer[..count]);
    cell.with(|cell| *cell.borrow_mut() = buffer);
    result
}

impl Matrix {
    /// A row as it lies in memory, if it is f32.
    pub fn row_in_f32(&self, row: usize) -> Option<&[f32]> {
        match self.storage() {
            Storage::F32(bytes) => Some(&cast::<f32>(bytes)[row * self.columns()..][..self.columns()]),
            _ => None,
        }
    }

    /// Decodes `out.len()` values of row `row` from column `first` on.
    pub fn decode(&self, row: usize, first: usize, out: &mut [f32]) {
        let start = row * self.columns() + first;
        match self.storage() {
            Storage::F32(bytes) => out.copy_from_slice(&cast::<f32>(bytes)[start..][..out.len()]),
            Storage::Bf16(bytes) => widen(&cast::<bf16>(bytes)[start..][..out.len()], out),
            Storage::F16(bytes) => widen_f16(&cast::<f16>(bytes)[start..][..out.len()], out),
            Storage::Blocks(block, bytes) => decode_blocks(*block, bytes, start, out),
            Storage::Nf4(tensor) => decode_nf4(tensor, start, out),
            Storage::Int8(tensor) => decode_int8(tensor, row, first, out),
        }
    }
}

vectorised! {
    /// Values `start..start + out.len()` of a run of blocks; whole blocks are decoded in place.
    fn decode_blocks(block: BlockType, bytes: &[u8], start: usize, out: &mut [f32]) {
        let (values, size) = (block.values_per_block(), block.bytes_per_block());
        let mut done = 0;
        while done < out.len() {
            let (index, skip) = ((start + done) / values, (start + done) % values);
            let left = out.len() - done;
            if skip == 0 && left >= values {
                let whole = left / values;
                block.decode(&bytes[index * size..(index + whole) * size], &mut out[done..done + whole * values]);
                done += whole * values;
            } else {
                let mut one = [0f32; 256];
                block.decode(&bytes[index * size..(index + 1) * size], &mut one[..values]);
                let count = (values - skip).min(left);
                out[done..done + count].copy_from_slice(&one[skip..skip + count]);
                done += count;
            }
        }
    }
}

vectorised! {
    fn decode_nf4(tensor: &Nf4Tensor, first: usize, out: &mut [f32]) {
        tensor.decode(first, out);
    }
}

vectorised! {
    fn decode_int8(tensor: &Int8Tensor, row: usize, first: usize, out: &mut [f32]) {
        let start = row * tensor.shape[1] + first;
        crate::quant::int8::decode_row(&tensor.codes[start..start + out.len()], tensor.row_absmax[row], out);
    }
}

vectorised! {
    fn widen_f16(from: &[f16], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = crate::quant::float::f16_bits_to_f32(from.to_bits());
        }
    }
}
