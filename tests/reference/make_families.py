"""Makes tests/fixtures/families/*: for every model family two tiny random models by transformers, and what PEFT makes of them.

FAMILY_SHAPE/ is a Hugging Face folder as transformers saves it, with
    expected.safetensors  `ids` [tokens] and transformers' `logits` [tokens, vocabulary] in f32
    model.gguf            the same weights under llama.cpp's names and in its order (if llama.cpp has the family)
    adapter/              PEFT's adapter over all linear layers
    trained.safetensors   its factors after five steps of PyTorch's AdamW, and `adapter_logits` before them
    training.json         the batches of the five steps, and their losses

A family is one entry in `FAMILIES`. Everything is computed in f32 with plain ("eager") attention.

    pip install -r tests/reference/requirements.txt
    python tests/reference/make_families.py [FAMILY_SHAPE...]
    python tests/reference/make_families.py --llama-cpp [FAMILY_SHAPE...]  # the GGUF files in llama.cpp
    python tests/reference/make_families.py --check target/release/burnish   # merged folders in transformers
"""

import json
import math
import shutil
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

import tiny

FOLDER = tiny.FIXTURES / "families"
TOKENS, STEPS, LEARNING_RATE, WEIGHT_DECAY = 200, 5, 1e-2, 0.01


# --- llama.cpp's form of weights ----------------------------------------------------------------------------------------


def same(name, weight, config):
    return weight


def rotated_pairs(name, weight, config):
    """`permute` of conversion/llama.py: q and k of Llama and what inherits from it."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": getattr(config, "num_key_value_heads", None)}
    count = next((count for part, count in heads.items() if f".{part}." in name), None)
    if count is None:
        return weight
    return weight.reshape(count, 2, weight.shape[0] // count // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def split_by_head(name, weight, config):
    """conversion/gptneox.py: `query_key_value` of each head becomes all queries, all keys, all values."""
    if ".query_key_value." not in name:
        return weight
    heads = config.num_attention_heads
    parts = weight.reshape(heads, 3, weight.shape[0] // heads // 3, *weight.shape[1:])
    return np.concatenate([parts[:, part].reshape(-1, *weight.shape[1:]) for part in range(3)])


def norms_plus_one(name, weight, config):
    """conversion/gemma.py: the stored weight of a norm is one plus Hugging Face's."""
    return weight + 1 if name.endswith("norm.weight") else weight


def rms_metadata(writer, config):
    """The keys of Llama's kind of model."""
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def gpt_neox_metadata(writer, config):
    head_dim = config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(int(head_dim * config.rope_parameters["partial_rotary_factor"]))
    writer.add_parallel_residual(config.use_parallel_residual)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def granite_metadata(writer, config):
    rms_metadata(writer, config)
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def phi3_metadata(writer, config):
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_head_count_kv(config.num_key_value_heads)
    rope = config.rope_parameters
    head_dim = config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(int(head_dim * rope["partial_rotary_factor"]))
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    writer.add_sliding_window(config.sliding_window or 0)
    if rope["rope_type"] == "longrope":
        growth = config.max_position_embeddings / config.original_max_position_embeddings
        factor = math.sqrt(1 + math.log(growth) / math.log(config.original_max_position_embeddings))
        writer.add_rope_scaling_attn_factors(factor)


def phi3_factors(config):
    """LongRoPE's divisors, which llama.cpp keeps as tensors."""
    lists = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}
    rope = config.rope_parameters
    return {name: np.array(rope[key], np.float32) for name, key in lists.items() if key in rope}


