//! Answers that are no good answers: empty, cut off, placeholders, loops, labels.

use std::sync::LazyLock;

use regex::Regex;

use super::catalogue::Code;
use super::survey::Survey;
use super::view::{Part, View};

/// The fewest letters of an answer that is looked at for being cut off.
const MIN_CUT_CHARACTERS: usize = 40;

/// A regular expression of this module.
pub(super) fn regex(pattern: &str) -> Regex {
    #[expect(clippy::expect_used, reason = "the patterns are constants, and a test compiles each")]
    Regex::new(pattern).expect("a valid pattern")
}

/// The findings about the answers of a row.
pub(super) fn findings(view: &View<'_>, survey: &Survey, found: &mut Vec<(Code, String)>) {
    let mut add = |code: Code| found.push((code, String::new()));
    for answer in view.answers() {
        let text = answer.trim();
        if text.is_empty() {
            add(Code::EmptyAnswer);
            continue;
        }
        if is_cut_off(text, survey) {
            add(Code::TruncatedAnswer);
        }
        if is_placeholder(text, survey) {
            add(Code::PlaceholderAnswer);
        }
        if UNFILLED.is_match(text) {
            add(Code::Unfilled);
        }
        if is_boilerplate(text) {
            add(Code::Boilerplate);
        }
        if is_repetitive(text) {
            add(Code::RepetitiveAnswer);
        }
        if !has_paired_think_tags(text) {
            add(Code::ThinkTags);
        }
        if text.lines().filter(|line| line.trim_start().starts_with("```")).count() % 2 == 1 {
            add(Code::OpenFence);
        }
        if !survey.label_is_usual && LABEL.is_match(text) {
            add(Code::RoleLabel);
        }
        if RUN_ON.is_match(text) {
            add(Code::RunOnAnswer);
        }
        if survey.json_is_usual && serde_json::from_str::<serde_json::Value>(text).is_err() {
            add(Code::BrokenJson);
        }
    }
    if let Some((before, answer)) = view.last_exchange() {
        if repeats_prompt(before, answer) {
            add(Code::AnswerRepeatsPrompt);
        }
        let prompts = before.iter().filter(|(part, _)| *part == Part::Prompt);
        if !before.is_empty() && prompts.clone().count() > 0 && prompts.clone().all(|(_, text)| text.trim().is_empty())
        {
            add(Code::EmptyPrompt);
        }
        if view.is_bare && !before.is_empty() {
            if survey.usual_edge.is_some_and(|usual| usual != Edge::of(answer)) {
                add(Code::AnswerEdge);
            }
            let prompt = view.last_prompt().unwrap_or_default();
            if survey.usual_prompt_end.as_ref().is_some_and(|usual| *usual != prompt_end(prompt)) {
                add(Code::PromptEnd);
            }
        }
    }
}

/// White space at the edges of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Edge {
    begins: bool,
    ends: bool,
}

impl Edge {
    pub(super) fn of(answer: &str) -> Self {
        Self { begins: answer.starts_with(char::is_whitespace), ends: answer.ends_with(char::is_whitespace) }
    }
}

/// The end of a bare prompt, which tells the model that its answer comes: the last characters but for letters.
pub(super) fn prompt_end(prompt: &str) -> String {
    let mut end: Vec<char> = prompt.chars().rev().take_while(|symbol| !symbol.is_alphanumeric()).take(3).collect();
    end.reverse();
    end.into_iter().collect()
}

/// Whether a text ends like a sentence, a quotation, a bracket or a piece of code.
pub(super) fn ends_like_a_sentence(text: &str) -> bool {
    text.trim_end().ends_with(|symbol: char| !symbol.is_alphanumeric() && !",;:([{-–—，、；：（【".contains(symbol))
}

/// Words that no sentence ends with.
const NEVER_LAST: [&str; 14] =
    ["the", "a", "an", "and", "or", "of", "with", "because", "which", "than", "their", "its", "your", "if"];

