//! The `[sweep]` of a recipe: the settings whose values `burnish sweep` tries, and the way in which it does.

use serde::{Serialize, Serializer};
use serde_json::{Value as Json, json};

use super::{Recipe, SWEEP};
use crate::error::Result;
use crate::settings::tree::{self, Place, Table};
use crate::settings::{
    Describe, FromNode, Limit, Node, Reader, Value, any, between, choice, join_key, mismatch, optional, section,
};

/// The most trials of a sweep.
const MAX_TRIALS: usize = 1000;
/// The trials of a random sweep that does not say how many.
const RANDOM_TRIALS: usize = 12;
/// Sections that no trial can have otherwise than another: each has a folder of its own, in one process.
const NOT_SEARCHED: [&str; 3] = ["output", "parallel", SWEEP];

choice! {
    /// The way from the values of a sweep to its trials.
    SweepMethod {
        /// Every combination of the values.
        Grid = "grid",
        /// Combinations by chance.
        Random = "random",
    }
}

choice! {
    /// The measure that ranks the trials of a sweep, always that of a trial's best evaluation.
    SweepObjective {
        /// The lowest validation loss.
        Loss = "loss",
        /// The highest share of validation prompts that are answered exactly.
        ExactMatch = "exact_match",
        /// The highest share of right labels, of classifiers.
        Accuracy = "accuracy",
        /// The largest fall of the validation loss by hour of training: what a gain costs.
        LossGainPerHour = "loss_gain_per_hour",
    }
}

choice! {
    /// The scale on which the values of a range are equally likely.
    Scale {
        /// The values themselves.
        Linear = "linear",
        /// Their logarithms.
        Log = "log",
    }
}

section! {
    /// The search of `burnish sweep`. Other commands leave it out.
    SweepSettings {
        /// The settings to search, by their names: a list of values each, or for `random` a range, `{ min = 1e-4, max = 1e-2, scale = "log" }`. A
        /// range between whole numbers has whole numbers; other values have three digits.
        values: Space = Refuse, any();
        /// The way from the values to the trials.
        method: SweepMethod = Take(SweepMethod::Grid), any();
        /// Trials of `random` (12 where it is not given). A grid has all combinations.
        trials: Option<usize> = Take(None), optional(between(1..=MAX_TRIALS));
        /// Decides the trials of `random`.
        seed: u64 = Take(0), between(0..=1 << 53);
        /// The measure that ranks the trials, by the best evaluation of each. `exact_match` and `accuracy` need the same in `train.eval_on`.
        objective: SweepObjective = Take(SweepObjective::Loss), any();
        /// Successive halving: after each of these shares of their steps, at the next evaluation, the trials pause, and only the best go on from
        /// their checkpoints. `[]` trains every trial to its end.
        rungs: Vec<f64> = Take(vec![0.125, 0.375]), rising_shares();
        /// One trial of so many goes on after each rung, rounded up.
        reduction: usize = Take(2), between(2..=16);
    }
}

fn rising_shares() -> Limit<Vec<f64>> {
    Limit::new("rising shares above 0 and below 1", |shares: &Vec<f64>| {
        let ends = shares.first().is_none_or(|first| *first > 0.0) && shares.last().is_none_or(|last| *last < 1.0);
        ends && shares.windows(2).all(|pair| pair[0] < pair[1])
    })
}

/// The settings that a sweep searches, each with its values; in the order of their names.
#[derive(Debug, Clone, PartialEq)]
pub struct Space(Vec<Axis>);

/// A setting that is searched.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Axis {
    /// Its key: `train.learning_rate`.
    pub(crate) key: String,
    place: Place,
    /// Its values.
    pub(crate) values: Values,
}

/// The values of a setting that is searched.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Values {
    /// These.
    Listed(Vec<Node>),
    /// Any number of a range.
    Within(Range),
}

section! {
    /// A range of numbers.
    Range {
        /// The lowest value.
        min: Number = Refuse, any();
        /// The highest value.
        max: Number = Refuse, any();
        /// The scale on which the values are equally likely.
        scale: Scale = Take(Scale::Linear), any();
    }
}

/// A number as it was typed: whole or not.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Number {
    /// A whole number.
    Whole(i64),
    /// Any other number.
    Real(f64),
}

impl Number {
    /// The value.
    pub fn value(self) -> f64 {
        match self {
            Self::Whole(value) => value as f64,
            Self::Real(value) => value,
        }
    }

    /// The number as if it had been typed at `place`.
    pub(crate) fn node(self, place: &Place) -> Node {
        let value = match self {
            Self::Whole(value) => Value::Integer { digits: value.to_string(), radix: 10 },
            Self::Real(value) => Value::Float(format!("{value:?}")),
        };
        Node { place: place.clone(), value }
    }
}

