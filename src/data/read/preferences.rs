//! Preferences: two answers of which one is chosen, in the spellings of TRL, UltraFeedback, HH and LLaMA-Factory; and answers with
//! a label.

use serde_json::Value;

use super::fields::{Fields, shown};
use super::{shape, turns};
use crate::data::example::{Example, Message, Role};

/// A chosen and a rejected answer to a prompt: texts, or lists of turns. Without a prompt, it is what both begin with.
pub(super) fn pair(fields: &mut Fields) -> Result<Example, String> {
    let keys = ["chosen", "rejected"];
    keys.into_iter().for_each(|key| fields.wrap_object(key));
    let is_list = |fields: &Fields, key: &str| fields.peek(key).is_some_and(Value::is_array);
    let turns_before = ["prompt", "conversations", "messages"].into_iter().find(|key| is_list(fields, key));
    match keys.map(|key| is_list(fields, key)) {
        [true, true] => of_turns(turns_before, fields),
        [false, false] => match turns_before {
            Some(key) => {
                let prompt = turns::list(fields, key)?;
                let answers = [fields.text("chosen")?, fields.text("rejected")?];
                conversations(prompt, answers.map(|answer| vec![Message::assistant(answer)]), fields)
            }
            None => of_texts(fields),
        },
        [chosen, _] => {
            let (list, text) = if chosen { ("chosen", "rejected") } else { ("rejected", "chosen") };
            let found = shown(fields.peek(text).unwrap_or(&Value::Null));
            let (list, text) = (fields.columns.name(list), fields.columns.name(text));
            Err(format!("`{list}` is a list, and `{text}` is {found}; expected two texts or two lists of turns"))
        }
    }
}

/// A prompt and a completion with a label.
pub(super) fn labelled(fields: &mut Fields) -> Result<Example, String> {
    let key = fields.columns.name("label");
    let is_desirable = match fields.take("label") {
        Some(Value::Bool(label)) => label,
        Some(Value::Number(label)) if [Some(0.0), Some(1.0)].contains(&label.as_f64()) => label.as_f64() == Some(1.0),
        Some(Value::String(label)) if ["true", "1"].contains(&label.trim().to_ascii_lowercase().as_str()) => true,
        Some(Value::String(label)) if ["false", "0"].contains(&label.trim().to_ascii_lowercase().as_str()) => false,
        Some(other) => return Err(format!("`{key}` is {}; expected true or false", shown(&other))),
        None => return Err(format!("`{key}` is missing; expected true where the completion is desirable, or false")),
    };
    Ok(Example::Labelled { answered: Box::new(shape::prompt_completion(fields)?), is_desirable })
}

/// Two lists of turns. The prompt stands under `before`, or beside them as a text, or at the beginning of both.
fn of_turns(before: Option<&str>, fields: &mut Fields) -> Result<Example, String> {
    let mut answers = [turns::list(fields, "chosen")?, turns::list(fields, "rejected")?];
    let mut prompt = before.map(|key| turns::list(fields, key)).transpose()?.unwrap_or_default();
    let shared = answers[0].iter().zip(&answers[1]).take_while(|(chosen, rejected)| chosen == rejected).count();
    // An answer has one turn at least, also where both are the same.
    let shared = shared.min(answers[0].len() - 1).min(answers[1].len() - 1);
    let begins_with_prompt = answers.iter().all(|answer| answer.starts_with(&prompt)) && shared >= prompt.len();
    let asks = answers[0][..shared].iter().any(|turn| turn.role == Role::User);
    if prompt.is_empty() && !asks {
        let text = fields.optional_text("prompt")?;
        prompt.extend(text.map(Message::user));
        if prompt.is_empty() {
            let [chosen, rejected] = ["chosen", "rejected"].map(|key| fields.columns.name(key));
            return Err(format!(
                "`{chosen}` and `{rejected}` begin with no turn of a user that both have, and there is no prompt"
            ));
        }
    } else if begins_with_prompt {
        prompt = answers[0][..shared].to_vec();
        answers.iter_mut().for_each(|answer| drop(answer.drain(..shared)));
        // UltraFeedback has the question once more, as a text.
        let is_repeated =
            prompt.iter().any(|turn| fields.peek("prompt").and_then(Value::as_str) == Some(&turn.content));
        if is_repeated {
            fields.take("prompt");
        }
    }
    conversations(prompt, answers, fields)
}

