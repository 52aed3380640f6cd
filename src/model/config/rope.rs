//! Rotary embedding as a configuration states it: read from and written to `config.json`, and checked.

use serde_json::{Value, json};

use super::Fields;
use crate::error::Error;

/// Rotary embedding of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Change of the frequencies.
    pub scaling: RopeScaling,
    /// Number of values of a head that are rotated: the first ones. `head_dim` rotates all.
    pub rotary_dims: usize,
}

/// Change of the frequencies of rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// No change.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's scaling by wavelength (transformers `_compute_llama3_parameters`).
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_positions` over this are divided by `factor`.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions` over this stay.
        high_freq_factor: f64,
        /// Positions that the model was first trained with.
        original_max_positions: usize,
    },
    /// Divisors by frequency, `rotary_dims / 2` of them (GGUF `rope_freqs.weight`).
    Factors(Vec<f32>),
    /// Divisors by frequency, other ones for sequences beyond the first context (Ding et al. 2024, "LongRoPE";
    /// transformers `_compute_longrope_parameters`).
    LongRope {
        /// The divisors of sequences of up to `original_max_positions`, `rotary_dims / 2` of them.
        short: Vec<f32>,
        /// The divisors of longer sequences, as many.
        long: Vec<f32>,
        /// Positions that the model was first trained with.
        original_max_positions: usize,
        /// Factor on cosines and sines.
        attention_factor: f32,
    },
}

pub(super) const DEFAULT_THETA: f64 = 10_000.0;

impl RopeConfig {
    /// Unscaled rotary embedding with the usual base.
    pub fn plain(rotary_dims: usize) -> Self {
        Self { theta: DEFAULT_THETA, scaling: RopeScaling::None, rotary_dims }
    }

    /// Every problem with the values; `place` names the file, `theta` the field of the base.
    pub(super) fn problems(&self, place: &str, theta: &str, head_dim: usize) -> Vec<Error> {
        let mut errors = Vec::new();
        if !(1.0..=f64::from(f32::MAX)).contains(&self.theta) {
            let message = format!("is {}; expected 1 or more", self.theta);
            errors.push(Error::input(format_args!("{place}: {theta}"), message));
        }
        let dims = self.rotary_dims;
        if dims != head_dim && (dims == 0 || dims > head_dim || !dims.is_multiple_of(2)) {
            let message = format!("rotates {dims} of the {head_dim} values of a head; expected an even number of them");
            errors.push(Error::input(format_args!("{place}: partial_rotary_factor"), message));
        }
        if let Some(message) = self.scaling_problem() {
            errors.push(Error::input(format_args!("{place}: rope_scaling"), message));
        }
        errors
    }

