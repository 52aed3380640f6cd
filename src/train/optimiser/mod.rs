//! Optimisers: the update of every trained matrix from its gradient, and the state that is kept between updates.
//!
//! The arithmetic is f32 on the adapter's device, one file for each rule. The state is a few vectors for each parameter; they
//! leave and come back by name, bit for bit, so that a run can go on where it stopped.

mod adafactor;
mod adamw;
mod lion;

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};

use super::settings::TrainSettings;
use crate::error::{Error, Result};
use crate::nn::Adapter;
use crate::settings::choice;

choice! {
    /// The rule that turns a gradient into an update.
    OptimiserKind {
        /// AdamW (Loshchilov and Hutter 2019): the mean of gradients over the root of their mean square.
        AdamW = "adamw",
        /// Lion (Chen et al. 2023): the sign of the mean of gradients; it wants a rate 3 to 10 times lower than AdamW.
        Lion = "lion",
        /// Adafactor (Shazeer and Stern 2018) with a given rate: mean squares by row and column only.
        Adafactor = "adafactor",
    }
}

impl OptimiserKind {
    /// The number of values that the rule keeps for a parameter of this shape.
    pub fn kept_values(self, shape: &[usize]) -> usize {
        self.moments(shape).iter().map(|(_, length)| length).sum()
    }

    /// The names of the vectors that the rule keeps for a parameter of this shape, and their lengths.
    fn moments(self, shape: &[usize]) -> Vec<(&'static str, usize)> {
        let values = shape.iter().product();
        match (self, shape) {
            (Self::AdamW, _) => vec![("mean", values), ("mean_square", values)],
            (Self::Lion, _) => vec![("mean", values)],
            (Self::Adafactor, [rows, columns]) => vec![("row_mean_square", *rows), ("column_mean_square", *columns)],
            (Self::Adafactor, _) => vec![("mean_square", values)],
        }
    }
}

/// The state of an optimiser on the host: all that a later update depends on beside settings and parameters.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OptimiserState {
    /// Updates so far.
    pub updates: u64,
    /// The vectors of each parameter by `path.name`, as in `deltas.0.LowRank.a.mean`; empty before the first update.
    pub tensors: BTreeMap<String, Vec<f32>>,
}

/// An optimiser of an adapter.
pub struct Optimiser {
    rule: Rule,
    /// The rate of `B` over the rate of every other matrix.
    b_rate_ratio: f64,
    updates: u64,
    /// The vectors of each parameter, by `path.name`.
    moments: BTreeMap<String, Tensor<1>>,
}

/// A rule with its constants.
#[derive(Debug, Clone, Copy)]
struct Rule {
    kind: OptimiserKind,
    beta1: f64,
    beta2: f64,
    weight_decay: f64,
}

/// The update of one parameter.
struct Update<'a> {
    /// The rate of this parameter.
    rate: f64,
    /// Updates including this one.
    number: u64,
    /// The shape of the parameter, of which the vectors below are the values in row-major order.
    shape: &'a [usize],
    parameter: Tensor<1>,
    gradient: Tensor<1>,
    /// In the order of [`OptimiserKind::moments`].
    moments: Vec<Tensor<1>>,
}

impl Update<'_> {
    /// The parameter after decoupled weight decay: `p·(1 − rate·weight_decay)`.
    fn decayed(&self, weight_decay: f64) -> Tensor<1> {
        match self.rate * weight_decay {
            0.0 => self.parameter.clone(),
            decay => self.parameter.clone().mul_scalar(1.0 - decay),
        }
    }
}

impl Rule {
    /// The parameter after an update, and its moments.
    fn apply(&self, update: Update<'_>) -> (Tensor<1>, Vec<Tensor<1>>) {
        match self.kind {
            OptimiserKind::AdamW => adamw::apply(self, update),
            OptimiserKind::Lion => lion::apply(self, update),
            OptimiserKind::Adafactor => adafactor::apply(self, update),
        }
    }
}

impl Optimiser {
    /// A fresh optimiser with the rule and the constants of `settings`.
    pub fn new(settings: &TrainSettings) -> Self {
        let rule = Rule {
            kind: settings.optimiser,
            beta1: settings.beta1,
            beta2: settings.beta2(),
            weight_decay: settings.weight_decay,
        };
        Self { rule, b_rate_ratio: settings.b_rate_ratio, updates: 0, moments: BTreeMap::new() }
    }

    /// One update of every parameter that has a gradient. `rate` is that of `A`; `B` and vectors get `b_rate_ratio` times
    /// as much (LoRA+, Hayou et al. 2024, in the grouping of PEFT's `create_loraplus_optimizer`).
    pub fn step(&mut self, rate: f64, adapter: Adapter, gradients: GradientsParams) -> Adapter {
        self.updates += 1;
        let mut adapter = adapter.map(&mut Walk { optimiser: self, path: Vec::new(), rate, gradients });
        adapter.parameters_changed();
        adapter
    }

