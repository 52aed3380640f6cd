//! A look inside a decoder while it reads one sequence: the attention maps of a layer, and the logit lens.

use burn::tensor::{DType, Tensor};

use super::decoder::Decoder;
use crate::nn::{Adapter, Pass};
use crate::ops::attention::Geometry;

impl Decoder {
    /// The shape of the attention of layer `layer`, of which there must be one.
    pub fn geometry(&self, layer: usize) -> &Geometry {
        &self.layers[layer].geometry
    }

    /// The attention maps of layer `layer` (from 0) over the sequence `ids`: `[heads, tokens, tokens]` in f32, a row for each query. The layers
    /// below run as they always do; only this one is computed by plain tensor code. There must be such a layer.
    pub fn attention_maps(&self, ids: &[u32], layer: usize, adapter: Option<&Adapter>) -> Tensor<3> {
        let (pass, lengths) = (Pass { adapter, ..Pass::default() }, [ids.len()]);
        let x = self.embed(ids, &lengths, &pass);
        let x = self.layers[..layer].iter().fold(x, |x, layer| layer.forward(x, &lengths, &pass));
        self.layers[layer].attention_maps(x, &pass)
    }

    /// The logit lens (nostalgebraist 2020) over the sequence `ids`: the final norm and the head over the hidden states before the first layer
    /// (number 0) and after each one. `visit` gets each number and its logits, `[tokens, vocabulary]` in f32; the last are those of the
    /// model.
    pub fn logit_lens(&self, ids: &[u32], adapter: Option<&Adapter>, visit: &mut dyn FnMut(usize, Tensor<2>)) {
        let (pass, lengths) = (Pass { adapter, ..Pass::default() }, [ids.len()]);
        let mut x = self.embed(ids, &lengths, &pass);
        visit(0, self.head_logits(x.clone(), &pass).cast(DType::F32));
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x, &lengths, &pass);
            visit(index + 1, self.head_logits(x.clone(), &pass).cast(DType::F32));
        }
    }
}
