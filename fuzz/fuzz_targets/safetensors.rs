//! Any bytes as a safetensors file: opened, every tensor decoded, every weight read as bitsandbytes would have it.

#![no_main]

use burnish::files::Bytes;
use burnish::files::bitsandbytes::{Storage, read_int8, read_nf4, storage};
use burnish::files::safetensors::SafeTensorsFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(file) = SafeTensorsFile::from_bytes("fuzz", Bytes::from(data.to_vec())) else { return };
    for name in file.names() {
        match storage(&file, name) {
            Storage::Dense => {
                if let Ok(tensor) = file.tensor(name) {
                    let values = tensor.to_f32().expect("an opened file's tensors fit their shapes");
                    assert_eq!(values.len(), tensor.elements());
                    let _ = tensor.check_finite(name);
                }
            }
            Storage::FourBit => {
                if let Ok(weight) = read_nf4(&file, name) {
                    assert_eq!(weight.to_f32().len(), weight.elements());
                }
            }
            Storage::EightBit => {
                if let Ok(weight) = read_int8(&file, name) {
                    assert_eq!(weight.to_f32().len(), weight.elements());
                }
            }
        }
    }
});
