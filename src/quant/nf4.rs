//! NF4, bitsandbytes' 4-bit format, with its double quantisation of the block scales.
//!
//! A tensor is cut, row-major and regardless of its rows, into blocks of 64 values; a block keeps its
//! largest magnitude (`absmax`) and a 4-bit code per value, two to a byte, the first in the high nibble.
//! `value = CODE[code] * absmax`. Codes and scales equal those of bitsandbytes to the bit.

pub use super::dynamic_map::DYNAMIC_MAP;

/// Number of values that share a scale: bitsandbytes' default.
pub const BLOCK: usize = 64;
/// Block scales that share a nested scale.
pub const NESTED_BLOCK: usize = 256;

/// The sixteen values a code stands for, relative to the block's scale (bitsandbytes `get_4bit_type`; the
/// quantiles of a normal distribution, QLoRA appendix E).
pub const CODE: [f32; 16] = {
    const BITS: [u32; 16] = [
        0xbf80_0000,
        0xbf32_39b1,
        0xbf06_6b30,
        0xbeca_32a0,
        0xbe91_a24d,
        0xbe3d_353f,
        0xbdba_7871,
        0x0000_0000,
        0x3da2_faff,
        0x3e24_cae3,
        0x3e7c_04dd,
        0x3ead_033a,
        0x3ee1_a4b8,
        0x3f10_07ab,
        0x3f39_13b3,
        0x3f80_0000,
    ];
    let mut code = [0.0; 16];
    let mut index = 0;
    while index < 16 {
        code[index] = f32::from_bits(BITS[index]);
        index += 1;
    }
    code
};

/// Midpoints of neighbouring codes, rounded to `f32` as bitsandbytes' CPU build rounds them; a value on one
/// takes the lower code. (The CUDA kernel has them as decimal literals, of which four differ in the last
/// bit: it disagrees with the CPU about values that lie exactly there.)
const THRESHOLDS: [f32; 15] = {
    let mut thresholds = [0.0; 15];
    let mut index = 0;
    while index < 15 {
        thresholds[index] = (CODE[index] + CODE[index + 1]) / 2.0;
        index += 1;
    }
    thresholds
};

/// The two values of a packed byte: the high nibble's, then the low one's.
static PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [CODE[byte >> 4], CODE[byte & 15]];
        byte += 1;
    }
    pairs
};

/// Bytes that `values` values pack into.
pub const fn packed_bytes(values: usize) -> usize {
    values.div_ceil(2)
}

/// Quantises whole blocks (the last may be short) into `packed`, [`packed_bytes`] long, and `absmax`, one
/// scale per block of [`BLOCK`]. `values` must be finite.
///
/// To work in parallel or in pieces, cut `values` at multiples of [`BLOCK`].
pub fn quantise(values: &[f32], packed: &mut [u8], absmax: &mut [f32]) {
    debug_assert_eq!(packed.len(), packed_bytes(values.len()));
    debug_assert_eq!(absmax.len(), values.len().div_ceil(BLOCK));
    for ((block, packed), absmax) in values.chunks(BLOCK).zip(packed.chunks_mut(BLOCK / 2)).zip(absmax) {
        *absmax = block.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
        // bitsandbytes multiplies with the reciprocal. It guards a block of zeros with a tiny scale, which
        // makes every code the one for zero.
        let reciprocal = 1.0 / absmax.max(1e-38);
        let mut codes = [0; BLOCK];
        for (code, value) in codes.iter_mut().zip(block) {
            *code = nearest_code(value * reciprocal);
        }
        // bitsandbytes pads an odd last value with a zero.
        if block.len() % 2 == 1 {
            codes[block.len()] = nearest_code(0.0);
        }
        for (byte, pair) in packed.iter_mut().zip(codes.as_chunks::<2>().0) {
            *byte = pair[0] << 4 | pair[1];
        }
    }
}

/// Index of the code nearest to `scaled`: how many thresholds lie below it.
#[inline(always)]
fn nearest_code(scaled: f32) -> u8 {
    THRESHOLDS.iter().fold(0, |code, threshold| code + u8::from(scaled > *threshold))
}

/// Decodes the values `first..first + out.len()` of a tensor. `packed` holds all of the tensor, `block`
/// values share a scale, and `scale` gives the scale of a block by its index. A range that reaches beyond
/// `packed` is decoded up to its end.
#[inline(always)]
pub fn decode(packed: &[u8], block: usize, scale: impl Fn(usize) -> f32, first: usize, out: &mut [f32]) {
    let mut position = first;
    let mut rest = out;
    while !rest.is_empty() {
        let left_in_block = block - position % block;
        let (part, after) = rest.split_at_mut(left_in_block.min(rest.len()));
        let end = position + part.len();
        let bytes = packed.get(position / 2..end.div_ceil(2)).unwrap_or_default();
        decode_block(bytes, position % 2 == 1, scale(position / block), part);
        position = end;
        rest = after;
    }
}

