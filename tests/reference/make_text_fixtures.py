"""Writes tests/fixtures/text: small tokenizers, token ids, rendered chat templates, assistant masks.

    python tests/reference/make_text_fixtures.py

Everything in `expected.json` comes from transformers and tokenizers. The vocabularies are trained here on a few lines
of text, so that nothing has to be downloaded.
"""

import json
import shutil
from datetime import datetime
from pathlib import Path
from unittest import mock

import transformers
from gguf import GGUFWriter
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "text"

CORPUS = [
    "The kettle stopped working after two days, and I don't know why it won't switch on again.",
    "Please send the invoice for 12 desk lamps to our new address by the 15th of 2024.",
    "SELECT name, price FROM products WHERE price > 100 ORDER BY price DESC;",
    "def add(left, right):\n    return left + right\n\n\nprint(add(1, 2))\n",
    "We'll meet at 10:30; they're late, I'm early, you've been there and she'd like to come.",
    "1. Boil the water.\n2. Add the tea.\n3. Wait for 3 minutes.\n\n4. Enjoy.",
    "春天来了，院子里的花都开了。老师让我们写一篇关于春天的作文。",
    "请把这封信翻译成英文，并在周五之前寄给我。谢谢您的帮助！",
    "机器学习是人工智能的一个分支，它使用数据来训练模型。",
    "Über den Wolken muss die Freiheit wohl grenzenlos sein. Çok güzel, teşekkürler!",
    "The answer is what the assistant says to the user, and the system says how.",
    "I have been waiting for weeks and need an answer now. There is no rush, whenever you find the time.",
]

