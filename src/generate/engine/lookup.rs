//! Guesses of the next tokens from the tokens so far: the model checks several at once, and a greedy answer stays the same.
//!
//! Saxena 2023, "Prompt Lookup Decoding": where the last few tokens stood before, the tokens after them are likely to follow again.

/// Guesses after a guess that was wrong, or none.
const FEW: usize = 3;
/// Guesses after guesses that were all right.
const MANY: usize = 7;
/// The fewest tokens that must have stood before; one more for each guess in a row that was wrong.
const SHORTEST: usize = 2;
/// The most tokens that must have stood before.
const LONGEST: usize = 8;

/// The success of earlier guesses.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lookup {
    misses: usize,
    is_lucky: bool,
}

impl Lookup {
    /// At most `most` guesses of the tokens that follow `tokens`.
    pub(super) fn guess(self, tokens: &[u32], most: usize) -> &[u32] {
        let needed = (SHORTEST + self.misses).min(LONGEST);
        let most = most.min(if self.is_lucky { MANY } else { FEW });
        let Some(start) = tokens.len().checked_sub(needed) else { return &[] };
        let end = &tokens[start..];
        let found = (0..start).rev().find(|&at| &tokens[at..at + needed] == end);
        let after = found.map_or(&[][..], |at| &tokens[at + needed..]);
        &after[..after.len().min(most)]
    }

    /// Takes note that `right` of `guessed` tokens were right.
    pub(super) fn learn(&mut self, guessed: usize, right: usize) {
        if guessed > 0 {
            self.misses = if right == 0 { self.misses + 1 } else { 0 };
            self.is_lucky = right == guessed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_stood_before_are_guessed_and_misses_make_it_careful() {
        let tokens = [1, 2, 3, 4, 5, 9, 2, 3];
        let mut lookup = Lookup::default();
        assert_eq!(lookup.guess(&tokens, 8), [4, 5, 9]);
        assert_eq!(lookup.guess(&tokens, 1), [4]);
        assert_eq!(lookup.guess(&tokens[..5], 8), [0u32; 0]);
        lookup.learn(3, 3);
        assert_eq!(lookup.guess(&tokens, 8), [4, 5, 9, 2, 3]);
        lookup.learn(5, 0);
        assert_eq!(lookup.guess(&tokens, 8), [0u32; 0], "three tokens have not stood before");
        assert_eq!(lookup.guess(&[7, 1, 1, 1, 1], 8), [1], "the latest place counts");
    }
}
