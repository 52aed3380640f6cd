//! Row-wise 8-bit integers, the weight format of LLM.int8 (bitsandbytes `Linear8bitLt`).
//!
//! A row keeps its largest magnitude (`SCB` in a checkpoint) and a signed byte per value:
//! `value = code * absmax / 127`.

use crate::quant::float::round_ties_even;

/// Quantises one row into `codes`, as long as the row, and returns its largest magnitude.
/// `code = round(value * (127 / absmax))`, ties to even. `row` must be finite.
pub fn quantise_row(row: &[f32], codes: &mut [i8]) -> f32 {
    debug_assert_eq!(row.len(), codes.len());
    let absmax = row.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    let scale = if absmax > 0.0 { 127.0 / absmax } else { 0.0 };
    for (code, value) in codes.iter_mut().zip(row) {
        *code = round_ties_even(value * scale) as i8;
    }
    absmax
}

/// Decodes values of a row whose largest magnitude is `absmax`.
#[inline(always)]
pub fn decode_row(codes: &[u8], absmax: f32, out: &mut [f32]) {
    debug_assert_eq!(codes.len(), out.len());
    // The order of operations and the constant of bitsandbytes' `int8_vectorwise_dequant`.
    const ONE_127TH: f32 = 7.874_016e-3;
    for (value, code) in out.iter_mut().zip(codes) {
        *value = f32::from(*code as i8) * absmax * ONE_127TH;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extremes_and_zero_come_back() {
        let row = [0.5, -2.0, 0.0, 2.0, 1.0];
        let mut codes = [0; 5];
        let absmax = quantise_row(&row, &mut codes);
        assert_eq!((absmax, codes), (2.0, [32, -127, 0, 127, 64]));
        let mut zero = [1; 3];
        assert_eq!((quantise_row(&[0.0; 3], &mut zero), zero), (0.0, [0; 3]));
    }
}
