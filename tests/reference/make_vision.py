"""Makes tests/fixtures/vision/*: tiny random models that see pictures, by transformers, and what PEFT makes of them.

NAME/ is a Hugging Face folder as transformers saves it, with its tokenizer, chat template and image processor, and
    data.jsonl            conversations about the pictures in `pictures/`
    expected.safetensors  of each row N: `N.ids` [tokens] as the processor makes them, `N.features` [image tokens, width],
                          `N.logits` [tokens, vocabulary], all in f32
    adapter/              PEFT's adapter over attention of the language model
    trained.safetensors   of each row N: `N.logits` and `N.loss` with the adapter, over the last ANSWER tokens, and the gradients
                          `N.grad.MODULE.lora_A` and `.lora_B` of that loss; of row 0 those of tower and connector, `grad.TENSOR`, too
    seeing_adapter/       of the models in SEEING: PEFT's adapter over tower and connector too
    seeing.safetensors    the same of it as trained.safetensors, but for the gradients of whole tensors

    pip install -r tests/reference/requirements.txt
    python tests/reference/make_vision.py [NAME...]
    python tests/reference/make_vision.py --check target/release/burnish   # merged folders and adapters in transformers and PEFT
"""

import json
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForImageTextToText, CLIPImageProcessor, CLIPVisionConfig, Idefics3Config, Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor, Idefics3Processor, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor,
    MistralConfig, PreTrainedTokenizerFast, Qwen2Config, SiglipImageProcessor, SiglipVisionConfig, SmolVLMConfig,
    SmolVLMForConditionalGeneration, SmolVLMImageProcessor,
)  # fmt: skip

import tiny
from make_pictures import scene

FOLDER = tiny.FIXTURES / "vision"
ANSWER = 3
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == 'image' %}"
    "{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)  # the template of HuggingFaceTB/SmolVLM-256M-Instruct
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)  # the template of llava-hf/llava-1.5-7b-hf
SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<fake_token_around_image>", "<global-img>", "<|im_start|>", "<end_of_utterance>",
           *(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4))]  # fmt: skip
WORDS = ["<unk>", "\n", "\n\n", ":", " ", "?", "User", "Assistant", "USER", "ASSISTANT", "Which", "colour", "shape", "is", "this", "and", "that",
         "red", "blue", "round", "a", "b", "c", "seven", "Both"]  # fmt: skip
TEXT = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, bos_token_id=1,
            eos_token_id=2, pad_token_id=0, vocab_size=len(SPECIAL) + len(WORDS), max_position_embeddings=512)  # fmt: skip
TOWER = dict(hidden_size=20, intermediate_size=28, num_attention_heads=2)
IMAGE = SPECIAL.index("<image>")


def tokenizer(template):
    words = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    from tokenizers import Regex

    inner.pre_tokenizer = Split(Regex(r"\n+|[A-Za-z]+|[^A-Za-z\n]"), "isolated")
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="<end_of_utterance>" if "im_start" in template else "</s>", unk_token="<unk>",
        pad_token="<pad>", additional_special_tokens=SPECIAL[3:],
    )  # fmt: skip
    made.chat_template = template
    return made


def smolvlm_processor(**options):
    images = SmolVLMImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3, **options)
    return images, lambda texts: Idefics3Processor(images, texts, image_seq_len=4, chat_template=SMOLVLM_TEMPLATE)


def llava_processor(images, strategy, additional):
    return images, lambda texts: LlavaProcessor(
        images, texts, patch_size=4, vision_feature_select_strategy=strategy, num_additional_image_tokens=additional,
        chat_template=LLAVA_TEMPLATE,
    )  # fmt: skip


def clip_images(side):
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def siglip_images(side):
    return SiglipImageProcessor(size={"height": side, "width": side})


