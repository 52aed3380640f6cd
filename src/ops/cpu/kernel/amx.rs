//! AMX-BF16: tiles of 16 rows by 64 bytes, `tdpbf16ps` through inline assembly (the intrinsics are unstable).
//!
//! Source: Intel, "Intel 64 and IA-32 Architectures SDM" vol. 2, AMX. The registers keep their configuration and their values
//! from one block of assembly to the next: the compiler emits no instruction of AMX, and the operating system saves both with
//! the thread.
//!
//! Of the eight registers four are used, for 16 rows by 32 columns. With all eight each operand would be loaded once for two products.
//! But while the core's other hardware thread is busy, the speed depends on how many registers have been written to since they
//! were configured: four run at more than twice the speed of eight then, and lose 1 to 4% where the core is alone
//! (docs/performance.md).

use std::arch::asm;

use half::bf16;

use super::super::isa::detect::TileConfiguration;
use super::{AMX_DEPTH, AMX_ROWS, PANEL};

/// Configures the tile registers of this thread for the time of `work`.
///
/// # Safety
/// AMX is available, and `work` does not call this function.
pub(in crate::ops::cpu) unsafe fn with_tiles<R>(configuration: &TileConfiguration, work: impl FnOnce() -> R) -> R {
    /// Gives the state back, after a panic as well: threads with tile data in use are slow to switch.
    struct Release;
    impl Drop for Release {
        fn drop(&mut self) {
            // SAFETY: nothing reads tiles afterwards.
            unsafe {
                asm!(
                    "tilerelease",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack)
                );
            }
        }
    }
    // SAFETY: a valid configuration of palette 1.
    unsafe {
        asm!(
            "ldtilecfg [{0}]", in(reg) configuration,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
    }
    let _release = Release;
    work()
}

/// `tile[rows, 32] (+)= a[rows, depth] · panel[depth, 32]`; `depth` is a multiple of [`AMX_DEPTH`].
///
/// # Safety
/// AMX is available and the call inside [`with_tiles`]. There are `rows` rows, rounded up to a multiple of 16, of `depth` values,
/// `lda` apart, at `a`, `depth * 32` values in pairs at `panel`, and as many rows of 32 values at `tile`.
pub(super) unsafe fn tile_product(
    rows: usize,
    depth: usize,
    a: *const bf16,
    lda: usize,
    panel: *const bf16,
    tile: *mut f32,
    accumulate: bool,
) {
    for row in (0..rows).step_by(AMX_ROWS) {
        // SAFETY: as the caller vouches; the rows of both are rounded up.
        unsafe {
            sixteen_rows(depth / AMX_DEPTH, a.add(row * lda), lda, panel, tile.add(row * PANEL), accumulate);
        }
    }
}

/// Bytes between the rows of a tile of sums, and between the pairs of a panel.
const TILE_STRIDE: usize = PANEL * size_of::<f32>();
/// Bytes of a step of a row of `a`.
const STEP_BYTES: usize = AMX_DEPTH * size_of::<bf16>();
/// Bytes of a step of a panel.
const PANEL_STEP_BYTES: usize = AMX_DEPTH * PANEL * size_of::<bf16>();

/// 16 rows by 32 columns.
///
/// # Safety
/// The conditions of [`tile_product`], for 16 rows.
unsafe fn sixteen_rows(steps: usize, a: *const bf16, lda: usize, panel: *const bf16, tile: *mut f32, accumulate: bool) {
    // SAFETY: every address lies inside the buffers that the caller vouches for; a step moves on by what it has read.
    unsafe {
        asm!(
            "test {accumulate}, {accumulate}",
            "jz 2f",
            "tileloadd tmm0, [{tile} + {stride}*1]",
            "tileloadd tmm1, [{tile} + {stride}*1 + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "3:",
            "test {steps}, {steps}",
            "jz 5f",
            "4:",
            "tileloadd tmm4, [{a} + {lda}*1]",
            "tileloadd tmm6, [{panel} + {stride}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm6, [{panel} + {stride}*1 + 64]",
            "tdpbf16ps tmm1, tmm4, tmm6",
            "add {a}, {step_bytes}",
            "add {panel}, {panel_step_bytes}",
            "dec {steps}",
            "jnz 4b",
            "5:",
            "tilestored [{tile} + {stride}*1], tmm0",
            "tilestored [{tile} + {stride}*1 + 64], tmm1",
            accumulate = in(reg) u64::from(accumulate),
            tile = in(reg) tile,
            stride = in(reg) TILE_STRIDE,
            a = inout(reg) a => _,
            lda = in(reg) lda * size_of::<bf16>(),
            panel = inout(reg) panel => _,
            steps = inout(reg) steps => _,
            step_bytes = const STEP_BYTES,
            panel_step_bytes = const PANEL_STEP_BYTES,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _,
            options(nostack)
        );
    }
}

/// Begins a tile of 16 rows by 32 columns with zeros, or with sums.
///
/// # Safety
/// The call is inside [`with_tiles`]; there are 16 rows of 32 values at `from`.
#[inline(always)]
pub unsafe fn begin(from: Option<*const f32>) {
    // SAFETY: as the caller vouches.
    unsafe {
        match from {
            None => asm!("tilezero tmm0", "tilezero tmm1", out("tmm0") _, out("tmm1") _, options(nostack)),
            Some(from) => asm!(
                "tileloaddt1 tmm0, [{from} + {stride}*1]",
                "tileloaddt1 tmm1, [{from} + {stride}*1 + 64]",
                from = in(reg) from,
                stride = in(reg) TILE_STRIDE,
                out("tmm0") _, out("tmm1") _,
                options(nostack)
            ),
        }
    }
}

/// Adds a step to the tile: rows that lie in the order of reading, 16 cache lines, by a step of a panel.
///
/// # Safety
/// The call follows [`begin`]; there is a step at `rows` and at `panel`.
#[inline(always)]
pub unsafe fn stream(rows: *const bf16, panel: *const bf16) {
    // SAFETY: as the caller vouches.
    unsafe {
        asm!(
            // The hint t1: rows are read once, and the panel stays in the first-level cache.
            "tileloaddt1 tmm4, [{rows} + {line}*1]",
            "tileloadd tmm6, [{panel} + {stride}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm6, [{panel} + {stride}*1 + 64]",
            "tdpbf16ps tmm1, tmm4, tmm6",
            rows = in(reg) rows,
            line = in(reg) STEP_BYTES,
            panel = in(reg) panel,
            stride = in(reg) TILE_STRIDE,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _,
            options(nostack, readonly)
        );
    }
}

/// Stores the tile.
///
/// # Safety
/// The call follows [`begin`]; there is room for 16 rows of 32 values at `to`.
#[inline(always)]
pub unsafe fn finish(to: *mut f32) {
    // SAFETY: as the caller vouches.
    unsafe {
        asm!(
            "tilestored [{to} + {stride}*1], tmm0",
            "tilestored [{to} + {stride}*1 + 64], tmm1",
            to = in(reg) to,
            stride = in(reg) TILE_STRIDE,
            options(nostack)
        );
    }
}
