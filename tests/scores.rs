//! Scores and sampling against the Python packages that define them.

use std::path::Path;

use burnish::eval::loss::{ExampleLoss, compare, example_number, mean_loss};
use burnish::eval::text::rouge_l;
use burnish::generate::sample::{Sampler, SamplerConfig};
use serde_json::Value;

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).expect("a fixture")).expect("JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).expect("numbers")
}

#[test]
fn rouge_l_is_that_of_rouge_score() {
    let fixture = fixture("scores.json");
    for case in fixture["rouge"].as_array().expect("cases") {
        let (reference, prediction) = (case[0].as_str().expect("text"), case[1].as_str().expect("text"));
        let (found, expected) = (rouge_l(reference, prediction), case[2].as_f64().expect("a score"));
        assert!((found - expected).abs() < 1e-12, "{reference} | {prediction}: {found}, not {expected}");
    }
}

#[test]
fn the_bootstrap_interval_is_that_of_numpy() {
    let fixture = fixture("scores.json");
    for case in fixture["bootstrap"].as_array().expect("cases") {
        let tokens = numbers(&case["tokens"]);
        let losses = |key: &str| -> Vec<ExampleLoss> {
            let sums = numbers(&case[key]).into_iter().zip(&tokens);
            sums.map(|(loss_sum, &tokens)| ExampleLoss { loss_sum, tokens: tokens as usize, correct_tokens: 0 })
                .collect()
        };
        let (before, after) = (losses("before"), losses("after"));
        let number = |key: &str| case[key].as_f64().expect("a number");
        assert!((mean_loss(&before, example_number).expect("finite") - number("mean_before")).abs() < 1e-12);
        let found = compare(&before, &after, 17, example_number).expect("a comparison");
        assert!((found.after - number("mean_after")).abs() < 1e-12);
        // Two runs of 10,000 resamples differ by this much: the ends are estimates themselves.
        let tolerance = 0.03 * (number("high") - number("low"));
        assert!((found.low - number("low")).abs() < tolerance, "{} for {}", found.low, number("low"));
        assert!((found.high - number("high")).abs() < tolerance, "{} for {}", found.high, number("high"));
    }
}

#[test]
fn the_filters_leave_what_transformers_leaves() {
    for case in fixture("sampling.json").as_array().expect("cases") {
        let setting = |key: &str, default: f64| case[key].as_f64().unwrap_or(default);
        let config = SamplerConfig {
            temperature: setting("temperature", 1.0),
            top_k: setting("top_k", 0.0) as usize,
            top_p: setting("top_p", 1.0),
            min_p: setting("min_p", 0.0),
            repetition_penalty: setting("repetition_penalty", 1.0),
            ..SamplerConfig::default()
        };
        let logits: Vec<f32> = numbers(&case["logits"]).into_iter().map(|logit| logit as f32).collect();
        let history: Vec<u32> = numbers(&case["history"]).into_iter().map(|token| token as u32).collect();
        let found =
            Sampler::new(config.clone()).expect("in range").distribution(&logits, &history, &[]).expect("finite");
        let expected: Vec<(u32, f64)> = serde_json::from_value(case["kept"].clone()).expect("pairs");
        assert_eq!(found.len(), expected.len(), "{config:?}");
        for ((token, probability), (expected_token, expected_probability)) in found.into_iter().zip(expected) {
            assert_eq!(token, expected_token, "{config:?}");
            assert!((probability - expected_probability).abs() < 1e-5, "{config:?}: token {token}");
        }
    }
}
