//! Configurations of axolotl.

use super::draft::{Draft, Source};
use super::rules::Rule::{By, No, To, Words};
use super::rules::{
    self, ATTENTION, COMPILED, GENERATION, LOADING, LOGGING, MASK, PADDING, PICTURES, PROCESSES, TRACKER, Table, UPLOAD,
};
use super::transformers::SCHEDULES;
use super::value::{Entry, Value};

/// The keys that differ from those of transformers and PEFT.
pub(super) const KEYS: &Table = &[
    ("base_model", By(rules::base)),
    ("base_model_config", No("the configuration is that of the base")),
    ("base_model_ignore_patterns", No("a base is fetched with the files that it needs")),
    ("revision_of_model", By(rules::revision)),
    ("model_type", No("the family follows from the base")),
    ("tokenizer_*", No("the tokenizer is that of the base")),
    ("is_llama_derived_model", No("the family follows from the base")),
    ("is_mistral_derived_model", No("the family follows from the base")),
    ("is_qwen_derived_model", No("the family follows from the base")),
    ("is_falcon_derived_model", No("the family follows from the base")),
    ("load_in_4bit", By(|draft, entry| rules::four_bits(draft, entry, true))),
    ("gptq", No("bases packed by GPTQ are not read")),
    ("bnb_config_kwargs", No("`base.quant` is nf4 or nf4-double")),
    ("adapter", By(adapter)),
    ("lora_model_dir", To("adapter.from")),
    ("lora_target_linear", By(all_linear)),
    ("lora_fan_in_fan_out", No("the order of a weight follows from the base")),
    ("lora_on_cpu", No("the base is mapped, and never loaded twice")),
    ("peft_use_dora", To("adapter.dora")),
    ("peft_use_rslora", To("adapter.rslora")),
    ("peft_init_lora_weights", By(rules::first_values)),
    ("peft_layers_to_transform", By(rules::layers)),
    ("peft_layers_pattern", No("`adapter.layers` counts the layers of the model")),
    ("peft_trainable_token_indices", No("`adapter.new_tokens` names tokens by their texts")),
    ("peft*", No("an option of PEFT without an equal")),
    ("relora*", No("an adapter is not merged while it is trained")),
    ("jagged_restart*", No("a schedule has no restarts")),
    ("lisa_*", No("every adapted layer is trained in every step")),
    ("merge_*", No("`burnish merge` merges")),
    ("datasets", By(datasets)),
    ("test_datasets", By(valid_datasets)),
    ("pretraining_dataset", By(texts)),
    ("val_set_size", By(rules::held_out)),
    ("dataset_exact_deduplication", No("`burnish data clean --dedupe` writes a file without copies")),
    ("dataset_prepared_path", No("encoded examples are kept in the cache by themselves")),
    ("dataset_*", No(LOADING)),
    ("shuffle_merged_datasets", No(LOADING)),
    ("skip_prepare_dataset", No(LOADING)),
    ("streaming*", No("the files are read whole")),
    ("push_dataset_to_hub", No(UPLOAD)),
    ("hf_use_auth_token", No("`HF_TOKEN` gives access to the hub")),
    ("chat_template", By(rules::template)),
    ("chat_template_jinja", By(template_file)),
    ("default_system_message", No("a system text stands in the data or in the chat template")),
    ("eot_tokens", No("the end token is trained by its position")),
    ("train_on_inputs", No(MASK)),
    ("roles_to_train", No("the assistant's turns are trained; `\"weight\": 0` leaves one out")),
    ("train_on_eos", No("the end token of every trained turn is trained")),
    ("sequence_len", To("data.max_seq_tokens")),
    ("excess_length_strategy", Words("data.overlong", &[("drop", "drop"), ("raise", "error")])),
    ("min_sample_len", No("examples of which nothing is trained are left out")),
    ("max_prompt_len", No("`data.max_seq_tokens` holds for prompt and answer together")),
    ("sample_packing", To("data.packing")),
    ("eval_sample_packing", No(PADDING)),
    ("sample_packing_*", No(PADDING)),
    ("pad_to_sequence_len", No(PADDING)),
    ("group_by_length", No(PADDING)),
    ("curriculum_sampling", No(LOADING)),
    ("multipack_real_batches", No(PADDING)),
    ("batch_flattening", No(PADDING)),
    ("special_tokens", No("the special tokens are those of the base; `adapter.new_tokens` trains further ones")),
    ("tokens", By(|draft, entry| rules::names(draft, entry, "adapter.new_tokens"))),
    ("added_tokens_overrides", No("`adapter.new_tokens` adds tokens at the end of the vocabulary")),
    ("resize_token_embeddings_to_32x", No("the embedding keeps its rows")),
    ("mean_resizing_embeddings", No("new rows begin at values of their own")),
    ("shrink_embeddings", No("the embedding keeps its rows")),
    ("embeddings_skip_upcast", No("the embedding keeps the type of the file")),
    ("micro_batch_size", To("train.micro_batch_seqs")),
    ("batch_size", By(batch_size)),
    ("eval_batch_size", No("the size changes no figure of an evaluation")),
    ("num_epochs", By(rules::epochs)),
    ("optimizer", By(rules::optimiser)),
    ("lr_scheduler", Words("train.schedule", SCHEDULES)),
    ("cosine_min_lr_ratio", No("a schedule falls to 0")),
    ("cosine_constant_lr_ratio", No("`train.schedule = \"warmup-stable-decay\"` holds a rate for long")),
    ("lr_*", No("one rate, and `train.b_rate_ratio` for B")),
    ("embedding_lr*", No("one rate, and `train.b_rate_ratio` for B")),
    ("adam_epsilon2", No("1e-30 in Adafactor")),
    ("adam_beta3", No("an optimiser that is not here")),
    ("evals_per_epoch", No("`train.eval_steps` counts steps")),
    ("saves_per_epoch", No("`train.checkpoint_minutes` saves by time")),
    ("eval_table_size", No("`[sample]` answers validation prompts at every evaluation")),
    ("eval_max_new_tokens", To("sample.max_tokens")),
    ("do_causal_lm_eval", No(GENERATION)),
    ("eval_causal_lm_metrics", No(GENERATION)),
    ("do_bench_eval", No(GENERATION)),
    ("bench_*", No(GENERATION)),
    ("auto_resume_from_checkpoints", No("`burnish train --resume` goes on with a run")),
    ("loss_watchdog_*", No("`train.max_bad_steps` ends a run whose loss is not finite")),
    ("gc_steps", No("memory is planned before the run")),
    ("max_memory", No("`burnish train --max-memory SIZE` makes a run fit")),
    ("gpu_memory_limit", No("`burnish train --max-memory SIZE` makes a run fit")),
    ("bfloat16", By(rules::bf16)),
    ("float16", By(rules::fp16)),
    ("float32", By(single)),
    ("fp8", No("`base.compute` is bf16 or f32")),
    ("flash_*", No(ATTENTION)),
    ("xformers_attention", No(ATTENTION)),
    ("sdp_attention", No(ATTENTION)),
    ("s2_attention", No(ATTENTION)),
    ("flex_att*", No(ATTENTION)),
    ("eager_attention", No(ATTENTION)),
    ("sage_attention", No(ATTENTION)),
    ("unsloth_*", No(COMPILED)),
    ("lora_mlp_kernel", No(COMPILED)),
    ("lora_qkv_kernel", No(COMPILED)),
    ("lora_o_kernel", No(COMPILED)),
    ("liger_*", No(COMPILED)),
    ("cut_cross_entropy", No("logits exist for trained positions only, a chunk at a time")),
    ("plugins", No(COMPILED)),
    ("sequence_parallel_degree", No(PROCESSES)),
    ("context_parallel_size", No(PROCESSES)),
    ("tensor_parallel_size", No(PROCESSES)),
    ("heads_k_stride", No(PROCESSES)),
    ("ring_attn_func", No(PROCESSES)),
    ("ddp", No(PROCESSES)),
    ("world_size", No(PROCESSES)),
    ("ray_*", No(PROCESSES)),
    ("use_ray", No(PROCESSES)),
    ("device", No("`--device` chooses the device")),
    ("wandb_*", No(TRACKER)),
    ("use_wandb", No(TRACKER)),
    ("mlflow_*", No(TRACKER)),
    ("use_mlflow", No(TRACKER)),
    ("comet_*", No(TRACKER)),
    ("use_comet", No(TRACKER)),
    ("use_tensorboard", No(TRACKER)),
    ("profiler_steps", No(LOGGING)),
    ("gradio_*", No("`burnish serve` has a page for the browser")),
    ("processor_type", No(PICTURES)),
    ("image_*", No(PICTURES)),
    ("unfrozen_parameters", No("the adapter alone is trained")),
    ("qat", No("the base is not trained")),
    ("quantization", No("`burnish export` writes packed files")),
    ("strict", No("a key that is not known is always an error")),
    ("seed", To("train.seed")),
    (
        "rl",
        Words(
            "train.objective",
            &[("dpo", "dpo"), ("ipo", "ipo"), ("orpo", "orpo"), ("kto", "kto"), ("simpo", "simpo")],
        ),
    ),
    ("rl_beta", To("train.beta")),
    ("orpo_alpha", To("train.beta")),
    ("rpo_alpha", To("train.rpo_alpha")),
    ("simpo_gamma", To("train.target_margin")),
    ("dpo_label_smoothing", To("train.preference_smoothing")),
    ("kto_desirable_weight", To("train.desirable_weight")),
    ("kto_undesirable_weight", To("train.undesirable_weight")),
    ("cpo_alpha", No("SimPO without a term for the chosen answers")),
    ("dpo_*", No("the reference is the adapter before the first step")),
    ("reward_model", No("no model of rewards is trained")),
    ("process_reward_model", No("no model of rewards is trained")),
    ("num_labels", No("`train.objective = \"classify\"` finds the labels in the data")),
    ("vllm*", No("no answers are drawn while training")),
    ("trl", No("no answers are drawn while training")),
    ("use_pose", No("positions are those of the sequence")),
    ("pose_*", No("positions are those of the sequence")),
    ("noisy_embedding_alpha", To("train.neftune_alpha")),
];

