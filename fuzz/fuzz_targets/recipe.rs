//! Any text as a recipe: parsed, and its settings read.

#![no_main]

use burnish::recipe::Recipe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let read = Recipe::parse(text, "fuzz", &[]).and_then(|recipe| recipe.settings());
    if let Err(error) = read {
        assert_eq!(error.exit_code(), 2);
    }
});