def gemma2_metadata(writer, config):
    """conversion/gemma.py, `Gemma2Model`: no base of rotation, no scale of scores."""
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def gemma3_metadata(writer, config):
    """conversion/gemma.py, `Gemma3Model`: base and scaling of the layers that see all positions."""
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    full = config.rope_parameters["full_attention"]
    writer.add_rope_freq_base(full["rope_theta"])
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    if full["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full["factor"])
    writer.add_sliding_window(config.sliding_window)


@dataclass
class Gguf:
    """How llama.cpp's converter writes a family."""

    architecture: gguf.MODEL_ARCH
    metadata: Callable = rms_metadata
    weight: Callable = same
    # Tensors that are a part of the configuration elsewhere.
    tensors: Callable = field(default=lambda config: {})
    # Shapes that a file of this architecture cannot describe.
    without: tuple = ()
    # Tokens of the prompt that llama.cpp gets, by shape, where it is not 40.
    prompt_tokens: dict = field(default_factory=dict)


# --- families -----------------------------------------------------------------------------------------------------------


@dataclass
class Family:
    """`shapes`: configurations by name; those whose name begins with `bf16` are stored in bf16 and in shards."""

    shapes: dict
    gguf: Gguf | None = None
    # The weight of a norm is added to one.
    norms_around_zero: bool = False
    # Added to the weights of the checkpoint: buffers of old versions.
    buffers: Callable = field(default=lambda config: {})


COMMON = dict(vocab_size=40, hidden_size=24, intermediate_size=40, num_hidden_layers=2, max_position_embeddings=256,
              bos_token_id=1, eos_token_id=2)  # fmt: skip


def shape(model_type, **changes):
    return {**COMMON, "model_type": model_type, **changes}


def gpt_neox_buffers(config):
    """The causal mask that transformers before 4.4x saved in every layer."""
    buffers = {}
    for layer in range(config.num_hidden_layers):
        at = f"gpt_neox.layers.{layer}.attention."
        buffers[at + "bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
        buffers[at + "masked_bias"] = torch.tensor(-1e9)
        buffers[at + "rotary_emb.inv_freq"] = torch.ones(2)
    return buffers


FAMILIES = {
    "qwen3": Family(
        {
            # Grouped heads that are wider than the hidden size.
            "grouped": shape("qwen3", num_attention_heads=4, num_key_value_heads=2, head_dim=12),
            "bf16_tied": shape(
                "qwen3", num_attention_heads=3, num_key_value_heads=1, head_dim=10, hidden_size=20, intermediate_size=28,
                vocab_size=37, tie_word_embeddings=True, attention_bias=True, rope_theta=1e6, num_hidden_layers=3,
            ),
        },
        Gguf(gguf.MODEL_ARCH.QWEN3),
    ),
    "gpt_neox": Family(
        {
            # Half of each head is rotated; attention and feed-forward network side by side.
            "parallel": shape("gpt_neox", num_attention_heads=3, rotary_pct=0.5, hidden_act="gelu"),
            "bf16_sequential": shape(
                "gpt_neox", num_attention_heads=2, rotary_pct=1.0, hidden_size=20, intermediate_size=44, vocab_size=37,
                use_parallel_residual=False, rotary_emb_base=500, hidden_act="gelu",
            ),
        },
        Gguf(gguf.MODEL_ARCH.GPTNEOX, gpt_neox_metadata, split_by_head),
        buffers=gpt_neox_buffers,
    ),
    "smollm3": Family(
        {
            # The fourth layer does not rotate.
            "grouped": shape("smollm3", num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=5,
                             tie_word_embeddings=False, pad_token_id=0),
            "bf16_tied": shape(
                "smollm3", num_attention_heads=2, num_key_value_heads=1, hidden_size=20, intermediate_size=28, vocab_size=37,
                attention_bias=True, mlp_bias=True, rope_theta=5e3, num_hidden_layers=4, pad_token_id=0,
            ),
        },
        Gguf(gguf.MODEL_ARCH.SMOLLM3, weight=rotated_pairs),
    ),
    "granite": Family(
        {
            "grouped": shape("granite", num_attention_heads=4, num_key_value_heads=2, embedding_multiplier=2.5,
                             attention_multiplier=0.25, residual_multiplier=0.4, logits_scaling=0.5),
            "bf16_tied": shape(
                "granite", num_attention_heads=3, num_key_value_heads=1, hidden_size=30, intermediate_size=28, vocab_size=37,
                tie_word_embeddings=True, attention_bias=True, mlp_bias=True, embedding_multiplier=3.0,
                attention_multiplier=0.5, residual_multiplier=0.75, logits_scaling=2.0,
            ),
        },
        Gguf(gguf.MODEL_ARCH.GRANITE, granite_metadata, rotated_pairs),
    ),
    # llama.cpp has it as a Granite 3 with separate gate and up.
    "granite4": Family(
        {
            "grouped": shape(
                "granitemoehybrid", num_attention_heads=4, num_key_value_heads=2, num_local_experts=0, num_experts_per_tok=0,
                shared_intermediate_size=36, position_embedding_type="rope", layer_types=["attention"] * 2,
                mamba_n_heads=8, embedding_multiplier=2.5, attention_multiplier=0.25, residual_multiplier=0.4,
                logits_scaling=0.5,
            ),
            "bf16_tied_unrotated": shape(
                "granitemoehybrid", num_attention_heads=2, num_key_value_heads=1, hidden_size=20, num_local_experts=0,
                num_experts_per_tok=0, shared_intermediate_size=28, layer_types=["attention"] * 2, mamba_n_heads=8,
                vocab_size=37, tie_word_embeddings=True, attention_bias=True, embedding_multiplier=3.0,
                attention_multiplier=0.5, residual_multiplier=0.75, logits_scaling=2.0,
            ),
        },
    ),
    "phi3": Family(
        {
            # A part of each head is rotated, by other frequencies beyond 16 tokens.
            "longrope": shape(
                "phi3", num_attention_heads=2, num_key_value_heads=1, partial_rotary_factor=0.5,
                original_max_position_embeddings=16, pad_token_id=0,
                rope_scaling={"type": "longrope", "short_factor": [1.0, 1.25, 1.5], "long_factor": [1.5, 4.0, 9.0]},
            ),
            "bf16_tied_window": shape(
                "phi3", num_attention_heads=3, hidden_size=30, intermediate_size=28, vocab_size=37, sliding_window=24,
                tie_word_embeddings=True, original_max_position_embeddings=256, pad_token_id=0,
            ),
        },
        # llama.cpp passes over the window of this architecture, so prompt and answer stay within it.
        Gguf(gguf.MODEL_ARCH.PHI3, phi3_metadata, tensors=phi3_factors, prompt_tokens={"bf16_tied_window": 11}),
    ),
    "gemma2": Family(
        {
            # A window in the first and third layer, heads wider than the hidden size, caps that are reached.
            "grouped": shape(
                "gemma2", num_attention_heads=4, num_key_value_heads=2, head_dim=10, num_hidden_layers=3, sliding_window=9,
                query_pre_attn_scalar=10, attn_logit_softcapping=4.0, final_logit_softcapping=3.0,
            ),
            # What GGUF cannot say: a scale of scores, a head of its own, an order of layers, no caps.
            "bf16_untied": shape(
                "gemma2", num_attention_heads=3, num_key_value_heads=1, head_dim=14, hidden_size=21, intermediate_size=28,
                vocab_size=37, tie_word_embeddings=False, sliding_window=5, query_pre_attn_scalar=9, rope_theta=500,
                layer_types=["full_attention", "sliding_attention"], attn_logit_softcapping=None,
                final_logit_softcapping=None, attention_bias=True,
            ),
        },
        Gguf(gguf.MODEL_ARCH.GEMMA2, gemma2_metadata, norms_plus_one, without=("bf16_untied",)),
        norms_around_zero=True,
    ),
    "gemma3": Family(
        {
            # Layer 6 sees all positions, which are divided by 4 there.
            "bf16_grouped": shape(
                "gemma3_text", num_attention_heads=4, num_key_value_heads=2, head_dim=10, hidden_size=20,
                intermediate_size=24, num_hidden_layers=7, sliding_window=9, query_pre_attn_scalar=10,
                rope_theta=500000, rope_local_base_freq=700, rope_scaling={"rope_type": "linear", "factor": 4.0},
            ),
            # The older spelling of the order of layers, a cap on the logits.
            "pattern": shape(
                "gemma3_text", num_attention_heads=3, num_key_value_heads=1, head_dim=8, hidden_size=21, vocab_size=37,
                sliding_window=7, sliding_window_pattern=2, query_pre_attn_scalar=11, final_logit_softcapping=5.0,
                rope_theta=90000, tie_word_embeddings=False,
            ),
            # The decoder of a model that sees images.
            "images": dict(
                model_type="gemma3", tie_word_embeddings=True, bos_token_id=1, eos_token_id=[2, 3], mm_tokens_per_image=4,
                image_token_index=39, boi_token_index=38, eoi_token_index=37,
                text_config=shape(
                    "gemma3_text", num_attention_heads=2, num_key_value_heads=1, head_dim=12, sliding_window=6,
                    layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=12, rope_scaling=dict(
                        rope_type="linear", factor=2.0),
                ),
                vision_config=dict(
                    model_type="siglip_vision_model", hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=1, image_size=8, patch_size=4,
                ),
            ),
        },
        Gguf(gguf.MODEL_ARCH.GEMMA3, gemma3_metadata, norms_plus_one, without=("pattern", "images")),
        norms_around_zero=True,
    ),
    "olmo2": Family(
        {
            "grouped": shape(
                "olmo2", num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=500000,
                num_hidden_layers=3,
            ),
            "bf16_tied": shape(
                "olmo2", num_attention_heads=2, num_key_value_heads=1, hidden_size=20, intermediate_size=28, vocab_size=37,
                tie_word_embeddings=True, rope_scaling={"rope_type": "linear", "factor": 2.0},
            ),
        },
        Gguf(gguf.MODEL_ARCH.OLMO2, without=("bf16_tied",)),
    ),
}  # fmt: skip


# --- making -------------------------------------------------------------------------------------------------------------


def is_norm(name):
    return name.endswith("norm.weight")


def fill(model, family, seed):
    """Random weights of a scale that gives logits of a few units, so that a wrong detail shows."""
    random = np.random.default_rng(seed)
    scaled_embedding = getattr(model.config.get_text_config(), "model_type", "").startswith("gemma")
    for name, parameter in sorted(model.named_parameters()):
        values = random.standard_normal(tuple(parameter.shape))
        if name.endswith(".bias"):
            values *= 0.3
        elif is_norm(name):
            values = values * 0.25 + (0.0 if family.norms_around_zero else 1.0)
        elif parameter is model.get_input_embeddings().weight:
            values *= 1.6 / math.sqrt(parameter.shape[1]) if scaled_embedding else 0.4
        else:
            values *= 1.6 / math.sqrt(parameter.shape[-1])
        parameter.data.copy_(torch.from_numpy(values.astype(np.float32)))


def add_vocabulary(writer, size):
    """Tokens without meaning, which llama.cpp does not do without."""
    kinds = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>", "<0x0A>", *(f"t{token}" for token in range(4, size))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(token) for token in range(size)])
    writer.add_token_types([kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, kinds.BYTE, *[kinds.NORMAL] * (size - 4)])


def write_gguf(path, model, form, dtype, with_vocabulary=False):
    """The model as llama.cpp's converter writes it: matrices in its type, vectors in f32."""
    config = model.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[form.architecture])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    form.metadata(writer, config)
    if with_vocabulary:
        add_vocabulary(writer, config.vocab_size)
    names = gguf.get_tensor_name_map(form.architecture, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = form.weight(name, weight.float().numpy(), config)
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored, f"llama.cpp has no name for {name}"
        if values.ndim > 1 and dtype == torch.bfloat16:
            writer.add_tensor(stored, gguf.quantize(values, Type.BF16), raw_dtype=Type.BF16)
        else:
            writer.add_tensor(stored, np.ascontiguousarray(values, dtype=np.float32))
    for name, values in form.tensors(config).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_model(folder, family, config, seed, dtype, form):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), attn_implementation="eager")
    fill(model, family, seed)
    model.to(dtype).save_pretrained(folder, max_shard_size="8KB" if dtype == torch.bfloat16 else "1GB")
    buffers = family.buffers(model.config)
    if buffers:
        path = sorted(folder.glob("*.safetensors"))[0]
        save_file({**load_file(path), **buffers}, path, metadata={"format": "pt"})
    (folder / "generation_config.json").unlink(missing_ok=True)
    if form:
        write_gguf(folder / "model.gguf", model, form, dtype)


