//! Every kernel for GPUs against the reference on the processor: values and gradients, odd sizes, in f32 and, where the device
//! has it, in bf16.

use burn::tensor::{DType, Device, Tensor, TensorData};
use burnish::model::load::{Compute, computes_in};
use burnish::ops::activation::{self, Activation};
use burnish::ops::attention;
use burnish::ops::backward_from::backward_from;
use burnish::ops::cross_entropy;
use burnish::ops::frozen::FrozenWeight;
use burnish::ops::linear::Projected;
use burnish::ops::norm::{self, QkNorm, Span};

use super::{gpu, product_error};
use crate::ops::attention::attention_shapes;
use crate::ops::{relative, values};
use crate::optimisers::wrong_updates;

type Op<'a> = &'a dyn Fn(Tensor<2>) -> Tensor<2>;

/// The output of `op` for made-up values `[rows, columns]`, and the gradient of these.
fn run(op: Op<'_>, [rows, columns]: [usize; 2], device: &Device, dtype: DType) -> [Vec<f32>; 2] {
    let matrix = |[rows, columns]: [usize; 2], seed, dtype: DType| {
        let data = TensorData::new(values(rows * columns, seed), [rows, columns]);
        Tensor::<2>::from_data(data, (device, DType::F32)).cast(dtype)
    };
    let floats = |tensor: Tensor<2>| tensor.cast(DType::F32).into_data().iter::<f32>().collect();
    let x = matrix([rows, columns], 3, dtype).autodiff().require_grad();
    let y = op(x.clone());
    let gradients = backward_from(y.clone(), matrix(y.dims(), 5, y.dtype()));
    [floats(y.inner()), floats(x.grad(&gradients).expect("a gradient"))]
}

fn compare(what: &str, shape: [usize; 2], kernel: Op<'_>, reference: Op<'_>) {
    let expected = run(reference, shape, &Device::flex(), DType::F32);
    let has_bf16 = computes_in(gpu(), Compute::Bf16);
    for (dtype, tolerance) in [(DType::F32, 2e-5 * product_error()), (DType::BF16, 2e-2)] {
        if dtype == DType::BF16 && !has_bf16 {
            continue;
        }
        let ours = run(kernel, shape, gpu(), dtype);
        for (name, ours, expected) in [("value", &ours[0], &expected[0]), ("gradient", &ours[1], &expected[1])] {
            let difference = relative(ours, expected);
            assert!(difference <= tolerance, "{what} {shape:?} {dtype:?}: {name} {difference}");
        }
    }
}

#[test]
fn the_root_mean_square_norm() {
    // Of a single column the gradient is what two nearly equal values differ by.
    for (rows, width) in [(1, 3), (3, 7), (70, 64), (5, 300), (2, 1030)] {
        let weight = values(width, 9);
        compare("norm", [rows, width], &|x| norm::rms_norm(x, &weight, 1e-5), &|x| {
            norm::reference::rms_norm(x, &weight, 1e-5)
        });
    }
}

#[test]
fn the_norms_of_queries_and_keys() {
    let geometry = attention::Geometry::new(4, 2, 16);
    let norm = QkNorm { q: values(16, 1), k: values(16, 2), eps: 1e-6, span: Span::PerHead };
    compare("norms of queries and keys", [9, geometry.qkv_width()], &|x| norm::qk_norm(x, &norm, &geometry), &|x| {
        norm::reference::qk_norm(x, &norm, &geometry)
    });
}

#[test]
fn the_gated_activations() {
    for form in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
        for shape in [[1, 2], [3, 10], [65, 514]] {
            compare(&format!("{form:?}"), shape, &|x| activation::gated(x.mul_scalar(3.0), form), &|x| {
                activation::reference::gated(x.mul_scalar(3.0), form)
            });
        }
    }
}

#[test]
fn attention_over_ragged_sequences() {
    for (lengths, geometry) in attention_shapes() {
        compare(
            &format!("attention {lengths:?} {geometry:?}"),
            [lengths.iter().sum(), geometry.qkv_width()],
            &|x| attention::attention(x, &lengths, &geometry),
            &|x| attention::reference::attention(x, &lengths, &geometry),
        );
    }
}

#[test]
fn the_loss_of_each_target() {
    let (tokens, width, vocabulary) = (40, 24, 331);
    let targets: Vec<(u32, u32)> =
        (0..tokens as u32).filter(|row| row % 3 != 1).map(|row| (row, row * 7 % vocabulary as u32)).collect();
    let on = |device: &Device, dtype| {
        FrozenWeight::from_values(values(vocabulary * width, 4), vocabulary, width, device, dtype)
    };
    let here = on(&Device::flex(), DType::F32);
    for (softcap, smoothing) in [(None, 0.0), (Some(1.5), 0.0), (None, 0.1), (Some(0.8), 0.3)] {
        compare(
            &format!("loss, cap {softcap:?}, smoothing {smoothing}"),
            [tokens, width],
            &|x| {
                let weight = on(gpu(), x.dtype());
                let head = Projected { weight: &weight, bias: None, low_rank: None, column_scale: None };
                cross_entropy::cross_entropy(x, &head, &targets, softcap, smoothing)
            },
            &|x| {
                let head = Projected { weight: &here, bias: None, low_rank: None, column_scale: None };
                cross_entropy::reference::cross_entropy(x, &head, &targets, softcap, smoothing)
            },
        );
    }
}

#[test]
fn fifty_updates_by_each_rule_are_those_of_pytorch() {
    let wrong = wrong_updates(gpu(), 1e-5);
    assert!(wrong.is_empty(), "{wrong:#?}");
}
