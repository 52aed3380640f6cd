"""Writes tests/fixtures/templates/cases.json: conversations rendered, encoded and masked by transformers with the chat
templates beside it.

    python tests/reference/make_templates.py
    python tests/reference/make_templates.py --real FOLDER

The templates write what those of well-known models write; `{% generation %}` stands around the tokens of the assistant
and its stop token, so transformers gives the mask. With `--real` nothing is written: each template is compared with the
model's own, FOLDER/NAME.jinja, where there is one, and every conversation that renders differently is printed.
"""

import argparse
import json
from datetime import datetime
from pathlib import Path
from unittest import mock

import transformers
from transformers import PreTrainedTokenizerFast

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
OUT = FIXTURES / "templates"

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a place.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "A town."},
                    "days": {"type": "integer", "description": "Days ahead."},
                },
                "required": ["place"],
            },
        },
    }
]


def user(text):
    return {"role": "user", "content": text}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(number, arguments, **more):
    function = {"name": "get_weather", "arguments": arguments}
    return {"id": f"call{number:05}", "type": "function", "function": function, **more}


def result(number, text):
    return {"role": "tool", "name": "get_weather", "tool_call_id": f"call{number:05}", "content": text}


SYSTEM = {"role": "system", "content": "Be brief, and kind."}
SINGLE = [user("Where is my parcel?"), answer("It arrives on Monday.")]
MULTI = [
    user("Hi"),
    answer("Hello! What can I do?"),
    user("Name two fruits, one with an accent."),
    answer("Two of them:\n\n1. açaí\n2. \"plum\""),
    user("  And the sum of 2 and 2?\n"),
    answer("4"),
]
OPEN = MULTI[:5]
CALLED = [
    user("Is it warm in Bern?"),
    answer("", tool_calls=[call(1, {"place": "Bern", "days": 2})]),
    result(1, '{"celsius": 21}'),
    answer("Yes, 21 degrees."),
]
CALLED_TWICE = [
    *CALLED,
    user("And in Basel and Genf?"),
    answer("", tool_calls=[call(2, {"place": "Basel"}), call(3, {"place": "Genf"})]),
    result(2, '{"celsius": 22}'),
    result(3, '{"celsius": 23}'),
    answer("22 and 23 degrees."),
]
REASONED = [
    user("2 + 2?"),
    answer("4", reasoning_content="Two and two."),
    user("And 3 more?"),
    answer("7", reasoning_content="Four and three.\nSeven."),
]
THOUGHT = [
    user("2 + 2?"),
    answer("<think>\nTwo and two.\n</think>\n\n4"),
    user("And 3 more?"),
    answer("<think>\nFour and three.\n</think>\n\n7"),
]
REASONED_CALL = [
    user("Is it warm in Bern?"),
    answer("", reasoning_content="I have to look.", tool_calls=[call(1, {"place": "Bern"})]),
    result(1, '{"celsius": 21}'),
    answer("Yes.", reasoning_content="21 is warm."),
]
NOT_THINKING = [{"role": "system", "content": "Be brief. /no_think"}, *SINGLE]

PLAIN = [SINGLE, [SYSTEM, *SINGLE], MULTI, [SYSTEM, *MULTI], OPEN]
WITH_TOOLS = [CALLED, [SYSTEM, *CALLED]]
WITH_MORE_TOOLS = [*WITH_TOOLS, CALLED_TWICE, [SYSTEM, *CALLED_TWICE]]
WITH_REASONING = [REASONED, [SYSTEM, *REASONED], THOUGHT]

# Name: beginning-of-text token, end token, further control tokens, conversations without tools, conversations with tools.
CHATML_TOKENS = ["<|im_start|>", "<|im_end|>"]
MISTRAL_TOKENS = ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
PHI_TOKENS = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
DEEPSEEK_TOKENS = [
    f"<｜{name}｜>"
    for name in ["User", "Assistant", "tool▁calls▁begin", "tool▁call▁begin", "tool▁sep", "tool▁call▁end", "tool▁calls▁end",
                 "tool▁outputs▁begin", "tool▁output▁begin", "tool▁output▁end", "tool▁outputs▁end"]
]
TEMPLATES = {
    "chatml": (None, "<|im_end|>", CHATML_TOKENS, PLAIN, []),
    "smollm2": ("<|im_start|>", "<|im_end|>", CHATML_TOKENS, PLAIN, []),
    "smollm3": (None, "<|im_end|>", CHATML_TOKENS, [*PLAIN, THOUGHT, NOT_THINKING], []),
    "zephyr": ("<s>", "</s>", [], PLAIN, []),
    "vicuna": ("<s>", "</s>", [], PLAIN, []),
    "llama2": ("<s>", "</s>", [], PLAIN, []),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"], PLAIN, []),
    "llama3_1": ("<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"], PLAIN, WITH_TOOLS),
    "mistral_v1": ("<s>", "</s>", [], PLAIN, []),
    "mistral_v2": ("<s>", "</s>", MISTRAL_TOKENS, PLAIN, WITH_MORE_TOOLS),
    "mistral_v3": ("<s>", "</s>", MISTRAL_TOKENS, PLAIN, WITH_MORE_TOOLS),
    "mistral_v3_tekken": ("<s>", "</s>", MISTRAL_TOKENS, PLAIN, WITH_MORE_TOOLS),
    "qwen2_5": (None, "<|im_end|>", CHATML_TOKENS, PLAIN, WITH_MORE_TOOLS),
    "qwen3": (None, "<|im_end|>", CHATML_TOKENS, [*PLAIN, *WITH_REASONING], [*WITH_MORE_TOOLS, REASONED_CALL]),
    "qwen3_thinking": (None, "<|im_end|>", CHATML_TOKENS, [*PLAIN, *WITH_REASONING], [*WITH_MORE_TOOLS, REASONED_CALL]),
    "gemma2": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"], PLAIN, []),
    "gemma3": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"], PLAIN, []),
    "phi3": ("<s>", "<|endoftext|>", PHI_TOKENS, PLAIN, []),
    "phi4": ("<|endoftext|>", "<|im_end|>", [*CHATML_TOKENS, "<|im_sep|>"], PLAIN, []),
    "phi4_mini": ("<|endoftext|>", "<|endoftext|>", [*PHI_TOKENS, "<|tool|>", "<|/tool|>"], PLAIN, [[SYSTEM, *MULTI]]),
    "granite": ("<|end_of_text|>", "<|end_of_text|>", ["<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"], PLAIN, WITH_MORE_TOOLS),
    "olmo2": ("<|endoftext|>", "<|endoftext|>", [], PLAIN, []),
    "deepseek_r1": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", DEEPSEEK_TOKENS, [*PLAIN, THOUGHT], WITH_TOOLS),
}


