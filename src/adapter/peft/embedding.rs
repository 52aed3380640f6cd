//! The low-rank pair of an embedding, whose factors PEFT stores transposed and under names of their own.

use super::config::PeftConfig;
use super::header::{PairHeader, float, matrix, other_rank};
use crate::error::{Error, Result};
use crate::files::RawTensor;

/// The pair of an embedding, or everything that is wrong with it: `lora_embedding_A` is `Bᵀ` and `lora_embedding_B` is `Aᵀ` of the
/// update `scale · B · A` of the weight.
pub(super) fn pair_of(
    place: &str,
    config: &PeftConfig,
    module: &str,
    embedding_a: RawTensor,
    embedding_b: RawTensor,
) -> Result<PairHeader> {
    const HALVES: [&str; 2] = ["lora_embedding_A", "lora_embedding_B"];
    let rank = config.rank_of(module)?;
    let ([a_rank, output], [input, b_rank]) =
        Error::both(matrix(place, HALVES[0], &embedding_a), matrix(place, HALVES[1], &embedding_b))?;
    let mut errors = Vec::new();
    if a_rank != rank {
        errors.push(other_rank(place, HALVES[0], "[rank, tokens]", [a_rank, output], rank));
    }
    if b_rank != rank {
        errors.push(other_rank(place, HALVES[1], "[width, rank]", [input, b_rank], rank));
    }
    errors.extend(
        [&embedding_a, &embedding_b]
            .into_iter()
            .zip(HALVES)
            .filter_map(|(tensor, half)| float(place, half, tensor).err()),
    );
    let scale = config.scale_of(module)? as f32;
    Error::none_of(
        errors,
        PairHeader { a: embedding_b, b: embedding_a, rank, input, output, scale, magnitude: None, is_transposed: true },
    )
}
