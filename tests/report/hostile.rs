//! Texts that would like to be markup or script: in data, answers, names and records.

use std::fs;

use serde_json::{Value, json};

use super::island;
use crate::cli::{run, text, tiny_job};

/// Texts that have run in some page or other.
const PAYLOADS: &[&str] = &[
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "</SCRIPT ><SCRIPT>alert(3)</SCRIPT>",
    "</script\n><img src=x onerror=alert(4)>",
    "<img src=x onerror=alert(5)>",
    "<svg onload=alert(6)>",
    "<svg><script>alert(7)</script></svg>",
    "<iframe srcdoc='<script>alert(8)</script>'>",
    "<body onload=alert(9)>",
    "<details open ontoggle=alert(10)>",
    "<video><source onerror=alert(11)></video>",
    "<input autofocus onfocus=alert(12)>",
    "<a href=\"javascript:alert(13)\">x</a>",
    "javascript:alert(14)",
    "data:text/html,<script>alert(15)</script>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(16)>",
    "<noscript><p title=\"</noscript><img src=x onerror=alert(17)>\">",
    "<!--<script>alert(18)</script>-->",
    "<!-- --!><img src=x onerror=alert(19)>",
    "--><script>alert(20)</script>",
    "<![CDATA[<script>alert(21)</script>]]>",
    "\"><script>alert(22)</script>",
    "'><script>alert(23)</script>",
    "\" onmouseover=\"alert(24)",
    "' onmouseover='alert(25)",
    "`${alert(26)}`",
    "${alert(27)}",
    "{{constructor.constructor('alert(28)')()}}",
    "{script}{data}{style}{title}{sentence}",
    "\\u003cscript\\u003ealert(30)\\u003c/script\\u003e",
    "&lt;script&gt;alert(31)&lt;/script&gt;",
    "&#60;script&#62;alert(32)&#60;/script&#62;",
    "\u{2028}alert(33)\u{2029}",
    "\u{0}<script>alert(34)</script>",
    "<\u{0}script>alert(35)</script>",
    "<scr<script>ipt>alert(36)</scr</script>ipt>",
    "<script/src=//elsewhere.example/x.js></script>",
    "<link rel=stylesheet href=//elsewhere.example/x.css>",
    "<style>@import '//elsewhere.example/x.css';</style>",
    "<meta http-equiv=refresh content='0;url=//elsewhere.example'>",
    "<base href=//elsewhere.example/>",
    "<object data=//elsewhere.example></object>",
    "<embed src=//elsewhere.example>",
    "<form action=//elsewhere.example><button>x</button></form>",
    "__proto__",
    "constructor",
    "\u{202e}gnp.exe<script>alert(47)</script>",
    "\u{1b}]0;title\u{7}<script>alert(48)</script>",
    "=HYPERLINK(\"//elsewhere.example\")",
    "＜script＞alert(50)＜/script＞",
];

