//! Where the examples come from: files, folders, patterns and lists, packed or not, with mapped columns and weights.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use burnish::data::{self, Columns, DataSet, DataSettings, Example, Paths, Row, Shape, jsonl};
use burnish::recipe::Recipe;
use tempfile::TempDir;

/// A file of one conversation.
const CHAT: &str =
    "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}";

fn text(letter: &str) -> String {
    format!("{{\"text\": \"{letter}\"}}\n")
}

/// A folder with these files.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, bytes).expect("written");
    }
    folder
}

fn texts(rows: &[Row]) -> String {
    let text = |row: &Row| match &row.example {
        Example::Text { text } => text.clone(),
        other => panic!("{other:?}"),
    };
    rows.iter().map(text).collect()
}

fn read(paths: impl Into<Paths>) -> burnish::Result<String> {
    data::read(paths, None).map(|rows| texts(&rows))
}

/// The data settings of a recipe with these lines.
fn settings(lines: &str) -> DataSettings {
    let text = format!("[base]\nmodel = \"m.gguf\"\n[output]\ndir = \"out\"\n[data]\n{lines}\n");
    Recipe::parse(&text, "r.toml", &[]).and_then(|recipe| recipe.settings()).expect("valid").data
}

#[test]
fn folders_patterns_and_lists_are_read_in_order() {
    let folder = folder(&[
        ("b.jsonl", text("b").as_bytes()),
        ("a.json", b"[{\"text\": \"a\"}]"),
        ("c.ndjson", text("c").as_bytes()),
        ("README.md", b"# Data"),
        (".hidden.jsonl", b"broken"),
        ("deeper/d.jsonl", text("d").as_bytes()),
    ]);
    let at = |name: &str| folder.path().join(name);
    assert_eq!(read(folder.path()).expect("a folder"), "abc");
    assert_eq!(read(at("*.jsonl")).expect("a pattern"), "b");
    assert_eq!(read(at("**/*.jsonl")).expect("a pattern"), "bd");
    let list = format!("train = [{:?}, {:?}]", at("deeper"), at("a.*"));
    let set = settings(&list).read_train().expect("a list");
    assert_eq!(texts(&set.rows), "da");
    assert!(set.rows[1].position.to_string().ends_with("a.json:1"), "{}", set.rows[1].position);
    // A name with brackets that exists is no pattern.
    fs::write(at("[x].jsonl"), text("x")).expect("written");
    assert_eq!(read(at("[x].jsonl")).expect("a file"), "x");
    // The checksum covers all files in their order, and not their names.
    let sum = |names: &[&str]| {
        let paths: Vec<PathBuf> = names.iter().map(|name| at(name)).collect();
        settings(&format!("train = {paths:?}")).read_train().expect("reads").sha256()
    };
    let (ab, ba) = (sum(&["a.json", "b.jsonl"]), sum(&["b.jsonl", "a.json"]));
    fs::rename(at("a.json"), at("z.json")).expect("renamed");
    assert!(ab != ba && ab == sum(&["z.json", "b.jsonl"]));
    assert_eq!(sum(&["b.jsonl"]), burnish::files::hex::sha256_of_file(&at("b.jsonl")).expect("readable"));
}

#[test]
fn names_that_lead_to_no_data_say_why() {
    let folder = folder(&[
        ("splits/train-0.jsonl", text("a").as_bytes()),
        ("splits/test-0.jsonl", text("b").as_bytes()),
        ("saved/data-00000-of-00001.arrow", b"ARROW1"),
        ("saved/dataset_info.json", b"{}"),
        ("notes/README.md", b""),
    ]);
    let at = |name: &str| folder.path().join(name);
    for (name, expected, hint) in [
        ("splits", "holds files of several splits, `test` and `train`", "/*test*`"),
        ("saved", "Arrow files, as `save_to_disk`", "to_parquet"),
        ("notes", "holds no data file; expected names that end with .jsonl,", "**/*.jsonl"),
        ("notes/*.jsonl", "matches no file", ""),
        ("a[.jsonl", "is no pattern", ""),
        ("absent.jsonl", "cannot be read", ""),
        ("hf:org/set", "cannot be read", ""),
    ] {
        let error = read(at(name)).expect_err(name);
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(expected) && error.to_string().contains(hint), "{name}: {error}");
    }
    let hub = read("hf:org/set").expect_err("no file").to_string();
    assert!(hub.contains("data set of the Hugging Face hub") && hub.contains("--repo-type dataset org/set"), "{hub}");
    let twice = settings(&format!("train = [{0:?}, {0:?}]", at("splits/*train*")));
    let error = twice.read_train().expect_err("twice").to_string();
    assert!(error.contains("train-0.jsonl: is named twice") && error.contains("weight"), "{error}");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(bytes).expect("packed");
    packed.finish().expect("packed")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

