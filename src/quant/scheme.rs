//! The settings of number formats: the quantisation of frozen weights in memory, and the precision of the products.

use crate::settings::choice;

choice! {
    /// Precision of the frozen matrix products and of the activations. Adapters are always f32.
    Compute {
        /// 32-bit floats: exact, slower.
        F32 = "f32",
        /// bfloat16 products with f32 sums.
        Bf16 = "bf16",
    }
}

choice! {
    /// The quantisation of the frozen weights in memory. A weight that a checkpoint holds packed stays unchanged.
    Quant {
        /// No quantisation: 16- or 32-bit floats.
        None = "none",
        /// 4-bit NormalFloat, blocks of 64.
        Nf4 = "nf4",
        /// NF4 with quantised scales.
        Nf4Double = "nf4-double",
        /// 8-bit, one scale a row.
        Int8 = "int8",
        /// The blocks of the GGUF file as they are.
        Keep = "keep",
    }
}

impl Quant {
    /// The schemes that pack the layers' projections; embedding, norms and head stay dense.
    pub const PACKING: [Self; 3] = [Self::Nf4, Self::Nf4Double, Self::Int8];

    /// Whether this scheme packs the layers' projections.
    pub fn is_packing(self) -> bool {
        Self::PACKING.contains(&self)
    }

    /// For the two NF4 schemes, whether block scales are quantised too (bitsandbytes' `bnb_4bit_use_double_quant`).
    pub fn nf4_double(self) -> Option<bool> {
        match self {
            Self::Nf4 => Some(false),
            Self::Nf4Double => Some(true),
            Self::None | Self::Int8 | Self::Keep => None,
        }
    }
}
