//! The kernels of AMX: every test of the ops again, on the processor where it has AMX, emulated where it has not.
//!
//! A binary of its own, because the emulation is of the whole process. Where nothing can run, the tests say so.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod emulator;
mod exact;
mod execution;
mod model;
#[path = "../ops/mod.rs"]
mod ops;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use burn::tensor::{DType, Device, Tensor, TensorData};
use burnish::files::Bytes;
use burnish::files::bitsandbytes::Int8Tensor;
use burnish::ops::cpu::decode::{Input, Member, Panels, Weight, products};
use burnish::ops::cpu::isa::{self, Isa};
use burnish::ops::cpu::matrix::{Matrix, Storage};
use burnish::ops::frozen::FrozenWeight;
use burnish::ops::linear::{LowRankPair, Projected, linear};
use burnish::quant::{float, int8};

use self::execution::Execution;

#[test]
fn the_products_that_are_tried_at_start_come_out_right() {
    let _turn = model::turn();
    if Isa::best() == Isa::Amx {
        // SAFETY: the processor executes AMX for this process, or the emulator does.
        assert!(unsafe { isa::amx_multiplies() && isa::amx_multiplies_bytes() });
    }
}

#[test]
fn a_tile_product_is_that_of_the_instructions_and_nothing_else_multiplies() {
    let _turn = model::turn();
    if execution::established() != Execution::Emulator {
        // The processor does not count its products; their values are tested with the ops.
        return;
    }
    Isa::Amx.choose();
    // Whole tiles of 32 rows, whole steps of depth 32; the low-rank pair (rank 8) takes one more step.
    let (tokens, input, output, rank) = (64, 96, 64, 8);
    let tensor = |rows, columns, seed| {
        Tensor::<2>::from_data(TensorData::new(ops::values(rows * columns, seed), [rows, columns]), &Device::flex())
    };
    let weight = Storage::Bf16(Bytes::from(float::encode_bf16(&ops::values(output * input, 1))));
    let weight = FrozenWeight::from_matrix(Matrix::new(output, input, weight));
    let pair = LowRankPair { a: tensor(rank, input, 2), b: tensor(output, rank, 3), scale: 2.0, dropout: None };
    let group = [Projected { weight: &weight, bias: None, low_rank: Some(pair), column_scale: None }];
    let before = emulator::PRODUCTS.load(Ordering::Relaxed);
    let y = linear(tensor(tokens, input, 4).cast(DType::BF16), &group, None);
    let products = emulator::PRODUCTS.load(Ordering::Relaxed) - before;
    drop(y);
    let whole = |rows: usize, columns: usize, depth: usize| (rows / 16) * (columns / 16) * (depth / 32);
    // `x·Aᵀ` fills a quarter of a panel, whose other columns are computed all the same.
    let expected = whole(tokens, 32, input) + whole(tokens, output, input + 32);
    assert_eq!(products, expected as u64);
}

#[test]
fn prompts_over_packed_weights_go_through_tiles_of_bytes_and_single_tokens_do_not() {
    let _turn = model::turn();
    if execution::established() != Execution::Emulator {
        return;
    }
    Isa::Amx.choose();
    let (output, input) = (40, 96);
    let mut codes = vec![0i8; output * input];
    let row_absmax: Vec<f32> = ops::values(output * input, 1)
        .chunks_exact(input)
        .zip(codes.chunks_exact_mut(input))
        .map(|(row, codes)| int8::quantise_row(row, codes))
        .collect();
    let codes = Bytes::from(codes.into_iter().map(|code| code as u8).collect::<Vec<u8>>());
    let tensor = Int8Tensor { shape: [output, input], codes, row_absmax: row_absmax.into() };
    let matrix = Matrix::new(output, input, Storage::Int8(tensor));
    let weight = Weight::Repacked(Arc::new(Panels::new(&matrix)));
    // The product that is tried is one more.
    products(
        &Input::new(&ops::values(16 * input, 3), input, true),
        &[Member { weight: &weight, column: 0 }],
        |_, _, _| {},
    );
    for (tokens, tiles) in [(1, 0), (15, 0), (16, 1), (39, 2)] {
        let x = ops::values(tokens * input, 2);
        let before = emulator::PRODUCTS.load(Ordering::Relaxed);
        products(&Input::new(&x, input, true), &[Member { weight: &weight, column: 0 }], |_, _, _| {});
        let counted = emulator::PRODUCTS.load(Ordering::Relaxed) - before;
        // A product for each tile of tokens, panel of 16 outputs and block of 32 inputs.
        assert_eq!(counted, (tiles * output.div_ceil(16) * input / 32) as u64, "{tokens} tokens");
    }
}
