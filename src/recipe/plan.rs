//! What a recipe means: every setting, declared once with its doc, default and limit.
//!
//! Units are in the names (`warmup_steps`, `max_seq_tokens`). A step is one update of the adapter:
//! `accumulate_steps` micro-batches of `micro_batch_seqs` sequences.

use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::reader::{FromNode, Limit, Missing, Reader, above, any, below, between, not_empty, one_of, optional, word};
use super::section::{Describe, choice, section};
use super::tree::Node;
use crate::adapter::spec::Target;

use Missing::{ReadEmpty, Refuse, Take};

/// The largest seed: every whole number up to here survives a trip through JSON.
const MAX_SEED: u64 = 1 << 53;
/// More steps or epochs than anyone waits for, and still far from any overflow.
const MAX_STEPS: u64 = 1_000_000_000;

section! {
    /// A validated recipe, every default filled in.
    Plan {
        /// The model that is fine-tuned.
        base: Base = ReadEmpty, any();
        /// What it is trained on.
        data: Data = ReadEmpty, any();
        /// The low-rank adapter.
        adapter: Adapter = ReadEmpty, any();
        /// How it is trained: AdamW with decoupled weight decay.
        train: Train = ReadEmpty, any();
        /// Where the results go.
        output: Output = ReadEmpty, any();
        /// Samples that show the difference.
        sample: Sample = ReadEmpty, any();
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
        /// How the frozen weights are kept in memory.
        quant: Quant = Take(Quant::None), any();
    }
}

choice! {
    /// Precision of the frozen matrix products.
    Compute {
        /// 32-bit floats: exact, slower.
        F32 = "f32",
        /// bfloat16 products with f32 sums.
        Bf16 = "bf16",
    }
}

choice! {
    /// How the frozen weights are kept in memory.
    Quant {
        /// As 16- or 32-bit floats.
        None = "none",
        /// 4-bit NormalFloat, blocks of 64.
        Nf4 = "nf4",
        /// NF4 with quantised scales.
        Nf4Double = "nf4-double",
        /// 8-bit, one scale a row.
        Int8 = "int8",
        /// The blocks of the GGUF file as they are.
        Keep = "keep",
    }
}

section! {
    /// What the adapter is trained on.
    Data {
        /// The training examples: a JSONL file. A path is relative to the current folder.
        train: PathBuf = Refuse, not_empty();
        /// The validation examples: a JSONL file.
        valid: Option<PathBuf> = Take(None), optional(not_empty());
        /// Instead of `valid`: this share of the training examples is held out, chosen by the seed.
        valid_fraction: Option<f64> = Take(None), optional(Limit::new("above 0, below 1", |share| *share > 0.0 && *share < 1.0));
        /// The shape of the examples; `auto` looks at the first.
        format: DataFormat = Take(DataFormat::Auto), any();
        /// The longest sequence, in tokens.
        max_seq_tokens: usize = Take(512), between(2..=1 << 24);
        /// What happens to an example longer than `max_seq_tokens`.
        overlong: Overlong = Take(Overlong::Drop), any();
        /// Fill a micro-batch up to `micro_batch_seqs` × `max_seq_tokens` tokens instead of counting sequences; attention
        /// never crosses from one example to the next.
        packing: bool = Take(false), any();
    }
}

choice! {
    /// The shape of the examples.
    DataFormat {
        /// Look at the first example.
        Auto = "auto",
        /// `{"instruction", "input", "output"}`.
        Alpaca = "alpaca",
        /// `{"messages": [{"role", "content"}]}`.
        Chat = "chat",
        /// `{"prompt", "completion"}`.
        PromptCompletion = "prompt-completion",
        /// `{"text"}`.
        Text = "text",
    }
}

choice! {
    /// What happens to an example that is longer than the limit.
    Overlong {
        /// It is left out, and counted.
        Drop = "drop",
        /// The start of its prompt is cut off.
        TruncatePrompt = "truncate-prompt",
        /// It is a problem, reported before training.
        Error = "error",
    }
}

