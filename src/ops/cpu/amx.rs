//! AMX-BF16: tiles of 16 rows by 64 bytes, `tdpbf16ps` through inline assembly (the intrinsics are unstable).
//!
//! Source: Intel, "Intel 64 and IA-32 Architectures SDM" vol. 2, AMX; Linux `arch_prctl(ARCH_REQ_XCOMP_PERM)`.

use std::arch::asm;
use std::sync::OnceLock;

use half::bf16;

use super::kernel::{AMX_DEPTH, AMX_ROWS, PANEL};

#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

static AVAILABLE: OnceLock<bool> = OnceLock::new();

/// The processor has AMX-BF16, the kernel granted the state, and a small product came out right.
pub fn available() -> bool {
    *AVAILABLE.get_or_init(|| has_instructions() && request_permission() && self_test())
}

/// Takes AMX for available, whatever the processor has, if nobody has asked yet.
///
/// # Safety
/// Something answers to its instructions: the tests emulate them.
pub unsafe fn assume_available() {
    let _ = AVAILABLE.set(true);
}

fn has_instructions() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    #[target_feature(enable = "xsave")]
    fn enabled_state() -> u64 {
        // SAFETY: the caller checked OSXSAVE.
        unsafe { _xgetbv(0) }
    }
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & (1 << 27) == 0 {
        return false;
    }
    let leaf = __cpuid_count(7, 0).edx;
    let (amx_bf16, amx_tile) = (leaf & (1 << 22) != 0, leaf & (1 << 24) != 0);
    // SAFETY: OSXSAVE is set, so `xgetbv` exists. Bits 17 and 18: the operating system saves tile state.
    amx_bf16 && amx_tile && unsafe { enabled_state() } & (3 << 17) == 3 << 17
}

#[cfg(target_os = "linux")]
fn request_permission() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: asks the kernel for a permission; touches no memory. It covers every thread of the process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn request_permission() -> bool {
    false
}

/// One product against plain arithmetic: a kernel that silently computes something else is not used.
fn self_test() -> bool {
    const ROWS: usize = 2 * AMX_ROWS;
    let depth = 2 * AMX_DEPTH;
    let value = |i: usize| bf16::from_f32(((i * 37 % 61) as f32 - 30.0) / 16.0);
    let a: Vec<bf16> = (0..ROWS * depth).map(value).collect();
    let panel: Vec<bf16> = (0..depth * PANEL).map(|i| value(i * 7 + 3)).collect();
    let mut tile = vec![0f32; ROWS * PANEL];
    // SAFETY: the buffers have the sizes that `tile_product` names; permission was granted.
    unsafe {
        with_tiles(|| tile_product(ROWS, depth, a.as_ptr(), depth, panel.as_ptr(), tile.as_mut_ptr(), false));
    }
    (0..ROWS * PANEL).all(|i| {
        let (row, column) = (i / PANEL, i % PANEL);
        let expected: f32 = (0..depth)
            .map(|k| a[row * depth + k].to_f32() * panel[(k / 2 * PANEL + column) * 2 + k % 2].to_f32())
            .sum();
        (expected - tile[i]).abs() <= 1e-3 * (1.0 + expected.abs())
    })
}

/// Configures the eight tile registers of this thread for the time of `work`.
///
/// # Safety
/// AMX must be available.
pub unsafe fn with_tiles<R>(work: impl FnOnce() -> R) -> R {
    let mut config = TileConfig { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row: [0; 16], rows: [0; 16] };
    for register in 0..8 {
        config.bytes_per_row[register] = 64;
        config.rows[register] = 16;
    }
    // SAFETY: `config` is a valid palette-1 configuration that outlives the instruction.
    unsafe { asm!("ldtilecfg [{0}]", in(reg) &config, options(nostack)) };
    let result = work();
    // SAFETY: gives the state back; nothing reads tiles afterwards.
    unsafe { asm!("tilerelease", options(nostack)) };
    result
}

