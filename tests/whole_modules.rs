//! Tensors of the base that are trained as wholes, each alone beside an adapter, in bf16: their gradients are near those in f32, in
//! decoders of every family, in towers and in connectors. Kernels and plain tensor code meet elsewhere for each of them.

use std::path::Path;

use burn::tensor::{DType, Device};
use burnish::adapter::host::{HostAdapter, HostTensor};
use burnish::model::decoder::Recompute;
use burnish::model::load::{Compute, LoadOptions, Quant};
use burnish::model::vision::Vision;
use burnish::model::vision::features::is_feature;
use burnish::model::{BaseFiles, Batch, Decoder};
use burnish::nn::Noise;
use burnish::run::OpenBase;

use crate::model::{Expected, fixtures, load, relative_distance, turn};

/// The gradients of all trained matrices of the mean loss of a sequence.
fn gradients(decoder: &Decoder, ids: &[u32], adapter: &HostAdapter) -> Vec<Vec<f32>> {
    let trainable = adapter.attach(decoder.config(), &Device::flex().autodiff()).expect("fits");
    let trained = ids.iter().map(|id| !is_feature(*id)).collect();
    let batch = Batch { ids: ids.to_vec(), lengths: vec![ids.len()], trained };
    let mut weigh = |losses: &[f32]| vec![1.0 / losses.len() as f32; losses.len()];
    let mut result = decoder.loss_and_gradients(&batch, &trainable, Noise::default(), Recompute::None, &mut weigh);
    let of_matrices = trainable.matrices().map(|matrix| {
        let gradient = result.gradients.remove::<2>(matrix.id).expect("a gradient");
        assert_eq!(gradient.dtype(), DType::F32);
        gradient.into_data().iter::<f32>().collect()
    });
    of_matrices.collect()
}

/// Asserts that the gradients in bf16 are near those in f32, with each of the tensors `names` trained beside the adapter in `folder`.
fn assert_near(folder: &Path, names: &[String], base: &BaseFiles, [exact, rounded]: [&Decoder; 2], ids: &[u32]) {
    let adapter = HostAdapter::load_over(&folder.join("adapter"), base).expect("PEFT's adapter");
    for name in std::iter::once(None).chain(names.iter().map(Some)) {
        let mut adapter = adapter.clone();
        if let Some(name) = name {
            let tensor = base.tensor(name).expect("a tensor");
            let values = tensor.to_f32().expect("floats");
            adapter.whole.insert(name.clone(), HostTensor { shape: tensor.shape, values });
            // A module that is trained as a whole gets no pair.
            adapter.pairs.retain(|module, _| name.strip_prefix(module) != Some(".weight"));
        }
        let [wanted, found] = [exact, rounded].map(|decoder| gradients(decoder, ids, &adapter));
        let distance = relative_distance(&found.concat(), &wanted.concat());
        // Rounding alone makes a third in the worst of these models, whose logits are large.
        assert!(distance < 0.5, "{}: {name:?} trained: off by {distance}", folder.display());
    }
}

#[test]
fn a_tensor_of_a_decoder_trains_in_bf16_as_in_f32() {
    let _turn = turn();
    for folder in fixtures("families") {
        let base = BaseFiles::open(&folder).expect("a base");
        let whole = base.config().whole_tensors().into_keys();
        let is_in_file = |name: &String| base.tensor(name).is_ok();
        let names: Vec<String> = whole.filter(|name| !name.contains("layers.1.") && is_in_file(name)).collect();
        let [exact, rounded] = [Compute::F32, Compute::Bf16].map(|compute| load(&folder, compute));
        assert_near(&folder, &names, &base, [&exact, &rounded], &Expected::read(&folder).ids());
    }
}

#[test]
fn a_tensor_of_a_tower_or_a_connector_trains_in_bf16_as_in_f32() {
    let _turn = turn();
    for folder in fixtures("vision") {
        let base = OpenBase::open(folder.to_str().expect("UTF-8"), &mut |_| {}).expect("a base");
        let rows = burnish::data::read(folder.join("data.jsonl"), None).expect("rows");
        let ids = base.encoder.encode(&rows[0].example).expect("encoded").ids;
        let pictures = base.encoder.pictures().expect("a base that sees pictures");
        let [exact, rounded] = [Compute::F32, Compute::Bf16].map(|compute| {
            let decoder = load(&folder, compute);
            let options = LoadOptions { device: Device::flex(), compute, quant: Quant::None };
            let vision = Vision::load(&base.files, &options).expect("a tower");
            let tiles = pictures.met_from(0).into_iter().map(|picture| pictures.tiles(&picture).expect("a picture"));
            let tiles: Vec<_> = tiles.collect();
            for tiles in &tiles {
                decoder.features().add(vision.picture(&tiles.values, tiles.size));
            }
            decoder.features().keep(vision);
            for tiles in tiles {
                decoder.features().keep_tiles(tiles.values, tiles.size);
            }
            decoder
        });
        let config = base.files.config();
        let vision = config.vision.as_ref().expect("a tower");
        let names: Vec<String> = config.whole_tensors().into_keys().filter(|name| vision.owns(name)).collect();
        assert_near(&folder, &names, &base.files, [&exact, &rounded], &ids);
    }
}
