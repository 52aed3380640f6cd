//! Products of a handful of rows: dot products, since packing would cost more than it saves.

use half::bf16;

use super::decode::{DECODED, lend};
use super::storage::{Matrix, Storage, cast};
use crate::ops::cpu::isa::vectorised;
use crate::ops::cpu::math::{LANES, dot};
use crate::ops::cpu::pool;
use crate::ops::cpu::rows::{Rows, Stored};
use crate::ops::cpu::shared::SharedMut;

impl Matrix {
    /// `out[m, rows] = x[m, columns] · Wᵀ` for a handful of rows, where packing would cost more than it saves; the rows of
    /// `out` are `stride` apart.
    pub fn multiply_few(&self, x: Rows<'_>, m: usize, out: &mut [f32], stride: usize) {
        const ROWS_PER_TASK: usize = 32;
        let mut inputs = vec![0f32; m * self.columns()];
        for (row, values) in inputs.chunks_exact_mut(self.columns()).enumerate() {
            x.read(row, 0, values);
        }
        let target = SharedMut::new(out);
        let task = |task: usize| {
            lend(&DECODED, self.columns(), 0.0, |decoded| {
                for row in task * ROWS_PER_TASK..((task + 1) * ROWS_PER_TASK).min(self.rows()) {
                    let start = row * self.columns();
                    let direct: Option<&[bf16]> = match self.storage() {
                        Storage::Bf16(bytes) => Some(&cast::<bf16>(bytes)[start..][..self.columns()]),
                        _ => None,
                    };
                    let weights: &[f32] = match self.storage() {
                        Storage::F32(bytes) => &cast::<f32>(bytes)[start..][..self.columns()],
                        Storage::Bf16(_) => &[],
                        _ => {
                            self.decode(row, 0, decoded);
                            decoded
                        }
                    };
                    for (m, values) in inputs.chunks_exact(self.columns()).enumerate() {
                        let sum = match direct {
                            Some(weights) => dot_bf16(values, weights),
                            None => dot(values, weights),
                        };
                        // SAFETY: `row` belongs to this task alone.
                        unsafe { target.set(m * stride + row, sum) };
                    }
                }
            });
        };
        let tasks = self.rows().div_ceil(ROWS_PER_TASK);
        pool::for_each(tasks, task);
    }
}

vectorised! {
    fn dot_bf16(a: &[f32], b: &[bf16]) -> f32 {
        let mut lanes = [0f32; LANES];
        let (whole, rest) = a.as_chunks::<LANES>();
        for (a, b) in whole.iter().zip(b.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                lanes[lane] += a[lane] * f32::from_bits(u32::from(b[lane].to_bits()) << 16);
            }
        }
        let tail: f32 = rest.iter().zip(&b[whole.len() * LANES..]).map(|(a, b)| a * Stored::to_f32(*b)).sum();
        lanes.iter().sum::<f32>() + tail
    }
}
