//! Reports without secrets.

use std::fs;

use super::{island, train_into};
use crate::cli::{refused, run, text, tiny_job};

#[test]
fn a_redacted_report_holds_no_secret_of_the_data() {
    let folder = tiny_job();
    let row = |index: usize| {
        format!(
            "{{\"prompt\": \"Ask ann.b@mail.de or +49 30 901820, {index}: \", \"completion\": \"ann.b@mail.de\"}}\n"
        )
    };
    for (name, from) in [("train.jsonl", 0), ("valid.jsonl", 20)] {
        fs::write(folder.path().join(name), (from..from + 12).map(row).collect::<String>()).expect("written");
    }
    train_into(&folder, "runs/sums", &["sample.prompts=['Write to ann.b@mail.de: ']", "data.max_seq_tokens=120"]);
    let dir = folder.path().join("runs/sums");
    let as_it_is = fs::read_to_string(dir.join("report.html")).expect("a page");
    assert!(as_it_is.contains("mail.de"), "the data is shown");
    let output = run(&folder, &["report", "runs/sums", "--redact", "--out", "page.html"]);
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("secrets replaced"), "{said}");
    let page = fs::read_to_string(folder.path().join("page.html")).expect("a page");
    let data = island(&page)["runs"][0].clone();
    // Token by token too, where an address lies in several texts.
    let tokens = data["details"]["rendered"][0]["tokens"].as_array().expect("tokens");
    let whole: String = tokens.iter().filter_map(|token| token.as_str()).collect();
    assert!(whole.contains("Ask [EMAIL] or [PHONE], 0: "), "{whole}");
    assert!(!page.contains("mail.de") && !page.contains("901820"), "{whole}");
    assert_eq!(data["metrics"], island(&as_it_is)["runs"][0]["metrics"]);
    assert_eq!(fs::read_to_string(dir.join("report.html")).expect("a page"), as_it_is, "the run's own page stays");
    assert!(refused(&run(&folder, &["report", "runs/none", "--redact"])).contains("does not exist"));
}
