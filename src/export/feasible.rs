//! Which consumer can take which choice: one table, in code and (from it) in docs/exports.md.

use super::lora::has_head_tensor;
use super::{check, mlx};
use crate::adapter::host::HostAdapter;
use crate::model::ModelConfig;
use crate::model::config::GgufHead;

/// A program that takes what burnish makes, by the form in which it gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consumer {
    /// The adapter, in PEFT and what reads its format.
    Peft,
    /// The merged folder, in transformers and what reads its format.
    Folder,
    /// The merged GGUF file, in llama.cpp and Ollama.
    Gguf,
    /// The adapter over llama.cpp's own file of the base.
    GgufLora,
    /// The adapter in mlx-lm's own format.
    Mlx,
}

/// Whether a consumer can take a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feasible {
    /// The choice goes over unchanged.
    Yes,
    /// The choice goes over in another form, with the same result.
    As(&'static str),
    /// The choice rules the consumer out, for this reason.
    No(&'static str),
}

/// The facts of a run that rule something out.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The base.
    pub config: &'a ModelConfig,
    /// The adapter.
    pub adapter: &'a HostAdapter,
}

impl Facts<'_> {
    /// Whether the adapter changes the output head.
    fn changes_head(&self) -> bool {
        self.changes(self.config.names.head)
    }

    /// Whether the adapter changes the embedding of tokens.
    fn changes_embedding(&self) -> bool {
        self.changes(self.config.names.embedding)
    }

    fn changes(&self, module: &str) -> bool {
        self.adapter.pairs.contains_key(module) || self.adapter.whole.contains_key(&format!("{module}.weight"))
    }
}

/// A choice, and the form in which each consumer takes it.
#[derive(Debug)]
pub struct Row {
    /// The choice, for the page.
    pub choice: &'static str,
    /// Whether a run makes it. Of a choice that rules nothing out it does not matter.
    holds: fn(&Facts<'_>) -> bool,
    peft: Feasible,
    folder: Feasible,
    gguf: Feasible,
    gguf_lora: Feasible,
    mlx: Feasible,
}

use Feasible::{As, No, Yes};

/// Every choice.
pub const TABLE: [Row; 15] = [
    Row {
        choice: "low-rank pairs on projections",
        holds: |_| true,
        peft: Yes,
        folder: Yes,
        gguf: Yes,
        gguf_lora: Yes,
        mlx: Yes,
    },
    Row {
        choice: "`rslora`, ranks or alphas by pattern",
        holds: |_| true,
        peft: Yes,
        folder: Yes,
        gguf: Yes,
        gguf_lora: As("the scales are multiplied into the factors"),
        mlx: As("the scales are multiplied into the factors, smaller ranks filled up with zeros"),
    },
    Row {
        choice: "`dora`",
        holds: |facts| facts.adapter.pairs.values().any(|pair| pair.magnitude.is_some()),
        peft: Yes,
        folder: Yes,
        gguf: Yes,
        gguf_lora: No("llama.cpp has no tensor for DoRA's magnitudes"),
        mlx: Yes,
    },
    Row {
        choice: "`init` with `pissa` or `olora`",
        holds: |_| true,
        peft: As("plain LoRA of twice the rank"),
        folder: Yes,
        gguf: Yes,
        gguf_lora: As("plain LoRA of twice the rank"),
        mlx: As("plain LoRA of twice the rank"),
    },
    Row {
        choice: "the head, where it has a matrix of its own",
        holds: |facts| facts.changes_head() && !facts.config.tied_head,
        peft: Yes,
        folder: Yes,
        gguf: Yes,
        gguf_lora: Yes,
        mlx: Yes,
    },
    Row {
        choice: "the head, where it is tied to the embedding",
        holds: |facts| facts.changes_head() && facts.config.tied_head && !has_head_tensor(facts.config),
        peft: Yes,
        folder: As("the head gets a matrix of its own"),
        gguf: As("the head gets a matrix of its own"),
        gguf_lora: No("llama.cpp has no tensor for the change of a tied head alone"),
        mlx: No("mlx-lm has no module for a tied head alone"),
    },
    Row {
        choice: "the embedding, where the head has a matrix of its own",
        holds: |facts| facts.changes_embedding() && !facts.config.tied_head,
        peft: Yes,
        folder: Yes,
        gguf: Yes,
        gguf_lora: Yes,
        mlx: Yes,
    },
    Row {
        choice: "the embedding, where the head is tied to it",
        holds: |facts| facts.changes_embedding() && facts.config.tied_head,
        peft: Yes,
        folder: As("the head gets a matrix of its own"),
        gguf: As("the head gets a matrix of its own"),
        gguf_lora: No("llama.cpp would change the tied head too"),
        mlx: No("mlx-lm would change the tied head too"),
    },
    Row {
        choice: "the head or the embedding of a Gemma 2",
        holds: |facts| {
            let unties = facts.changes_head() || facts.changes_embedding() && facts.config.tied_head;
            unties && facts.config.family.gguf_head == GgufHead::Never
        },
        peft: Yes,
        folder: As("the head gets a matrix of its own"),
        gguf: No("llama.cpp uses the embedding as the head of this architecture"),
        gguf_lora: No("llama.cpp uses the embedding as the head of this architecture"),
        mlx: No("mlx-lm uses the embedding as the head of this architecture"),
    },
    Row {
        choice: "the feed-forward network of a Granite 4",
        holds: |facts| mlx::splits_feed_forward(facts.config, facts.adapter),
        peft: Yes,
        folder: Yes,
        gguf: Yes,
        gguf_lora: Yes,
        mlx: No("mlx-lm cuts the fused projections of this architecture's feed-forward network apart"),
    },
    Row {
        choice: "modules or biases trained as wholes (`modules_to_save`, `bias`)",
        holds: |facts| !facts.adapter.whole.is_empty(),
        peft: Yes,
        folder: Yes,
        gguf: Yes,
        gguf_lora: No("llama.cpp adds low-rank pairs only"),
        mlx: No("mlx-lm reads low-rank pairs only"),
    },
    Row {
        choice: "the tower or the connector of a model that sees pictures",
        holds: |facts| facts.adapter.changes_vision(facts.config),
        peft: Yes,
        folder: Yes,
        gguf: No("the file holds the language model alone"),
        gguf_lora: No("the file holds the language model alone"),
        mlx: No("mlx-lm runs the language model alone"),
    },
    Row {
        choice: "rows of tokens (`new_tokens`)",
        holds: |facts| facts.adapter.rows.is_some(),
        peft: As("over a base with rows for them: `resize_token_embeddings(len(tokenizer))`"),
        folder: Yes,
        gguf: Yes,
        gguf_lora: No("llama.cpp adds low-rank pairs only"),
        mlx: No("mlx-lm reads low-rank pairs only"),
    },
    Row {
        choice: "a head of labels (`objective = \"classify\"`)",
        holds: |facts| facts.adapter.classifier.is_some(),
        peft: As("over the base's class for sequence classification, with as many labels"),
        folder: No("a merged folder has the head of a language model, and this adapter has one of labels"),
        gguf: No("llama.cpp has no tensor for this head of labels"),
        gguf_lora: No("llama.cpp adds low-rank pairs only"),
        mlx: No("mlx-lm reads low-rank pairs only"),
    },
    Row {
        choice: "a base packed in memory (`nf4`, `nf4-double`, `int8`)",
        holds: |_| true,
        peft: Yes,
        folder: As("into the decoded weights"),
        gguf: As("into the decoded weights"),
        gguf_lora: As("over a file exported with `--quant` and without the adapter"),
        mlx: As("over whatever weights mlx-lm loads"),
    },
];

impl Consumer {
    /// Every consumer, in the order of the table.
    pub const ALL: [Self; 5] = [Self::Peft, Self::Folder, Self::Gguf, Self::GgufLora, Self::Mlx];