#[test]
fn packed_files_are_read_like_plain_ones() {
    let (one, two) = (text("a"), text("b"));
    // Several members or frames one after the other, and frames that readers skip.
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd(one.as_bytes())].concat();
    let folder = folder(&[
        ("a.jsonl.gz", &[gzip(one.as_bytes()), gzip(two.as_bytes())].concat()),
        ("b.jsonl.zst", &[skipped, zstd(two.as_bytes())].concat()),
        ("c.json.gz", &gzip(b"[{\"text\": \"c\"}]")),
        ("d.jsonl.gz", one.as_bytes()),
    ]);
    assert_eq!(read(folder.path()).expect("reads"), "ababca");
    // A checksum is that of the bytes on the disk.
    let set = DataSet::read(&folder.path().join("c.json.gz").into(), &None.into()).expect("reads");
    let expected = burnish::files::hex::sha256_of_file(&folder.path().join("c.json.gz")).expect("readable");
    assert_eq!(set.sha256(), expected);
    #[cfg(feature = "tables")]
    {
        let path = folder.path().join("e.csv.zst");
        fs::write(&path, zstd(b"text\ne\n")).expect("written");
        assert_eq!(read(path).expect("reads"), "e");
    }
}

#[test]
fn packed_files_that_are_damaged_or_made_to_grow_are_refused() {
    let long: String = (0..2000).map(|number| text(&number.to_string())).collect();
    let path = |folder: &TempDir| folder.path().join("d.jsonl.gz");
    for packed in [gzip(long.as_bytes()), zstd(long.as_bytes())] {
        for length in [12, packed.len() / 2, packed.len() - 1] {
            let folder = folder(&[("d.jsonl.gz", &packed[..length])]);
            let error = read(path(&folder)).expect_err("cut").to_string();
            assert!(
                error.contains("d.jsonl.gz: is packed with ") && error.contains("cannot be unpacked"),
                "{length}: {error}"
            );
        }
        let mut damaged = packed.clone();
        let middle = packed.len() / 2;
        damaged[middle..middle + 8].fill(0x55);
        let folder = folder(&[("d.jsonl.gz", &damaged)]);
        assert_eq!(read(path(&folder)).expect_err("damaged").exit_code(), 2);
    }
    // Any damage is an error or other rows, never a panic.
    for packed in [gzip(text("a").as_bytes()), zstd(text("a").as_bytes())] {
        let folder = tempfile::tempdir().expect("a folder");
        for at in 0..8 * packed.len() {
            let mut damaged = packed.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            fs::write(path(&folder), &damaged).expect("written");
            if let Err(error) = read(path(&folder)) {
                assert_eq!(error.exit_code(), 2, "bit {at}: {error}");
            }
        }
    }
    // 100 MB of blanks in 100 kB.
    let bomb = folder(&[("d.jsonl.gz", &gzip(&vec![b' '; 100 << 20]))]);
    let error = read(path(&bomb)).expect_err("a bomb").to_string();
    assert!(error.contains("unpacks to more than 67108864 bytes") && error.contains("hint: unpack it"), "{error}");
}

fn parse(lines: &str, columns: Columns) -> burnish::Result<Vec<Row>> {
    jsonl::parse(lines.as_bytes(), "d.jsonl", Shape { columns, ..None.into() })
}