fn is_cut_off(text: &str, survey: &Survey) -> bool {
    if matches!(text.chars().next(), Some('{' | '[')) && opens_more_than_it_closes(text) {
        return true;
    }
    if text.chars().take(MIN_CUT_CHARACTERS).count() < MIN_CUT_CHARACTERS {
        return false;
    }
    if text.ends_with([',', '(', '[', '{', '，', '、', '（', '【']) {
        return true;
    }
    // Statements of SQL and of programs end so, where they are the usual answers.
    if survey.sentences_are_usual && text.ends_with([';', '；']) {
        return true;
    }
    let last = text.rsplit(|symbol: char| !symbol.is_alphabetic()).next().unwrap_or_default();
    let last_line = text.lines().next_back().unwrap_or_default();
    // In an indented line, the word is the name of a variable.
    if NEVER_LAST.contains(&last) && !last_line.starts_with([' ', '\t']) {
        return true;
    }
    // Prose that stops in the middle, where no other answer does.
    // The author of a quotation ends no sentence.
    let is_quotation = SOURCE.is_match(last_line);
    survey.sentences_are_usual && last_line.len() >= MIN_CUT_CHARACTERS && !is_quotation && !ends_like_a_sentence(text)
}

/// Whether a JSON value ends before its brackets are closed.
fn opens_more_than_it_closes(text: &str) -> bool {
    let (mut depth, mut quoted, mut escaped) = (0i64, false, false);
    for symbol in text.chars() {
        match symbol {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            '[' | '{' => depth += 1,
            ']' | '}' => depth -= 1,
            _ => {}
        }
    }
    depth > 0
}

/// Answers that stand for an answer.
const PLACEHOLDERS: [&str; 26] = [
    "todo",
    "tbd",
    "fixme",
    "n/a",
    "xxx",
    "placeholder",
    "your answer here",
    "answer here",
    "insert answer here",
    "lorem ipsum",
    "nooutput",
    "noinput",
    "no output",
    "no input",
    "nan",
    "null",
    "undefined",
    "none",
    "empty",
    "test",
    "asdf",
    "待补充",
    "待定",
    "无",
    "略",
    "output",
];

fn is_placeholder(text: &str, survey: &Survey) -> bool {
    let bare = text.trim_matches(|symbol: char| !symbol.is_alphanumeric()).to_lowercase();
    if bare.is_empty() {
        // Dots, dashes, question marks; a symbol may be an answer.
        return text.chars().all(|symbol| ".-_?…*#".contains(symbol)) && !survey.is_label(text);
    }
    (PLACEHOLDERS.contains(&bare.as_str()) && !survey.is_label(text)) || bare.starts_with("lorem ipsum")
}

fn is_boilerplate(text: &str) -> bool {
    let beginning: String = text.chars().take(300).flat_map(char::to_lowercase).collect();
    BOILERPLATE.is_match(&beginning)
}

fn repeats_prompt(before: &[(Part, &str)], answer: &str) -> bool {
    let prompts: Vec<&str> =
        before.iter().filter(|(part, _)| *part == Part::Prompt).map(|(_, text)| text.trim()).collect();
    let is_long = |text: &&&str| text.len() >= 20;
    let last = prompts
        .last()
        .filter(is_long)
        .is_some_and(|prompt| prompts.len() == 1 && answer.trim_start().starts_with(prompt));
    // An instruction with its input: the instruction alone shows that it was copied.
    let first = prompts
        .first()
        .filter(is_long)
        .is_some_and(|prompt| prompts.len() > 1 && answer.trim_start().starts_with(prompt));
    last || first
}

/// Whether the same words come again and again: a line, a word or a short run of words.
fn is_repetitive(text: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let words: Vec<&str> = text.split_whitespace().collect();
    repeats(&lines, 1, 5, |line| line.len() >= 8)
        || repeats(&words, 1, 10, |word| word.chars().any(char::is_alphabetic))
        || (2..=12).any(|period| repeats(&words, period, 5, |word| word.chars().any(char::is_alphabetic)))
        || repeats(&text.chars().collect::<Vec<char>>(), 1, 25, |symbol| symbol.is_alphabetic())
}

/// Whether a run of `period` items comes `times` times in a row, at least one item of it being counted.
fn repeats<T: PartialEq>(items: &[T], period: usize, times: usize, counts: impl Fn(&T) -> bool) -> bool {
    let mut run = 0;
    for at in period..items.len() {
        run = if items[at] == items[at - period] { run + 1 } else { 0 };
        if run >= period * (times - 1) && items[at - period..at].iter().any(&counts) {
            return true;
        }
    }
    false
}

/// Whether every think tag that is opened is closed, and none is closed that was not opened. An answer may begin within a
/// thought that the template opens, so a first closing tag alone is fine.
fn has_paired_think_tags(text: &str) -> bool {
    for (open, close) in [("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<reasoning>", "</reasoning>")] {
        let (opened, closed) = (text.matches(open).count(), text.matches(close).count());
        let in_order = text.find(open).zip(text.find(close)).is_none_or(|(open, close)| open < close);
        if opened != closed || !in_order {
            return false;
        }
    }
    true
}