    fn scaling_problem(&self) -> Option<String> {
        // Beyond these, frequencies of f32 are infinite or all zero.
        let positive = |value: f64| (1e-6..=1e6).contains(&value);
        match &self.scaling {
            RopeScaling::None => None,
            RopeScaling::Linear { factor } => (!positive(*factor))
                .then(|| format!("factor is {factor}; expected a positive number, from 1e-6 to 1e6")),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let valid = positive(*factor)
                    && positive(*low_freq_factor)
                    && positive(*high_freq_factor)
                    && high_freq_factor > low_freq_factor
                    && *original_max_positions > 0;
                (!valid).then(|| {
                    format!(
                        "llama3 scaling has factor {factor}, low_freq_factor {low_freq_factor}, high_freq_factor \
                         {high_freq_factor}, original_max_position_embeddings {original_max_positions}; expected \
                         positive numbers from 1e-6 to 1e6, high above low"
                    )
                })
            }
            RopeScaling::Factors(factors) => self.factors_problem(factors),
            RopeScaling::LongRope { short, long, original_max_positions, attention_factor } => {
                let problem = self.factors_problem(short).or_else(|| self.factors_problem(long));
                problem.or_else(|| {
                    (*original_max_positions == 0 || !positive(f64::from(*attention_factor))).then(|| {
                        format!(
                            "longrope scaling has original_max_position_embeddings {original_max_positions} and \
                             attention_factor {attention_factor}; expected positive numbers"
                        )
                    })
                })
            }
        }
    }

    fn factors_problem(&self, factors: &[f32]) -> Option<String> {
        let expected = self.rotary_dims / 2;
        let valid = factors.len() == expected && factors.iter().all(|factor| (1e-6..=1e6).contains(factor));
        (!valid).then(|| format!("{} frequency factors; expected {expected}, from 1e-6 to 1e6", factors.len()))
    }

    /// The share of a head that is rotated, such that [`Fields::rotary_dims`] gives the same dimensions again.
    pub(in crate::model) fn rotated_share(&self, head_dim: usize) -> f64 {
        let share = self.rotary_dims as f64 / head_dim as f64;
        if (head_dim as f64 * share) as usize == self.rotary_dims { share } else { share.next_up() }
    }

    /// `rope_scaling` for `config.json`, null where nothing is scaled.
    pub(in crate::model) fn scaling_json(&self, max_positions: usize) -> Value {
        match &self.scaling {
            RopeScaling::None => Value::Null,
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_positions,
            }),
            RopeScaling::Factors(factors) => self.factors_json(factors, max_positions),
            RopeScaling::LongRope { short, long, original_max_positions, attention_factor } => json!({
                "rope_type": "longrope",
                "short_factor": short,
                "long_factor": long,
                "attention_factor": attention_factor,
                "original_max_position_embeddings": original_max_positions,
            }),
        }
    }

    /// Whether `other` rotates in the same way, but for the rounding of f32.
    pub fn is_near(&self, other: &Self) -> bool {
        let near = |own: f64, other: f64| (own - other).abs() <= 1e-5 * own.abs();
        let all_near = |own: &[f32], other: &[f32]| {
            own.len() == other.len() && own.iter().zip(other).all(|(own, other)| near((*own).into(), (*other).into()))
        };
        let change = |rope: &Self| match &rope.scaling {
            RopeScaling::LongRope { long, original_max_positions, attention_factor, .. } => {
                Some((long.clone(), *original_max_positions, f64::from(*attention_factor)))
            }
            _ => None,
        };
        let same_change = match (change(self), change(other)) {
            (None, None) => true,
            (Some((own, positions, factor)), Some((other, other_positions, other_factor))) => {
                all_near(&own, &other) && positions == other_positions && near(factor, other_factor)
            }
            _ => false,
        };
        self.rotary_dims == other.rotary_dims
            && near(self.theta, other.theta)
            && all_near(&self.divisors(), &other.divisors())
            && same_change
    }

    /// The divisors of all frequencies, of a LongRoPE those of short texts.
    fn divisors(&self) -> Vec<f32> {
        match &self.scaling {
            RopeScaling::None => vec![1.0; self.rotary_dims / 2],
            RopeScaling::Linear { factor } => vec![*factor as f32; self.rotary_dims / 2],
            RopeScaling::Llama3 { .. } => self.llama3_factors(),
            RopeScaling::Factors(factors) => factors.clone(),
            RopeScaling::LongRope { short, .. } => short.clone(),
        }
    }

    /// The divisors of all frequencies under Llama 3.1's scaling; none under any other.
    pub(super) fn llama3_factors(&self) -> Vec<f32> {
        let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } = self.scaling
        else {
            return Vec::new();
        };
        let divisor =
            |index| self.llama3_factor(index, factor, low_freq_factor, high_freq_factor, original_max_positions) as f32;
        (0..self.rotary_dims / 2).map(divisor).collect()
    }

    /// Llama 3.1's scaling where the factors are those that llama.cpp's converter writes for it, otherwise
    /// transformers' `longrope` with the same divisors at every length and no attention factor.
    fn factors_json(&self, factors: &[f32], max_positions: usize) -> Value {
        const LOW: f64 = 1.0;
        const HIGH: f64 = 4.0;
        let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
        let same = |original: usize| {
            factors.iter().enumerate().all(|(index, found)| {
                let expected = self.llama3_factor(index, factor, LOW, HIGH, original);
                (f64::from(*found) - expected).abs() <= 1e-4 * expected
            })
        };
        // GGUF does not say the original length: 8192 in every published model, else another power of two.
        let lengths = std::iter::once(8192).chain((5..=20).map(|power| 1 << power));
        if let Some(original) = lengths.into_iter().find(|original| same(*original)) {
            return json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": LOW,
                "high_freq_factor": HIGH,
                "original_max_position_embeddings": original,
            });
        }
        json!({
            "rope_type": "longrope",
            "factor": 1.0,
            "attention_factor": 1.0,
            "short_factor": factors,
            "long_factor": factors,
            "original_max_position_embeddings": max_positions,
        })
    }

    /// The divisor of frequency `index` under Llama 3.1's scaling: 1 for short wavelengths, `factor` for long
    /// ones, `1 / ((1 - s) / factor + s)` between (llama.cpp `conversion/llama.py`).
    fn llama3_factor(&self, index: usize, factor: f64, low: f64, high: f64, original: usize) -> f64 {
        let frequency = self.theta.powf(-2.0 * index as f64 / self.rotary_dims as f64);
        let wavelength = std::f64::consts::TAU / frequency;
        let original = original as f64;
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    }
}