/// The values that axolotl takes where its configuration says nothing.
pub(super) fn defaults(draft: &mut Draft) {
    draft.default("data.max_seq_tokens", 512, "axolotl's default");
    draft.default("adapter.dropout", 0.0, "axolotl's default");
    draft.default("train.micro_batch_seqs", 1, "axolotl's default");
    draft.default("train.schedule", "cosine", "axolotl's default");
    if !draft.has("train.warmup_steps") {
        draft.default("train.warmup_share", 0.03, "axolotl's default");
    }
}

fn adapter(draft: &mut Draft, entry: &Entry) {
    match entry.value.text() {
        Some("lora") => draft.leave_out(entry, "an adapter is always trained, and LoRA is its kind"),
        Some("qlora") if draft.value_of("load_in_4bit").is_none() => draft.set("base.quant", "nf4-double", entry),
        Some("qlora") => draft.leave_out(entry, "`base.quant` follows from load_in_4bit"),
        Some(_) => draft.leave_out(entry, "LoRA and DoRA are the kinds of adapters here"),
        None => draft.leave_out(entry, "all weights would be trained; this recipe trains an adapter"),
    }
}

fn all_linear(draft: &mut Draft, entry: &Entry) {
    match entry.value.truth() {
        Some(true) => draft.set("adapter.targets", "all-linear", entry),
        _ => draft.leave_out(entry, "the modules are named"),
    }
}

