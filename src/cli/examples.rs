//! The examples in the help of each command. A test runs them in this order, in a folder with the recipes and data sets of the
//! repository: each finds what the ones before have written.

use clap::Command;

/// A command by its words, with its examples: what each does, and the line to type.
pub type Examples = (&'static str, &'static [(&'static str, &'static str)]);

/// The examples of all commands, in the order of a first hour.
pub const EXAMPLES: &[Examples] = &[
    (
        "doctor",
        &[
            ("See the instruction set, memory and devices of this machine, and test the kernels", "burnish doctor"),
            ("The same for a program", "burnish doctor --json"),
        ],
    ),
    ("recipes list", &[("List the recipes that come with burnish", "burnish recipes list")]),
    ("recipes show", &[("Begin with one of them", "burnish recipes show quickstart > my.toml")]),
    (
        "pull",
        &[
            ("Fetch the small model that the recipes use", "burnish pull smollm2-135m-instruct"),
            ("Fetch any model of the hub, at a revision", "burnish pull hf:Qwen/Qwen2.5-0.5B-Instruct@main"),
            ("Print where a model lies, for a script", "burnish pull smollm2-135m-instruct --quiet"),
        ],
    ),
    (
        "advise",
        &[
            ("Say which models can be fine-tuned here, and recommend one", "burnish advise"),
            (
                "For a data file, in at most half an hour, and write the recipe",
                "burnish advise --data datasets/support_en.train.jsonl --time 30m --write advised.toml",
            ),
        ],
    ),
    (
        "init",
        &[
            (
                "Write a recipe that fits a data file and this machine",
                "burnish init datasets/support_en.train.jsonl --base smollm2-135m-instruct",
            ),
            (
                "The same under another name",
                "burnish init datasets/library_en.jsonl --base smollm2-135m-instruct --out library.toml",
            ),
        ],
    ),
    (
        "import",
        &[
            ("Print the recipe of an axolotl configuration", "burnish import axolotl.yml"),
            (
                "Write the recipe of a notebook of Unsloth to a file",
                "burnish import notebook.py --from unsloth --out notebook.toml",
            ),
        ],
    ),
    ("schema", &[("Write the schema by which an editor completes recipes", "burnish schema > recipe.schema.json")]),
    (
        "check",
        &[
            (
                "Find every problem with a recipe and its data, and the memory it takes",
                "burnish check recipes/quickstart.toml",
            ),
            (
                "Look at the second example as the model sees it, and time a few steps",
                "burnish check recipes/quickstart.toml --show 2 --time",
            ),
            (
                "Check a data file without a recipe",
                "burnish check datasets/library_en.jsonl --base smollm2-135m-instruct",
            ),
        ],
    ),
    (
        "explain",
        &[("Say what a finding of check means", "burnish explain D101"), ("List all findings", "burnish explain")],
    ),
    (
        "data clean",
        &[(
            "Write a file without copies, e-mail addresses and keys",
            "burnish data clean datasets/support_en.train.jsonl --dedupe --redact --out clean.jsonl",
        )],
    ),
    (
        "train",
        &[
            ("Fine-tune by a recipe", "burnish train recipes/quickstart.toml"),
            (
                "Change settings for one run",
                "burnish train recipes/quickstart.toml --set train.epochs=2 --set output.dir=adapters/two",
            ),
            (
                "Make a run fit into less memory",
                "burnish train recipes/quickstart.toml --set output.dir=adapters/less --max-memory 4GiB",
            ),
            ("Go on with a run that was stopped", "burnish train recipes/quickstart.toml --resume"),
            ("Train a classifier", "burnish train recipes/classify.toml"),
        ],
    ),
    (
        "sweep",
        &[
            ("Try learning rates and ranks, and write the best recipe", "burnish sweep recipes/sweep.toml"),
            ("Go on with a sweep, two trials at once", "burnish sweep recipes/sweep.toml --resume --parallel 2"),
        ],
    ),
    (
        "eval",
        &[
            (
                "Measure the base alone",
                "burnish eval --base smollm2-135m-instruct --data datasets/support_en.valid.jsonl",
            ),
            (
                "Measure an adapter beside its base, answers too, and keep every answer",
                "burnish eval --base smollm2-135m-instruct --adapter adapters/quickstart --data datasets/support_en.valid.jsonl --generate --out answers.jsonl",
            ),
        ],
    ),
    (
        "predict",
        &[(
            "Give texts labels by a classifier",
            "burnish predict datasets/city_en.valid.jsonl --base smollm2-135m-instruct --adapter adapters/classify --out labels.jsonl",
        )],
    ),
    (
        "generate",
        &[
            ("Answer a question", "burnish generate --base smollm2-135m-instruct --prompt \"What is a noun?\""),
            (
                "Answer as an adapter has learned it, more freely",
                "burnish generate --base smollm2-135m-instruct --adapter adapters/quickstart --prompt \"Message: Where is my parcel?\" --temperature 0.7 --seed 1",
            ),
            (
                "Answer every row of a data file",
                "burnish generate --base smollm2-135m-instruct --data datasets/support_en.valid.jsonl --max-tokens 32",
            ),
        ],
    ),
    (
        "chat",
        &[
            ("Talk with a model", "burnish chat --base smollm2-135m-instruct"),
            (
                "With an adapter, which /adapter changes and /compare sets beside the base",
                "burnish chat --base smollm2-135m-instruct --adapter tickets=adapters/quickstart",
            ),
        ],
    ),
    (
        "serve",
        &[
            ("Answer OpenAI's protocol at port 8080 of this machine", "burnish serve --base smollm2-135m-instruct"),
            (
                "With an adapter that requests choose by its name",
                "burnish serve --base smollm2-135m-instruct --adapter tickets=adapters/quickstart --port 9000",
            ),
        ],
    ),
    (
        "report",
        &[
            ("Make the page of a run anew from its files", "burnish report adapters/quickstart"),
            ("Compare runs in the terminal", "burnish report adapters/quickstart adapters/two --format text"),
            ("Write TensorBoard's files", "burnish report adapters/quickstart --tensorboard events"),
        ],
    ),
    ("ui", &[("Follow the runs of a folder in the browser", "burnish ui adapters")]),
    (
        "inspect",
        &[
            ("Report the facts of a run or an adapter", "burnish inspect adapters/quickstart"),
            ("Of a data file", "burnish inspect datasets/library_zh.jsonl"),
            (
                "See where the heads of a layer look, on a page",
                "burnish inspect smollm2-135m-instruct --attention \"What is a noun?\" --layer 1 --out look.html",
            ),
        ],
    ),
    (
        "merge",
        &[
            (
                "Fold an adapter into its base, for transformers",
                "burnish merge --base smollm2-135m-instruct --adapter adapters/quickstart --out merged",
            ),
            (
                "For llama.cpp and Ollama, quantised",
                "burnish merge --base smollm2-135m-instruct --adapter adapters/quickstart --type q8_0 --out tickets.gguf",
            ),
        ],
    ),
    (
        "export",
        &[
            (
                "Write the adapter alone for llama.cpp's file of the base",
                "burnish export --base smollm2-135m-instruct --adapter adapters/quickstart --format gguf-lora --out lora.gguf",
            ),
            ("Write a base for Ollama", "burnish export --base smollm2-135m-instruct --format ollama --out ollama"),
        ],
    ),
    (
        "combine",
        &[(
            "Make one adapter of two, in equal parts",
            "burnish combine adapters/quickstart adapters/two --weights 0.5,0.5 --out adapters/both",
        )],
    ),
    (
        "quantize",
        &[(
            "Write a base in 4 bits, as bitsandbytes does",
            "burnish quantize --base smollm2-135m-instruct --scheme nf4 --out packed",
        )],
    ),
    ("completions", &[("Print the completions of bash, to be sourced", "burnish completions bash > burnish.bash")]),
    ("man", &[("Write the manual pages into a folder", "burnish man man1")]),
];

