//! Integration tests: one binary, one module an area.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "tests write files and print figures")]

mod adapter_file;
mod adapter_kinds;
mod adapter_open;
mod adapter_sites;
mod answers;
mod augment;
mod cards;
mod check;
mod chosen_templates;
mod classify;
mod cli;
mod combine;
mod constrained;
mod conversations;
mod data;
mod data_files;
mod data_rows;
mod engine;
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
mod import;
mod inspection;
mod kept_sets;
mod larger_models;
mod memorisation;
mod merge;
mod merge_proof;
mod model;
mod ops;
mod optimisers;
mod parallel;
mod pictures;
mod preferences;
mod preflight;
#[cfg(unix)]
mod privacy;
mod prompt_pictures;
mod pull;
mod qlora;
mod real_templates;
mod recipe;
mod recipes;
mod report;
#[cfg(unix)]
mod resume;
mod runs;
mod scores;
#[cfg(feature = "serve")]
mod serve;
mod streaming;
mod sweep;
mod tables;
mod templates;
mod tidy;
mod tokenizer;
mod training;
mod variants;
mod vision;
mod vision_adapters;
mod weights;
