//! The recipes that come with the program.

/// A recipe that comes with the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Shipped {
    /// Its name.
    pub name: &'static str,
    /// Its text.
    #[serde(skip)]
    pub text: &'static str,
}

macro_rules! shipped {
    ($($name:literal),*) => {
        &[$(Shipped { name: $name, text: include_str!(concat!("../../recipes/", $name, ".toml")) }),*]
    };
}

/// All of them, by name.
pub const SHIPPED: &[Shipped] = shipped![
    "classify",
    "code",
    "creative",
    "llama-3.1-8b-nf4",
    "preferences",
    "qlora-gguf",
    "qlora-nf4",
    "quickstart",
    "reading",
    "service",
    "sql",
    "sweep",
    "teaching",
    "tools",
    "wikisql"
];

impl Shipped {
    /// The sentence at its top.
    pub fn about(&self) -> String {
        let comments = self.text.lines().skip_while(|line| line.starts_with("#:"));
        let words: Vec<&str> = comments.map_while(|line| line.strip_prefix("# ")).collect();
        let text = words.join(" ");
        text.split_inclusive(". ").next().unwrap_or_default().trim().trim_end_matches('.').to_owned()
    }
}