/// The command line with the examples in the help of each command.
pub(super) fn with_examples(mut command: Command) -> Command {
    for (words, examples) in EXAMPLES {
        command = at(command, words.split(' '), examples);
    }
    command
}

/// The command with examples at the one that `words` lead to, where it is compiled in.
fn at(command: Command, mut words: std::str::Split<'_, char>, examples: &[(&str, &str)]) -> Command {
    match words.next() {
        Some(word) if command.find_subcommand(word).is_some() => {
            command.mut_subcommand(word, |inner| at(inner, words, examples))
        }
        Some(_) => command,
        None => {
            let before = command.get_after_help().map(|text| format!("{text}\n\n")).unwrap_or_default();
            let lines = examples.iter().map(|(about, line)| format!("\n  # {about}\n  {}", continued(line)));
            command.after_help(format!("{before}Examples:{}", lines.collect::<String>()))
        }
    }
}

/// A line of a shell, continued on further lines before an argument where it is long, so that it can be copied from a help text of 100
/// columns.
fn continued(line: &str) -> String {
    const WIDTH: usize = 92;
    let (mut text, mut width) = (String::new(), 0);
    for (index, argument) in line.split(" --").enumerate() {
        let length = argument.chars().count() + 3;
        let is_full = index > 0 && width + length > WIDTH;
        text += match (index, is_full) {
            (0, _) => "",
            (_, true) => " \\\n    --",
            (_, false) => " --",
        };
        text += argument;
        width = if is_full { 4 + length } else { width + length };
    }
    text
}
