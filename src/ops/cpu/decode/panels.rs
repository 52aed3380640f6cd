//! Weights repacked for inference: panels of 16 rows, interleaved.
//!
//! A panel of integers is its codes, then its scales, then its minima. The codes of 32 columns are 64 bytes for each four of
//! them, `[row][column]`; as nibbles, columns `16 + i` are the high halves of columns `i`. Scales and minima are f16, `[16 rows]`
//! for each 32 columns (scales for each 16, where the format has as many). A panel of floats is bf16, `[pair of columns][row][2]`.

use half::{bf16, f16};
use memmap2::MmapMut;

use super::activations::BLOCK;
use crate::ops::cpu::matrix::{Matrix, Storage};
use crate::ops::cpu::pool;
use crate::quant::blocks::Codes;
use crate::quant::nf4;

/// Rows of a panel.
pub(super) const ROWS: usize = 16;

/// The way that codes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CodeForm {
    /// Two to a byte.
    Nibbles,
    /// Two to a byte; each is the index of a value of [`NF4_VALUES`].
    Nf4,
    /// One a byte.
    Bytes,
}

impl CodeForm {
    /// Bytes of the codes of a block of a panel.
    pub(super) fn block_bytes(self) -> usize {
        if self == Self::Bytes { ROWS * BLOCK } else { ROWS * BLOCK / 2 }
    }
}

/// The form of the values of a panel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Form {
    /// Codes in blocks of 32 with scales.
    Integers {
        /// The form of a code.
        codes: CodeForm,
        /// The code of zero.
        offset: u8,
        /// Whether each 16 columns have a scale of their own, not each 32.
        halves: bool,
        /// Whether blocks have minima.
        minima: bool,
    },
    /// Values in bf16.
    Floats,
}

/// NF4's values in 127ths, plus 128.
pub(super) const NF4_VALUES: [u8; 16] = {
    let mut values = [0; 16];
    let mut index = 0;
    while index < 16 {
        // Rounded to nearest; a code lies within ±1.
        values[index] = (nf4::CODE[index] * 127.0 + 128.5) as u8;
        index += 1;
    }
    values
};

/// A weight `[rows, columns]` in panels.
pub struct Panels {
    rows: usize,
    columns: usize,
    form: Form,
    panel_bytes: usize,
    /// Memory of its own, so that the system can hold a large weight in large pages: every weight is read for every token.
    bytes: MmapMut,
}

impl Form {
    fn of(matrix: &Matrix) -> Self {
        if !matrix.columns().is_multiple_of(BLOCK) {
            return Self::Floats;
        }
        match matrix.storage() {
            Storage::Blocks(block, _) => Self::Integers {
                codes: if block.has_nibbles() { CodeForm::Nibbles } else { CodeForm::Bytes },
                offset: block.code_offset(),
                halves: *block == crate::quant::BlockType::Q6K,
                minima: block.has_minima(),
            },
            Storage::Nf4(tensor)
                if tensor.block.is_multiple_of(BLOCK) && matrix.columns().is_multiple_of(tensor.block) =>
            {
                Self::Integers { codes: CodeForm::Nf4, offset: 128, halves: false, minima: false }
            }
            Storage::Int8(_) => Self::Integers { codes: CodeForm::Bytes, offset: 128, halves: false, minima: false },
            _ => Self::Floats,
        }
    }

    /// Bytes of the codes of a block, and of its scales and minima.
    fn block_bytes(self) -> (usize, usize, usize) {
        match self {
            Self::Integers { codes, halves, minima, .. } => {
                (codes.block_bytes(), 2 * ROWS * (1 + usize::from(halves)), 2 * ROWS * usize::from(minima))
            }
            Self::Floats => (2 * ROWS * BLOCK, 0, 0),
        }
    }

    fn panel_bytes(self, columns: usize) -> usize {
        let bytes = match self {
            Self::Integers { .. } => {
                let (codes, scales, minima) = self.block_bytes();
                columns / BLOCK * (codes + scales + minima)
            }
            Self::Floats => columns.div_ceil(2) * 4 * ROWS,
        };
        bytes.next_multiple_of(64)
    }
}

impl Panels {
    /// Repacks a weight. Codes stay as they are; scales become f16, and weights without codes bf16.
    pub fn new(matrix: &Matrix) -> Self {
        let (rows, columns, form) = (matrix.rows(), matrix.columns(), Form::of(matrix));
        let panel_bytes = form.panel_bytes(columns);
        let mut bytes = MmapMut::map_anon(rows.div_ceil(ROWS) * panel_bytes).expect("memory for a weight");
        #[cfg(target_os = "linux")]
        let _ = bytes.advise(memmap2::Advice::HugePage);
        pool::for_each_chunk(&mut bytes, panel_bytes, |panel, bytes| {
            for row in panel * ROWS..((panel + 1) * ROWS).min(rows) {
                match form {
                    Form::Integers { codes, .. } => put_codes(matrix, row, form, codes, bytes),
                    Form::Floats => put_floats(matrix, row, bytes),
                }
            }
        });
        Self { rows, columns, form, panel_bytes, bytes }
    }

