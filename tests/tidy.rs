//! The house rules, held by tests: how files open, how long they are, who may import whom, and that documents name only
//! commands and files that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The most lines of a source file.
const MAX_LINES: usize = 450;
/// Folders that documents name and that a user fills: data that is not part of this repository.
const FILLED_BY_USERS: &[&str] = &["datasets/wikisql/"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The files below `folder` (relative to the repository) that are kept in it, sorted, relative to the repository.
fn files(folder: &str) -> Vec<PathBuf> {
    /// Made by programs, not kept.
    const SKIPPED: [&str; 4] = ["target", ".git", "corpus", "artifacts"];
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if SKIPPED.contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                // Runs lie in `adapters/`, beside its page.
                if folder != root().join("adapters") {
                    folders.push(path);
                }
            } else {
                found.push(path.strip_prefix(root()).expect("below the root").to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The source files of a folder with their text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let is_source = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    let named = files(folder).into_iter().filter(is_source);
    named.map(|path| (path.display().to_string(), fs::read_to_string(root().join(&path)).expect("UTF-8"))).collect()
}

fn all_sources() -> Vec<(String, String)> {
    ["src", "tests", "benches", "fuzz"].into_iter().flat_map(sources).collect()
}

#[test]
fn every_source_file_opens_by_saying_what_it_is() {
    let silent: Vec<String> =
        all_sources().into_iter().filter(|(_, text)| !text.starts_with("//! ")).map(|(path, _)| path).collect();
    assert!(silent.is_empty(), "without `//!` in the first line: {silent:#?}");
}

/// The text of a line of documentation; `None` for any other line.
fn documentation(line: &str) -> Option<&str> {
    let line = line.trim_start();
    line.strip_prefix("///").or_else(|| line.strip_prefix("//!")).map(str::trim)
}

/// The lines of documentation of `text` that open a paragraph without a noun, with their numbers.
fn openings_without_a_noun(text: &str) -> Vec<(usize, &str)> {
    let (mut found, mut opens) = (Vec::new(), true);
    for (index, line) in text.lines().enumerate() {
        let Some(words) = documentation(line) else {
            opens = true;
            continue;
        };
        if opens && ["What ", "Whoever ", "Who ", "As ", "Told "].iter().any(|word| words.starts_with(word)) {
            found.push((index + 1, words));
        }
        opens = words.is_empty() || words.starts_with("# ");
    }
    found
}

#[test]
fn documentation_opens_with_a_noun() {
    let mut found = Vec::new();
    for (path, text) in all_sources() {
        found.extend(openings_without_a_noun(&text).iter().map(|(line, words)| format!("{path}:{line}: {words}")));
    }
    assert!(found.is_empty(), "docs/style.md has the rule: {found:#?}");
}

#[test]
fn no_source_file_is_long() {
    let long: Vec<String> =
        all_sources().into_iter().filter(|(_, text)| text.lines().count() > MAX_LINES).map(|(path, _)| path).collect();
    assert!(long.is_empty(), "above {MAX_LINES} lines, to be split by concept: {long:#?}");
}

/// The layers of docs/architecture.md, lowest first: its first code block after the heading, a row a layer, the modules
/// before two spaces.
fn layers() -> Vec<Vec<String>> {
    let page = fs::read_to_string(root().join("docs/architecture.md")).expect("the page");
    let (_, after) = page.split_once("## Layers").expect("the heading");
    let block = after.split("```").nth(1).expect("the list");
    let rows = block.lines().filter(|line| !line.trim().is_empty());
    rows.map(|line| {
        let names = line.split("  ").next().unwrap_or_default();
        names.split(',').map(|name| name.trim().to_owned()).collect()
    })
    .collect()
}

/// The text without comments and the contents of string literals, line by line.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    for line in text.lines() {
        let (mut in_string, mut escaped, mut kept) = (false, false, String::new());
        let symbols: Vec<char> = line.chars().collect();
        for (index, &symbol) in symbols.iter().enumerate() {
            if !in_string && symbol == '/' && symbols.get(index + 1) == Some(&'/') {
                break;
            }
            // A character literal of a quote opens no string.
            let is_literal = symbol == '"' && index > 0 && symbols[index - 1] == '\'';
            if symbol == '"' && !escaped && !is_literal {
                in_string = !in_string;
                kept.push('"');
            } else if !in_string {
                kept.push(symbol);
            }
            escaped = in_string && symbol == '\\' && !escaped;
        }
        code += &kept;
        code.push('\n');
    }
    code
}

