//! The validation split: a share of the examples, drawn by seed, with examples of the same prompt on one side.

use std::collections::{HashMap, HashSet};

use super::batch::order;
use super::encoded::Encoded;
use super::example::{Example, Message, Role, Row};
use crate::error::{Error, Place, Result, counted};

/// Sets aside a `fraction` of the rows for validation, drawn by `seed`: `(train, valid)`, each in the original order and
/// neither empty. Rows of one group (`data.group`, else the prompt) stay together, so the share is met as closely as the
/// groups allow.
///
/// # Errors
/// Input: fewer than two rows, or all of them in one group.
pub fn split_valid(rows: Vec<Row>, fraction: f64, seed: u64) -> Result<(Vec<Row>, Vec<Row>)> {
    let setting = |message: String| Error::input(Place::setting("data.valid_fraction"), message);
    let count = rows.len();
    if !(fraction > 0.0 && fraction < 1.0) || count < 2 {
        let examples = counted(count, "example");
        return Err(setting(format!(
            "is {fraction} of {examples}; expected a share above 0 and below 1 of at least 2"
        )));
    }
    let groups = groups(&rows);
    if groups.len() < 2 {
        return Err(setting(format!("cannot split {count} examples that all have the same prompt or group"))
            .hint("give `data.valid`, or a `data.group` with several values"));
    }
    let wanted = ((count as f64 * fraction).round() as usize).clamp(1, count - 1);
    let mut chosen: HashSet<usize> = HashSet::new();
    // A stream of its own: the split must not follow the order of any epoch.
    for group in order(groups.len(), seed, u64::MAX) {
        if chosen.len() + groups[group].len() <= wanted {
            chosen.extend(&groups[group]);
        }
    }
    if chosen.is_empty() {
        // Every group is larger than the share: the smallest is nearest to it.
        chosen.extend(groups.iter().min_by_key(|group| group.len()).into_iter().flatten());
    }
    let (mut train, mut valid) = (Vec::with_capacity(count - chosen.len()), Vec::with_capacity(chosen.len()));
    for (index, row) in rows.into_iter().enumerate() {
        if chosen.contains(&index) { &mut valid } else { &mut train }.push(row);
    }
    Ok((train, valid))
}

/// The rows of each group, in the order of the first.
fn groups(rows: &[Row]) -> Vec<Vec<usize>> {
    let mut by_key: HashMap<String, usize> = HashMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let key = row.group.clone().unwrap_or_else(|| normalised(&prompt(&row.example)));
        let group = *by_key.entry(key).or_insert(groups.len());
        match groups.get_mut(group) {
            Some(rows) => rows.push(index),
            None => groups.push(vec![index]),
        }
    }
    groups
}

/// The text that an example asks with: all before the first answer, system texts aside, which many examples share; a plain
/// text itself.
fn prompt(example: &Example) -> String {
    match example {
        Example::PromptCompletion { prompt, .. } => prompt.clone(),
        Example::Alpaca { instruction, input, .. } => format!("{instruction}\n{input}"),
        Example::Text { text } | Example::Class { text, .. } => text.clone(),
        Example::Preference { .. } | Example::Labelled { .. } => prompt(example.plain()),
        Example::Chat { messages, .. } => {
            let asks = messages.iter().take_while(|message| message.role != Role::Assistant);
            let asks = asks.filter(|message| message.role != Role::System);
            let texts: Vec<&str> = asks.map(|Message { content, .. }| content.as_str()).collect();
            texts.join("\n")
        }
    }
}

/// A text without the differences that make no other question of it: case, punctuation and white space.
fn normalised(text: &str) -> String {
    let words = text.split(|symbol: char| !symbol.is_alphanumeric()).filter(|word| !word.is_empty());
    let words: Vec<String> = words.map(str::to_lowercase).collect();
    // A prompt of symbols alone stays what it is.
    if words.is_empty() { text.to_owned() } else { words.join(" ") }
}

