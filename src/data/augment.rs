//! Augmentation: other wordings of a prompt, tokens left out of it, typing errors in it, drawn anew for every epoch.
//!
//! The changes are made to the texts of an example, before template and tokenizer: an answer, the markup of a template and
//! its control tokens are never touched. Seed, epoch and the number of the example decide them, and nothing else: no state
//! is kept, and threads, packing and batch size have no effect.

use std::ops::Range;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::encode::Encoder;
use super::encoded::Encoded;
use super::example::{Example, Message, Role};
use crate::settings::{Limit, below, section};

/// The place of the prompt in a wording.
const PROMPT: &str = "{prompt}";

section! {
    /// Changes of the prompts of the training examples, drawn anew for every epoch. Answers and the markup of a chat template are
    /// never touched. An example that would become longer than `max_seq_tokens` stays as it is.
    Augment {
        /// Texts that take the place of the prompt, of the instruction, or of the first message of the user; `{prompt}` in
        /// them stands for that text. One of them is drawn for each example: list `"{prompt}"` to draw the text alone too.
        wordings: Vec<String> = Take(Vec::new()), Limit::new("texts with `{prompt}` in them", |all: &Vec<String>| all.iter().all(|text| text.contains(PROMPT)));
        /// The probability that a token of a prompt is left out.
        token_dropout: f64 = Take(0.0), below(0.0, 1.0);
        /// The probability that a letter of a prompt is mistyped: left out, doubled, swapped with the next letter, or replaced
        /// by a neighbour on the keyboard.
        typing_errors: f64 = Take(0.0), below(0.0, 1.0);
    }
}

/// Training examples that change from epoch to epoch.
#[derive(Debug)]
pub struct Augmenter<'a> {
    /// The encoder of the examples.
    pub encoder: &'a Encoder,
    /// The changes.
    pub settings: &'a Augment,
    /// Decides the changes.
    pub seed: u64,
    /// The longest sequence that a change may lead to.
    pub max_seq_tokens: usize,
    /// The examples in the order of the training sequences. Sequences beyond them stay as they are.
    pub examples: &'a [Example],
}

impl Augmenter<'_> {
    /// Training sequence `index` in an epoch (from 0); `None` where it stays as it is: it has no prompt, would be too long,
    /// or could not be encoded.
    pub fn sequence(&self, epoch: u64, index: usize) -> Option<Encoded> {
        let changed = self.example(epoch, index)?;
        let encoded = self.encoder.encode(&changed).ok()?;
        (encoded.longest_tokens() <= self.max_seq_tokens && encoded.trained_tokens() > 0).then_some(encoded)
    }

    /// Training example `index` in an epoch; `None` where it has no prompt.
    pub fn example(&self, epoch: u64, index: usize) -> Option<Example> {
        let mut changed = self.examples.get(index)?.clone();
        self.change(&mut changed, &mut Draws::of(self.seed, epoch, index as u64)).then_some(changed)
    }

    /// Changes the prompt of an example; false where it has none.
    fn change(&self, example: &mut Example, draws: &mut Draws) -> bool {
        match example {
            Example::Preference { chosen, rejected } => {
                // One prompt, changed alike.
                let mut again = draws.clone();
                return self.change(chosen, draws) && self.change(rejected, &mut again);
            }
            Example::Labelled { answered, .. } => return self.change(answered, draws),
            Example::PromptCompletion { prompt, .. } => *prompt = self.worded(&self.mistyped(prompt, draws), draws),
            Example::Alpaca { instruction, input, .. } => {
                *instruction = self.worded(&self.mistyped(instruction, draws), draws);
                *input = self.mistyped(input, draws);
            }
            Example::Chat { messages, .. } => {
                let of_user = |message: &&mut Message| message.role == Role::User;
                for (number, message) in messages.iter_mut().filter(of_user).enumerate() {
                    let text = self.mistyped(&message.content, draws);
                    message.content = if number == 0 { self.worded(&text, draws) } else { text };
                }
            }
            Example::Class { text, .. } => *text = self.worded(&self.mistyped(text, draws), draws),
            Example::Text { .. } => return false,
        }
        true
    }

    /// The prompt in one of the wordings.
    fn worded(&self, prompt: &str, draws: &mut Draws) -> String {
        let wordings = &self.settings.wordings;
        match wordings.get(draws.below(wordings.len())) {
            Some(wording) => wording.replace(PROMPT, prompt),
            None => prompt.to_owned(),
        }
    }

    /// The prompt with tokens left out and letters mistyped.
    fn mistyped(&self, prompt: &str, draws: &mut Draws) -> String {
        let shortened = match self.settings.token_dropout {
            0.0 => prompt.to_owned(),
            probability => {
                // A text that cannot be encoded is reported where the example itself is.
                let tokens = self.encoder.tokenizer().offsets(prompt).unwrap_or_default();
                without_some(prompt, &tokens, probability, draws)
            }
        };
        match self.settings.typing_errors {
            0.0 => shortened,
            probability => with_typing_errors(&shortened, probability, draws),
        }
    }
}

/// Random numbers of one example in one epoch.
#[derive(Clone)]
struct Draws(ChaCha8Rng);

