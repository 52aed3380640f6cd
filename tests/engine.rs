//! The engine: answers equal those of whole passes, and depend on nothing but their own request.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Device;
use burnish::adapter::host::HostAdapter;
use burnish::generate::engine::{Engine, EngineOptions, Event, Precision, Request, RequestId, Usage};
use burnish::generate::run::Finish;
use burnish::generate::sample::SamplerConfig;
use burnish::model::load::{Compute, LoadOptions, Quant};
use burnish::model::{BaseFiles, Decoder};
use burnish::nn::Adapter;
use burnish::ops::attention::CacheFormat;
use burnish::text::Tokenizer;

use crate::model::{Expected, fixtures, load, logits, turn};

/// A tokenizer for models that have none: only the ids count here.
fn tokenizer() -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/smollm.gguf");
    Tokenizer::of_base(&BaseFiles::open(&path).expect("a base")).expect("a tokenizer")
}

pub fn engine(decoder: &Decoder, options: EngineOptions) -> Engine {
    Engine::new(decoder.clone(), &tokenizer(), options)
}

pub fn options(precision: Precision) -> EngineOptions {
    EngineOptions { precision, ..EngineOptions::default() }
}

/// An answer with the bits of the log-probability of each token.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    pub tokens: Vec<u32>,
    log_probabilities: Vec<u64>,
    pub text: String,
    pub finish: Option<Finish>,
    usage: Usage,
}

impl Answer {
    /// The parts that must not depend on anything else.
    pub fn outcome(&self) -> (&[u32], &[u64], &str, Option<Finish>) {
        (&self.tokens, &self.log_probabilities, &self.text, self.finish)
    }
}

/// Runs the engine until it is idle.
fn finish(engine: &mut Engine) -> HashMap<RequestId, Answer> {
    let mut answers: HashMap<RequestId, Answer> = HashMap::new();
    while !engine.is_idle() {
        for event in engine.step() {
            let answer = answers.entry(event.request()).or_default();
            match event {
                Event::Token { token, text, log_probability, .. } => {
                    answer.tokens.push(token);
                    answer.text += &text;
                    answer.log_probabilities.extend(log_probability.map(|one| one.log_probability.to_bits()));
                }
                Event::Finished { text, finish, usage, .. } => {
                    answer.text += &text;
                    (answer.finish, answer.usage) = (Some(finish), usage);
                }
                Event::Failed { error, .. } => panic!("{error}"),
            }
        }
    }
    answers
}

pub fn answers(engine: &mut Engine, requests: &[Request]) -> Vec<Answer> {
    let ids: Vec<RequestId> = requests.iter().map(|one| engine.submit(one.clone()).expect("accepted")).collect();
    let mut answers = finish(engine);
    ids.iter().map(|id| answers.remove(id).expect("an answer")).collect()
}

pub fn greedy(prompt: &[u32], max_tokens: usize) -> Request {
    Request { max_tokens, log_probabilities: Some(0), ..Request::new(prompt.to_vec()) }
}

/// Every tiny model, with PEFT's adapter where there is one, and adapters of every kind.
fn models() -> Vec<(PathBuf, Option<HostAdapter>)> {
    let folders = fixtures("families").into_iter().chain(fixtures("models"));
    let with_adapter = folders.map(|folder| {
        let base = BaseFiles::open(&folder).expect("a base");
        let adapter = folder.join("adapter");
        let adapter = adapter.is_dir().then(|| HostAdapter::load_over(&adapter, &base).expect("PEFT's adapter"));
        (folder, adapter)
    });
    let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let variants =
        [("dora/adapter", "llama_gqa"), ("dora_bias/adapter", "llama_bias"), ("pissa/unconverted", "llama_gqa")];
    let variants = variants.map(|(adapter, base)| {
        let folder = fixture("models").join(base);
        let base = BaseFiles::open(&folder).expect("a base");
        let adapter = HostAdapter::load_over(&fixture("variants").join(adapter), &base).expect("PEFT's adapter");
        (folder, Some(adapter))
    });
    with_adapter.chain(variants).collect()
}

