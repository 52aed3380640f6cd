"""Makes tests/fixtures/gguf/*: tiny GGUF files, their decoded tensors, logits and token ids.

blocks.gguf      one tensor of each type; `blocks.expected.safetensors` holds gguf-py's decoding in f32.
NAME.gguf        a model with a tokenizer. `NAME.expected.safetensors`: `ids` and transformers' `logits` in f32 over the
                 weights as gguf-py decodes them (q and k rows put back into Hugging Face order). `NAME.tokens.jsonl`:
                 {"text", "ids"} by llama.cpp itself (xllamacpp), special tokens recognised, none added.
The models are also run by llama.cpp and the likeliest next tokens compared.

    pip install -r tests/reference/requirements.txt
    python tests/reference/make_gguf.py
"""

import json
import tempfile
import urllib.request
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import torch
import xllamacpp
from gguf import GGMLQuantizationType as Type
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

import make_models
import tiny

FOLDER = tiny.FIXTURES / "gguf"
ALL_TYPES = [
    Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q4_K, Type.Q5_K, Type.Q6_K,
]  # fmt: skip

# Where the f16 factors of a block stand, in bytes; everything else in a block may be any bytes.
HALVES = {
    Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2],
    Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}  # fmt: skip

CORPUS = """
The river ran past the old mill, and 12 children counted the boats: 1, 2, 3, 45, 678 and 9000.
They don't know what we've seen; I'm sure it's fine, isn't it? You'll see, she'd said.
A model learns the shape of a sentence from many sentences, and a small model learns a small shape.
SELECT name, COUNT(*) FROM towns WHERE year > 1999 AND name LIKE 'north%' ORDER BY name;
def area(width, height):
    return width * height  # in square metres

Wie schön ist der Käse auf dem Tisch, sagte die Bäckerin. Où est la gare? ¿Qué hora es?
河水流过古老的磨坊,孩子们数着小船。今天天气很好,我们去公园散步。
The children went to the mill and the boats went down the river to the sea.
"""

TEXTS = [
    "The river ran past the old mill.",
    " leading space",
    "two  spaces,   three,    four",
    "trailing spaces   ",
    "line\nbreaks\n\nand\r\nmore\n\n\n",
    "\ttabs\t\tand \t mixtures",
    "digits 1 12 123 1234 12345678 3.14159 1,000,000",
    "before digits:  7\n\n8\n 9",
    "They don't, I'm, we've, you'll, she'd, it's; THEY DON'T",
    "schön, Käse, Où, ¿Qué?",
    "河水流过古老的磨坊,孩子们数着小船。2024年",
    "emoji 😀🎉 and 👩‍👩‍👧",
    "<|im_start|>user\nhello<|im_end|>\n",
    "almost <|im_start| special> |im_end|>",
    "snake_case camelCase kebab-case a/b\\c {x: [1]} ()!?...",
    "ﬁne ½ ² Ⅳ é é \u00a0nbsp\u3000wide",
    "x",
    " ",
    "\n",
]

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# The splitting expression of Llama 3's tokenizer.json (llama.cpp: `llama-bpe`) and of Qwen2's, which splits each digit.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False, use_regex=True)],
    "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)],
    "qwen2": [
        pre_tokenizers.Split(Regex(LLAMA3_SPLIT.replace("{1,3}", "")), "isolated"),
        pre_tokenizers.ByteLevel(False, use_regex=False),
    ],
}
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def random_blocks(quant, rows, columns, spread, random):
    """Rows of `quant` as raw bytes (or floats): any codes, with factors that give values of about `spread`."""
    if quant not in HALVES:
        values = (random.standard_normal((rows, columns)) * spread).astype(np.float32)
        if quant == Type.F32:
            return values
        return gguf.quantize(values, quant).view(np.float16 if quant == Type.F16 else np.uint8)
    block, size = gguf.GGML_QUANT_SIZES[quant]
    data = random.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
    for at in HALVES[quant]:
        factors = (random.uniform(0.5, 1.5, data.shape[:2])).astype(np.float16)
        data[:, :, at : at + 2] = factors[..., None].view(np.uint8).reshape(*data.shape[:2], 2)
    decoded = gguf.dequantize(data.reshape(rows, -1), quant)
    # The factors once more, scaled to the wanted spread; an offset factor centres what is not centred.
    scale = spread / decoded.std()
    for index, at in enumerate(HALVES[quant]):
        factors = data[:, :, at : at + 2].copy().view(np.float16).astype(np.float32)[..., 0] * scale
        if index == 1 and quant in (Type.Q4_1, Type.Q5_1):
            factors = -data[:, :, 0:2].copy().view(np.float16).astype(np.float32)[..., 0] * (7.5 if quant == Type.Q4_1 else 15.5)
        data[:, :, at : at + 2] = factors.astype(np.float16)[..., None].view(np.uint8).reshape(*data.shape[:2], 2)
    return data.reshape(rows, -1)