/// `tile[rows, 32] (+)= a[rows, depth] · panel[depth, 32]`; `depth` is a multiple of [`AMX_DEPTH`].
///
/// # Safety
/// Inside [`with_tiles`]; `a` has rows of stride `lda` and `tile` rows of 32 values, `rows` of each rounded up to 16 or 32;
/// `panel` is packed in pairs.
pub unsafe fn tile_product(
    rows: usize,
    depth: usize,
    a: *const bf16,
    lda: usize,
    panel: *const bf16,
    tile: *mut f32,
    accumulate: bool,
) {
    // SAFETY: as the caller vouches.
    unsafe {
        if rows > AMX_ROWS {
            two_high(depth, a, lda, panel, tile, accumulate);
        } else {
            one_high(depth, a, lda, panel, tile, accumulate);
        }
    }
}

/// Bytes between the rows of a tile of sums, and between the pairs of a panel.
const TILE_STRIDE: usize = PANEL * size_of::<f32>();

/// 32 rows: four registers of sums, each operand loaded once for two products.
unsafe fn two_high(depth: usize, a: *const bf16, lda: usize, panel: *const bf16, tile: *mut f32, accumulate: bool) {
    // SAFETY: every address below lies inside the buffers that the caller vouches for.
    unsafe {
        let (right, lower) = (tile.add(16), tile.add(AMX_ROWS * PANEL));
        let lower_right = lower.add(16);
        if accumulate {
            asm!(
                "tileloadd tmm0, [{c00} + {stride}*1]",
                "tileloadd tmm1, [{c01} + {stride}*1]",
                "tileloadd tmm2, [{c10} + {stride}*1]",
                "tileloadd tmm3, [{c11} + {stride}*1]",
                c00 = in(reg) tile, c01 = in(reg) right, c10 = in(reg) lower, c11 = in(reg) lower_right,
                stride = in(reg) TILE_STRIDE, options(nostack)
            );
        } else {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack));
        }
        for step in 0..depth / AMX_DEPTH {
            let upper_rows = a.add(step * AMX_DEPTH);
            let lower_rows = upper_rows.add(AMX_ROWS * lda);
            let pairs = panel.add(step * AMX_DEPTH * PANEL);
            asm!(
                "tileloadd tmm4, [{a0} + {lda}*1]",
                "tileloadd tmm6, [{b0} + {ldb}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {ldb}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a1} + {lda}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                a0 = in(reg) upper_rows, a1 = in(reg) lower_rows, lda = in(reg) lda * 2,
                b0 = in(reg) pairs, b1 = in(reg) pairs.add(32), ldb = in(reg) TILE_STRIDE,
                options(nostack)
            );
        }
        asm!(
            "tilestored [{c00} + {stride}*1], tmm0",
            "tilestored [{c01} + {stride}*1], tmm1",
            "tilestored [{c10} + {stride}*1], tmm2",
            "tilestored [{c11} + {stride}*1], tmm3",
            c00 = in(reg) tile, c01 = in(reg) right, c10 = in(reg) lower, c11 = in(reg) lower_right,
            stride = in(reg) TILE_STRIDE, options(nostack)
        );
    }
}

/// 16 rows: what is left at the end of a matrix.
unsafe fn one_high(depth: usize, a: *const bf16, lda: usize, panel: *const bf16, tile: *mut f32, accumulate: bool) {
    // SAFETY: every address below lies inside the buffers that the caller vouches for.
    unsafe {
        let right = tile.add(16);
        if accumulate {
            asm!(
                "tileloadd tmm0, [{c0} + {stride}*1]",
                "tileloadd tmm1, [{c1} + {stride}*1]",
                c0 = in(reg) tile, c1 = in(reg) right, stride = in(reg) TILE_STRIDE, options(nostack)
            );
        } else {
            asm!("tilezero tmm0", "tilezero tmm1", options(nostack));
        }
        for step in 0..depth / AMX_DEPTH {
            let pairs = panel.add(step * AMX_DEPTH * PANEL);
            asm!(
                "tileloadd tmm4, [{a} + {lda}*1]",
                "tileloadd tmm6, [{b0} + {ldb}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {ldb}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                a = in(reg) a.add(step * AMX_DEPTH), lda = in(reg) lda * 2,
                b0 = in(reg) pairs, b1 = in(reg) pairs.add(32), ldb = in(reg) TILE_STRIDE,
                options(nostack)
            );
        }
        asm!(
            "tilestored [{c0} + {stride}*1], tmm0",
            "tilestored [{c1} + {stride}*1], tmm1",
            c0 = in(reg) tile, c1 = in(reg) right, stride = in(reg) TILE_STRIDE, options(nostack)
        );
    }
}
