//! The innermost product: a few rows of activations by a packed panel of 32 columns, into an f32 tile.
//!
//! A *panel* holds 32 columns of the right-hand matrix, depth first. For f32 it is `[depth][32]`; for bf16 the
//! depth goes in pairs, `[depth / 2][32][2]`, as `vdpbf16ps` and `tdpbf16ps` read it. Every instruction set takes
//! the same panel, adds along the depth in the same order for every row, and is tested against the portable one.

use half::bf16;

use super::isa::Isa;
use super::pack::Stored;
use super::product::Rows;

/// Columns of a panel.
pub const PANEL: usize = 32;
/// The most rows any kernel computes at once.
pub const MAX_ROWS: usize = 32;
/// Rows of a tile register of AMX, and the bf16 values in each.
pub const AMX_ROWS: usize = 16;
pub const AMX_DEPTH: usize = 32;
/// An f32 accumulator tile, `[MAX_ROWS][PANEL]`, aligned as the kernels want it.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Tile(pub [f32; MAX_ROWS * PANEL]);

impl Tile {
    /// All zero.
    pub const ZERO: Self = Self([0.0; MAX_ROWS * PANEL]);
}

/// A number format that panels come in: f32, or bf16 pairs.
pub trait Element: Stored {
    /// Values of the depth that lie side by side in a panel.
    const DEPTH_UNIT: usize;

    /// Rounds to nearest.
    fn round(value: f32) -> Self;
    /// What a value that a kernel computed from values of this format becomes when rounded, still as f32: as
    /// [`Element::round`], but for NaNs that arithmetic does not make.
    fn rounded(value: f32) -> f32;
    /// A value that [`Element::rounded`] gave, or that has the format already.
    fn exact(value: f32) -> Self;
    /// The slice itself where the format is f32.
    fn as_f32(values: &mut [Self]) -> Option<&mut [f32]>;
    /// The slice itself where the format is bf16.
    fn as_bf16(values: &mut [Self]) -> Option<&mut [bf16]>;
    /// The values of rows that have the format already, and the distance between them.
    fn of_rows(rows: Rows<'_>) -> Option<(&[Self], usize)>;
    /// Rounds a slice to nearest.
    fn narrow_from(from: &[f32], to: &mut [Self]);
    /// Writes the first [`Element::DEPTH_UNIT`] of `rows`, which have the format already, as one depth of a panel.
    fn write_depth(rows: &[[f32; PANEL]; 2], panel: &mut [Self]);
    /// What [`Element::write_depth`] wrote.
    fn read_depth(panel: &[Self]) -> [[f32; PANEL]; 2];
    /// Rows that one call of [`Element::tile`] takes at most.
    fn rows_per_tile(isa: Isa) -> usize;
    /// Rows are read and written in multiples of this, whatever stands in those that nobody asked for.
    fn row_step(isa: Isa) -> usize;
    /// Depth is padded with zeros to a multiple of this.
    fn depth_step(isa: Isa) -> usize;

    /// `tile[rows, 32] (+)= a[rows, depth] · panel[depth, 32]`.
    ///
    /// # Safety
    /// `isa` is supported; `rows <= rows_per_tile(isa)`; `depth` is a multiple of `depth_step(isa)`; `a` has rows of
    /// stride `lda`, `panel` has `depth * 32` values, `tile` rows of 32 values, aligned to 64 bytes; of rows there are
    /// `rows`, rounded up to `row_step(isa)`. The call is inside [`with_tiles`].
    unsafe fn tile(
        isa: Isa,
        rows: usize,
        depth: usize,
        a: *const Self,
        lda: usize,
        panel: *const Self,
        tile: *mut f32,
        accumulate: bool,
    );
}

/// Runs `work`, which calls [`Element::tile`], in the state that the instruction set wants for it.
pub fn with_tiles<E: Element, R>(isa: Isa, work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx && E::DEPTH_UNIT == 2 {
        // SAFETY: AMX is available.
        return unsafe { super::amx::with_tiles(work) };
    }
    let _ = isa;
    work()
}

impl Element for f32 {
    const DEPTH_UNIT: usize = 1;

