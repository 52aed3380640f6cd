//! Sums and maxima over a workgroup: every kernel here that reduces has one workgroup to a row, whose units stride over its columns.

use burn_cubecl::cubecl;
use cubecl::prelude::*;

/// Units (threads) of a workgroup.
pub(super) const UNITS: usize = 256;
/// Workgroups along one dimension: more are not promised.
const LARGEST_GRID: usize = 65_535;

/// One workgroup for each of `rows`, and for some numbers above.
pub(super) fn one_for_each(rows: usize) -> CubeCount {
    CubeCount::Static(rows.min(LARGEST_GRID) as u32, rows.div_ceil(LARGEST_GRID) as u32, 1)
}

/// One unit for each of `values`, and for some numbers above.
pub(super) fn units_for(values: usize) -> CubeCount {
    one_for_each(values.div_ceil(UNITS))
}

/// The units of a workgroup.
pub(super) fn workgroup() -> CubeDim {
    CubeDim::new_1d(UNITS as u32)
}

/// The sum over the workgroup, which every unit gets. `shared` has a place for each unit.
#[cube]
pub(super) fn sum(value: f32, shared: &mut Shared<[f32]>) -> f32 {
    reduced(value, shared, true)
}

/// The maximum over the workgroup, which every unit gets.
#[cube]
pub(super) fn maximum(value: f32, shared: &mut Shared<[f32]>) -> f32 {
    reduced(value, shared, false)
}

#[cube]
fn reduced(value: f32, shared: &mut Shared<[f32]>, #[comptime] is_sum: bool) -> f32 {
    let unit = UNIT_POS as usize;
    sync_cube();
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for step in 1..9usize {
        let stride = comptime!(UNITS >> step);
        if unit < stride {
            if comptime!(is_sum) {
                shared[unit] = shared[unit] + shared[unit + stride];
            } else {
                shared[unit] = max(shared[unit], shared[unit + stride]);
            }
        }
        sync_cube();
    }
    shared[0]
}
