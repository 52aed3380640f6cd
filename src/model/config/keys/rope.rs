//! The scaling of rotary embedding in GGUF: keys and tensors.

use super::{Direction, Keys};
use crate::files::gguf::{Gguf, Value};
use crate::model::config::{RopeConfig, RopeScaling};

/// Divisors of all frequencies.
const FREQUENCIES: &str = "rope_freqs.weight";
/// LongRoPE's two lists of divisors.
const SHORT: &str = "rope_factors_short.weight";
const LONG: &str = "rope_factors_long.weight";
/// The architectures whose divisors llama.cpp loads (`src/models/*.cpp`: `LLM_TENSOR_ROPE_FREQS`, `…_FACTORS_LONG`).
const WITH_FREQUENCIES: [&str; 2] = ["llama", "granite"];
const WITH_LONGROPE: [&str; 3] = ["llama", "granite", "phi3"];

impl Keys<'_> {
    /// The change of the frequencies.
    pub(super) fn rope_scaling(&mut self, rope: &mut RopeConfig) {
        match self.file() {
            Some(gguf) => rope.scaling = self.read_scaling(gguf),
            None => self.write_scaling(rope),
        }
    }

    fn write_scaling(&mut self, rope: &RopeConfig) {
        match &rope.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => {
                self.write("rope.scaling.type", Value::String("linear".to_owned()));
                self.write("rope.scaling.factor", Value::F32(*factor as f32));
            }
            RopeScaling::Llama3 { .. } => {
                self.write_divisors(&WITH_FREQUENCIES, &[(FREQUENCIES, &rope.llama3_factors())])
            }
            RopeScaling::Factors(factors) => self.write_divisors(&WITH_FREQUENCIES, &[(FREQUENCIES, factors)]),
            RopeScaling::LongRope { short, long, original_max_positions, attention_factor } => {
                self.write_size("rope.scaling.original_context_length", *original_max_positions);
                self.write("rope.scaling.attn_factor", Value::F32(*attention_factor));
                self.write_divisors(&WITH_LONGROPE, &[(LONG, long), (SHORT, short)]);
            }
        }
    }

    fn write_divisors(&mut self, architectures: &[&str], lists: &[(&str, &[f32])]) {
        if !architectures.contains(&self.architecture) {
            let message = format!(
                "needs divisors of each frequency, which llama.cpp loads for {} only, not for {}",
                architectures.join(", "),
                self.architecture
            );
            return self.problem("rope_scaling", message);
        }
        if let Direction::Write(new) = &mut self.direction {
            new.tensors.extend(lists.iter().map(|(name, values)| ((*name).to_owned(), values.to_vec())));
        }
    }

    fn read_scaling(&mut self, gguf: &Gguf) -> RopeScaling {
        if gguf.has(FREQUENCIES) {
            return match gguf.tensor(FREQUENCIES).and_then(|tensor| tensor.to_f32()) {
                Ok(factors) => RopeScaling::Factors(factors),
                Err(error) => {
                    self.errors.push(error);
                    RopeScaling::None
                }
            };
        }
        if let Some(scaling) = self.read_longrope(gguf) {
            return scaling;
        }
        let key = self.key("rope.scaling.type");
        let kind = gguf.get(&key).map(|value| value.as_str().unwrap_or("(not a string)").to_owned());
        match kind.as_deref() {
            Some("linear") => RopeScaling::Linear { factor: self.read_number("rope.scaling.factor").unwrap_or(1.0) },
            // Files from before `rope.scaling.*` have the factor alone.
            None => match self.read_number("rope.scale_linear") {
                Some(factor) if factor != 1.0 => RopeScaling::Linear { factor },
                _ => RopeScaling::None,
            },
            Some("none") => RopeScaling::None,
            Some(other) => {
                self.problem(&key, format!("is {other:?}; supported are \"none\" and \"linear\""));
                RopeScaling::None
            }
        }
    }

    /// LongRoPE's two lists of divisors, which are tensors here; `None` for a file without them.
    fn read_longrope(&mut self, gguf: &Gguf) -> Option<RopeScaling> {
        const LISTS: [&str; 2] = [SHORT, LONG];
        if !LISTS.iter().any(|name| gguf.has(name)) {
            return None;
        }
        let lists = LISTS.map(|name| gguf.tensor(name).and_then(|tensor| tensor.to_f32()));
        let [short, long] = lists.map(|list| {
            list.unwrap_or_else(|error| {
                self.errors.push(error);
                Vec::new()
            })
        });
        let mut original_max_positions = 0;
        self.required("rope.scaling.original_context_length", &mut original_max_positions);
        Some(RopeScaling::LongRope {
            short,
            long,
            original_max_positions,
            attention_factor: self.read_number("rope.scaling.attn_factor").unwrap_or(1.0) as f32,
        })
    }
}