fn attached(decoder: &Decoder, adapter: &HostAdapter) -> Adapter {
    adapter.attach(decoder.config(), &Device::flex()).expect("fits")
}

/// The token that a whole pass over `ids` finds likeliest after each of them.
fn likeliest(decoder: &Decoder, ids: &[u32], adapter: Option<&Adapter>) -> Vec<u32> {
    let vocabulary = decoder.config().vocab_size;
    let all = logits(decoder, ids, adapter);
    let of_row = |row: &[f32]| {
        let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter().position(|logit| *logit == greatest).expect("a token") as u32
    };
    all.chunks_exact(vocabulary).map(of_row).collect()
}

#[test]
fn greedy_answers_of_every_family_are_those_of_a_whole_pass() {
    let _turn = turn();
    for (folder, adapter) in models() {
        let decoder = load(&folder, Compute::F32);
        let prompt = &Expected::read(&folder).ids()[..17];
        let count = 128.min(decoder.config().max_positions - prompt.len());
        let adapter = adapter.map(|adapter| attached(&decoder, &adapter));
        let mut engine = engine(&decoder, options(Precision::Exact));
        if let Some(adapter) = &adapter {
            engine.add_adapter("tuned", adapter);
        }
        for (name, adapter) in [(None, None)].into_iter().chain(adapter.as_ref().map(|one| (Some("tuned"), Some(one))))
        {
            let request = Request { adapter: name.map(str::to_owned), ..greedy(prompt, count) };
            let found = answers(&mut engine, &[request]).remove(0);
            let ids = [prompt, &found.tokens].concat();
            let expected = likeliest(&decoder, &ids, adapter);
            let expected = &expected[prompt.len() - 1..ids.len() - 1];
            assert_eq!(found.tokens, expected, "{} {name:?}", folder.display());
            assert_eq!((found.tokens.len(), found.finish), (count, Some(Finish::Length)));
        }
    }
}

#[test]
fn an_answer_does_not_depend_on_pieces_other_requests_or_kept_prefixes() {
    let _turn = turn();
    for (index, (folder, adapter)) in models().into_iter().enumerate() {
        let Some(adapter) = adapter else { continue };
        let ids = Expected::read(&folder).ids();
        let forms = [(Precision::Fast, None), (Precision::Fast, Some(CacheFormat::Int8)), (Precision::Exact, None)];
        for (precision, cache) in forms.into_iter().skip(index % 2).take(if index % 4 == 0 { 3 } else { 1 }) {
            let options = || EngineOptions { cache, ..options(precision) };
            let decoder = load(&folder, Compute::F32);
            let tuned = attached(&decoder, &adapter);
            let of = |adapter: Option<&str>, prompt: &[u32], seed: Option<u64>| Request {
                adapter: adapter.map(str::to_owned),
                sampler: SamplerConfig {
                    temperature: if seed.is_some() { 1.0 } else { 0.0 },
                    seed: seed.unwrap_or(0),
                    ..SamplerConfig::default()
                },
                ..greedy(prompt, 6)
            };
            // 78 tokens: a whole block and more.
            let long: Vec<u32> = ids.iter().copied().cycle().take(78).collect();
            let requests = [
                of(None, &ids[..23], None),
                of(Some("tuned"), &ids[..23], None),
                of(Some("tuned"), &long, Some(5)),
                of(None, &long, Some(5)),
                of(None, &ids[3..4], Some(7)),
            ];
            let alone: Vec<Answer> = requests
                .iter()
                .map(|request| {
                    let mut engine = engine(&decoder, EngineOptions { max_prefix_bytes: 0, ..options() });
                    engine.add_adapter("tuned", &tuned);
                    answers(&mut engine, std::slice::from_ref(request)).remove(0)
                })
                .collect();
            assert!(alone[0].log_probabilities != alone[1].log_probabilities, "the adapter changes the answer");
            for (piece_tokens, rounds) in [(5, 1), (256, 2)] {
                let mut engine = engine(&decoder, EngineOptions { piece_tokens, ..options() });
                engine.add_adapter("tuned", &tuned);
                let place = format!("{} {precision:?} {cache:?} in pieces of {piece_tokens}", folder.display());
                for round in 0..rounds {
                    let together = answers(&mut engine, &requests);
                    for (alone, together) in alone.iter().zip(&together) {
                        assert_eq!(alone.outcome(), together.outcome(), "{place}, round {round}");
                    }
                    // The second round finds the first block of the long prompts.
                    let cached: Vec<usize> = together.iter().map(|one| one.usage.cached_prompt_tokens).collect();
                    let of_long = if round == 0 { 0 } else { 64 };
                    assert_eq!(cached, [0, 0, of_long, of_long, 0], "{place}, round {round}");
                }
                assert_eq!(engine.statistics().cached_prompt_tokens, 128 * (rounds - 1));
            }
        }
    }
}

