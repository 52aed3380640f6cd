//! CSV and Parquet data files; without the feature `tables`, the error that names it.

use std::path::{Path, PathBuf};

use burnish::data;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tables").join(name)
}

#[cfg(not(feature = "tables"))]
#[test]
fn a_build_without_tables_says_so() {
    for path in [fixture("alpaca.parquet"), fixture("any.csv")] {
        let error = data::read(&path, None).expect_err("not compiled in");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("feature `tables`"), "{error}");
    }
    assert!(data::tables::parse_csv(Vec::new(), "a.csv", None).is_err());
    assert!(data::tables::parse_parquet(Vec::new(), "a.parquet", None).is_err());
}

#[cfg(feature = "tables")]
mod with_polars {
    use super::*;
    use burnish::data::{Example, Message, Row, tables};

    fn pair(prompt: &str, completion: &str) -> Example {
        Example::PromptCompletion { prompt: prompt.into(), completion: completion.into() }
    }

    fn examples(rows: Vec<Row>) -> Vec<Example> {
        rows.into_iter().map(|row| row.example).collect()
    }

    fn csv(text: &str) -> burnish::Result<Vec<Example>> {
        Ok(examples(tables::parse_csv(text.as_bytes().to_vec(), "d.csv", None)?))
    }

    #[test]
    fn csv_columns_become_examples() {
        let expected = vec![pair("Q: 1 + 1\nA: ", "2"), pair("请问，几点了？", "a \"quoted\", text")];
        let rows = "\"Q: 1 + 1\nA: \",2,7\n请问，几点了？,\"a \"\"quoted\"\", text\",8";
        for (mark, end) in [("", ""), ("", "\n"), ("\u{feff}", "\n")] {
            assert_eq!(csv(&format!("{mark}prompt,completion,id\n{rows}{end}")).expect("reads"), expected);
        }
        let windows = csv("prompt,completion\r\na,b\r\nc,007\r\n").expect("reads");
        assert_eq!(windows, [pair("a", "b"), pair("c", "007")]);
        let alpaca = csv("instruction,input,output\nAdd.,,3\n").expect("reads");
        let expected =
            Example::Alpaca { instruction: "Add.".into(), input: "".into(), output: "3".into(), system: None };
        assert_eq!(alpaca, [expected]);
        assert_eq!(csv("text\nhello\n").expect("reads"), [Example::Text { text: "hello".into() }]);
        let chat = "messages\n\"[{\"\"role\"\":\"\"user\"\",\"\"content\"\":\"\"Hi\"\"}]\"\n";
        assert_eq!(csv(chat).expect("reads"), [Example::Chat { messages: vec![Message::user("Hi")], tools: None }]);
        // Blank lines, and quotes that stand for inches.
        let blank = csv("\r\nprompt,completion\r\n\r\na 6\" b,\"x\"\r\n  \nc \"d\" 7\",y\n\n").expect("reads");
        assert_eq!(blank, [pair("a 6\" b", "x"), pair("c \"d\" 7\"", "y")]);
        // Semicolons, as spreadsheets in many languages write them, and tabs.
        for separator in [";", "\t"] {
            let text = format!("prompt{separator}completion\n\"a;\tb\"{separator}c, d\n");
            assert_eq!(csv(&text).expect("reads"), [pair("a;\tb", "c, d")]);
        }
        // Columns that are not read are kept by name; JSON text in the others is read.
        let rows = tables::parse_csv(b"id,text\n7,a\n".to_vec(), "d.csv", None).expect("reads");
        assert_eq!(rows[0].ignored.iter().map(|key| &**key).collect::<Vec<_>>(), ["id"]);
        let history = "instruction,output,history\nc,d,\"[[\"\"a\"\",\"\"b\"\"]]\"\n";
        assert!(matches!(&csv(history).expect("reads")[0], Example::Chat { messages, .. } if messages.len() == 4));
        // What a spreadsheet would calculate is text here.
        assert_eq!(csv("text\n=1+1\n").expect("reads"), [Example::Text { text: "=1+1".into() }]);
    }

