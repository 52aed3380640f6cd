//! The processor's kernels, one by one: `cargo bench --bench ops`.
//!
//! Criterion reports elements a second; an element is one floating-point operation (a multiply and an add are two), so
//! `Gelem/s` reads as GFLOP/s. `BURNISH_ISA` chooses the instruction set.

use std::hint::black_box;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use burnish::files::Bytes;
use burnish::ops::activation::{Activation, gated};
use burnish::ops::attention::{Geometry, Rope, attention};
use burnish::ops::backward_from::backward_from;
use burnish::ops::cpu::isa::Isa;
use burnish::ops::cpu::matrix::{Matrix, Storage};
use burnish::ops::cross_entropy::cross_entropy;
use burnish::ops::frozen::FrozenWeight;
use burnish::ops::linear::{Projected, linear};
use burnish::ops::norm::{layer_norm, rms_norm};
use burnish::quant::float;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 % 2003) as f32 - 1001.0) / 1001.0).collect()
}

fn tensor(rows: usize, columns: usize, dtype: DType) -> Tensor<2> {
    let data = TensorData::new(values(rows * columns), [rows, columns]);
    Tensor::<2>::from_data(data, &Device::flex()).cast(dtype)
}

fn weight(rows: usize, columns: usize, dtype: DType) -> FrozenWeight {
    let values = values(rows * columns);
    let storage = match dtype {
        DType::BF16 => Storage::Bf16(Bytes::from(float::encode_bf16(&values))),
        _ => Storage::F32(Bytes::from(float::encode_f32(&values))),
    };
    FrozenWeight::from_matrix(Matrix::new(rows, columns, storage))
}

/// Times `op` forward, and forward and backward together.
fn both_ways(bench: &mut Criterion, name: &str, flops: u64, x: &Tensor<2>, op: impl Fn(Tensor<2>) -> Tensor<2>) {
    let mut group = bench.benchmark_group(format!("{name} on {}", Isa::current().name()));
    group.throughput(Throughput::Elements(flops)).sample_size(20);
    let dtype = format!("{:?}", x.dtype());
    group.bench_function(BenchmarkId::new("forward", &dtype), |bencher| {
        bencher.iter(|| black_box(op(x.clone())));
    });
    let upstream = op(x.clone());
    group.throughput(Throughput::Elements(2 * flops));
    group.bench_function(BenchmarkId::new("forward and backward", &dtype), |bencher| {
        bencher.iter(|| {
            let leaf = x.clone().autodiff().require_grad();
            let gradients = backward_from(op(leaf.clone()), upstream.clone());
            black_box(leaf.grad(&gradients))
        });
    });
    group.finish();
}

fn frozen_linear(bench: &mut Criterion) {
    for (tokens, input, output) in [(1024, 576, 1536), (1024, 1536, 576), (2048, 2048, 8192)] {
        for dtype in [DType::BF16, DType::F32] {
            let weight = weight(output, input, dtype);
            let x = tensor(tokens, input, dtype);
            let flops = 2 * (tokens * input * output) as u64;
            both_ways(bench, &format!("linear {tokens}x{input}x{output}"), flops, &x, |x| {
                linear(x, &[Projected { weight: &weight, bias: None, low_rank: None, column_scale: None }], None)
            });
        }
    }
}

fn row_by_row(bench: &mut Criterion) {
    for dtype in [DType::BF16, DType::F32] {
        let weights = values(576);
        let x = tensor(1024, 576, dtype);
        both_ways(bench, "rms_norm 1024x576", 4 * 1024 * 576, &x, |x| rms_norm(x, &weights, 1e-5));
        both_ways(bench, "layer_norm 1024x576", 6 * 1024 * 576, &x, |x| layer_norm(x, &weights, Some(&weights), 1e-5));
        let x = tensor(1024, 3072, dtype);
        for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
            let name = format!("gated {activation:?} 1024x1536");
            both_ways(bench, &name, 10 * 1024 * 1536, &x, |x| gated(x, activation));
        }
    }
}

fn causal_attention(bench: &mut Criterion) {
    let frequencies = (0..32).map(|i| 1.0 / 10_000f32.powf(i as f32 / 32.0)).collect();
    let geometry = Geometry { rope: Some(Arc::new(Rope::new(frequencies))), ..Geometry::new(9, 3, 64) };
    let capped = Geometry { softcap: Some(50.0), ..geometry.clone() };
    for (lengths, geometry) in [(vec![256; 4], &geometry), (vec![2048], &geometry), (vec![256; 4], &capped)] {
        for dtype in [DType::BF16, DType::F32] {
            let tokens: usize = lengths.iter().sum();
            // Two products over half of the score matrix.
            let flops: usize = lengths.iter().map(|length| 2 * length * length * 64 * 9).sum();
            let x = tensor(tokens, geometry.qkv_width(), dtype);
            both_ways(bench, &format!("attention {lengths:?} cap {:?}", geometry.softcap), flops as u64, &x, |x| {
                attention(x, &lengths, geometry)
            });
        }
    }
}

fn fused_cross_entropy(bench: &mut Criterion) {
    for dtype in [DType::BF16, DType::F32] {
        let weight = weight(49_152, 576, dtype);
        let targets: Vec<(u32, u32)> = (0..256).map(|row| (row, row * 97)).collect();
        let x = tensor(256, 576, dtype);
        both_ways(bench, "cross-entropy 256x576x49152", 2 * 256 * 576 * 49_152, &x, |x| {
            cross_entropy(
                x,
                &Projected { weight: &weight, bias: None, low_rank: None, column_scale: None },
                &targets,
                None,
                0.0,
            )
        });
    }
}

criterion_group!(benches, frozen_linear, row_by_row, causal_attention, fused_cross_entropy);
criterion_main!(benches);
