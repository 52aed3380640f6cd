//! The caps on everything that a client can send or cause.

use std::time::Duration;

/// The most bytes of a request's first line and headers together.
pub(super) const HEADER_BYTES: usize = 16 << 10;
/// The most headers of a request.
pub(super) const HEADERS: usize = 64;
/// The most messages of a conversation.
pub(super) const MESSAGES: usize = 2048;
/// The most pictures of a request.
pub(super) const PICTURES: usize = 16;
/// The most tools of a request.
pub(super) const TOOLS: usize = 128;
/// The most answers to one prompt.
pub(super) const CHOICES: u64 = 16;
/// The most prompts of one request, answers to each counted.
pub(super) const PROMPTS: usize = 64;
/// The most stop strings of a request.
pub(super) const STOP_STRINGS: usize = 16;
/// The most bytes of a stop string.
pub(super) const STOP_BYTES: usize = 1024;
/// The most entries of a logit bias, as OpenAI has it.
pub(super) const BIASED_TOKENS: usize = 1024;
/// The most alternatives whose log-probabilities are given, as OpenAI has it.
pub(super) const LIKELIEST: u64 = 20;
/// The longest answer where a request names no length, in tokens.
pub(super) const USUAL_ANSWER_TOKENS: usize = 2048;
/// The time between two comments that keep a silent stream open.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The caps that an owner of the server may choose.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The most bytes of a request's body.
    pub body_bytes: usize,
    /// The same where the base sees pictures, of a body that says its length beforehand.
    pub picture_body_bytes: usize,
    /// The time for a request's headers; an idle connection is closed after it, too.
    pub header_time: Duration,
    /// The time for a request's body.
    pub body_time: Duration,
    /// The time after which a client that takes nothing of its answer is left.
    pub write_time: Duration,
    /// The time of one answer; it ends at the token that is due then.
    pub answer_time: Duration,
    /// The connections at once.
    pub connections: usize,
    /// The answers that run or wait at once; further requests are refused with 429.
    pub answers: usize,
    /// The time that running answers have to end in after SIGTERM.
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 4 << 20,
            picture_body_bytes: 32 << 20,
            header_time: Duration::from_secs(10),
            body_time: Duration::from_secs(15),
            write_time: Duration::from_secs(30),
            answer_time: Duration::from_secs(600),
            connections: 256,
            answers: 64,
            drain_time: Duration::from_secs(30),
        }
    }
}
