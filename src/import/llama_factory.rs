//! Configurations of LLaMA-Factory.

use super::draft::Draft;
use super::rules::Rule::{By, No, To};
use super::rules::{
    self, ATTENTION, COMPILED, GENERATION, LOADING, LOGGING, MASK, PADDING, PICTURE_PATHS, PICTURES, TRACKER, Table,
    UPLOAD, VIDEO_AND_SOUND,
};
use super::value::{Entry, Value};

/// The keys that differ from those of transformers and PEFT.
pub(super) const KEYS: &Table = &[
    ("stage", By(stage)),
    ("finetuning_type", By(kind)),
    ("adapter_name_or_path", To("adapter.from")),
    ("adapter_folder", No("`adapter.from` takes the folder of an adapter")),
    ("create_new_adapter", No("`adapter.from` goes on with the adapter itself")),
    ("additional_target", By(rules::modules_to_save)),
    ("pissa_init", By(pissa)),
    ("pissa_*", No("the saved adapter is a plain pair of twice the rank")),
    ("quantization_bit", By(bits)),
    ("quantization_method", No("bitsandbytes' formats are those of `base.quant`")),
    ("quantization_type", No("`base.quant` has NF4 for 4 bits")),
    ("quantization_device_map", No("`--device` chooses the device")),
    ("double_quantization", By(double)),
    ("cache_dir", No("`HF_HOME` is the cache")),
    ("hf_hub_token", No("`HF_TOKEN` gives access to the hub")),
    ("ms_hub_token", No("bases come from the Hugging Face hub")),
    ("om_hub_token", No("bases come from the Hugging Face hub")),
    ("use_fast_tokenizer", No("the tokenizer is that of the base")),
    ("resize_vocab", No("`adapter.new_tokens` adds and trains tokens")),
    ("split_special_tokens", No("`data.control_tokens` says how control tokens in texts are read")),
    ("add_tokens", By(|draft, entry| rules::names(draft, entry, "adapter.new_tokens"))),
    ("add_special_tokens", By(|draft, entry| rules::names(draft, entry, "adapter.new_tokens"))),
    ("new_special_tokens", By(|draft, entry| rules::names(draft, entry, "adapter.new_tokens"))),
    ("rope_scaling", No("the positions are those of the base")),
    ("flash_attn", No(ATTENTION)),
    ("shift_attn", No(ATTENTION)),
    ("mixture_of_depths", No("a base keeps its layers")),
    ("moe_aux_loss_coef", No("dense models are trained")),
    ("use_unsloth*", No(COMPILED)),
    ("enable_liger_kernel", No(COMPILED)),
    ("use_v1_kernels", No(COMPILED)),
    ("disable_gradient_checkpointing", By(no_recompute)),
    ("use_reentrant_gc", No("there is one way: layer by layer")),
    ("upcast_*", No("norms and the adapter compute in f32")),
    ("infer_*", No("`burnish serve` answers requests")),
    ("vllm_*", No("`burnish serve` answers requests")),
    ("sglang_*", No("`burnish serve` answers requests")),
    ("export_*", No("`burnish merge` and `burnish export` write models")),
    ("print_param_status", No("`burnish check` prints what is trained")),
    ("template", By(rules::template)),
    ("dataset", By(dataset)),
    ("eval_dataset", By(eval_dataset)),
    ("dataset_dir", By(folder)),
    ("media_dir", No(PICTURE_PATHS)),
    ("image_*", No(PICTURES)),
    ("video_*", No(VIDEO_AND_SOUND)),
    ("audio_*", No(VIDEO_AND_SOUND)),
    ("freeze_vision_tower", By(rules::tower)),
    ("freeze_multi_modal_projector", By(rules::tower)),
    ("cutoff_len", To("data.max_seq_tokens")),
    ("train_on_prompt", No(MASK)),
    ("mask_history", No("the turns of the assistant are trained; `\"weight\": 0` leaves one out")),
    ("streaming", No("the files are read whole")),
    ("buffer_size", No(LOADING)),
    ("mix_strategy", No("`[[data.sources]]` weights its files")),
    ("interleave_probs", No("`[[data.sources]]` weights its files")),
    ("overwrite_cache", No("encoded examples are kept by the hash of what they come from")),
    ("preprocessing_*", No(LOADING)),
    ("max_samples", No("a file is read whole: shorten it for a trial, or set `train.max_steps`")),
    ("eval_num_beams", No(GENERATION)),
    ("ignore_pad_token_for_loss", No(PADDING)),
    ("val_size", By(rules::held_out)),
    ("eval_on_each_dataset", No("`burnish eval --by FIELD` has figures by group")),
    ("packing", To("data.packing")),
    ("neat_packing", By(neat_packing)),
    ("tool_format", No("tools are rendered by the chat template")),
    ("default_system", No("a system text stands in the data or in the chat template")),
    ("enable_thinking", No("reasoning in the data is rendered by the chat template")),
    ("tokenized_path", No("encoded examples are kept in the cache by themselves")),
    ("data_shared_file_system", No(LOADING)),
    ("pure_bf16", By(rules::bf16)),
    ("pref_beta", To("train.beta")),
    ("pref_ftx", To("train.rpo_alpha")),
    ("pref_loss", No("`train.objective` follows from stage and this key")),
    ("pref_bco_weight", No("an objective that is not here")),
    ("dpo_label_smoothing", To("train.preference_smoothing")),
    ("kto_chosen_weight", To("train.desirable_weight")),
    ("kto_rejected_weight", To("train.undesirable_weight")),
    ("simpo_gamma", To("train.target_margin")),
    ("ld_alpha", No("an objective that is not here")),
    ("ref_model*", No("the reference is the adapter before the first step")),
    ("reward_model*", No("no model of rewards is trained")),
    ("ppo_*", No("no answers are drawn while training")),
    ("freeze_*", No("the adapter alone is trained")),
    ("use_llama_pro", No("a base keeps its layers")),
    ("use_galore", No("the adapter alone is trained")),
    ("galore_*", No("the adapter alone is trained")),
    ("use_apollo", No("the adapter alone is trained")),
    ("apollo_*", No("the adapter alone is trained")),
    ("use_badam", No("the adapter alone is trained")),
    ("badam_*", No("the adapter alone is trained")),
    ("use_adam_mini", No("`train.optimiser` is adamw, lion or adafactor")),
    ("use_muon", No("`train.optimiser` is adamw, lion or adafactor")),
    ("oft_*", No("LoRA and DoRA are the kinds of adapters here")),
    ("module_dropout", No("LoRA and DoRA are the kinds of adapters here")),
    ("use_dft_loss", No("an objective that is not here")),
    ("use_swanlab", No(TRACKER)),
    ("swanlab_*", No(TRACKER)),
    ("plot_loss", No("report.html of the run folder has the curves")),
    ("include_effective_tokens_per_second", No(LOGGING)),
    ("compute_accuracy", No("every evaluation has the accuracy of tokens")),
    ("early_stopping_steps", To("train.early_stopping.patience_evals")),
    ("disable_shuffling", No(LOADING)),
    ("ray_*", No("several machines share a run by MPI (docs/distributed.md)")),
    ("resources_per_worker", No("several machines share a run by MPI (docs/distributed.md)")),
    ("placement_strategy", No("several machines share a run by MPI (docs/distributed.md)")),
    ("max_new_tokens", To("sample.max_tokens")),
    ("do_sample", No(GENERATION)),
    ("temperature", No(GENERATION)),
    ("top_p", No(GENERATION)),
    ("top_k", No(GENERATION)),
    ("num_beams", No(GENERATION)),
    ("max_length", No(GENERATION)),
    ("repetition_penalty", No(GENERATION)),
    ("length_penalty", No(GENERATION)),
    ("skip_special_tokens", No(GENERATION)),
    ("push_to_hub_*", No(UPLOAD)),
];

