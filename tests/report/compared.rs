//! Several runs beside each other, and the formats of other tools.

use std::fs;

use burnish::eval::bootstrap::{self, Better, Share};
use serde_json::Value;

use super::{island, lines, train_into};
use crate::cli::{json, refused, run, text, tiny_job};

#[test]
fn runs_are_compared_on_the_examples_that_both_saw() {
    let folder = tiny_job();
    train_into(&folder, "runs/short", &["train.max_steps=3"]);
    train_into(&folder, "runs/long", &["train.epochs=4"]);
    train_into(&folder, "runs/part", &["eval.max_examples=12"]);
    let runs = ["runs/short", "runs/long", "runs/part"];
    let compared = json(&run(&folder, &[&["report", "--json"][..], &runs].concat()));
    let rows = compared["runs"].as_array().expect("rows");
    let losses: Vec<f64> = rows.iter().map(|row| row["loss"].as_f64().expect("a loss")).collect();
    assert!(losses.is_sorted() && rows[0]["name"] == "long", "the best first: {compared}");
    let of = |name: &str| rows.iter().find(|row| row["name"] == name).expect("a row");
    assert_eq!(of("part")["against"]["not"], "measured on other examples");

    let shares = |name: &str| -> Vec<Share> {
        let details = fs::read(folder.path().join("runs").join(name).join("report.json")).expect("details");
        let losses = serde_json::from_slice::<Value>(&details).expect("JSON")["losses"].clone();
        let numbers =
            |key: &str| losses[key].as_array().expect("numbers").iter().filter_map(Value::as_f64).collect::<Vec<_>>();
        numbers("after").into_iter().zip(numbers("tokens")).map(|(sum, weight)| Share { sum, weight }).collect()
    };
    let expected = bootstrap::compare(&shares("long"), &shares("short"), Better::Lower, 0);
    let paired = &of("short")["against"]["paired"];
    for (key, value) in [("difference", expected.difference), ("low", expected.low), ("high", expected.high)] {
        assert!((paired[key].as_f64().expect("a number") - value).abs() < 1e-12, "{key}: {paired}");
    }
    assert!(paired["difference"].as_f64() > Some(0.0), "{paired}");

    let keys: Vec<&str> =
        compared["settings"].as_array().expect("settings").iter().filter_map(|one| one["key"].as_str()).collect();
    assert_eq!(keys, ["eval.max_examples", "train.epochs", "train.max_steps"]);
    let table = text(&run(&folder, &[&["report"][..], &runs].concat()).stdout);
    let first = table.lines().nth(1).expect("a row");
    assert!(first.starts_with("long ") && table.contains("\ntrain.epochs "), "{table}");

    let page = run(&folder, &[&["report", "--format", "html", "--out", "all.html"][..], &runs].concat());
    assert!(page.status.success(), "{}", text(&page.stderr));
    let data = island(&fs::read_to_string(folder.path().join("all.html")).expect("a page"));
    assert_eq!((&data["comparison"]["runs"], data["runs"].as_array().map(Vec::len)), (&compared["runs"], Some(3)));
    let again = run(&folder, &[&["report", "--format", "html", "--out", "all.html"][..], &runs].concat());
    assert!(refused(&again).contains("exists already"));
    assert!(refused(&run(&folder, &[&["report", "--format", "html"][..], &runs].concat())).contains("--out"));
}

#[test]
fn other_tools_get_their_formats() {
    let folder = tiny_job();
    train_into(&folder, "runs/sums", &[]);
    let dir = folder.path().join("runs/sums");
    let metrics = lines(&dir.join("metrics.jsonl"));
    let losses: Vec<f64> = metrics.iter().filter_map(|line| line["loss"].as_f64()).collect();

    let csv = text(&run(&folder, &["report", "runs/sums", "--format", "csv"]).stdout);
    let names: Vec<&str> = csv.lines().next().expect("names").split(',').collect();
    let column = names.iter().position(|name| *name == "loss").expect("a column");
    let of_csv: Vec<f64> = csv.lines().skip(1).filter_map(|line| line.split(',').nth(column)?.parse().ok()).collect();
    assert_eq!((names[0], of_csv), ("step", losses.clone()));

    let state = text(&run(&folder, &["report", "runs/sums", "--format", "trainer-state"]).stdout);
    let state: Value = serde_json::from_str(&state).expect("JSON");
    let history = state["log_history"].as_array().expect("a history");
    let of_state: Vec<f64> = history.iter().filter_map(|entry| entry["loss"].as_f64()).collect();
    assert_eq!((of_state, &state["global_step"]), (losses.clone(), &12.into()));
    let evaluated = history.iter().filter(|entry| entry["eval_loss"].is_number()).count();
    assert_eq!((evaluated, state["epoch"].as_f64()), (4, Some(2.0)));

    let output = run(&folder, &["report", "runs/sums", "--tensorboard", "events"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let path = folder.path().join(text(&output.stdout).trim());
    let bytes = fs::read(&path).expect("events");
    assert!(path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("events.out.tfevents.")));
    // Records: a length of eight bytes, a checksum, the content, a checksum.
    let (mut rest, mut contents) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().expect("eight bytes")) as usize;
        contents.push(&rest[12..12 + length]);
        rest = &rest[16 + length..];
    }
    assert!(contents[0].ends_with(b"brain.Event:2"));
    let of_tag = |tag: &str| -> Vec<f32> {
        let found = contents.iter().filter(|content| content.windows(tag.len()).any(|part| part == tag.as_bytes()));
        found.map(|content| f32::from_le_bytes(content[content.len() - 4..].try_into().expect("four bytes"))).collect()
    };
    assert_eq!(of_tag("train/loss"), losses.iter().map(|loss| *loss as f32).collect::<Vec<_>>());
    assert_eq!((of_tag("eval/loss").len(), of_tag("perf/tokens_per_second").len()), (4, 12));
}
