//! Pulling from the hub, against a fake hub on the loopback interface.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use burnish::pull::hub::{Hub, Wanted};
use burnish::pull::{Event, Freshness};

use super::fake_hub::{
    Answer, COMMIT, FakeHub, Framing, REPO, Request, TOKENIZER, answer, fetch, git_blob_id, repository, sha256, weights,
};

#[test]
fn a_repository_is_laid_out_as_python_lays_it_out() {
    let hub = FakeHub::new(|request, _, port| repository(request, port));
    let snapshot = hub.fetch().expect("fetched");
    let folder = hub.repo_folder();
    assert_eq!(snapshot, folder.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(folder.join("refs/main")).expect("ref"), COMMIT);
    assert_eq!(fs::read(snapshot.join("model.safetensors")).expect("weights"), weights());
    assert_eq!(fs::read_to_string(snapshot.join("config.json")).expect("config"), "{}");
    let mut names: Vec<_> =
        fs::read_dir(&snapshot).expect("snapshot").flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"], "no .bin, no onnx, no README");
    #[cfg(unix)]
    {
        let link = fs::read_link(snapshot.join("model.safetensors")).expect("a link");
        assert_eq!(link, Path::new("../../blobs").join(sha256(&weights())));
    }
    assert!(hub.folder.path().join(format!("hub/.locks/models--org--model/{}.lock", sha256(&weights()))).is_file());
}

#[test]
fn what_is_there_is_not_fetched_again() {
    let hub = FakeHub::new(|request, _, port| repository(request, port));
    let first = hub.fetch().expect("fetched");
    hub.requests();
    assert_eq!(fetch(&hub.client(), Freshness::Cached).expect("cached"), first);
    assert_eq!(fetch(&Hub { offline: true, ..hub.client() }, Freshness::Newest).expect("offline"), first);
    assert!(hub.requests().is_empty(), "neither asks the hub");
    assert_eq!(hub.fetch().expect("asked"), first);
    assert_eq!(hub.requests(), ["GET /api/models/org/model/revision/main"], "one question, no file");
}

#[test]
fn what_python_fetched_is_used() {
    // Written by hand in the layout of huggingface_hub: only what it needs to be found.
    let folder = tempfile::tempdir().expect("folder");
    let repo = folder.path().join("models--org--model");
    let snapshot = repo.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).expect("folder");
    fs::create_dir_all(repo.join("refs")).expect("folder");
    fs::write(repo.join("refs/main"), COMMIT).expect("written");
    let hub = Hub { endpoint: "http://127.0.0.1:9".into(), cache: folder.path().into(), token: None, offline: true };
    for file in ["config.json", "tokenizer.json", "model-00002-of-00002.safetensors"] {
        fs::write(snapshot.join(file), "{}").expect("written");
    }
    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    fs::write(snapshot.join("model.safetensors.index.json"), index).expect("written");
    let error = fetch(&hub, Freshness::Cached).expect_err("a shard is missing");
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("lacks model-00001-of-00002.safetensors"), "{error}");
    fs::write(snapshot.join("model-00001-of-00002.safetensors"), "{}").expect("written");
    assert_eq!(fetch(&hub, Freshness::Cached).expect("complete"), snapshot);
    let at_commit = hub.fetch(REPO, COMMIT, &Wanted::Safetensors, Freshness::Newest, &mut |_| {});
    assert_eq!(at_commit.expect("by commit"), snapshot);
}

#[test]
fn the_token_goes_to_the_hub_and_to_no_other_host() {
    let hub = FakeHub::new(|request, _, port| repository(request, port));
    fetch(&Hub { token: Some("secret".into()), ..hub.client() }, Freshness::Newest).expect("fetched");
    let requests = hub.requests();
    assert!(requests.contains(&"GET /store/weights".to_owned()), "{requests:#?}");
    assert!(requests.iter().filter(|request| !request.contains("/store/")).all(|request| request.ends_with(" token")));
}