/// The pair of conversations of `prompt` with each answer, with the system text and the tools that stand beside them. The prompt
/// is not trained.
fn conversations(mut prompt: Vec<Message>, answers: [Vec<Message>; 2], fields: &mut Fields) -> Result<Example, String> {
    prompt.iter_mut().for_each(|message| message.trained = false);
    let conversation = shape::conversation(prompt, fields)?;
    let with = |answer: Vec<Message>| {
        let mut conversation = conversation.clone();
        if let Example::Chat { messages, .. } = &mut conversation {
            messages.extend(answer);
        }
        Box::new(conversation)
    };
    let [chosen, rejected] = answers.map(with);
    Ok(Example::Preference { chosen, rejected })
}

/// Two texts with a prompt, an instruction or the words that both begin with.
fn of_texts(fields: &mut Fields) -> Result<Example, String> {
    let answers = [fields.text("chosen")?, fields.text("rejected")?];
    let pair = |examples: [Example; 2]| {
        let [chosen, rejected] = examples.map(Box::new);
        Example::Preference { chosen, rejected }
    };
    if let Some(prompt) = fields.optional_text("prompt")? {
        return Ok(pair(answers.map(|completion| Example::PromptCompletion { prompt: prompt.clone(), completion })));
    }
    if let Some(instruction) = fields.optional_text("instruction")? {
        let input = fields.optional_text("input")?.unwrap_or_default();
        let system = fields.optional_text("system")?.filter(|system| !system.is_empty());
        let alpaca = |output| Example::Alpaca {
            instruction: instruction.clone(),
            input: input.clone(),
            output,
            system: system.clone(),
        };
        return Ok(pair(answers.map(alpaca)));
    }
    let shared = shared_words(&answers[0], &answers[1]);
    if answers[0][..shared].trim().is_empty() {
        let [prompt, chosen, rejected] = ["prompt", "chosen", "rejected"].map(|key| fields.columns.name(key));
        return Err(format!("`{prompt}` is missing, and `{chosen}` and `{rejected}` do not begin with the same words"));
    }
    let split = |text: String| Example::PromptCompletion {
        prompt: text[..shared].to_owned(),
        completion: text[shared..].to_owned(),
    };
    Ok(pair(answers.map(split)))
}

