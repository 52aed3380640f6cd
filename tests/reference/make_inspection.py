"""Makes tests/fixtures/inspection/NAME.safetensors: the attention maps and the logit lens of tiny models by transformers, with and without an
adapter of PEFT.

`ids` [T]; `LAYER.maps` f32 [heads, T, T]: the probabilities of plain ("eager") attention; `lens` f32 [layers + 1, T, vocabulary]: the final norm and the
head over the hidden states before the first layer and after each. Metadata: `base` and `adapter`, folders of tests/fixtures.

    pip install -r tests/reference/requirements.txt
    python tests/reference/make_inspection.py
"""

import json

import torch
from peft import PeftModel
from safetensors.torch import save_file

import tiny

FOLDER = tiny.FIXTURES / "inspection"
TOKENS = 16
# name -> (base, adapter)
CASES = {
    "grouped": ("models/llama_gqa", None),
    "grouped_adapter": ("models/llama_gqa", "training/seven_and_head/final"),
    "window": ("models/mistral_window", "adapters/window"),
    "capped_windows": ("families/gemma2_grouped", None),
    "head_norms": ("families/qwen3_grouped", None),
    "parallel": ("families/gpt_neox_parallel", None),
    "scaled": ("families/granite_grouped", None),
}


@torch.no_grad()
def make(name, base, adapter, seed):
    model = tiny.open_model(tiny.FIXTURES / base)
    config = json.loads((tiny.FIXTURES / base / "config.json").read_text())
    ids = tiny.random_ids(config, TOKENS, seed)
    if adapter:
        model = PeftModel.from_pretrained(model, tiny.FIXTURES / adapter).eval()
    inner = model.get_base_model() if adapter else model
    decoder = inner.base_model
    states = []
    decoder.layers[0].register_forward_pre_hook(lambda module, args, kwargs: states.append(args[0]), with_kwargs=True)
    for layer in decoder.layers:
        layer.register_forward_hook(lambda module, args, output: states.append(output[0] if isinstance(output, tuple) else output))
    outputs = model(ids.view(1, -1), use_cache=False, output_attentions=True)
    norm = getattr(decoder, "norm", None) or decoder.final_layer_norm
    tensors = {"ids": ids.to(torch.int64).contiguous()}
    for index, maps in enumerate(outputs.attentions):
        tensors[f"{index}.maps"] = maps[0].float().contiguous()
    lens = []
    for state in states:
        logits = inner.get_output_embeddings()(norm(state))[0]
        if scaling := getattr(inner.config, "logits_scaling", None):
            logits = logits / scaling
        if cap := getattr(inner.config, "final_logit_softcapping", None):
            logits = cap * torch.tanh(logits / cap)
        lens.append(logits)
    off = (lens[-1] - outputs.logits[0]).abs().max().item()
    assert off < 1e-5, f"{name}: the last entry of the lens is not the model's output: {off}"
    assert len(states) == len(outputs.attentions) + 1
    tensors["lens"] = torch.stack(lens).float().contiguous()
    metadata = {"base": base} | ({"adapter": adapter} if adapter else {})
    save_file(tensors, FOLDER / f"{name}.safetensors", metadata=metadata)
    (FOLDER / f"{name}.safetensors").chmod(0o644)
    print(name, {key: list(value.shape) for key, value in tensors.items()})


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    for seed, (name, (base, adapter)) in enumerate(CASES.items(), start=900):
        make(name, base, adapter, seed)


main()
