//! Integration tests: one binary, one module an area.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "tests write files and print figures")]

mod adapter_file;
mod adapter_open;
mod answers;
mod augment;
mod check;
mod chosen_templates;
mod cli;
mod combine;
mod conversations;
mod data;
mod data_files;
mod data_rows;
mod evaluation;
mod examples;
mod export;
mod families;
mod faults;
mod fuzz;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
mod hostile_adapter;
mod hostile_cli;
mod hostile_config;
mod hostile_data;
mod hostile_families;
mod hostile_gguf;
mod hostile_template;
mod hostile_tokenizer;
mod hostile_weights;
mod kept_sets;
mod larger_models;
mod merge;
mod merge_proof;
mod model;
mod ops;
mod optimisers;
mod preflight;
mod pull;
mod qlora;
mod real_templates;
mod recipe;
mod recipes;
#[cfg(unix)]
mod resume;
mod runs;
mod scores;
mod tables;
mod templates;
mod tidy;
mod tokenizer;
mod training;
mod weights;
