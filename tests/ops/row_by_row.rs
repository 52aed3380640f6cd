//! Norms and activations.

use burnish::ops::activation::{self, Activation};
use burnish::ops::attention::{Geometry, QkvLayout};
use burnish::ops::norm::{self, QkNorm, Span};

use super::{compare, tensor, values};
use crate::model::turn;

#[test]
fn norms_of_odd_widths() {
    let _turn = turn();
    for (tokens, width) in [(1, 3), (3, 5), (70, 66), (33, 256)] {
        let (weights, biases) = (values(width, 4), values(width, 5));
        let inputs = [tensor(tokens, width, 2).mul_scalar(3.0).add_scalar(0.5)];
        compare(
            &format!("rms_norm {tokens}x{width}"),
            &inputs,
            &|leaves, _| norm::rms_norm(leaves[0].clone(), &weights, 1e-5),
            &|leaves, _| norm::reference::rms_norm(leaves[0].clone(), &weights, 1e-5),
        );
        for bias in [None, Some(biases.as_slice())] {
            compare(
                &format!("layer_norm {tokens}x{width} bias {}", bias.is_some()),
                &inputs,
                &|leaves, _| norm::layer_norm(leaves[0].clone(), &weights, bias, 1e-5),
                &|leaves, _| norm::reference::layer_norm(leaves[0].clone(), &weights, bias, 1e-5),
            );
        }
    }
}

#[test]
fn norms_of_queries_and_keys_by_head_and_over_all_heads() {
    let _turn = turn();
    for (tokens, heads, kv_heads, head_dim, layout) in [
        (5, 4, 2, 16, QkvLayout::SideBySide),
        (33, 3, 1, 40, QkvLayout::SideBySide),
        (2, 2, 2, 6, QkvLayout::ByHead),
        (40, 3, 3, 64, QkvLayout::ByHead),
    ] {
        let geometry = Geometry { layout, ..Geometry::new(heads, kv_heads, head_dim) };
        let inputs = [tensor(tokens, geometry.qkv_width(), 2).mul_scalar(3.0)];
        for (span, q, k) in [(Span::PerHead, 1, 1), (Span::AllHeads, heads, kv_heads)] {
            let norm = QkNorm { q: values(q * head_dim, 6), k: values(k * head_dim, 7), eps: 1e-5, span };
            compare(
                &format!("qk_norm {tokens} tokens, {heads}/{kv_heads}x{head_dim} {layout:?} {span:?}"),
                &inputs,
                &|leaves, _| norm::qk_norm(leaves[0].clone(), &norm, &geometry),
                &|leaves, _| norm::reference::qk_norm(leaves[0].clone(), &norm, &geometry),
            );
        }
    }
}

#[test]
fn every_activation_by_itself_and_as_a_gate() {
    let _turn = turn();
    for function in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
        for (tokens, width) in [(1, 3), (3, 5), (70, 66), (33, 256)] {
            let inputs = [tensor(tokens, 2 * width, 3).mul_scalar(4.0)];
            compare(
                &format!("gated {function:?} {tokens}x{width}"),
                &inputs,
                &|leaves, _| activation::gated(leaves[0].clone(), function),
                &|leaves, _| activation::reference::gated(leaves[0].clone(), function),
            );
            compare(
                &format!("{function:?} {tokens}x{}", 2 * width),
                &inputs,
                &|leaves, _| activation::activate(leaves[0].clone(), function),
                &|leaves, _| activation::reference::activate(leaves[0].clone(), function),
            );
        }
    }
}
