//! Numbers of tensor types in a GGUF tensor table (`enum ggml_type` of ggml.h).

use crate::files::Dtype;
use crate::quant::BlockType;

/// The dtype with this number; `None` for types that are not read.
pub(super) fn dtype_of(id: u32) -> Option<Dtype> {
    match id {
        0 => Some(Dtype::F32),
        1 => Some(Dtype::F16),
        24 => Some(Dtype::I8),
        26 => Some(Dtype::I32),
        27 => Some(Dtype::I64),
        30 => Some(Dtype::Bf16),
        other => BlockType::from_ggml_type_id(other).map(Dtype::Block),
    }
}

/// The number of a dtype; `None` for `U8`, which GGUF does not have.
pub(super) fn id_of(dtype: Dtype) -> Option<u32> {
    match dtype {
        Dtype::F32 => Some(0),
        Dtype::F16 => Some(1),
        Dtype::I8 => Some(24),
        Dtype::I32 => Some(26),
        Dtype::I64 => Some(27),
        Dtype::Bf16 => Some(30),
        Dtype::Block(block) => Some(block.ggml_type_id()),
        Dtype::U8 => None,
    }
}

/// Names of ggml types that are known and not read here (`enum ggml_type`).
pub(super) fn unsupported_type_name(id: u32) -> Option<&'static str> {
    Some(match id {
        4 => "Q4_2 (removed from GGUF)",
        5 => "Q4_3 (removed from GGUF)",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        25 => "I16",
        28 => "F64",
        29 => "IQ1_M",
        31..=33 => "Q4_0 in a repacked layout (removed from GGUF)",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return None,
    })
}