    #[test]
    fn broken_csv_is_named_with_its_line() {
        for (text, expected) in [
            ("", "d.csv"),
            ("prompt,completion\n", "has no examples"),
            ("question,answer\na,b\n", "found the columns"),
            ("prompt,completion\na,b\n\"c,d\ne,f\n", "d.csv:3: a quote opened in this row is never closed"),
            ("prompt,completion\na,b\nc\n", "d.csv:3: 1 fields; the header has 2"),
            ("prompt,completion\n\"a\nb\",c\nd,e,f\n", "d.csv:4: 3 fields; the header has 2"),
            ("prompt,prompt\na,b\n", "d.csv:1: the column \"prompt\" stands twice"),
            ("prompt,completion\na,\n", "d.csv:2: `completion` is missing"),
            ("prompt,completion\n\n\"a\nb\",c\n,d\n", "d.csv:5: `prompt` is missing"),
            ("prompt,completion\n\"a\"b,c\n", "d.csv:2: text follows a closing quote"),
            ("prompt, completion\na,b\n", "found the columns [\"prompt\", \" completion\"]"),
            ("prompt;completion\na;b;c\n", "fields are separated by semicolons"),
            ("\r", "has no examples"),
            ("messages\n{\n", "d.csv:2: `messages`"),
        ] {
            let error = csv(text).expect_err(text);
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(expected), "{text:?}: {error}");
        }
        let both = format!("prompt,completion\n{},{}\n", "a".repeat(600_000), "b".repeat(600_000));
        let error = csv(&both).expect_err("a long row").to_string();
        assert!(error.contains("d.csv:2: a row of 1200000 bytes; at most 1048576"), "{error}");
        let long = format!("text\n{}\n", "a".repeat(17 << 20));
        assert!(csv(&long).expect_err("a long field").to_string().contains("at most"));
        let bytes = |bytes: &[u8]| tables::parse_csv(bytes.to_vec(), "d.csv", None).expect_err("no text").to_string();
        assert!(bytes(b"text\na\n\xff\xfe\n").contains("d.csv:3: is not UTF-8"));
        assert!(bytes(b"\xff\xfet\0").contains("is UTF-16"));
        assert!(bytes(b"\x1f\x8b\x08\0\0\0").contains("is packed with gzip"));
    }

    #[test]
    fn parquet_columns_become_examples() {
        let expected = [pair("Q: 1 + 1\nA: ", "2"), pair("请问，几点了？", "三点。"), pair("a \"quoted\", text", "")];
        let talk = Example::Chat { messages: vec![Message::user("Hi"), Message::assistant("Hello")], tools: None };
        assert_eq!(examples(data::read(fixture("messages.parquet"), None).expect("reads")), [talk]);
        for name in ["prompts.snappy.parquet", "prompts.zstd.parquet", "prompts.none.parquet"] {
            assert_eq!(examples(data::read(fixture(name), None).expect("reads")), expected, "{name}");
        }
        let alpaca = examples(data::read(fixture("alpaca.parquet"), None).expect("reads"));
        let example = |instruction: &str, input: &str, output: &str| Example::Alpaca {
            instruction: instruction.into(),
            input: input.into(),
            output: output.into(),
            system: None,
        };
        assert_eq!(alpaca, [example("Add.", "1 and 2", "3"), example("Greet.", "", "Hello!")]);
    }

    #[test]
    fn columns_of_nothing_but_nulls_are_empty_cells() {
        let example = |instruction: &str, output: &str| Example::Alpaca {
            instruction: instruction.into(),
            input: String::new(),
            output: output.into(),
            system: None,
        };
        let rows = examples(data::read(fixture("nulls.parquet"), None).expect("reads"));
        assert_eq!(rows, [example("Greet.", "Hello!"), example("Part.", "Bye!")]);
    }

    #[test]
    fn texts_stored_as_categories_are_texts() {
        let rows = data::read(fixture("categories.parquet"), None).expect("reads");
        assert_eq!(rows[0].ignored.iter().map(|key| &**key).collect::<Vec<_>>(), ["note"]);
        assert_eq!(examples(rows), [pair("a", "x"), pair("a", "z")]);
    }

    #[test]
    fn broken_parquet_is_named() {
        let error = |name: &str| data::read(fixture(name), None).expect_err(name).to_string();
        let numbers = "numbers.parquet: row 1: `completion` is the number 7; expected a text";
        assert!(error("numbers.parquet").contains(numbers), "{}", error("numbers.parquet"));
        assert!(error("columns.parquet").contains("columns.parquet"), "{}", error("columns.parquet"));
        let whole = std::fs::read(fixture("prompts.snappy.parquet")).expect("the fixture");
        for length in [0, 1, 4, 8, 50, whole.len() / 2, whole.len() - 1] {
            let cut = tables::parse_parquet(whole[..length].to_vec(), "d.parquet", None);
            assert!(cut.expect_err("cut short").to_string().contains("d.parquet"), "{length}");
        }
        // Any damage is an error or other rows, never a panic.
        for at in (0..whole.len()).step_by(7) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0xFF;
            let _ = tables::parse_parquet(damaged, "d.parquet", None);
        }
    }

    #[test]
    fn a_huge_number_anywhere_in_the_footer_takes_no_memory() {
        // 2^61 as Thrift's compact protocol writes it.
        let huge = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40];
        for name in ["prompts.snappy.parquet", "messages.parquet"] {
            let whole = std::fs::read(fixture(name)).expect("the fixture");
            let end = whole.len() - 8;
            let length = u32::from_le_bytes(whole[end..end + 4].try_into().expect("four bytes")) as usize;
            for position in end - length..end {
                let (before, after) = (&whole[..position], &whole[position + 1..end]);
                let length = (length + huge.len() - 1) as u32;
                let file = [before, &huge, after, &length.to_le_bytes(), b"PAR1"].concat();
                let _ = tables::parse_parquet(file, "d.parquet", None);
            }
        }
    }

    #[test]
    fn a_damaged_parquet_file_is_an_error_or_read_and_never_a_panic() {
        for name in ["prompts.snappy.parquet", "messages.parquet"] {
            let good = std::fs::read(fixture(name)).expect("the fixture");
            for at in 0..good.len() {
                for bit in 0..8 {
                    let mut bytes = good.clone();
                    bytes[at] ^= 1 << bit;
                    if let Err(error) = tables::parse_parquet(bytes, "a.parquet", None) {
                        assert_eq!(error.exit_code(), 2, "{name}: byte {at}, bit {bit}: {error}");
                    }
                }
            }
        }
    }
}