impl FromNode for Number {
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self> {
        match node.value.to_toml() {
            toml::Value::Integer(value) => Some(Self::Whole(value)),
            toml::Value::Float(value) if value.is_finite() => Some(Self::Real(value)),
            _ => mismatch(node, key, "a number", reader),
        }
    }
}

impl Describe for Number {
    fn schema() -> Json {
        json!({ "type": "number" })
    }
}

impl Axis {
    /// The nodes of which each has to be a value of the setting.
    fn examples(&self) -> Vec<Node> {
        match &self.values {
            Values::Listed(nodes) => nodes.clone(),
            Values::Within(range) => [range.min, range.max].map(|end| end.node(&self.place)).into(),
        }
    }

    /// The place of a value that was drawn.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// The number of its values; `None` where they cannot be counted.
    fn count(&self) -> Option<u128> {
        match &self.values {
            Values::Listed(nodes) => Some(nodes.len() as u128),
            Values::Within(Range { min: Number::Whole(min), max: Number::Whole(max), .. }) => {
                Some(u128::from(max.abs_diff(*min)) + 1)
            }
            Values::Within(_) => None,
        }
    }
}

impl Space {
    /// The settings.
    pub(crate) fn axes(&self) -> &[Axis] {
        &self.0
    }

    /// The number of combinations; `None` where they cannot be counted.
    fn combinations(&self) -> Option<u128> {
        self.0.iter().try_fold(1u128, |product, axis| Some(product.saturating_mul(axis.count()?)))
    }
}

impl FromNode for Space {
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self> {
        let Value::Table(table) = &node.value else {
            return mismatch(node, key, &format!("a section `[{key}]`"), reader);
        };
        let mut axes = Vec::new();
        read_axes(table, "", reader, &mut axes);
        if axes.is_empty() {
            reader.problem(&node.place, format!("`{key}`: expected at least one setting with its values"));
            return None;
        }
        axes.into_iter().collect::<Option<Vec<_>>>().map(Self)
    }
}

/// Reads the settings below `section`; `None` for each that is wrong, after recording why.
fn read_axes(table: &Table, section: &str, reader: &mut Reader, axes: &mut Vec<Option<Axis>>) {
    let has_end = |table: &Table| ["min", "max"].iter().any(|end| table.contains_key(*end));
    for (name, (place, node)) in table {
        let key = join_key(section, name);
        let shown = format!("sweep.values.{key}");
        let values = match &node.value {
            Value::Array(nodes) if !nodes.is_empty() => listed(nodes, &shown, reader).map(Values::Listed),
            Value::Table(inner) if has_end(inner) => range(node, &shown, reader).map(Values::Within),
            Value::Table(inner) if !inner.is_empty() => {
                read_axes(inner, &key, reader, axes);
                continue;
            }
            found => {
                let found =
                    if matches!(found, Value::Array(_)) { "an empty list".to_owned() } else { found.to_string() };
                let message = format!("`{shown}`: expected a list of values or a range, found {found}");
                reader.problem_with_hint(&node.place, message, "`[1e-4, 1e-3]` or `{ min = 1e-4, max = 1e-2 }`");
                None
            }
        };
        let is_fixed = NOT_SEARCHED.iter().find(|fixed| key.split('.').next() == Some(**fixed));
        if let Some(fixed) = is_fixed {
            let message = format!("`{key}` cannot be searched: `[{fixed}]` is the same for every trial");
            reader.problem(place, message);
        }
        let is_good = is_fixed.is_none() && reader.is_setting(&key, place);
        let axis = values.filter(|_| is_good).map(|values| Axis { key, place: node.place.clone(), values });
        axes.push(axis);
    }
}

/// The values of a list, no two of which are the same.
fn listed(nodes: &[Node], key: &str, reader: &mut Reader) -> Option<Vec<Node>> {
    let values: Vec<toml::Value> = nodes.iter().map(|node| node.value.to_toml()).collect();
    let twice = (1..values.len()).find(|index| values[..*index].contains(&values[*index]));
    if let Some(index) = twice {
        reader.problem(&nodes[index].place, format!("`{key}` has {} twice", nodes[index].value));
        return None;
    }
    Some(nodes.to_vec())
}

fn range(node: &Node, key: &str, reader: &mut Reader) -> Option<Range> {
    let range = Range::from_node(node, key, reader)?;
    let (min, max) = (range.min.value(), range.max.value());
    if min >= max {
        reader.problem(&node.place, format!("`{key}`: expected `min` below `max`, found {min} and {max}"));
        return None;
    }
    if range.scale == Scale::Log && min <= 0.0 {
        let message = format!("`{key}`: a logarithmic scale begins above 0, and `min` is {min}");
        reader.problem(&node.place, message);
        return None;
    }
    Some(range)
}

