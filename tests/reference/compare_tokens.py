"""Compares burnish's token ids on whole data files with transformers' and llama.cpp's.

    python tests/reference/compare_tokens.py --model FILE.gguf --data F.jsonl …

Runs the test that writes burnish's ids (tests/tokenizer.rs), then counts the texts whose ids differ from those of

- transformers' tokenizer of the same GGUF, as it is;
- the same with the pre-tokenizer that the GGUF names, where transformers does not know it (`smollm`);
- llama.cpp (the package xllamacpp);
- transformers' AutoTokenizer of the folder that burnish saves.

Ends with 1 if any but the first differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from gguf import GGUFReader
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]


def ours(model, data, folder):
    """Burnish's ids as [(text, ids)]; its saved tokenizer is left in `folder`."""
    out = Path(folder) / "ids.jsonl"
    variables = {
        "BURNISH_TOKENS_MODEL": str(model),
        "BURNISH_TOKENS_DATA": ":".join(str(path) for path in data),
        "BURNISH_TOKENS_OUT": str(out),
        "BURNISH_TOKENS_SAVE": str(folder),
    }
    command = ["cargo", "test", "--release", *os.environ.get("CARGO_ARGS", "").split()]
    test = ["--test", "burnish", "tokenizer::ids_of_data_files_for_a_comparison"]
    subprocess.run(command + test, cwd=ROOT, env=os.environ | variables, check=True, stdout=sys.stderr)
    rows = [json.loads(line) for line in out.open()]
    return [(row["text"], row["ids"]) for row in rows]


def llama_cpp(model, texts):
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.n_ctx = 64
    parameters.warmup = False
    server = xllamacpp.Server(parameters)
    for text in texts:
        body = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
        request = urllib.request.Request(
            server.listening_address + "/tokenize", body, {"Content-Type": "application/json"}
        )
        yield json.load(urllib.request.urlopen(request, timeout=60))["tokens"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    options = parser.parse_args()
    folder = tempfile.mkdtemp()
    rows = ours(options.model.resolve(), [path.resolve() for path in options.data], folder)

    def differing(encode):
        return sum(encode(text) != ids for text, ids in rows)

    plain = AutoTokenizer.from_pretrained(options.model.parent, gguf_file=options.model.name)
    saved = AutoTokenizer.from_pretrained(folder)
    named = Tokenizer.from_str(plain.backend_tokenizer.to_str())
    field = GGUFReader(options.model).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        named.pre_tokenizer = pre_tokenizers.Sequence(parts)
    theirs = dict(zip((text for text, _ in rows), llama_cpp(options.model, (text for text, _ in rows))))
    result = {
        "texts": len(rows),
        "tokens": sum(len(ids) for _, ids in rows),
        "differ_from_transformers_as_it_is": differing(lambda text: plain(text, add_special_tokens=False).input_ids),
        "differ_from_transformers_with_the_named_pre_tokenizer": differing(
            lambda text: named.encode(text, add_special_tokens=False).ids
        ),
        "differ_from_llama_cpp": differing(theirs.get),
        "differ_from_transformers_of_the_saved_folder": differing(
            lambda text: saved(text, add_special_tokens=False).input_ids
        ),
    }
    print(json.dumps(result, indent=1))
    counts = [count for name, count in result.items() if name.startswith("differ") and not name.endswith("as_it_is")]
    sys.exit(any(counts))


if __name__ == "__main__":
    main()