TEXTS = [
    "",
    " ",
    "Hello, world!",
    " leading and trailing ",
    "two  spaces   three    four",
    "tabs\tand\r\nline ends\n\n\nthree",
    "\n\n1. first\n2. second\n\n   12 third",
    "numbers 1 12 123 1234 12345 3.14159 1,000,000 2024-05-06",
    "don't DON'T I'll we'RE they've it's",
    "SELECT COUNT(*) FROM t WHERE a >= 10 AND b <> 'x';",
    "春天来了，院子里的花都开了。",
    "请在2024年5月6日之前回复，谢谢！",
    "mixed 中文 and English，标点、符号。",
    "emoji 😀 👩‍👩‍👧 🇨🇭 done",
    "cafe\u0301 naïve Ünïcödé ﬁ ﬂ",
    "non\u00a0breaking\u2003em\u3000ideographic",
    "العربية עברית हिन्दी ไทย",
    "\u200bzero\u200bwidth\ufeff",
    "a" * 40 + "!!!???..." + "=" * 20,
    "CamelCaseWords and snake_case_words and UPPERCASE",
    "    indented\n        twice\n\treturn x",
    "▁underscore ▁▁ and _ plain",
    "control \x00\x01\x7f bytes",
    "trailing newline\n",
    "trailing spaces   ",
]
SPECIAL_TEXTS = [
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a <|im_end|> b",
    "<|im_end|><|im_end|>",
    "<think>so</think> done",
    "<s>[INST] Hi [/INST] Hello</s>",
    "x</s>y",
]

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CHATML_GENERATION = """{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- generation %}
        {{- message.content + '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""

TOOL_USE = """{%- if tools %}
    {{- '<|im_start|>system\nTools:' }}
    {%- for tool in tools %}
        {{- '\n' ~ tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- generation %}
        {%- if message.content is not none %}
            {{- message.content }}
        {%- endif %}
        {%- if 'tool_calls' in message %}
            {%- for call in message.tool_calls %}
                {{- '<call>' ~ call.function.name ~ ' ' ~ call.function.arguments | tojson ~ '</call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\n' }}
    {%- else %}
        {{- '<|im_start|>' ~ message.role ~ (' ' ~ message.tool_call_id if message.tool_call_id is defined else '') }}
        {{- '\n' ~ message.content ~ '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{#- The system text, if there is one, comes first. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- else %}
        {{- raise_exception("no tools here") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("Roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial system message!") }}
    {%- endif %}
{%- endfor %}
"""

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = '<<SYS>>\\n' + messages[0]['content'].strip() + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = '' %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 %}{% set content = system_message + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)

REASONING = """{%- set ns = namespace(last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and message.content is string and not message.content.startswith('<tool>') %}
        {%- set ns.last_query = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "assistant" %}
        {%- if '</think>' in content and loop.index0 < ns.last_query %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' + content.rstrip() + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' ~ message.role ~ '\n' ~ content ~ '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""

ODDS = """{% for message in messages %}
{{ loop.index }}/{{ loop.length }} {{ message | tojson }} {{ message.role | upper }} {{ message['content'] | length }}
  {% if loop.last -%}
    {{ true }} {{ none }} {{ 1.5 }} {{ [1, 'a', none] | tojson }} {{ {'a': [true], 'b': 1} | tojson(indent=2) }}
  {%- endif %}
{% endfor %}
{{ strftime_now('%A %d %B %Y %H:%M:%S %j %y %p %I %a %b %m %% %e') }} {{ unknown_thing }}|{{ messages[0].nothing }}|
{% set text = messages[0]['content'] %}{{ text.replace('e', 'E').strip() }} {{ text[:3] }} {{ text.split(' ')[0] }}
{% for role, group in messages | groupby('role') %}{{ role }}={{ group | length }};{% endfor %}
{{ messages | map(attribute='role') | join(', ') }} {{ "%s-%d" | format("x", 3) }} {{ 7 // 2 }} {{ 7 % 3 }} {{ 2 ** 3 }}
"""

TEMPLATES = {
    "chatml": (CHATML, "<|im_start|>", "<|im_end|>"),
    "chatml_generation": (CHATML_GENERATION, "<|im_start|>", "<|im_end|>"),
    "llama3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
    "mistral": (MISTRAL, "<s>", "</s>"),
    "llama2": (LLAMA2, "<s>", "</s>"),
    "reasoning": (REASONING, "<|endoftext|>", "<|im_end|>"),
    "odds": (ODDS, "<s>", "</s>"),
}


def turns(*contents, system=None):
    messages = [{"role": "system", "content": system}] if system is not None else []
    return messages + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


CONVERSATIONS = [
    turns("Where is my parcel?"),
    turns("Where is my parcel?", "It arrives on Monday."),
    turns("  spaces around  ", "\n answer with a line before\n\n"),
    turns("Hi", "Hello!", "How are you?", "Fine, thanks."),
    turns("你好", "您好！有什么可以帮您？", "今天天气怎么样？", system="你是一个助手。"),
    turns("2 + 2?", "<think>\nfour\n</think>\n\n4", "And 3 + 3?", "<think>\nsix\n</think>\n\n6", system=" Be brief. "),
    turns("", ""),
    turns("first", "a\n\nb") + [{"role": "assistant", "content": "twice"}],
    [{"role": "system", "content": "only a system text"}],
    [{"role": "assistant", "content": "I begin."}] + turns("Go on.", "I do."),
    turns("quotes \"'`\\ and {{ braces }} {% if %} <b>&amp;</b>", "line\u2028separator \u00e9"),
    [{"role": "user", "content": "call"}, {"role": "tool", "content": "42"}],
]


def byte_level(vocab_size=420):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def write_folder(folder):
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<|endoftext|>"
    )
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    return fast


def write_byte_level_gguf(path, pre):
    model = json.loads(byte_level().to_str())["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])] + ["<think>"]
    special = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 4 if token == "<think>" else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHATML)
    finish(writer)


def write_sentencepiece_gguf(path):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), behavior="merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=380, show_progress=False)
    tokenizer.train_from_iterator(["▁" + line for line in CORPUS], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    # SentencePiece scores: the first merge is the best; single characters come after all merges.
    merged = ["".join(merge) for merge in model["merges"]]
    characters = [token for token in model["vocab"] if token not in set(merged)]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + merged + characters
    scores = [0.0] * 259 + [-float(i) for i in range(len(merged))] + [-1000.0 - i for i in range(len(characters))]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(merged) + len(characters))
    assert len(set(tokens)) == len(tokens)
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(LLAMA2)
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ids(tokenizer, texts):
    """Ids of each text with special-token text parsed, no special tokens added."""
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def ordinary_ids(tokenizer, texts):
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.encode_special_tokens = True
    return ids(tokenizer, texts)


# What a value can be: None, a name that nothing defines, and an empty and a full one of each type.
VALUES = ["none", "missing", "''", "[]", "{}", "0", "true", "'ab'", "[1, 2]", "{'a': 1}", "1.5"]
TESTS = ["defined", "undefined", "none", "iterable", "sequence", "mapping", "string", "number", "integer", "float",
         "boolean", "true", "false", "odd", "even", "lower", "upper", "callable", "sameas none", "eq none", "ne none",
         "in [none, 1]", "in 'abc'", "divisibleby 2", "lt 1", "gt 1"]  # fmt: skip
FILTERS = ["length", "count", "list", "string", "trim", "upper", "lower", "title", "capitalize", "first", "last", "join",
           "join(',')", "default('d')", "default('d', true)", "int", "float", "abs", "sort", "tojson", "items | list",
           "map('upper') | list", "map(attribute='a') | list", "select | list", "reject | list", "reverse | list",
           "selectattr('a') | list", "unique | list", "replace('a', 'b')", "dictsort", "sum", "min", "max",
           "batch(2) | list", "attr('a')", "escape", "safe", "indent"]  # fmt: skip
EXPRESSIONS = [
    "{{ missing.a }}", "{{ none.a }}", "{{ none['a'] }}", "{{ missing['a'] }}", "{% for x in none %}{% endfor %}",
    "{% for x in missing %}{% endfor %}ok", "{{ none + 1 }}", "{{ none ~ 'a' }}", "{{ missing ~ 'a' }}",
    "{{ missing + 'a' }}", "{{ 'a' + none }}", "{{ none == missing }}", "{{ missing == missing }}", "{{ not none }}",
    "{{ none and 1 }}", "{{ none or 1 }}", "{{ 'a' in none }}", "{{ 'a' in missing }}", "{{ none in ['a', none] }}",
    "{{ missing in [none] }}", "{{ none < 1 }}", "{{ missing < 1 }}", "{{ none[1:] }}", "{{ missing[1:] }}",
    "{{ {'a': none} }}", "{{ [none, 1] | join('-') }}", "{{ none.strip() }}", "{{ missing.strip() }}", "{{ none() }}",
    "{{ 1 if none }}x", "{{ none * 2 }}", "{{ -none }}", "{{ [1, none] | select | list }}",
    "{{ [{'a': none}, {'a': 1}, {}] | selectattr('a') | list | length }}",
    "{{ [{'a': none}, {'a': 1}, {}] | selectattr('a', 'defined') | list | length }}",
    "{{ [{'a': none}, {'a': 1}, {}] | selectattr('a', 'none') | list | length }}",
    "{{ [{'a': none}, {'a': 1}] | map(attribute='a') | list }}", "{{ none | string | length }}",
    "{% if missing %}a{% else %}b{% endif %}", "{% if none is iterable and none | length > 0 %}a{% else %}b{% endif %}",
    "{% if tools is iterable and tools | length > 0 %}a{% else %}b{% endif %}", "{{ tools is none }}",
    "{% if tools is not none and tools %}a{% else %}b{% endif %}", "{{ (tools or []) | length }}",
    "{{ messages[0].content is string }}", "{{ messages[0].tool_calls is defined }}", "{{ messages[0] is mapping }}",
    "{{ messages[0].tool_calls is iterable }}", "{{ messages is iterable }}", "{{ 'content' in messages[0] }}",
    "{{ messages[0].get('tool_calls') }}", "{{ messages[0].get('tool_calls', []) }}", "{{ messages[0]['nothing'] }}",
    "{{ ['a', true, 1.0, none] }}", "{{ {'a': 'b', 'c': [none]} }}", "{{ none | d('q', true) }}",
]  # fmt: skip


def answers():
    """What Jinja2 says of None, of undefined names and of every other type; no text where it raises."""
    sources = [f"{{{{ {value} is {test} }}}}" for test in TESTS for value in VALUES]
    sources += [f"{{{{ {value} | {name} }}}}" for name in FILTERS for value in VALUES]
    fast = PreTrainedTokenizerFast(tokenizer_object=byte_level())
    cases = []
    for source in sources + EXPRESSIONS:
        try:
            text = fast.apply_chat_template(turns("Hi"), chat_template=source, tokenize=False)
        except Exception:
            text = None
        cases.append({"source": source, "text": text})
    return cases


class Noon(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 6, 15, 4, 5)


def renderings():
    fast = PreTrainedTokenizerFast(tokenizer_object=byte_level())
    result = []
    for name, (template, bos, eos) in TEMPLATES.items():
        fast.bos_token, fast.eos_token = bos, eos
        cases = []
        for messages in CONVERSATIONS:
            for generation in (False, True):
                with mock.patch.object(transformers.utils.chat_template_utils, "datetime", Noon):
                    try:
                        text = fast.apply_chat_template(
                            messages, chat_template=template, tokenize=False, add_generation_prompt=generation
                        )
                    except Exception as error:  # jinja2's own errors and the templates' raise_exception
                        cases.append({"messages": messages, "generation": generation, "error": str(error)})
                        continue
                cases.append({"messages": messages, "generation": generation, "text": text})
        result.append({"name": name, "template": template, "bos": bos, "eos": eos, "cases": cases})
    return result


def masks(fast):
    """Ids and assistant masks that transformers finds by the `generation` tags."""
    result = []
    for messages in CONVERSATIONS:
        if not any(message["role"] == "assistant" for message in messages):
            continue
        encoded = fast.apply_chat_template(
            messages, chat_template=CHATML_GENERATION, return_assistant_tokens_mask=True, return_dict=True
        )
        result.append({"messages": messages, "ids": encoded["input_ids"], "mask": encoded["assistant_masks"]})
    return result


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a place",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    }
]


def call(**arguments):
    return {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}


TOOL_CONVERSATIONS = [
    {
        "messages": [
            *turns("How warm is it in Köln?"),
            {"role": "assistant", "content": None, "tool_calls": [call(place="Köln", days=[1, 2.5, True, None])]},
            {"role": "tool", "tool_call_id": "c1", "content": '{"degrees": 12}'},
            {"role": "assistant", "content": "12 degrees."},
        ],
        "tools": TOOLS,
    },
    {
        "messages": [
            *turns("And in Rome?"),
            {"role": "assistant", "content": "I look.", "tool_calls": [call(z=1, a="b"), call(place="Rome")]},
        ]
    },
    {"messages": turns("Hi", "Hello!"), "tools": TOOLS},
]


def tool_use(fast):
    """Ids and assistant masks of conversations with tools."""
    cases = []
    for row in TOOL_CONVERSATIONS:
        encoded = fast.apply_chat_template(
            row["messages"],
            tools=row.get("tools"),
            chat_template=TOOL_USE,
            return_assistant_tokens_mask=True,
            return_dict=True,
        )
        cases.append({"row": row, "ids": encoded["input_ids"], "mask": encoded["assistant_masks"]})
    return {"template": TOOL_USE, "cases": cases}


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    fast = write_folder(OUT / "bytelevel")
    expected = {"texts": TEXTS, "special_texts": SPECIAL_TEXTS, "tokenizers": {}}

    def record(name, backend):
        expected["tokenizers"][name] = {
            "texts": ids(backend, TEXTS),
            "special_texts": ids(backend, SPECIAL_TEXTS),
            "ordinary": ordinary_ids(backend, SPECIAL_TEXTS),
            "decoded": [backend.decode(row, skip_special_tokens=True) for row in ids(backend, TEXTS + SPECIAL_TEXTS)],
        }

    record("bytelevel", fast.backend_tokenizer)
    for pre in ["smollm", "llama-bpe", "smaug-bpe", "qwen2", "tekken", "default"]:
        path = OUT / f"{pre}.gguf"
        write_byte_level_gguf(path, pre)
        backend = convert_gguf_tokenizer(*get_gguf_tokenizer(str(path))[:2])[0]
        if pre == "smollm":
            # transformers 5.23 does not know this name; this is what SmolLM2's own tokenizer.json has.
            digits = pre_tokenizers.Digits(individual_digits=True)
            backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        record(path.name, backend)
    write_sentencepiece_gguf(OUT / "llama.gguf")
    backend = convert_gguf_tokenizer(*get_gguf_tokenizer(str(OUT / "llama.gguf"))[:2])[0]
    # transformers 5.23 writes `Metaspace` here, which adds no space before a text that begins with one. SentencePiece,
    # llama.cpp and the tokenizer.json files of LLaMA 1 and 2 do.
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    record("llama.gguf", backend)

    (OUT / "tokens.json").write_text(json.dumps(expected, ensure_ascii=False, indent=None) + "\n")
    (OUT / "templates.json").write_text(json.dumps(renderings(), ensure_ascii=False) + "\n")
    (OUT / "tool_use.json").write_text(json.dumps(tool_use(fast), ensure_ascii=False) + "\n")
    (OUT / "answers.json").write_text(json.dumps(answers(), ensure_ascii=False, indent=None) + "\n")
    (OUT / "masks.json").write_text(json.dumps(masks(fast), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
