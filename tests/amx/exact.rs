//! Products on AMX to the bit: whatever the order of their loops, every output is the sum along the depth that the
//! instructions give, term after term, with the epilogue added at the end.

use std::arch::asm;

use burnish::files::{Bytes, Dtype, FloatType, RawTensor};
use burnish::model::StoredWeight;
use burnish::model::load::Quant;
use burnish::ops::cpu::isa::Isa;
use burnish::ops::cpu::kernel::Element;
use burnish::ops::cpu::matrix::{Matrix, Storage, Views};
use burnish::ops::cpu::pack::{PlainColumns, RowsAsColumns};
use burnish::ops::cpu::pool;
use burnish::ops::cpu::product::{Epilogue, Part, Term, product};
use burnish::ops::cpu::rows::{OutputBuffer, Rows};
use half::bf16;

use crate::execution::{Execution, established};
use crate::{model, ops};

const SIDE: usize = 16;
const DEPTH: usize = 32;

/// A block of sums, an operand of rows, and one of columns in pairs.
#[repr(C, align(64))]
struct Operands {
    configuration: [u8; 64],
    sums: [f32; SIDE * SIDE],
    rows: [bf16; SIDE * DEPTH],
    pairs: [bf16; SIDE * DEPTH],
}

impl Operands {
    fn new() -> Self {
        let mut configuration = [0; 64];
        configuration[0] = 1;
        for register in 0..3 {
            (configuration[16 + 2 * register], configuration[48 + register]) = (64, 16);
        }
        let zeros = [bf16::ZERO; SIDE * DEPTH];
        Self { configuration, sums: [0.0; SIDE * SIDE], rows: zeros, pairs: zeros }
    }

    /// `sums += rows · columns`, by the instructions alone.
    fn multiply(&mut self) {
        // SAFETY: the caller established that something executes AMX; every operand has 16 rows of 64 bytes.
        unsafe {
            asm!(
                "ldtilecfg [{configuration}]",
                "tileloadd tmm0, [{sums} + {stride}*1]",
                "tileloadd tmm1, [{rows} + {stride}*1]",
                "tileloadd tmm2, [{pairs} + {stride}*1]",
                "tdpbf16ps tmm0, tmm1, tmm2",
                "tilestored [{sums} + {stride}*1], tmm0",
                "tilerelease",
                configuration = in(reg) self.configuration.as_ptr(), sums = in(reg) self.sums.as_mut_ptr(),
                rows = in(reg) self.rows.as_ptr(), pairs = in(reg) self.pairs.as_ptr(), stride = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _,
                options(nostack)
            );
        }
    }
}

/// A term by its values: `left[row, k]` and `right[k, column]`.
struct Values<'a> {
    depth: usize,
    left: &'a dyn Fn(usize, usize) -> f32,
    right: &'a dyn Fn(usize, usize) -> f32,
}

/// The sums of `terms`, `[rows, columns]`, in tiles of 16 by 16.
fn sums(rows: usize, columns: usize, terms: &[Values<'_>]) -> Vec<f32> {
    let mut out = vec![0f32; rows * columns];
    let at = |inside: bool, value: &dyn Fn() -> f32| if inside { bf16::from_f32(value()) } else { bf16::ZERO };
    for row in (0..rows).step_by(SIDE) {
        for column in (0..columns).step_by(SIDE) {
            let mut operands = Operands::new();
            for Values { depth, left, right } in terms {
                for k in (0..*depth).step_by(DEPTH) {
                    for (i, value) in operands.rows.iter_mut().enumerate() {
                        let (row, k) = (row + i / DEPTH, k + i % DEPTH);
                        *value = at(row < rows && k < *depth, &|| left(row, k));
                    }
                    for (i, value) in operands.pairs.iter_mut().enumerate() {
                        let (column, k) = (column + i % DEPTH / 2, k + i / DEPTH * 2 + i % 2);
                        *value = at(column < columns && k < *depth, &|| right(k, column));
                    }
                    operands.multiply();
                }
            }
            for (i, &sum) in operands.sums.iter().enumerate() {
                if row + i / SIDE < rows && column + i % SIDE < columns {
                    out[(row + i / SIDE) * columns + column + i % SIDE] = sum;
                }
            }
        }
    }
    out
}

/// Rows of values in bf16, `stride` apart.
struct Narrow {
    data: Vec<bf16>,
    stride: usize,
}

impl Narrow {
    fn new(rows: usize, stride: usize, seed: u64) -> Self {
        Self { data: ops::values(rows * stride, seed).into_iter().map(bf16::from_f32).collect(), stride }
    }

    fn rows(&self) -> Rows<'_> {
        Rows::Bf16 { data: &self.data, stride: self.stride }
    }

    fn at(&self, row: usize, column: usize) -> f32 {
        self.data[row * self.stride + column].to_f32()
    }
}

