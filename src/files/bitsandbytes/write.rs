//! Packed weights as the tensors of a checkpoint that transformers and bitsandbytes load.

use serde_json::{Value, json};

use super::{Int8Tensor, NF4_STATE, Nf4Scales, Nf4Tensor, row_scales_name};
use crate::files::safetensors::TensorHeader;
use crate::files::{Bytes, Dtype};
use crate::quant::{float, nf4};

/// One of the tensors that a packed weight is stored as.
#[derive(Debug, Clone)]
pub struct Part {
    /// Name, type and shape in the file.
    pub header: TensorHeader,
    /// The values in their stored form.
    pub bytes: Bytes,
}

fn part(name: String, dtype: Dtype, shape: &[usize], bytes: impl Into<Bytes>) -> Part {
    Part { header: TensorHeader { name, dtype, shape: shape.to_vec() }, bytes: bytes.into() }
}

fn floats(name: String, values: &[f32]) -> Part {
    part(name, Dtype::F32, &[values.len()], float::encode_f32(values))
}

impl Nf4Tensor {
    /// The tensors of the weight `weight`, codes first. `dtype` is PyTorch's name of the type it decodes to.
    pub fn parts(&self, weight: &str, dtype: &str) -> Vec<Part> {
        let mut state = json!({ "quant_type": "nf4", "blocksize": self.block, "dtype": dtype, "shape": self.shape });
        let mut parts = vec![
            part(weight.to_owned(), Dtype::U8, &[self.packed.len(), 1], self.packed.clone()),
            floats(format!("{weight}.quant_map"), &nf4::CODE),
        ];
        match &self.scales {
            Nf4Scales::Single(scales) => parts.push(floats(format!("{weight}.absmax"), scales)),
            Nf4Scales::Nested { codes, absmax, block, offset, map } => {
                parts.push(part(format!("{weight}.absmax"), Dtype::U8, &[codes.len()], codes.clone()));
                parts.push(floats(format!("{weight}.nested_absmax"), absmax));
                parts.push(floats(format!("{weight}.nested_quant_map"), &map[..]));
                state["nested_blocksize"] = Value::from(*block);
                state["nested_dtype"] = Value::from("float32");
                state["nested_offset"] = Value::from(*offset);
            }
        }
        let state = state.to_string().into_bytes();
        parts.push(part(format!("{weight}{NF4_STATE}"), Dtype::U8, &[state.len()], state));
        parts
    }
}

impl Int8Tensor {
    /// The tensors of the weight `weight`, codes first.
    pub fn parts(&self, weight: &str) -> Vec<Part> {
        // 0 stands for row-major, the only layout there is.
        let format = weight.strip_suffix("weight").map(|module| format!("{module}weight_format"));
        let mut parts = vec![part(weight.to_owned(), Dtype::I8, &self.shape, self.codes.clone())];
        parts.extend(row_scales_name(weight).map(|name| floats(name, &self.row_absmax)));
        parts.extend(format.map(|name| part(name, Dtype::U8, &[], vec![0])));
        parts
    }
}

/// `quantization_config` of `config.json` (transformers' `BitsAndBytesConfig`): NF4 with or without nested scales, or
/// int8 where `nf4_double` is `None`.
pub fn quantization_config(nf4_double: Option<bool>, compute_dtype: &str) -> Value {
    let four_bit = nf4_double.is_some();
    json!({
        "quant_method": "bitsandbytes",
        "load_in_4bit": four_bit,
        "load_in_8bit": !four_bit,
        "_load_in_4bit": four_bit,
        "_load_in_8bit": !four_bit,
        "bnb_4bit_compute_dtype": compute_dtype,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": nf4_double.unwrap_or(false),
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": null,
        "llm_int8_threshold": 6.0,
    })
}
