//! Penalties on logits, and the filters that leave the candidates of a choice.

use std::collections::HashMap;

use super::{Candidate, SamplerConfig};

/// Adds the bias, then penalises what was seen: `logit < 0 ? logit · p : logit / p` once for each token of prompt and answer
/// (transformers `RepetitionPenaltyLogitsProcessor`), and `frequency · count + presence` off each token of the answer (OpenAI's
/// API).
pub(super) fn penalise(logits: &mut [f32], prompt: &[u32], answer: &[u32], config: &SamplerConfig) {
    for (token, bias) in &config.logit_bias {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit += *bias as f32;
        }
    }
    let mut counts: HashMap<u32, usize> = HashMap::new();
    for token in answer {
        *counts.entry(*token).or_default() += 1;
    }
    for (token, count) in &counts {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit -= (config.frequency_penalty * *count as f64 + config.presence_penalty) as f32;
        }
    }
    let penalty = config.repetition_penalty as f32;
    if config.repetition_penalty != 1.0 {
        for token in prompt {
            counts.entry(*token).or_default();
        }
        for token in counts.keys() {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
            }
        }
    }
}

/// Drops, from the unlikeliest up, what together has a probability of at most `1 - top_p`; one always stays
/// (`TopPLogitsWarper`). Only candidates near the greatest, whose weight is 1, are sorted: as many as can be kept.
pub(super) fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f64) {
    if top_p >= 1.0 {
        return;
    }
    let total: f64 = candidates.iter().map(|one| f64::from(one.weight)).sum();
    let mut least = 0.05f32;
    let (mut near, mut rest) = (Vec::new(), 0.0);
    while least > 0.0 {
        near = candidates.iter().copied().filter(|one| one.weight >= least).collect();
        rest = candidates.iter().filter(|one| one.weight < least).map(|one| f64::from(one.weight)).sum();
        // As compared below: what lies further away is dropped for certain.
        if (rest / total) as f32 <= (1.0 - top_p) as f32 {
            break;
        }
        least *= 0.01;
        if least < 1e-12 {
            (near, rest, least) = (candidates.clone(), 0.0, 0.0);
        }
    }
    near.sort_by(|left, right| right.weight.total_cmp(&left.weight));
    // Compared in f32 as transformers does: of ten equal tokens, `top_p = 0.9` drops exactly one.
    let threshold = (1.0 - top_p) as f32;
    let mut sum = rest / total;
    let dropped = near.iter().rev().take_while(|one| {
        sum += f64::from(one.weight) / total;
        sum as f32 <= threshold
    });
    let kept = near.len() - dropped.count();
    near.truncate(kept.max(1));
    *candidates = near;
}

/// Keeps what has at least `min_p` times the greatest probability (`MinPLogitsWarper`).
pub(super) fn keep_min_p(candidates: &mut Vec<Candidate>, min_p: f64) {
    candidates.retain(|one| f64::from(one.weight) >= min_p);
}
