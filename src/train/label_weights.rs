//! The weights of labels in the loss of a classifier.

use serde::{Serialize, Serializer};

use crate::data::Encoded;
use crate::error::{Error, Place, Result};
use crate::settings::{Describe, FromNode, Node, Reader, Value, mismatch};

/// The weight of each label in the loss, before it is scaled.
#[derive(Debug, Clone, PartialEq)]
pub enum LabelWeights {
    /// All the same.
    Equal,
    /// In inverse proportion to the examples of the label, so that every label has the same share in the loss.
    Balanced,
    /// These, and 1 for labels that are not among them.
    Given(Vec<(String, f64)>),
}

impl LabelWeights {
    const EQUAL: &'static str = "equal";
    const BALANCED: &'static str = "balanced";

    /// The weight of each of `labels`, scaled so that those of the training examples `train` have the mean 1.
    ///
    /// # Errors
    /// Input: a weight of a label that there is not.
    pub fn of(&self, labels: &[String], train: &[Encoded]) -> Result<Vec<f64>> {
        let mut examples = vec![0.0; labels.len()];
        for example in train {
            if let Some(count) = examples.get_mut(example.label()) {
                *count += example.weight;
            }
        }
        let mut weights: Vec<f64> = match self {
            Self::Balanced => examples.iter().map(|count| if *count > 0.0 { 1.0 / count } else { 0.0 }).collect(),
            Self::Equal | Self::Given(_) => vec![1.0; labels.len()],
        };
        if let Self::Given(given) = self {
            for (label, weight) in given {
                let Some(number) = labels.iter().position(|known| known == label) else {
                    let message = format!("gives a weight to {label:?}; the labels are {}", labels.join(", "));
                    return Err(Error::input(Place::setting("train.label_weights"), message));
                };
                weights[number] = *weight;
            }
        }
        let sum: f64 = weights.iter().zip(&examples).map(|(weight, count)| weight * count).sum();
        let scale = examples.iter().sum::<f64>() / sum;
        weights.iter_mut().for_each(|weight| *weight *= scale);
        Ok(weights)
    }
}

impl FromNode for LabelWeights {
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self> {
        match &node.value {
            Value::String(word) if word == Self::EQUAL => Some(Self::Equal),
            Value::String(word) if word == Self::BALANCED => Some(Self::Balanced),
            Value::Table(table) => {
                let mut given = Vec::with_capacity(table.len());
                let mut is_whole = true;
                for (label, (_, node)) in table {
                    let weight = f64::from_node(node, &format!("{key}.{label}"), reader);
                    is_whole &= weight.is_some();
                    given.extend(weight.map(|weight| (label.clone(), weight)));
                }
                is_whole.then_some(Self::Given(given))
            }
            _ => mismatch(node, key, &Self::expected(), reader),
        }
    }
}

impl Describe for LabelWeights {
    fn expected() -> String {
        format!("`{}`, `{}` or a table from labels to numbers above 0", Self::EQUAL, Self::BALANCED)
    }

    fn schema() -> serde_json::Value {
        serde_json::json!({ "anyOf": [
            { "enum": [Self::EQUAL, Self::BALANCED] },
            { "type": "object", "additionalProperties": { "type": "number", "exclusiveMinimum": 0 } },
        ] })
    }
}

impl Serialize for LabelWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Equal => serializer.serialize_str(Self::EQUAL),
            Self::Balanced => serializer.serialize_str(Self::BALANCED),
            Self::Given(given) => serializer.collect_map(given.iter().map(|(label, weight)| (label, weight))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Judged;

    /// Weights of the labels a, b and c, of which there are 6, 2 and 0 examples.
    fn weights(weights: &LabelWeights) -> Result<Vec<f64>> {
        let example = |label: u32| Encoded {
            ids: vec![9, label],
            trained: vec![false, true],
            untrained_turns: 0,
            weight: 1.0,
            judged: Judged::Not,
        };
        let train: Vec<Encoded> = [0, 0, 0, 1, 0, 0, 1, 0].map(example).into();
        weights.of(&["a", "b", "c"].map(str::to_owned), &train)
    }

    #[test]
    fn weights_have_the_mean_one_over_the_examples() {
        assert_eq!(weights(&LabelWeights::Equal).expect("known"), [1.0; 3]);
        // 8 examples over 2 labels: 8/(2·6) and 8/(2·2), scikit-learn's `balanced`.
        let balanced = weights(&LabelWeights::Balanced).expect("known");
        assert!((balanced[0] - 2.0 / 3.0).abs() < 1e-12 && (balanced[1] - 2.0).abs() < 1e-12, "{balanced:?}");
        let given = weights(&LabelWeights::Given(vec![("b".into(), 3.0)])).expect("known");
        assert!((6.0 * given[0] + 2.0 * given[1] - 8.0).abs() < 1e-12 && (given[1] / given[0] - 3.0).abs() < 1e-12);
        let error = weights(&LabelWeights::Given(vec![("d".into(), 3.0)])).expect_err("unknown").to_string();
        assert!(error.contains("gives a weight to \"d\"; the labels are a, b, c"), "{error}");
    }
}
