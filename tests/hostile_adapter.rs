//! Adapter folders that are broken, or made to break a reader: a named error with exit code 2, never a panic.

use std::path::Path;
use std::time::{Duration, Instant};

use burnish::adapter::host::HostAdapter;
use burnish::model::BaseFiles;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

const Q0: &str = "model.layers.0.self_attn.q_proj";
const V1: &str = "model.layers.1.self_attn.v_proj";

/// A tensor to be written: dtype, shape, every byte.
#[derive(Clone)]
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// A tensor of PEFT's naming, filled with 0.5.
fn half(module: &str, half: &str, shape: [usize; 2]) -> Tensor {
    named(&format!("base_model.model.{module}.lora_{half}.weight"), &shape)
}

fn named(name: &str, shape: &[usize]) -> Tensor {
    let bytes = 0.5f32.to_le_bytes().repeat(shape.iter().product());
    Tensor { name: name.to_owned(), dtype: Dtype::F32, shape: shape.to_vec(), bytes }
}

/// Rank 4 on two modules of a base with hidden size 32 and 16 values' width of v.
fn sound() -> Vec<Tensor> {
    vec![half(Q0, "A", [4, 32]), half(Q0, "B", [32, 4]), half(V1, "A", [4, 32]), half(V1, "B", [16, 4])]
}

const CONFIG: &str = r#"{"peft_type":"LORA","task_type":"CAUSAL_LM","r":4,"lora_alpha":8,
    "target_modules":["q_proj","v_proj"],"base_model_name_or_path":"x"}"#;

fn write(dir: &Path, config: &str, tensors: &[Tensor]) {
    std::fs::write(dir.join("adapter_config.json"), config).expect("written");
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).expect("a tensor");
        (tensor.name.clone(), view)
    });
    serialize_to_file(views, None, &dir.join("adapter_model.safetensors")).expect("written");
}

fn load(config: &str, tensors: &[Tensor]) -> burnish::Result<HostAdapter> {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), config, tensors);
    HostAdapter::load(folder.path())
}

/// The message of the error that this folder must give; its exit code is 2.
fn refusal(config: &str, tensors: &[Tensor]) -> String {
    let error = load(config, tensors).expect_err("a refusal");
    assert_eq!(error.exit_code(), 2, "{error}");
    error.to_string()
}

/// `CONFIG` with `from` replaced.
fn config_with(from: &str, to: &str) -> String {
    assert!(CONFIG.contains(from));
    CONFIG.replace(from, to)
}

/// Two layers, hidden size 32, and 16 values' width of v.
fn base() -> BaseFiles {
    BaseFiles::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama_gqa")).expect("a base")
}

#[test]
fn the_sound_one_loads() {
    let adapter = load(CONFIG, &sound()).expect("sound");
    assert_eq!(adapter.pairs.len(), 2);
    adapter.check_against(base().config()).expect("fits");
}

#[test]
fn halves_without_each_other_are_all_listed() {
    let text = refusal(CONFIG, &[half(Q0, "A", [4, 32]), half(V1, "B", [16, 4])]);
    assert!(text.contains(&format!("{Q0}: has lora_A and no lora_B")), "{text}");
    assert!(text.contains(&format!("{V1}: has lora_B and no lora_A")), "{text}");
}