fn single(draft: &mut Draft, entry: &Entry) {
    match entry.value.truth() {
        Some(true) => draft.set("base.compute", "f32", entry),
        _ => draft.leave_out(entry, "off"),
    }
}

/// The examples of a step, of which the micro-batches are a part.
fn batch_size(draft: &mut Draft, entry: &Entry) {
    let micro = draft.value_of("micro_batch_size").and_then(Value::whole).unwrap_or(1);
    match entry.value.whole() {
        Some(batch) if micro > 0 && batch % micro == 0 => draft.set("train.accumulate_steps", batch / micro, entry),
        _ => draft.leave_out(entry, "no multiple of micro_batch_size"),
    }
}

fn template_file(draft: &mut Draft, entry: &Entry) {
    match entry.value.text() {
        Some(text) if text.contains(['{', '\n']) => {
            draft.leave_out(entry, "`data.template` takes a file: write the template into one")
        }
        Some(path) => draft.set("data.template", path, entry),
        None => draft.leave_out(entry, "nothing is set"),
    }
}

/// Texts that are learned whole.
fn texts(draft: &mut Draft, entry: &Entry) {
    match &entry.value {
        Value::Text(_) => {
            rules::train_data(draft, entry);
            draft.default("data.format", "text", "texts are learned whole");
        }
        _ => datasets(draft, entry),
    }
}

fn datasets(draft: &mut Draft, entry: &Entry) {
    for (index, dataset) in list(&entry.value).iter().enumerate() {
        if let Some(source) = dataset_source(draft, &format!("{}[{index}]", entry.key), entry.line, dataset) {
            draft.add_source(source);
        }
    }
    if list(&entry.value).is_empty() {
        draft.leave_out(entry, "names no data");
    }
}