/// The words that follow each occurrence of `before` in `text`.
fn words_after<'t>(text: &'t str, before: &'t str) -> impl Iterator<Item = &'t str> {
    text.split(before).skip(1).map(|rest| {
        let end = rest.find(|symbol: char| !symbol.is_alphanumeric() && symbol != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

#[test]
fn imports_point_downward() {
    let layers = layers();
    // Within a row, a later module may import an earlier one.
    let rank: BTreeMap<&str, usize> =
        layers.iter().flatten().enumerate().map(|(index, name)| (name.as_str(), index)).collect();
    let mut upward = Vec::new();
    for (path, text) in sources("src") {
        let module = path.trim_start_matches("src/").split(['/', '.']).next().unwrap_or_default().to_owned();
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        let own = *rank.get(module.as_str()).unwrap_or_else(|| panic!("{path}: `{module}` is in no layer"));
        let code = code_of(&text);
        // `use crate::{a, b}` names several at once.
        let grouped = code.split("crate::{").skip(1).flat_map(|rest| {
            let group = rest.split('}').next().unwrap_or_default();
            group.split(',').map(|name| name.trim().split("::").next().unwrap_or_default()).collect::<Vec<_>>()
        });
        for imported in words_after(&code, "crate::").chain(grouped) {
            let Some(&other) = rank.get(imported) else { continue };
            if other > own {
                upward.push(format!("{path}: {module} imports {imported}"));
            }
        }
    }
    upward.dedup();
    assert!(upward.is_empty(), "docs/architecture.md has the layers: {upward:#?}");
}

#[test]
fn only_one_folder_writes_files() {
    let calls = ["fs::write(", "fs::rename(", "fs::copy(", "File::create", "OpenOptions::new()", "fs::hard_link("];
    let mut writers = Vec::new();
    for (path, text) in sources("src") {
        // Reading takes options too: of a file that must not block.
        if path.starts_with("src/files/output/") || path == "src/files/open.rs" {
            continue;
        }
        let code = code_of(text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default());
        writers.extend(calls.iter().filter(|call| code.contains(**call)).map(|call| format!("{path}: {call}")));
    }
    assert!(writers.is_empty(), "write through `files::output`: {writers:#?}");
}

/// The variants of the enums in some code, by name: `enum Name { … }` and `choice! { Name { … } }`.
fn enums(code: &str) -> Vec<(String, BTreeSet<String>)> {
    let mut found = Vec::new();
    for (before, is_choice) in [("enum ", false), ("choice! {", true)] {
        for rest in code.split(before).skip(1) {
            let rest = rest.trim_start();
            // Attributes of a choice stand before its name.
            let rest = if is_choice { skip_attributes(rest) } else { rest };
            let Some((head, body)) = rest.split_once('{') else { continue };
            let name: String = head.trim().chars().take_while(|symbol| symbol.is_alphanumeric()).collect();
            if name.is_empty() || !name.starts_with(char::is_uppercase) {
                continue;
            }
            found.push((name, variants(body)));
        }
    }
    found
}

fn skip_attributes(mut code: &str) -> &str {
    while let Some(rest) = code.trim_start().strip_prefix("#[") {
        code = rest.split_once(']').map_or("", |(_, rest)| rest);
    }
    code.trim_start()
}

/// The items of a body with their fields, up to the brace that closes it.
fn variants(body: &str) -> BTreeSet<String> {
    let (mut depth, mut item, mut items) = (0usize, String::new(), Vec::new());
    for symbol in body.chars() {
        match symbol {
            '}' if depth == 0 => break,
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                items.push(std::mem::take(&mut item));
                continue;
            }
            _ => {}
        }
        item.push(symbol);
    }
    items.push(item);
    // The word of a choice is no part of its variant.
    let variant = |item: &String| {
        let item = skip_attributes(item).split('=').next().unwrap_or_default();
        item.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    items.iter().map(variant).filter(|variant| !variant.is_empty()).collect()
}

#[test]
fn no_two_enums_have_the_same_variants() {
    let mut by_variants: BTreeMap<BTreeSet<String>, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in sources("src") {
        for (name, variants) in enums(&code_of(&text)) {
            if variants.len() > 1 {
                by_variants.entry(variants).or_default().insert(format!("{path}: {name}"));
            }
        }
    }
    assert!(by_variants.len() > 30, "the enums were found: {}", by_variants.len());
    let same: Vec<_> = by_variants.iter().filter(|(_, names)| names.len() > 1).collect();
    assert!(same.is_empty(), "one of each is enough: {same:#?}");
}

#[test]
fn no_file_names_a_path_of_a_machine() {
    // In two parts, so that this file does not name them either.
    let folders = ["home", "root", "work", "tmp", "Users", "mnt"].map(|folder| format!("/{folder}"));
    let mut found = Vec::new();
    for path in files("") {
        // Formats of their own, and other people's names.
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for (index, line) in text.lines().enumerate() {
            let names_one = folders.iter().any(|folder| {
                line.match_indices(folder.as_str()).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    let after = line[at + folder.len()..].chars().next();
                    let is_absolute =
                        before.is_none_or(|symbol| !symbol.is_alphanumeric() && !"._-/)}]>*".contains(symbol));
                    is_absolute && after.is_none_or(|symbol| !symbol.is_alphanumeric() && !"_-".contains(symbol))
                })
            });
            if names_one {
                found.push(format!("{}:{}: {}", path.display(), index + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// The words of a command, quotes taken away.
pub fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut is_word) = (Vec::new(), String::new(), None, false);
    for symbol in command.chars() {
        match (quote, symbol) {
            (Some(open), _) if symbol == open => quote = None,
            (None, '"' | '\'') => (quote, is_word) = (Some(symbol), true),
            (None, ' ') => {
                if is_word {
                    words.push(std::mem::take(&mut word));
                }
                is_word = false;
            }
            _ => {
                word.push(symbol);
                is_word = true;
            }
        }
    }
    if is_word {
        words.push(word);
    }
    words
}

/// The arguments of every burnish command that a page tells its readers to run, with the page.
fn commands() -> Vec<(String, Vec<String>)> {
    let pages = files("").into_iter().filter(|path| {
        let is_page = path.extension().is_some_and(|extension| ["md", "toml"].iter().any(|one| extension == *one));
        is_page && !path.starts_with("tests")
    });
    let mut commands = Vec::new();
    for path in pages {
        let text = fs::read_to_string(root().join(&path)).expect("UTF-8");
        let page = path.display().to_string();
        // In a block of commands a line is one; elsewhere what stands between backticks.
        let lines = text.lines().map(|line| line.trim().trim_start_matches("# "));
        let quoted = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
        for line in lines.chain(quoted) {
            let line = line.strip_prefix("./target/release/").unwrap_or(line);
            let arguments = line.strip_prefix("burnish ").or_else(|| line.strip_prefix("cargo run --release -- "));
            let Some(arguments) = arguments else { continue };
            let arguments = words(arguments);
            // Prose begins with the name too: "burnish sends nothing anywhere".
            let is_command = arguments.first().is_some_and(|name| {
                burnish::cli::command().find_subcommand(name).is_some() && !line.ends_with(['.', ',', ';', ':'])
            });
            if is_command && arguments.len() > 1 {
                commands.push((page.clone(), arguments));
            }
        }
    }
    commands
}

#[test]
fn the_commands_of_the_documents_exist() {
    let commands = commands();
    let readme = commands.iter().filter(|(page, _)| page == "README.md").count();
    assert!(readme >= 10, "the README's commands were found: {readme}");
    let mut wrong = Vec::new();
    for (page, arguments) in &commands {
        let shown = arguments.join(" ");
        let parsed = burnish::cli::command().try_get_matches_from([&["burnish".to_owned()], &arguments[..]].concat());
        if let Err(error) = parsed {
            wrong.push(format!("{page}: burnish {shown}: {error}"));
        }
        for argument in arguments {
            let kept = ["recipes/", "datasets/", "tests/", "docs/", "benches/"];
            if kept.iter().any(|folder| argument.starts_with(folder)) && !root().join(argument).exists() {
                wrong.push(format!("{page}: burnish {shown}: there is no {argument}"));
            }
        }
        if let [command, recipe, settings @ ..] = &arguments[..]
            && ["train", "check"].contains(&command.as_str())
            && root().join(recipe).is_file()
        {
            let settings: Vec<String> = settings.iter().filter(|word| word.contains('=')).cloned().collect();
            let recipe = burnish::recipe::Recipe::load(&root().join(recipe), &settings);
            if let Err(error) = recipe.and_then(|recipe| recipe.settings()) {
                wrong.push(format!("{page}: burnish {shown}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Whether `path` begins with one of the folders of the repository whose files are kept.
fn is_kept(path: &str) -> bool {
    let folders = ["src/", "docs/", "recipes/", "datasets/", "benches/", "tests/", "fuzz/", "adapters/README"];
    folders.iter().any(|folder| path.starts_with(folder))
}

#[test]
fn the_files_that_documents_name_exist() {
    let mut missing = Vec::new();
    for path in files("") {
        let is_page = path.extension().is_some_and(|extension| extension == "md") || path.starts_with("recipes");
        if !is_page || path.starts_with("tests") {
            continue;
        }
        let text = fs::read_to_string(root().join(&path)).expect("UTF-8");
        let linked = text.split("](").skip(1).map(|rest| rest.split([')', '#']).next().unwrap_or_default());
        for target in linked.filter(|target| !target.is_empty() && !target.contains(':')) {
            let folder = path.parent().unwrap_or(Path::new(""));
            if !root().join(folder).join(target).exists() {
                missing.push(format!("{}: the link to {target}", path.display()));
            }
        }
        for named in text.lines().flat_map(|line| line.split(['`', '"']).skip(1).step_by(2)) {
            let is_pattern = named.contains(['*', '…', ' ', '{', '<']) || named.contains("NAME");
            let file = named.split(['#', ':']).next().unwrap_or_default();
            let is_the_users = FILLED_BY_USERS.iter().any(|folder| file.starts_with(folder));
            if is_kept(file) && !is_pattern && !is_the_users && !root().join(file).exists() {
                missing.push(format!("{}: {named}", path.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_page_is_in_the_book() {
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).expect("UTF-8");
    let listed: Vec<&str> = summary.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    let pages = files("docs").into_iter().filter(|path| path.parent() == Some(Path::new("docs")));
    let pages: Vec<String> = pages.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect();
    for page in pages.iter().filter(|page| page.ends_with(".md") && *page != "SUMMARY.md") {
        let times = listed.iter().filter(|listed| *listed == page).count();
        assert_eq!(times, 1, "docs/SUMMARY.md lists docs/{page}");
    }
    assert!(listed.len() > 25 && listed.iter().all(|page| pages.iter().any(|one| one == page)), "{listed:?}");
}

#[test]
fn the_rules_see_what_they_look_for() {
    let code = code_of("use crate::data; // crate::cli\nlet a = \"crate::run\\\"\"; use crate::{nn, ops::cpu};\n");
    assert_eq!(words_after(&code, "crate::").filter(|word| !word.is_empty()).collect::<Vec<_>>(), ["data"]);
    let found = enums("pub enum A { B, #[x] C(u8, u8), D { e: u8, } }\nchoice! {\n #[d] E {\n B = \"\", C = \"\", } }");
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let expected = names(&["B", "C(u8, u8)", "D { e: u8, }"]);
    assert_eq!(found, [("A".to_owned(), expected), ("E".to_owned(), names(&["B", "C"]))]);
    let text =
        "/// As x.\nfn a() {}\n/// A noun.\n/// What follows.\n///\n/// # Errors\n/// What b says.\n// As code.\n";
    assert_eq!(openings_without_a_noun(text), [(1, "As x."), (7, "What b says.")]);
    assert_eq!(words("a --b=\"c d\" 'e'"), ["a", "--b=c d", "e"]);
}