/// The values that LLaMA-Factory takes where its configuration says nothing.
pub(super) fn defaults(draft: &mut Draft) {
    let remark = "LLaMA-Factory's default";
    draft.default("data.max_seq_tokens", 2048, remark);
    draft.default("adapter.rank", 8, remark);
    let rank = draft.value_of("lora_rank").and_then(Value::whole).unwrap_or(8);
    draft.default("adapter.alpha", 2 * rank, "LLaMA-Factory's default: twice the rank");
    draft.default("adapter.targets", "all-linear", remark);
    if draft.is("train.objective", "simpo") {
        draft.default("train.target_margin", 0.5, remark);
    }
    draft.default("train.learning_rate", 5e-5, "the default of transformers");
    draft.default("train.epochs", 3, "the default of transformers");
    draft.default("train.micro_batch_seqs", 8, "the default of transformers");
    draft.default("train.schedule", "linear", "the default of transformers");
}

fn stage(draft: &mut Draft, entry: &Entry) {
    let loss = draft.value_of("pref_loss").and_then(Value::text).unwrap_or("sigmoid");
    match (entry.value.text(), loss) {
        (Some("sft"), _) => draft.set("train.objective", "sft", entry),
        (Some("kto"), _) => draft.set("train.objective", "kto", entry),
        (Some("dpo"), "sigmoid") => draft.set("train.objective", "dpo", entry),
        (Some("dpo"), "ipo" | "orpo" | "simpo") => {
            draft.set_with("train.objective", loss, entry, "and pref_loss");
        }
        (Some("dpo"), other) => {
            draft.leave_out(entry, format!("`train.objective` has no pref_loss of the name {other}"))
        }
        (Some("pt"), _) => draft.set_with("data.format", "text", entry, "texts are learned whole"),
        _ => draft.leave_out(entry, "`train.objective` is sft, dpo, ipo, orpo, kto or simpo"),
    }
}

