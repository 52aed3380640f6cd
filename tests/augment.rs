//! Augmentation and rehearsal: what changes, what never does, and that nothing but seed, epoch and example decides it.

use std::collections::HashSet;
use std::fs;

use burnish::data::{Augment, Augmenter, Encoded, Encoder, Example, Judged, Message};
use burnish::recipe::Recipe;
use burnish::run::prepare::read_examples;
use burnish::train::Batching;
use serde_json::Value;
use tempfile::TempDir;

use crate::cli::{json, refused, run, tiny_job};
use crate::conversations::{CHATML, encoder, trained_text};
use crate::tokenizer::open;

fn settings() -> Augment {
    Augment {
        wordings: vec!["{prompt}".into(), "Answer: {prompt}".into(), "{prompt} (be brief)".into()],
        token_dropout: 0.2,
        typing_errors: 0.1,
    }
}

fn augmenter<'a>(encoder: &'a Encoder, settings: &'a Augment, examples: &'a [Example]) -> Augmenter<'a> {
    Augmenter { encoder, settings, seed: 5, max_seq_tokens: 1024, examples }
}

fn talk() -> Example {
    let messages = vec![
        Message::system("You are a keeper."),
        Message::user("Is the northern door open today?"),
        Message::assistant("It is."),
        Message::user("And what about the gate behind it?"),
        Message::assistant("Shut."),
    ];
    Example::Chat { messages, tools: None }
}

#[test]
fn answers_markup_and_system_turns_are_never_touched() {
    let (encoder, settings) = (encoder(CHATML), settings());
    let examples = [talk()];
    let augmenter = augmenter(&encoder, &settings, &examples);
    let plain = encoder.encode(&talk()).expect("encodes");
    let controls = |encoded: &Encoded| encoded.ids.iter().filter(|id| encoder.tokenizer().is_special(**id)).count();
    let mut seen = HashSet::new();
    for epoch in 0..40 {
        let Some(Example::Chat { messages, .. }) = augmenter.example(epoch, 0) else { panic!("a conversation") };
        let Example::Chat { messages: before, .. } = talk() else { panic!("a conversation") };
        assert!([0, 2, 4].iter().all(|&turn| messages[turn] == before[turn]), "epoch {epoch}");
        seen.insert((messages[1].content.clone(), messages[3].content.clone()));
        let encoded = augmenter.sequence(epoch, 0).expect("encodes");
        assert_eq!(trained_text(&encoder, &encoded), trained_text(&encoder, &plain), "epoch {epoch}");
        assert_eq!(controls(&encoded), controls(&plain));
        let text = encoder.tokenizer().decode(&encoded.ids, false).expect("decodes");
        assert!(text.starts_with("<|im_start|>system\nYou are a keeper.<|im_end|>\n<|im_start|>user\n"), "{text}");
    }
    assert!(seen.len() > 35, "{} different conversations in 40 epochs", seen.len());
    let first = |wording: &str| seen.iter().filter(|(first, _)| first.contains(wording)).count();
    assert!(first("Answer: ") > 3 && first("(be brief)") > 3, "every wording is drawn");
    assert!(!seen.iter().any(|(_, second)| second.contains("brief")), "only the first message gets a wording");
}

#[test]
fn seed_epoch_and_example_decide_the_changes_and_nothing_else() {
    let (encoder, settings) = (Encoder::new(open("bytelevel"), None), settings());
    let example = |number: usize| Example::PromptCompletion {
        prompt: format!("What is {number} and two of the following words? "),
        completion: number.to_string(),
    };
    let examples: Vec<Example> = (0..6).map(example).collect();
    let all = augmenter(&encoder, &settings, &examples);
    let drawn: Vec<Vec<_>> = (0..4).map(|epoch| (0..6).map(|index| all.example(epoch, index)).collect()).collect();
    // In another order, in another set, once more.
    let twice = [examples.clone(), examples.clone()].concat();
    let others = augmenter(&encoder, &settings, &twice);
    for index in (0..6).rev() {
        for epoch in (0..4).rev() {
            assert_eq!(others.example(epoch, index), drawn[epoch as usize][index]);
        }
    }
    assert_ne!(drawn[0], drawn[1]);
    let reseeded = Augmenter { seed: 6, ..augmenter(&encoder, &settings, &examples) };
    assert!((0..6).any(|index| reseeded.example(0, index) != drawn[0][index]));
    assert_eq!(all.example(0, 6), None, "a sequence beyond the examples stays as it is");
}

#[test]
fn what_has_no_prompt_or_would_be_too_long_stays() {
    let encoder = Encoder::new(open("bytelevel"), None);
    let settings =
        Augment { wordings: vec!["{prompt}{prompt}{prompt}".into()], token_dropout: 0.0, typing_errors: 0.0 };
    let long = Example::PromptCompletion { prompt: "a b c d e f ".into(), completion: "g".into() };
    let examples = [Example::Text { text: "plain".into() }, long.clone()];
    let unlimited = augmenter(&encoder, &settings, &examples);
    assert!(unlimited.sequence(0, 0).is_none() && unlimited.sequence(0, 1).is_some());
    let length = encoder.encode(&long).expect("encodes").ids.len();
    let limited = Augmenter { max_seq_tokens: length, ..augmenter(&encoder, &settings, &examples) };
    assert!(limited.sequence(0, 1).is_none());
}