#[test]
fn columns_give_the_keys_other_names() {
    let columns = |lines: &str| settings(&format!("train = \"t.jsonl\"\n[data.columns]\n{lines}")).columns;
    let rows = |lines: &str, columns: Columns| parse(lines, columns).expect("reads");
    let mapped = columns("prompt = \"question\"\ncompletion = \" Answer \"");
    let row = &rows(r#"{"question":"a"," Answer ":"b","prompt":"c"}"#, mapped.clone())[0];
    assert_eq!(row.example, Example::PromptCompletion { prompt: "a".into(), completion: "b".into() });
    assert_eq!(row.ignored.iter().map(|key| &**key).collect::<Vec<_>>(), ["prompt"]);
    let alpaca = columns("instruction = \"question\"\noutput = \"answer\"\nsystem = \"sys\"");
    let Example::Alpaca { system, .. } = &rows(r#"{"question":"a","answer":"b","sys":"s"}"#, alpaca.clone())[0].example
    else {
        panic!("an Alpaca example");
    };
    assert_eq!(system.as_deref(), Some("s"));
    let chat = columns("messages = \"dialogue\"");
    let row = &rows(r#"{"dialogue":[{"from":"human","value":"a"}],"prompt":"x","completion":"y"}"#, chat)[0];
    assert!(matches!(&row.example, Example::Chat { messages, .. } if messages.len() == 1));
    // Messages speak of the names in the file, and a name that no row has is no silence.
    let error = |lines: &str, columns: Columns| parse(lines, columns).expect_err("bad").to_string();
    let wrong = error(r#"{"question":1," Answer ":"b"}"#, mapped.clone());
    assert!(wrong.contains("d.jsonl:1: `question` is the number 1; expected a text"), "{wrong}");
    let absent = error(r#"{"question":"a","answer":"b"}"#, alpaca);
    assert!(absent.contains("d.jsonl: no row has `sys`, which `columns` gives the place of `system`"), "{absent}");
    let wrong = error(r#"{"question":"a","Answer":"b"}"#, mapped.clone());
    let expected = "and not \" Answer \", which `columns` gives the place of `completion`";
    assert!(wrong.contains(expected) && wrong.contains("letters and spaces count"), "{wrong}");
    #[cfg(feature = "tables")]
    {
        let csv = |text: &str| {
            let shape = Shape { columns: mapped.clone(), ..None.into() };
            data::tables::parse_csv(text.as_bytes().to_vec(), "d.csv", shape).expect("reads").remove(0).example
        };
        let expected = Example::PromptCompletion { prompt: "a, b".into(), completion: "c".into() };
        assert_eq!(csv("question, Answer \n\"a, b\",c\n"), expected);
        assert_eq!(csv("question; Answer \na, b;c\n"), expected);
    }
}

#[test]
fn keys_that_need_a_mapping_get_its_lines() {
    let error =
        parse(&"{\"question\":\"a\",\"answer\":\"b\"}\n".repeat(30), Columns::unmapped()).expect_err("no shape");
    let error = error.to_string();
    assert!(error.starts_with("d.jsonl:1: found the keys [\"question\", \"answer\"]; expected one of "), "{error}");
    assert!(error.contains("(30 rows, also 2, 3, …)"), "{error}");
    assert!(error.contains("\n    prompt = \"question\"") || error.contains("\n  prompt = \"question\""), "{error}");
    assert!(error.contains("completion = \"answer\"") && error.contains("[data.columns]"), "{error}");
    // The lines are what the recipe takes.
    let (_, lines) = error.split_once("stand:\n").expect("lines");
    let (lines, _) = lines.split_once("\n  for questions").expect("lines");
    let columns = settings(&format!("train = \"t.jsonl\"\n{lines}")).columns;
    assert!(parse("{\"question\":\"a\",\"answer\":\"b\"}", columns).is_ok());
}

#[test]
fn sources_have_weights_and_forms_of_their_own() {
    let folder =
        folder(&[("main.jsonl", text("m").as_bytes()), ("more.jsonl", b"{\"question\":\"a\",\"answer\":\"b\"}\n")]);
    let at = |name: &str| folder.path().join(name);
    let recipe = format!(
        "train = {:?}\n[[data.sources]]\npath = {:?}\nweight = 2.5\nformat = \"alpaca\"\n[data.sources.columns]\n\
         instruction = \"question\"\noutput = \"answer\"\n",
        at("main.jsonl"),
        at("more.jsonl")
    );
    let set = settings(&recipe).read_train().expect("reads");
    assert_eq!(set.rows.iter().map(|row| row.weight).collect::<Vec<_>>(), [1.0, 2.5]);
    assert!(matches!(set.rows[1].example, Example::Alpaca { .. }));
    assert_eq!(set.file_sha256.len(), 2);
    // Sources alone are enough; nothing is too little.
    let alone = format!("[[data.sources]]\npath = {:?}\n", at("main.jsonl"));
    assert_eq!(texts(&settings(&alone).read_train().expect("reads").rows), "m");
    let parsed = |lines: &str| {
        let text = format!("[base]\nmodel = \"m.gguf\"\n[output]\ndir = \"out\"\n[data]\n{lines}\n");
        Recipe::parse(&text, "r.toml", &[]).and_then(|recipe| recipe.settings()).expect_err("wrong").to_string()
    };
    assert!(parsed("").contains("r.toml:5:1: `data.train` is missing"), "{}", parsed(""));
    let weightless = parsed("[[data.sources]]\npath = \"a.jsonl\"\nweight = 0");
    assert!(weightless.contains("r.toml:8:10: `data.sources.weight`: expected above 0"), "{weightless}");
}

#[test]
fn a_group_is_read_from_its_column() {
    let shape = Shape { group: Some("doc".into()), ..None.into() };
    let read = |lines: &str| jsonl::parse(lines.as_bytes(), "d.jsonl", shape.clone());
    let rows = read("{\"text\":\"a\",\"doc\":7}\n{\"text\":\"b\",\"doc\":\"x\"}\n").expect("reads");
    assert_eq!(rows.iter().map(|row| row.group.as_deref()).collect::<Vec<_>>(), [Some("7"), Some("x")]);
    assert!(rows[0].ignored.is_empty());
    let error = read("{\"text\":\"a\"}\n{\"text\":\"b\",\"doc\":[1]}\n").expect_err("no group").to_string();
    assert!(error.contains("d.jsonl:1: `doc` is missing, which `data.group` names"), "{error}");
    assert!(error.contains("d.jsonl:2: `doc` is a list; expected a text or a number"), "{error}");
}

#[test]
fn a_run_over_sources_shows_each_as_often_as_its_weight_says() {
    let folder = crate::cli::tiny_job();
    let recipe = fs::read_to_string(folder.path().join("recipe.toml")).expect("the recipe");
    // 21 examples once, 15 of another file four times, in micro-batches of one.
    let row = |number: usize| format!("{{\"prompt\": \"{number} less 1 is \", \"completion\": \"{}\"}}\n", number - 1);
    fs::write(folder.path().join("less.jsonl"), (1..=15).map(row).collect::<String>()).expect("written");
    let sources = "[[data.sources]]\npath = \"less.jsonl\"\nweight = 4\n";
    fs::write(folder.path().join("more.toml"), format!("{recipe}\n{sources}")).expect("written");
    let check = |recipe: &str| {
        let arguments = ["check", recipe, "--json", "--set", "train.epochs=1", "--set", "train.micro_batch_seqs=1"];
        let more = ["--set", "train.accumulate_steps=1"];
        crate::cli::json(&crate::cli::run(&folder, &[&arguments[..], &more].concat()))
    };
    assert_eq!(check("recipe.toml")["total_steps"], 21);
    let checked = check("more.toml");
    assert_eq!((&checked["total_steps"], &checked["train"]["examples"]), (&(21 + 4 * 15).into(), &36.into()));
    // Files of a folder that are no data are named.
    fs::create_dir(folder.path().join("more")).expect("made");
    fs::write(folder.path().join("more/a.jsonl"), "{\"prompt\": \"a\", \"completion\": \"b\"}\n").expect("written");
    fs::write(folder.path().join("more/notes.txt"), "notes").expect("written");
    let arguments = ["check", "recipe.toml", "--set", "data.train=more"];
    let checked = crate::cli::text(&crate::cli::run(&folder, &arguments).stderr);
    assert!(checked.contains("not read, by their endings no data files: more/notes.txt"), "{checked}");
    // Examples of another shape are named, and a weight that leaves none is refused.
    fs::write(folder.path().join("chat.jsonl"), CHAT).expect("written");
    let with = |more: &str| {
        fs::write(folder.path().join("other.toml"), format!("{recipe}\n[[data.sources]]\npath = {more}\n"))
            .expect("written");
        crate::cli::run(&folder, &["check", "other.toml"])
    };
    let mixed = crate::cli::text(&with("\"chat.jsonl\"").stderr);
    assert!(mixed.contains("train: 1 example is not read as `prompt-completion`, as the first is"), "{mixed}");
    let recipe = recipe.replace("train = \"train.jsonl\"\n", "");
    let alone = format!("{recipe}\n[[data.sources]]\npath = \"chat.jsonl\"\nweight = 0.25\n");
    fs::write(folder.path().join("other.toml"), alone).expect("written");
    let refused = crate::cli::refused(&crate::cli::run(&folder, &["check", "other.toml"]));
    assert!(refused.contains("the weights of the sources leave no example in an epoch"), "{refused}");
}

#[test]
fn a_mapping_is_typed_where_there_is_no_recipe() {
    let folder = crate::cli::tiny_job();
    fs::write(folder.path().join("qa.jsonl"), "{\"question\": \"1 and 2 is \", \"answer\": \"3\"}\n").expect("written");
    let model = crate::cli::tiny_model().display().to_string();
    let eval = |more: &[&str]| {
        let arguments = ["eval", "--base", &model, "--data", "qa.jsonl", "--json"];
        crate::cli::run(&folder, &[&arguments[..], more].concat())
    };
    let refused = crate::cli::refused(&eval(&[]));
    assert!(refused.contains("found the keys [\"question\", \"answer\"]"), "{refused}");
    let report = crate::cli::json(&eval(&["--columns", "prompt=question,completion=answer"]));
    assert_eq!(report["examples"], 1);
    assert!(crate::cli::refused(&eval(&["--columns", "question"])).contains("expected KEY=NAME"));
}
