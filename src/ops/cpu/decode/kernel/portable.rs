//! Panels in plain Rust.

use half::f16;

use super::{Integers, Tile};
use crate::ops::cpu::decode::activations::BLOCK;
use crate::ops::cpu::decode::panels::{CodeForm, NF4_VALUES, ROWS};
use crate::ops::cpu::isa::vectorised;
use crate::ops::cpu::rows::Stored;

/// The outputs of `count` rows.
pub(super) fn integers(job: &Integers<'_>, (code_form, halves): (CodeForm, bool), count: usize, out: &mut Tile) {
    let code_bytes = code_form.block_bytes();
    for (row, out) in out.iter_mut().enumerate().take(count) {
        let a = &job.a[row * job.blocks * BLOCK..][..job.blocks * BLOCK];
        let a_scales = &job.a_scales[row * job.blocks..][..job.blocks];
        *out = [0.0; ROWS];
        for (block, (a, a_scale)) in a.chunks_exact(BLOCK).zip(a_scales).enumerate() {
            let codes = &job.codes[block * code_bytes..][..code_bytes];
            let dots = dots(codes, code_form, a);
            let parts = 1 + usize::from(halves);
            for part in 0..parts {
                let scales = &job.scales[(parts * block + part) * 2 * ROWS..][..2 * ROWS];
                let total = if halves { a_scale.halves[part] } else { a_scale.sum };
                for (lane, sum) in out.iter_mut().enumerate() {
                    let scale = half(scales, lane);
                    let dot = if halves { dots[part][lane] } else { dots[0][lane] + dots[1][lane] };
                    let minimum = match job.minima {
                        [] => -f32::from(job.offset) * scale,
                        minima => half(&minima[block * 2 * ROWS..], lane),
                    };
                    *sum += dot as f32 * (scale * a_scale.scale);
                    *sum += minimum * total;
                }
            }
        }
    }
}

fn half(values: &[u8], lane: usize) -> f32 {
    f16::from_le_bytes([values[2 * lane], values[2 * lane + 1]]).to_f32()
}

/// The products of a block's codes with 32 activations, by half of the block and row of the panel.
fn dots(codes: &[u8], code_form: CodeForm, a: &[i8]) -> [[i32; ROWS]; 2] {
    let mut dots = [[0i32; ROWS]; 2];
    for (column, a) in a.iter().enumerate() {
        let (part, group) = (column / 16, column % 16 / 4);
        for (lane, dot) in dots[part].iter_mut().enumerate() {
            let at = |group: usize| codes[64 * group + 4 * lane + column % 4];
            let code = match code_form {
                CodeForm::Bytes => at(4 * part + group),
                CodeForm::Nibbles => at(group) >> (4 * part) & 15,
                CodeForm::Nf4 => NF4_VALUES[usize::from(at(group) >> (4 * part) & 15)],
            };
            *dot += i32::from(code) * i32::from(*a);
        }
    }
    dots
}

vectorised! {
    /// The outputs of a panel in bf16 for `count` rows of `columns` values: even and odd columns are summed apart.
    pub(super) fn floats(panel: &[u8], values: &[f32], columns: usize, count: usize, out: &mut Tile) {
        let (pairs, _) = panel.as_chunks::<{ 4 * ROWS }>();
        for (row, out) in out.iter_mut().enumerate().take(count) {
            let values = &values[row * columns..][..columns];
            let mut sums = [[0f32; ROWS]; 2];
            for (pair, codes) in pairs.iter().enumerate().take(columns.div_ceil(2)) {
                let even = values[2 * pair];
                let odd = if 2 * pair + 1 < columns { values[2 * pair + 1] } else { 0.0 };
                for lane in 0..ROWS {
                    let at = |byte: usize| half::bf16::from_le_bytes([codes[4 * lane + byte], codes[4 * lane + byte + 1]]);
                    sums[0][lane] += Stored::to_f32(at(0)) * even;
                    sums[1][lane] += Stored::to_f32(at(2)) * odd;
                }
            }
            for lane in 0..ROWS {
                out[lane] = sums[0][lane] + sums[1][lane];
            }
        }
    }
}
