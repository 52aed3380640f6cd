//! The selection of modules in PEFT's configuration: lists of names, regular expressions of Python's dialect,
//! layer numbers.
//!
//! Facts from PEFT 0.21 (`tuners/tuners_utils.py` `check_target_module_exists`, `utils/other.py` `get_pattern_key`).

use fancy_regex::{Regex, RegexBuilder};

use crate::model::families;

/// Backtracking steps a pattern may take on one module path (about 60 characters long).
const BACKTRACK_LIMIT: usize = 20_000;
/// The longest pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 16 << 10;

/// A choice of modules by name or by pattern.
#[derive(Debug, Clone)]
pub(in crate::adapter) enum Selection {
    /// A module path is one of these, or ends with `.` and one of these.
    Names(Vec<String>),
    /// The whole path matches.
    Pattern(Pattern),
    /// Every linear layer but the head.
    AllLinear,
}

impl Selection {
    /// Whether `module` is chosen.
    pub fn matches(&self, module: &str) -> Result<bool, String> {
        match self {
            Self::Names(names) => Ok(names.iter().any(|name| is_or_ends_with(module, name))),
            Self::Pattern(pattern) => pattern.matches(module),
            // PEFT leaves out the output embedding of the model, whatever it is called; that of tokens is no linear layer.
            Self::AllLinear => Ok(!families::is_head(module) && !families::is_embedding(module)),
        }
    }
}

/// Whether `module` is `name`, or ends with `.` and `name`.
pub(super) fn is_or_ends_with(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

/// `layers_to_transform`, and the names of the lists of layers in a path (any list, if there are none).
#[derive(Debug, Clone)]
pub(super) struct LayerChoice {
    pub indices: Vec<u64>,
    pub lists: Vec<Pattern>,
}

impl LayerChoice {
    /// Whether `module` lies in one of the layers.
    pub fn contains(&self, module: &str) -> Result<bool, String> {
        Ok(self.layer_of(module)?.is_some_and(|index| self.indices.contains(&index)))
    }

    /// The number of the layer that `module` lies in.
    pub fn layer_of(&self, module: &str) -> Result<Option<u64>, String> {
        if self.lists.is_empty() {
            return Ok(first_numbered_segment(module));
        }
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

/// A regular expression of Python's dialect, and how it stands in the file.
#[derive(Debug, Clone)]
pub(in crate::adapter) struct Pattern {
    regex: Regex,
    pub written: String,
}

impl Pattern {
    /// `python`: the expression that PEFT makes of the `written` one and matches from the start of a path.
    fn new(written: &str, python: &str) -> Result<Self, String> {
        if written.len() > MAX_PATTERN_BYTES {
            return Err(format!("a pattern of {} bytes; at most {MAX_PATTERN_BYTES}", written.len()));
        }
        let compile = |source: &str| {
            let built = RegexBuilder::new(source).backtrack_limit(BACKTRACK_LIMIT).build();
            built.map_err(|error| format!("`{written}` is not a regular expression that can be used: {error}"))
        };
        // An expression that is none on its own (`a)|(b`) could become one within the group.
        compile(python)?;
        Ok(Self { regex: compile(&format!(r"\A(?:{python})"))?, written: written.to_owned() })
    }

    /// Matches a whole path (Python's `re.fullmatch`).
    pub fn whole(written: &str) -> Result<Self, String> {
        Self::new(written, written)?;
        Self::new(written, &format!(r"(?:{written})\z"))
    }

    /// Matches a path or its end after a `.`, as the keys of `rank_pattern` do.
    pub fn ending(written: &str) -> Result<Self, String> {
        Self::new(written, &format!(r"(.*\.)?({written})\z"))
    }

    /// Finds the number after a segment, as `layers_pattern` does.
    pub fn numbered(written: &str) -> Result<Self, String> {
        Self::new(written, &format!(r"(?:^|.*?\.){written}\.(?P<burnish_index>\d+)\."))
    }

    /// Whether `module` matches.
    ///
    /// # Errors
    /// A match that takes too many steps.
    pub fn matches(&self, module: &str) -> Result<bool, String> {
        self.regex.is_match(module).map_err(|error| self.too_costly(&error))
    }

    fn index(&self, module: &str) -> Result<Option<u64>, String> {
        let captures = self.regex.captures(module).map_err(|error| self.too_costly(&error))?;
        Ok(captures.and_then(|found| found.name("burnish_index")?.as_str().parse().ok()))
    }

    fn too_costly(&self, error: &fancy_regex::Error) -> String {
        format!("the pattern `{}` cannot be matched: {error}", self.written)
    }
}

/// The index of the first pattern that matches `module`.
pub(super) fn first_match<T>(patterns: &[(Pattern, T)], module: &str) -> Result<Option<usize>, String> {
    for (index, (pattern, _)) in patterns.iter().enumerate() {
        if pattern.matches(module)? {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values from Python's `re`.
    #[test]
    fn patterns_mean_what_python_makes_of_them() {
        let module = "model.layers.1.self_attn.q_proj";
        // `re.fullmatch` compiles the pattern alone: "unbalanced parenthesis".
        assert!(Pattern::whole("a)|(b").is_err());
        assert!(Pattern::whole("model|.*").unwrap().matches(module).unwrap());
        assert!(!Pattern::whole("model|layers").unwrap().matches(module).unwrap());
        // `re.match(r"(.*\.)?(layers)|(q_proj)$", …)`: either alternative at the start of the path.
        let split = Pattern::ending("layers)|(q_proj").unwrap();
        assert!(split.matches(module).unwrap() && split.matches("q_proj").unwrap());
        assert!(!split.matches("x_proj").unwrap() && !Pattern::ending("x)|(q_proj").unwrap().matches(module).unwrap());
        assert!(Pattern::ending("a))|((b").is_err());
        assert!(!Pattern::ending("^q_proj").unwrap().matches(module).unwrap());
        assert!(Pattern::numbered("layers)|(x").is_err());
    }
}