def open_model(folder):
    """The folder in f32. Buffers of old versions may be in it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def mean_loss(model, sequences):
    """The summed loss of all tokens but the first of each sequence, divided once by their number."""
    total, tokens = 0, 0
    for ids in sequences:
        logits = model(ids.view(1, -1), use_cache=False).logits[0, :-1].float()
        total = total + cross_entropy(logits, ids[1:], reduction="sum")
        tokens += len(ids) - 1
    return total / tokens


def factors(model):
    """Module path and factor -> values."""
    named = ((name, value) for name, value in model.named_parameters() if value.requires_grad)
    return {
        name.removeprefix("base_model.model.").removesuffix(".default.weight"): value.detach().clone().contiguous()
        for name, value in named
    }


def targets(model):
    """All linear layers, of a larger model those of its decoder."""
    decoder = "model.language_model."
    paths = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    return [path for path in paths if path.startswith(decoder)] or "all-linear"


def write_adapter(folder, name, seed):
    adapter = folder / "adapter"
    base = open_model(folder)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=3, target_modules=targets(base))
    model = get_peft_model(base, config)
    random = np.random.default_rng(seed)
    for key, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            scale = 0.25 if "lora_B" in key else 1.0 / math.sqrt(parameter.shape[1])
            values = random.standard_normal(tuple(parameter.shape)) * scale
            parameter.data.copy_(torch.from_numpy(values.astype(np.float32)))
    model.peft_config["default"].base_model_name_or_path = f"tests/fixtures/families/{name}"
    model.save_pretrained(adapter, save_embedding_layers=False)
    (adapter / "README.md").unlink(missing_ok=True)
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return PeftModel.from_pretrained(open_model(folder), adapter, is_trainable=True).eval()


def train(model, vocabulary, seed):
    """Five steps of two ragged sequences each."""
    random = np.random.default_rng(seed)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = []
    for _ in range(STEPS):
        sequences = [torch.from_numpy(random.integers(0, vocabulary, random.integers(5, 20))) for _ in range(2)]
        loss = mean_loss(model, sequences)
        loss.backward()
        steps.append({"sequences": [ids.tolist() for ids in sequences], "loss": loss.item()})
        optimizer.step()
        optimizer.zero_grad()
    return steps


def make(name, shape_name, family, config, seed):
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    dtype = torch.bfloat16 if "bf16" in name else torch.float32
    form = family.gguf if family.gguf and shape_name not in family.gguf.without else None
    write_model(folder, family, config, seed, dtype, form)
    model = open_model(folder)
    vocabulary = model.config.get_text_config().vocab_size
    ids = tiny.random_ids({"vocab_size": vocabulary}, TOKENS, seed + 1000)
    logits = tiny.logits_of(model, ids)
    tiny.write_expected(folder / "expected.safetensors", ids, logits)
    adapted = write_adapter(folder, name, seed + 2000)
    adapter_logits = tiny.logits_of(adapted, ids)
    change = (adapter_logits - logits).abs().max().item()
    assert change > 0.3, f"{name}: the adapter changes the logits by {change} only"
    steps = train(adapted, vocabulary, seed + 3000)
    save_file({"adapter_logits": adapter_logits, **factors(adapted)}, folder / "trained.safetensors")
    loss = cross_entropy(adapter_logits[:-1], ids[1:]).item()
    training = {"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "adapter_loss": loss, "steps": steps}
    (folder / "training.json").write_text(json.dumps(training) + "\n")
    print(f"families/{name}: losses {[round(step['loss'], 4) for step in steps]}")


def add_tokenizer(folder, size):
    """A word for each id: merging wants a tokenizer beside the weights."""
    tokenizer = Tokenizer(WordLevel({f"t{index}": index for index in range(size)}, unk_token="t0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


def train_ours(burnish, base, rows, out):
    """An adapter over all linear layers by our program, a few large steps."""
    recipe = rows.with_name("recipe.toml")
    recipe.write_text(
        f'[base]\nmodel = "{base}"\ncompute = "f32"\n[data]\ntrain = "{rows}"\n[adapter]\nrank = 2\ntargets = "all-linear"\n'
        f'[train]\nepochs = 4\nlearning_rate = 0.03\n[output]\ndir = "{out}"\n'
    )
    subprocess.run([burnish, "train", recipe], check=True, capture_output=True)


def loss_of(burnish, base, adapter, rows):
    arguments = ["--base", base, "--adapter", adapter, "--data", rows, "--compute", "f32", "--json"]
    return json.loads(subprocess.run([burnish, "eval", *arguments], check=True, capture_output=True).stdout)["loss"]


@torch.no_grad()
def peft_loss(fixture, adapter, ids):
    """The loss in PEFT, which must find a pair for every module that it adapts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(open_model(fixture), adapter)
    missing = [str(one.message) for one in caught if "missing adapter keys" in str(one.message)]
    assert not missing, missing
    return mean_loss(model, [ids]).item()


