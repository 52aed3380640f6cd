//! Alpaca examples as conversations and as Alpaca's own prompts.

use super::example::Message;

/// Alpaca's own prompt (stanford_alpaca `train.py`), for models without a chat template.
const WITH_INPUT: &str = "Below is an instruction that describes a task, paired with an input that provides \
                          further context. Write a response that appropriately completes the request.";
const WITHOUT_INPUT: &str = "Below is an instruction that describes a task. Write a response that appropriately \
                             completes the request.";

/// An Alpaca example as a conversation.
pub(super) fn messages(instruction: &str, input: &str, output: &str, system: Option<&str>) -> Vec<Message> {
    let question = match input.trim().is_empty() {
        true => instruction.to_owned(),
        false => format!("{instruction}\n\n{input}"),
    };
    let mut messages: Vec<Message> = system.into_iter().map(Message::system).collect();
    messages.extend([Message::user(question), Message::assistant(output)]);
    messages
}

/// Alpaca's own prompt up to the response. A system text takes the place of its first sentence.
pub(super) fn prompt(instruction: &str, input: &str, system: Option<&str>) -> String {
    let has_input = !input.trim().is_empty();
    let opening = system.unwrap_or(if has_input { WITH_INPUT } else { WITHOUT_INPUT });
    let input = if has_input { format!("### Input:\n{input}\n\n") } else { String::new() };
    format!("{opening}\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n")
}
