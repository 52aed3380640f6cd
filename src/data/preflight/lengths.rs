//! The lengths of sequences as a histogram.

use serde::Serialize;

use crate::data::encoded::Encoded;

/// A class of lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LengthClass {
    /// The most tokens of a sequence of this class; the class before ends where this one begins.
    pub up_to: usize,
    /// The sequences of this class.
    pub sequences: usize,
}

/// The shortest class, in tokens.
const FIRST: usize = 16;

/// The numbers of sequences by length, each class twice as long as the one before; from the first class that has a sequence
/// to the last.
pub fn histogram(sequences: &[Encoded]) -> Vec<LengthClass> {
    let mut classes: Vec<LengthClass> = Vec::new();
    for length in sequences.iter().map(Encoded::longest_tokens) {
        let class = length.max(FIRST).next_power_of_two();
        while classes.last().is_none_or(|last| last.up_to < class) {
            let up_to = classes.last().map_or(FIRST, |last| 2 * last.up_to);
            classes.push(LengthClass { up_to, sequences: 0 });
        }
        if let Some(found) = classes.iter_mut().find(|other| other.up_to == class) {
            found.sequences += 1;
        }
    }
    let first = classes.iter().position(|class| class.sequences > 0).unwrap_or(0);
    classes.split_off(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Judged;

    #[test]
    fn lengths_fall_into_classes_of_powers_of_two() {
        let sequence = |length: usize| Encoded {
            ids: vec![0; length],
            trained: vec![true; length],
            untrained_turns: 0,
            weight: 1.0,
            judged: Judged::Not,
        };
        let sequences: Vec<Encoded> = [40, 33, 200, 64, 65].map(sequence).into();
        let found: Vec<(usize, usize)> =
            histogram(&sequences).iter().map(|class| (class.up_to, class.sequences)).collect();
        assert_eq!(found, [(64, 3), (128, 1), (256, 1)]);
        assert!(histogram(&[]).is_empty());
    }
}
