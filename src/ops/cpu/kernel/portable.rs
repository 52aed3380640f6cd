//! The innermost product in plain Rust, for any processor.

use half::bf16;

use super::PANEL;

/// `tile (+)= a · panel` in f32.
///
/// # Safety
/// There are `rows` rows of `depth` values, `lda` apart, at `a`, `depth * 32` values at `panel`, and `rows` rows of 32 values
/// at `tile`.
pub(super) unsafe fn f32_tile(
    rows: usize,
    depth: usize,
    a: *const f32,
    lda: usize,
    panel: *const f32,
    tile: *mut f32,
    accumulate: bool,
) {
    for row in 0..rows {
        // SAFETY: the tile has room for `rows` rows.
        let sums = unsafe { std::slice::from_raw_parts_mut(tile.add(row * PANEL), PANEL) };
        if !accumulate {
            sums.fill(0.0);
        }
        for k in 0..depth {
            // SAFETY: `row < rows`, `k < depth`.
            let (value, columns) =
                unsafe { (*a.add(row * lda + k), std::slice::from_raw_parts(panel.add(k * PANEL), PANEL)) };
            for (sum, &column) in sums.iter_mut().zip(columns) {
                *sum += value * column;
            }
        }
    }
}

/// `tile (+)= a · panel` over bf16 pairs: the definition that the bf16 kernels are tested against.
///
/// # Safety
/// There are `rows` rows of `depth` values, `lda` apart, at `a`, `depth * 32` values at `panel`, and `rows` rows of 32 values
/// at `tile`.
pub(super) unsafe fn bf16_tile(
    rows: usize,
    depth: usize,
    a: *const bf16,
    lda: usize,
    panel: *const bf16,
    tile: *mut f32,
    accumulate: bool,
) {
    for row in 0..rows {
        // SAFETY: the tile has room for `rows` rows.
        let sums = unsafe { std::slice::from_raw_parts_mut(tile.add(row * PANEL), PANEL) };
        if !accumulate {
            sums.fill(0.0);
        }
        for pair in 0..depth / 2 {
            // SAFETY: `row < rows`, `pair < depth / 2`.
            let (left, right, columns) = unsafe {
                let values = a.add(row * lda + pair * 2);
                ((*values).to_f32(), (*values.add(1)).to_f32(), panel.add(pair * PANEL * 2))
            };
            for (column, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `column < 32`.
                let (first, second) =
                    unsafe { ((*columns.add(column * 2)).to_f32(), (*columns.add(column * 2 + 1)).to_f32()) };
                *sum += left * first;
                *sum += right * second;
            }
        }
    }
}
