//! The meaning of a recipe: its sections, put together from the settings that each part of the library declares.

use std::path::PathBuf;

use crate::adapter::spec::AdapterSpec;
use crate::data::DataSettings;
use crate::eval::EvalSettings;
use crate::quant::{Compute, Quant};
use crate::settings::{Limit, any, between, not_empty, section};
use crate::train::{ParallelSettings, PrivacySettings, TrainSettings};

section! {
    /// A validated recipe, every default filled in.
    Plan {
        /// The model that is fine-tuned.
        base: Base = ReadEmpty, any();
        /// The examples that it is trained on.
        data: DataSettings = ReadEmpty, any();
        /// The low-rank adapter.
        adapter: AdapterSpec = ReadEmpty, any();
        /// The training.
        train: TrainSettings = ReadEmpty, any();
        /// Differential privacy for the training examples.
        privacy: Option<PrivacySettings> = Take(None), any();
        /// The processes that train together.
        parallel: ParallelSettings = ReadEmpty, any();
        /// The examples of evaluations.
        eval: EvalSettings = ReadEmpty, any();
        /// The place of the results.
        output: Output = ReadEmpty, any();
        /// Samples that show the difference.
        sample: SampleSettings = ReadEmpty, any();
    }
}

section! {
    /// The model that is fine-tuned.
    Base {
        /// A known name (`smollm2-135m-instruct`), `hf:org/repo[@revision]`, a Hugging Face folder or a `.gguf` file.
        /// A path is relative to the current folder.
        model: String = Refuse, not_empty();
        /// Precision of the frozen matrix products. The adapter is always f32.
        compute: Compute = Take(Compute::Bf16), any();
        /// The quantisation of the frozen weights in memory.
        quant: Quant = Take(Quant::None), any();
    }
}

section! {
    /// The place of the results.
    Output {
        /// The run folder; it must be empty or not exist yet. A path is relative to the current folder.
        dir: PathBuf = Refuse, not_empty();
    }
}

section! {
    /// Samples that show the difference: answers to validation prompts at each evaluation, and to prompts of one's own before
    /// and after the training.
    SampleSettings {
        /// Validation prompts that are answered greedily at each evaluation, chosen by `train.seed`; 0 for none.
        valid_prompts: usize = Take(3), between(0..=64);
        /// The most of the training's time that these answers and the measures of the report take: they are cut, or left out, where the machine is too slow.
        time_share: f64 = Take(0.03), between(0.0..=1.0);
        /// The prompts that are answered before and after the training, rendered as the training examples are: through the chat template, or as they stand where the
        /// examples are prompts with completions. None by default.
        prompts: Vec<String> = Take(Vec::new()), Limit::new("prompts that are not empty", |prompts: &Vec<String>| prompts.iter().all(|prompt| !prompt.is_empty()));
        /// The longest answer, in tokens.
        max_tokens: usize = Take(64), between(1..=1 << 20);
    }
}
