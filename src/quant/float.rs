//! 16- and 32-bit floats as little-endian bytes, to `f32` slices and back.
//!
//! Bytes come from mapped files, where nothing promises alignment, so every function takes byte slices.

/// `f16` bits to the `f32` of the same value, without a branch and without a look at the CPU, so that it
/// vectorises and inlines into any kernel. Exact, subnormals included.
#[inline(always)]
pub fn f16_bits_to_f32(bits: u16) -> f32 {
    // The exponent moves from bias 15 to bias 127 by a multiplication with 2^112, which also normalises
    // subnormals. Infinity and NaN (exponent all ones) get their exponent filled up.
    const TWO_TO_112: f32 = f32::from_bits(0x7780_0000);
    let magnitude = (u32::from(bits) & 0x7fff) << 13;
    let scaled = (f32::from_bits(magnitude) * TWO_TO_112).to_bits();
    let special = if magnitude >= 0x0f80_0000 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled | special | ((u32::from(bits) & 0x8000) << 16))
}

/// The whole number nearest to `value`, ties to even. Below 2²³ the addition of 2²³ rounds; from there on every value is whole.
/// The standard library's is a call for each value on processors that may lack SSE 4.1; this one vectorises.
#[inline(always)]
pub fn round_ties_even(value: f32) -> f32 {
    const WHOLE: f32 = 8_388_608.0;
    let magnitude = value.abs();
    if magnitude < WHOLE { (magnitude + WHOLE - WHOLE).copysign(value) } else { value }
}

/// `f32` to the nearest `bf16`, ties to even; a NaN stays a NaN.
#[inline(always)]
pub fn f32_to_bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let quiet = bits | 0x0040_0000;
    (if value.is_nan() { quiet } else { rounded } >> 16) as u16
}

/// `f32` to the nearest `f16`, ties to even; beyond 65,504 infinity.
#[inline]
pub fn f32_to_f16_bits(value: f32) -> u16 {
    half::f16::from_f32(value).to_bits()
}

/// Little-endian `f32` bytes to values. `bytes` holds `4 * out.len()` bytes.
#[inline]
pub fn decode_f32(bytes: &[u8], out: &mut [f32]) {
    debug_assert_eq!(bytes.len(), 4 * out.len());
    for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*bytes);
    }
}

/// Little-endian `bf16` bytes to values. `bytes` holds `2 * out.len()` bytes.
#[inline]
pub fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    debug_assert_eq!(bytes.len(), 2 * out.len());
    for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}

/// Little-endian `f16` bytes to values. `bytes` holds `2 * out.len()` bytes.
#[inline]
pub fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    debug_assert_eq!(bytes.len(), 2 * out.len());
    for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = f16_bits_to_f32(u16::from_le_bytes(*bytes));
    }
}

/// `SIZE` bytes a value, in a buffer of exactly that size.
fn encode<const SIZE: usize>(values: &[f32], bytes_of: impl Fn(f32) -> [u8; SIZE]) -> Vec<u8> {
    let mut bytes = vec![0; SIZE * values.len()];
    for (bytes, value) in bytes.as_chunks_mut::<SIZE>().0.iter_mut().zip(values) {
        *bytes = bytes_of(*value);
    }
    bytes
}

/// Values as little-endian `f32` bytes.
pub fn encode_f32(values: &[f32]) -> Vec<u8> {
    encode(values, |value| value.to_le_bytes())
}

/// Values rounded once to `bf16`, as little-endian bytes.
pub fn encode_bf16(values: &[f32]) -> Vec<u8> {
    encode(values, |value| f32_to_bf16_bits(value).to_le_bytes())
}

/// Values rounded once to `f16` (beyond 65,504: infinity), as little-endian bytes.
pub fn encode_f16(values: &[f32]) -> Vec<u8> {
    encode(values, |value| f32_to_f16_bits(value).to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_decodes_as_the_half_crate_does() {
        for bits in 0..=u16::MAX {
            let expected = half::f16::from_bits(bits).to_f32();
            let found = f16_bits_to_f32(bits);
            assert!(found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()), "{bits:04x}");
        }
    }

    #[test]
    fn bf16_rounds_as_the_half_crate_does() {
        // Every upper half, with lower halves around the tie.
        for upper in 0..=u16::MAX {
            for lower in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(upper) << 16 | lower);
                let expected = half::bf16::from_f32(value);
                let found = half::bf16::from_bits(f32_to_bf16_bits(value));
                assert!(found == expected || (found.is_nan() && expected.is_nan()), "{value}");
            }
        }
    }

    #[test]
    fn whole_numbers_are_the_standard_librarys() {
        for upper in 0..=u16::MAX {
            for lower in [0, 1, 0x8000, 0xffff] {
                let value = f32::from_bits(u32::from(upper) << 16 | lower);
                let (found, expected) = (round_ties_even(value), value.round_ties_even());
                assert!(found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()), "{value}");
            }
        }
    }

    #[test]
    fn encoded_values_decode_to_themselves() {
        let values = [0.0, -0.0, 1.0, -2.5, 0.15625];
        let mut back = [0.0; 5];
        decode_f32(&encode_f32(&values), &mut back);
        assert_eq!(back, values);
        decode_bf16(&encode_bf16(&values), &mut back);
        assert_eq!(back, values);
        decode_f16(&encode_f16(&values), &mut back);
        assert_eq!(back, values);
    }
}
