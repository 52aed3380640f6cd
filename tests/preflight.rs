//! Defects planted into clean data: each is found, with its code and its line, and nothing else is.

use std::fs;
use std::path::Path;

use burnish::data::preflight::catalogue::page;
use burnish::data::preflight::{Code, Finding, Severity, Split, preflight};
use burnish::data::{Format, jsonl};
use serde_json::{Value, json};

/// The findings about the texts of some rows, beside those about the size of the file.
fn findings(train: &[Value], valid: Option<&[Value]>) -> Vec<Finding> {
    let parsed = |rows: &[Value], name: &str| {
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        // A label is read where it is asked for.
        let format = rows.first().and_then(|row| row.get("label")).map(|_| Format::Class);
        jsonl::parse(text.as_bytes(), name, format).expect("good rows")
    };
    let (train, valid) = (parsed(train, "train.jsonl"), valid.map(|rows| parsed(rows, "valid.jsonl")));
    let split = |name, file, rows| Split { name, file, rows, encoded: None };
    let of_valid = valid.as_ref().map(|rows| split("valid", "valid.jsonl", rows));
    let mut found = preflight(split("train", "train.jsonl", &train), of_valid, None);
    found.retain(|finding| ![Code::NoValidation, Code::FewRows, Code::FewValidation].contains(&finding.code));
    found
}

fn codes(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(|finding| format!("{} {:?}", finding.code, finding.rows)).collect()
}