impl Draws {
    fn of(seed: u64, epoch: u64, example: u64) -> Self {
        let mut key = *b"....................... augment ";
        for (part, number) in key.chunks_exact_mut(8).zip([seed, epoch, example]) {
            part.copy_from_slice(&number.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Whether something of this probability happens.
    fn happens(&mut self, probability: f64) -> bool {
        /// 2⁻⁵³.
        const UNIT: f64 = 1.0 / (1u64 << 53) as f64;
        ((self.0.next_u64() >> 11) as f64 * UNIT) < probability
    }

    /// A number below `bound`; 0 where that is 0.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.0.next_u64()) * bound as u128) >> 64) as usize
    }
}

/// `text` without some of its tokens, but never without all.
fn without_some(text: &str, tokens: &[Range<usize>], probability: f64, draws: &mut Draws) -> String {
    let mut kept = String::with_capacity(text.len());
    // Tokens that share a character fall or stay together.
    let mut done = 0;
    let mut keeps = true;
    for token in tokens {
        if token.start >= done {
            kept.push_str(text.get(done..token.start).unwrap_or_default());
            keeps = !draws.happens(probability);
        }
        if token.end > done {
            let new = text.get(token.start.max(done)..token.end).unwrap_or_default();
            kept.push_str(if keeps { new } else { "" });
            done = token.end;
        }
    }
    kept.push_str(text.get(done..).unwrap_or_default());
    if kept.trim().is_empty() { text.to_owned() } else { kept }
}

/// The rows of an English keyboard.
const KEYBOARD: [&str; 3] = ["qwertyuiop", "asdfghjkl", "zxcvbnm"];

/// `text` with letters left out, doubled, swapped with the next letter, or replaced by their neighbour on the keyboard (letters
/// that are not on it are left out instead).
fn with_typing_errors(text: &str, probability: f64, draws: &mut Draws) -> String {
    let mut mistyped = String::with_capacity(text.len() + 8);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if !letter.is_alphabetic() || !draws.happens(probability) {
            mistyped.push(letter);
            continue;
        }
        match draws.below(4) {
            0 => mistyped.extend([letter, letter]),
            1 => mistyped.extend(letters.next_if(|next| next.is_alphabetic()).into_iter().chain([letter])),
            2 => mistyped.extend(neighbour(letter, draws)),
            _ => {}
        }
    }
    mistyped
}

/// A neighbour on the keyboard, in the same case.
fn neighbour(letter: char, draws: &mut Draws) -> Option<char> {
    let row = KEYBOARD.iter().find(|row| row.contains(letter.to_ascii_lowercase()))?;
    let at = row.find(letter.to_ascii_lowercase())?;
    let beside = if at == 0 || (at + 1 < row.len() && draws.below(2) == 1) { at + 1 } else { at - 1 };
    let found = row.as_bytes().get(beside).map(|byte| char::from(*byte))?;
    Some(if letter.is_ascii_uppercase() { found.to_ascii_uppercase() } else { found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_come_as_often_as_asked_and_touch_letters_only() {
        let text = "SELECT the 42 names, of 1-1000181-1! ".repeat(40);
        let mut changed = 0;
        for example in 0..20 {
            let mistyped = with_typing_errors(&text, 0.1, &mut Draws::of(1, 0, example));
            let others = |text: &str| text.chars().filter(|letter| !letter.is_alphabetic()).collect::<String>();
            assert_eq!(others(&mistyped), others(&text));
            changed += mistyped.chars().zip(text.chars()).take_while(|(a, b)| a == b).count();
        }
        // Letters are 17 of 37 characters: the first error is expected after 1 / (0.1 · 17/37) = 21.8 of them.
        assert!((200..900).contains(&changed), "{changed} characters before the first errors of 20 texts");
        assert_eq!(with_typing_errors(&text, 0.0, &mut Draws::of(1, 0, 0)), text);
        let all = with_typing_errors("abc", 0.999_999, &mut Draws::of(3, 0, 0));
        assert_ne!(all, "abc");
    }

    #[test]
    fn neighbours_lie_beside_each_other() {
        for seed in 0..50 {
            let mut draws = Draws::of(seed, 0, 0);
            assert!(['w', 'r'].contains(&neighbour('e', &mut draws).expect("on the keyboard")));
            assert_eq!(neighbour('Q', &mut draws), Some('W'));
            assert_eq!(neighbour('m', &mut draws), Some('n'));
            assert_eq!(neighbour('é', &mut draws), None);
        }
    }

    #[test]
    fn left_out_tokens_leave_the_rest_in_order() {
        let text = "one two three é four";
        // The two tokens of é overlap, as those of a byte-level tokenizer do.
        let tokens = [0..3, 3..7, 7..13, 13..16, 14..16, 16..21];
        let mut seen = std::collections::HashSet::new();
        for example in 0..200 {
            let kept = without_some(text, &tokens, 0.5, &mut Draws::of(0, 0, example));
            let mut words = text.split(' ');
            assert!(kept.split_whitespace().all(|word| words.any(|other| other == word)), "{kept}");
            assert!(!kept.trim().is_empty());
            seen.insert(kept);
        }
        assert!(seen.len() > 20, "{}", seen.len());
        assert_eq!(without_some(text, &tokens, 0.0, &mut Draws::of(0, 0, 0)), text);
        assert_eq!(without_some(text, &tokens, 0.999_999_999, &mut Draws::of(0, 0, 0)), text, "never without all");
    }
}