section! {
    /// The low-rank adapter.
    Adapter {
        /// Rank of the two factors.
        rank: usize = Take(8), between(1..=65_536);
        /// The update is scaled by alpha / rank.
        alpha: f64 = Take(16.0), above(0.0, 1e6);
        /// Share of the adapter's inputs dropped while training.
        dropout: f64 = Take(0.0), below(0.0, 1.0);
        /// The projections that get a low-rank pair.
        targets: Vec<Target> = Take(vec![Target::Q, Target::V]), not_empty();
        /// Scale by alpha / √rank instead (rsLoRA).
        rslora: bool = Take(false), any();
    }
}

section! {
    /// How the adapter is trained: AdamW with decoupled weight decay.
    Train {
        /// Passes over the training examples.
        epochs: u64 = Take(1), between(1..=MAX_STEPS);
        /// Stop after this many steps, even within an epoch.
        max_steps: Option<u64> = Take(None), optional(between(1..=MAX_STEPS));
        /// Sequences in one forward and backward pass.
        micro_batch_seqs: usize = Take(4), between(1..=65_536);
        /// Micro-batches whose gradients make one step; their sum is divided once, by the trained tokens.
        accumulate_steps: usize = Take(1), between(1..=65_536);
        /// The peak learning rate.
        learning_rate: f64 = Take(2e-4), above(0.0, 10.0);
        /// How the learning rate goes on after the warm-up: to 0 at the last step, or constant.
        schedule: Schedule = Take(Schedule::Linear), any();
        /// Steps over which the learning rate rises from 0 to its peak.
        warmup_steps: u64 = Take(0), between(0..=MAX_STEPS);
        /// AdamW's decoupled weight decay.
        weight_decay: f64 = Take(0.0), between(0.0..=1.0);
        /// The gradient is scaled down to this global norm; 0 turns clipping off.
        max_grad_norm: f64 = Take(1.0), between(0.0..=1e6);
        /// AdamW's decay of the mean of gradients.
        beta1: f64 = Take(0.9), below(0.0, 1.0);
        /// AdamW's decay of the mean of squared gradients.
        beta2: f64 = Take(0.999), below(0.0, 1.0);
        /// Steps between two evaluations of the validation examples; there is always one at the end.
        eval_steps: u64 = Take(50), between(1..=MAX_STEPS);
        /// What is computed again in the backward pass to save memory.
        recompute: Recompute = Take(Recompute::None), any();
        /// Decides the adapter's first values, the order of examples, dropout and the held-out share.
        seed: u64 = Take(0), between(0..=MAX_SEED);
        /// Stop when the validation loss no longer falls.
        early_stopping: Option<EarlyStopping> = Take(None), any();
    }
}

section! {
    /// Stop when the validation loss no longer falls.
    EarlyStopping {
        /// Stop after this many evaluations without improvement.
        patience_evals: u64 = Take(3), between(1..=MAX_STEPS);
        /// The validation loss must fall by more than this to count as an improvement.
        min_delta: f64 = Take(0.0), between(0.0..=1e6);
    }
}

choice! {
    /// How the learning rate goes on after the warm-up.
    Schedule {
        /// It stays.
        Constant = "constant",
        /// It falls in a straight line to 0 at the last step.
        Linear = "linear",
        /// It falls along half a cosine to 0 at the last step.
        Cosine = "cosine",
    }
}

choice! {
    /// What is computed again in the backward pass.
    Recompute {
        /// Nothing: every activation is kept.
        None = "none",
        /// Each block, from its input.
        Block = "block",
    }
}

section! {
    /// Where the results go.
    Output {
        /// The run folder; it must be empty or not exist yet. A path is relative to the current folder.
        dir: PathBuf = Refuse, not_empty();
    }
}

section! {
    /// Samples that show the difference: each prompt is answered before and after the training.
    Sample {
        /// The prompts, rendered as the training examples are: through the chat template, or as they stand where the
        /// examples are prompts with completions. None by default.
        prompts: Vec<String> = Take(Vec::new()), Limit::new("prompts that are not empty", |prompts: &Vec<String>| prompts.iter().all(|prompt| !prompt.is_empty()));
        /// The longest answer, in tokens.
        max_tokens: usize = Take(64), between(1..=1 << 20);
    }
}

impl Describe for Target {
    fn expected() -> String {
        one_of(&Self::ALL.map(Self::name))
    }
}

impl FromNode for Target {
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self> {
        word(node, key, &Self::ALL.map(Self::name), reader)
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
