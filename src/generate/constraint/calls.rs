//! Free text in which calls of tools are held to a schema.
//!
//! The text is watched byte by byte for the opening of a call (Knuth, Morris and Pratt 1977, "Fast pattern matching in strings"). No token
//! is excluded before the opening is complete, except for those that complete it and go on as no call does. Behind it stand white space
//! and the call. Behind the call the text is free again.

use std::sync::Arc;

use super::Vocabulary;
use super::held::Held;
use crate::error::Result;

/// The most white space between an opening and its call, in bytes.
const MAX_SPACE: usize = 40;

/// The state of such a text. A clone goes on by itself.
#[derive(Clone)]
pub(super) struct Calls {
    form: Arc<Form>,
    /// A call that has not begun.
    call: Held,
    state: State,
}

/// The facts that do not change with the text.
struct Form {
    vocabulary: Vocabulary,
    /// Empty where an answer is a call from its beginning on, or none.
    opening: Vec<u8>,
    /// The byte that calls begin with.
    first: u8,
    /// The tokens that may hold the end of an opening and more, or white space before a call or its beginning.
    joints: Vec<u32>,
}

#[derive(Clone)]
enum State {
    Free(Place),
    Call(Box<Held>),
    /// Nothing may follow.
    Complete,
}

/// A place outside calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The text ends with so many bytes of the opening, fewer than all.
    Text(usize),
    /// Behind the opening and so many bytes of white space.
    Opened(usize),
    /// No call can begin any more.
    Last,
}

impl Calls {
    pub(super) fn new(vocabulary: Vocabulary, opening: &str, mut call: Held) -> Self {
        let begins_as_list = begins(&mut call, &vocabulary, b"[");
        let opening = opening.as_bytes().to_vec();
        let first = if begins_as_list { b'[' } else { b'{' };
        let mut form = Form { vocabulary, opening, first, joints: Vec::new() };
        form.joints = (0..form.vocabulary.rows()).filter(|id| form.is_joint(form.vocabulary.text_of(*id))).collect();
        let state = State::Free(form.beginning());
        Self { form: Arc::new(form), call, state }
    }

    /// The logits with those of the tokens that cannot follow at negative infinity.
    pub(super) fn admitted(&mut self, logits: &[f32]) -> Result<Vec<f32>> {
        let place = match &mut self.state {
            State::Call(held) => return held.admitted(logits),
            State::Free(place) => *place,
            State::Complete => Place::Last,
        };
        let form = self.form.clone();
        let is_due = matches!(place, Place::Opened(_)) && !form.opening.is_empty();
        let mut admitted = if is_due { self.call.admitted(logits)? } else { logits.to_vec() };
        for &joint in &form.joints {
            let (_, call) = form.walk(place, form.vocabulary.text_of(joint));
            let fits = call.is_empty() || begins(&mut self.call, &form.vocabulary, call);
            let joint = joint as usize;
            admitted[joint] = if fits { logits[joint] } else { f32::NEG_INFINITY };
        }
        Ok(admitted)
    }

    /// The number of `tokens` that may be guessed to follow: outside calls all of them.
    pub(super) fn count_admitted(&mut self, tokens: &[u32]) -> usize {
        match &mut self.state {
            State::Call(held) => held.count_admitted(tokens),
            State::Free(_) | State::Complete => tokens.len(),
        }
    }

    /// Goes on behind a token.
    pub(super) fn advance(&mut self, token: u32) -> Result<()> {
        let Form { vocabulary, opening, .. } = &*self.form;
        match &mut self.state {
            State::Call(held) => held.advance(&[token])?,
            // Markup before a call that has no opening in the text.
            State::Free(_) if opening.is_empty() && vocabulary.is_control(token) => {}
            State::Free(place) => {
                let (next, call) = self.form.walk(*place, vocabulary.text_of(token));
                if call.is_empty() {
                    *place = next;
                } else {
                    let mut held = self.call.clone();
                    held.advance(&vocabulary.tokens_of(call).unwrap_or_default())?;
                    self.state = State::Call(Box::new(held));
                }
            }
            State::Complete => {}
        }
        if matches!(&self.state, State::Call(held) if held.is_complete()) {
            let is_alone = opening.is_empty();
            self.state = if is_alone { State::Complete } else { State::Free(self.form.beginning()) };
        }
        Ok(())
    }

    /// Whether nothing can follow.
    pub(super) fn is_complete(&self) -> bool {
        matches!(self.state, State::Complete)
    }
}

/// Whether a call can begin with these bytes.
fn begins(call: &mut Held, vocabulary: &Vocabulary, bytes: &[u8]) -> bool {
    vocabulary.tokens_of(bytes).is_some_and(|tokens| call.count_admitted(&tokens) == tokens.len())
}

impl Form {
    /// The place before any text.
    fn beginning(&self) -> Place {
        if self.opening.is_empty() { Place::Opened(0) } else { Place::Text(0) }
    }