impl Describe for Space {
    fn schema() -> Json {
        json!({ "type": "object" })
    }
}

impl Serialize for Space {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|axis| {
            let values = match &axis.values {
                Values::Listed(nodes) => json!(nodes.iter().map(|node| node.value.to_toml()).collect::<Vec<_>>()),
                Values::Within(range) => json!(range),
            };
            (&axis.key, values)
        }))
    }
}

impl SweepObjective {
    /// Whether larger values are better.
    pub fn higher_is_better(self) -> bool {
        self != Self::Loss
    }

    /// Whether it is a share of examples.
    pub fn is_share(self) -> bool {
        matches!(self, Self::ExactMatch | Self::Accuracy)
    }
}

impl SweepSettings {
    /// The trials, if every combination is one of its own.
    pub fn trials(&self) -> usize {
        match self.method {
            // No more than the limit, or it would not have been read.
            SweepMethod::Grid => self.values.combinations().map_or(0, |count| count as usize),
            SweepMethod::Random => self.trials.unwrap_or(RANDOM_TRIALS),
        }
    }

    /// Records the settings that do not go together; `place` is that of the section.
    fn check(&self, place: &Place, reader: &mut Reader) {
        let combinations = self.values.combinations();
        match self.method {
            SweepMethod::Grid => {
                for axis in self.values.0.iter().filter(|axis| matches!(axis.values, Values::Within(_))) {
                    let message = format!("`sweep.values.{}` is a range, which has no grid", axis.key);
                    let hint = "list its values, or take `method = \"random\"`";
                    reader.problem_with_hint(&axis.place, message, hint);
                }
                if self.trials.is_some() {
                    let message = "`sweep.trials` does nothing under `method = \"grid\"`, which has every combination";
                    reader.problem(place, message);
                }
                if let Some(count) = combinations.filter(|count| *count > MAX_TRIALS as u128) {
                    let message = format!("the grid has {count} combinations; a sweep has at most {MAX_TRIALS} trials");
                    reader.problem_with_hint(place, message, "`method = \"random\"` takes some of them");
                }
            }
            SweepMethod::Random => {
                let trials = self.trials();
                if let Some(count) = combinations.filter(|count| *count < trials as u128) {
                    let message = format!("`sweep.trials` is {trials}, and there are {count} combinations");
                    reader.problem_with_hint(place, message, "`method = \"grid\"` takes all of them");
                }
            }
        }
    }
}

impl Recipe {
    /// The sweep of the recipe; `None` where it has none.
    ///
    /// # Errors
    /// Those of [`Recipe::settings`]; Input: a setting that does not exist, a value that its setting does not take, each at its line and
    /// column.
    pub fn sweep(&self) -> Result<Option<SweepSettings>> {
        let mut reader = self.reader();
        self.read(&mut reader);
        let sweep = self.read_sweep(&mut reader);
        reader.finish(Some(sweep))
    }

    /// Whether the recipe has a sweep.
    pub fn has_sweep(&self) -> bool {
        self.sweep.is_some()
    }

    /// Reads the sweep, and each of its values as the value of its setting in this recipe.
    pub(super) fn read_sweep(&self, reader: &mut Reader) -> Option<SweepSettings> {
        let (place, node) = self.sweep.as_ref()?;
        let was_good = !reader.has_problems();
        let sweep = SweepSettings::from_node(node, SWEEP, reader)?;
        sweep.check(place, reader);
        // Over a recipe that is wrong itself, every value would be wrong with it.
        for axis in sweep.values.axes().iter().filter(|_| was_good) {
            for value in axis.examples() {
                let place = value.place.clone();
                let read = self.with(&[(axis.key.clone(), value)]).and_then(|recipe| recipe.settings());
                read.err().into_iter().for_each(|error| reader.error(&place, error));
            }
        }
        Some(sweep)
    }

    /// This recipe without its sweep, with the values of a trial.
    ///
    /// # Errors
    /// Input: a part of a key is no section.
    pub(crate) fn with(&self, values: &[(String, Node)]) -> Result<Self> {
        let mut recipe = Self { sweep: None, ..self.clone() };
        for (key, node) in values {
            tree::insert(&mut recipe.root, key, "", node.clone()).map_err(|error| error.within(&*self.name))?;
            recipe.overrides.push(format!("{key}={}", node.value.to_toml()));
        }
        Ok(recipe)
    }
}
