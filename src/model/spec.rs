//! The tensors of a model as its family describes them: names in both formats, shapes, and how GGUF stores them.

use crate::nn::{Block, NormKind};

/// A layer as a family describes it.
pub type BlockSpec = Block<LinearSpec, NormSpec>;

/// A linear layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSpec {
    /// Path of the module in Hugging Face's model: `model.layers.3.self_attn.q_proj`.
    pub module: String,
    /// The same in GGUF: `blk.3.attn_q`.
    pub gguf: String,
    /// Output width.
    pub rows: usize,
    /// Input width.
    pub columns: usize,
    /// Whether it has a bias.
    pub bias: bool,
    /// The order of its rows in GGUF.
    pub gguf_rows: GgufRows,
}

/// A norm.
#[derive(Debug, Clone, PartialEq)]
pub struct NormSpec {
    /// Path of the module in Hugging Face's model.
    pub module: String,
    /// The same in GGUF.
    pub gguf: String,
    /// Number of values.
    pub width: usize,
    /// Formula and form of the stored values.
    pub style: NormStyle,
    /// Added to the mean square or the variance.
    pub eps: f64,
}

/// The formula of a family's norms, and the form in which their values are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormStyle {
    /// The formula.
    pub kind: NormKind,
    /// Whether there are biases.
    pub bias: bool,
    /// Added to the weight as Hugging Face stores it. GGUF stores the sum.
    pub offset: f32,
}

impl NormStyle {
    /// Root-mean-square norm with the stored weight.
    pub const RMS: Self = Self { kind: NormKind::Rms, bias: false, offset: 0.0 };
    /// Root-mean-square norm with one plus the stored weight.
    pub const RMS_PLUS_ONE: Self = Self { kind: NormKind::Rms, bias: false, offset: 1.0 };
    /// Layer norm with a bias.
    pub const LAYER: Self = Self { kind: NormKind::Layer, bias: true, offset: 0.0 };
}

/// The order of a tensor's rows in GGUF against Hugging Face's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufRows {
    /// The same.
    Same,
    /// Within each of `heads` heads, the two values that are rotated together stand side by side (llama.cpp's `permute`).
    RotatedPairs {
        /// Number of heads.
        heads: usize,
    },
    /// Hugging Face has q, k and v of each head together, GGUF all queries, then all keys, then all values.
    SplitByHead {
        /// Number of heads.
        heads: usize,
    },
    /// The same, in two tensors: the first half of the rows, which is the gate, is `ffn_gate`.
    GateApart,
}

impl GgufRows {
    /// Whether rows stand elsewhere in GGUF.
    pub fn moves_rows(self) -> bool {
        matches!(self, Self::RotatedPairs { .. } | Self::SplitByHead { .. })
    }

    /// The Hugging Face row at each of GGUF's rows; `None` where the rows do not divide into the heads.
    pub fn order(self, rows: usize) -> Option<Vec<usize>> {
        let source: fn(usize, usize, usize) -> usize = match self {
            Self::Same | Self::GateApart => |_, _, row| row,
            // llama.cpp `conversion/llama.py`, `permute`: rotary embedding of halves becomes that of pairs.
            Self::RotatedPairs { .. } => |_, head_rows, row| {
                let (head, within) = (row / head_rows, row % head_rows);
                head * head_rows + within % 2 * (head_rows / 2) + within / 2
            },
            // llama.cpp `conversion/gptneox.py`: q, k and v of each head become all queries, all keys, all values.
            Self::SplitByHead { .. } => |heads, head_rows, row| {
                let head_dim = head_rows / 3;
                let (part, within) = (row / (heads * head_dim), row % (heads * head_dim));
                within / head_dim * head_rows + part * head_dim + within % head_dim
            },
        };
        let (heads, unit) = match self {
            Self::Same | Self::GateApart => (1, 1),
            Self::RotatedPairs { heads } => (heads, 2),
            Self::SplitByHead { heads } => (heads, 3),
        };
        let head_rows = rows.checked_div(heads)?;
        let divides = head_rows > 0 && head_rows * heads == rows && head_rows.is_multiple_of(unit);
        divides.then(|| (0..rows).map(|row| source(heads, head_rows, row)).collect())
    }
}

