//! Several models on one base, and models that come, change and go.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::client::{self, HOST, JSON};
use super::{BASE, Running, adapter, asking, content, two_adapters};

#[test]
fn each_name_answers_as_it_does_alone() {
    let (_folder, adapters) = two_adapters();
    let server = Running::of(|options| options.adapters = adapters);
    let listed = server.get("/v1/models").json();
    let names: Vec<&Value> = listed["data"].as_array().expect("models").iter().map(|model| &model["id"]).collect();
    assert_eq!(names, [BASE, "one", "two"]);
    assert_eq!(server.get("/v1/models/two").json()["id"], "two");
    assert_eq!(server.get("/v1/models/three").status, 404);
    let models = [BASE, "one", "two"];
    let alone = models.map(|model| content(&server.answer(model, "hello")).to_owned());
    assert!(alone[0] != alone[1] && alone[1] != alone[2] && alone[0] != alone[2], "{alone:?}");
    let server = &server;
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..12)
            .map(|index| {
                scope.spawn(move || (index % 3, content(&server.answer(models[index % 3], "hello")).to_owned()))
            })
            .collect();
        for answer in asked {
            let (model, text) = answer.join().expect("an answer");
            assert_eq!(text, alone[model], "beside others, {} answers the same", models[model]);
        }
    });
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
        }
    }
}

#[test]
fn adapters_come_change_and_go_while_answers_run() {
    let (folder, adapters) = two_adapters();
    let (one, two) = (&adapters[0].folder, &adapters[1].folder);
    let offered = folder.path().join("offered");
    fs::create_dir(&offered).expect("a folder");
    let served = offered.clone();
    let server = Running::of(|options| (options.adapter_folder, options.adapters) = (Some(served), adapters.clone()));
    let [of_one, of_two] = ["one", "two"].map(|model| content(&server.answer(model, "hello")).to_owned());
    assert_ne!(of_one, of_two);
    let reload = || server.post("/v1/adapters/reload", &json!({})).json();
    let answer = || content(&server.answer("a", "hello")).to_owned();
    let status = || server.post("/v1/chat/completions", &asking("a", "hello")).status;
    assert_eq!(status(), 404);

    copy(one, &offered.join("a"));
    fs::create_dir(offered.join("no adapter")).expect("a folder");
    assert_eq!(reload()["added"], json!(["a"]));
    assert_eq!(answer(), of_one);
    assert_eq!(reload(), json!({ "added": [], "replaced": [], "removed": [], "failed": [] }));

    // A stream that has begun, and goes on with the version that it began with.
    let body = json!({
        "model": "a", "messages": [{ "role": "user", "content": "hello" }], "temperature": 0, "max_tokens": 12, "stream": true,
    });
    let mut stream = client::connect(server.address);
    stream.write_all(&client::request("POST", "/v1/chat/completions", &[HOST, JSON], &body.to_string())).expect("sent");
    let mut line = String::new();
    let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
    reader.read_line(&mut line).expect("a line");
    assert!(line.contains("200"), "{line}");

    fs::remove_dir_all(offered.join("a")).expect("removed");
    copy(two, &offered.join("a"));
    // On a coarse clock the files may have the same times: their content differs, their sizes may not.
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    let weights = fs::File::options().append(true).open(offered.join("a/adapter_model.safetensors")).expect("a file");
    weights.set_modified(later).expect("a time");
    assert_eq!(reload()["replaced"], json!(["a"]));
    assert_eq!(answer(), of_two);
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut reader, &mut rest).expect("the rest");
    let text: String =
        rest.lines().filter_map(|line| line.strip_prefix("data: {")).fold(String::new(), |text, line| {
            let chunk: Value = serde_json::from_str(&format!("{{{line}")).expect("JSON");
            text + chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default()
        });
    assert_eq!(text, of_one);

    assert_eq!(client::send(server.address, "DELETE", "/v1/models/a", &[HOST], "").json()["deleted"], true);
    assert_eq!(status(), 404);
    assert_eq!(reload()["added"], json!(["a"]), "a reload finds it again");
    fs::remove_dir_all(offered.join("a")).expect("removed");
    assert_eq!(reload()["removed"], json!(["a"]));
    assert_eq!(status(), 404);

    copy(one, &offered.join("broken"));
    fs::write(offered.join("broken/adapter_model.safetensors"), "rubbish").expect("written");
    let answer = server.post("/v1/adapters/reload", &json!({}));
    assert_eq!(answer.json()["failed"], json!(["broken"]));
    let path = folder.path().display().to_string();
    assert!(!answer.body.contains(&path), "a client learns no path: {}", answer.body);
    assert!(server.owner.lines.lock().expect("a lock").contains("broken"), "the owner learns the reason");
    assert_eq!(client::send(server.address, "DELETE", &format!("/v1/models/{BASE}"), &[HOST], "").status, 400);
}

#[test]
fn an_adapter_keeps_its_name_apart_from_the_base() {
    let folder = tempfile::tempdir().expect("a folder");
    let own = adapter(&folder.path().join(BASE), "one two", false);
    let mut command = crate::cli::burnish(&folder);
    command.arg("serve").arg("--base").arg(crate::cli::tiny_model()).arg("--adapter").arg(own);
    let refused = crate::cli::refused(&command.output().expect("the program starts"));
    assert!(refused.contains("`smollm` is the name of two models"), "{refused}");
}

#[test]
fn votes_are_kept_where_a_file_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("votes.jsonl");
    let kept = path.clone();
    let server = Running::of(|options| options.votes = Some(kept));
    let vote = json!({ "models": ["b", "a"], "answers": ["x", "y"], "prompt": "p", "seed": 1, "winner": "b" });
    let summary = server.post("/api/votes", &vote).json();
    assert_eq!((&summary["pairs"][0]["models"], &summary["pairs"][0]["wins"]), (&json!(["a", "b"]), &json!([0, 1])));
    assert_eq!(server.get("/api/votes").json()["kept"], true);
    assert!(fs::read_to_string(&path).expect("a file").contains("\"winner\":\"b\""));
    let without = Running::plain();
    assert_eq!(without.post("/api/votes", &vote).status, 400);
    assert_eq!(without.get("/api/votes").json(), json!({ "pairs": [], "kept": false }));
}