    #[inline(always)]
    fn round(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn rounded(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn exact(value: f32) -> Self {
        value
    }

    fn as_f32(values: &mut [f32]) -> Option<&mut [f32]> {
        Some(values)
    }

    fn as_bf16(_: &mut [f32]) -> Option<&mut [bf16]> {
        None
    }

    fn of_rows(rows: Rows<'_>) -> Option<(&[f32], usize)> {
        match rows {
            Rows::F32 { data, stride } => Some((data, stride)),
            Rows::Bf16 { .. } => None,
        }
    }

    fn narrow_from(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    #[inline(always)]
    fn write_depth(rows: &[[f32; PANEL]; 2], panel: &mut [f32]) {
        panel[..PANEL].copy_from_slice(&rows[0]);
    }

    #[inline(always)]
    fn read_depth(panel: &[f32]) -> [[f32; PANEL]; 2] {
        let (row, _) = panel.split_first_chunk().expect("a depth of the panel");
        [*row, [0.0; PANEL]]
    }

    fn rows_per_tile(isa: Isa) -> usize {
        if isa >= Isa::Avx512 { x86::AVX512_ROWS } else { x86::AVX2_ROWS }
    }

    fn row_step(_: Isa) -> usize {
        1
    }

    fn depth_step(_: Isa) -> usize {
        1
    }

    #[inline]
    unsafe fn tile(
        isa: Isa,
        rows: usize,
        depth: usize,
        a: *const f32,
        lda: usize,
        panel: *const f32,
        tile: *mut f32,
        accumulate: bool,
    ) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller vouches for the instruction set and the buffers.
        unsafe {
            if isa >= Isa::Avx512 {
                return x86::f32_avx512(rows, depth, a, lda, panel, tile, accumulate);
            }
            if isa == Isa::Avx2 {
                return x86::f32_avx2(rows, depth, a, lda, panel, tile, accumulate);
            }
        }
        // SAFETY: as above.
        unsafe { portable(rows, depth, a, lda, panel, tile, accumulate) }
    }
}

impl Element for bf16 {
    const DEPTH_UNIT: usize = 2;

    #[inline(always)]
    fn round(value: f32) -> Self {
        bf16::from_bits(crate::quant::float::f32_to_bf16_bits(value))
    }

    #[inline(always)]
    fn rounded(value: f32) -> f32 {
        let bits = value.to_bits();
        f32::from_bits(bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
    }

    #[inline(always)]
    fn exact(value: f32) -> Self {
        bf16::from_bits((value.to_bits() >> 16) as u16)
    }

    fn as_f32(_: &mut [bf16]) -> Option<&mut [f32]> {
        None
    }

    fn as_bf16(values: &mut [bf16]) -> Option<&mut [bf16]> {
        Some(values)
    }

    fn of_rows(rows: Rows<'_>) -> Option<(&[bf16], usize)> {
        match rows {
            Rows::F32 { .. } => None,
            Rows::Bf16 { data, stride } => Some((data, stride)),
        }
    }

    fn narrow_from(from: &[f32], to: &mut [bf16]) {
        super::product::narrow(from, to);
    }

    #[inline(always)]
    fn write_depth(rows: &[[f32; PANEL]; 2], panel: &mut [bf16]) {
        let words: &mut [u32] = bytemuck::cast_slice_mut(&mut panel[..2 * PANEL]);
        for lane in 0..PANEL {
            words[lane] = rows[0][lane].to_bits() >> 16 | rows[1][lane].to_bits();
        }
    }

    #[inline(always)]
    fn read_depth(panel: &[bf16]) -> [[f32; PANEL]; 2] {
        let words: &[u32] = bytemuck::cast_slice(&panel[..2 * PANEL]);
        let mut rows = [[0f32; PANEL]; 2];
        for lane in 0..PANEL {
            rows[0][lane] = f32::from_bits(words[lane] << 16);
            rows[1][lane] = f32::from_bits(words[lane] & 0xffff_0000);
        }
        rows
    }

    fn rows_per_tile(isa: Isa) -> usize {
        if isa == Isa::Amx { 2 * AMX_ROWS } else { x86::AVX512_ROWS }
    }

    fn row_step(isa: Isa) -> usize {
        if isa == Isa::Amx { AMX_ROWS } else { 1 }
    }

    fn depth_step(isa: Isa) -> usize {
        if isa == Isa::Amx { AMX_DEPTH } else { Self::DEPTH_UNIT }
    }

    #[inline]
    unsafe fn tile(
        isa: Isa,
        rows: usize,
        depth: usize,
        a: *const bf16,
        lda: usize,
        panel: *const bf16,
        tile: *mut f32,
        accumulate: bool,
    ) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller vouches for the instruction set and the buffers.
        unsafe {
            if isa == Isa::Amx {
                return super::amx::tile_product(rows, depth, a, lda, panel, tile, accumulate);
            }
            if isa == Isa::Avx512Bf16 {
                return x86::bf16_avx512(rows, depth, a, lda, panel, tile, accumulate);
            }
        }
        // SAFETY: as above.
        unsafe { portable_pairs(rows, depth, a, lda, panel, tile, accumulate) }
    }
}

/// Plain Rust, f32.
unsafe fn portable(
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

/// Plain Rust, bf16 pairs; the definition that the bf16 kernels are tested against.
unsafe fn portable_pairs(
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

#[cfg(not(target_arch = "x86_64"))]
mod x86 {
    pub const AVX512_ROWS: usize = 12;
    pub const AVX2_ROWS: usize = 6;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::PANEL;

    /// 12 rows by two registers: 24 accumulators, two panel registers, the rest for broadcasts.
    pub const AVX512_ROWS: usize = 12;
    /// 6 rows by two registers of 8: 12 accumulators.
    pub const AVX2_ROWS: usize = 6;

    /// Picks the kernel with exactly `rows` rows, so that the accumulators live in registers.
    macro_rules! by_rows {
        ($rows:expr, $kernel:ident, $args:tt, [$($count:literal)*]) => {
            match $rows {
                $($count => by_rows!(@call $kernel, $count, $args),)*
                _ => unreachable!("a tile has at most as many rows as its kernel"),
            }
        };
        (@call $kernel:ident, $count:literal, ($($arg:expr),*)) => { $kernel::<$count>($($arg),*) };
    }

    #[target_feature(enable = "avx512f")]
    pub unsafe fn f32_avx512(
        rows: usize,
        depth: usize,
        a: *const f32,
        lda: usize,
        panel: *const f32,
        tile: *mut f32,
        accumulate: bool,
    ) {
        // SAFETY: as the caller vouches.
        unsafe {
            by_rows!(rows, f32_avx512_rows, (depth, a, lda, panel, tile, accumulate), [1 2 3 4 5 6 7 8 9 10 11 12])
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn f32_avx512_rows<const ROWS: usize>(
        depth: usize,
        a: *const f32,
        lda: usize,
        panel: *const f32,
        tile: *mut f32,
        accumulate: bool,
    ) {
        // SAFETY: reads `ROWS` rows of `a`, `depth * 32` values of `panel`; the tile has room for `ROWS` rows.
        unsafe {
            let out = tile;
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            if accumulate {
                for (row, sum) in sums.iter_mut().enumerate() {
                    *sum = [_mm512_load_ps(out.add(row * PANEL)), _mm512_load_ps(out.add(row * PANEL + 16))];
                }
            }
            for k in 0..depth {
                let left = _mm512_loadu_ps(panel.add(k * PANEL));
                let right = _mm512_loadu_ps(panel.add(k * PANEL + 16));
                for (row, sum) in sums.iter_mut().enumerate() {
                    let value = _mm512_set1_ps(*a.add(row * lda + k));
                    sum[0] = _mm512_fmadd_ps(value, left, sum[0]);
                    sum[1] = _mm512_fmadd_ps(value, right, sum[1]);
                }
            }
            for (row, sum) in sums.iter().enumerate() {
                _mm512_store_ps(out.add(row * PANEL), sum[0]);
                _mm512_store_ps(out.add(row * PANEL + 16), sum[1]);
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn f32_avx2(
        rows: usize,
        depth: usize,
        a: *const f32,
        lda: usize,
        panel: *const f32,
        tile: *mut f32,
        accumulate: bool,
    ) {
        // SAFETY: as the caller vouches.
        unsafe { by_rows!(rows, f32_avx2_rows, (depth, a, lda, panel, tile, accumulate), [1 2 3 4 5 6]) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn f32_avx2_rows<const ROWS: usize>(
        depth: usize,
        a: *const f32,
        lda: usize,
        panel: *const f32,
        tile: *mut f32,
        accumulate: bool,
    ) {
        // SAFETY: reads `ROWS` rows of `a`, `depth * 32` values of `panel`; the tile has room for `ROWS` rows.
        unsafe {
            for half in [0, 16] {
                let out = tile.add(half);
                let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
                if accumulate {
                    for (row, sum) in sums.iter_mut().enumerate() {
                        *sum = [_mm256_load_ps(out.add(row * PANEL)), _mm256_load_ps(out.add(row * PANEL + 8))];
                    }
                }
                for k in 0..depth {
                    let left = _mm256_loadu_ps(panel.add(k * PANEL + half));
                    let right = _mm256_loadu_ps(panel.add(k * PANEL + half + 8));
                    for (row, sum) in sums.iter_mut().enumerate() {
                        let value = _mm256_set1_ps(*a.add(row * lda + k));
                        sum[0] = _mm256_fmadd_ps(value, left, sum[0]);
                        sum[1] = _mm256_fmadd_ps(value, right, sum[1]);
                    }
                }
                for (row, sum) in sums.iter().enumerate() {
                    _mm256_store_ps(out.add(row * PANEL), sum[0]);
                    _mm256_store_ps(out.add(row * PANEL + 8), sum[1]);
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn bf16_avx512(
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
            by_rows!(rows, bf16_avx512_rows, (depth, a, lda, panel, tile, accumulate), [1 2 3 4 5 6 7 8 9 10 11 12])
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn bf16_avx512_rows<const ROWS: usize>(
        depth: usize,
        a: *const bf16,
        lda: usize,
        panel: *const bf16,
        out: *mut f32,
        accumulate: bool,
    ) {
        // SAFETY: reads `ROWS` rows of `a`, `depth * 32` values of `panel`; `out` has room for `ROWS` rows.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            if accumulate {
                for (row, sum) in sums.iter_mut().enumerate() {
                    *sum = [_mm512_load_ps(out.add(row * PANEL)), _mm512_load_ps(out.add(row * PANEL + 16))];
                }
            }
            for pair in 0..depth / 2 {
                let pairs = panel.add(pair * PANEL * 2).cast::<__m512i>();
                let left: __m512bh = std::mem::transmute(_mm512_loadu_si512(pairs));
                let right: __m512bh = std::mem::transmute(_mm512_loadu_si512(pairs.add(1)));
                for (row, sum) in sums.iter_mut().enumerate() {
                    let value = a.add(row * lda + pair * 2).cast::<i32>().read_unaligned();
                    let value: __m512bh = std::mem::transmute(_mm512_set1_epi32(value));
                    sum[0] = _mm512_dpbf16_ps(sum[0], value, left);
                    sum[1] = _mm512_dpbf16_ps(sum[1], value, right);
                }
            }
            for (row, sum) in sums.iter().enumerate() {
                _mm512_store_ps(out.add(row * PANEL), sum[0]);
                _mm512_store_ps(out.add(row * PANEL + 16), sum[1]);
            }
        }
    }
}