/// A tensor that a model has.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Hugging Face's name: `model.layers.3.self_attn.q_proj.weight`.
    pub hf: String,
    /// GGUF's name: `blk.3.attn_q.weight`.
    pub gguf: String,
    /// Outermost dimension first, `[out, in]` for a projection.
    pub shape: Vec<usize>,
    /// Whether it is the weight of a layer's projection: what quantisation applies to.
    pub is_projection: bool,
    /// The order of its rows in GGUF.
    pub gguf_rows: GgufRows,
    /// GGUF stores the values with this added.
    pub gguf_offset: f32,
}

impl LinearSpec {
    /// Its weight, then its bias if it has one. `is_projection` says whether it lies in a layer.
    pub fn tensors(&self, is_projection: bool) -> impl Iterator<Item = TensorSpec> {
        let tensor = |parameter: &str, shape, is_projection| TensorSpec {
            hf: format!("{}.{parameter}", self.module),
            gguf: format!("{}.{parameter}", self.gguf),
            shape,
            is_projection,
            gguf_rows: self.gguf_rows,
            gguf_offset: 0.0,
        };
        let weight = tensor("weight", vec![self.rows, self.columns], is_projection);
        let bias = self.bias.then(|| tensor("bias", vec![self.rows], false));
        std::iter::once(weight).chain(bias)
    }
}

impl NormSpec {
    /// Its weight, then its bias if it has one.
    pub fn tensors(&self) -> impl Iterator<Item = TensorSpec> {
        let tensor = |parameter: &str, gguf_offset| TensorSpec {
            hf: format!("{}.{parameter}", self.module),
            gguf: format!("{}.{parameter}", self.gguf),
            shape: vec![self.width],
            is_projection: false,
            gguf_rows: GgufRows::Same,
            gguf_offset,
        };
        let bias = self.style.bias.then(|| tensor("bias", 0.0));
        std::iter::once(tensor("weight", self.style.offset)).chain(bias)
    }
}

/// Names of the modules outside the layers, in Hugging Face's model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OuterNames {
    /// The list of layers: `model.layers`.
    pub layers: &'static str,
    /// The embedding.
    pub embedding: &'static str,
    /// The norm before the head.
    pub final_norm: &'static str,
    /// The output head.
    pub head: &'static str,
}

impl OuterNames {
    /// The names that most decoders have.
    pub const USUAL: Self =
        Self { layers: "model.layers", embedding: "model.embed_tokens", final_norm: "model.norm", head: "lm_head" };

    /// The name under `other` of a tensor that has `name` under these names.
    pub fn translated(&self, name: &str, other: &Self) -> String {
        let pairs = [
            (self.layers, other.layers),
            (self.embedding, other.embedding),
            (self.final_norm, other.final_norm),
            (self.head, other.head),
        ];
        let found = pairs.into_iter().find_map(|(own, other)| {
            let rest = name.strip_prefix(own).filter(|rest| rest.starts_with('.'))?;
            Some(format!("{other}{rest}"))
        });
        found.unwrap_or_else(|| name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_of_rows_by_hand() {
        // Two heads of four rows: within each, halves become pairs.
        assert_eq!(GgufRows::RotatedPairs { heads: 2 }.order(8), Some(vec![0, 2, 1, 3, 4, 6, 5, 7]));
        // Two heads of q, k and v with two rows each.
        let split = GgufRows::SplitByHead { heads: 2 }.order(12);
        assert_eq!(split, Some(vec![0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]));
        assert_eq!(GgufRows::Same.order(2), Some(vec![0, 1]));
        assert_eq!(GgufRows::RotatedPairs { heads: 3 }.order(8), None);
        assert_eq!(GgufRows::SplitByHead { heads: 2 }.order(8), None);
        assert_eq!(GgufRows::RotatedPairs { heads: 0 }.order(8), None);
    }
}