    /// Bytes that the repacked form of a weight takes.
    pub fn bytes_of(matrix: &Matrix) -> usize {
        matrix.rows().div_ceil(ROWS) * Form::of(matrix).panel_bytes(matrix.columns())
    }

    /// Number of rows (a projection's outputs).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (a projection's inputs).
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Whether its products take rounded activations.
    pub fn needs_codes(&self) -> bool {
        self.form != Form::Floats
    }

    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// The bytes of a panel: codes, scales and minima.
    pub(super) fn panel(&self, panel: usize) -> (&[u8], &[u8], &[u8]) {
        let panel = &self.bytes[panel * self.panel_bytes..][..self.panel_bytes];
        let blocks = self.columns / BLOCK;
        let (codes, scales, minima) = self.form.block_bytes();
        match self.form {
            Form::Integers { .. } => {
                let (codes, rest) = panel.split_at(blocks * codes);
                let (scales, rest) = rest.split_at(blocks * scales);
                (codes, scales, &rest[..blocks * minima])
            }
            Form::Floats => (panel, &[], &[]),
        }
    }
}

/// Writes a row of codes, scales and minima into its panel.
fn put_codes(matrix: &Matrix, row: usize, form: Form, code_form: CodeForm, panel: &mut [u8]) {
    let (lane, blocks) = (row % ROWS, matrix.columns() / BLOCK);
    let (code_bytes, scale_bytes, minimum_bytes) = form.block_bytes();
    let (all_codes, rest) = panel.split_at_mut(blocks * code_bytes);
    let (all_scales, all_minima) = rest.split_at_mut(blocks * scale_bytes);
    for block in 0..blocks {
        let Codes { codes, scales, minimum } = codes_of(matrix, row, block);
        let target = &mut all_codes[block * code_bytes..][..code_bytes];
        match code_form {
            CodeForm::Bytes => put_fours(&codes, lane, target),
            CodeForm::Nibbles | CodeForm::Nf4 => {
                let both: [u8; BLOCK / 2] = std::array::from_fn(|i| codes[i] | codes[BLOCK / 2 + i] << 4);
                put_fours(&both, lane, target);
            }
        }
        let put = |bytes: &mut [u8], value: f32| {
            bytes[2 * lane..2 * lane + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
        };
        for (half, bytes) in all_scales[block * scale_bytes..][..scale_bytes].chunks_exact_mut(2 * ROWS).enumerate() {
            put(bytes, scales[half]);
        }
        if minimum_bytes > 0 {
            put(&mut all_minima[block * minimum_bytes..][..minimum_bytes], minimum);
        }
    }
}

/// Writes bytes of a row into a block of its panel, four neighbours at a time.
fn put_fours(bytes: &[u8], lane: usize, block: &mut [u8]) {
    for (bytes, line) in bytes.as_chunks::<4>().0.iter().zip(block.chunks_exact_mut(4 * ROWS)) {
        line[4 * lane..4 * lane + 4].copy_from_slice(bytes);
    }
}

/// The codes of 32 columns of a row.
fn codes_of(matrix: &Matrix, row: usize, block: usize) -> Codes {
    let start = row * matrix.columns() + block * BLOCK;
    match matrix.storage() {
        Storage::Blocks(block_type, bytes) => {
            let (values, size) = (block_type.values_per_block(), block_type.bytes_per_block());
            block_type.codes(&bytes[start / values * size..][..size], start % values / BLOCK)
        }
        Storage::Nf4(tensor) => Codes {
            // The first value of a byte is its high half.
            codes: std::array::from_fn(|i| tensor.packed[(start + i) / 2] >> (4 * ((start + i + 1) % 2)) & 15),
            scales: [tensor.scales.get(start / tensor.block) / 127.0; 2],
            minimum: 0.0,
        },
        Storage::Int8(tensor) => Codes {
            codes: std::array::from_fn(|i| tensor.codes[start + i] ^ 0x80),
            scales: [tensor.row_absmax[row] / 127.0; 2],
            minimum: 0.0,
        },
        Storage::F32(_) | Storage::F16(_) | Storage::Bf16(_) => unreachable!("floats have no codes"),
    }
}

/// Writes a row of floats into its panel.
fn put_floats(matrix: &Matrix, row: usize, panel: &mut [u8]) {
    let mut values = vec![0f32; matrix.columns()];
    matrix.decode(row, 0, &mut values);
    for (column, value) in values.into_iter().enumerate() {
        let at = column / 2 * 4 * ROWS + 4 * (row % ROWS) + 2 * (column % 2);
        panel[at..at + 2].copy_from_slice(&bf16::from_f32(value).to_le_bytes());
    }
}
