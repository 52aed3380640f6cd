"""Makes tests/fixtures/combinations/NAME.safetensors: adapters that PEFT's add_weighted_adapter combined.

The adapters are those of make_adapters.py over `llama_gqa`. Of DARE only `density=1` can be compared: which values it drops
is a matter of PyTorch's random numbers.

    python tests/reference/make_combinations.py
"""

from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import tiny

# name -> (adapters, weights, arguments)
COMBINATIONS = {
    "linear": (["qv", "seven_and_head"], [0.75, -0.5], dict(combination_type="linear")),
    "cat": (["qv", "seven", "rslora"], [0.5, 1.25, -1.0], dict(combination_type="cat")),
    "svd": (["qv", "seven", "rslora"], [0.5, 1.25, -1.0], dict(combination_type="svd", svd_rank=6)),
    "svd_default_rank": (["qv", "seven"], [1.0, 1.0], dict(combination_type="svd")),
    "ties": (["qv", "seven_and_head"], [0.75, 0.5], dict(combination_type="ties", density=0.3)),
    "ties_frequency": (
        ["qv", "seven_and_head"],
        [0.75, -0.5],
        dict(combination_type="ties", density=0.7, majority_sign_method="frequency"),
    ),
    "dare": (["qv", "seven_and_head"], [0.75, 0.5], dict(combination_type="dare_linear", density=1.0)),
    "dare_ties": (["qv", "seven_and_head"], [0.75, 0.5], dict(combination_type="dare_ties", density=1.0)),
    "magnitude_prune": (["qv", "seven_and_head"], [-0.75, 0.5], dict(combination_type="magnitude_prune", density=0.4)),
    "one": (["qv"], [-0.5], dict(combination_type="svd")),
}


def main():
    folder = tiny.FIXTURES / "combinations"
    folder.mkdir(exist_ok=True)
    for name, (adapters, weights, arguments) in COMBINATIONS.items():
        model = AutoModelForCausalLM.from_pretrained(tiny.FIXTURES / "models" / "llama_gqa")
        model = PeftModel.from_pretrained(model, tiny.FIXTURES / "adapters" / adapters[0], adapter_name=adapters[0])
        for adapter in adapters[1:]:
            model.load_adapter(tiny.FIXTURES / "adapters" / adapter, adapter_name=adapter)
        model.add_weighted_adapter(adapters, weights, "combined", **arguments)
        tensors = {}
        for path, module in model.base_model.model.named_modules():
            if "combined" in getattr(module, "lora_A", {}):
                # The scale of a combination is 1.
                assert module.scaling["combined"] == 1.0
                tensors[path + ".lora_A"] = module.lora_A["combined"].weight.detach().clone().contiguous()
                tensors[path + ".lora_B"] = module.lora_B["combined"].weight.detach().clone().contiguous()
        save_file(tensors, folder / f"{name}.safetensors")
        print(name, len(tensors) // 2)


main()
