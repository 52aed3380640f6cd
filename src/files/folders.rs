//! Folders within a folder, for errors that name the place where the wanted files are.

use std::path::Path;

/// Most entries of a folder that are looked at.
const MAX_ENTRIES: usize = 10_000;
/// Most folders that an error names.
const MAX_NAMED: usize = 10;

/// Folders up to two levels below `dir` for which `is_one` holds, relative to it. They are in order, with numbers in their
/// names by value.
pub fn folders_with(dir: &Path, is_one: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for name in subfolders(dir) {
        let folder = dir.join(&name);
        if is_one(&folder) {
            found.push(name);
            continue;
        }
        let inner = subfolders(&folder).into_iter().filter(|inner| is_one(&folder.join(inner)));
        found.extend(inner.map(|inner| format!("{name}/{inner}")));
    }
    found.sort_by_cached_key(|name| sort_key(name));
    found
}

fn subfolders(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().take(MAX_ENTRIES).flatten();
    let folders = entries.filter(|entry| entry.path().is_dir());
    folders.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The parts of a name: text, and numbers by their value, so that `checkpoint-20` comes before `checkpoint-100`.
fn sort_key(name: &str) -> Vec<(String, u64)> {
    let mut parts: Vec<(String, u64)> = vec![Default::default()];
    let mut in_number = false;
    for symbol in name.chars() {
        let digit = symbol.to_digit(10).map(u64::from);
        if in_number && digit.is_none() {
            parts.push(Default::default());
        }
        in_number = digit.is_some();
        if let Some((text, number)) = parts.last_mut() {
            match digit {
                Some(digit) => *number = number.saturating_mul(10).saturating_add(digit),
                None => text.push(symbol),
            }
        }
    }
    parts
}

/// Names for a message, the last ones in full: `a`, `b` and 3 more.
pub fn listed(names: &[String]) -> String {
    // The last ones are the newest.
    let first = names.len().saturating_sub(MAX_NAMED);
    let shown = names[first..].iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if first == 0 { shown } else { format!("{shown} and {first} more") }
}