/// The length in bytes of the whole words that both texts begin with. The white space after them belongs to the answers.
fn shared_words(a: &str, b: &str) -> usize {
    let same: usize = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(symbol, _)| symbol.len_utf8()).sum();
    let shared = &a[..same];
    // Behind the last white space a word may have begun that goes on differently.
    shared.trim_end_matches(|symbol: char| !symbol.is_whitespace()).trim_end().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::read::jsonl::parse;

    fn read(row: &str) -> Example {
        parse(row.as_bytes(), "d.jsonl", None).unwrap_or_else(|error| panic!("{row}: {error}")).remove(0).example
    }

    fn problem(row: &str) -> String {
        parse(row.as_bytes(), "d.jsonl", None).expect_err(row).to_string()
    }

    /// Of each answer the turns, those that are not trained in brackets.
    fn shown_turns(example: &Example) -> [String; 2] {
        let Example::Preference { chosen, rejected } = example else { panic!("a pair: {example:?}") };
        [chosen, rejected].map(|example| match &**example {
            Example::Chat { messages, .. } => {
                let shown = |turn: &Message| match turn.trained {
                    true => turn.content.clone(),
                    false => format!("[{}]", turn.content),
                };
                messages.iter().map(shown).collect::<Vec<_>>().join(" ")
            }
            Example::PromptCompletion { prompt, completion } => format!("[{prompt}]{completion}"),
            Example::Alpaca { instruction, output, .. } => format!("[{instruction}] {output}"),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn every_spelling_gives_one_prompt_and_two_answers() {
        let turn = |role: &str, text: &str| format!(r#"{{"role":"{role}","content":"{text}"}}"#);
        let (ask, good, bad) = (turn("user", "q"), turn("assistant", "a"), turn("assistant", "b"));
        for row in [
            format!(r#"{{"prompt":[{ask}],"chosen":[{good}],"rejected":[{bad}]}}"#),
            format!(r#"{{"chosen":[{ask},{good}],"rejected":[{ask},{bad}]}}"#),
            format!(r#"{{"prompt":[{ask}],"chosen":[{ask},{good}],"rejected":[{ask},{bad}]}}"#),
            format!(r#"{{"prompt":"q","chosen":[{ask},{good}],"rejected":[{ask},{bad}]}}"#),
            format!(r#"{{"prompt":"q","chosen":[{good}],"rejected":[{bad}]}}"#),
            format!(r#"{{"prompt":[{ask}],"chosen":"a","rejected":"b"}}"#),
            r#"{"conversations":[{"from":"human","value":"q"}],"chosen":{"from":"gpt","value":"a"},
                "rejected":{"from":"gpt","value":"b"}}"#
                .replace('\n', ""),
            r#"{"instruction":"q","chosen":"a","rejected":"b"}"#.to_owned(),
        ] {
            assert_eq!(shown_turns(&read(&row)), ["[q] a", "[q] b"], "{row}");
        }
        let same = format!(r#"{{"chosen":[{ask},{good}],"rejected":[{ask},{good}]}}"#);
        assert_eq!(shown_turns(&read(&same)), ["[q] a", "[q] a"], "an answer stays an answer where both are the same");
        let system = format!(r#"{{"system":"s","prompt":[{ask}],"chosen":[{good}],"rejected":[{bad}]}}"#);
        assert_eq!(shown_turns(&read(&system)), ["s [q] a", "s [q] b"]);
        assert_eq!(
            shown_turns(&read(r#"{"prompt":"q ","chosen":"a","rejected":"b"}"#)),
            ["[q ]a", "[q ]b"],
            "texts stand as they are"
        );
        let implicit = r#"{"chosen":"Human: Hi\n\nBot: well met","rejected":"Human: Hi\n\nBot: weird"}"#;
        assert_eq!(shown_turns(&read(implicit)), ["[Human: Hi\n\nBot:] well met", "[Human: Hi\n\nBot:] weird"]);
    }

    #[test]
    fn a_pair_without_a_prompt_or_of_two_kinds_is_a_problem() {
        assert!(problem(r#"{"chosen":"a","rejected":"b"}"#).contains("do not begin with the same words"));
        let turn = r#"{"role":"assistant","content":"a"}"#;
        assert!(problem(&format!(r#"{{"chosen":[{turn}],"rejected":[{turn}]}}"#)).contains("there is no prompt"));
        let mixed = problem(&format!(r#"{{"prompt":"q","chosen":[{turn}],"rejected":"b"}}"#));
        assert!(mixed.contains("`chosen` is a list, and `rejected` is a text"), "{mixed}");
    }

    #[test]
    fn labels_are_true_or_false() {
        use crate::data::Format;
        let row = |label: &str| format!(r#"{{"prompt":"q","completion":"a","label":{label}}}"#);
        for (label, expected) in [("true", true), ("0", false), ("\"True\"", true), ("1.0", true)] {
            let rows = parse(row(label).as_bytes(), "d.jsonl", Some(Format::Labelled)).expect("good");
            assert!(matches!(rows[0].example, Example::Labelled { is_desirable, .. } if is_desirable == expected));
        }
        for label in ["2", "\"good\"", "null"] {
            let error = parse(row(label).as_bytes(), "d.jsonl", Some(Format::Labelled)).expect_err(label).to_string();
            assert!(error.contains("`label` is ") && error.contains("true"), "{error}");
        }
        assert!(matches!(read(&row("true")), Example::PromptCompletion { .. }), "a label alone makes no preference");
    }
}
