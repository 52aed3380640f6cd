//! The labels of a classifier's run as a table: how often each is right, and the label that its texts were given instead.

use serde_json::Value;

use super::folder::RunFiles;
use super::table::Table;

/// The confusion of the labels on the test examples, or else on the validation examples: a row for each right label, a column for each
/// that was given. None where the run is no classifier's, or has no verdict yet.
pub fn confusion(run: &RunFiles) -> Option<Table> {
    let after = ["test", "validation"].iter().map(|name| &run.outcome()[name]["classes"]["after"]);
    of_report(after.into_iter().find(|after| after.is_object())?)
}

fn of_report(after: &Value) -> Option<Table> {
    let labels = after["labels"].as_array()?;
    let name = |label: &Value| label["label"].as_str().unwrap_or_default().to_owned();
    let given: Vec<String> = labels.iter().map(|label| format!("as {}", name(label))).collect();
    let mut names = vec!["label", "examples", "precision", "recall", "F1"];
    names.extend(given.iter().map(String::as_str));
    let mut table = Table::new(&names);
    for (label, row) in labels.iter().zip(after["confusion"].as_array()?) {
        let share =
            |key: &str| label[key]["value"].as_f64().map_or("-".to_owned(), |share| format!("{:.1}%", 100.0 * share));
        let counts = row.as_array()?.iter().map(|count| match count.as_u64() {
            None | Some(0) => "·".to_owned(),
            Some(count) => count.to_string(),
        });
        let cells = [name(label), label["examples"].to_string(), share("precision"), share("recall"), share("f1")];
        table.add(cells.into_iter().chain(counts).collect());
    }
    Some(table)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_is_the_right_label() {
        let share = |value: f64| json!({ "value": value, "low": 0.0, "high": 1.0 });
        let after = json!({
            "labels": [
                { "label": "parks", "examples": 4, "precision": share(1.0), "recall": share(0.75), "f1": share(0.857) },
                { "label": "water", "examples": 2, "precision": null, "recall": share(0.0), "f1": null },
            ],
            "confusion": [[3, 1], [0, 2]],
        });
        let text = of_report(&after).expect("a table").to_string();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["label", "examples", "precision", "recall", "F1", "as", "parks", "as", "water"]);
        assert_eq!(lines[1], ["parks", "4", "100.0%", "75.0%", "85.7%", "3", "1"]);
        assert_eq!(lines[2], ["water", "2", "-", "0.0%", "-", "·", "2"]);
        assert_eq!(of_report(&json!({})), None);
    }
}