#[test]
fn a_download_that_was_cut_goes_on_where_it_stopped() {
    let hub = FakeHub::new(|request, count, port| {
        let whole = repository(request, port);
        let cut = (request.path == "/store/weights" && count == 0).then_some(100_000);
        Answer { cut, ..whole }
    });
    let snapshot = hub.fetch().expect("fetched");
    assert_eq!(fs::read(snapshot.join("model.safetensors")).expect("weights"), weights());
    let requests = hub.requests();
    assert!(requests.contains(&"GET /store/weights bytes=100000-".to_owned()), "{requests:#?}");
}

#[test]
fn an_incomplete_file_of_an_earlier_process_is_resumed() {
    let hub = FakeHub::new(|request, _, port| repository(request, port));
    let incomplete = hub.weights_blob().with_added_extension("incomplete");
    fs::create_dir_all(incomplete.parent().expect("blobs")).expect("folder");
    fs::write(&incomplete, &weights()[..123_456]).expect("written");
    let snapshot = hub.fetch().expect("fetched");
    assert_eq!(fs::read(snapshot.join("model.safetensors")).expect("weights"), weights());
    assert!(hub.requests().contains(&"GET /store/weights bytes=123456-".to_owned()));
    assert!(!incomplete.exists());
}

#[test]
fn a_hub_that_ignores_ranges_is_read_from_the_start() {
    let hub = FakeHub::new(|request, _, port| {
        if request.path == "/store/weights" { answer(200, vec![], &weights()) } else { repository(request, port) }
    });
    let incomplete = hub.weights_blob().with_added_extension("incomplete");
    fs::create_dir_all(incomplete.parent().expect("blobs")).expect("folder");
    fs::write(&incomplete, &weights()[..5]).expect("written");
    let snapshot = hub.fetch().expect("fetched");
    assert_eq!(fs::read(snapshot.join("model.safetensors")).expect("weights"), weights());
}

#[test]
fn a_corrupt_download_is_refused_and_leaves_nothing() {
    let hub = FakeHub::new(|request, _, port| {
        let mut answer = repository(request, port);
        if request.path == "/store/weights" {
            answer.body[1000] ^= 1;
        }
        answer
    });
    let error = hub.fetch().expect_err("corrupt");
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("sha256"), "{error}");
    assert!(!hub.weights_blob().exists() && !hub.weights_blob().with_added_extension("incomplete").exists());
    assert!(!hub.repo_folder().join("refs/main").exists(), "the branch does not point at a broken snapshot");
    assert!(hub.client().cached(REPO, "main", &Wanted::Safetensors).is_none());
}

#[test]
fn a_download_that_never_completes_is_given_up() {
    let hub = FakeHub::new(|request, _, port| {
        let whole = repository(request, port);
        let cut = (request.path == "/store/weights").then_some(0);
        Answer { cut, ..whole }
    });
    let error = hub.fetch().expect_err("no byte ever comes");
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("stops at byte 0 of 300000"), "{error}");
}

/// Answers for the tokenizer as a mirror gives them that does not say the size.
fn tokenizer_answer(request: &Request, port: u16, framing: Framing) -> Option<Answer> {
    request.path.ends_with("/tokenizer.json").then(|| Answer { framing, ..repository(request, port) })
}

#[test]
fn a_small_file_of_unknown_size_that_is_cut_is_never_kept() {
    for framing in [Framing::Chunks, Framing::Close] {
        let hub = FakeHub::new(move |request, _, port| match tokenizer_answer(request, port, framing) {
            Some(whole) => Answer { cut: Some(15), ..whole },
            None => repository(request, port),
        });
        let error = hub.fetch().expect_err("cut each time");
        assert_eq!(error.exit_code(), 1);
        let text = error.to_string();
        assert!(text.contains("tokenizer.json stops at byte") || text.contains("tokenizer.json is corrupt"), "{text}");
        let blob = hub.repo_folder().join("blobs").join(git_blob_id(TOKENIZER));
        assert!(!blob.exists(), "half a file in a cache that Python shares");
        assert!(hub.client().cached(REPO, "main", &Wanted::Safetensors).is_none());
    }
}