#[test]
fn other_ranks_and_turned_matrices_are_all_listed() {
    let tensors = [half(Q0, "A", [4, 32]), half(Q0, "B", [32, 8]), half(V1, "A", [32, 4]), half(V1, "B", [16, 4])];
    let text = refusal(CONFIG, &tensors);
    assert!(text.contains(&format!("{Q0}: lora_B has shape [32, 8]; expected [out, rank] with rank 4")), "{text}");
    assert!(text.contains(&format!("{V1}: lora_A has shape [32, 4]")) && text.contains("transposed"), "{text}");
    let text = refusal(&config_with(r#""r":4"#, r#""r":2"#), &sound());
    assert_eq!(text.matches("expected [rank, in] with rank 2").count(), 2, "{text}");
    let text =
        refusal(CONFIG, &[named(&format!("base_model.model.{Q0}.lora_A.weight"), &[4, 4, 8]), half(Q0, "B", [32, 4])]);
    assert!(text.contains("two dimensions"), "{text}");
}

#[test]
fn what_is_not_plain_lora_is_named() {
    let mut tensors = sound();
    tensors.push(named(&format!("base_model.model.{Q0}.lora_magnitude_vector.default.weight"), &[32]));
    tensors.push(named(&format!("base_model.model.{V1}.lora_magnitude_vector.weight"), &[16]));
    tensors.push(named(&format!("base_model.model.{Q0}.lora_B.bias"), &[32]));
    tensors.push(named("base_model.model.model.other_embed.lora_embedding_A", &[4, 96]));
    tensors.push(named("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", &[1, 32]));
    tensors.push(named("base_model.model.lm_head.weight", &[96, 32]));
    tensors.push(named(&format!("base_model.model.{Q0}.lora_A.default.weight"), &[4, 32]));
    tensors.push(named("something.else", &[4]));
    let config = config_with(r#""r":4"#, r#""r":4,"use_qalora":true,"layer_replication":[[0,1]],"lora_bias":true"#);
    let text = refusal(&config, &sound());
    for what in ["use_qalora", "layer_replication", "lora_bias"] {
        assert!(text.contains(what), "{what}: {text}");
    }
    let both = refusal(&config, &tensors);
    assert!(
        both.contains("use_qalora") && both.contains("adapter on an embedding"),
        "the configuration hides nothing: {both}"
    );
    tensors.push(named(&format!("base_model.model.{Q0}.base_layer.bias"), &[32]));
    let text = refusal(CONFIG, &tensors);
    for what in [
        "base_layer.bias: a trained bias",
        "lora_magnitude_vector.default.weight (and 1 more): a DoRA magnitude",
        "a bias of the low-rank pair",
        "adapter on an embedding",
        "has rows of tokens, which `trainable_token_indices` does not name",
        "wholly trained module",
        "raw state dictionary",
        "something.else: not named as PEFT",
    ] {
        assert!(text.contains(what), "{what}: {text}");
    }
}

#[test]
fn numbers_must_be_floats_of_one_dtype_and_finite() {
    let mut tensors = sound();
    tensors[0].bytes[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    tensors[3].bytes[..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let text = refusal(CONFIG, &tensors);
    assert!(text.contains(&format!("{Q0}: lora_A")) && text.contains(&format!("{V1}: lora_B")), "{text}");

    let mut tensors = sound();
    tensors[1] = Tensor { dtype: Dtype::BF16, bytes: vec![0; 2 * 32 * 4], ..tensors[1].clone() };
    assert!(refusal(CONFIG, &tensors).contains("mixes dtypes"));
    for (dtype, size) in [(Dtype::I64, 8), (Dtype::U8, 1), (Dtype::F64, 8), (Dtype::F8_E4M3, 1)] {
        let mut tensors = sound();
        for tensor in &mut tensors {
            let count: usize = tensor.shape.iter().product();
            (tensor.dtype, tensor.bytes) = (dtype, vec![0; count * size]);
        }
        let text = refusal(CONFIG, &tensors);
        assert!(text.contains(Q0) && text.contains(V1), "{text}");
    }
}

#[test]
fn tensors_outside_the_targets_are_refused() {
    let text = refusal(&config_with(r#"["q_proj","v_proj"]"#, r#"["q_proj"]"#), &sound());
    assert!(text.contains(&format!("module {V1}")) && text.contains("not among the targets"), "{text}");
    let costly = config_with(r#"["q_proj","v_proj"]"#, r#""(?:(?=.)(\\w|\\.)+)+!(?<!x)""#);
    assert!(refusal(&costly, &sound()).contains("cannot be matched"));
}

#[test]
fn modules_and_sizes_of_another_base_are_all_listed() {
    let config = config_with(r#"["q_proj","v_proj"]"#, r#"["q_proj","v_proj","experts","q_proj.x"]"#);
    let other = "model.layers.7.self_attn.q_proj";
    let tensors = [
        half(Q0, "A", [4, 48]),
        half(Q0, "B", [32, 4]),
        half(V1, "A", [4, 32]),
        half(V1, "B", [17, 4]),
        half(other, "A", [4, 32]),
        half(other, "B", [32, 4]),
        half("model.layers.0.mlp.experts", "A", [4, 32]),
        half("model.layers.0.mlp.experts", "B", [32, 4]),
    ];
    let error =
        load(&config, &tensors).expect("sound in itself").check_against(base().config()).expect_err("another base");
    let text = error.to_string();
    assert_eq!((error.exit_code(), error.problems().len()), (2, 4), "{text}");
    assert!(text.contains("from 48 to 32 values; the base's goes from 32 to 32"), "{text}");
    assert!(text.contains("from 32 to 17 values; the base's goes from 32 to 16"), "{text}");
    assert!(text.contains(other) && text.contains("layers 0 to 1"), "{text}");
    assert!(text.contains("model.layers.0.mlp.experts"), "{text}");
}

#[test]
fn pairs_that_the_configuration_promises_must_be_there() {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), CONFIG, &sound());
    let error = HostAdapter::load_over(folder.path(), &base()).expect_err("two of four modules have no pair");
    let text = error.to_string();
    assert!(text.contains("model.layers.0.self_attn.v_proj` (and 1 more)"), "{text}");
}

/// PEFT puts a copy of the base's matrix beside an adapter on the head.
#[test]
fn a_copy_of_the_base_matrix_is_passed_over_where_it_belongs_to_a_pair() {
    let config = config_with(r#""v_proj"]"#, r#""v_proj","lm_head"]"#);
    let mut tensors = sound();
    tensors.extend([half("lm_head", "A", [4, 32]), half("lm_head", "B", [96, 4])]);
    tensors.push(named("base_model.model.lm_head.base_layer.weight", &[96, 32]));
    assert_eq!(load(&config, &tensors).expect("as PEFT writes it").pairs.len(), 3);
    tensors.push(named("base_model.model.model.embed_tokens.base_layer.weight", &[96, 32]));
    assert!(refusal(&config, &tensors).contains("embed_tokens.base_layer.weight"));
}

#[test]
fn unchanged_copies_of_the_embedding_are_passed_over() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    for (name, others) in [("llama_gqa", "llama_odd"), ("llama_tied", "llama_gqa")] {
        let base = BaseFiles::open(&fixtures.join(name)).expect("a base");
        let own = |tensor: &str| base.tensor(tensor).expect("is there").to_f32().expect("floats");
        let embedding = own("model.embed_tokens.weight");
        let head = if base.has("lm_head.weight") { own("lm_head.weight") } else { embedding.clone() };
        let copy = |name: &str, values: &[f32]| Tensor {
            bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            ..named(&format!("base_model.model.{name}"), &[values.len() / 32, 32])
        };
        let folder = tempfile::tempdir().expect("a folder");
        let load = |head: &[f32], base: &BaseFiles| {
            let copies = [copy("model.embed_tokens.weight", &embedding), copy("lm_head.weight", head)];
            let width = base.config().hidden_size;
            let tensors = [half(Q0, "A", [4, width]), half(Q0, "B", [width, 4])].into_iter().chain(copies);
            let config = config_with(r#"["q_proj","v_proj"]"#, &format!("[\"{Q0}\"]"));
            write(folder.path(), &config, &tensors.collect::<Vec<_>>());
            HostAdapter::load_over(folder.path(), base)
        };
        // As PEFT's `save_embedding_layers=True` names them, a tied head included.
        assert_eq!(load(&head, &base).expect("copies").pairs.len(), 1, "{name}");
        assert!(HostAdapter::load(folder.path()).is_err(), "no base to compare with");
        let mut trained = head.clone();
        trained[7] += 1e-3;
        let longer = [&head[..], &head[..32]].concat();
        for head in [&trained, &longer] {
            let error = load(head, &base).expect_err("not the base's").to_string();
            assert!(error.contains("lm_head.weight: a wholly trained module"), "{name}: {error}");
        }
        let other = BaseFiles::open(&fixtures.join(others)).expect("a base");
        assert!(load(&head, &other).expect_err("of another base").to_string().contains("(and 1 more)"), "{name}");
    }
}

#[test]
fn biases_that_a_base_does_not_have_are_not_trained_ones() {
    for bias in ["all", "lora_only"] {
        let config = config_with(r#""r":4"#, &format!(r#""r":4,"bias":"{bias}""#));
        assert_eq!(
            load(&config, &sound()).expect("as PEFT writes it").pairs,
            load(CONFIG, &sound()).expect("plain").pairs
        );
        let mut tensors = sound();
        tensors.push(named(&format!("base_model.model.{V1}.bias"), &[16]));
        assert!(refusal(CONFIG, &tensors).contains("a trained bias, though the configuration trains none"));
        let error = load(&config, &tensors).expect("a trained bias").check_against(base().config());
        let error = error.expect_err("the base has none").to_string();
        assert!(error.contains(&format!("{V1}.bias")) && error.contains("none of the base"), "{error}");
    }
}

#[test]
fn configurations_that_are_no_lora_configuration_are_refused() {
    for (config, expected) in [
        ("", "adapter_config.json"),
        ("[]", "object"),
        ("{\"r\":1,\"r\":2}", "twice"),
        ("{}", "peft_type"),
        (r#"{"peft_type":"ADALORA"}"#, "ADALORA"),
        (r#"{"peft_type":"LORA","r":-1}"#, "`r`"),
        (r#"{"peft_type":"LORA","r":1e30}"#, "`r`"),
        (r#"{"peft_type":"LORA","r":18446744073709551615}"#, "`r`"),
        (r#"{"peft_type":"LORA","lora_alpha":1e300}"#, "lora_alpha"),
        (r#"{"peft_type":"LORA","lora_alpha":1e999}"#, "adapter_config.json"),
        (r#"{"peft_type":"LORA","task_type":"TOKEN_CLS"}"#, "TOKEN_CLS"),
        (r#"{"peft_type":"LORA","target_modules":7}"#, "target_modules"),
        (r#"{"peft_type":"LORA","rank_pattern":{"(":3,"q_proj":0}}"#, "rank_pattern.q_proj"),
    ] {
        let text = refusal(config, &sound());
        assert!(text.contains(expected), "{config}: {text}");
    }
    let deep = format!("{}{}", r#"{"peft_type":"LORA","x":"#, "[".repeat(100_000));
    assert!(refusal(&deep, &sound()).contains("recursion"));
}

/// The name of the base is shown, never opened: a load with such a name is a load like any other.
#[test]
fn the_base_that_a_configuration_names_is_not_followed() {
    for name in ["https://example.invalid/x", "../../../etc/passwd", "/dev/zero"] {
        let config = config_with(r#""base_model_name_or_path":"x""#, &format!(r#""base_model_name_or_path":"{name}""#));
        load(&config, &sound()).expect("the name has no say");
    }
}

#[test]
fn broken_and_missing_files_are_named_together() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = HostAdapter::load(folder.path()).expect_err("an empty folder");
    assert_eq!((error.exit_code(), error.problems().len()), (2, 2), "{error}");
    assert!(HostAdapter::load(&folder.path().join("absent")).is_err());

    write(folder.path(), CONFIG, &sound());
    let path = folder.path().join("adapter_model.safetensors");
    let whole = std::fs::read(&path).expect("a file");
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).expect("written");
        assert_eq!(HostAdapter::load(folder.path()).expect_err("cut short").exit_code(), 2, "{length} bytes");
    }
    std::fs::remove_file(&path).expect("removed");
    std::fs::write(folder.path().join("adapter_model.bin"), "pickle").expect("written");
    assert!(HostAdapter::load(folder.path()).expect_err("a pickle").to_string().contains("never read"));
}

/// A folder with a pair of `q_proj` of the first layer, its A as wide as said, all zeros and not on the disk.
fn sparse(width: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("adapter_config.json"), CONFIG).expect("written");
    let name = format!("base_model.model.{Q0}");
    let (a, b) = (16 * width, 16 * 32);
    let header = format!(
        r#"{{"{name}.lora_A.weight":{{"dtype":"F32","shape":[4,{width}],"data_offsets":[0,{a}]}},
            "{name}.lora_B.weight":{{"dtype":"F32","shape":[32,4],"data_offsets":[{a},{}]}}}}"#,
        a + b
    );
    let path = folder.path().join("adapter_model.safetensors");
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).expect("written");
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
    file.set_len(8 + header.len() as u64 + a + b).expect("a sparse file");
    folder
}

#[test]
fn what_a_header_promises_is_held_against_the_base_before_it_is_read() {
    let folder = sparse(1 << 36);
    let start = Instant::now();
    let error = HostAdapter::load_over(folder.path(), &base()).expect_err("a terabyte").to_string();
    assert!(error.contains("from 68719476736 to 32 values; the base's goes from 32 to 32"), "{error}");
    assert!(error.contains("adapter_model.safetensors"), "{error}");
    burnish::inspect::inspect(folder.path()).expect("the header is sound");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn patterns_are_limited_in_number_and_length() {
    let many: Vec<String> = (0..2001).map(|index| format!("\"q{index}\":4")).collect();
    let config = CONFIG.replace("\"r\":4", &format!("\"r\":4,\"rank_pattern\":{{{}}}", many.join(",")));
    assert!(refusal(&config, &sound()).contains("`rank_pattern` has 2001 entries; at most 2000"));
    let config = CONFIG.replace(r#"["q_proj","v_proj"]"#, &format!("{:?}", "a".repeat(20_000)));
    assert!(refusal(&config, &sound()).contains("a pattern of 20000 bytes; at most 16384"));
    let config = CONFIG.replace("\"r\":4", "\"r\":65537");
    assert!(refusal(&config, &sound()).contains("a whole number from 1 to 65536"));
}
