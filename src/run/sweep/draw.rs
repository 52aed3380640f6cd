//! The trials of a sweep: the combinations of a grid, or seeded draws.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;

use crate::recipe::SweepSettings;
use crate::recipe::sweep::{Axis, Number, Range, Scale, SweepMethod, Values};
use crate::settings::Node;

/// The digits of a number that is drawn.
const DIGITS: usize = 3;

/// The values of one trial, by key.
pub(super) type Combination = Vec<(String, Node)>;

/// The trials, no two of which are the same.
pub(super) fn draw(settings: &SweepSettings) -> Vec<Combination> {
    let axes = settings.values.axes();
    match settings.method {
        SweepMethod::Grid => grid(axes),
        SweepMethod::Random => random(axes, settings.trials(), settings.seed),
    }
}

/// Every combination; the values of the last setting change first.
fn grid(axes: &[Axis]) -> Vec<Combination> {
    axes.iter().fold(vec![Combination::new()], |combinations, axis| {
        let Values::Listed(values) = &axis.values else { return combinations };
        let with = |combination: &Combination, value: &Node| {
            let mut longer = combination.clone();
            longer.push((axis.key.clone(), value.clone()));
            longer
        };
        combinations.iter().flat_map(|combination| values.iter().map(move |value| with(combination, value))).collect()
    })
}

/// Draws until there are so many different combinations, of which there are enough.
fn random(axes: &[Axis], trials: usize, seed: u64) -> Vec<Combination> {
    let mut generator = ChaCha12Rng::seed_from_u64(seed);
    let mut drawn: Vec<Combination> = Vec::new();
    while drawn.len() < trials {
        let combination = axes.iter().map(|axis| (axis.key.clone(), value(axis, generator.next_u64()))).collect();
        if !drawn.contains(&combination) {
            drawn.push(combination);
        }
    }
    drawn
}

/// The value of a setting that 64 random bits choose.
fn value(axis: &Axis, bits: u64) -> Node {
    match &axis.values {
        Values::Listed(values) => values[((u128::from(bits) * values.len() as u128) >> 64) as usize].clone(),
        // The 53 bits that a number from 0 to below 1 has.
        Values::Within(range) => within(range, (bits >> 11) as f64 / (1u64 << 53) as f64).node(axis.place()),
    }
}

/// The number of a range at `share` of its scale, from 0 to below 1.
fn within(range: &Range, share: f64) -> Number {
    let between = |low: f64, high: f64| match range.scale {
        Scale::Linear => low + share * (high - low),
        Scale::Log => low * (high / low).powf(share),
    };
    match (range.min, range.max) {
        (Number::Whole(min), Number::Whole(max)) => {
            Number::Whole((between(min as f64, max as f64 + 1.0).floor() as i64).clamp(min, max))
        }
        (min, max) => {
            let (min, max) = (min.value(), max.value());
            let drawn = between(min, max);
            let rounded = format!("{drawn:.*e}", DIGITS - 1).parse().unwrap_or(drawn);
            Number::Real(rounded.clamp(min, max))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    fn drawn(sweep: &str) -> Vec<String> {
        let text = format!("[base]\nmodel = \"m\"\n[data]\ntrain = \"t\"\n[output]\ndir = \"o\"\n[sweep]\n{sweep}");
        let recipe = Recipe::parse(&text, "recipe.toml", &[]).expect("TOML");
        let settings = recipe.sweep().expect("a sweep that is right").expect("a sweep");
        let shown = |trial: &Combination| {
            let values: Vec<String> =
                trial.iter().map(|(key, node)| format!("{key}={}", node.value.to_toml())).collect();
            values.join(" ")
        };
        draw(&settings).iter().map(shown).collect()
    }

    #[test]
    fn a_grid_has_every_combination_once_in_order() {
        let trials = drawn("values = { train.learning_rate = [1e-3, 1e-4], adapter.rank = [4, 8, 16] }");
        assert_eq!(trials.len(), 6);
        assert_eq!(trials[0], "adapter.rank=4 train.learning_rate=0.001");
        assert_eq!(trials[1], "adapter.rank=4 train.learning_rate=0.0001");
        assert_eq!(trials[5], "adapter.rank=16 train.learning_rate=0.0001");
    }

    #[test]
    fn draws_are_different_within_their_ranges_and_follow_the_seed() {
        let values = "[sweep.values]\ntrain.learning_rate = { min = 1e-4, max = 1e-2, scale = \"log\" }\n\
                      adapter.rank = { min = 2, max = 5 }\nadapter.dropout = { min = 0, max = 0.5 }\n\
                      adapter.targets = [\"attention\", \"all-linear\"]\n";
        let of_seed = |seed: u64| drawn(&format!("method = \"random\"\ntrials = 200\nseed = {seed}\n{values}"));
        let trials = of_seed(1);
        assert_eq!((trials.len(), &trials), (200, &of_seed(1)));
        assert_ne!(trials, of_seed(2));
        let mut below = 0;
        for trial in &trials {
            let value = |key: &str| {
                let found = trial.split(' ').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
                found.expect("a value").to_owned()
            };
            let rate: f64 = value("train.learning_rate").parse().expect("a number");
            assert!((1e-4..=1e-2).contains(&rate), "{trial}");
            below += usize::from(rate < 1e-3);
            let rank: i64 = value("adapter.rank").parse().expect("a whole number");
            assert!((2..=5).contains(&rank), "{trial}");
            assert!((0.0..=0.5).contains(&value("adapter.dropout").parse::<f64>().expect("a number")), "{trial}");
        }
        // Half of them, on a logarithmic scale; a tenth on the other one.
        assert!((70..=130).contains(&below), "{below}");
        let ranks = |rank: &str| trials.iter().filter(|trial| trial.contains(rank)).count();
        assert!(["=2 ", "=3 ", "=4 ", "=5 "].iter().all(|rank| ranks(rank) > 25), "{trials:?}");
        let all = drawn("method = \"random\"\ntrials = 4\nvalues = { adapter.rank = { min = 2, max = 5 } }");
        assert_eq!(all.len(), 4, "every value there is");
    }
}