#[test]
fn a_small_file_of_unknown_size_that_is_cut_once_is_fetched_whole() {
    let hub = FakeHub::new(|request, count, port| match tokenizer_answer(request, port, Framing::Chunks) {
        Some(whole) => Answer { cut: (request.method == "GET" && count == 0).then_some(15), ..whole },
        None => repository(request, port),
    });
    let snapshot = hub.fetch().expect("fetched");
    assert_eq!(fs::read_to_string(snapshot.join("tokenizer.json")).expect("there"), TOKENIZER);
}

#[test]
fn a_small_file_with_another_content_than_its_blob_id_is_refused() {
    let hub = FakeHub::new(|request, _, port| {
        let mut answer = repository(request, port);
        if request.path.ends_with("/tokenizer.json") {
            answer.body[3] ^= 1;
        }
        answer
    });
    let text = hub.fetch().expect_err("corrupt").to_string();
    assert!(text.contains("tokenizer.json is corrupt: git blob"), "{text}");
    assert!(text.contains(&format!("expected {}", git_blob_id(TOKENIZER))), "{text}");
}

#[cfg(unix)]
#[test]
fn other_users_can_read_a_reference_in_a_shared_cache() {
    use std::os::unix::fs::MetadataExt;
    let hub = FakeHub::new(|request, _, port| repository(request, port));
    let snapshot = hub.fetch().expect("fetched");
    let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o777;
    let blob = mode(&snapshot.join("config.json"));
    assert_eq!(mode(&hub.repo_folder().join("refs/main")), blob, "as readable as the files: what the umask leaves");
    let names: Vec<_> = fs::read_dir(hub.repo_folder().join("refs")).expect("listed").collect();
    assert_eq!(names.len(), 1, "no temporary file beside it");
}

#[test]
fn a_rate_limit_is_waited_for_if_the_wait_is_short() {
    let limited = |wait: &'static str| {
        FakeHub::new(move |request, count, port| match (request.path.as_str(), count) {
            ("/api/models/org/model/revision/main", 0) => answer(429, vec![("Retry-After", wait.to_owned())], b""),
            _ => repository(request, port),
        })
    };
    let start = Instant::now();
    limited("1").fetch().expect("fetched after the wait");
    assert!(start.elapsed() >= Duration::from_secs(1));
    let error = limited("3600").fetch().expect_err("too long");
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("for 3600 s (429)"), "{error}");
}

#[test]
fn a_server_error_is_tried_again() {
    let hub = FakeHub::new(
        |request, count, port| if count == 0 { answer(503, vec![], b"") } else { repository(request, port) },
    );
    hub.fetch().expect("fetched at the second attempt");
}

#[test]
fn refusals_say_what_to_do() {
    let refusing = |status, code: &'static str| {
        let hub = FakeHub::new(move |_, _, _| answer(status, vec![("X-Error-Code", code.to_owned())], b"no"));
        hub.fetch().expect_err("refused")
    };
    for (status, code, exit_code, part) in [
        (401, "RepoNotFound", 2, "does not exist, or is not shown without a token (401)"),
        (401, "GatedRepo", 2, "granted on request"),
        (403, "GatedRepo", 2, "granted on request"),
        (403, "", 2, "is forbidden without a token (403)"),
        (404, "RevisionNotFound", 2, "there is no revision `main`"),
        (404, "RepoNotFound", 2, "does not exist on the hub (404)"),
        (418, "", 1, "status 418"),
    ] {
        let error = refusing(status, code);
        assert_eq!(error.exit_code(), exit_code, "{status} {code}");
        assert!(error.to_string().contains(part), "{status} {code}: {error}");
    }
}

