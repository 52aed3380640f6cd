//! A look inside a model while it reads one prompt, base against adapter: the attention maps of a layer, and the logit lens.

use std::fmt;

use burn::tensor::Tensor;
use serde::Serialize;

use super::answer::PromptForm;
use super::model::LoadedModel;
use crate::error::{Error, Place, Result, counted, printable};
use crate::nn::Adapter;
use crate::text::{Tokenizer, token_texts};

/// The most tokens of a prompt: a map has the square of their number for each head.
const MAX_TOKENS: usize = 128;
/// The tokens that the lens names at each place.
const TOP: usize = 5;
/// Weights and probabilities are rounded to so many steps of 1.
const STEPS: f64 = 1e5;

/// The question about a prompt.
#[derive(Debug, Clone)]
pub struct InsideOptions {
    /// The prompt.
    pub prompt: String,
    /// It is taken as typed, without the chat template.
    pub raw: bool,
    /// The layer whose attention is asked for, from 0.
    pub layer: usize,
    /// Whether the likeliest tokens after every layer are asked for.
    pub lens: bool,
}

/// The inside of a model while it reads one prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inside {
    /// The name of the base.
    pub base: String,
    /// The prompt.
    pub prompt: String,
    /// The text of each token.
    pub tokens: Vec<String>,
    /// The layer of the maps, from 0.
    pub layer: usize,
    /// The layers of the model.
    pub layers: usize,
    /// Query heads of the layer.
    pub heads: usize,
    /// Its key and value heads.
    pub kv_heads: usize,
    /// The positions that a query of this layer sees; none where it sees all before it.
    pub window: Option<usize>,
    /// The base, and the base with the adapter where there is one.
    pub systems: Vec<System>,
}

/// A model that is looked into.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct System {
    /// `base` or `adapter`.
    pub name: &'static str,
    /// Of each head, a row for each query with the weight of each key up to it; rows sum to 1.
    pub maps: Vec<Vec<Vec<f64>>>,
    /// Before the first layer and after each, at each position: the likeliest next tokens by the final norm and the head. None where the
    /// lens was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lens: Option<Vec<Vec<Vec<Likely>>>>,
}

/// A token with its probability.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Likely {
    /// Its text.
    pub token: String,
    /// Its probability.
    pub probability: f64,
}

/// Looks into `model` while it reads a prompt.
///
/// # Errors
/// Input: a layer that the model does not have; a prompt without tokens or with too many; what template and tokenizer say.
pub fn look_inside(model: &LoadedModel, options: &InsideOptions) -> Result<Inside> {
    let LoadedModel { base, decoder, attached, .. } = model;
    let config = decoder.config();
    if options.layer >= config.layers {
        let message = format!("is {}; the model has the layers 0 to {}", options.layer, config.layers - 1);
        return Err(Error::input(Place::argument("--layer"), message));
    }
    let form = form(model, options)?;
    let ids = form.encode(&base.encoder, &options.prompt).map_err(|error| error.within("--attention"))?;
    let most = MAX_TOKENS.min(config.max_positions);
    if ids.is_empty() || ids.len() > most {
        let message = format!("has {}; 1 to {most} can be shown", counted(ids.len(), "token"));
        return Err(Error::input(Place::argument("--attention"), message)
            .hint("the chat template's tokens count; `--raw` takes the prompt without it"));
    }
    let tokenizer = base.encoder.tokenizer();
    let adapters = std::iter::once(("base", None)).chain(attached.as_ref().map(|adapter| ("adapter", Some(adapter))));
    let systems = adapters.map(|(name, adapter): (&'static str, Option<&Adapter>)| {
        let maps = rows_of_maps(decoder.attention_maps(&ids, options.layer, adapter));
        let lens = options.lens.then(|| {
            let mut lens = Vec::with_capacity(config.layers + 1);
            decoder.logit_lens(&ids, adapter, &mut |_, logits| lens.push(likeliest(tokenizer, logits)));
            lens
        });
        System { name, maps, lens }
    });
    let systems: Vec<System> = systems.collect();
    let geometry = decoder.geometry(options.layer);
    Ok(Inside {
        base: base.name.clone(),
        prompt: options.prompt.clone(),
        tokens: token_texts(tokenizer, &ids),
        layer: options.layer,
        layers: config.layers,
        heads: geometry.heads,
        kv_heads: geometry.kv_heads,
        window: geometry.window,
        systems,
    })
}

/// The form of the prompt: as typed, or else that of the adapter's training, or else a conversation where there is a chat template.
fn form(model: &LoadedModel, options: &InsideOptions) -> Result<PromptForm> {
    if options.raw {
        return Ok(PromptForm::Typed);
    }
    let format = model.adapter.as_ref().map(|adapter| adapter.data_format()).transpose()?.flatten();
    Ok(match format {
        Some(format) => PromptForm::of(format),
        None if model.base.encoder.has_template() => PromptForm::Conversation,
        None => PromptForm::Bare,
    })
}

/// The rows of maps `[heads, tokens, tokens]` up to the query, rounded.
fn rows_of_maps(maps: Tensor<3>) -> Vec<Vec<Vec<f64>>> {
    let tokens = maps.dims()[2];
    let values: Vec<f32> = maps.into_data().iter::<f32>().collect();
    let row = |(query, row): (usize, &[f32])| row[..=query].iter().map(|weight| rounded(f64::from(*weight))).collect();
    values.chunks(tokens * tokens).map(|map| map.chunks(tokens).enumerate().map(row).collect()).collect()
}

fn rounded(value: f64) -> f64 {
    (value * STEPS).round() / STEPS
}

/// The likeliest tokens of each row of logits `[tokens, vocabulary]`.
fn likeliest(tokenizer: &Tokenizer, logits: Tensor<2>) -> Vec<Vec<Likely>> {
    let vocabulary = logits.dims()[1];
    let values: Vec<f32> = logits.into_data().iter::<f32>().collect();
    let of_row = |row: &[f32]| {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|logit| f64::from(logit - most).exp()).sum();
        let mut order: Vec<usize> = (0..row.len()).collect();
        let by_logit = |a: &usize, b: &usize| row[*b].total_cmp(&row[*a]).then(a.cmp(b));
        let count = TOP.min(order.len());
        if count < order.len() {
            order.select_nth_unstable_by(count, by_logit);
        }
        order.truncate(count);
        order.sort_by(by_logit);
        let likely = |id: usize| Likely {
            token: token_texts(tokenizer, &[id as u32]).concat(),
            probability: rounded(f64::from(row[id] - most).exp() / sum),
        };
        order.into_iter().map(likely).collect()
    };
    values.chunks(vocabulary).map(of_row).collect()
}

/// The part of the page that a terminal can show: the strongest key of the last token in each head.
impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "layer {} of {}, {}, {}",
            self.layer,
            self.layers,
            counted(self.heads, "head"),
            counted(self.tokens.len(), "token")
        )?;
        for head in 0..self.heads {
            write!(f, "\n  head {head}: the last token looks")?;
            for (index, system) in self.systems.iter().enumerate() {
                let Some(row) = system.maps[head].last() else { continue };
                let strongest = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or_default();
                let token = printable(&self.tokens[strongest]).escape_debug().to_string();
                let then = if index == 0 { "" } else { ", with the adapter" };
                write!(f, "{then} at {strongest} \"{token}\" ({:.1}%)", 100.0 * row[strongest])?;
            }
        }
        Ok(())
    }
}
