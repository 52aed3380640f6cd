//! Detection of the instruction sets that the processor and the operating system offer.

/// Whether AMX-BF16 can be used by this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AmxSupport {
    /// Its instructions run, and a product came out right.
    Works,
    /// The operating system has not enabled tile registers: each instruction of AMX is illegal.
    Absent,
    /// Tile registers are enabled, but not for this process; the text says why not.
    Unusable(&'static str),
}

/// Every instruction set that this machine's best one includes, without AMX.
#[cfg(target_arch = "x86_64")]
pub(super) fn without_amx() -> super::Isa {
    use super::Isa;
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    if avx512 && is_x86_feature_detected!("avx512bf16") {
        Isa::Avx512Bf16
    } else if avx512 {
        Isa::Avx512
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        Isa::Avx2
    } else {
        Isa::Portable
    }
}

/// Whether the processor is one of Intel's.
#[cfg(target_arch = "x86_64")]
pub(super) fn is_intel() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

/// Asks the processor for AMX-BF16, then the operating system for the permission to use it, then tries it.
///
/// The permission covers every thread of the process. Without it the first instruction that touches a tile register is
/// illegal, though loading their configuration is not.
#[cfg(target_arch = "x86_64")]
pub(super) fn amx() -> AmxSupport {
    if !tile_state_is_enabled() {
        AmxSupport::Absent
    } else if !has_amx_bf16() {
        AmxSupport::Unusable("the processor does not report AMX-BF16")
    } else if !amx_is_permitted() {
        AmxSupport::Unusable("the operating system refuses the permission")
    // SAFETY: the processor has AMX-BF16, and permission was granted.
    } else if !unsafe { amx_multiplies() } {
        AmxSupport::Unusable("a product came out wrong")
    } else {
        AmxSupport::Works
    }
}

/// Bits 17 and 18 of XCR0: the operating system saves tile configuration and tile data.
#[cfg(target_arch = "x86_64")]
fn tile_state_is_enabled() -> bool {
    use std::arch::x86_64::{__cpuid, _xgetbv};
    #[target_feature(enable = "xsave")]
    fn enabled_state() -> u64 {
        // SAFETY: the caller checked OSXSAVE.
        unsafe { _xgetbv(0) }
    }
    let has_osxsave = __cpuid(1).ecx & (1 << 27) != 0;
    // SAFETY: OSXSAVE is set, so `xgetbv` exists.
    has_osxsave && unsafe { enabled_state() } & (3 << 17) == 3 << 17
}

/// CPUID leaf 7, EDX bits 22 (AMX-BF16) and 24 (AMX-TILE).
#[cfg(target_arch = "x86_64")]
fn has_amx_bf16() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let both = 1 << 22 | 1 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & both == both
}

/// CPUID leaf 7, EDX bit 25.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_amx_int8() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (1 << 25) != 0
}

/// `arch_prctl(ARCH_REQ_XCOMP_PERM)`; asking twice does no harm.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: asks the kernel for a permission; touches no memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx_is_permitted() -> bool {
    false
}

/// The operand of `ldtilecfg`, palette 1.
#[cfg(target_arch = "x86_64")]
#[repr(C, align(64))]
pub(crate) struct TileConfiguration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

#[cfg(target_arch = "x86_64")]
impl TileConfiguration {
    /// No register in use.
    pub(crate) const NONE: Self =
        Self { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row: [0; 16], rows: [0; 16] };

    /// The same with a register of this shape.
    pub(crate) const fn with(mut self, register: usize, rows: usize, bytes_per_row: usize) -> Self {
        (self.rows[register], self.bytes_per_row[register]) = (rows as u8, bytes_per_row as u16);
        self
    }
}

/// All eight registers with 16 rows of 64 bytes.
#[cfg(target_arch = "x86_64")]
pub(crate) static WHOLE_TILES: TileConfiguration = {
    let (mut tiles, mut register) = (TileConfiguration::NONE, 0);
    while register < 8 {
        tiles = tiles.with(register, 16, 64);
        register += 1;
    }
    tiles
};