/// Sentences that differ from each other in most of their words.
fn prose(row: usize) -> String {
    const WHO: [&str; 7] =
        ["the gardener", "a young baker", "my neighbour", "the old sailor", "our teacher", "a nurse", "the mayor"];
    const DID: [&str; 11] = [
        "repaired the roof of the barn",
        "walked along the frozen river",
        "wrote a long letter to the council",
        "painted every window frame blue",
        "sold three baskets of ripe plums",
        "played chess under the chestnut tree",
        "counted the swallows on the wire",
        "carried the piano up the narrow stairs",
        "forgot the keys in the kitchen drawer",
        "measured the field with a rope",
        "cooked soup for twenty guests",
    ];
    const WHEN: [&str; 5] = [
        "before sunrise",
        "on a rainy Thursday",
        "while everyone was asleep",
        "in the middle of June",
        "after the market closed",
    ];
    const WHY: [&str; 13] = [
        "because winter was coming early this year",
        "although nobody had asked for it",
        "so that the children could laugh again",
        "and never spoke about it afterwards",
        "since the doctor had recommended fresh air",
        "to keep a promise made long ago",
        "while the dog watched from the doorway",
        "with the help of two strong cousins",
        "as if it were the easiest thing of all",
        "until the church bell rang nine times",
        "hoping that the letter would arrive soon",
        "for the sake of an old friendship",
        "in spite of a terrible headache",
    ];
    let pick = |words: &[&'static str], step: usize| words[(row * step + row / words.len()) % words.len()];
    let (who, did, when, why) = (pick(&WHO, 3), pick(&DID, 5), pick(&WHEN, 2), pick(&WHY, 6));
    let (more, then) = (pick(&DID, 7), pick(&WHY, 4));
    let sentence = format!("{who} {did} {when}, {why}.");
    let first = sentence[..1].to_uppercase() + &sentence[1..];
    format!("{first} Later that week somebody else {more}, {then}.")
}

/// Rows of instructions and answers without a defect.
fn clean_rows() -> Vec<Value> {
    (0..40)
        .map(|row| {
            let topic = ["plums", "roofs", "letters", "rivers", "chess", "soup", "swallows", "keys"][row % 8];
            json!({"instruction": format!("Tell me story number {row} about {topic}, and keep it short."), "output": prose(row)})
        })
        .collect()
}

/// Conversations without a defect.
fn clean_chats() -> Vec<Value> {
    let turn = |role: &str, content: String| json!({"role": role, "content": content});
    (0..20)
        .map(|row| {
            json!({"messages": [
                turn("system", "You tell stories.".into()),
                turn("user", format!("Story number {row}, please.")),
                turn("assistant", prose(row)),
                turn("user", format!("And number {}?", row + 100)),
                turn("assistant", prose(row + 20)),
            ]})
        })
        .collect()
}

/// Bare prompts with objects as answers, without a defect.
fn clean_objects() -> Vec<Value> {
    (0..20)
        .map(|row| json!({"prompt": format!("{}\nJSON: ", prose(row)), "completion": json!({"id": row, "words": row * 7}).to_string()}))
        .collect()
}

/// An instruction that no other row has, and an answer.
fn answered(answer: &str) -> Value {
    json!({"instruction": "Say what you know about lighthouses on the western coast.", "output": answer})
}

fn asked(instruction: &str) -> Value {
    json!({"instruction": instruction, "output": prose(77)})
}

/// An answer of usual prose with something in its middle.
fn with(part: &str) -> Value {
    answered(&format!(
        "The keeper left a note on the table, and it said {part} in a neat hand. Nobody ever answered it."
    ))
}

#[test]
fn clean_data_gives_no_finding() {
    for rows in [clean_rows(), clean_chats(), clean_objects()] {
        assert_eq!(codes(&findings(&rows, None)), Vec::<String>::new());
    }
    let valid: Vec<Value> =
        (50..62).map(|row| json!({"instruction": format!("Invent number {row}."), "output": prose(row)})).collect();
    assert_eq!(codes(&findings(&clean_rows(), Some(&valid))), Vec::<String>::new());
}

/// Each defect of a single row of instructions: the code and the row.
fn planted_rows() -> Vec<(Code, Value)> {
    let rows = clean_rows();
    let mut almost = rows[5].clone();
    almost["output"] = json!(prose(5).replace(" Later", " later"));
    almost["instruction"] = json!("Tell me story number 5 about soup, and keep it  short!");
    let mut other = rows[9].clone();
    other["output"] = json!(prose(78));
    let french = "Le vieux gardien du phare raconte que la mer était si calme ce soir-là que l'on entendait les voix des pêcheurs \
                  depuis l'autre rive, et que personne n'avait envie de rentrer.";
    vec![
        (Code::ExactDuplicate, rows[3].clone()),
        (Code::NearDuplicate, almost),
        (Code::Contradiction, other),
        (Code::EmptyAnswer, answered("  ")),
        (
            Code::TruncatedAnswer,
            answered("The lighthouse was built of white stone, and then the keeper decided that the"),
        ),
        (Code::PlaceholderAnswer, answered("TODO")),
        (Code::Unfilled, with("[Your Name]")),
        (Code::Boilerplate, answered("As an AI language model, I have never seen a lighthouse myself.")),
        (
            Code::AnswerRepeatsPrompt,
            answered("Say what you know about lighthouses on the western coast. They are white."),
        ),
        (Code::RepetitiveAnswer, answered(&"It is white and tall. ".repeat(8))),
        (Code::ThinkTags, answered("<think>The user wants to know about lighthouses. They are white.")),
        (Code::OpenFence, answered("Here is a small program for it:\n```python\nprint(\"light\")")),
        (Code::RoleLabel, answered("Assistant: They are white and tall.")),
        (Code::RunOnAnswer, answered("They are white and tall.\n### Instruction:\nName another one.")),
        (Code::ReplacementCharacter, with("caf\u{fffd}")),
        (Code::Mojibake, with("cafÃ©")),
        (Code::ControlCharacter, with("\u{1b}[31mred\u{1b}[0m")),
        (Code::InvisibleCharacter, with("light\u{200b}house")),
        (Code::HtmlEntities, with("Tom &amp; Mira")),
        (Code::EscapedText, answered("First the lamp.\\nThen the stairs.\\nThen the door.")),
        (Code::OtherScript, answered("Маяк стоит на берегу моря, и его свет виден издалека каждую ночь.")),
        (Code::OtherLanguage, answered(french)),
        (Code::MixedWord, with("P\u{430}ris")),
        (Code::DecomposedLetters, with("cafe\u{301}")),
        (Code::ForeignMarkup, with("[INST] go on [/INST]")),
        (Code::EmptyPrompt, asked("")),
        (Code::KeyIgnored, {
            let mut row = with("nothing");
            row["notes"] = json!("not read");
            row
        }),
        (Code::Email, with("mira.okoro@mail.de")),
        (Code::Phone, with("+49 30 1234567")),
        (Code::Card, with("4111 1111 1111 1111")),
        (Code::Iban, with("DE89 3704 0044 0532 0130 00")),
        (Code::NationalId, with("219-09-9999")),
        (Code::IpAddress, with("81.2.69.160")),
        (Code::UrlPassword, with("postgres://admin:hunter22@db.host/x")),
        (Code::ApiKey, with("AKIAIOSFODNN7EXAMPLE")),
        (Code::PrivateKey, with("-----BEGIN RSA PRIVATE KEY----- MIIE -----END RSA PRIVATE KEY-----")),
    ]
}

/// Each defect of a single conversation.
fn planted_chats() -> Vec<(Code, Value)> {
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let system = turn("system", "You tell stories.");
    let (question, answer) =
        (turn("user", "What is a lighthouse?"), turn("assistant", "A tower with a lamp, for ships at night."));
    let chat = |turns: &[&Value]| json!({"messages": turns});
    let call = |name: &str, arguments: &str| json!({"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}]});
    let with_tools = |name: &str, arguments: &str| {
        let turns = [&system, &question, &call(name, arguments), &turn("tool", "white"), &answer];
        json!({"messages": turns, "tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}]})
    };
    vec![
        (Code::EndsWithUser, chat(&[&system, &question, &answer, &turn("user", "And where do they stand?")])),
        (Code::SameRoleTwice, chat(&[&system, &question, &turn("user", "Tell me in short."), &answer])),
        (
            Code::BeginsWithAssistant,
            chat(&[&system, &turn("assistant", "Good morning, how can I help?"), &question, &answer]),
        ),
        (Code::LateSystem, chat(&[&system, &question, &turn("system", "Be brief."), &answer])),
        (Code::SystemMissing, chat(&[&question, &answer])),
        (Code::UnknownTool, with_tools("fly", "{}")),
        (Code::BrokenArguments, with_tools("look", "{\"far\": ")),
        (Code::ResultWithoutCall, chat(&[&system, &question, &turn("tool", "white"), &answer])),
        (Code::NothingTrained, chat(&[&system, &question])),
    ]
}

/// The codes that a planted row brings along by its nature.
fn companions(code: Code) -> &'static [Code] {
    match code {
        Code::NothingTrained => &[Code::EndsWithUser],
        Code::RunOnAnswer => &[Code::ForeignMarkup],
        _ => &[],
    }
}

#[test]
fn every_planted_defect_is_found_alone_at_its_line() {
    for (clean, planted) in [(clean_rows(), planted_rows()), (clean_chats(), planted_chats())] {
        for (code, row) in planted {
            let line = 13;
            let mut rows = clean.clone();
            rows.insert(line - 1, row);
            let found = findings(&rows, None);
            let of_code = found.iter().find(|finding| finding.code == code);
            let of_code = of_code.unwrap_or_else(|| panic!("{code} {code:?} is not found: {:?}", codes(&found)));
            // Copies count from the second one on, and contradictions have two sides.
            assert!(
                of_code.rows.contains(&line) || of_code.rows.iter().any(|row| *row < line + 10),
                "{code}: {of_code:?}"
            );
            let others =
                found.iter().filter(|finding| finding.code != code && !companions(code).contains(&finding.code));
            assert_eq!(codes(&others.cloned().collect::<Vec<_>>()), Vec::<String>::new(), "beside {code} {code:?}");
        }
    }
}

#[test]
fn forty_defects_in_one_file_are_all_found() {
    let (mut rows, mut chats) = (clean_rows(), clean_chats());
    // A habit is what nine in ten rows have, so the clean rows are many.
    rows.extend((100..500).map(
        |row| json!({"instruction": format!("Invent number {row}."), "output": format!("{row}: {}", prose(row))}),
    ));
    chats.extend((0..100).map(|row| {
        json!({"messages": [
            {"role": "system", "content": "You tell stories."},
            {"role": "user", "content": format!("Tale number {row}?")},
            {"role": "assistant", "content": format!("{row}: {}", prose(row + 7))},
        ]})
    }));
    let (planted, of_chats) = (planted_rows(), planted_chats());
    assert!(planted.len() + of_chats.len() >= 40);
    let mut expected: Vec<Code> = planted.iter().chain(&of_chats).map(|(code, _)| *code).collect();
    for (index, (_, mut row)) in planted.into_iter().enumerate() {
        // One prompt for all would be a contradiction of its own.
        if row["instruction"].as_str().is_some_and(|text| text.starts_with("Say what")) {
            let instruction = format!("Say what you know about lighthouse {index} on the western coast.");
            let answer =
                row["output"].as_str().expect("a text").replace("lighthouses on", &format!("lighthouse {index} on"));
            (row["instruction"], row["output"]) = (json!(instruction), json!(answer));
        }
        rows.insert(40 + 3 * index, row);
    }
    for (index, (_, row)) in of_chats.into_iter().enumerate() {
        chats.insert(3 * index, row);
    }
    let found: Vec<Code> =
        [findings(&rows, None), findings(&chats, None)].concat().iter().map(|finding| finding.code).collect();
    expected.retain(|code| !found.contains(code));
    assert_eq!(expected, [], "not found");
}

#[test]
fn habits_of_a_file_show_the_rows_that_break_them() {
    let found = |row: Value| {
        let mut rows = clean_objects();
        rows.push(row);
        findings(&rows, None)
    };
    let row =
        |prompt: &str, completion: &str| json!({"prompt": format!("{}{prompt}", prose(55)), "completion": completion});
    assert_eq!(codes(&found(row("\nJSON: ", "{\"id\": 3, \"words\""))), ["D303 [21]", "D312 [21]"]);
    assert_eq!(codes(&found(row("\nJSON: ", " {\"id\": 3}"))), ["D314 [21]"]);
    assert_eq!(codes(&found(row("", "{\"id\": 3}"))), ["D315 [21]"]);

    let mut rows = clean_rows();
    for index in 0..6 {
        rows.push(json!({"instruction": format!("Another question, number {index}."), "output": "The service is not available at the moment, please try again."}));
    }
    assert_eq!(codes(&findings(&rows, None)), ["D104 [41, 42, 43, 44, 45, 46]"]);
    let cut: Vec<Value> = (0..3)
        .map(|index| json!({"instruction": format!("A long one, {index}."), "output": prose(60 + index).repeat(2).chars().take(260).collect::<String>()}))
        .collect();
    let found = findings(&[clean_rows(), cut].concat(), None);
    assert!(
        found.iter().any(|finding| finding.code == Code::SameLength && finding.rows == [41, 42, 43]),
        "{:?}",
        codes(&found)
    );
    let same: Vec<Value> =
        (0..30).map(|row| json!({"prompt": format!("{row}: {}", prose(row)), "completion": "yes"})).collect();
    assert_eq!(codes(&findings(&same, None)), ["D105 []"]);
    let empty: Vec<Value> = (0..12).map(|row| json!({"prompt": prose(row), "completion": ""})).collect();
    let found = findings(&empty, None);
    assert_eq!((found[0].code, found[0].severity), (Code::AllAnswersEmpty, Severity::Error));
}

#[test]
fn rows_that_leak_into_the_validation_data_are_told_apart() {
    let train = clean_rows();
    let mut near = train[4].clone();
    near["instruction"] = json!("Tell me story number 4 about chess, and keep it short!!");
    near["output"] = json!(prose(4).replace("Later", "later"));
    let mut other = train[6].clone();
    other["output"] = json!(prose(90));
    let fresh = (50..60).map(|row| json!({"instruction": format!("Invent number {row}."), "output": prose(row)}));
    let valid: Vec<Value> = [train[2].clone(), near, other].into_iter().chain(fresh).collect();
    let found = findings(&train, Some(&valid));
    assert_eq!(codes(&found), ["D201 [1]", "D202 [2]", "D203 [3]"]);
    assert!(found.iter().all(|finding| finding.split == Some("valid")));
    let found = findings(&train, Some(&train[3..20]));
    assert_eq!((found[0].code, found[0].severity), (Code::AllLeaked, Severity::Error));
}

#[test]
fn no_value_of_a_secret_is_reported() {
    let secrets = ["mira.okoro@mail.de", "4111 1111 1111 1111", "hunter22", "AKIAIOSFODNN7EXAMPLE"];
    let rows: Vec<Value> = planted_rows().into_iter().map(|(_, row)| row).collect();
    let report = serde_json::to_string(&findings(&rows, None)).expect("JSON");
    assert!(report.contains("D801") && secrets.iter().all(|secret| !report.contains(secret)), "{report}");
}

#[test]
fn the_findings_do_not_depend_on_the_number_of_threads() {
    let rows: Vec<Value> = clean_rows().into_iter().chain(planted_rows().into_iter().map(|(_, row)| row)).collect();
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| findings(&rows, None))
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn the_data_of_this_repository_is_clean() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets");
    let mut files: Vec<_> =
        fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "jsonl"));
    assert!(files.len() >= 8);
    for path in files {
        let rows: Vec<Value> = fs::read_to_string(&path)
            .expect("UTF-8")
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let mut found = codes(&findings(&rows, None));
        if path.ends_with("tools.train.jsonl") {
            // Calls in two languages, on purpose.
            found.retain(|code| !code.starts_with("D407"));
        }
        assert_eq!(found, Vec::<String>::new(), "{}", path.display());
    }
}

#[test]
fn the_page_lists_every_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/findings.md");
    let text = fs::read_to_string(&path).expect("docs/findings.md");
    let (introduction, listed) = text.split_once("<!-- codes -->\n").expect("the mark where the list begins");
    if std::env::var_os("BURNISH_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{introduction}<!-- codes -->\n{}", page())).expect("written");
    } else {
        assert_eq!(listed, page(), "run the tests with BURNISH_WRITE_DOCS=1 to write docs/findings.md anew");
    }
}