#[test]
fn the_fast_kernels_stay_near_the_exact_ones() {
    let _turn = turn();
    for folder in fixtures("models") {
        let base = BaseFiles::open(&folder).expect("a base");
        let ids = Expected::read(&folder).ids();
        for quant in [Quant::None, Quant::Int8] {
            let options = LoadOptions { device: Device::flex(), compute: Compute::F32, quant };
            let decoder = Decoder::load(&base, &options, |_, _| {}).expect("loaded");
            let embedded = |precision| {
                engine(&decoder, EngineOptions { precision, ..EngineOptions::default() })
                    .embed(&ids, None)
                    .expect("a mean")
            };
            let (exact, fast) = (embedded(Precision::Exact), embedded(Precision::Fast));
            let whole = decoder.mean_hidden(&ids, None);
            let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
            let distance = |values: &[f32]| {
                norm(&mut values.iter().zip(&whole).map(|(a, b)| a - b)) / norm(&mut whole.iter().copied())
            };
            assert!(distance(&exact) < 1e-4, "{} {quant}: {}", folder.display(), distance(&exact));
            assert!(distance(&fast) < 5e-2, "{} {quant}: {}", folder.display(), distance(&fast));
        }
    }
}

#[test]
fn guessed_tokens_change_no_answer() {
    let _turn = turn();
    let mut guessed = 0;
    for (folder, _) in models() {
        let decoder = load(&folder, Compute::F32);
        let ids = Expected::read(&folder).ids();
        // A tiny model repeats itself soon. With a bias that changes nothing, no token is guessed.
        let request = greedy(&ids[..7], 60);
        let bias = SamplerConfig { logit_bias: vec![(0, 0.0)], ..SamplerConfig::default() };
        let plain = Request { sampler: bias, ..request.clone() };
        let mut engine = engine(&decoder, options(Precision::Fast));
        let without = answers(&mut engine, &[plain]).remove(0);
        assert_eq!(engine.statistics().guessed_tokens, 0);
        let with = answers(&mut engine, &[request]).remove(0);
        assert_eq!(with.outcome(), without.outcome(), "{}", folder.display());
        guessed += engine.statistics().guessed_tokens;
    }
    assert!(guessed > 100, "{guessed} guesses were right");
}

fn tiny() -> Decoder {
    load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/smollm.gguf"), Compute::F32)
}

#[test]
fn requests_wait_for_places_and_bytes_and_are_refused_where_they_never_fit() {
    let _turn = turn();
    let decoder = tiny();
    let prompt = [7, 8, 9];
    let bytes = engine(&decoder, options(Precision::Exact)).cache_bytes(prompt.len() + 4);
    // One token more than a page needs twice as many bytes.
    let limits = EngineOptions { max_cache_bytes: bytes, max_waiting: 2, ..options(Precision::Exact) };
    let mut small = engine(&decoder, limits);
    let refused = small.submit(greedy(&prompt, 70)).expect_err("never fits");
    assert_eq!(refused.exit_code(), 2);
    assert!(refused.to_string().contains("prompt: the keys and values of 73 tokens take"), "{refused}");
    let first = small.submit(greedy(&prompt, 4)).expect("accepted");
    let second = small.submit(greedy(&prompt, 4)).expect("accepted");
    assert!(!small.has_room());
    assert!(small.submit(greedy(&prompt, 4)).expect_err("the queue is full").to_string().contains("queue: 2 requests"));
    let began = small.step();
    assert!(began.iter().all(|event| event.request() == first), "{began:?}");
    let statistics = small.statistics();
    assert_eq!((statistics.running, statistics.waiting, statistics.cache_bytes), (1, 1, bytes));
    let answers = finish(&mut small);
    assert_eq!(answers[&first].tokens, answers[&second].tokens[1..]);
    assert_eq!((answers[&second].tokens.len(), small.statistics().answer_tokens), (4, 8));
    assert_eq!((small.statistics().cache_bytes, small.statistics().prompt_tokens), (0, 6));
}