def models():
    """Name, model, (image processor, processor), shards."""
    yield "smolvlm_tiles", SmolVLMForConditionalGeneration(SmolVLMConfig(
        vision_config=dict(**TOWER, num_hidden_layers=2, image_size=16, patch_size=4), text_config=dict(**TEXT, model_type="llama"),
        scale_factor=2, image_token_id=IMAGE,
    )), smolvlm_processor(size={"longest_edge": 48}, max_image_size={"longest_edge": 16}, do_image_splitting=True), False  # fmt: skip
    # Tiles of 6 x 6 patches for a tower of 9 x 9.
    yield "idefics3_buckets", Idefics3ForConditionalGeneration(Idefics3Config(
        vision_config=dict(**TOWER, num_hidden_layers=3, image_size=36, patch_size=4), tie_word_embeddings=True,
        text_config=dict(**TEXT, model_type="llama", tie_word_embeddings=True), scale_factor=3, image_token_id=IMAGE,
    )), smolvlm_processor(size={"longest_edge": 48}, max_image_size={"longest_edge": 24}, do_image_splitting=False), True  # fmt: skip
    yield "llava_clip", LlavaForConditionalGeneration(LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER, num_hidden_layers=3, image_size=12, patch_size=4, projection_dim=8),
        text_config=LlamaConfig(**TEXT), image_token_index=IMAGE, vision_feature_layer=-2, vision_feature_select_strategy="default",
    )), llava_processor(clip_images(12), "default", 1), False  # fmt: skip
    yield "llava_clip_layers", LlavaForConditionalGeneration(LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER, num_hidden_layers=2, image_size=8, patch_size=4, hidden_act="gelu"),
        text_config=Qwen2Config(**TEXT), image_token_index=IMAGE, vision_feature_layer=[0, -1], vision_feature_select_strategy="full",
        multimodal_projector_bias=False, projector_hidden_act="gelu_pytorch_tanh",
    )), llava_processor(clip_images(8), "full", 1), True  # fmt: skip
    yield "llava_siglip", LlavaForConditionalGeneration(LlavaConfig(
        vision_config=SiglipVisionConfig(**TOWER, num_hidden_layers=2, image_size=12, patch_size=4),
        text_config=LlamaConfig(**TEXT), image_token_index=IMAGE, vision_feature_layer=-1, vision_feature_select_strategy="full",
    )), llava_processor(siglip_images(12), "full", 0), False  # fmt: skip
    yield "llava_siglip_mistral", LlavaForConditionalGeneration(LlavaConfig(
        vision_config=SiglipVisionConfig(**TOWER, num_hidden_layers=3, image_size=16, patch_size=4, vision_use_head=False),
        text_config=MistralConfig(**{**TEXT, "sliding_window": None}), image_token_index=IMAGE, vision_feature_layer=-2,
        vision_feature_select_strategy="full",
    )), llava_processor(siglip_images(16), "full", 0), True  # fmt: skip


# Targets over tower and connector: a pattern, and a list of names, which takes the tower's `q_proj` along with the decoder's, and the
# layers behind the state that LLaVA uses.
LAYER = "(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
SEEING = {
    "smolvlm_tiles": rf".*(text_model.*self_attn\.(q|v)_proj|vision_model.*\.{LAYER}|connector\.modality_projection\.proj)",
    "llava_clip": ["q_proj", "v_proj", "out_proj", "fc1", "linear_1", "linear_2"],
    "llava_siglip": rf".*(vision_tower.*mlp\.fc2|vision_tower\.encoder.*\.{LAYER}|projector\.linear_2)",
}
PICTURES = {"wide.png": (44, 20), "tall.png": (15, 30), "square.png": (16, 16)}


def image(name):
    return {"type": "image", "path": f"pictures/{name}"}


def text(words):
    return {"type": "text", "text": words}


ROWS = [
    [("user", [image("wide.png"), text("Which colour is this?")]), ("assistant", [text("red")])],
    [("user", [image("tall.png"), text("Which shape is this"), image("square.png"), text("and that?")]), ("assistant", [text("Both round")])],
    [("user", [text("Which is a?")]), ("assistant", [text("b")])],
]


def fill(model, seed):
    """Random weights of a scale that gives logits of a few units, so that a wrong detail shows."""
    random = np.random.default_rng(seed)
    for name, parameter in sorted(model.named_parameters()):
        values = random.standard_normal(tuple(parameter.shape))
        if name.endswith(".bias"):
            values *= 0.3
        elif "norm" in name:
            values = 1.0 + 0.25 * values
        elif parameter is model.get_input_embeddings().weight:
            values *= 0.4
        else:
            values *= 1.6 / np.sqrt(np.prod(parameter.shape[1:]) or 1)
        parameter.data.copy_(torch.from_numpy(values.astype(np.float32)))


