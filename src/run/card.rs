//! The model card of a run: `README.md` in its folder, with the metadata that the hub reads. Texts of the data, paths of the
//! machine and times have no place in it, so that the same run has the same card.

mod licence;

use std::fmt::Write;

use super::answer::PromptForm;
use super::held_out::MeasuredSet;
use super::notices::facts;
use super::outcome::{TrainReport, Validation};
use super::prepare::Prepared;
use crate::adapter::host::provenance;
use crate::data::EncodedSet;
use crate::export::feasible::{Consumer, is_feasible};
use crate::quant::Quant;

/// The name of the card in a run folder.
pub(super) const CARD_FILE: &str = "README.md";

/// The files of a run folder that do not belong to a published adapter, for git and for the hub's uploads, which both read
/// `.gitignore`: they may hold texts of the data and paths of the machine.
pub(super) const UNPUBLISHED: &str = "\
# Not part of the adapter: these may hold texts of the data and paths of the machine.
checkpoints/
memorisation.json
metrics.jsonl
privacy.key
recipe.toml
report.html
report.json
run.json
run.lock
samples.jsonl
timings.jsonl
";

/// The card of a run with this outcome. `targets` are the adapter's `target_modules`.
pub(super) fn card(prepared: &Prepared, report: &TrainReport, targets: &[String]) -> String {
    let repository = prepared.base.hub_repository();
    let card = Card { prepared, report, targets, repository: repository.as_deref() };
    [card.metadata(), card.introduction(), card.use_of_it(), card.results(), card.training()].join("\n")
}

struct Card<'a> {
    prepared: &'a Prepared,
    report: &'a TrainReport,
    targets: &'a [String],
    /// The repository of the base on the hub.
    repository: Option<&'a str>,
}