    /// The state, for [`Self::restore`].
    pub fn state(&self) -> OptimiserState {
        let host = |moment: &Tensor<1>| moment.clone().into_data().iter::<f32>().collect();
        let tensors = self.moments.iter().map(|(name, moment)| (name.clone(), host(moment)));
        OptimiserState { updates: self.updates, tensors: tensors.collect() }
    }

    /// Takes the place of the optimiser that `state` came from, for the same adapter.
    ///
    /// # Errors
    /// Failed: a vector is missing beside others of its parameter, of no parameter or of another length; nothing is changed then.
    pub fn restore(&mut self, adapter: &Adapter, state: &OptimiserState) -> Result<()> {
        let mut moments = BTreeMap::new();
        let parameters = if state.tensors.is_empty() { Vec::new() } else { parameters_of(adapter) };
        for (path, shape, device) in parameters {
            let names =
                self.rule.kind.moments(&shape).into_iter().map(|(name, length)| (format!("{path}.{name}"), length));
            let names: Vec<(String, usize)> = names.collect();
            // A parameter that has had no gradient yet has no vectors: that of a tower before the first picture, say.
            if names.iter().all(|(name, _)| !state.tensors.contains_key(name)) {
                continue;
            }
            for (name, length) in names {
                let values = state.tensors.get(&name).filter(|values| values.len() == length).ok_or_else(|| {
                    let found = state.tensors.get(&name).map_or("none".to_owned(), |values| values.len().to_string());
                    Error::failed(
                        format!("optimiser state: {name}"),
                        format!("expected {length} values, found {found}"),
                    )
                })?;
                let values = TensorData::new(values.clone(), [length]);
                moments.insert(name, Tensor::from_data(values, &device));
            }
        }
        if let Some(name) = state.tensors.keys().find(|name| !moments.contains_key(*name)) {
            return Err(Error::failed(format!("optimiser state: {name}"), "is of no parameter of this adapter"));
        }
        (self.updates, self.moments) = (state.updates, moments);
        Ok(())
    }
}

/// Goes through the parameters of an adapter and updates each.
struct Walk<'a> {
    optimiser: &'a mut Optimiser,
    path: Vec<String>,
    rate: f64,
    gradients: GradientsParams,
}

impl ModuleMapper for Walk<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(gradient) = self.gradients.remove::<D>(parameter.id) else { return parameter };
        let is_b = self.path.last().is_some_and(|name| name == "b");
        let Optimiser { rule, b_rate_ratio, updates, moments } = &mut *self.optimiser;
        let path = self.path.join(".");
        let (id, tensor, mapper) = parameter.consume();
        let tensor = tensor.inner();
        let dims = tensor.dims();
        let flat = [dims.iter().product::<usize>()];
        let shape = shape_of(&self.path, &dims);
        let names: Vec<(String, usize)> =
            rule.kind.moments(&shape).into_iter().map(|(name, length)| (format!("{path}.{name}"), length)).collect();
        let device = gradient.device();
        let taken = names
            .iter()
            .map(|(name, length)| moments.remove(name).unwrap_or_else(|| Tensor::zeros([*length], &device)));
        let (updated, after) = rule.apply(Update {
            rate: if is_b || shape.len() == 1 { self.rate * *b_rate_ratio } else { self.rate },
            number: *updates,
            shape: &shape,
            moments: taken.collect(),
            parameter: tensor.reshape(flat),
            gradient: gradient.reshape(flat),
        });
        moments.extend(names.into_iter().map(|(name, _)| name).zip(after));
        Param::from_mapped_value(id, updated.reshape(dims).autodiff().require_grad(), mapper)
    }
}

/// The shape of a parameter, for the rules: that of a vector where it is one that lies in a row, as a DoRA magnitude, a norm or a bias.
fn shape_of(path: &[String], dims: &[usize]) -> Vec<usize> {
    match dims {
        [1, length] if path.iter().any(|name| name == "magnitude" || name == "whole") => vec![*length],
        _ => dims.to_vec(),
    }
}

/// Path, shape and device (without autodiff) of every parameter of an adapter.
fn parameters_of(adapter: &Adapter) -> Vec<(String, Vec<usize>, Device)> {
    #[derive(Default)]
    struct Shapes {
        path: Vec<String>,
        found: Vec<(String, Vec<usize>, Device)>,
    }
    impl ModuleVisitor for Shapes {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }

        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }

        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
            let tensor = parameter.val().inner();
            self.found.push((self.path.join("."), shape_of(&self.path, &tensor.dims()), tensor.device()));
        }
    }
    let mut shapes = Shapes::default();
    adapter.visit(&mut shapes);
    shapes.found
}
