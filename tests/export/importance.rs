//! Importance matrices: measured, read from llama.cpp's form, and used.

use std::path::Path;

use burnish::data::{Encoded, Judged};
use burnish::device::{self, DeviceChoice};
use burnish::export::model::ModelPlan;
use burnish::export::{GgufType, Importance};
use burnish::files::Dtype;
use burnish::files::gguf::write::write;
use burnish::files::gguf::{Gguf, TensorInfo, Value};
use burnish::files::hex::sha256_of_file;
use burnish::model::BaseFiles;
use burnish::model::load::{Compute, LoadOptions};
use burnish::quant::{Quant, float};

use super::{PLAIN, fixture, small_tokenizer, temporary};
use crate::cli::{json, refused, run, text, tiny_job, tiny_model};

const Q_PROJ: &str = "model.layers.0.self_attn.q_proj.weight";

fn examples() -> Vec<Encoded> {
    let example = |ids: Vec<u32>| {
        let trained = vec![true; ids.len()];
        Encoded { ids, trained, untrained_turns: 0, weight: 1.0, judged: Judged::Not }
    };
    vec![example((3..40).collect()), example(vec![7; 9]), example(Vec::new())]
}

fn measured(base: &BaseFiles) -> Importance {
    let device = device::open(&DeviceChoice::Cpu).expect("a processor");
    let options = LoadOptions { device, compute: Compute::F32, quant: Quant::None };
    Importance::measure(base, &options, &examples(), None).expect("measured")
}

#[test]
fn the_importance_of_a_column_is_the_mean_square_of_its_activations() {
    let base = BaseFiles::open(&tiny_model()).expect("a base");
    let values = |name: &str| base.tensor(name).expect("a tensor").to_f32().expect("floats");
    let (embedding, norm) = (values("model.embed_tokens.weight"), values("model.layers.0.input_layernorm.weight"));
    let columns = norm.len();
    let mut expected = vec![0f64; columns];
    let ids: Vec<u32> = examples().iter().flat_map(|example| example.ids.clone()).collect();
    for id in &ids {
        let row = &embedding[*id as usize * columns..][..columns];
        let mean_square = row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / columns as f64;
        let scale = 1.0 / (mean_square + base.config().norm_eps).sqrt();
        for (column, sum) in expected.iter_mut().enumerate() {
            *sum += (f64::from(row[column]) * scale * f64::from(norm[column])).powi(2) / ids.len() as f64;
        }
    }
    let importance = measured(&base);
    let of = |name: &str, columns| importance.of(["none", name], columns).expect("of this size").map(<[f32]>::to_vec);
    let found = of(Q_PROJ, columns).expect("measured");
    for (found, expected) in found.iter().zip(&expected) {
        assert!((f64::from(*found) - expected).abs() < 1e-5 * expected, "{found} instead of {expected}");
    }
    // What shares an input has one importance; what has another input has another.
    assert_eq!(of("model.layers.0.self_attn.v_proj.weight", columns), Some(found.clone()));
    assert_ne!(of("model.layers.0.mlp.up_proj.weight", columns), Some(found));
    let width = base.shape("model.layers.0.mlp.down_proj.weight").expect("a shape")[1];
    assert!(of("model.layers.0.mlp.down_proj.weight", width).is_some());
    assert_eq!(of("model.embed_tokens.weight", columns), None);
    let error = importance.of([Q_PROJ, ""], columns + 1).expect_err("another size").to_string();
    assert!(error.contains("it is that of another model"), "{error}");
}

/// Writes an importance matrix as llama.cpp does: sums over 4 activations.
fn write_matrix(path: &Path, kind: &str, count: f32, sums: &[f32]) {
    let tensors = [("blk.0.attn_q.weight.in_sum2", vec![1, sums.len()]), ("blk.0.attn_q.weight.counts", vec![1, 1])];
    let infos = tensors.map(|(name, shape)| TensorInfo { name: name.to_owned(), dtype: Dtype::F32, shape });
    let metadata = [("general.type".to_owned(), Value::String(kind.to_owned()))];
    write(path, &metadata, &infos, |info, writer| {
        writer.write(&float::encode_f32(if info.name.ends_with("counts") {
            std::slice::from_ref(&count)
        } else {
            sums
        }))
    })
    .expect("written");
}