impl Card<'_> {
    /// The YAML block at the top, its keys in the order that PEFT writes them in.
    fn metadata(&self) -> String {
        let mut lines = vec!["---".to_owned()];
        lines.extend(self.repository.map(|repository| format!("base_model: {}", quoted(repository))));
        lines.push("library_name: peft".to_owned());
        let licence = licence::of_base(&self.prepared.base.files);
        lines.extend(licence.iter().map(|(key, value)| format!("{key}: {}", quoted(value))));
        let task = if self.labels().is_some() { "text-classification" } else { "text-generation" };
        lines.extend([format!("pipeline_tag: {task}"), "tags:".to_owned()]);
        lines.extend(
            self.repository.map(|repository| format!("- {}", quoted(&format!("base_model:adapter:{repository}")))),
        );
        lines.extend(["- burnish", "- lora", "- transformers", "---", ""].map(str::to_owned));
        lines.join("\n")
    }

    fn introduction(&self) -> String {
        let name = self.report.dir.file_name().map_or_else(|| "Adapter".into(), |name| name.to_string_lossy());
        let base = match self.repository {
            Some(repository) => format!("[{repository}](https://huggingface.co/{repository})"),
            None => "a base model that is not on the hub under a name of its own (its hash stands below)".to_owned(),
        };
        let mut text = format!(
            "# {}\n\nA LoRA adapter for {base}, trained with burnish {}.\n",
            name.escape_debug(),
            env!("CARGO_PKG_VERSION")
        );
        if self.report.interrupted {
            text += "\nIts training was interrupted: this is the best adapter up to then.\n";
        }
        text
    }

    /// The labels of a classifier.
    fn labels(&self) -> Option<&[String]> {
        self.prepared.start.classifier.as_ref().map(|classifier| classifier.labels.as_slice())
    }

    /// How to load a classifier of `labels`.
    fn use_of_labels(&self, labels: &[String]) -> String {
        let (base, name) = (self.repository.unwrap_or("BASE"), self.name_of_base());
        let names = serde_json::json!(labels);
        format!(
            "## Use\n\nThe adapter gives texts one of {} labels.\n\n### transformers and PEFT\n\n```python\nfrom peft import PeftModel\n\
             from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n\
             folder = \".\"  # this folder, or its name on the hub\nlabels = {names}\n\
             base = AutoModelForSequenceClassification.from_pretrained(\n    \"{base}\", num_labels=len(labels), \
             id2label=dict(enumerate(labels))\n)\ntokenizer = AutoTokenizer.from_pretrained(folder)\n\
             model = PeftModel.from_pretrained(base, folder)\n\
             logits = model(**tokenizer(\"...\", return_tensors=\"pt\")).logits\nprint(labels[logits[0].argmax()])\n```\n\n\
             ### burnish\n\n```sh\necho \"...\" | burnish predict - --base {name} --adapter .\n```\n",
            labels.len()
        )
    }

    /// How to load the adapter in each consumer that can take it.
    fn use_of_it(&self) -> String {
        if let Some(labels) = self.labels() {
            return self.use_of_labels(labels);
        }
        let facts = facts(self.prepared);
        let mut text = String::from("## Use\n\n");
        text += match self.prepared.form {
            PromptForm::Conversation => "Prompts go through the chat template that lies beside the weights.\n",
            PromptForm::Bare | PromptForm::Typed => "Prompts are plain text, without a chat template.\n",
        };
        if self.repository.is_none() {
            text += "`BASE` stands for the base model.\n";
        }
        if is_feasible(Consumer::Peft, &facts) {
            text += &self.in_peft();
        }
        let base = self.name_of_base();
        let _ = write!(
            text,
            "\n### burnish\n\n```sh\nburnish generate --base {base} --adapter . --prompt \"...\"\n\
             burnish merge --base {base} --adapter . --out merged\n```\n"
        );
        let (merged, alone) = (is_feasible(Consumer::Gguf, &facts), is_feasible(Consumer::GgufLora, &facts));
        if merged || alone {
            text += "\n### llama.cpp\n\n```sh\n";
        }
        if merged {
            let _ =
                writeln!(text, "burnish merge --base {base} --adapter . --format gguf --type q8_0 --out merged.gguf");
            text += "llama-cli -m merged.gguf\n";
        }
        if alone {
            let _ = writeln!(text, "# or the adapter alone, over a GGUF file of the base");
            let _ = writeln!(text, "burnish export --base {base} --adapter . --format gguf-lora --out lora.gguf");
            text += "llama-cli -m base.gguf --lora lora.gguf\n";
        }
        if merged || alone {
            text += "```\n";
        }
        if merged && self.prepared.form == PromptForm::Conversation {
            let _ = write!(
                text,
                "\n### Ollama\n\n```sh\nburnish merge --base {base} --adapter . --format ollama --out ollama\n\
                 ollama create my-model -f ollama/Modelfile\n```\n"
            );
        }
        text
    }

    /// The name of the base for burnish.
    fn name_of_base(&self) -> String {
        let is_path = self.repository.is_none();
        if is_path { "BASE".to_owned() } else { self.prepared.base.name.clone() }
    }

    fn in_peft(&self) -> String {
        let base = self.repository.unwrap_or("BASE");
        let quant = self.prepared.plan.base.quant;
        let config = match quant {
            Quant::Nf4 | Quant::Nf4Double => {
                let double = if quant == Quant::Nf4Double { "True" } else { "False" };
                format!(
                    "BitsAndBytesConfig(\n    load_in_4bit=True, bnb_4bit_quant_type=\"nf4\", bnb_4bit_use_double_quant={double}\n)"
                )
            }
            Quant::Int8 => "BitsAndBytesConfig(load_in_8bit=True)".to_owned(),
            Quant::None | Quant::Keep => String::new(),
        };
        let (import, set, passed) = match config.is_empty() {
            true => ("", String::new(), ""),
            false => (", BitsAndBytesConfig", format!("packed = {config}\n"), ", quantization_config=packed"),
        };
        // PEFT loads rows of tokens into a base that has rows for them.
        let grow = match self.prepared.start.rows {
            Some(_) => "base.resize_token_embeddings(max(len(tokenizer), base.config.vocab_size))\n",
            None => "",
        };
        let encode = match self.prepared.form {
            PromptForm::Conversation => {
                "messages = [{\"role\": \"user\", \"content\": \"...\"}]\nprompt = tokenizer.apply_chat_template(\n    \
                 messages, add_generation_prompt=True, return_tensors=\"pt\", return_dict=True\n)\n"
            }
            PromptForm::Bare | PromptForm::Typed => "prompt = tokenizer(\"...\", return_tensors=\"pt\")\n",
        };
        format!(
            "\n### transformers and PEFT\n\n```python\nfrom peft import PeftModel\n\
             from transformers import AutoModelForCausalLM, AutoTokenizer{import}\n\n\
             folder = \".\"  # this folder, or its name on the hub\n{set}\
             base = AutoModelForCausalLM.from_pretrained(\"{base}\"{passed})\ntokenizer = AutoTokenizer.from_pretrained(folder)\n\
             {grow}model = PeftModel.from_pretrained(base, folder)\n{encode}\
             answer = model.generate(**prompt, max_new_tokens=256)\n\
             print(tokenizer.decode(answer[0][prompt[\"input_ids\"].shape[1] :], skip_special_tokens=True))\n```\n"
        )
    }

    /// The verdicts.
    fn results(&self) -> String {
        let TrainReport { validation, test, guard, .. } = self.report;
        let verdicts: Vec<&Validation> = validation.iter().chain(test).chain(guard).collect();
        if verdicts.is_empty() {
            return "## Results\n\nThe adapter was not measured: there was no validation data.\n".to_owned();
        }
        let mut text = String::from(
            "## Results\n\nMean loss over the trained tokens, in nats, on examples that were not trained on; the interval is that of \
             the difference, by a paired bootstrap over the examples.\n\n\
             | data | examples | base | with the adapter | difference | 95% interval | verdict |\n\
             |---|---|---|---|---|---|---|\n",
        );
        for verdict in &verdicts {
            let Validation { name, examples, loss_before, loss_after, difference, low, high, verdict, .. } = verdict;
            let _ = writeln!(
                text,
                "| {name} | {examples} | {loss_before:.4} | {loss_after:.4} | {difference:+.4} | {low:+.4} to {high:+.4} | {} |",
                verdict.name()
            );
        }
        if validation.is_some() && test.is_none() {
            text += "\nThe best step was chosen by the validation examples, so their figure flatters.\n";
        }
        text
    }

    /// The settings, and the hashes of what went in.
    fn training(&self) -> String {
        let Prepared { plan, train, valid, start, held_out, privacy, .. } = self.prepared;
        let TrainReport { steps, best_step, parameters, .. } = self.report;
        let known = |key: &str| start.metadata.get(key).map_or("none", String::as_str);
        let examples = |set: &EncodedSet, sha256: &str| match set.sequences.len() {
            0 => "none".to_owned(),
            count => format!(
                "{count} examples, {} tokens, {} of them trained; SHA-256 `{sha256}`",
                set.tokens, set.trained_tokens
            ),
        };
        let valid_sha256 = self.prepared.valid_sha256.as_deref();
        let split = valid_sha256.unwrap_or("that of the training data, of which they are a share");
        let measured = |set: &Option<MeasuredSet>| {
            set.as_ref().map_or_else(|| "none".to_owned(), |set| examples(&set.set, &set.sha256))
        };
        // Sizes and hashes of private data would tell more than the adapter does.
        let training_data = match privacy {
            Some(_) => format!("{} examples", train.sequences.len()),
            None => examples(train, known(provenance::DATA_SHA256)),
        };
        let quantiser = match plan.base.quant.is_packing() {
            true => format!("{}, quantiser `{}`", plan.base.quant, known(provenance::QUANTISER_SHA256)),
            false => plan.base.quant.to_string(),
        };
        let rows = [
            ("base, SHA-256", format!("`{}`", known(provenance::BASE_SHA256))),
            ("quantisation of the base", quantiser),
            ("precision of the products", plan.base.compute.to_string()),
            ("tokenizer, SHA-256", format!("`{}`", known(provenance::TOKENIZER_SHA256))),
            ("chat template, SHA-256", format!("`{}`", known(provenance::TEMPLATE_SHA256))),
            ("training data", training_data),
            ("validation data", examples(valid, split)),
            ("test data", measured(&held_out.test)),
            ("guard data", measured(&held_out.guard)),
            ("adapter", format!("rank {}, alpha {}, dropout {}", start.rank, start.alpha, start.dropout)),
            ("target modules", self.targets.join(", ")),
            ("trainable parameters", parameters.to_string()),
            ("optimiser", format!("{}, learning rate {:e}", plan.train.optimiser, plan.train.learning_rate)),
            ("schedule", plan.train.schedule.to_string()),
            ("sequences of a step", format!("{} × {}", plan.train.micro_batch_seqs, plan.train.accumulate_steps)),
            ("steps", format!("{steps}, the best after {best_step}")),
            ("seed", plan.train.seed.to_string()),
            ("burnish", format!("{}, build `{}`", env!("CARGO_PKG_VERSION"), env!("BURNISH_BUILD"))),
        ];
        let mut text = String::from("## Training\n\n| | |\n|---|---|\n");
        let privacy = privacy.map(|guarantee| ("privacy", guarantee.to_string()));
        for (name, value) in rows.into_iter().chain(privacy) {
            let _ = writeln!(text, "| {name} | {value} |");
        }
        text
    }
}

/// A string of YAML, which JSON's are too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