/// Multiplies two tiles of 16 rows of 64 bytes by an instruction, into 16 × 16 sums of four bytes.
///
/// # Safety
/// Something executes the instructions of AMX and this one, and the process may use tile registers. Each pointer has 16 rows of 64 bytes.
#[cfg(target_arch = "x86_64")]
macro_rules! multiply_tiles {
    ($instruction:literal, $a:expr, $b:expr, $sums:expr) => {
        std::arch::asm!(
            "ldtilecfg [{configuration}]",
            "tilezero tmm0",
            "tileloadd tmm1, [{a} + {stride}*1]",
            "tileloadd tmm2, [{b} + {stride}*1]",
            concat!($instruction, " tmm0, tmm1, tmm2"),
            "tilestored [{sums} + {stride}*1], tmm0",
            "tilerelease",
            configuration = in(reg) &raw const WHOLE_TILES,
            a = in(reg) $a, b = in(reg) $b, sums = in(reg) $sums,
            stride = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _,
            options(nostack)
        )
    };
}

/// One product against plain arithmetic: instructions that silently compute something else are not used.
///
/// # Safety
/// Something executes the instructions of AMX, and the process may use tile registers.
#[cfg(target_arch = "x86_64")]
pub unsafe fn amx_multiplies() -> bool {
    use half::bf16;

    const ROWS: usize = 16;
    /// Values of a row: 16 columns of pairs.
    const DEPTH: usize = 32;
    let value = |i: usize| bf16::from_f32(((i * 37 % 61) as f32 - 30.0) / 16.0);
    let a: [bf16; ROWS * DEPTH] = std::array::from_fn(value);
    let b: [bf16; ROWS * DEPTH] = std::array::from_fn(|i| value(i * 7 + 3));
    let mut sums = [0f32; ROWS * ROWS];
    // SAFETY: as the caller vouches; each address has 16 rows of 64 bytes.
    unsafe { multiply_tiles!("tdpbf16ps", a.as_ptr(), b.as_ptr(), sums.as_mut_ptr()) };
    sums.iter().enumerate().all(|(i, sum)| {
        let (row, column) = (i / ROWS, i % ROWS);
        let product = |k: usize| a[row * DEPTH + k].to_f32() * b[k / 2 * DEPTH + 2 * column + k % 2].to_f32();
        let expected: f32 = (0..DEPTH).map(product).sum();
        (expected - sum).abs() <= 1e-3 * (1.0 + expected.abs())
    })
}

/// One product of signed by unsigned bytes against plain arithmetic.
///
/// # Safety
/// Those of [`amx_multiplies`], with AMX-INT8.
#[cfg(target_arch = "x86_64")]
pub unsafe fn amx_multiplies_bytes() -> bool {
    const SIDE: usize = 16;
    /// Bytes of a row: 16 columns of four.
    const DEPTH: usize = 64;
    let a: [i8; SIDE * DEPTH] = std::array::from_fn(|i| (i * 37 % 255) as u8 as i8);
    let b: [u8; SIDE * DEPTH] = std::array::from_fn(|i| (i * 91 % 253) as u8);
    let mut sums = [0i32; SIDE * SIDE];
    // SAFETY: as the caller vouches; each address has 16 rows of 64 bytes.
    unsafe { multiply_tiles!("tdpbsud", a.as_ptr(), b.as_ptr(), sums.as_mut_ptr()) };
    sums.iter().enumerate().all(|(i, sum)| {
        let (row, column) = (i / SIDE, i % SIDE);
        let product = |k: usize| i32::from(a[row * DEPTH + k]) * i32::from(b[k / 4 * DEPTH + 4 * column + k % 4]);
        *sum == (0..DEPTH).map(product).sum::<i32>()
    })
}
