//! Examples to token ids with a mask of what is trained.

/// An encoded example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    /// Same length as `ids`: whether loss is taken on this token. Derived from positions, never from ids.
    pub trained: Vec<bool>,
}

/// Renders and encodes: the one path for training, evaluation and generation.
pub struct Encoder;
