"""Handwritten digits for a model that sees: the base and the rows of recipes/digits.toml, its run, and the figures of docs/pictures.md.

    python benches/digits.py make --text-model FOLDER        # digits/: pictures, rows, a base with an untrained tower
    python benches/digits.py measure                         # trains the recipe; exact match, and with the pictures shuffled
    python benches/digits.py features --text-model FOLDER    # an epoch with kept features against one without

FOLDER is a Hugging Face folder of SmolLM2-135M-Instruct. The pictures are the 1,797 digits that scikit-learn brings along (8 x 8, grey), the
test set of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI Machine Learning Repository, CC BY 4.0); the last 360 of
its file are held out. Needs

    pip install numpy pillow scikit-learn safetensors torch torchvision transformers
"""

import argparse
import gzip
import importlib.util
import json
import os
import random
import resource
import shutil
import sys
import time
from pathlib import Path

from runs import printed_by, write_rows

FOLDER = Path("digits")
HELD_OUT = 360
QUESTION = "Which digit is this?"
IMAGE, AROUND, GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"
# SmolLM2's form without its system text, and with a token for every picture.
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Sixteen patches of 2 x 2 of the original's pixels; four tokens a picture.
SMALL = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
SMALL_FACTOR = 2
# The tower of SmolVLM-256M (SigLIP-base, 93 million parameters); 64 tokens a picture.
LARGE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 512, "patch_size": 16}
LARGE_FACTOR = 4
FEATURES_RECIPE = """
[base]
model = {base}
[data]
train = {train}
max_seq_tokens = 128
[adapter]
rank = 8
targets = ["q_proj", "v_proj"]
[train]
micro_batch_seqs = 4
checkpoint_minutes = 0
[output]
dir = {out}
"""


