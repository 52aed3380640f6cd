//! The logits of a text, for `compare.py logits`: `cargo run --release --example logits -- BASE TEXT OUT [ADAPTER]`.
//!
//! BASE is a Hugging Face folder or a GGUF file, TEXT a file of which the first 256 tokens are taken; OUT gets `ids` `[256]`
//! and `logits` `[256, vocabulary]`, computed in f32.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use burnish::adapter::host::HostAdapter;
use burnish::files::safetensors::{self, TensorHeader};
use burnish::files::{Bytes, Dtype, FloatType};
use burnish::model::load::{Compute, LoadOptions, Quant};
use burnish::model::{BaseFiles, Decoder};
use burnish::text::Tokenizer;
use burnish::{Error, Result};

const TOKENS: usize = 256;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base, text, out, adapter @ ..] = arguments.as_slice() else {
        return Err(Error::input("arguments", "expected BASE TEXT OUT [ADAPTER]"));
    };
    let files = BaseFiles::open(Path::new(base))?;
    let text = std::fs::read_to_string(text).map_err(|error| Error::read(Path::new(text), &error))?;
    let mut ids = Tokenizer::of_base(&files)?.encode(&text)?;
    ids.truncate(TOKENS);
    let device = Device::flex();
    let options = LoadOptions { device: device.clone(), compute: Compute::F32, quant: Quant::None };
    let decoder = Decoder::load(&files, &options, |_, _| {})?;
    let adapter = match adapter.first() {
        Some(folder) => Some(HostAdapter::load_over(Path::new(folder), &files)?.attach(files.config(), &device)?),
        None => None,
    };
    let logits = decoder.logits(&ids, &[ids.len()], adapter.as_ref());
    let shape = logits.dims().to_vec();
    let values: Vec<f32> = logits.into_data().iter::<f32>().collect();
    let headers = [
        TensorHeader { name: "ids".to_owned(), dtype: Dtype::I64, shape: vec![ids.len()] },
        TensorHeader { name: "logits".to_owned(), dtype: Dtype::F32, shape },
    ];
    safetensors::write(Path::new(out), &BTreeMap::new(), &headers, |header| {
        Ok(Bytes::from(match header.dtype {
            Dtype::I64 => ids.iter().flat_map(|id| i64::from(*id).to_le_bytes()).collect(),
            _ => FloatType::F32.encode(&values),
        }))
    })
}