/// Whether AMX can be tried at all; from here on the kernels use it.
fn amx_is_there() -> bool {
    let there = !matches!(established(), Execution::Nobody(_));
    if there {
        Isa::Amx.choose();
    }
    there
}

/// Computes `parts` on several numbers of threads, into bf16 and on one into f32 too, and compares every value with
/// `expected(row, column)`, to the bit.
fn compare(what: &str, rows: usize, width: usize, parts: &[Part<'_, bf16>], expected: &dyn Fn(usize, usize) -> f32) {
    for threads in [1, 16] {
        pool::with_threads(threads, || {
            let mut narrow: Vec<bf16> = Vec::with_capacity(rows * width);
            let target = OutputBuffer::fresh_bf16(narrow.spare_capacity_mut(), width);
            product(rows, parts, Epilogue::default(), target);
            // SAFETY: the parts cover every column.
            unsafe { narrow.set_len(rows * width) };
            let mut wide = vec![f32::NAN; rows * width];
            if threads == 1 {
                product(rows, parts, Epilogue::default(), OutputBuffer::f32(&mut wide, width));
            }
            for at in 0..rows * width {
                let expected = expected(at / width, at % width);
                let place = || format!("{what}, {threads} threads, row {}, column {}", at / width, at % width);
                assert_eq!(narrow[at], bf16::round(expected), "{}", place());
                if threads == 1 {
                    assert_eq!(wide[at].to_bits(), expected.to_bits(), "{}: {} for {expected}", place(), wide[at]);
                }
            }
        });
    }
}

#[test]
fn parts_that_share_rows_have_the_sums_of_their_terms_to_the_bit() {
    let _turn = model::turn();
    if !amx_is_there() {
        return;
    }
    let (rows, input, rank) = (37, 100, 5);
    let widths = [390, 70, 33];
    let (x, low) = (Narrow::new(rows, input + 4, 1), ops::values(rows * 2 * rank, 2));
    let low_at = |row: usize, k: usize| low[row * 2 * rank + rank + k];
    let weights: Vec<Matrix> = widths
        .iter()
        .enumerate()
        .map(|(index, &width)| {
            let values = ops::values(width * input, 10 + index as u64);
            Matrix::new(width, input, Storage::Bf16(Bytes::from(FloatType::Bf16.encode(&values))))
        })
        .collect();
    let factor = ops::values(widths[0] * rank, 20);
    let bias = ops::values(widths[1], 21);
    let views: Vec<_> = weights.iter().map(Views::<bf16>::forward_columns).collect();
    let update = RowsAsColumns { data: &factor[..], stride: rank, depth: rank, scale: 1.5 };
    let low_rows = Rows::F32 { data: &low, stride: 2 * rank }.from_column(rank);
    let mut column = 0;
    let mut parts = Vec::new();
    for (index, view) in views.iter().enumerate() {
        let mut terms = vec![Term { rows: x.rows(), columns: &**view }];
        if index == 0 {
            terms.push(Term { rows: low_rows, columns: &update });
        }
        let bias = (index == 1).then_some(bias.as_slice());
        parts.push(Part { column, columns: widths[index], terms, bias });
        column += widths[index];
    }
    let expected: Vec<Vec<f32>> = (weights.iter().enumerate())
        .map(|(index, weight)| {
            let values = decoded(weight);
            let left = |row: usize, k: usize| x.at(row, k);
            let right = |k: usize, column: usize| values[column * input + k];
            let low_right = |k: usize, column: usize| factor[column * rank + k] * 1.5;
            let mut terms = vec![Values { depth: input, left: &left, right: &right }];
            if index == 0 {
                terms.push(Values { depth: rank, left: &low_at, right: &low_right });
            }
            sums(rows, widths[index], &terms)
        })
        .collect();
    compare("forward", rows, column, &parts, &|row, column| match column {
        0..390 => expected[0][row * widths[0] + column],
        390..460 => expected[1][row * widths[1] + column - 390] + bias[column - 390],
        _ => expected[2][row * widths[2] + column - 460],
    });
}

fn decoded(matrix: &Matrix) -> Vec<f32> {
    let mut values = vec![0f32; matrix.rows() * matrix.columns()];
    for (row, values) in values.chunks_exact_mut(matrix.columns()).enumerate() {
        matrix.decode(row, 0, values);
    }
    values
}

/// A matrix of random values in each kind of storage that packs in a way of its own.
fn stored(rows: usize, columns: usize, seed: u64) -> Vec<(&'static str, Matrix)> {
    let values = ops::values(rows * columns, seed);
    let raw = RawTensor { dtype: Dtype::F32, shape: vec![rows, columns], bytes: FloatType::F32.encode(&values).into() };
    let nf4 = match StoredWeight::Dense(raw).packed("w", Quant::Nf4) {
        Ok(StoredWeight::Nf4(tensor)) => Storage::Nf4(tensor),
        other => panic!("packed: {other:?}"),
    };
    let bf16 = Storage::Bf16(Bytes::from(FloatType::Bf16.encode(&values)));
    let f32 = Storage::F32(Bytes::from(FloatType::F32.encode(&values)));
    [("bf16", bf16), ("f32", f32), ("nf4", nf4)]
        .map(|(name, storage)| (name, Matrix::new(rows, columns, storage)))
        .into()
}

#[test]
fn deep_products_are_cut_along_the_depth_without_a_change_of_a_bit() {
    let _turn = model::turn();
    if !amx_is_there() {
        return;
    }
    let (rows, columns) = (18, 390);
    // Two parts of a panel; and so deep that several panels take turns, whatever the storage.
    for (depth, storages) in [(671, 3), (2240, 1)] {
        let x = Narrow::new(rows, depth, 3);
        let left = |row: usize, k: usize| x.at(row, k);
        for (name, matrix) in stored(columns, depth, 4).into_iter().take(storages) {
            let values = decoded(&matrix);
            let expected = sums(rows, columns, &[Values { depth, left: &left, right: &|k, n| values[n * depth + k] }]);
            let view = Views::<bf16>::forward_columns(&matrix);
            let part = Part::whole(columns, Term { rows: x.rows(), columns: &*view });
            let what = format!("x·Wᵀ {depth} deep over {name}");
            compare(&what, rows, columns, &part, &|row, column| expected[row * columns + column]);
        }
        for (name, matrix) in stored(depth, columns, 5).into_iter().take(storages) {
            let values = decoded(&matrix);
            let expected =
                sums(rows, columns, &[Values { depth, left: &left, right: &|k, n| values[k * columns + n] }]);
            let view = Views::<bf16>::gradient_columns_of(&matrix, 0, depth);
            let part = Part::whole(columns, Term { rows: x.rows(), columns: &*view });
            let what = format!("g·W {depth} deep over {name}");
            compare(&what, rows, columns, &part, &|row, column| expected[row * columns + column]);
        }
    }
}

#[test]
fn many_rows_and_terms_that_are_added_to_values_keep_every_bit() {
    let _turn = model::turn();
    if !amx_is_there() {
        return;
    }
    // More rows than a piece has, and terms of which no depth is a whole number of steps.
    let (rows, columns, depths) = (530, 385, [40, 31, 9]);
    let g = Narrow::new(rows, 40 + 31, 6);
    let low = ops::values(rows * 9, 7);
    let residual = Narrow::new(rows, columns, 8);
    let before = ops::values(rows * columns, 9);
    let weights: Vec<Vec<f32>> = depths.iter().map(|&depth| ops::values(depth * columns, 30 + depth as u64)).collect();
    let right = |term: usize| {
        let weight = &weights[term];
        move |k: usize, column: usize| weight[k * columns + column]
    };
    let views: Vec<PlainColumns<'_, f32>> = (0..3)
        .map(|term| PlainColumns { data: &weights[term][..], stride: columns, depth: depths[term], scale: 1.0 })
        .collect();
    let lefts = [g.rows(), g.rows().from_column(40), Rows::F32 { data: &low, stride: 9 }];
    let terms = || lefts.iter().zip(&views).map(|(&rows, columns)| Term::<bf16> { rows, columns }).collect();
    let parts = [Part { column: 0, columns, terms: terms(), bias: None }];
    let expected = [
        Values { depth: 40, left: &|row, k| g.at(row, k), right: &right(0) },
        Values { depth: 31, left: &|row, k| g.at(row, 40 + k), right: &right(1) },
        Values { depth: 9, left: &|row, k| low[row * 9 + k], right: &right(2) },
    ];
    let expected = sums(rows, columns, &expected);
    compare("terms", rows, columns, &parts, &|row, column| expected[row * columns + column]);
    for threads in [1, 3] {
        pool::with_threads(threads, || {
            let mut sums = before.clone();
            let epilogue = Epilogue { residual: Some(residual.rows()), accumulate: true };
            product(rows, &parts, epilogue, OutputBuffer::f32(&mut sums, columns));
            for (at, &sum) in sums.iter().enumerate() {
                let wanted = expected[at] + residual.data[at].to_f32() + before[at];
                assert_eq!(sum.to_bits(), wanted.to_bits(), "row {}, column {}", at / columns, at % columns);
            }
        });
    }
}