def digits():
    """The pixels of every digit, 8 x 8 of 0 to 16, and the digits."""
    import numpy as np

    # The file alone: nothing of scikit-learn has to run.
    package = importlib.util.find_spec("sklearn")
    if package is None:
        sys.exit("scikit-learn is not installed; its package holds the digits")
    with gzip.open(Path(package.origin).parent / "datasets/data/digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    return table[:, :64].reshape(-1, 8, 8), table[:, 64].astype(int)


def row(picture, digit):
    """A line of a data file."""
    asked = [{"type": "image", "path": picture}, {"type": "text", "text": QUESTION}]
    return json.dumps({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": str(digit)}]})


def write_data(folder):
    """Pictures of 32 x 32 pixels; train.jsonl, valid.jsonl, and shuffled.jsonl: the validation rows with each other's pictures."""
    import numpy as np
    from PIL import Image

    pixels, labels = digits()
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    names = [f"pictures/{number:04}.png" for number in range(len(labels))]
    for name, values in zip(names, pixels):
        grey = Image.fromarray(np.round(values * 255 / 16).astype(np.uint8))
        grey.resize((32, 32), Image.Resampling.BICUBIC).save(folder / name)
    rows = [row(name, digit) for name, digit in zip(names, labels)]
    write_rows(folder / "train.jsonl", rows[:-HELD_OUT])
    write_rows(folder / "valid.jsonl", rows[-HELD_OUT:])
    order = list(range(len(labels) - HELD_OUT, len(labels)))
    shuffled = order[:]
    random.Random(0).shuffle(shuffled)
    write_rows(folder / "shuffled.jsonl", [row(names[other], labels[own]) for own, other in zip(order, shuffled)])
    same = sum(labels[own] == labels[other] for own, other in zip(order, shuffled)) / HELD_OUT
    print(f"{len(rows) - HELD_OUT} training rows, {HELD_OUT} validation rows; shuffled, {100 * same:.1f}% of the pictures show the digit of their row")


def write_base(text_model, folder, tower, factor):
    """SmolVLM's architecture: the text model with tokens for pictures, and a tower and a connector with transformers' first weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessor

    torch.manual_seed(0)
    texts = AutoTokenizer.from_pretrained(text_model)
    texts.add_special_tokens({"additional_special_tokens": [IMAGE, AROUND, GLOBAL]})
    texts.chat_template = TEMPLATE
    language = AutoModelForCausalLM.from_pretrained(text_model, dtype=torch.float32)
    # A new token begins as the mean of all.
    mean = language.get_input_embeddings().weight.detach().mean(0)
    old = language.config.vocab_size
    language.resize_token_embeddings(len(texts), mean_resizing=False)
    language.get_input_embeddings().weight.data[old:] = mean
    text = {key: value for key, value in language.config.to_dict().items() if key != "_name_or_path"}
    config = SmolVLMConfig(
        vision_config=tower, text_config=text, scale_factor=factor, tie_word_embeddings=True,
        image_token_id=texts.convert_tokens_to_ids(IMAGE),
    )  # fmt: skip
    model = SmolVLMForConditionalGeneration(config)
    model.model.text_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(folder)
    texts.save_pretrained(folder)
    side = tower["image_size"]
    processor = SmolVLMImageProcessor(
        size={"longest_edge": side}, max_image_size={"longest_edge": side}, do_image_splitting=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor.save_pretrained(folder)


def make(options):
    write_data(FOLDER)
    write_base(options.text_model, FOLDER / "base", SMALL, SMALL_FACTOR)


def measure(options):
    burnish, threads, run = str(options.burnish), ["--threads", str(options.threads)], Path("adapters/digits")
    shutil.rmtree(run, ignore_errors=True)
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    trained = printed_by([burnish, "train", "recipes/digits.toml", "--json", "--quiet", *threads])
    minutes, used = (time.monotonic() - began) / 60, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = (used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime) / 60
    print(f"{trained['steps']} steps, the best {trained['best_step']}, in {minutes:.1f} minutes, {processor:.1f} of processor time")
    print(f"{trained['tokens_per_second']:.0f} tokens/s, {trained['peak_bytes'] / 2**20:.0f} MiB")
    verdict = trained["validation"]
    print(f"validation loss of a token {verdict['loss_before']:.3f} -> {verdict['loss_after']:.3f}", flush=True)
    print("| pictures | exact match, before | after |\n|---|---|---|")
    for name, file in (("their own", "valid"), ("shuffled", "shuffled")):
        command = [burnish, "eval", "--base", FOLDER / "base", "--adapter", run, "--data", FOLDER / f"{file}.jsonl", "--generate"]
        scores = printed_by([*command, "--max-tokens", "4", "--json", "--quiet", *threads])["scores"]["exact_match"]["against_base"]
        print(f"| {name} | {100 * scores['before']:.1f}% | {100 * scores['after']:.1f}% |", flush=True)


def features(options):
    folder = FOLDER / "features"
    shutil.rmtree(folder, ignore_errors=True)
    write_data(FOLDER)
    rows = FOLDER / "features.jsonl"
    write_rows(rows, (FOLDER / "train.jsonl").read_text().splitlines()[: options.pictures])
    write_base(options.text_model, folder / "base", LARGE, LARGE_FACTOR)
    environment = {**os.environ, "BURNISH_CACHE": str((folder / "cache").absolute())}
    seconds, metrics = {}, {}
    # The cache is empty in the first run.
    for name in ("without", "with"):
        recipe, values = folder / f"{name}.toml", {"base": folder / "base", "train": rows, "out": folder / name}
        recipe.write_text(FEATURES_RECIPE.format(**{key: json.dumps(str(value)) for key, value in values.items()}))
        began = time.monotonic()
        command = [options.burnish, "train", recipe, "--json", "--quiet", "--threads", options.threads]
        trained = printed_by(command, env=environment)
        seconds[name] = time.monotonic() - began
        metrics[name] = (folder / name / "metrics.jsonl").read_text()
        print(f"{name} kept features: {seconds[name]:.1f} s, {trained['peak_bytes'] / 2**20:.0f} MiB", flush=True)
    same = "the same" if metrics["without"] == metrics["with"] else "OTHER"
    print(f"{options.pictures} pictures, an epoch: {seconds['without'] / seconds['with']:.1f} x the speed with kept features, {same} losses")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["make", "measure", "features"])
    parser.add_argument("--text-model", type=Path)
    parser.add_argument("--burnish", type=Path, default=Path("target/release/burnish"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=48, help="of the comparison of features")
    options = parser.parse_args()
    if options.part != "measure" and options.text_model is None:
        parser.error("--text-model is needed")
    {"make": make, "measure": measure, "features": features}[options.part](options)


if __name__ == "__main__":
    main()
