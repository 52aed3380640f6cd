//! The sequences of a batch in pieces of about the same length.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Device;
use burn_cubecl::tensor::CubeTensor;

use crate::ops::cube::rows::numbers;

/// Sequences that go through attention together.
pub(super) struct Piece {
    /// How many they are.
    pub sequences: usize,
    /// The length of the longest.
    pub length: usize,
    /// First token and length of each, one after the other.
    pub spans: CubeTensor,
}

/// The pieces of a batch, with what they were made for.
struct Known {
    lengths: Vec<usize>,
    long_above: usize,
    device: Device,
    pieces: Arc<[Piece]>,
}

/// Sequences of `lengths` in pieces, each with less than twice as many tokens padded as without. No piece has sequences both
/// up to and above `long_above` tokens. Every layer of a step asks for the same pieces, so the last are kept.
pub(super) fn pieces(lengths: &[usize], long_above: usize, device: &Device) -> Arc<[Piece]> {
    static LAST: Mutex<Option<Known>> = Mutex::new(None);

    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    match &*last {
        Some(known) if known.lengths == lengths && known.long_above == long_above && known.device == *device => {
            known.pieces.clone()
        }
        _ => {
            let pieces = made(lengths, long_above, device);
            *last =
                Some(Known { lengths: lengths.to_vec(), long_above, device: device.clone(), pieces: pieces.clone() });
            pieces
        }
    }
}

fn made(lengths: &[usize], long_above: usize, device: &Device) -> Arc<[Piece]> {
    let mut first = 0;
    let mut spans: Vec<(usize, usize)> = Vec::with_capacity(lengths.len());
    for &length in lengths {
        spans.push((first, length));
        first += length;
    }
    let class = |&(_, length): &(usize, usize)| (length > long_above, length.next_power_of_two());
    spans.sort_by_key(class);
    let together = spans.chunk_by(|one, other| class(one) == class(other));
    let piece = |spans: &[(usize, usize)]| {
        let bounds: Vec<u32> = spans.iter().flat_map(|&(first, length)| [first as u32, length as u32]).collect();
        Piece {
            sequences: spans.len(),
            length: spans.iter().map(|span| span.1).max().unwrap_or(0),
            spans: numbers(&bounds, device),
        }
    };
    together.map(piece).collect()
}