def check(burnish, names):
    """With our program: the loss of every adapter against PEFT's, an adapter of ours in PEFT, and every merged folder in
    transformers against PEFT."""
    for fixture in sorted(path for path in FOLDER.iterdir() if path.is_dir()):
        if names and fixture.name not in names:
            continue
        ids = load_file(fixture / "expected.safetensors")["ids"]
        expected = load_file(fixture / "trained.safetensors")["adapter_logits"]
        with tempfile.TemporaryDirectory() as temporary:
            folder, out, rows = Path(temporary) / "base", Path(temporary) / "merged", Path(temporary) / "rows.jsonl"
            shutil.copytree(fixture, folder)
            add_tokenizer(folder, expected.shape[1])
            rows.write_text(json.dumps({"text": " ".join(f"t{token}" for token in ids[:150].tolist())}) + "\n")
            model = ["--base", folder, "--adapter", folder / "adapter"]
            # A text ends with the end token.
            ended = torch.cat([ids[:150], torch.tensor([2])])
            found, loss = loss_of(burnish, *model[1::2], rows), peft_loss(fixture, fixture / "adapter", ended)
            assert abs(found - loss) < 1e-4, f"{fixture.name}: loss {found}, not {loss}"
            ours = Path(temporary) / "ours"
            train_ours(burnish, folder, rows, ours)
            own, in_peft = loss_of(burnish, folder, ours, rows), peft_loss(fixture, ours, ended)
            assert abs(own - in_peft) < 1e-4, f"{fixture.name}: our adapter's loss is {own}, in PEFT {in_peft}"
            assert abs(own - loss) > 0.1, f"{fixture.name}: our training changed nothing"
            subprocess.run([burnish, "merge", *model, "--out", out, "--type", "f32"], check=True, capture_output=True)
            difference = (tiny.logits_of(tiny.open_model(out), ids) - expected).abs().max().item()
        assert difference < 1e-3, f"{fixture.name}: merged logits differ by {difference}"
        print(f"{fixture.name}: loss within {abs(found - loss):.1e}, ours in PEFT within {abs(own - in_peft):.1e}, merged logits within {difference:.1e}")


