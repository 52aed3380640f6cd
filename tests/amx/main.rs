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

use std::sync::atomic::Ordering;

use burn::tensor::{DType, Device, Tensor, TensorData};
use burnish::files::Bytes;
use burnish::ops::cpu::isa::{self, Isa};
use burnish::ops::cpu::matrix::{Matrix, Storage};
use burnish::ops::frozen::FrozenWeight;
use burnish::ops::linear::{LowRankPair, Projected, linear};
use burnish::quant::float;

use self::execution::Execution;

#[test]
fn the_product_that_is_tried_at_start_comes_out_right() {
    let _turn = model::turn();
    if Isa::best() == Isa::Amx {
        // SAFETY: the processor executes AMX for this process, or the emulator does.
        assert!(unsafe { isa::amx_multiplies() });
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
