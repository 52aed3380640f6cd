//! The record of a run in the shape of transformers' `trainer_state.json` (`TrainerState` in `trainer_callback.py`), for scripts that
//! read that file.

use serde_json::{Map, Value, json};

use super::folder::RunFiles;

/// The state of a run as transformers' trainer would have written it.
pub fn trainer_state(run: &RunFiles) -> Value {
    let outcome = run.outcome();
    let plan = &run.record.value["plan"];
    let steps = run.last_step();
    let examples = run.record.value["data"]["train"]["examples"].as_f64().unwrap_or(0.0);
    let sequences = |key: &str| plan["train"][key].as_f64().unwrap_or(1.0);
    let of_step = sequences("micro_batch_seqs") * sequences("accumulate_steps");
    let steps_of_epoch = (examples / of_step).ceil().max(1.0);
    let epoch = |step: u64| step as f64 / steps_of_epoch;
    let mut history = Vec::new();
    for line in run.metrics.values() {
        let Some(step) = line["step"].as_u64() else { continue };
        let mut entry = Map::new();
        entry.insert("epoch".to_owned(), json!(epoch(step)));
        for (key, value) in line.as_object().into_iter().flatten() {
            let name = match key.as_str() {
                "step" | "epoch" => continue,
                key => key.strip_prefix("valid_").map_or_else(|| key.to_owned(), |name| format!("eval_{name}")),
            };
            entry.insert(name, value.clone());
        }
        entry.insert("step".to_owned(), json!(step));
        history.push(Value::Object(entry));
    }
    let metric = outcome["validation"]["loss_after"].as_f64();
    json!({
        "best_global_step": outcome["best_step"],
        "best_metric": metric,
        "best_model_checkpoint": Value::Null,
        "epoch": epoch(steps),
        "eval_steps": plan["train"]["eval_steps"],
        "global_step": steps,
        "is_hyper_param_search": false,
        "is_local_process_zero": true,
        "is_world_process_zero": true,
        "log_history": history,
        "logging_steps": 1,
        "max_steps": outcome["steps"].as_u64().unwrap_or(steps),
        "num_train_epochs": plan["train"]["epochs"],
        "stateful_callbacks": {},
        "total_flos": 0.0,
        "train_batch_size": plan["train"]["micro_batch_seqs"],
        "trial_name": Value::Null,
        "trial_params": Value::Null,
    })
}