@torch.no_grad()
def continuation(model, ids, end, count=12):
    """The likeliest tokens after `ids`, one by one, the end token left out."""
    ids = ids.tolist()
    for _ in range(count):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        logits[end] = -math.inf
        ids.append(logits.argmax().item())
    return ids[-count:]


def check_llama_cpp(names):
    """Runs every model that has a GGUF file in llama.cpp and compares what both say next."""
    import make_gguf

    for folder in sorted(path.parent for path in FOLDER.glob("*/model.gguf")):
        if names and folder.name not in names:
            continue
        family = next(family for name, family in FAMILIES.items() if folder.name.startswith(f"{name}_"))
        model = open_model(folder)
        shape_name = next(shape for shape in family.shapes if folder.name.endswith(f"_{shape}"))
        ids = load_file(folder / "expected.safetensors")["ids"][: family.gguf.prompt_tokens.get(shape_name, 40)]
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "model.gguf"
            write_gguf(path, model, family.gguf, torch.float32, with_vocabulary=True)
            llama_cpp = make_gguf.LlamaCpp(path)
            options = dict(n_predict=12, temperature=0.0, cache_prompt=False, return_tokens=True, ignore_eos=True)
            found = llama_cpp.ask("/completion", prompt=ids.tolist(), **options)["tokens"]
            nearest = llama_cpp.next_tokens(ids.tolist())
        expected = continuation(model, ids, model.config.eos_token_id)
        truth = torch.log_softmax(tiny.logits_of(model, ids)[-1].double(), -1)
        difference = max(abs(truth[token].item() - value) for token, value in nearest.items())
        assert found == expected and difference < 0.02, f"{folder.name}: {found}, expected {expected}; {difference}"
        print(f"{folder.name}: llama.cpp goes on with the same 12 tokens, log probabilities within {difference:.1e}")


def main():
    if sys.argv[1:2] == ["--llama-cpp"]:
        return check_llama_cpp(sys.argv[2:])
    if sys.argv[1:2] == ["--check"]:
        return check(Path(sys.argv[2]).resolve(), sys.argv[3:])
    for index, (family_name, family) in enumerate(FAMILIES.items()):
        for number, (shape_name, config) in enumerate(family.shapes.items()):
            name = f"{family_name}_{shape_name}"
            if not sys.argv[1:] or name in sys.argv[1:]:
                make(name, shape_name, family, config, 10 * index + number + 1)


if __name__ == "__main__":
    main()
