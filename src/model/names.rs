//! The one table of tensor names: Hugging Face's, GGUF's, and the shape each must have.

use super::config::ModelConfig;

/// A tensor that a model has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorName {
    /// `model.layers.3.self_attn.q_proj.weight`.
    pub hf: String,
    /// `blk.3.attn_q.weight`.
    pub gguf: String,
    /// Outermost dimension first, `[out, in]` for a projection.
    pub shape: Vec<usize>,
}

/// Names outside the layers: Hugging Face, GGUF.
const OUTER: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// Modules of a layer: Hugging Face, GGUF.
const LAYER: [(&str, &str); 9] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The embedding's name.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The final norm's name.
pub const FINAL_NORM: &str = "model.norm.weight";
/// The head's name; a tied model does not have it.
pub const HEAD: &str = "lm_head.weight";

/// The name of a parameter of a layer: `layer(3, "self_attn.q_proj", "weight")`.
pub fn layer(layer: usize, module: &str, parameter: &str) -> String {
    format!("model.layers.{layer}.{module}.{parameter}")
}

/// Whether it is the weight of a layer's projection, which is what quantisation applies to.
pub fn is_projection(name: &str) -> bool {
    name.ends_with("_proj.weight")
}

/// Every tensor of a model, embedding first, then layer by layer, then norm and head (not where it is tied).
pub fn tensors(config: &ModelConfig) -> Vec<TensorName> {
    let hidden = config.hidden_size;
    let mut tensors = vec![outer(0, vec![config.vocab_size, hidden])];
    for index in 0..config.layers {
        for (hf, gguf) in LAYER {
            let (shape, bias) = module_shape(config, hf);
            let out = shape[0];
            let named = |parameter: &str, shape| TensorName {
                hf: layer(index, hf, parameter),
                gguf: format!("blk.{index}.{gguf}.{parameter}"),
                shape,
            };
            tensors.push(named("weight", shape));
            if bias {
                tensors.push(named("bias", vec![out]));
            }
        }
    }
    tensors.push(outer(1, vec![hidden]));
    if !config.tied_head {
        tensors.push(outer(2, vec![config.vocab_size, hidden]));
    }
    tensors
}

fn outer(index: usize, shape: Vec<usize>) -> TensorName {
    let (hf, gguf) = OUTER[index];
    TensorName { hf: hf.to_owned(), gguf: gguf.to_owned(), shape }
}

/// Shape of a layer module's weight, and whether it has a bias.
fn module_shape(config: &ModelConfig, module: &str) -> (Vec<usize>, bool) {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (query, key_value) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    match module {
        "self_attn.q_proj" => (vec![query, hidden], config.qkv_bias),
        "self_attn.k_proj" | "self_attn.v_proj" => (vec![key_value, hidden], config.qkv_bias),
        "self_attn.o_proj" => (vec![hidden, query], config.o_bias),
        "mlp.gate_proj" | "mlp.up_proj" => (vec![inner, hidden], config.mlp_bias),
        "mlp.down_proj" => (vec![hidden, inner], config.mlp_bias),
        _ => (vec![hidden], false),
    }
}

/// GGUF's name of a Hugging Face tensor; `None` for one that is not in the table.
pub fn hf_to_gguf(name: &str) -> Option<String> {
    if let Some((_, gguf)) = OUTER.iter().find(|(hf, _)| *hf == name) {
        return Some((*gguf).to_owned());
    }
    let (index, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, parameter) = rest.rsplit_once('.')?;
    let (_, gguf) = LAYER.iter().find(|(hf, _)| *hf == module)?;
    Some(format!("blk.{}.{gguf}.{}", layer_number(index)?, known_parameter(parameter)?))
}

/// Hugging Face's name of a GGUF tensor; `None` for one that is not in the table.
pub fn gguf_to_hf(name: &str) -> Option<String> {
    if let Some((hf, _)) = OUTER.iter().find(|(_, gguf)| *gguf == name) {
        return Some((*hf).to_owned());
    }
    let (index, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (module, parameter) = rest.rsplit_once('.')?;
    let (hf, _) = LAYER.iter().find(|(_, gguf)| *gguf == module)?;
    Some(layer(layer_number(index)?, hf, known_parameter(parameter)?))
}

/// A layer number in its one spelling: `07` and `+7` are not layer 7.
fn layer_number(text: &str) -> Option<usize> {
    text.parse().ok().filter(|number: &usize| number.to_string() == text)
}

fn known_parameter(name: &str) -> Option<&str> {
    matches!(name, "weight" | "bias").then_some(name)
}

/// Whether a file may hold this tensor without the decoder using it: rotary tables that older transformers
/// saved, GGUF's frequency factors (part of the configuration).
pub fn is_known_extra(name: &str) -> bool {
    name.contains(".rotary_emb.") || name == "rope_freqs.weight"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::tests::tiny;

    #[test]
    fn every_name_maps_there_and_back() {
        let config = ModelConfig { qkv_bias: true, o_bias: true, mlp_bias: true, ..tiny() };
        let tensors = tensors(&config);
        assert_eq!(tensors.len(), 3 + 2 * (9 + 7));
        for tensor in tensors {
            assert_eq!(hf_to_gguf(&tensor.hf).as_deref(), Some(tensor.gguf.as_str()));
            assert_eq!(gguf_to_hf(&tensor.gguf).as_deref(), Some(tensor.hf.as_str()));
        }
    }

    #[test]
    fn odd_spellings_are_not_in_the_table() {
        for name in ["blk.01.attn_q.weight", "blk.+1.attn_q.weight", "blk.1.attn_q.scale", "blk.1.attn_z.weight", ""] {
            assert_eq!(gguf_to_hf(name), None, "{name}");
        }
    }
}