def loaded(folder):
    model, report = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.eval()


def inputs_of(processor, folder, row):
    turns = [{"role": role, "content": content} for role, content in row]
    words = processor.apply_chat_template(turns, tokenize=False)
    images = [Image.open(folder / part["path"]) for turn in turns for part in turn["content"] if part["type"] == "image"]
    return processor(text=words, images=[images] if images else None, return_tensors="pt")


def forward(model, inputs):
    return model(**{name: values for name, values in inputs.items() if name not in ("rows", "cols")}, use_cache=False).logits[0]


def make(name, model, images, processor, shards, seed):
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "pictures").mkdir(parents=True)
    for index, (picture, (width, height)) in enumerate(PICTURES.items()):
        Image.fromarray(scene(width, height, 100 + index)).save(folder / "pictures" / picture)
    template = SMOLVLM_TEMPLATE if isinstance(images, SmolVLMImageProcessor) else LLAVA_TEMPLATE
    texts = tokenizer(template)
    processor = processor(texts)
    fill(model, seed)
    model.save_pretrained(folder, max_shard_size="40KB" if shards else "1GB")
    texts.save_pretrained(folder)
    images.save_pretrained(folder)
    rows = [{"messages": [{"role": role, "content": content} for role, content in row]} for row in ROWS]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = loaded(folder)
    all_inputs = [inputs_of(processor, folder, row) for row in ROWS]
    expected = {}
    with torch.no_grad():
        for index, inputs in enumerate(all_inputs):
            expected[f"{index}.ids"] = inputs["input_ids"][0].contiguous()
            expected[f"{index}.logits"] = forward(model, inputs).contiguous()
            if "pixel_values" in inputs:
                values = {key: inputs[key] for key in ("pixel_values", "pixel_attention_mask") if key in inputs}
                features = model.get_image_features(**values, return_dict=True).pooler_output
                expected[f"{index}.features"] = torch.cat([part.reshape(-1, part.shape[-1]) for part in features]).contiguous()
    save_file(expected, folder / "expected.safetensors")
    language = ".*(text_model|language_model).*self_attn\\.(q|k|v|o)_proj"
    adapt(folder, "adapter", "trained.safetensors", LoraConfig(r=2, lora_alpha=3, target_modules=language), all_inputs, seed + 1)
    if name in SEEING:
        config = LoraConfig(r=2, lora_alpha=3, target_modules=SEEING[name], rank_pattern={"fc1": 3}, alpha_pattern={"v_proj": 5})
        adapt(folder, "seeing_adapter", "seeing.safetensors", config, all_inputs, seed + 2)
    spread = expected["0.logits"].std().item()
    print(f"{name}: {[len(inputs['input_ids'][0]) for inputs in all_inputs]} tokens, logits {spread:.2f}")


def adapt(folder, adapter, trained_file, config, all_inputs, seed):
    peft = get_peft_model(loaded(folder), config)
    random = np.random.default_rng(seed)
    for name, parameter in sorted(peft.named_parameters()):
        if ".lora_" in name:
            parameter.data.copy_(torch.from_numpy(random.standard_normal(tuple(parameter.shape)).astype(np.float32) * 0.3))
    peft.save_pretrained(folder / adapter)
    (folder / adapter / "README.md").unlink(missing_ok=True)
    path = folder / adapter / "adapter_config.json"
    saved = json.loads(path.read_text())
    # Relative to the repository, as no path of a machine is kept.
    saved["base_model_name_or_path"] = f"tests/fixtures/vision/{folder.name}"
    saved["target_modules"] = saved["target_modules"] if isinstance(saved["target_modules"], str) else sorted(saved["target_modules"])
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")
    peft = PeftModel.from_pretrained(loaded(folder), folder / adapter, is_trainable=True)
    trained = {}
    is_vision = lambda name: any(part in name for part in ("vision_model.", "vision_tower.", "connector.", "multi_modal_projector."))
    for name, parameter in peft.named_parameters():
        parameter.requires_grad = ".lora_" in name or trained_file == "trained.safetensors" and is_vision(name)
    for index, inputs in enumerate(all_inputs):
        peft.zero_grad()
        logits = forward(peft, inputs)
        ids = inputs["input_ids"][0]
        loss = cross_entropy(logits[-ANSWER - 1 : -1], ids[-ANSWER:])
        if loss.requires_grad:
            loss.backward()
        trained[f"{index}.logits"] = logits.detach().contiguous()
        trained[f"{index}.loss"] = loss.detach().reshape(1)
        for name, parameter in peft.named_parameters():
            if ".lora_" in name and parameter.grad is not None:
                short = name.removeprefix("base_model.model.").replace(".default.weight", "")
                trained[f"{index}.grad.{short}"] = parameter.grad.clone()
            elif index == 0 and parameter.grad is not None:
                trained[f"grad.{name.removeprefix('base_model.model.')}"] = parameter.grad.clone()
    save_file(trained, folder / trained_file)