def decoded(data, quant):
    return data if quant == Type.F32 else gguf.dequantize(data, quant).astype(np.float32)


def add(writer, name, data, quant):
    writer.add_tensor(name, data, raw_dtype=quant if quant in HALVES or quant == Type.BF16 else None)


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_blocks():
    random = np.random.default_rng(300)
    writer = gguf.GGUFWriter(FOLDER / "blocks.gguf", "llama")
    expected = {}
    for quant in ALL_TYPES:
        data = random_blocks(quant, 3, 512, 1.0, random)
        add(writer, quant.name.lower(), data, quant)
        expected[quant.name.lower()] = torch.from_numpy(decoded(data, quant).copy())
    close(writer)
    save_file(expected, FOLDER / "blocks.expected.safetensors")


# --- tokenizers -------------------------------------------------------------------------------------------------------


def byte_level_vocabulary(pre, size):
    """Tokens, types and merges of a byte-level BPE trained on the corpus; the control tokens come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[pre])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        special_tokens=[AddedToken(token, normalized=False) for token in CONTROL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(keepends=True) * 2, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get) + ["<tool>"]
    tokens += [f"<unused{index}>" for index in range(size - len(tokens))]
    types = [gguf.TokenType.CONTROL if token in CONTROL else gguf.TokenType.NORMAL for token in tokens]
    types[tokens.index("<tool>")] = gguf.TokenType.USER_DEFINED
    for index, token in enumerate(tokens):
        if token.startswith("<unused"):
            types[index] = gguf.TokenType.UNUSED
    return tokens, types, [" ".join(merge) for merge in model["merges"]]


def add_byte_level(writer, pre, size, add_bos):
    tokens, types, merges = byte_level_vocabulary(pre, size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(add_bos)
    writer.add_chat_template(CHAT_TEMPLATE)


def add_sentencepiece(writer, size):
    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS.split("\n")),
            model_prefix=f"{folder}/m",
            model_type="bpe",
            vocab_size=size,
            byte_fallback=True,
            character_coverage=0.98,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
        pieces = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/m.model")
    assert pieces.vocab_size() == size
    types = []
    for index in range(size):
        if pieces.is_unknown(index):
            types.append(gguf.TokenType.UNKNOWN)
        elif pieces.is_control(index):
            types.append(gguf.TokenType.CONTROL)
        elif pieces.is_byte(index):
            types.append(gguf.TokenType.BYTE)
        else:
            types.append(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([pieces.id_to_piece(index) for index in range(size)])
    writer.add_token_scores([pieces.get_score(index) for index in range(size)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)


# --- models -----------------------------------------------------------------------------------------------------------

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

SIXTEEN = {"attn_q": Type.F16, "attn_k": Type.F16, "attn_v": Type.F16, "attn_output": Type.F16}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# name -> (configuration, type of each matrix (F32 where none is given), tokenizer)
MODELS = {
    "smollm": (
        make_models.llama(
            vocab_size=384,
            hidden_size=64,
            intermediate_size=96,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            rope_theta=100000.0,
        ),
        {
            "token_embd": Type.Q8_0, "attn_q": Type.Q4_1, "attn_k": Type.Q5_0, "attn_v": Type.Q5_1,
            "attn_output": Type.Q4_0, "ffn_gate": Type.Q8_0, "ffn_up": Type.F16, "ffn_down": Type.BF16,
        },
        "smollm",
    ),
    "llama_bpe": (
        make_models.llama(
            vocab_size=384,
            hidden_size=256,
            intermediate_size=256,
            num_hidden_layers=1,
            num_key_value_heads=2,
            head_dim=16,
            rope_theta=500000.0,
            rope_scaling=LLAMA3_SCALING,
        ),
        {
            "token_embd": Type.Q4_K, "output": Type.Q6_K, "attn_q": Type.Q4_K, "attn_k": Type.Q5_K, "attn_v": Type.Q6_K,
            "attn_output": Type.Q8_0, "ffn_gate": Type.Q4_K, "ffn_up": Type.Q5_K, "ffn_down": Type.Q6_K,
        },
        "llama-bpe",
    ),
    "spm": (
        make_models.llama(vocab_size=400, num_key_value_heads=2, rope_scaling={"rope_type": "linear", "factor": 2.0}),
        {"token_embd": Type.F16, "output": Type.F16},
        "sentencepiece",
    ),
    "qwen2": (
        make_models.qwen2(vocab_size=384, num_key_value_heads=2, rope_theta=1000000.0),
        {"token_embd": Type.F16, "output": Type.F16, **SIXTEEN},
        "qwen2",
    ),
}  # fmt: skip


def gguf_name(name):
    """`model.layers.0.self_attn.q_proj.weight` -> `blk.0.attn_q.weight`."""
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        layer, part = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{GGUF_NAMES[part]}.{kind}"
    return f"{GGUF_NAMES[stem]}.{kind}"


def interleave(weight, heads):
    """Rows of q or k from Hugging Face order (halves) to llama.cpp's (pairs), per head."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def halve(weight, heads):
    """The inverse of `interleave`."""
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def rope_divisors(config):
    """By how much llama3 scaling divides each frequency, from transformers' own frequencies."""
    def frequencies(scaling):
        settings = AutoConfig.for_model(**{**config, "rope_scaling": scaling})
        return AutoModelForCausalLM.from_config(settings).model.rotary_emb.inv_freq.double()

    return (frequencies(None) / frequencies(LLAMA3_SCALING)).float().numpy()


