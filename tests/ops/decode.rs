//! Products by repacked weights: every format, odd sizes, every instruction set, one row as among others.

use std::sync::Arc;

use burnish::files::Bytes;
use burnish::files::bitsandbytes::{Int8Tensor, Nf4Scales, Nf4Tensor};
use burnish::ops::cpu::decode::{Input, Member, Panels, Weight, products};
use burnish::ops::cpu::isa::Isa;
use burnish::ops::cpu::matrix::{Matrix, Storage};
use burnish::quant::{BlockType, float, int8, nf4};

use super::{relative, values};
use crate::model::{instruction_sets, turn};

/// A weight in each format, with the largest error of products that take rounded activations.
fn weights(rows: usize, columns: usize) -> Vec<(String, Matrix)> {
    let dense = values(rows * columns, 3);
    let mut all = vec![
        ("f32".to_owned(), Matrix::new(rows, columns, Storage::F32(Bytes::from(float::encode_f32(&dense))))),
        ("bf16".to_owned(), Matrix::new(rows, columns, Storage::Bf16(Bytes::from(float::encode_bf16(&dense))))),
    ];
    let (mut codes, mut row_absmax) = (vec![0i8; rows * columns], Vec::new());
    for (row, codes) in dense.chunks_exact(columns).zip(codes.chunks_exact_mut(columns)) {
        row_absmax.push(int8::quantise_row(row, codes));
    }
    let codes = Bytes::from(codes.into_iter().map(|code| code as u8).collect::<Vec<u8>>());
    let tensor = Int8Tensor { shape: [rows, columns], codes, row_absmax: row_absmax.into() };
    all.push(("int8".to_owned(), Matrix::new(rows, columns, Storage::Int8(tensor))));
    let (mut packed, mut absmax) = (vec![0; rows * columns / 2], vec![0.0; (rows * columns).div_ceil(64)]);
    nf4::quantise(&dense, &mut packed, &mut absmax);
    let scales = Nf4Scales::Single(absmax.into());
    let tensor = Nf4Tensor { shape: vec![rows, columns], block: 64, packed: Bytes::from(packed), scales };
    all.push(("nf4".to_owned(), Matrix::new(rows, columns, Storage::Nf4(tensor))));
    for block in BlockType::ALL.into_iter().filter(|block| columns.is_multiple_of(block.values_per_block())) {
        let size = block.bytes_per_block();
        let mut bytes: Vec<u8> = (0..rows * columns / block.values_per_block() * size)
            .map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0])
            .collect();
        for block_bytes in bytes.chunks_exact_mut(size) {
            for &offset in block.scale_offsets() {
                // An f16 from 1/16 to 1/8.
                block_bytes[offset + 1] = 0x2c | block_bytes[offset + 1] & 3;
            }
        }
        let storage = Storage::Blocks(block, Bytes::from(bytes));
        all.push((block.name().to_owned(), Matrix::new(rows, columns, storage)));
    }
    all
}

/// `x · Wᵀ` in f64 by the decoded weight.
fn expected(matrix: &Matrix, x: &[f32]) -> Vec<f32> {
    let columns = matrix.columns();
    let mut row = vec![0f32; columns];
    let mut out = vec![0f32; x.len() / columns * matrix.rows()];
    for index in 0..matrix.rows() {
        matrix.decode(index, 0, &mut row);
        for (x, out) in x.chunks_exact(columns).zip(out.chunks_exact_mut(matrix.rows())) {
            out[index] = x.iter().zip(&row).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() as f32;
        }
    }
    out
}

fn multiplied(weight: &Weight, x: &[f32]) -> Vec<f32> {
    let input = Input::new(x, weight.columns(), weight.needs_codes());
    let (rows, width) = (x.len() / weight.columns(), weight.rows());
    let out = std::sync::Mutex::new(vec![f32::NAN; rows * width]);
    products(&input, &[Member { weight, column: 0 }], |row, column, outputs| {
        let mut out = out.lock().expect("no panic");
        out[row * width + column..][..outputs.len()].copy_from_slice(outputs);
    });
    out.into_inner().expect("no panic")
}

#[test]
fn products_by_repacked_weights_are_near_those_in_f64() {
    let _turn = turn();
    // More than 16 tokens go through tiles where there are any, and the rest of them does not.
    for (rows, columns, tokens) in [(16, 64, 1), (37, 256, 35), (5, 96, 3), (33, 45, 2), (100, 512, 9), (20, 288, 16)] {
        for (name, matrix) in weights(rows, columns) {
            if columns % 2 == 1 && name == "nf4" {
                continue;
            }
            let matrix = Arc::new(matrix);
            let x = values(tokens * columns, 17);
            let expected = expected(&matrix, &x);
            let place = |isa: Isa| format!("{name} {rows}x{columns} for {tokens} on {}", isa.name());
            let mut of_isas: Vec<Vec<f32>> = Vec::new();
            for isa in instruction_sets() {
                isa.choose();
                let exact = multiplied(&Weight::AsStored(matrix.clone()), &x);
                assert!(relative(&exact, &expected) < 1e-5, "as stored, {}", place(isa));
                let weight = Weight::Repacked(Arc::new(Panels::new(&matrix)));
                let found = multiplied(&weight, &x);
                assert!(relative(&found, &expected) < 1.5e-2, "{}: {}", place(isa), relative(&found, &expected));
                // Each row by itself has the same bits.
                for (row, found) in x.chunks_exact(columns).zip(found.chunks_exact(rows)) {
                    assert_eq!(multiplied(&weight, row), found, "{}", place(isa));
                }
                of_isas.push(found);
            }
            for found in &of_isas {
                assert!(relative(found, &of_isas[0]) < 1e-5, "{name}: {}", relative(found, &of_isas[0]));
            }
        }
    }
    Isa::best().choose();
}
