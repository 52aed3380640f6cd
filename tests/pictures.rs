//! Pictures as files: what image processors make of them against transformers, and hostile ones
//! (fixtures/pictures, tests/reference/make_pictures.py).

use std::fs;
use std::path::{Path, PathBuf};

use burnish::data;
use burnish::data::images::decode::{Rgb, decode};
use burnish::data::images::{ImageProcessor, Tiles};
use burnish::files::hex;
use serde_json::{Value, json};

use crate::hostile_weights::{fixture, refused};

fn picture(name: &str) -> Vec<u8> {
    fs::read(fixture("pictures").join(name)).expect("a fixture")
}

fn processor(name: &str) -> ImageProcessor {
    ImageProcessor::read(&fixture("pictures/processors").join(name)).expect("settings")
}

fn sha256(tiles: &Tiles) -> String {
    let bytes: Vec<u8> = tiles.values.iter().flat_map(|value| value.to_le_bytes()).collect();
    hex::sha256_of(&bytes)
}

#[test]
fn tensors_are_those_of_transformers_bit_for_bit() {
    let expected: Value = serde_json::from_slice(&picture("expected.json")).expect("JSON");
    let mut compared = 0;
    for (kind, pictures) in expected.as_object().expect("an object") {
        let processor = processor(kind);
        for (name, wanted) in pictures.as_object().expect("an object") {
            // Decoders of JPEG differ by a few levels: there the tensor is that of Pillow's pixels.
            let file = if name.ends_with(".jpg") { format!("{name}.png") } else { name.clone() };
            let pixels = decode(&picture(&file)).expect("a picture");
            let tiles = processor.tiles(&pixels);
            let [height, width] = tiles.size;
            let count = tiles.values.len() / (3 * height * width);
            assert_eq!(json!([count, 3, height, width]), wanted["shape"], "{kind}: {name}");
            assert_eq!(json!(tiles.grid), wanted["grid"], "{kind}: {name}");
            assert_eq!(processor.grid(pixels.width, pixels.height), tiles.grid, "{kind}: {name}");
            assert_eq!(json!(sha256(&tiles)), wanted["sha256"], "{kind}: {name}");
            compared += 1;
        }
    }
    assert_eq!(compared, 5 * 42);
}

/// libjpeg-turbo and zune-jpeg round differently, and fill in colours of halved resolution differently.
#[test]
fn jpegs_are_within_a_few_levels_of_pillow() {
    for (name, most, mean) in [
        ("exif_6.jpg", 3, 0.5),
        ("grey.jpg", 3, 0.5),
        ("halved.jpg", 24, 1.5),
        ("progressive.jpg", 24, 1.5),
        ("rough.jpg", 24, 2.0),
    ] {
        let [ours, theirs] =
            [name.to_owned(), format!("{name}.png")].map(|name| decode(&picture(&name)).expect("a picture"));
        assert_eq!((ours.width, ours.height), (theirs.width, theirs.height), "{name}");
        let differences: Vec<u8> = ours.values.iter().zip(&theirs.values).map(|(a, b)| a.abs_diff(*b)).collect();
        let largest = differences.iter().max().copied().unwrap_or(0);
        let average = differences.iter().map(|value| f64::from(*value)).sum::<f64>() / differences.len() as f64;
        assert!(largest <= most && average <= mean, "{name}: {largest} at most, {average:.2} on average");
    }
}

/// A PNG chunk.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(kind);
    crc.update(data);
    [&(data.len() as u32).to_be_bytes()[..], kind, data, &crc.sum().to_be_bytes()].concat()
}

/// A PNG file of this width and height, with these bytes as its compressed rows.
pub fn png(width: u32, height: u32, rows: &[u8]) -> Vec<u8> {
    let head = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &head), &chunk(b"IDAT", rows), &chunk(b"IEND", &[])].concat()
}

#[test]
fn hostile_pictures_are_named_errors() {
    let sound = picture("size_31x33.png");
    let bomb = png(60_000, 60_000, &[0x78, 0x9c, 0x01]);
    refused("a bomb", &["60000 × 60000 pixels", "at most"], || decode(&bomb));
    refused("a long side", &["at most 65535"], || decode(&png(66_000, 1, &[0x78, 0x9c, 0x01])));
    refused("nothing in it", &["0 × 5 pixels"], || decode(&png(0, 5, &[])));
    refused("a lying header", &["cannot be decoded"], || decode(&png(5000, 4000, &[0x78, 0x9c, 0x01])));
    for length in [0, 7, 8, 20, 33, 60, sound.len() / 2, sound.len() - 14] {
        refused("cut", &[], || decode(&sound[..length]));
    }
    let jpeg = picture("rough.jpg");
    for length in [3, 20, 200, jpeg.len() / 2] {
        refused("cut", &[], || decode(&jpeg[..length]));
    }
    for (what, bytes) in [("a GIF", &b"GIF89a\x01\x00\x01\x00"[..]), ("a text", b"hello"), ("nothing", b"")] {
        refused(what, &["PNG or JPEG"], || decode(bytes));
    }
    // Any changed byte gives a picture or an error, and never ends the program.
    for at in 0..sound.len() {
        let mut changed = sound.clone();
        changed[at] ^= 0x55;
        let _ = decode(&changed);
    }
    for at in 0..jpeg.len() {
        let mut changed = jpeg.clone();
        changed[at] = changed[at].wrapping_add(0x55);
        let _ = decode(&changed);
    }
}

