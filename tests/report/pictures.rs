//! Pictures in the page of a run: small copies, and none where the report is redacted.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use burnish::data::images::decode::decode;
use serde_json::Value;

use super::{island, lines, train_into};
use crate::cli::{run, text};
use crate::hostile_weights::fixture;

#[test]
fn samples_and_examples_show_their_pictures_and_a_redacted_report_shows_none() {
    let base = fixture("vision/smolvlm_tiles");
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("pictures")).expect("made");
    for name in ["wide.png", "tall.png", "square.png"] {
        fs::copy(base.join("pictures").join(name), folder.path().join("pictures").join(name)).expect("copied");
    }
    for name in ["train.jsonl", "valid.jsonl"] {
        fs::copy(base.join("data.jsonl"), folder.path().join(name)).expect("copied");
    }
    let recipe = format!(
        "[base]\nmodel = {base:?}\ncompute = \"f32\"\n[data]\ntrain = \"train.jsonl\"\nvalid = \"valid.jsonl\"\n\
         max_seq_tokens = 256\n[adapter]\nrank = 2\n[train]\nmax_steps = 2\n[output]\ndir = \"run\"\n"
    );
    fs::write(folder.path().join("recipe.toml"), recipe).expect("written");
    train_into(&folder, "run", &[]);
    let dir = folder.path().join("run");
    let page = fs::read_to_string(dir.join("report.html")).expect("a page");
    let data = island(&page)["runs"][0].clone();
    let pictures = data["details"]["pictures"].as_object().expect("pictures");
    let mut names: Vec<&str> = pictures.values().filter_map(|picture| picture["name"].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["square.png", "tall.png", "wide.png"]);
    for (sha256, picture) in pictures {
        let png = STANDARD.decode(picture["png"].as_str().expect("base64")).expect("base64");
        let small = decode(&png).expect("a picture");
        assert!(small.width.max(small.height) <= 72);
        let file = dir.parent().expect("a folder").join("pictures").join(picture["name"].as_str().expect("a name"));
        let bytes = fs::read(file).expect("the file");
        assert_eq!(burnish::files::hex::sha256_of(&bytes), *sha256);
        assert_eq!(small, decode(&bytes).expect("a picture"), "one that is small already stays as it is");
    }
    let keys = |value: &Value| -> Vec<String> {
        let keys = value["pictures"].as_array().expect("pictures").iter();
        keys.map(|key| pictures[key.as_str().expect("a key")]["name"].as_str().expect("a name").to_owned()).collect()
    };
    let rendered = &data["details"]["rendered"];
    assert_eq!(
        (keys(&rendered[0]), keys(&rendered[1])),
        (vec!["wide.png".into()], vec!["tall.png".into(), "square.png".into()])
    );
    let tokens = rendered[0]["tokens"].as_array().expect("tokens");
    let of_picture = tokens.iter().filter(|token| token.as_str().is_some_and(|text| text.ends_with("of a picture]")));
    assert!(of_picture.count() > 1 && tokens.len() < rendered[0]["count"].as_u64().expect("a number") as usize);
    let shown: Vec<Vec<String>> =
        lines(&dir.join("samples.jsonl")).iter().filter(|line| line.get("pictures").is_some()).map(keys).collect();
    assert!(shown.contains(&vec!["wide.png".to_owned()]), "{shown:?}");

    let redacted = run(&folder, &["report", "run", "--redact", "--out", "page.html"]);
    assert!(redacted.status.success(), "{}", text(&redacted.stderr));
    let redacted = fs::read_to_string(folder.path().join("page.html")).expect("a page");
    assert!(island(&redacted)["runs"][0]["details"].get("pictures").is_none());
    for picture in pictures.values() {
        let png = picture["png"].as_str().expect("base64");
        assert!(page.contains(png) && !redacted.contains(png));
    }
}