/// A run folder in which every text is a payload.
pub fn write_run(dir: &std::path::Path) {
    fs::create_dir_all(dir).expect("made");
    let at = |index: usize| PAYLOADS[index % PAYLOADS.len()];
    let metrics: Vec<Value> = (0..20u32)
        .map(|step| match step % 5 {
            0 => json!({"step": step, "valid_loss": 2.0 - 0.01 * f64::from(step), "valid_tokens": 9, "is_best": true, at(step as usize): at(3)}),
            _ => json!({"step": step, "epoch": 0, "loss": 2.5, "learning_rate": 1e-4, "grad_norm": 1.0, "tokens": 9, "trained_tokens": 4}),
        })
        .collect();
    let samples: Vec<Value> = PAYLOADS
        .iter()
        .flat_map(|payload| [0, 15].map(|step| json!({"step": step, "prompt": payload, "expected": payload, "answer": format!("{step}{payload}"), "tokens": 3, "finish": "length"})))
        .collect();
    let texts = |values: &[Value]| values.iter().map(|value| format!("{value}\n")).collect::<String>();
    fs::write(dir.join("metrics.jsonl"), texts(&metrics)).expect("written");
    fs::write(dir.join("timings.jsonl"), "{\"step\":1,\"time\":\"<script>\",\"seconds\":1.0,\"tokens\":9,\"tokens_per_second\":9.0,\"peak_bytes\":1000}\n").expect("written");
    fs::write(dir.join("samples.jsonl"), texts(&samples)).expect("written");
    fs::write(dir.join("recipe.toml"), PAYLOADS.join("\n")).expect("written");
    fs::write(dir.join("README.md"), format!("# x\n\n## Use\n\n{}\n\n### {}\n\n```sh\n{}\n```\n", at(0), at(4), at(1)))
        .expect("written");
    let named: serde_json::Map<String, Value> =
        PAYLOADS.iter().map(|payload| ((*payload).to_owned(), json!(payload))).collect();
    let record = json!({
        "burnish": at(0), "build": at(1), "started": at(2), "finished": at(5), "resumed": PAYLOADS, "overrides": PAYLOADS,
        "plan": {"adapter": {"rank": at(3), "alpha": at(4)}, "train": {"objective": at(6)}, "base": {"quant": at(7)}, "own": named},
        "device": at(8), "base": {"name": at(5), "sha256": at(9)}, "provenance": named,
        "data": {"train": {"examples": 1}, "train_sha256": at(10)}, "memory_plan": {at(11): 1}, "error": PAYLOADS.join(" "),
    });
    fs::write(dir.join("run.json"), record.to_string()).expect("written");
    let losses = vec![Some(1.0); PAYLOADS.len()];
    let modules: Vec<Value> = PAYLOADS.iter().enumerate().map(|(index, payload)| json!({"module": payload, "name": payload, "layer": index, "rank": 1, "update_norm": 1.0, "spectral_norm": 1.0, "effective_rank": 1.0, "weight_norm": 2.0})).collect();
    let parts: Vec<Value> = PAYLOADS.iter().map(|payload| json!({"part": payload, "loss": 1.5})).collect();
    let details = json!({
        "lengths": [{"set": at(0), "examples": 1, "max_seq_tokens": 9, "longest": 5, "median": 4, "bar_tokens": 1, "bars": [0, 1], "dropped_long": 0, "truncated": 0}],
        "rendered": [{"place": at(4), "tokens": PAYLOADS, "trained": vec![true; PAYLOADS.len()], "cut": 0}],
        "tokens": {"after_step": 15, "examples": [{"place": at(4), "tokens": PAYLOADS, "before": losses, "after": losses}]},
        "adapter": modules, "modules": {"examples": 1, "tokens": 9, "loss": 1.0, "by_name": parts, "by_layer": parts, "by_module": parts},
        "left_out": {"losses": at(0)},
    });
    fs::write(dir.join("report.json"), details.to_string()).expect("written");
}

/// The elements that a page may open: those of its own file. Everything else that looks like a tag came from a run.
fn tags(page: &str) -> Vec<String> {
    let opened = page.split('<').skip(1).map(|rest| {
        rest.chars().take_while(|symbol| symbol.is_alphanumeric() || "/!-".contains(*symbol)).collect::<String>()
    });
    opened.map(|tag| tag.to_ascii_lowercase()).collect()
}

#[test]
fn nothing_of_a_run_becomes_markup() {
    let folder = tiny_job();
    // Names of folders cannot hold everything.
    let name = "<img src=x onerror=alert(0)>&amp;";
    let dir = folder.path().join(name);
    write_run(&dir);
    let plain = folder.path().join("plain");
    fs::create_dir_all(&plain).expect("made");
    fs::write(plain.join("run.json"), "{}").expect("written");
    for runs in [vec![name], vec![name, "plain"]] {
        let out = format!("page-{}.html", runs.len());
        let arguments = [&["report"][..], &runs, &["--format", "html", "--out", &out]].concat();
        let output = run(&folder, &arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let page = fs::read_to_string(folder.path().join(&out)).expect("a page");
        let own = burnish::report::page::with_data("t", "s", "{}");
        assert_eq!(tags(&page), tags(&own), "no element but the page's own");
        let data = island(&page);
        let index = data["runs"].as_array().expect("runs").iter().position(|run| run["name"] == name).expect("the run");
        let run_data = &data["runs"][index];
        let read: Vec<&str> = run_data["details"]["rendered"][0]["tokens"]
            .as_array()
            .expect("tokens")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(read, PAYLOADS, "and every text is what it was");
        assert_eq!(run_data["samples"].as_array().map(Vec::len), Some(100));
        let title = page.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>")).expect("a title").0;
        assert!(!title.contains('<'), "{title}");
    }
    // A terminal is not controlled either.
    let output = run(&folder, &["report", name, "plain"]);
    let table = text(&output.stdout);
    assert!(output.status.success() && !table.contains(['\u{1b}', '\u{7}']), "{table:?}");
}