impl Fields<'_> {
    /// `rope_theta` with `rope_scaling`, or `rope_parameters` that hold both (transformers 5). Where a file has the two,
    /// and where it leaves something out, this is transformers 5's choice (`RotaryEmbeddingConfigMixin`).
    ///
    /// `default` has the base and the rotated dimensions of a file that gives neither. Where `may_be_partial` is false, a
    /// factor below 1 on the rotated dimensions is a problem.
    pub(in crate::model) fn rope(
        &mut self,
        default: RopeConfig,
        may_be_partial: bool,
        head_dim: usize,
        max_positions: usize,
    ) -> RopeConfig {
        let mut rotary_dims = self.partial_rotation(may_be_partial, head_dim);
        let mut theta = self.number("rope_theta");
        let original_beside = self.size("original_max_position_embeddings");
        let key = ["rope_scaling", "rope_parameters"].into_iter().find(|key| match self.value(key) {
            None => false,
            Some(Value::Object(parameters)) => !parameters.is_empty(),
            Some(_) => true,
        });
        let mut scaling = RopeScaling::None;
        match key.map(|key| (key, self.object(key))) {
            None => {}
            Some((key, None)) => self.problem(key, "is not an object"),
            Some((key, Some(object))) => {
                let place = format!("{}: {key}", self.place());
                let mut inner = Fields::new(&place, object);
                // Else the parameters of a layer type would be passed over, and every layer get the default ones.
                for (name, _) in object.iter().filter(|(_, value)| value.is_object()) {
                    inner.problem(name, "has parameters of its own; supported are the same ones for every layer");
                }
                rotary_dims = inner.partial_rotation(may_be_partial, head_dim).or(rotary_dims);
                theta = inner.number("rope_theta").or(theta);
                scaling = inner.rope_scaling(original_beside, max_positions);
                self.take_errors(inner);
            }
        }
        RopeConfig {
            theta: theta.unwrap_or(default.theta),
            scaling,
            rotary_dims: rotary_dims.unwrap_or(default.rotary_dims),
        }
    }

    /// The rotated dimensions by `partial_rotary_factor`; `None` where it is absent.
    fn partial_rotation(&mut self, may_be_partial: bool, head_dim: usize) -> Option<usize> {
        const FIELD: &str = "partial_rotary_factor";
        let share = self.number(FIELD)?;
        if !may_be_partial && share != 1.0 {
            self.problem(FIELD, format!("is {share}; supported is 1"));
            return Some(head_dim);
        }
        Some(self.rotary_dims(FIELD, share, head_dim))
    }

    /// The rotary embeddings of layers that see all positions and of layers with a sliding window: `rope_parameters` by
    /// layer type, or else `rope_theta` with `rope_scaling` for the first and `rope_local_base_freq` for the second
    /// (transformers, `Gemma3TextConfig.convert_rope_params_to_dict`). The defaults are unscaled.
    pub(in crate::model) fn rope_by_layer_type(
        &mut self,
        full: RopeConfig,
        sliding: RopeConfig,
        max_positions: usize,
    ) -> (RopeConfig, RopeConfig) {
        const FULL: &str = "full_attention";
        const SLIDING: &str = "sliding_attention";
        let by_type = self.object("rope_parameters");
        if by_type.is_none() && self.value("rope_parameters").is_some() {
            self.problem("rope_parameters", "is not an object");
        }
        let known = |name: &&String| [FULL, SLIDING].contains(&name.as_str());
        for name in by_type.into_iter().flat_map(|by_type| by_type.keys()).filter(|name| !known(name)) {
            let message = format!("has {name:?}; expected parameters by layer type, {FULL:?} and {SLIDING:?}");
            self.problem("rope_parameters", message);
        }
        let mut one = |kind: &str, beside: &str, default: RopeConfig| {
            let theta = self.number(beside).unwrap_or(default.theta);
            match by_type.and_then(|by_type| by_type.get(kind)) {
                None | Some(Value::Null) => RopeConfig { theta, ..default },
                Some(parameters) => {
                    let key = format!("rope_parameters.{kind}");
                    self.rope_object(&key, parameters, RopeConfig { theta, ..default }, max_positions)
                }
            }
        };
        let full = one(FULL, "rope_theta", full);
        let sliding = one(SLIDING, "rope_local_base_freq", sliding);
        match self.value("rope_scaling") {
            None => (full, sliding),
            Some(parameters) => (self.rope_object("rope_scaling", parameters, full, max_positions), sliding),
        }
    }

    /// The rotary embedding that one object describes; `default` has what it leaves out.
    fn rope_object(&mut self, key: &str, value: &Value, default: RopeConfig, max_positions: usize) -> RopeConfig {
        let Value::Object(object) = value else {
            self.problem(key, "is not an object");
            return default;
        };
        let place = format!("{}: {key}", self.place());
        let mut inner = Fields::new(&place, object);
        for (name, _) in object.iter().filter(|(_, value)| value.is_object()) {
            inner.problem(name, "is an object; expected the parameters themselves");
        }
        if let Some(share) = inner.number("partial_rotary_factor").filter(|share| *share != 1.0) {
            inner.problem("partial_rotary_factor", format!("is {share}; supported is 1"));
        }
        let theta = inner.number("rope_theta").unwrap_or(default.theta);
        let scaling = match inner.rope_scaling(None, max_positions) {
            RopeScaling::None => default.scaling,
            scaling => scaling,
        };
        self.take_errors(inner);
        RopeConfig { theta, scaling, ..default }
    }

    /// The rotated dimensions of a head, `int(head_dim * factor)` as in transformers.
    pub(in crate::model) fn rotary_dims(&mut self, field: &str, factor: f64, head_dim: usize) -> usize {
        if !(factor > 0.0 && factor <= 1.0) {
            self.problem(field, format!("is {factor}; expected above 0 and at most 1"));
            return head_dim;
        }
        (head_dim as f64 * factor) as usize
    }

    /// The scaling that an object of rope parameters asks for.
    fn rope_scaling(&mut self, original_beside: Option<usize>, max_positions: usize) -> RopeScaling {
        let kind = self.text("rope_type").or_else(|| self.text("type"));
        match kind.as_deref() {
            Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: self.required_number("factor") },
            Some("llama3") => RopeScaling::Llama3 {
                factor: self.required_number("factor"),
                low_freq_factor: self.required_number("low_freq_factor"),
                high_freq_factor: self.required_number("high_freq_factor"),
                original_max_positions: original_beside
                    .or_else(|| self.size("original_max_position_embeddings"))
                    .unwrap_or(max_positions),
            },
            // The form that `scaling_json` gives the factors of a GGUF file: the same at every length.
            Some("longrope") if self.same_factors_at_every_length() => {
                RopeScaling::Factors(self.floats("short_factor"))
            }
            Some("longrope") => self.longrope(original_beside, max_positions),
            Some(other) => {
                let message =
                    format!("is {other:?}; supported are \"default\", \"linear\", \"llama3\" and \"longrope\"");
                self.problem("rope_type", message);
                RopeScaling::None
            }
            None if self.value("factor").is_none() => RopeScaling::None,
            None => {
                self.problem("rope_type", "is missing, and there is a factor");
                RopeScaling::None
            }
        }
    }

    /// The two lists of divisors. An attention factor that is not given follows from the growth of the context.
    fn longrope(&mut self, original_beside: Option<usize>, max_positions: usize) -> RopeScaling {
        for field in ["short_factor", "long_factor"] {
            if self.value(field).is_none() {
                self.problem(field, "is missing");
            }
        }
        let original = self.size("original_max_position_embeddings");
        let original_max_positions = original_beside.or(original).unwrap_or(max_positions);
        let growth = self.number("factor").unwrap_or(max_positions as f64 / original_max_positions as f64);
        let attention_factor = self.number("attention_factor");
        RopeScaling::LongRope {
            short: self.floats("short_factor"),
            long: self.floats("long_factor"),
            original_max_positions,
            attention_factor: attention_factor.unwrap_or(longrope_attention_factor(growth, original_max_positions))
                as f32,
        }
    }

    fn same_factors_at_every_length(&self) -> bool {
        let attention = self.value("attention_factor").and_then(Value::as_f64);
        let short = self.value("short_factor");
        short.is_some() && short == self.value("long_factor") && attention == Some(1.0)
    }
}

/// LongRoPE's factor on cosines and sines for a context that has grown `growth`-fold: `sqrt(1 + ln growth / ln original)`
/// (Ding et al. 2024, section 3.4), 1 without growth.
fn longrope_attention_factor(growth: f64, original_max_positions: usize) -> f64 {
    if growth <= 1.0 { 1.0 } else { (1.0 + growth.ln() / (original_max_positions as f64).ln()).sqrt() }
}