#[test]
fn a_matrix_of_llama_cpp_is_read() {
    let folder = temporary();
    let path = folder.path().join("imatrix.gguf");
    write_matrix(&path, "imatrix", 4.0, &[8.0, 0.0, 4.0]);
    let importance = Importance::read(&path).expect("read");
    let found = importance.of(["blk.0.attn_q.weight", ""], 3).expect("of this size").expect("there");
    // A column that was never used keeps a little.
    assert!(found[0] == 2.0 && found[2] == 1.0 && found[1] > 0.0 && found[1] < 1e-5, "{found:?}");
    let other = folder.path().join("other.gguf");
    write_matrix(&other, "model", 4.0, &[8.0]);
    let error = Importance::read(&other).expect_err("no matrix").to_string();
    assert!(error.contains("is no importance matrix"), "{error}");
    write_matrix(&folder.path().join("empty.gguf"), "imatrix", 0.0, &[8.0]);
    assert!(Importance::read(&folder.path().join("empty.gguf")).is_err());
}

#[test]
fn blocks_made_with_it_lose_less_where_it_matters() {
    let base = BaseFiles::open(&fixture("models/llama_gqa")).expect("a base");
    let (importance, folder) = (measured(&base), temporary());
    let tokenizer = small_tokenizer(base.config().vocab_size);
    let exported = |name: &str, importance: Option<&Importance>| {
        let options = burnish::export::ExportOptions { gguf_type: Some(GgufType::Q4_0), ..PLAIN };
        let plan = ModelPlan::new(&base, None, &tokenizer, "a model", &options).expect("a plan");
        let out = folder.path().join(name);
        plan.weighted(importance).write(&out, |_| Ok(())).expect("written");
        BaseFiles::open(&out).expect("opens")
    };
    let (plain, weighted) = (exported("plain.gguf", None), exported("weighted.gguf", Some(&importance)));
    let mut compared = 0;
    for name in base.tensor_names().filter(|name| base.is_projection(name)) {
        let values = |files: &BaseFiles| files.tensor(name).expect("a tensor").to_f32().expect("floats");
        let columns = base.shape(name).expect("a shape")[1];
        let own = importance.of([name, ""], columns).expect("of this size").expect("measured");
        let right = values(&base);
        let error = |found: Vec<f32>| {
            let errors = right.iter().zip(&found).enumerate();
            errors
                .map(|(index, (right, found))| f64::from(own[index % columns]) * f64::from(right - found).powi(2))
                .sum::<f64>()
        };
        let (plain, weighted) = (error(values(&plain)), error(values(&weighted)));
        assert!(weighted < plain, "{name}: {weighted} with the matrix, {plain} without");
        compared += 1;
    }
    assert!(compared > 6);
    // What has no importance stays as it was.
    let embedding = |files: &BaseFiles| files.tensor("model.embed_tokens.weight").expect("a tensor").bytes.to_vec();
    assert_eq!(embedding(&plain), embedding(&weighted));
}

#[test]
fn the_option_takes_data_or_a_matrix_and_only_where_it_matters() {
    let folder = tiny_job();
    let base = tiny_model().display().to_string();
    let export =
        |more: &[&str]| run(&folder, &[&["export", "--base", &base, "--format", "gguf", "--json"][..], more].concat());
    json(&export(&["--type", "q4_0", "--out", "plain.gguf"]));
    json(&export(&["--type", "q4_0", "--out", "weighted.gguf", "--imatrix", "train.jsonl"]));
    let hash = |name: &str| sha256_of_file(&folder.path().join(name)).expect("a file");
    assert_ne!(hash("plain.gguf"), hash("weighted.gguf"));
    let columns = Gguf::open(&tiny_model()).expect("a base").shape("blk.0.attn_q.weight").expect("a shape")[1];
    let sums: Vec<f32> = (0..columns).map(|column| 1.0 + column as f32).collect();
    write_matrix(&folder.path().join("m.gguf"), "imatrix", 2.0, &sums);
    json(&export(&["--type", "q4_0", "--out", "read.gguf", "--imatrix", "m.gguf"]));
    assert!(hash("read.gguf") != hash("plain.gguf") && hash("read.gguf") != hash("weighted.gguf"));
    for more in [&["--type", "f16"][..], &["--type", "q8_0"], &[]] {
        let error = refused(&export(&[more, &["--out", "none.gguf", "--imatrix", "train.jsonl"]].concat()));
        assert!(error.contains("--imatrix: makes no difference with"), "{error}");
    }
    let merge = run(&folder, &["merge", "--base", &base, "--adapter", "a", "--out", "b", "--imatrix", "train.jsonl"]);
    assert_eq!(merge.status.code(), Some(2), "{}", text(&merge.stderr));
    assert!(!folder.path().join("none.gguf").exists());
}