def check(burnish):
    """The folder that `burnish merge` writes gives the logits of PEFT in transformers."""
    for folder in sorted(path for path in FOLDER.iterdir() if path.is_dir()):
        trained = load_file(folder / "trained.safetensors")
        processors = {name: processor for name, _, processor, _ in models()}
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "merged"
            command = [burnish, "merge", "--base", folder, "--adapter", folder / "adapter", "--out", out]
            subprocess.run([str(part) for part in command], check=True, capture_output=True)
            model = loaded(out)
            texts = PreTrainedTokenizerFast.from_pretrained(out)
            processor = processors[folder.name][1](texts)
            with torch.no_grad():
                worst = max(
                    (forward(model, inputs_of(processor, folder, row)) - trained[f"{index}.logits"]).abs().max().item()
                    for index, row in enumerate(ROWS)
                )
            assert (out / "preprocessor_config.json").exists()
            print(f"{folder.name}: merged logits differ by {worst:.1e}")
            assert worst < 1e-3, folder
            if folder.name in SEEING:
                check_seeing(burnish, folder, processor, Path(scratch))


def check_seeing(burnish, folder, processor, scratch):
    """PEFT loads the adapter over tower and connector that `burnish train` writes, and gives the logits of the model merged with it."""
    run, out, recipe = scratch / "run", scratch / "seeing", scratch / "recipe.toml"
    recipe.write_text(
        f'[base]\nmodel = "{folder}"\ncompute = "f32"\n[data]\ntrain = "{folder}/data.jsonl"\nmax_seq_tokens = 256\n[adapter]\nrank = 2\n'
        f'targets = {json.dumps(SEEING[folder.name])}\n[train]\nepochs = 8\nlearning_rate = 2e-2\n[output]\ndir = "{run}"\n'
    )  # fmt: skip
    merge = ["merge", "--base", folder, "--adapter", run, "--out", out, "--type", "f32"]
    for command in [["train", recipe], merge]:
        subprocess.run([str(part) for part in [burnish, *command]], check=True, capture_output=True)
    base, merged, peft = loaded(folder), loaded(out), PeftModel.from_pretrained(loaded(folder), run)
    stored, known = load_file(run / "adapter_model.safetensors"), peft.state_dict()
    assert sum(".lora_" in name for name in known) == len(stored)
    assert all((known[name.replace(".weight", ".default.weight")] - values).abs().max() == 0 for name, values in stored.items())
    with torch.no_grad():
        rows = [inputs_of(processor, folder, row) for row in ROWS]
        worst, change = (
            max((forward(peft, inputs) - forward(model, inputs)).abs().max().item() for inputs in rows) for model in (merged, base)
        )
    print(f"{folder.name}: an adapter of burnish over tower and connector changes logits by {change:.1e}; PEFT and merged differ by {worst:.1e}")
    assert worst < 1e-3 < change, folder


def main(names):
    warnings.filterwarnings("ignore")
    if names and names[0] == "--check":
        return check(names[1])
    for seed, (name, model, (images, processor), shards) in enumerate(models()):
        if not names or name in names:
            make(name, model, images, processor, shards, 10 * seed)


if __name__ == "__main__":
    main(sys.argv[1:])