#[test]
fn a_repository_without_safetensors_names_what_it_has() {
    let hub = FakeHub::new(|_, _, _| {
        let files = serde_json::json!([{ "rfilename": "config.json" }, { "rfilename": "m.Q4_0.gguf" }]);
        answer(200, vec![], serde_json::json!({ "sha": COMMIT, "siblings": files }).to_string().as_bytes())
    });
    let error = hub.fetch().expect_err("no weights");
    assert!(error.to_string().contains("name one as hf:org/model/m.Q4_0.gguf"), "{error}");
}

#[test]
fn a_hostile_hub_cannot_write_outside_the_cache() {
    for etag in ["../../../outside", "..", "a/b", ""] {
        let hub = FakeHub::new(move |request, _, port| {
            let mut answer = repository(request, port);
            for (name, value) in &mut answer.headers {
                if name.ends_with("ETag") || name.ends_with("Etag") {
                    *value = format!("\"{etag}\"");
                }
            }
            answer
        });
        let error = hub.fetch().expect_err("refused");
        assert!(error.to_string().contains("no usable ETag"), "{error}");
    }
    for (commit, file) in [("../../x", "config.json"), (COMMIT, "../../../model.safetensors")] {
        let listing = serde_json::json!({ "sha": commit, "siblings": [{ "rfilename": file }] }).to_string();
        let hub = FakeHub::new(move |_, _, _| answer(200, vec![], listing.as_bytes()));
        hub.fetch().expect_err("refused");
    }
    let hub = FakeHub::new(|_, _, _| answer(200, vec![], b"<html>a captive portal</html>"));
    assert_eq!(hub.fetch().expect_err("not a listing").exit_code(), 1);
}

#[test]
fn without_network_the_answer_comes_at_once_and_the_cache_serves() {
    let hub = FakeHub::new(|request, _, port| repository(request, port));
    let snapshot = hub.fetch().expect("fetched");
    let nowhere = |endpoint: &str| Hub { endpoint: endpoint.into(), ..hub.client() };
    let start = Instant::now();
    let mut notices = Vec::new();
    let mut progress = |event: Event| {
        if let Event::Notice(text) = event {
            notices.push(text.to_owned());
        }
    };
    let refused = nowhere("http://127.0.0.1:1");
    let again = refused.fetch(REPO, "main", &Wanted::Safetensors, Freshness::Newest, &mut progress);
    assert_eq!(again.expect("from the cache"), snapshot);
    assert!(notices[0].contains("using what is in the cache"), "{notices:?}");
    for endpoint in ["http://127.0.0.1:1", "http://no-such-host.invalid"] {
        let hub = nowhere(endpoint);
        let error = hub.fetch("org/other", "main", &Wanted::Safetensors, Freshness::Newest, &mut |_| {});
        let error = error.expect_err("unreachable");
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("cannot be reached"), "{error}");
    }
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
}

#[test]
fn two_at_once_fetch_once() {
    let hub = FakeHub::new(|request, _, port| repository(request, port));
    thread::scope(|scope| {
        let fetches: Vec<_> = (0..4).map(|_| scope.spawn(|| hub.fetch())).collect();
        for fetch in fetches {
            fetch.join().expect("no panic").expect("fetched");
        }
    });
    let downloads = hub.requests().iter().filter(|request| request.starts_with("GET /store/")).count();
    assert_eq!(downloads, 1);
}

#[cfg(target_os = "linux")]
#[test]
fn a_cache_that_cannot_be_written_is_a_failure() {
    let hub = FakeHub::new(|request, _, port| repository(request, port));
    let client = Hub { cache: "/proc/no-such-folder".into(), ..hub.client() };
    let error = fetch(&client, Freshness::Newest).expect_err("not writable");
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("cannot be written"), "{error}");
}