#[test]
fn a_picture_that_grows_too_large_on_the_way_is_refused() {
    let line = Rgb { width: 60_000, height: 1, values: vec![0; 180_000] };
    assert!(processor("clip").refusal(line.width, line.height).is_none());
    let settings = json!({"image_processor_type": "LlavaImageProcessor", "do_pad": true});
    let padded = ImageProcessor::of("settings", settings.as_object().expect("an object")).expect("settings");
    assert!(padded.refusal(line.width, line.height).expect("refused").contains("3600000000 pixels"));
    let settings = json!({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 336}});
    let large = ImageProcessor::of("settings", settings.as_object().expect("an object")).expect("settings");
    assert!(large.refusal(line.width, line.height).is_some());
}

#[test]
fn settings_that_make_no_sense_are_all_named() {
    let of = |settings: Value| ImageProcessor::of("p.json", settings.as_object().expect("an object"));
    refused("another processor", &["p.json: image_processor_type", "\"ViltImageProcessor\""], || {
        of(json!({"image_processor_type": "ViltImageProcessor"}))
    });
    let wrong = json!({
        "image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 0}, "max_image_size": 3,
        "resample": 5, "image_mean": [1, 2], "image_std": [0.5, 0, 0.5],
    });
    let parts = ["p.json: size", "max_image_size", "resample", "image_mean", "image_std"];
    refused("five settings", &parts, || of(wrong));
    let huge = json!({"image_processor_type": "SiglipImageProcessor", "size": {"height": 1e9, "width": 9999}});
    refused("a huge size", &["p.json: size"], || of(huge));
    let folder = tempfile::tempdir().expect("a folder");
    refused("none", &["preprocessor_config.json"], || ImageProcessor::read(folder.path()));
}

/// A data file in `folder` whose only picture has this path.
fn data_file(folder: &Path, path: &str) -> PathBuf {
    let content = json!([{"type": "image", "path": path}, {"type": "text", "text": "What is it?"}]);
    let row = json!({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}]});
    let file = folder.join("data.jsonl");
    fs::write(&file, format!("{row}\n")).expect("written");
    file
}

#[test]
fn paths_stay_within_the_folder_of_the_data() {
    let outer = tempfile::tempdir().expect("a folder");
    let folder = outer.path().join("data");
    fs::create_dir_all(folder.join("inner")).expect("made");
    fs::write(outer.path().join("secret.png"), picture("black.png")).expect("written");
    fs::write(folder.join("inner/a.png"), picture("black.png")).expect("written");
    let read = |path: &str| data::read(data_file(&folder, path), None);
    assert!(read("inner/a.png").is_ok() && read("./inner/a.png").is_ok());
    let absolute = outer.path().join("secret.png").display().to_string();
    for path in ["../secret.png", "inner/../../secret.png", &absolute] {
        refused(path, &["data.jsonl:1", "leads out of the folder"], || read(path));
    }
    for path in ["https://example.org/a.png", "file:///etc/passwd", "data:image/png;base64,AAAA"] {
        refused(path, &["data.jsonl:1", "nothing is fetched"], || read(path));
    }
    refused("absent", &["data.jsonl:1", "cannot be read"], || read("absent.png"));
    refused("a folder", &["data.jsonl:1", "is a folder"], || read("inner"));
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(outer.path().join("secret.png"), folder.join("link.png")).expect("a link");
        std::os::unix::fs::symlink(outer.path(), folder.join("out")).expect("a link");
        std::os::unix::fs::symlink(folder.join("inner/a.png"), folder.join("within.png")).expect("a link");
        for path in ["link.png", "out/secret.png"] {
            refused(path, &["data.jsonl:1", "leads out of the folder"], || read(path));
        }
        assert!(read("within.png").is_ok());
    }
}

#[test]
fn parts_of_pictures_are_checked_where_they_are_read() {
    let parse = |content: Value, role: &str| {
        let row = json!({"messages": [{"role": role, "content": content}, {"role": "assistant", "content": "A"}]});
        data::jsonl::parse(row.to_string().as_bytes(), "d.jsonl", None)
    };
    for part in [
        json!({"type": "image"}),
        json!({"type": "image", "url": "http://a/b.png"}),
        json!({"type": "image", "path": 3}),
    ] {
        refused("no path", &["d.jsonl:1", "`content[0]` is a picture without a `path`"], || {
            parse(json!([part]), "user")
        });
    }
    let picture = json!([{"type": "image", "path": "a.png"}]);
    refused("an answer", &["d.jsonl:1", "in a turn of the assistant"], || parse(picture, "assistant"));
    // A message that comes from elsewhere than a data file cannot make the program read files.
    let message = json!({"role": "user", "content": [{"type": "image", "path": "/etc/passwd"}]});
    let Value::Object(message) = message else { unreachable!("an object") };
    assert!(data::read::message_of(message).expect_err("refused").contains("those of data files"));
}

#[test]
fn another_picture_makes_another_data_set() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = data_file(folder.path(), "a.png");
    let hash = |name: &str| {
        fs::write(folder.path().join("a.png"), picture(name)).expect("written");
        data::DataSet::read(&data::Paths::from(&*file), &data::Shape::with_columns(None)).expect("rows").sha256()
    };
    let first = hash("black.png");
    assert_ne!(hash("white.png"), first);
    assert_eq!(hash("black.png"), first);
}