def write_metadata(writer, config, tokenizer):
    writer.add_name(f"tiny {tokenizer}")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(tiny.head_dim(config))
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    if tokenizer == "sentencepiece":
        add_sentencepiece(writer, config["vocab_size"])
    else:
        add_byte_level(writer, tokenizer, config["vocab_size"], add_bos=tokenizer == "llama-bpe")


def write_model(path, config, types, tokenizer, seed):
    """Writes the file; gives the weights in f32 under their Hugging Face names and in that order of rows."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, config["model_type"])
    write_metadata(writer, config, tokenizer)
    weights = {}
    plain = tiny.random_weights(config, seed)
    for name, shape in tiny.weight_shapes(config).items():
        as_gguf = gguf_name(name)
        quant = types.get(as_gguf.split(".")[-2], Type.F32) if len(shape) == 2 else Type.F32
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(as_gguf.split(".")[-2])
        permuted = heads if config["model_type"] == "llama" else None
        if quant == Type.F32:
            weights[name] = plain[name]
            data = plain[name].numpy()
            add(writer, as_gguf, interleave(data, permuted) if permuted else data, quant)
            continue
        data = random_blocks(quant, *shape, plain[name].std().item(), random)
        add(writer, as_gguf, data, quant)
        values = decoded(data, quant)
        weights[name] = torch.from_numpy((halve(values, permuted) if permuted else values).copy())
    if config.get("rope_scaling") == LLAMA3_SCALING:
        writer.add_tensor("rope_freqs.weight", rope_divisors(config))
    close(writer)
    return weights


class LlamaCpp:
    """llama.cpp's own server over one file."""

    def __init__(self, path):
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = 128
        parameters.cpuparams.n_threads = 2
        parameters.warmup = False
        self.server = xllamacpp.Server(parameters)

    def ask(self, path, **question):
        request = urllib.request.Request(
            self.server.listening_address + path, json.dumps(question).encode(), {"Content-Type": "application/json"}
        )
        return json.loads(urllib.request.urlopen(request).read())

    def tokens(self, text):
        return self.ask("/tokenize", content=text, add_special=False, parse_special=True)["tokens"]

    def next_tokens(self, ids):
        """The five likeliest next tokens and their log probabilities."""
        answer = self.ask("/completion", prompt=ids, n_predict=1, n_probs=5, temperature=0.0, cache_prompt=False)
        return {entry["id"]: entry["logprob"] for entry in answer["completion_probabilities"][0]["top_logprobs"]}


def make_model(name, config, types, tokenizer, seed):
    path = FOLDER / f"{name}.gguf"
    weights = write_model(path, config, types, tokenizer, seed)
    ids = tiny.random_ids(config, 48, 1000 + seed)
    with tempfile.TemporaryDirectory() as folder:
        tiny.write_checkpoint(Path(folder), config, weights)
        logits = tiny.logits_of(tiny.open_model(Path(folder)), ids)
    tiny.write_expected(FOLDER / f"{name}.expected.safetensors", ids, logits)
    llama_cpp = LlamaCpp(path)
    truth = torch.log_softmax(logits[-1].double(), -1)
    # llama.cpp keeps keys and values in f16, and rounds the activations to 8 bit before a packed matrix.
    tolerance = 0.5 if any(quant in HALVES for quant in types.values()) else 0.02
    for token, value in llama_cpp.next_tokens(ids.tolist()).items():
        difference = abs(truth[token].item() - value)
        assert difference < tolerance, f"{name}: llama.cpp gives token {token} {value}, transformers {truth[token]}"
        print(f"    llama.cpp on token {token}: {value:.4f}, transformers {truth[token]:.4f}")
    with (FOLDER / f"{name}.tokens.jsonl").open("w") as file:
        for text in TEXTS:
            file.write(json.dumps({"text": text, "ids": llama_cpp.tokens(text)}, ensure_ascii=False) + "\n")


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    make_blocks()
    for seed, (name, (config, types, tokenizer)) in enumerate(MODELS.items(), start=310):
        make_model(name, config, types, tokenizer, seed)


if __name__ == "__main__":
    main()