#[test]
fn an_answer_ends_for_the_reason_that_it_names() {
    let _turn = turn();
    let decoder = tiny();
    let mut engine = engine(&decoder, options(Precision::Exact));
    let request = greedy(&[7, 8, 9], 6);
    let whole = answers(&mut engine, std::slice::from_ref(&request)).remove(0);
    assert_eq!((whole.tokens.len(), whole.finish, whole.usage.answer_tokens), (6, Some(Finish::Length), 6));
    assert_eq!(whole.usage.prompt_tokens, 3);
    assert!(whole.usage.seconds >= whole.usage.seconds_to_first_token && whole.usage.seconds_to_first_token > 0.0);

    let end = Request { end_tokens: vec![whole.tokens[0]], ..request.clone() };
    let late = Request { until: Some(Instant::now()), ..request.clone() };
    let none = Request { max_tokens: 0, ..request.clone() };
    let found = answers(&mut engine, &[end, late, none]);
    assert!(found.iter().all(|one| one.tokens.is_empty()));
    assert_eq!(
        found.iter().map(|one| one.finish).collect::<Vec<_>>(),
        [Finish::EndToken, Finish::Time, Finish::Length].map(Some)
    );

    // A stop string of the characters around the middle of the text, and so across the borders of tokens.
    let characters: Vec<char> = whole.text.chars().collect();
    let middle = characters.len() / 2;
    let stop: String = characters[middle - 1..=middle].iter().collect();
    let stopped = answers(&mut engine, &[Request { stop: vec![stop.clone()], ..request.clone() }]).remove(0);
    assert_eq!(stopped.finish, Some(Finish::Stop), "{stop:?} in {:?}", whole.text);
    assert_eq!(Some(stopped.text.as_str()), whole.text.split(&stop).next());

    let kept = engine.submit(request.clone()).expect("accepted");
    let left = engine.submit(request).expect("accepted");
    engine.step();
    engine.cancel(left);
    let answers = finish(&mut engine);
    assert_eq!((answers[&left].finish, answers[&kept].finish), (Some(Finish::Cancelled), Some(Finish::Length)));
}

#[test]
fn an_adapter_is_replaced_and_removed_without_losing_answers() {
    let _turn = turn();
    let (folder, adapter) = models().into_iter().find(|(_, adapter)| adapter.is_some()).expect("an adapter");
    let decoder = load(&folder, Compute::F32);
    let tuned = attached(&decoder, &adapter.expect("an adapter"));
    let prompt = &Expected::read(&folder).ids()[..9];
    let mut engine = engine(&decoder, options(Precision::Exact));
    engine.add_adapter("one", &tuned);
    let request = Request { adapter: Some("one".to_owned()), ..greedy(prompt, 8) };
    let whole = answers(&mut engine, std::slice::from_ref(&request)).remove(0);
    let running = engine.submit(request.clone()).expect("accepted");
    engine.step();
    assert!(engine.remove_adapter("one") && !engine.remove_adapter("one"));
    let unknown = engine.submit(request).expect_err("it is gone");
    assert!(unknown.to_string().contains("adapter: `one` is not here; known: there is none"), "{unknown}");
    // The first token came with the step above.
    assert_eq!(finish(&mut engine)[&running].tokens, whole.tokens[1..]);
    engine.add_adapter("two", &tuned);
    assert_eq!(engine.adapter_names().collect::<Vec<_>>(), ["two"]);
}

