//! Module paths of an adapter that was trained on a larger model around the decoder: `model.language_model.layers.0…` in the
//! file is `model.layers.0…` in the decoder.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// The prefixes that the file's paths have in place of the decoder's own.
#[derive(Debug, Clone, Default)]
pub(super) struct Renaming {
    /// (as stored in the file, as in the decoder).
    used: Vec<(&'static str, &'static str)>,
}

impl Renaming {
    /// The prefixes out of `known` that paths in the file begin with.
    pub fn of<'a>(known: &[(&'static str, &'static str)], paths: impl Iterator<Item = &'a str> + Clone) -> Self {
        let is_used = |(stored, _): &&(&str, &str)| paths.clone().any(|path| path.starts_with(stored));
        Self { used: known.iter().filter(is_used).copied().collect() }
    }

    /// The decoder's path of a module by its path in the file.
    pub fn in_base(&self, path: &str) -> String {
        let renamed =
            self.used.iter().find_map(|(stored, usual)| Some(format!("{usual}{}", path.strip_prefix(stored)?)));
        renamed.unwrap_or_else(|| path.to_owned())
    }

    /// The path in the file of a module by its path in the decoder.
    pub fn in_file(&self, module: &str) -> String {
        let renamed =
            self.used.iter().find_map(|(stored, usual)| Some(format!("{stored}{}", module.strip_prefix(usual)?)));
        renamed.unwrap_or_else(|| module.to_owned())
    }

    /// The same values by the decoder's paths.
    ///
    /// # Errors
    /// Input: two paths in the file are one module of the decoder.
    pub fn apply<T>(&self, place: &str, by_path: BTreeMap<String, T>) -> Result<BTreeMap<String, T>> {
        let mut by_module = BTreeMap::new();
        for (path, value) in by_path {
            let module = self.in_base(&path);
            if by_module.insert(module.clone(), value).is_some() {
                let message = format!("stands twice, once as {}", self.in_file(&module));
                return Err(Error::input(format_args!("{place}: module {module}"), message));
            }
        }
        Ok(by_module)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [(&str, &str); 2] = [("model.language_model.", "model."), ("language_model.", "")];
    const OUTER: &str = "model.language_model.layers.3.self_attn.q_proj";
    const OWN: &str = "model.layers.3.self_attn.q_proj";

    #[test]
    fn the_prefix_of_a_larger_model_is_undone_where_it_is_used() {
        let renaming = Renaming::of(&KNOWN, [OUTER, "lm_head"].into_iter());
        assert_eq!((renaming.in_base(OUTER).as_str(), renaming.in_base("lm_head").as_str()), (OWN, "lm_head"));
        assert_eq!((renaming.in_file(OWN).as_str(), renaming.in_file("lm_head").as_str()), (OUTER, "lm_head"));
        let plain = Renaming::of(&KNOWN, [OWN].into_iter());
        assert_eq!((plain.in_base(OWN).as_str(), plain.in_file(OWN).as_str()), (OWN, OWN));
        let older = Renaming::of(&KNOWN, ["language_model.model.layers.3.self_attn.q_proj"].into_iter());
        assert_eq!(older.in_base("language_model.model.layers.3.self_attn.q_proj"), OWN);
        let twice = BTreeMap::from([(OUTER.to_owned(), 1), (OWN.to_owned(), 2)]);
        let error = renaming.apply("file", twice).expect_err("one module twice").to_string();
        assert!(error.contains("stands twice"), "{error}");
    }
}
