//! The order of turns in a conversation, and its calls of tools.

use serde_json::Value;

use super::catalogue::Code;
use super::survey::Survey;
use super::view::View;
use crate::data::example::{Message, Role};

/// The findings about the turns of a row.
pub(super) fn findings(view: &View<'_>, survey: &Survey, found: &mut Vec<(Code, String)>) {
    let turns = view.messages;
    if turns.is_empty() {
        return;
    }
    let mut add = |code: Code| found.push((code, String::new()));
    if turns.last().is_some_and(|turn| turn.role != Role::Assistant) {
        add(Code::EndsWithUser);
    }
    let is_instruction = |turn: &&Message| turn.role == Role::System || turn.role.name() == "developer";
    if turns.iter().find(|turn| !is_instruction(turn)).is_some_and(|turn| turn.role == Role::Assistant) {
        add(Code::BeginsWithAssistant);
    }
    if turns.iter().skip(1).any(|turn| turn.role == Role::System) {
        add(Code::LateSystem);
    }
    // Several results of tools, and a call after words, follow each other by right.
    let is_twice = |pair: &[Message]| {
        let [first, second] = pair else { return false };
        first.role == second.role
            && matches!(first.role, Role::User | Role::Assistant)
            && calls(first).next().is_none()
            && calls(second).next().is_none()
    };
    if turns.windows(2).any(is_twice) {
        add(Code::SameRoleTwice);
    }
    if survey.system_is_usual && !view.has_system() {
        add(Code::SystemMissing);
    }
    let declared: Option<Vec<&str>> =
        view.tools.and_then(Value::as_array).map(|tools| tools.iter().filter_map(name).collect());
    let mut pending = 0usize;
    for turn in turns {
        for call in calls(turn) {
            pending += 1;
            if declared.as_ref().is_some_and(|declared| name(call).is_none_or(|name| !declared.contains(&name))) {
                add(Code::UnknownTool);
            }
            let is_object = match &function(call)["arguments"] {
                Value::String(text) => serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object()),
                Value::Object(_) | Value::Null => true,
                _ => false,
            };
            if !is_object {
                add(Code::BrokenArguments);
            }
        }
        if turn.role.name() == "tool" {
            match pending {
                0 => add(Code::ResultWithoutCall),
                _ => pending -= 1,
            }
        }
    }
}

fn calls(turn: &Message) -> impl Iterator<Item = &Value> {
    turn.more.get("tool_calls").and_then(Value::as_array).into_iter().flatten()
}

/// The object that holds `name` and `arguments`.
fn function(call: &Value) -> &Value {
    if call["function"].is_object() { &call["function"] } else { call }
}

fn name(call: &Value) -> Option<&str> {
    function(call)["name"].as_str()
}