class Noon(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 6, 15, 4, 5)


def tokenizer(bos, eos, tokens):
    fast = PreTrainedTokenizerFast(tokenizer_file=str(FIXTURES / "text/bytelevel/tokenizer.json"))
    new = [token for token in dict.fromkeys([bos, eos, *tokens]) if token is not None]
    fast.add_special_tokens({"extra_special_tokens": new})
    fast.bos_token, fast.eos_token = bos, eos
    return fast, {token: fast.convert_tokens_to_ids(token) for token in new}


def for_template(name, messages):
    """The arguments of calls as text where the template joins them to its own text."""
    if name != "deepseek_r1":
        return messages
    messages = json.loads(json.dumps(messages))
    for message in messages:
        for one in message.get("tool_calls", []):
            one["function"]["arguments"] = json.dumps(one["function"]["arguments"])
    return messages


def render(fast, template, messages, tools, **options):
    with mock.patch.object(transformers.utils.chat_template_utils, "datetime", Noon):
        return fast.apply_chat_template(messages, tools=tools, chat_template=template, **options)


def masked(fast, template, messages, tools, **options):
    encoded = render(fast, template, messages, tools, return_assistant_tokens_mask=True, return_dict=True, **options)
    return encoded["input_ids"], encoded["assistant_masks"]


def case(name, fast, template, messages, tools, conversations):
    messages = for_template(name, messages)
    conversation = {"messages": messages} | ({"tools": tools} if tools else {})
    if conversation not in conversations:
        conversations.append(conversation)
    row = {"conversation": conversations.index(conversation)}
    try:
        text = render(fast, template, messages, tools, tokenize=False)
    except Exception as error:  # jinja2's own errors and the templates' raise_exception
        return row | {"error": str(error)}
    ids, mask = masked(fast, template, messages, tools)
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    prompt = render(fast, template, messages[:last], tools, tokenize=False, add_generation_prompt=True)
    before = render(fast, template, messages[:last], tools, tokenize=False)
    if not text.startswith(prompt) and not text.startswith(before):
        # The template shows the beginning otherwise once the answer is there: training takes what generation sees.
        _, earlier = masked(fast, template, messages[:last], tools, add_generation_prompt=True)
        ends = [index for index, trained in enumerate(mask) if trained]
        start = ends[-1]
        while start > 0 and mask[start - 1]:
            start -= 1
        answer_ids = ids[start : ends[-1] + 1]
        prompt_ids = render(fast, template, messages[:last], tools, add_generation_prompt=True)["input_ids"]
        ids, mask = prompt_ids + answer_ids, earlier + [1] * len(answer_ids)
    # A prompt that the text begins with is told by its length.
    prompt = len(prompt.encode()) if text.startswith(prompt) else prompt
    return row | {"text": text, "prompt": prompt, "ids": ids, "mask": "".join(map(str, mask))}


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--real", type=Path)
    real = arguments.parse_args().real
    result, conversations = [], []
    for name, (bos, eos, tokens, plain, with_tools) in TEMPLATES.items():
        fast, ids = tokenizer(bos, eos, tokens)
        template = (OUT / f"{name}.jinja").read_text()
        rows = [(messages, None) for messages in plain] + [(messages, TOOLS) for messages in with_tools]
        if real is not None:
            compare(name, fast, template, rows, real / f"{name}.jinja")
            continue
        cases = [case(name, fast, template, messages, tools, conversations) for messages, tools in rows]
        result.append({"name": name, "bos": bos, "eos": eos, "tokens": ids, "cases": cases})
    if real is None:
        written = json.dumps({"conversations": conversations, "templates": result}, ensure_ascii=False, separators=(",", ":"))
        (OUT / "cases.json").write_text(written + "\n")


def compare(name, fast, template, rows, path):
    if not path.exists():
        return
    theirs = path.read_text()
    same = 0
    for messages, tools in rows:
        for generation in (False, True):
            texts = []
            for source in (template, theirs):
                try:
                    options = {"tokenize": False, "add_generation_prompt": generation}
                    texts.append(render(fast, source, for_template(name, messages), tools, **options))
                except Exception as error:
                    texts.append(f"raises: {type(error).__name__}")
            if texts[0] == texts[1]:
                same += 1
            else:
                print(f"{name}: {messages}\n  ours:   {texts[0]!r}\n  theirs: {texts[1]!r}")
    print(f"{name}: {same} of {2 * len(rows)} are the same")


if __name__ == "__main__":
    main()