fn valid_datasets(draft: &mut Draft, entry: &Entry) {
    for (index, dataset) in list(&entry.value).iter().enumerate() {
        let Some(source) = dataset_source(draft, &format!("{}[{index}]", entry.key), entry.line, dataset) else {
            continue;
        };
        draft.set_with("data.valid", source.path, &source.entry, &source.remark);
    }
    if list(&entry.value).is_empty() {
        draft.leave_out(entry, "names no data");
    }
}

fn list(value: &Value) -> &[Value] {
    match value {
        Value::List(items) => items,
        _ => &[],
    }
}

/// The columns that a dataset can name, with the key of the shape.
const COLUMNS: &[(&str, &str)] = &[
    ("field_instruction", "instruction"),
    ("field_input", "input"),
    ("field_output", "output"),
    ("field_system", "system"),
    ("field_messages", "messages"),
    ("field_tools", "tools"),
    ("field_prompt", "prompt"),
    ("field_completion", "completion"),
    ("field_chosen", "chosen"),
    ("field_rejected", "rejected"),
    ("field_label", "label"),
    ("text_column", "text"),
    ("field", "text"),
];

/// One dataset: its files, shape and columns. Keys without an equal are left out under their place in the list.
fn dataset_source(draft: &mut Draft, place: &str, line: usize, dataset: &Value) -> Option<Source> {
    let whole = Entry { key: place.to_owned(), line, value: dataset.clone() };
    if let Some(path) = dataset.text() {
        return Some(rules::source(path, &whole));
    }
    let keys: Vec<Entry> = dataset.entries().iter().map(|entry| entry.within(place)).collect();
    let of = |name: &str| keys.iter().find(|entry| entry.name() == name);
    let files = of("data_files").and_then(|entry| Some((entry.value.texts()?.first()?.clone(), entry)));
    let path = of("path").and_then(|entry| Some((entry.value.text()?.to_owned(), entry)));
    let Some((name, entry)) = files.clone().or(path) else {
        draft.leave_out(&whole, "names no path");
        return None;
    };
    let mut source = rules::source(&name, entry);
    for entry in &keys {
        match (entry.name(), &entry.value) {
            ("path", _) if files.is_none() => {}
            ("path", _) => draft.leave_out(entry, "the files are named beside it"),
            ("data_files", value) if value.texts().is_some_and(|files| files.len() == 1) => {}
            ("data_files", _) => {
                draft.leave_out(entry, "the first of these files is taken; `path` takes a list or a pattern too")
            }
            ("type", Value::Table(custom)) => {
                source.format = Some("alpaca");
                for inner in custom.iter().map(|inner| inner.within(&entry.key)) {
                    column(draft, &mut source, &inner);
                }
            }
            ("type", value) => source_type(draft, &mut source, entry, value.text().unwrap_or_default()),
            ("ds_type", _) => draft.leave_out(entry, "the ending of the file says its kind"),
            ("chat_template", _) => rules::template(draft, entry),
            ("split", _) => draft.leave_out(entry, "a file is one split"),
            _ => column(draft, &mut source, entry),
        }
    }
    Some(source)
}

/// The shape of a dataset by its type.
fn source_type(draft: &mut Draft, source: &mut Source, entry: &Entry, word: &str) {
    let is_of_preferences = draft.value_of("rl").is_some_and(|rl| !rl.is_off());
    source.format = match word.split(['.', ':']).next().unwrap_or_default() {
        _ if is_of_preferences => Some("preference"),
        "alpaca" | "alpaca_chat" | "alpaca_w_system" | "gpteacher" => Some("alpaca"),
        "chat_template" | "sharegpt" | "chatml" | "llama3" => Some("chat"),
        "completion" | "pretrain" => Some("text"),
        _ => None,
    };
    match source.format {
        Some(format) if is_of_preferences => {
            draft.leave_out(entry, format!("the shape is {format}, told by its columns"))
        }
        Some(format) => draft.leave_out(entry, format!("the shape {format}, rendered by the chat template")),
        None => draft.leave_out(entry, "no shape here has that name: docs/data.md lists those that there are"),
    }
}

fn column(draft: &mut Draft, source: &mut Source, entry: &Entry) {
    let named = COLUMNS.iter().find(|(theirs, _)| *theirs == entry.name());
    match (named, entry.value.text()) {
        (Some((_, ours)), Some(_)) => source.columns.push((*ours, entry.clone())),
        (Some(_), None) => draft.leave_out(entry, "names no column"),
        (None, _) => {
            draft.leave_out(entry, "the chat template renders every shape; docs/data.md has the accepted forms")
        }
    }
}