/// Decodes values that share `scale`; `odd` skips the first byte's high nibble.
#[inline(always)]
fn decode_block(bytes: &[u8], odd: bool, scale: f32, out: &mut [f32]) {
    let (bytes, out) = match (odd, bytes.split_first(), out.split_first_mut()) {
        (true, Some((byte, bytes)), Some((value, out))) => {
            *value = PAIRS[usize::from(*byte)][1] * scale;
            (bytes, out)
        }
        (_, _, _) if odd => return,
        _ => (bytes, out),
    };
    let (pairs, last) = out.as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(bytes) {
        let [high, low] = PAIRS[usize::from(*byte)];
        *pair = [high * scale, low * scale];
    }
    if let ([value], Some(byte)) = (last, bytes.get(pairs.len())) {
        *value = PAIRS[usize::from(*byte)][0] * scale;
    }
}

/// Block scales, themselves quantised to 8 bits.
#[derive(Debug, Clone, PartialEq)]
pub struct NestedScales {
    /// One per block of [`BLOCK`] values.
    pub codes: Vec<u8>,
    /// One per [`NESTED_BLOCK`] codes.
    pub absmax: Vec<f32>,
    /// Mean of the scales, added back.
    pub offset: f32,
}

/// Quantises block scales a second time: their mean is taken off, and blocks of [`NESTED_BLOCK`] are scaled
/// by their largest magnitude and mapped to [`DYNAMIC_MAP`].
///
/// The mean is summed in `f64`, so it may differ from torch's in the last bit, as torch's differs from
/// device to device.
pub fn quantise_scales(scales: &[f32]) -> NestedScales {
    let mean = scales.iter().map(|scale| f64::from(*scale)).sum::<f64>() / scales.len().max(1) as f64;
    let offset = mean as f32;
    let mut codes = Vec::with_capacity(scales.len());
    let mut absmax = Vec::with_capacity(scales.len().div_ceil(NESTED_BLOCK));
    for block in scales.chunks(NESTED_BLOCK) {
        let largest = block.iter().fold(0.0, |largest: f32, scale| largest.max((scale - offset).abs()));
        let reciprocal = 1.0 / largest.max(1e-38);
        codes.extend(block.iter().map(|scale| nearest_in_map((scale - offset) * reciprocal)));
        absmax.push(largest);
    }
    NestedScales { codes, absmax, offset }
}

/// Index of the entry of [`DYNAMIC_MAP`] nearest to `value`; a tie takes the lower.
fn nearest_in_map(value: f32) -> u8 {
    let upper = DYNAMIC_MAP.partition_point(|entry| *entry < value).min(255);
    let lower = upper.saturating_sub(1);
    let midpoint = (DYNAMIC_MAP[lower] + DYNAMIC_MAP[upper]) * 0.5;
    (if value > midpoint { upper } else { lower }) as u8
}

/// The scale of block `index`: `map[code] * absmax + offset`.
#[inline(always)]
pub fn nested_scale(codes: &[u8], absmax: &[f32], map: &[f32; 256], block: usize, offset: f32, index: usize) -> f32 {
    map[usize::from(codes[index])] * absmax[index / block] + offset
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_ascends_around_zero() {
        assert!(DYNAMIC_MAP.is_sorted());
        assert_eq!((DYNAMIC_MAP[127], DYNAMIC_MAP[255]), (0.0, 1.0));
        for (index, value) in DYNAMIC_MAP.iter().enumerate() {
            assert_eq!(usize::from(nearest_in_map(*value)), index);
        }
        assert_eq!((nearest_in_map(-2.0), nearest_in_map(2.0)), (0, 255));
    }

    #[test]
    fn any_range_decodes_as_part_of_the_whole() {
        let values: Vec<f32> = (0..201).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        let mut packed = vec![0; packed_bytes(values.len())];
        let mut absmax = vec![0.0; values.len().div_ceil(BLOCK)];
        quantise(&values, &mut packed, &mut absmax);
        let mut whole = vec![0.0; values.len()];
        decode(&packed, BLOCK, |block| absmax[block], 0, &mut whole);
        for first in [0, 1, 63, 64, 65, 100, 200] {
            for length in [0, 1, 2, 63, 64, 65, 100] {
                let end = (first + length).min(values.len());
                let mut part = vec![0.0; end - first];
                decode(&packed, BLOCK, |block| absmax[block], first, &mut part);
                assert_eq!(part, whole[first..end], "{first}..{end}");
            }
        }
    }
}