    /// The place behind further bytes, and those of them from the beginning of a call on.
    fn walk<'a>(&self, mut place: Place, bytes: &'a [u8]) -> (Place, &'a [u8]) {
        for (index, &byte) in bytes.iter().enumerate() {
            place = match place {
                Place::Last => break,
                Place::Text(matched) => match self.matched(matched, byte) {
                    all if all == self.opening.len() => Place::Opened(0),
                    matched => Place::Text(matched),
                },
                Place::Opened(space) if byte.is_ascii_whitespace() && space < MAX_SPACE => Place::Opened(space + 1),
                Place::Opened(_) if self.opening.is_empty() && byte != self.first => Place::Last,
                Place::Opened(_) => return (place, &bytes[index..]),
            };
        }
        (place, &[])
    }

    /// The bytes of the opening that a text ends with which ended with `matched` of them before `byte`.
    fn matched(&self, mut matched: usize, byte: u8) -> usize {
        let opening = &self.opening;
        while opening[matched] != byte {
            let is_end = |shorter: &usize| opening[..matched].ends_with(&opening[..*shorter]);
            match (0..matched).rev().find(is_end) {
                Some(shorter) => matched = shorter,
                None => return 0,
            }
        }
        matched + 1
    }

    /// Whether a token belongs to `joints`.
    fn is_joint(&self, bytes: &[u8]) -> bool {
        let opening = self.opening.as_slice();
        let crosses_end = (1..opening.len()).any(|count| {
            let end = &opening[opening.len() - count..];
            bytes.len() > count && bytes.starts_with(end)
        });
        let has_all = |bytes: &[u8]| !opening.is_empty() && bytes.windows(opening.len()).any(|part| part == opening);
        let crosses = crosses_end || bytes.split_last().is_some_and(|(_, before)| has_all(before));
        let call = bytes.trim_ascii_start();
        crosses || (!bytes.is_empty() && call.first().is_none_or(|first| *first == self.first))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::model::BaseFiles;
    use crate::text::Tokenizer;

    fn calls(opening: &str) -> Calls {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/smollm.gguf");
        let tokenizer = Tokenizer::of_base(&BaseFiles::open(&fixture).expect("a base")).expect("a tokenizer");
        let vocabulary = Vocabulary::new(&tokenizer, &[], tokenizer.vocab_size()).expect("a vocabulary");
        let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"], "additionalProperties": false });
        let held = Held::new(&vocabulary, schema).expect("a schema");
        Calls::new(vocabulary, opening, held)
    }

    #[test]
    fn an_opening_is_found_wherever_it_begins() {
        let form = calls("aabaac").form;
        for (text, expected, call) in [
            ("aabaac", Place::Opened(0), ""),
            ("aabaabaac", Place::Opened(0), ""),
            ("xaaabaac \n", Place::Opened(2), ""),
            ("aabaa", Place::Text(5), ""),
            ("aabaab", Place::Text(3), ""),
            ("aabaac {\"a\"", Place::Opened(1), "{\"a\""),
            ("aabaacx", Place::Opened(0), "x"),
        ] {
            assert_eq!(form.walk(Place::Text(0), text.as_bytes()), (expected, call.as_bytes()), "{text}");
            // Cut into two parts anywhere, it is the same.
            for cut in 0..text.len() - call.len() {
                let (place, none) = form.walk(Place::Text(0), &text.as_bytes()[..cut]);
                assert_eq!((form.walk(place, &text.as_bytes()[cut..]), none.len()), ((expected, call.as_bytes()), 0));
            }
        }
    }

    #[test]
    fn text_is_free_and_calls_are_held() {
        let mut calls = calls("<call>");
        let vocabulary = calls.form.vocabulary.clone();
        let logits = vec![0.0; vocabulary.rows() as usize];
        let can_follow = |calls: &mut Calls, text: &str| {
            let token = vocabulary.tokens_of(text.as_bytes()).expect("tokens")[0];
            calls.admitted(&logits).expect("admitted")[token as usize] == 0.0
        };
        let go = |calls: &mut Calls, text: &str| {
            for token in calls.form.vocabulary.tokens_of(text.as_bytes()).expect("tokens") {
                calls.advance(token).expect("it can follow");
            }
        };
        assert!(calls.admitted(&logits).expect("admitted").iter().all(|logit| *logit == 0.0));
        go(&mut calls, "Text with {\"a\": \"b\"}. <call");
        assert!(can_follow(&mut calls, "{") && can_follow(&mut calls, ">"));
        go(&mut calls, "> \n");
        for (text, follows) in [("{", true), ("\n", true), ("x", false), ("[", false)] {
            assert_eq!(can_follow(&mut calls, text), follows, "{text:?}");
        }
        go(&mut calls, "{\"a\": ");
        assert!(can_follow(&mut calls, "7") && !can_follow(&mut calls, "\"") && !can_follow(&mut calls, "}"));
        go(&mut calls, "7");
        assert!(can_follow(&mut calls, "}"));
        go(&mut calls, "}");
        assert!(can_follow(&mut calls, "x") && !calls.is_complete());
        go(&mut calls, "</call><call>");
        assert!(!can_follow(&mut calls, "x"), "a second call");
    }

    #[test]
    fn without_an_opening_an_answer_is_a_call_or_text() {
        let (mut calls, mut text) = (calls(""), calls(""));
        let vocabulary = calls.form.vocabulary.clone();
        let logits = vec![0.0; vocabulary.rows() as usize];
        let token = |text: &str| vocabulary.tokens_of(text.as_bytes()).expect("tokens")[0];
        text.advance(token("x")).expect("text");
        for token in vocabulary.tokens_of(b" {\"b\": 1}").expect("tokens") {
            assert!(text.admitted(&logits).expect("admitted").iter().all(|logit| *logit == 0.0));
            text.advance(token).expect("text");
        }
        assert!(!text.is_complete());
        for token in vocabulary.tokens_of(b"{\"a\": 1").expect("tokens") {
            assert_eq!(calls.admitted(&logits).expect("admitted")[token as usize], 0.0);
            calls.advance(token).expect("a call");
        }
        assert_eq!(calls.admitted(&logits).expect("admitted")[token("x") as usize], f32::NEG_INFINITY);
        calls.advance(token("}")).expect("its end");
        assert!(calls.is_complete());
    }
}