/// A label that names the speaker.
pub(super) static LABEL: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"^(?i)(?:\*\*)?(?:assistant|ai assistant|chatgpt|gpt|bot|model|response|###\s*(?:response|assistant|answer|output)|助手|回复)(?:\*\*)?\s*[:：]",
    )
});

/// The next turn of a user within an answer.
static RUN_ON: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"\n\s*(?:###\s*(?:Instruction|Input|Human|User)\b|(?:Human|USER|<\|user\|>|\[INST\])\s*[:：]?\s)|<\|im_start\|>user|<start_of_turn>user|<\|start_header_id\|>user",
    )
});

/// The author behind a quotation.
static SOURCE: LazyLock<Regex> = LazyLock::new(|| regex(r#"["”’」]\s*[-–—]+\s*[^-–—]{2,40}$"#));

static UNFILLED: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"(?i)\[\s*(?:insert|your|enter|add)\b[^\]\n]{0,60}\]|<\s*(?:insert|your answer)\b[^>\n]{0,60}>|^\{\{[^}]*\}\}$",
    )
});

static BOILERPLATE: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"as an? (?:ai|artificial intelligence|large language model)\b|\bi(?:'|’)?m (?:just )?an ai\b|i am (?:just )?an ai\b|i(?:'|’)m sorry, (?:but )?i can(?:'|’|no)|i apologi[sz]e, but i can|i cannot (?:fulfill|assist|help with)|作为一[个种款名]?(?:ai|人工智能|语言模型)|(?:抱歉|对不起)，(?:但)?我(?:无法|不能)|我是一[个种款]?(?:ai|人工智能)",
    )
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged_by_their_form() {
        let usual = Survey { sentences_are_usual: true, ..Survey::default() };
        let cut = |text: &str| is_cut_off(text, &usual);
        assert!(cut("The reason for this is a long one, and it has to do with the"));
        assert!(cut("First, open the door. Then, when you have looked around, walk into the roo"));
        assert!(cut("{\"name\": \"Mira\", \"tags\": [\"a\"") && !cut("{\"name\": \"Mi]ra\"}"));
        assert!(!cut("The door opens at ten and closes at four, every day but Monday."));
        assert!(!cut("\"What is written without effort is read without pleasure.\" - Samuel Johnson"));
        assert!(!is_cut_off("def gcd(a, b):\n    while b:\n        a, b = b, a % b\n    return a", &Survey::default()));
        let statement = "SELECT name, city FROM customers WHERE total > 1000 ORDER BY total;";
        assert!(cut(statement) && !is_cut_off(statement, &Survey::default()));
        assert!(!cut("Paris") && !cut("- an apple\n- a pear and a very long name of a fruit\n- a plum"));
        let survey = Survey::default();
        assert!(["TODO", "N/A", "...", "Lorem ipsum dolor sit amet"].iter().all(|text| is_placeholder(text, &survey)));
        assert!(!is_placeholder("None of them is right.", &survey) && !is_placeholder("+", &survey));
        assert!(
            is_boilerplate("As an AI language model, I do not eat.") && is_boilerplate("作为一个AI语言模型，我没有")
        );
        assert!(!is_boilerplate("An AI language model is a program."));
    }

    #[test]
    fn loops_tags_and_labels_are_seen() {
        assert!(is_repetitive(&"very ".repeat(12)) && is_repetitive(&"I do not know. ".repeat(6)));
        assert!(is_repetitive(&"哈".repeat(30)) && is_repetitive(&"the same line\n".repeat(5)));
        assert!(
            !is_repetitive("Row, row, row your boat, gently down the stream.")
                && !is_repetitive("| - | - | - | - | - |")
        );
        assert!(has_paired_think_tags("<think>a</think>b") && has_paired_think_tags("b"));
        assert!(!has_paired_think_tags("<think>a") && !has_paired_think_tags("a</think>b"));
        assert!(!has_paired_think_tags("</think>a<think>"));
        assert!(LABEL.is_match("Assistant: hello") && !LABEL.is_match("The assistant: hello"));
        assert!(RUN_ON.is_match("Fine.\n### Instruction:\nNext") && !RUN_ON.is_match("the user: x"));
        assert!(UNFILLED.is_match("Dear [insert name],") && BOILERPLATE.is_match("i'm sorry, but i cannot"));
        assert_eq!((prompt_end("What?\nA: "), prompt_end("no")), (": ".into(), String::new()));
    }
}