/// The loss of every step of a run.
fn losses(folder: &TempDir, dir: &str, settings: &[&str]) -> Vec<f64> {
    let dir_setting = format!("output.dir={dir}");
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    json(&run(folder, &[&["train", "recipe.toml", "--json", "--set", &dir_setting][..], &settings].concat()));
    let metrics = fs::read_to_string(folder.path().join(dir).join("metrics.jsonl")).expect("metrics");
    let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.filter_map(|line| line["loss"].as_f64()).collect()
}

#[test]
fn a_run_trains_on_the_changed_prompts_whatever_the_micro_batch() {
    let folder = tiny_job();
    let asked = ["data.augment.typing_errors=0.3", "data.augment.wordings=[\"{prompt}\", \"Say: {prompt}\"]"];
    let plain = losses(&folder, "plain", &[]);
    let changed = losses(&folder, "changed", &asked);
    assert!(plain.len() == changed.len() && plain.iter().zip(&changed).all(|(plain, changed)| plain != changed));
    let cut = [&asked[..], &["train.micro_batch_seqs=1", "train.accumulate_steps=4"]].concat();
    for (cut, changed) in losses(&folder, "cut", &cut).iter().zip(&changed) {
        assert!((cut - changed).abs() <= 1e-5 * changed, "{cut}, not {changed}");
    }
    assert_eq!(losses(&folder, "again", &asked), changed);
}

#[test]
fn augmentation_of_plain_texts_is_refused_and_wordings_need_their_place() {
    let folder = tiny_job();
    fs::write(folder.path().join("texts.jsonl"), "{\"text\": \"one two\"}\n{\"text\": \"three four\"}\n")
        .expect("written");
    let texts = ["check", "recipe.toml", "--set", "data.train=texts.jsonl", "--set", "data.augment.typing_errors=0.1"];
    let error = refused(&run(&folder, &texts));
    assert!(error.contains("`data.augment` changes prompts") && error.contains("plain texts"), "{error}");
    let error = refused(&run(&folder, &["check", "recipe.toml", "--set", "data.augment.wordings=[\"Say it\"]"]));
    assert!(error.contains("texts with `{prompt}` in them"), "{error}");
}

#[test]
fn rehearsal_is_a_share_of_every_epoch_drawn_anew() {
    let folder = tempfile::tempdir().expect("folder");
    let file = |name: &str, rows: usize| {
        let row = |number: usize| format!("{{\"prompt\": \"{name} {number} \", \"completion\": \"{number}\"}}\n");
        let path = folder.path().join(name);
        fs::write(&path, (0..rows).map(row).collect::<String>()).expect("written");
        path.display().to_string()
    };
    let (own, general) = (file("own.jsonl", 30), file("general.jsonl", 100));
    let read = |share: f64| {
        let text = format!(
            "[base]\nmodel = \"m.gguf\"\n[data]\ntrain = {own:?}\n[data.rehearsal]\npath = {general:?}\nshare = {share}\n\
             [output]\ndir = \"o\"\n"
        );
        let plan = Recipe::parse(&text, "r.toml", &[]).and_then(|recipe| recipe.settings()).expect("valid");
        read_examples(&plan).expect("reads")
    };
    let examples = read(0.25);
    assert_eq!((examples.own, examples.train.len()), (30, 130));
    let sequences: Vec<Encoded> = examples
        .train
        .iter()
        .map(|row| Encoded {
            ids: vec![1, 2],
            trained: vec![false, true],
            untrained_turns: 0,
            weight: row.weight,
            judged: Judged::Not,
        })
        .collect();
    let batching = Batching { micro_batch_seqs: 4, packed_tokens: None, accumulate_steps: 1, seed: 3 };
    let mut seen = HashSet::new();
    for epoch in 0..6 {
        let drawn = batching.steps(&sequences, epoch).concat().concat();
        assert_eq!(drawn.iter().filter(|index| **index < 30).collect::<HashSet<_>>().len(), 30);
        let general: Vec<usize> = drawn.into_iter().filter(|index| *index >= 30).collect();
        assert_eq!(general.len(), 10, "a quarter of 40");
        seen.extend(general);
    }
    assert!(seen.len() > 35, "{} of 100 in six epochs", seen.len());
    assert_ne!(read(0.25).train_sha256, {
        file("general.jsonl", 99);
        read(0.25).train_sha256
    });
}

#[test]
fn a_run_with_rehearsal_has_more_steps_and_augments_its_own_examples_only() {
    let folder = tiny_job();
    let general = "{\"prompt\": \"Name a colour: \", \"completion\": \"red\"}\n".repeat(5);
    fs::write(folder.path().join("general.jsonl"), general).expect("written");
    let rehearsal = ["data.rehearsal.path=general.jsonl", "data.rehearsal.share=0.5"];
    let plain = losses(&folder, "plain", &[]);
    let mixed = losses(&folder, "mixed", &rehearsal);
    // 21 examples make 6 steps of 4, 42 make 11.
    assert_eq!((plain.len(), mixed.len()), (12, 22));
    losses(&folder, "both", &[&rehearsal[..], &["data.augment.typing_errors=0.2"]].concat());
    let error = refused(&run(&folder, &["check", "recipe.toml", "--set", "data.rehearsal.path=none.jsonl"]));
    assert!(error.contains("`data.rehearsal.path`: none.jsonl"), "{error}");
}
