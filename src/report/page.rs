//! The pages of runs and of a look inside a model: one HTML file that asks for nothing from elsewhere. The data stands in it as JSON, the texts of which cannot end
//! the element around them; the script puts texts into the page as texts only.

use std::borrow::Cow;
use std::path::Path;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::compare::compare;
use super::folder::{Lines, RunFiles};
use super::sentence::sentence;
use crate::error::Result;

/// The program and its version, as pages name them.
pub const PROGRAM: &str = concat!("burnish ", env!("CARGO_PKG_VERSION"));

const PAGE: &str = include_str!("assets/page.html");
const STYLE: &str = include_str!("assets/style.css");
const TOOLS: &str = include_str!("assets/tools.js");

/// The page of runs.
static RUNS: LazyLock<Page> = LazyLock::new(|| {
    Page::new(&[
        TOOLS,
        include_str!("assets/chart.js"),
        include_str!("assets/sections.js"),
        include_str!("assets/labels.js"),
        include_str!("assets/live.js"),
        include_str!("assets/sweep.js"),
        include_str!("assets/report.js"),
    ])
});

/// The page of a look inside a model.
static INSIDE: LazyLock<Page> = LazyLock::new(|| Page::new(&[TOOLS, include_str!("assets/inside.js")]));

/// A kind of page: what it runs, and what a browser lets it do.
struct Page {
    script: String,
    /// The policy by which a browser runs the page's own script and style and nothing else, asks for nothing, and speaks with the
    /// server of the page alone.
    policy: String,
}

impl Page {
    fn new(scripts: &[&str]) -> Self {
        let script = scripts.concat();
        let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
        let policy = format!(
            "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
             form-action 'none'",
            hash(&script),
            hash(STYLE)
        );
        Self { script, policy }
    }

    /// The page with some data in it; `text` is shown where there are no scripts.
    fn with(&self, title: &str, text: &str, data: &str) -> String {
        let parts = [
            ("{policy}", Cow::Borrowed(self.policy.as_str())),
            ("{title}", escaped(title)),
            ("{style}", Cow::Borrowed(STYLE)),
            ("{sentence}", escaped(text)),
            ("{data}", Cow::Borrowed(data)),
            ("{script}", Cow::Borrowed(self.script.as_str())),
        ];
        // Piece by piece, so that nothing in a part is taken for the place of another one.
        let mut page = String::with_capacity(PAGE.len() + STYLE.len() + self.script.len() + data.len());
        let mut rest = PAGE;
        for (name, part) in parts {
            let (before, after) = rest.split_once(name).unwrap_or((rest, ""));
            page += before;
            page += &part;
            rest = after;
        }
        page + rest
    }
}

/// The policy of the page of runs.
pub fn policy() -> &'static str {
    &RUNS.policy
}

/// The page of a look inside a model, whose data is this JSON; `text` is shown where there are no scripts.
pub fn of_inside(title: &str, text: &str, data: &Value) -> String {
    INSIDE.with(title, text, &for_script(&data.to_string()))
}

/// The page of the run in the folder `path`.
///
/// # Errors
/// Those of [`RunFiles::read`].
pub fn of_folder(path: &Path) -> Result<String> {
    let run = RunFiles::read(path)?;
    Ok(of_runs(std::slice::from_ref(&run)))
}

/// The page of several runs, or of one.
pub fn of_runs(runs: &[RunFiles]) -> String {
    let (title, text) = match runs {
        [run] => (run.name.clone(), sentence(run).text),
        _ => (format!("{} runs", runs.len()), "A comparison of runs.".to_owned()),
    };
    with_data(&title, &text, &data(runs))
}

/// The page of runs with some data in it; `text` is shown where there are no scripts.
pub fn with_data(title: &str, text: &str, data: &str) -> String {
    RUNS.with(title, text, data)
}

/// The data of the page as JSON that may stand in a `script` element. Lines and documents are those of the files, digit for digit.
pub fn data(runs: &[RunFiles]) -> String {
    let comparison = if runs.len() > 1 { json!(compare(runs)) } else { Value::Null };
    let runs: Vec<String> = runs.iter().map(of_run).collect();
    let text = format!("{{\"program\":{},\"comparison\":{comparison},\"runs\":[{}]}}", json!(PROGRAM), runs.join(","));
    for_script(&text)
}

fn of_run(run: &RunFiles) -> String {
    let about = json!({
        "name": run.name, "state": run.state.name(), "sentence": sentence(run), "recipe": run.recipe, "use": run.usage,
        "missing": run.missing,
    });
    let about = about.to_string();
    format!(
        "{},\"record\":{},\"details\":{},\"memorisation\":{},\"metrics\":{},\"timings\":{},\"samples\":{}}}",
        about.strip_suffix('}').unwrap_or(&about),
        run.record.text.trim(),
        run.details.text.trim(),
        run.memorisation.text.trim(),
        list(&run.metrics),
        list(&run.timings),
        list(&run.samples)
    )
}

/// The lines of a file as a list.
pub(super) fn list(lines: &Lines) -> String {
    let texts: Vec<&str> = lines.lines.iter().map(|(text, _)| text.trim()).collect();
    format!("[{}]", texts.join(","))
}

/// JSON in which no character can end a `script` element, begin a comment or a tag, or end a line of a script. These characters
/// stand in strings only, where an escape means the same.
pub fn for_script(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for symbol in json.chars() {
        match symbol {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => safe += &format!("\\u{:04x}", u32::from(symbol)),
            _ => safe.push(symbol),
        }
    }
    safe
}

/// The text for the content of an element.
fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(['<', '>', '&', '"', '\'']) {
        return Cow::Borrowed(text);
    }
    let of = |symbol: char| match symbol {
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '&' => "&amp;".to_owned(),
        '"' => "&quot;".to_owned(),
        '\'' => "&#39;".to_owned(),
        _ => symbol.to_string(),
    };
    Cow::Owned(text.chars().map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_asks_for_nothing_from_elsewhere() {
        for page in [with_data("a", "b", "{}"), of_inside("a", "b", &json!({}))] {
            assert!(page.len() < 400 << 10, "{} bytes", page.len());
            // The names of the namespaces are no addresses.
            let page = page.replace("http://www.w3.org/2000/svg", "");
            for elsewhere in
                ["http://", "https://", "//cdn", " src=", "@import", "url(", "innerHTML", "outerHTML", " style=\""]
            {
                assert!(!page.contains(elsewhere), "{elsewhere}");
            }
        }
        for call in ["eval(", "Function(", "document.write", "insertAdjacentHTML"] {
            assert!(!RUNS.script.contains(call) && !INSIDE.script.contains(call), "{call}");
        }
    }

    #[test]
    fn a_part_is_not_taken_for_the_place_of_another() {
        let page = with_data("{sentence}", "{data}", "\"{script}\"");
        assert!(page.contains("<title>{sentence}") && page.contains("{data}</p>") && page.contains("\"{script}\""));
    }

    #[test]
    fn data_cannot_end_its_element() {
        let text = "{\"a\":\"</script><!--&\u{2028}\"}";
        let safe = for_script(text);
        assert!(!safe.contains(['<', '>', '&', '\u{2028}']), "{safe}");
        let value: Value = serde_json::from_str(&safe).expect("JSON");
        assert_eq!(value, serde_json::from_str::<Value>(text).expect("JSON"));
    }
}
