//! The innermost product: a few rows of activations by a packed panel of 32 columns, into an f32 tile.
//!
//! A *panel* holds 32 columns of the right-hand matrix, depth first. For f32 it is `[depth][32]`; for bf16 the
//! depth goes in pairs, `[depth / 2][32][2]`, as `vdpbf16ps` and `tdpbf16ps` read it. Every instruction set takes
//! the same panel, adds along the depth in the same order for every row, and is tested against the portable one.

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use half::bf16;

use super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::isa::detect::WHOLE_TILES;
use super::rows::{Rows, Stored, narrow};

/// Columns of a panel.
pub const PANEL: usize = 32;
/// The most rows any kernel computes at once.
pub const MAX_ROWS: usize = 32;
/// Rows of a tile register of AMX.
pub(super) const AMX_ROWS: usize = 16;
/// The bf16 values of a row of such a register.
pub(super) const AMX_DEPTH: usize = 32;
/// Values of a row that lie together where rows are laid out.
pub const LAID_DEPTH: usize = 16;
#[cfg(target_arch = "x86_64")]
const AVX512_ROWS: usize = avx512::ROWS;
#[cfg(target_arch = "x86_64")]
const AVX2_ROWS: usize = avx2::ROWS;
#[cfg(not(target_arch = "x86_64"))]
const AVX512_ROWS: usize = 12;
#[cfg(not(target_arch = "x86_64"))]
const AVX2_ROWS: usize = 6;

/// Picks the kernel with exactly `rows` rows, so that the accumulators live in registers.
#[cfg(target_arch = "x86_64")]
macro_rules! by_rows {
    ($rows:expr, $kernel:ident, $args:tt, [$($count:literal)*]) => {
        match $rows {
            $($count => by_rows!(@call $kernel, $count, $args),)*
            _ => unreachable!("a tile has at most as many rows as its kernel"),
        }
    };
    (@call $kernel:ident, $count:literal, ($($arg:expr),*)) => { $kernel::<$count>($($arg),*) };
}
#[cfg(target_arch = "x86_64")]
use by_rows;

/// An f32 accumulator tile, `[MAX_ROWS][PANEL]`, aligned as the kernels want it.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Tile(pub [f32; MAX_ROWS * PANEL]);

impl Tile {
    /// All zero.
    pub const ZERO: Self = Self([0.0; MAX_ROWS * PANEL]);

    /// A row of sums.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &[f32; PANEL] {
        &self.0.as_chunks().0[row]
    }
}

/// A number format that panels come in: f32, or bf16 pairs.
pub trait Element: Stored {
    /// Values of the depth that lie side by side in a panel.
    const DEPTH_UNIT: usize;

    /// Rounds to nearest.
    fn round(value: f32) -> Self;
    /// Rounds a value that a kernel computed from values of this format, and returns it as f32. It is [`Element::round`]
    /// but for NaNs that arithmetic does not make.
    fn rounded(value: f32) -> f32;
    /// The value in this format, where it is one that [`Element::rounded`] gave or that has the format already.
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
    /// The rows that [`Element::write_depth`] wrote.
    fn read_depth(panel: &[Self]) -> [[f32; PANEL]; 2];
    /// Rows that one call of [`Element::tile`] takes at most.
    fn rows_per_tile(isa: Isa) -> usize;
    /// Rows are read and written in multiples of this; values in rows beyond those asked for mean nothing.
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

    /// Whether products lay rows out for [`Element::laid_out_tile`].
    fn lays_out(isa: Isa) -> bool;

    /// [`Element::tile`] for rows in f32 that are laid out as `[depth / 16][rows][16]`.
    ///
    /// # Safety
    /// The conditions of [`Element::tile`] but for `a`, which has `rows` rows of `depth` values, rounded up to 16; and
    /// [`Element::lays_out`].
    unsafe fn laid_out_tile(
        rows: usize,
        depth: usize,
        a: *const f32,
        panel: *const Self,
        tile: *mut f32,
        accumulate: bool,
    );

    /// Whether products of many columns go through the tiles of AMX in the order of `streamed`: the format is bf16, then.
    fn streams(_: Isa) -> bool {
        false
    }
}

/// Runs `work`, which calls [`Element::tile`], in the state that the instruction set wants for it.
pub fn with_tiles<E: Element, R>(isa: Isa, work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx && E::DEPTH_UNIT == 2 {
        // SAFETY: AMX is available.
        return unsafe { amx::with_tiles(&WHOLE_TILES, work) };
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
        if isa >= Isa::Avx512 { AVX512_ROWS } else { AVX2_ROWS }
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
                return avx512::f32_tile(rows, depth, a, lda, panel, tile, accumulate);
            }
            if isa == Isa::Avx2 {
                return avx2::f32_tile(rows, depth, a, lda, panel, tile, accumulate);
            }
        }
        // SAFETY: as above.
        unsafe { portable::f32_tile(rows, depth, a, lda, panel, tile, accumulate) }
    }

    /// On Intel's processors, where it was measured: AMD's with AVX-512 use AVX512-BF16.
    fn lays_out(isa: Isa) -> bool {
        matches!(isa, Isa::Avx512 | Isa::Amx)
    }

    #[inline]
    unsafe fn laid_out_tile(
        rows: usize,
        depth: usize,
        a: *const f32,
        panel: *const f32,
        tile: *mut f32,
        accumulate: bool,
    ) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has AVX-512; the caller vouches for the buffers.
        unsafe {
            avx512::f32_laid_out_tile(rows, depth, a, panel, tile, accumulate);
        }
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("{rows} {depth} {a:?} {panel:?} {tile:?} {accumulate}: no other processor has AVX-512")
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
        narrow(from, to);
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
        if isa == Isa::Amx { 2 * AMX_ROWS } else { AVX512_ROWS }
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
                return amx::tile_product(rows, depth, a, lda, panel, tile, accumulate);
            }
            if isa == Isa::Avx512Bf16 {
                return avx512::bf16_tile(rows, depth, a, lda, panel, tile, accumulate);
            }
        }
        // SAFETY: as above.
        unsafe { portable::bf16_tile(rows, depth, a, lda, panel, tile, accumulate) }
    }

    /// Where pairs of bf16 are not multiplied, they are widened.
    fn lays_out(isa: Isa) -> bool {
        isa == Isa::Avx512
    }

    #[inline]
    unsafe fn laid_out_tile(
        rows: usize,
        depth: usize,
        a: *const f32,
        panel: *const bf16,
        tile: *mut f32,
        accumulate: bool,
    ) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has AVX-512; the caller vouches for the buffers.
        unsafe {
            avx512::widened_tile(rows, depth, a, panel, tile, accumulate);
        }
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("{rows} {depth} {a:?} {panel:?} {tile:?} {accumulate}: no other processor has AVX-512")
    }

    fn streams(isa: Isa) -> bool {
        isa == Isa::Amx
    }
}
