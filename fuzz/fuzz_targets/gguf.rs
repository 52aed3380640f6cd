//! Any bytes as a GGUF file: opened, every tensor decoded, a configuration made of its metadata.

#![no_main]

use burnish::files::Bytes;
use burnish::files::gguf::Gguf;
use burnish::model::ModelConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = Gguf::from_bytes("fuzz", Bytes::from(data.to_vec())) else { return };
    for name in gguf.names() {
        let tensor = gguf.tensor(name).expect("an opened file holds its tensors");
        let values = tensor.to_f32().expect("an opened file's tensors fit their shapes");
        assert_eq!(values.len(), tensor.elements());
        let _ = tensor.check_finite(name);
    }
    if let Ok(config) = ModelConfig::from_gguf(&gguf) {
        let _ = config.parameters();
    }
});
