//! Conversations to text: chat templates, what they show of a conversation, and where the assistant's words stand.

pub mod builtin;
pub mod template;

pub(super) mod control;
pub(super) mod conversation;
pub(super) mod coverage;
pub(super) mod stand_ins;
pub(super) mod turns;

mod environment;
mod filters;
mod lexer;
mod marks;
mod namespace;
mod operators;
mod python;
mod worker;

pub use template::ChatTemplate;
