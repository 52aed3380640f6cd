//! Entries of an adapter's configuration that have no effect: they name modules that the adapter does not change. PEFT
//! passes over them in silence; their author meant something by them.

use super::config::PeftConfig;
use super::patterns::{Pattern, Selection, first_match, is_or_ends_with};
use crate::error::Result;

impl PeftConfig {
    /// A sentence for every entry that has no effect. `adapted` are the modules that have a pair, `whole` those that are saved as wholes, `modules` those of the
    /// base that can have one; what only the base can tell is left out without it.
    ///
    /// # Errors
    /// A pattern that takes too many steps.
    pub(super) fn unused_entries(
        &self,
        adapted: &[&str],
        whole: &[&str],
        modules: Option<&[String]>,
    ) -> Result<Vec<String>> {
        let mut unused = Vec::new();
        if let (Selection::Names(names), Some(modules), false) = (&self.targets, modules, self.has_default_targets) {
            for name in names.iter().filter(|name| !modules.iter().any(|module| is_or_ends_with(module, name))) {
                unused.push(format!("`target_modules`: {} matches no module that can be adapted", shown(name)));
            }
        }
        if let Some(modules) = modules {
            self.unused_exclusions(modules, &mut unused)?;
        }
        for saved in self.saved.iter().filter(|saved| !whole.iter().any(|module| module.ends_with(saved.as_str()))) {
            unused.push(format!("`modules_to_save`: {} matches no module in the file", shown(saved)));
        }
        self.unused_layers(adapted, &mut unused)?;
        self.unused_patterns("rank_pattern", &self.ranks, adapted, &mut unused)?;
        self.unused_patterns("alpha_pattern", &self.alphas, adapted, &mut unused)?;
        Ok(unused)
    }

    /// Entries of `exclude_modules` that match no module of the base.
    fn unused_exclusions(&self, modules: &[String], unused: &mut Vec<String>) -> Result<()> {
        let entries: Vec<(&str, Selection)> = match &self.excluded {
            None => return Ok(()),
            Some(Selection::Names(names)) => {
                names.iter().map(|name| (name.as_str(), Selection::Names(vec![name.clone()]))).collect()
            }
            Some(selection @ Selection::Pattern(pattern)) => vec![(pattern.written.as_str(), selection.clone())],
            Some(selection @ Selection::AllLinear) => vec![("all-linear", selection.clone())],
        };
        for (written, selection) in entries {
            let mut is_used = false;
            for module in modules {
                is_used = is_used || self.named("exclude_modules", selection.matches(module))?;
            }
            if !is_used {
                unused.push(format!("`exclude_modules`: {} matches no module that can be adapted", shown(written)));
            }
        }
        Ok(())
    }

    /// Layer numbers and names of layer lists that select nothing.
    fn unused_layers(&self, adapted: &[&str], unused: &mut Vec<String>) -> Result<()> {
        let Some(layers) = &self.layers else { return Ok(()) };
        if !matches!(self.targets, Selection::Names(_)) {
            unused.push("`layers_to_transform` has no effect where `target_modules` is a pattern".to_owned());
            return Ok(());
        }
        let mut used = Vec::new();
        for module in adapted {
            used.extend(self.named("layers_pattern", layers.layer_of(module))?);
        }
        for index in layers.indices.iter().filter(|index| !used.contains(index)) {
            unused.push(format!("`layers_to_transform`: layer {index} holds no adapted module"));
        }
        Ok(())
    }

    /// Keys that give no module its value. Of several keys that match a module, the first one counts.
    fn unused_patterns<T>(
        &self,
        key: &str,
        patterns: &[(Pattern, T)],
        adapted: &[&str],
        unused: &mut Vec<String>,
    ) -> Result<()> {
        let mut is_used = vec![false; patterns.len()];
        for module in adapted {
            if let Some(index) = self.named(key, first_match(patterns, module))? {
                is_used[index] = true;
            }
        }
        for (index, (pattern, _)) in patterns.iter().enumerate().filter(|(index, _)| !is_used[*index]) {
            let mut is_shadowed = false;
            for module in adapted {
                is_shadowed = is_shadowed || self.named(key, pattern.matches(module))?;
            }
            let reason = match is_shadowed {
                true => format!(
                    "has no effect: an earlier key matches the same modules first (this is number {})",
                    index + 1
                ),
                false => "matches no adapted module".to_owned(),
            };
            unused.push(format!("`{key}`: {} {reason}", shown(&pattern.written)));
        }
        Ok(())
    }
}

/// An entry for a message, cut to a line.
fn shown(entry: &str) -> String {
    const MOST_CHARACTERS: usize = 80;
    let cut: String = entry.chars().take(MOST_CHARACTERS).collect();
    if cut.len() == entry.len() { format!("`{cut}`") } else { format!("`{cut}…`") }
}
