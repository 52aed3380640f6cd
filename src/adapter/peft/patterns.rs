//! How PEFT's configuration chooses modules: lists of names, regular expressions of Python's dialect, layer numbers.
//!
//! Facts from PEFT 0.21 (`tuners/tuners_utils.py` `check_target_module_exists`, `utils/other.py` `get_pattern_key`).

use fancy_regex::{Regex, RegexBuilder};

/// Backtracking steps a pattern may take on one module path (about 60 characters long).
const BACKTRACK_LIMIT: usize = 20_000;
/// The longest pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 16 << 10;

/// A choice of modules by name or by pattern.
#[derive(Debug, Clone)]
pub(super) enum Selection {
    /// A module path is one of these, or ends with `.` and one of these.
    Names(Vec<String>),
    /// The whole path matches.
    Pattern(Pattern),
    /// Every projection but the head.
    AllLinear,
}

/// `layers_to_transform`, and the name of the list of layers in a path (any, if there are none).
#[derive(Debug, Clone)]
pub(super) struct LayerChoice {
    pub indices: Vec<u64>,
    pub lists: Vec<Pattern>,
}

/// A regular expression of Python's dialect, and how it stands in the file.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    regex: Regex,
    shown: String,
}

/// The value of the first pattern that matches `module`.
pub(super) fn first_match<T: Copy>(patterns: &[(Pattern, T)], module: &str) -> Result<Option<T>, String> {
    for (pattern, value) in patterns {
        if pattern.matches(module)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

impl Selection {
    pub fn matches(&self, module: &str) -> Result<bool, String> {
        match self {
            Self::Names(names) => Ok(names.iter().any(|name| module == name || ends_with_segments(module, name))),
            Self::Pattern(pattern) => pattern.matches(module),
            Self::AllLinear => Ok(module != "lm_head"),
        }
    }
}

/// Whether `module` ends with `.` and `name`.
fn ends_with_segments(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|front| front.ends_with('.'))
}

impl LayerChoice {
    pub fn contains(&self, module: &str) -> Result<bool, String> {
        let index = if self.lists.is_empty() { first_numbered_segment(module) } else { self.listed_index(module)? };
        Ok(index.is_some_and(|index| self.indices.contains(&index)))
    }

    fn listed_index(&self, module: &str) -> Result<Option<u64>, String> {
        for list in &self.lists {
            if let Some(index) = list.index(module)? {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }
}

/// The first segment that is a number, has a segment after it and two before it (PEFT's rule where no
/// `layers_pattern` is given): 3 in `model.layers.3.mlp.up_proj`.
fn first_numbered_segment(module: &str) -> Option<u64> {
    let segments: Vec<&str> = module.split('.').collect();
    let inner = segments.get(2..segments.len().saturating_sub(1))?;
    inner.iter().find_map(|segment| segment.parse().ok())
}

impl Pattern {
    fn new(written: &str, wrapped: &str) -> Result<Self, String> {
        if written.len() > MAX_PATTERN_BYTES {
            return Err(format!("a pattern of {} bytes; at most {MAX_PATTERN_BYTES}", written.len()));
        }
        let regex = RegexBuilder::new(wrapped)
            .backtrack_limit(BACKTRACK_LIMIT)
            .build()
            .map_err(|error| format!("`{written}` is not a regular expression that can be used: {error}"))?;
        Ok(Self { regex, shown: written.to_owned() })
    }

    /// Matches a whole path (Python's `re.fullmatch`).
    pub fn whole(written: &str) -> Result<Self, String> {
        Self::new(written, &format!(r"\A(?:{written})\z"))
    }

    /// Matches a path or its end after a `.`, as the keys of `rank_pattern` do.
    pub fn ending(written: &str) -> Result<Self, String> {
        Self::new(written, &format!(r"\A(.*\.)?({written})\z"))
    }

    /// Finds the number after a segment, as `layers_pattern` does.
    pub fn numbered(written: &str) -> Result<Self, String> {
        Self::new(written, &format!(r"\A(?:|.*?\.){written}\.(?P<burnish_index>\d+)\."))
    }

    pub fn matches(&self, module: &str) -> Result<bool, String> {
        self.regex.is_match(module).map_err(|error| self.too_costly(&error))
    }

    fn index(&self, module: &str) -> Result<Option<u64>, String> {
        let captures = self.regex.captures(module).map_err(|error| self.too_costly(&error))?;
        Ok(captures.and_then(|found| found.name("burnish_index")?.as_str().parse().ok()))
    }

    fn too_costly(&self, error: &fancy_regex::Error) -> String {
        format!("the pattern `{}` cannot be matched: {error}", self.shown)
    }
}