fn kind(draft: &mut Draft, entry: &Entry) {
    match entry.value.text() {
        Some("lora") => draft.leave_out(entry, "an adapter is always trained, and LoRA is its kind"),
        _ => draft.leave_out(entry, "this recipe trains a LoRA adapter, whatever the configuration trains"),
    }
}

fn pissa(draft: &mut Draft, entry: &Entry) {
    match entry.value.truth() {
        Some(true) => draft.set("adapter.init", "pissa", entry),
        _ => draft.leave_out(entry, "off, as by default here"),
    }
}

fn bits(draft: &mut Draft, entry: &Entry) {
    let is_double = draft.value_of("double_quantization").and_then(Value::truth) != Some(false);
    match entry.value.whole() {
        Some(4) => draft.set("base.quant", if is_double { "nf4-double" } else { "nf4" }, entry),
        Some(8) => draft.set("base.quant", "int8", entry),
        _ => draft.leave_out(entry, "`base.quant` packs to 4 or 8 bits"),
    }
}

fn double(draft: &mut Draft, entry: &Entry) {
    draft.leave_out(entry, "`base.quant` is nf4 or nf4-double, by this key and quantization_bit");
}

fn no_recompute(draft: &mut Draft, entry: &Entry) {
    match entry.value.truth() {
        Some(true) => draft.set("train.recompute", "none", entry),
        _ => draft.leave_out(entry, "`train --max-memory` computes activations again where it is needed"),
    }
}

fn neat_packing(draft: &mut Draft, entry: &Entry) {
    match entry.value.truth() {
        Some(true) => {
            draft.set_with("data.packing", true, entry, "attention never crosses from one example to the next")
        }
        _ => draft.leave_out(entry, "attention never crosses from one example to the next in any case"),
    }
}

/// The folder of the datasets.
fn dataset_folder(draft: &Draft) -> String {
    draft.value_of("dataset_dir").and_then(Value::text).unwrap_or("data").trim_end_matches('/').to_owned()
}

fn folder(draft: &mut Draft, entry: &Entry) {
    draft.leave_out(entry, "stands in the paths of the data");
}

/// The likely files of datasets that are named in dataset_info.json.
fn files(draft: &Draft, entry: &Entry) -> Vec<String> {
    let folder = dataset_folder(draft);
    let names = entry.value.texts().unwrap_or_default();
    names.iter().map(|name| format!("{folder}/{name}.json")).collect()
}

const NAMED_ELSEWHERE: &str = "dataset_info.json beside it says which file and columns the name stands for";

fn dataset(draft: &mut Draft, entry: &Entry) {
    let files = files(draft, entry);
    if files.is_empty() {
        return draft.leave_out(entry, "names no data");
    }
    for file in files {
        let remark = NAMED_ELSEWHERE.to_owned();
        draft.add_source(super::draft::Source { remark, ..rules::source(&file, entry) });
    }
}

fn eval_dataset(draft: &mut Draft, entry: &Entry) {
    match &files(draft, entry)[..] {
        [] => draft.leave_out(entry, "names no data"),
        files => draft.set_with("data.valid", files.to_vec(), entry, NAMED_ELSEWHERE),
    }
}