    /// The name for users.
    pub fn name(self) -> &'static str {
        match self {
            Self::Peft => "adapter (PEFT)",
            Self::Folder => "merged folder",
            Self::Gguf => "merged GGUF, Ollama",
            Self::GgufLora => "GGUF-LoRA",
            Self::Mlx => "adapter (mlx-lm)",
        }
    }
}

impl Row {
    /// The form in which a consumer takes the choice.
    pub fn cell(&self, consumer: Consumer) -> Feasible {
        match consumer {
            Consumer::Peft => self.peft,
            Consumer::Folder => self.folder,
            Consumer::Gguf => self.gguf,
            Consumer::GgufLora => self.gguf_lora,
            Consumer::Mlx => self.mlx,
        }
    }
}

/// The reason why the choices of a run rule a consumer out; `None` where they do not.
fn reason_against(consumer: Consumer, facts: &Facts<'_>) -> Option<&'static str> {
    let rows = TABLE.iter().filter(|row| (row.holds)(facts));
    let mut reasons = rows.filter_map(|row| match row.cell(consumer) {
        No(reason) => Some(reason),
        Yes | As(_) => None,
    });
    reasons.next_back()
}

/// Whether a consumer can take the adapter of a run.
pub fn is_feasible(consumer: Consumer, facts: &Facts<'_>) -> bool {
    let needs_gguf = matches!(consumer, Consumer::Gguf | Consumer::GgufLora);
    reason_against(consumer, facts).is_none() && (!needs_gguf || check::is_expressible(facts.config).is_ok())
}

/// The exports that a run rules out, a sentence each, for the moment before it starts.
pub fn ruled_out(facts: &Facts<'_>) -> Vec<String> {
    let mut notices = Vec::new();
    for consumer in Consumer::ALL {
        let reason = reason_against(consumer, facts);
        notices.extend(reason.map(|reason| format!("export: {} is ruled out: {reason}", consumer.name())));
    }
    if let Err(error) = check::is_expressible(facts.config) {
        let paragraphs = error.paragraphs();
        let problem = paragraphs.first().and_then(|paragraph| paragraph.lines().next()).unwrap_or_default();
        notices.push(format!("export: GGUF is ruled out for this base: {problem}"));
    }
    notices
}

/// The table as Markdown.
pub fn markdown() -> String {
    let mut text = String::from("| choice |");
    let line = |cells: Vec<String>| format!(" {} |", cells.join(" | "));
    text += &line(Consumer::ALL.iter().map(|consumer| consumer.name().to_owned()).collect());
    text += "\n|---|---|---|---|---|---|\n";
    for row in &TABLE {
        let cell = |consumer: &Consumer| match row.cell(*consumer) {
            Yes => "yes".to_owned(),
            As(form) => format!("yes: {form}"),
            No(reason) => format!("no: {reason}"),
        };
        text += &format!("| {} |{}\n", row.choice, line(Consumer::ALL.iter().map(cell).collect()));
    }
    text
}
