"""The official Python client against a running `burnish serve`.

    python benches/clients.py http://127.0.0.1:8080/v1 [KEY]

Needs `pip install openai`. Checks chat, streams, log-probabilities, several answers, formats, tools, completions, embeddings, models, errors
and a client that leaves; exits with 1 where something fails.
"""

import asyncio
import json
import sys
from typing import Literal

import openai
import pydantic

url = sys.argv[1]
key = sys.argv[2] if len(sys.argv) > 2 else "none"
client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
model = client.models.list().data[0].id
ask = {"model": model, "messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 24}
failures = []


def check(name, holds, found=None):
    print(("ok     " if holds else "FAILED ") + name, "" if holds else repr(found))
    if not holds:
        failures.append(name)


def refused(kind, code, **fields):
    try:
        answer = client.chat.completions.create(**{**ask, **fields})
    except kind as error:
        check(f"{kind.__name__} {code}", error.code == code, error)
    else:
        check(f"{kind.__name__} {code}", False, answer)


answer = client.chat.completions.create(**ask, temperature=0)
text = answer.choices[0].message.content
check("chat", len(text) > 10 and answer.usage.completion_tokens > 0, answer)

stream = client.chat.completions.create(**ask, temperature=0, stream=True, stream_options={"include_usage": True})
chunks = list(stream)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
check("stream", streamed == text and chunks[-1].usage.completion_tokens == answer.usage.completion_tokens, streamed)

answers = client.chat.completions.create(**ask, n=3, seed=7, temperature=1.2)
again = client.chat.completions.create(**ask, n=3, seed=7, temperature=1.2)
texts = [[choice.message.content for choice in one.choices] for one in (answers, again)]
check("n and seed", texts[0] == texts[1] and len(set(texts[0])) > 1, texts)

answer = client.chat.completions.create(**ask, temperature=0, logprobs=True, top_logprobs=2)
tokens = answer.choices[0].logprobs.content
check("logprobs", "".join(token.token for token in tokens) == text and len(tokens[0].top_logprobs) == 2, tokens)

middle = text[len(text) // 2 :][:4]
answer = client.chat.completions.create(**ask, temperature=0, stop=[middle])
stopped = (answer.choices[0].message.content, answer.choices[0].finish_reason)
check("stop", stopped == (text[: text.index(middle)], "stop"), stopped)



class Place(pydantic.BaseModel, extra="forbid"):
    name: str = pydantic.Field(max_length=40)
    kind: Literal["city", "country"]
    inhabitants_in_millions: int | None = pydantic.Field(ge=0, le=2000)


parsed = client.chat.completions.parse(**{**ask, "max_tokens": 120}, temperature=0, response_format=Place)
check("response_format: a schema", isinstance(parsed.choices[0].message.parsed, Place), parsed)
held = {"type": "json_schema", "json_schema": {"name": "place", "schema": Place.model_json_schema()}}
with client.chat.completions.stream(**{**ask, "max_tokens": 120}, temperature=0, response_format=Place) as stream:
    streamed = stream.get_final_completion().choices[0].message.content
check("response_format: streamed", streamed == parsed.choices[0].message.content, streamed)
answers = client.chat.completions.create(**{**ask, "max_tokens": 120}, n=3, seed=7, temperature=1.5, response_format=held)
places = [Place.model_validate_json(choice.message.content) for choice in answers.choices]
check("response_format: n at a high temperature", all(choice.finish_reason == "stop" for choice in answers.choices), places)
answer = client.chat.completions.create(**{**ask, "max_tokens": 200}, temperature=0, response_format={"type": "json_object"})
choice = answer.choices[0]
whole = choice.finish_reason == "stop" and isinstance(json.loads(choice.message.content), dict)
check("response_format: an object", whole or choice.finish_reason == "length", answer)

parameters = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 30}}, "required": ["city"], "additionalProperties": False}
tools = [{"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": parameters, "strict": True}}]
try:
    answer = client.chat.completions.create(**{**ask, "max_tokens": 100}, tools=tools, tool_choice="required", temperature=1)
    call = answer.choices[0].message.tool_calls[0].function
    check("a demanded call", call.name == "weather" and list(json.loads(call.arguments)) == ["city"], answer)
except openai.BadRequestError as error:
    check("tools are refused where the template does not show them", "does not show tools" in str(error), error)

answer = client.completions.create(model=model, prompt=["One two three", "A B C"], max_tokens=6, temperature=0)
check("completions", len(answer.choices) == 2 and all(choice.text for choice in answer.choices), answer)

vectors = client.embeddings.create(model=model, input=["a dog", "a cat", "the stock exchange"]).data
dot = lambda left, right: sum(x * y for x, y in zip(left.embedding, right.embedding))
check("embeddings", abs(dot(vectors[0], vectors[0]) - 1) < 1e-4 and dot(vectors[0], vectors[1]) > dot(vectors[0], vectors[2]))

check("models.retrieve", client.models.retrieve(model).id == model)
refused(openai.NotFoundError, "model_not_found", model="none")
refused(openai.BadRequestError, "unsupported_parameter", response_format={"type": "grammar"})
no_uniqueness = {"name": "x", "schema": {"type": "array", "uniqueItems": True}}
refused(openai.BadRequestError, None, response_format={"type": "json_schema", "json_schema": no_uniqueness})
refused(openai.BadRequestError, "unknown_parameter", extra_body={"frobnicate": 1})
refused(openai.BadRequestError, "context_length_exceeded", messages=[{"role": "user", "content": "word " * 20000}])
refused(openai.BadRequestError, None, temperature=5)


async def several():
    """Twelve at once, and one that leaves in the middle of its stream."""
    many = openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0)
    left = await many.chat.completions.create(**{**ask, "max_tokens": 500}, stream=True)
    async for _ in left:
        break
    await left.close()
    answers = await asyncio.gather(*(many.chat.completions.create(**ask, temperature=0) for _ in range(12)))
    return [answer.choices[0].message.content for answer in answers]


found = asyncio.run(several())
check("twelve at once, each as alone", set(found) == {text}, found)
sys.exit(1 if failures else 0)