/// The number of validation sequences that are also training sequences, token for token.
pub fn seen_in_training(train: &[Encoded], valid: &[Encoded]) -> usize {
    let seen: HashSet<&[u32]> = train.iter().map(|sequence| sequence.ids.as_slice()).collect();
    valid.iter().filter(|sequence| seen.contains(sequence.ids.as_slice())).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::position::Position;

    fn rows(prompts: &[&str]) -> Vec<Row> {
        let pair = |prompt: &str| Example::PromptCompletion { prompt: prompt.into(), completion: "a".into() };
        prompts.iter().zip(1..).map(|(prompt, line)| Row::new(Position::line("d.jsonl", line), pair(prompt))).collect()
    }

    fn lines(rows: &[Row]) -> Vec<usize> {
        rows.iter().map(|row| row.position.number()).collect()
    }

    #[test]
    fn a_split_is_disjoint_complete_and_repeatable() {
        let prompts: Vec<String> = (0..50).map(|number| format!("question {number}")).collect();
        let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let (train, valid) = split_valid(rows(&prompts), 0.1, 3).expect("split");
        assert_eq!((train.len(), valid.len()), (45, 5));
        let mut all = [lines(&train), lines(&valid)].concat();
        all.sort_unstable();
        assert_eq!(all, (1..=50).collect::<Vec<_>>());
        assert_eq!(split_valid(rows(&prompts), 0.1, 3).expect("split"), (train, valid));
        assert!(split_valid(rows(&["a"]), 0.5, 0).is_err());
        assert!(split_valid(rows(&["a", "b", "c"]), f64::NAN, 0).is_err());
    }

    #[test]
    fn a_prompt_never_lies_on_both_sides() {
        // Twenty prompts, three times each, in different spellings.
        let prompts: Vec<String> = (0..60)
            .map(|number| {
                [" Where is {}?", "where is  {}", "WHERE IS {}!"][number / 20].replace("{}", &(number % 20).to_string())
            })
            .collect();
        let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        for seed in 0..20 {
            let (train, valid) = split_valid(rows(&prompts), 0.25, seed).expect("split");
            assert_eq!((train.len(), valid.len()), (45, 15), "seed {seed}");
            let of = |rows: &[Row]| -> HashSet<usize> { lines(rows).iter().map(|line| (line - 1) % 20).collect() };
            assert!(of(&train).is_disjoint(&of(&valid)), "seed {seed}");
        }
        let error = split_valid(rows(&["a", "A ", "a."]), 0.5, 0).expect_err("one prompt").to_string();
        assert!(error.contains("all have the same prompt"), "{error}");
        // Two groups, each larger than the share: the smaller one.
        let (train, valid) = split_valid(rows(&["a", "a", "a", "b", "b"]), 0.1, 0).expect("split");
        assert_eq!((lines(&train), lines(&valid)), (vec![1, 2, 3], vec![4, 5]));
    }

    #[test]
    fn a_column_decides_what_belongs_together() {
        let mut rows = rows(&["a", "b", "c", "d", "e", "f"]);
        for (index, row) in rows.iter_mut().enumerate() {
            row.group = Some(["x", "y", "z"][index % 3].into());
        }
        let (train, valid) = split_valid(rows, 0.34, 1).expect("split");
        assert_eq!((train.len(), valid.len()), (4, 2));
        assert_eq!(valid[0].group, valid[1].group);
    }

    #[test]
    fn a_conversation_asks_with_its_first_turns() {
        let talk = |turns: &[Message]| prompt(&Example::Chat { messages: turns.to_vec(), tools: None });
        let (user, answer) = (Message::user("Where?"), Message::assistant("Here."));
        let with_system = [Message::system("Be brief."), user.clone(), answer.clone(), Message::user("And?")];
        assert_eq!(talk(&with_system), talk(&[user, answer]));
        assert_eq!(normalised("..."), "...");
    }
}
