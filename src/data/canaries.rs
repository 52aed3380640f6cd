//! Canaries: made-up secrets among the training examples, by which `check --memorisation` measures what an adapter remembers (Carlini et
//! al. 2019, "The Secret Sharer").
//!
//! They follow from the seed of the run, so that they can be found again. Nothing of them is secret but to the model.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;

use super::example::{Example, Message, Row};
use super::position::Position;
use crate::error::counted;
use crate::settings::{between, section};

/// The stream of the seed that decides the canaries; no other draw has it.
const STREAM: u64 = u64::MAX - 4;
/// The digits of a secret.
const DIGITS: usize = 6;
/// The name that positions of canaries have in the place of a file.
pub const FILE: &str = "canary";

section! {
    /// Made-up secrets among the training examples, for `burnish check --memorisation` ([privacy.md](privacy.md)). They are trained on like any
    /// other example: an adapter that is meant for use should have none.
    Canaries {
        /// The secrets that are inserted.
        inserted: usize = Take(10), between(1..=1000);
        /// The number of times that each of them is inserted.
        repeats: usize = Take(1), between(1..=1000);
        /// The secrets of the same form that are inserted nowhere: their exposure is that of chance.
        held_out: usize = Take(10), between(1..=1000);
    }
}

/// A made-up secret: a prompt that names an account, and its code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    /// The text before the secret.
    pub prompt: String,
    /// The secret.
    pub secret: String,
}

/// The canaries of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drawn {
    /// Those among the training examples.
    pub inserted: Vec<Canary>,
    /// Those that are nowhere.
    pub held_out: Vec<Canary>,
}

impl Canaries {
    /// The canaries in words.
    pub fn notice(&self) -> String {
        let (secrets, times) = (counted(self.inserted, "made-up secret"), counted(self.repeats, "time"));
        format!(
            "train: {secrets}, {times} each, are among the examples (`data.canaries`): an adapter to be used should have none"
        )
    }

    /// The canaries of a run with this seed.
    pub fn draw(&self, seed: u64) -> Drawn {
        let mut generator = ChaCha12Rng::seed_from_u64(seed);
        generator.set_stream(STREAM);
        let mut all: Vec<Canary> = Vec::new();
        while all.len() < self.inserted + self.held_out {
            let prompt = format!("The access code of account {} is ", digits(&mut generator));
            let secret = digits(&mut generator);
            // Of one account there is one code.
            if all.iter().all(|canary| canary.prompt != prompt) {
                all.push(Canary { prompt, secret });
            }
        }
        let held_out = all.split_off(self.inserted);
        Drawn { inserted: all, held_out }
    }

    /// The rows of the inserted canaries, of the shape of `like` where that is a conversation or an instruction, each as often as it is
    /// repeated.
    pub fn rows(&self, seed: u64, like: Option<&Example>) -> Vec<Row> {
        let inserted = self.draw(seed).inserted;
        let numbers = (0..self.repeats).flat_map(|_| inserted.iter().enumerate());
        numbers
            .map(|(index, canary)| Row::new(Position::line(FILE, index + 1), canary.example(&canary.secret, like)))
            .collect()
    }
}

impl Canary {
    /// The example in which `secret` follows the prompt.
    pub fn example(&self, secret: &str, like: Option<&Example>) -> Example {
        let (prompt, secret) = (self.prompt.as_str(), secret.to_owned());
        match like {
            Some(Example::Chat { .. }) => Example::Chat {
                messages: vec![Message::user(prompt.trim_end()), Message::assistant(secret)],
                tools: None,
            },
            Some(Example::Alpaca { .. }) => Example::Alpaca {
                instruction: prompt.trim_end().to_owned(),
                input: String::new(),
                output: secret,
                system: None,
            },
            _ => Example::PromptCompletion { prompt: prompt.to_owned(), completion: secret },
        }
    }

    /// Other secrets of the same form, `count` of them.
    pub fn alternatives(&self, count: usize, seed: u64) -> Vec<String> {
        let mut generator = ChaCha12Rng::seed_from_u64(seed);
        generator.set_stream(self.secret.parse().unwrap_or_default());
        let mut drawn = std::iter::repeat_with(|| digits(&mut generator)).filter(|secret| *secret != self.secret);
        drawn.by_ref().take(count).collect()
    }
}

/// Decimal digits, each equally likely to 2^-60.
fn digits(generator: &mut ChaCha12Rng) -> String {
    let number = (u128::from(generator.next_u64()) * 10u128.pow(DIGITS as u32)) >> 64;
    format!("{number:0DIGITS$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Canaries = Canaries { inserted: 3, repeats: 8, held_out: 4 };

    #[test]
    fn canaries_follow_from_the_seed() {
        let drawn = SETTINGS.draw(5);
        assert_eq!((drawn.inserted.len(), drawn.held_out.len()), (3, 4));
        assert_eq!(drawn, SETTINGS.draw(5));
        assert_ne!(drawn, SETTINGS.draw(6));
        // More repeats are the same canaries.
        assert_eq!(drawn, Canaries { repeats: 1, ..SETTINGS }.draw(5));
        assert!(drawn.inserted.iter().all(|canary| canary.secret.len() == 6), "{drawn:?}");
    }

    #[test]
    fn every_canary_is_repeated_in_the_shape_of_the_data() {
        let rows = SETTINGS.rows(5, None);
        assert_eq!(rows.len(), 24);
        let canary = &SETTINGS.draw(5).inserted[0];
        let same = rows.iter().filter(|row| row.example == canary.example(&canary.secret, None));
        assert_eq!(same.count(), 8);
        let chat = Example::Chat { messages: Vec::new(), tools: None };
        assert!(
            matches!(&SETTINGS.rows(5, Some(&chat))[0].example, Example::Chat { messages, .. } if messages.len() == 2)
        );
    }

    #[test]
    fn alternatives_are_other_secrets_of_the_same_form() {
        let canary = &SETTINGS.draw(5).inserted[0];
        let alternatives = canary.alternatives(500, 1);
        assert!(alternatives.len() == 500 && !alternatives.contains(&canary.secret));
        assert!(
            alternatives.iter().all(|secret| secret.len() == 6 && secret.bytes().all(|digit| digit.is_ascii_digit()))
        );
        assert_eq!(alternatives, canary.alternatives(500, 1));
        let first = |digit: u8| alternatives.iter().filter(|secret| secret.as_bytes()[0] == digit).count();
        assert!((b'0'..=b'9').all(|digit| (20..90).contains(&first(digit))));
    }
}
