//! A look inside: attention maps and the logit lens against transformers, and the page of them.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use burnish::adapter::host::HostAdapter;
use burnish::model::load::Compute;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::cli::{json, refused, run, text, tiny_job, tiny_model};
use crate::model::{load, turn};
use crate::report::island;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four"))).collect()
}

/// The greatest difference of two lists.
fn off(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f32::max)
}

#[test]
fn maps_and_lens_are_those_of_transformers() {
    let _turn = turn();
    let folder = fixtures().join("inspection");
    let mut cases: Vec<PathBuf> =
        fs::read_dir(&folder).expect("fixtures").map(|entry| entry.expect("one").path()).collect();
    cases.sort();
    assert_eq!(cases.len(), 7);
    let (mut windows, mut grouped, mut adapters) = (0, 0, 0);
    for path in cases {
        let bytes = fs::read(&path).expect("a fixture");
        let name = path.display();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("valid");
        let about: HashMap<String, String> = metadata.metadata().clone().expect("metadata");
        let file = SafeTensors::deserialize(&bytes).expect("valid");
        let ids: Vec<u32> = file
            .tensor("ids")
            .expect("ids")
            .data()
            .chunks_exact(8)
            .map(|id| i64::from_le_bytes(id.try_into().expect("eight")) as u32)
            .collect();
        let base = fixtures().join(&about["base"]);
        let decoder = load(&base, Compute::F32);
        let adapter = about.get("adapter").map(|folder| {
            adapters += 1;
            HostAdapter::load(&fixtures().join(folder))
                .expect("an adapter")
                .attach(decoder.config(), decoder.device())
                .expect("fits")
        });
        for layer in 0..decoder.config().layers {
            let geometry = decoder.geometry(layer);
            windows += usize::from(geometry.window.is_some_and(|window| window < ids.len()));
            grouped += usize::from(geometry.kv_heads < geometry.heads);
            let theirs = file.tensor(&format!("{layer}.maps")).expect("maps");
            let ours = decoder.attention_maps(&ids, layer, adapter.as_ref());
            assert_eq!(ours.dims(), <[usize; 3]>::try_from(theirs.shape()).expect("three"), "{name}");
            let ours: Vec<f32> = ours.into_data().iter::<f32>().collect();
            let off = off(&ours, &floats(theirs.data()));
            assert!(off < 1e-4, "{name}, layer {layer}: off by {off:e}");
            for row in ours.chunks(ids.len()) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            }
        }
        let theirs = file.tensor("lens").expect("a lens");
        let of_layer = theirs.shape()[1] * theirs.shape()[2];
        let theirs = floats(theirs.data());
        let mut seen = 0;
        decoder.logit_lens(&ids, adapter.as_ref(), &mut |number, logits| {
            let ours: Vec<f32> = logits.into_data().iter::<f32>().collect();
            let off = off(&ours, &theirs[number * of_layer..][..of_layer]);
            assert!(off < 1e-4, "{name}, lens {number}: off by {off:e}");
            seen += 1;
        });
        assert_eq!(seen * of_layer, theirs.len(), "{name}");
    }
    assert!(windows >= 2 && grouped >= 2 && adapters == 2, "{windows} windows, {grouped} grouped, {adapters} adapters");
}

#[test]
fn a_page_shows_base_and_adapter() {
    let folder = tiny_job();
    assert!(run(&folder, &["train", "recipe.toml"]).status.success());
    let base = tiny_model().display().to_string();
    let prompt = "1 and </script><b>2</b> is ";
    let arguments = |more: &[&'static str]| -> Vec<String> {
        let all = ["inspect", &base, "--attention", prompt, "--adapter", "runs/sums", "--layer", "1"];
        all.iter().chain(more).map(|text| (*text).to_owned()).collect()
    };
    let inspect = |more: &[&'static str]| {
        let arguments = arguments(more);
        run(&folder, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let found = json(&inspect(&["--lens", "--json"]));
    assert_eq!((&found["layer"], &found["prompt"]), (&1.into(), &prompt.into()));
    let tokens = found["tokens"].as_array().expect("tokens").len();
    let whole: String = found["tokens"].as_array().expect("tokens").iter().filter_map(Value::as_str).collect();
    assert!(whole.ends_with(prompt.trim_end()) || whole.ends_with(prompt), "{whole}");
    let systems = found["systems"].as_array().expect("systems");
    assert_eq!(
        systems.iter().map(|system| system["name"].as_str()).collect::<Vec<_>>(),
        [Some("base"), Some("adapter")]
    );
    assert_ne!(systems[0]["maps"], systems[1]["maps"], "the adapter changes the first layer");
    for system in systems {
        let maps = system["maps"].as_array().expect("maps");
        assert_eq!(maps.len() as u64, found["heads"].as_u64().expect("heads"));
        for rows in maps.iter().map(|map| map.as_array().expect("rows")) {
            assert_eq!(rows.len(), tokens);
            for (query, row) in rows.iter().enumerate() {
                let row: Vec<f64> =
                    row.as_array().expect("a row").iter().map(|weight| weight.as_f64().expect("a number")).collect();
                assert!(row.len() == query + 1 && (row.iter().sum::<f64>() - 1.0).abs() < 1e-3, "{row:?}");
            }
        }
        let lens = system["lens"].as_array().expect("a lens");
        assert_eq!(lens.len() as u64, found["layers"].as_u64().expect("layers") + 1);
        let first = &lens[0][0];
        assert_eq!(first.as_array().map(Vec::len), Some(5));
        assert!(first[0]["probability"].as_f64() >= first[1]["probability"].as_f64(), "{first}");
    }
    let output = inspect(&["--out", "inside.html"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("head 0: the last token looks at"), "{}", text(&output.stdout));
    let page = fs::read_to_string(folder.path().join("inside.html")).expect("a page");
    let data = island(&page);
    assert_eq!(data["systems"][1]["maps"], found["systems"][1]["maps"]);
    assert!(data["systems"][0]["lens"].is_null(), "it was not asked for");
    assert!(!page.contains("<b>2</b>"), "a prompt is no markup");
}

#[test]
fn what_cannot_be_looked_at_is_refused() {
    let folder = tiny_job();
    let base = tiny_model().display().to_string();
    let refuse = |arguments: &[&str]| refused(&run(&folder, &[&["inspect", &base][..], arguments].concat()));
    let stderr = refuse(&["--attention", "a", "--layer", "99", "--json"]);
    assert!(stderr.contains("--layer: is 99; the model has the layers 0 to"), "{stderr}");
    let stderr = refuse(&["--attention", "a", "--layer", "0"]);
    assert!(stderr.contains("--out: is missing: the result is a page"), "{stderr}");
    let long = "many words ".repeat(60);
    let stderr = refuse(&["--attention", &long, "--layer", "0", "--json"]);
    assert!(stderr.contains("tokens; 1 to 128 can be shown"), "{stderr}");
    assert!(refuse(&["--attention", "a", "--json"]).contains("--layer"));
    assert!(refuse(&["--layer", "1"]).contains("--attention"));
    fs::write(folder.path().join("there.html"), "mine").expect("written");
    let stderr = refuse(&["--attention", "a", "--layer", "0", "--out", "there.html"]);
    assert!(stderr.contains("there.html exists already"), "{stderr}");
    assert_eq!(fs::read_to_string(folder.path().join("there.html")).expect("mine"), "mine");
}