/// The loss of each token of a text but the first.
fn losses(engine: &mut Engine, ids: &[u32]) -> Vec<f64> {
    let vocabulary = engine.decoder_config().vocab_size;
    let mut losses = Vec::new();
    // The beginnings are kept, so that each request reads at most a block.
    for end in 1..ids.len() {
        let request = Request { log_probabilities: Some(vocabulary), ..greedy(&ids[..end], 1) };
        engine.submit(request).expect("accepted");
        while !engine.is_idle() {
            for event in engine.step() {
                if let Event::Token { log_probability: Some(found), .. } = event {
                    let token = found.likeliest.iter().find(|(token, _)| *token == ids[end]).expect("every token");
                    losses.push(-token.1);
                }
            }
        }
    }
    assert_eq!(losses.len(), ids.len() - 1);
    losses
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

#[test]
fn a_cache_in_int8_takes_half_the_memory_and_changes_losses_little() {
    let _turn = turn();
    for folder in fixtures("models") {
        let decoder = load(&folder, Compute::F32);
        let ids = Expected::read(&folder).ids();
        let of = |cache| {
            let mut engine = engine(&decoder, EngineOptions { cache: Some(cache), ..options(Precision::Exact) });
            (losses(&mut engine, &ids), engine.cache_bytes(64))
        };
        let [(exact, _), (bf16, bytes_of_bf16), (int8, bytes_of_int8)] = CacheFormat::ALL.map(of);
        let distance = |losses: &[f64]| mean(losses.iter().zip(&exact).map(|(loss, exact)| (loss - exact).abs()));
        let change = mean(int8.iter().copied()) / mean(exact.iter().copied()) - 1.0;
        let place = folder.display();
        assert!(change.abs() < 5e-3 && distance(&int8) < 0.1, "{place}: {change} {}", distance(&int8));
        assert!(distance(&int8) > 0.0 && distance(&int8) < 10.0 * distance(&bf16), "{place}: {}", distance(&bf16));
        assert!(bytes_of_int8 as f64 <= 0.6 * bytes_of_bf16 as f64, "{place}: {bytes_of_int8} for {bytes_of_bf16}");
    }
}

/// The figures of docs/performance.md: `BURNISH_LOSS_BASE=base.gguf BURNISH_LOSS_TEXT=text.txt cargo test --release loss_of_the_fast`
/// prints the mean loss of the text's first 400 tokens by both kernels, and by the fast ones with a cache in int8. Without the two variables
/// there is nothing to measure.
#[test]
fn loss_of_the_fast_kernels_on_a_text() {
    let variables = ["BURNISH_LOSS_BASE", "BURNISH_LOSS_TEXT"].map(std::env::var_os);
    let [Some(base), Some(text)] = variables else { return };
    let _turn = turn();
    let base = BaseFiles::open(Path::new(&base)).expect("a base");
    let tokenizer = Tokenizer::of_base(&base).expect("a tokenizer");
    let mut ids = tokenizer.encode(&std::fs::read_to_string(text).expect("a text")).expect("tokens");
    ids.truncate(400);
    let loss = |precision, compute, quant, cache| {
        let options = LoadOptions { device: Device::flex(), compute, quant };
        let decoder = Decoder::load(&base, &options, |_, _| {}).expect("loaded");
        let options = EngineOptions { precision, cache, ..EngineOptions::default() };
        mean(losses(&mut Engine::new(decoder, &tokenizer, options), &ids).into_iter())
    };
    let exact = loss(Precision::Exact, Compute::F32, Quant::None, None);
    for cache in [CacheFormat::Bf16, CacheFormat::Int8] {
        let fast = loss(Precision::Fast, Compute::Bf16, Quant::Keep, Some(cache));
        let change = fast / exact - 1.0;
        println!(
            "{} tokens: loss {exact:.5} exact, {fast:.5} fast with a cache in {cache}: {:+.3} %",
            ids.len(),
            100.0 * change
        );
        assert!(change.abs() < 5e-3, "{fast} for {exact}");
    }
}
