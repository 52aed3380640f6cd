"""Requests that mean no good, for `hostile_clients.py`: bodies made from valid ones, and raw bytes of HTTP."""

import base64
import copy
import json
import struct
import zlib
from pathlib import Path

PICTURE = (Path(__file__).resolve().parent.parent / "tests/fixtures/vision/llava_clip/pictures/wide.png").read_bytes()


def request(method, path, body=b"", headers=()):
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", "content-type: application/json", "connection: close", *headers]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


# Values that readers stumble over.
ODD = [None, True, False, -1, 0, 0.5, 2**31, 2**63, -(2**63), 2**64, 1e308, -1e308, 5e-324, "", " ", "\0", "\u202e", "\ud83e\udd80", "../../etc/passwd",
       "http://127.0.0.1:1/x", "file:///etc/passwd", "{{ 7 * 7 }}", "<|im_end|>", "x" * 5000, [], {}, [[]], [{}], [None], {"": ""}]  # fmt: skip


def odd(rng, depth=0):
    if depth < 4 and rng.random() < 0.25:
        if rng.random() < 0.5:
            return [odd(rng, depth + 1) for _ in range(rng.randrange(5))]
        return {rng.choice(["type", "a", "", "$ref", "content", "role"]): odd(rng, depth + 1) for _ in range(rng.randrange(5))}
    return copy.deepcopy(rng.choice(ODD))


def schema(rng, depth=0):
    """A schema, with a share of nonsense."""
    if rng.random() < 0.06:
        return odd(rng)
    inner = lambda: schema(rng, depth + 1)
    # Wide only where it is not deep: the generator ends, too.
    many = rng.choice([1, 2, 3]) if depth < 2 else rng.choice([1, 2, 3, 40])
    number = lambda: rng.choice([0, 1, 2, 3, 5, 50, 1000, 10**9, -1, 1.5])
    leaves = [
        lambda: {"type": rng.choice(["string", "integer", "number", "boolean", "null", "object", "array", "odd", ["null", "string"]])},
        lambda: {"type": "string", "maxLength": number(), "minLength": number()},
        lambda: {"type": "string", "pattern": rng.choice(["^[a-z]{1,3}$", "(a|b)*c", "(" * 300, r"\p{L}{1,500}", "(x+x+)+y", r"(\w{1,1000}){1,1000}", "[", "(?=a)"])},
        lambda: {"type": "string", "format": rng.choice(["date-time", "email", "uuid", "uri", "odd"])},
        lambda: {"type": "integer", "minimum": number(), "maximum": number()},
        lambda: {"type": "number", "multipleOf": rng.choice([1, 0.1, 0, 1e-300, 7.77]), "minimum": rng.choice([0, -1e300, 1e-300])},
        lambda: {"enum": [odd(rng) for _ in range(many)]},
        lambda: {"const": odd(rng)},
        lambda: {"$ref": rng.choice(["#", "#/$defs/a", "#/properties/a", "http://127.0.0.1:1/", "file:///etc/passwd", "#/%24defs/a"])},
    ]
    branches = [
        lambda: {"type": "object", "properties": {f"p{index}": inner() for index in range(many)}, "required": ["p0"], "additionalProperties": rng.choice([False, True, {}])},
        lambda: {"type": "array", "items": inner(), "minItems": number(), "maxItems": number()},
        lambda: {"type": "array", "prefixItems": [inner() for _ in range(many)]},
        lambda: {rng.choice(["anyOf", "oneOf", "allOf"]): [inner() for _ in range(many)]},
        lambda: {"allOf": [{"anyOf": [inner() for _ in range(many)]} for _ in range(3)]},
        lambda: {"type": "object", "patternProperties": {rng.choice(["^a", "b$", "(", ".*"]): inner() for _ in range(2)}},
        lambda: {"$defs": {"a": inner()}, "$ref": "#/$defs/a"},
        lambda: {"not": inner()},
    ]
    return rng.choice(leaves if depth > 2 else leaves + branches * 2)()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def picture(rng):
    """A PNG file in base64: sound, cut, changed, or one that says that it is huge."""
    data = bytearray(PICTURE)
    kind = rng.randrange(6)
    if kind == 0:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    if kind == 1:
        del data[rng.randrange(len(data)) :]
    if kind == 2:
        head = struct.pack(">IIBBBBB", rng.choice([0, 1, 8000, 60000, 2**31]), rng.choice([1, 8000, 60000]), 8, 2, 0, 0, 0)
        data = data[:8] + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")
    return base64.b64encode(data).decode()


def show_pictures(rng, message, is_ollama):
    """Lets a message show a picture, which some bases take."""
    if is_ollama:
        return message | {"images": [picture(rng) for _ in range(rng.choice([1, 1, 2]))]}
    kind = rng.choice(["data:image/png;base64,"] * 8 + ["data:image/jpeg;base64,", "data:text/html;base64,", "file://", "http://127.0.0.1:1/", ""])
    return message | {"content": [{"type": "image_url", "image_url": {"url": kind + picture(rng)}}, {"type": "text", "text": message["content"]}]}


def valid_body(rng, model):
    """A route and a body that it takes."""
    messages = [{"role": rng.choice(["system", "user", "user"]), "content": "Tell me"}, {"role": "user", "content": rng.choice(["x", "What is it?"])}]
    ask = {"model": model, "messages": messages, "max_tokens": rng.randrange(1, 40), "temperature": rng.choice([0, 1, 1.7])}
    kind = rng.randrange(8)
    if rng.random() < 0.2:
        messages[-1] = show_pictures(rng, messages[-1], kind == 2)
    if kind == 0:
        return "/v1/completions", {"model": model, "prompt": rng.choice(["a", ["a", "b"], [1, 2], [[1], [2]]]), "max_tokens": 9, "logprobs": 2, "n": 2}
    if kind == 1:
        return "/v1/embeddings", {"model": model, "input": rng.choice(["a", ["a", "b"], [5, 6]]), "encoding_format": rng.choice(["float", "base64"])}
    if kind == 2:
        return "/api/chat", {"model": model, "messages": messages, "stream": rng.random() < 0.5, "format": rng.choice(["json", "", schema(rng)]), "options": {"num_predict": 20}}
    if kind == 3:
        return "/api/generate", {"model": model, "prompt": "x", "stream": False, "raw": True, "options": {"seed": 1, "num_predict": 9}}
    if kind in (4, 5):
        ask["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema(rng), "strict": True}}
    if kind == 6:
        function = {"name": "f", "parameters": schema(rng)}
        ask |= {"tools": [{"type": "function", "function": function}], "tool_choice": rng.choice(["auto", "none", "required", {"type": "function", "function": {"name": "f"}}])}
    more = {"n": 3, "stop": ["a", "zz"], "seed": 5, "logprobs": True, "top_logprobs": 3, "stream": True, "top_p": 0.9, "top_k": 5, "min_p": 0.1,
            "frequency_penalty": 1, "presence_penalty": -1, "repetition_penalty": 1.2, "logit_bias": {"5": 3}, "user": "u"}  # fmt: skip
    return "/v1/chat/completions", ask | {key: more[key] for key in rng.sample(list(more), rng.randrange(5))}


def change(rng, value):
    """Replaces, adds or removes something somewhere within a value."""
    places, pending = [], [value]
    while pending:
        one = pending.pop()
        for key in one if isinstance(one, dict) else range(len(one)):
            places.append((one, key))
            if isinstance(one[key], (dict, list)):
                pending.append(one[key])
    if not places or len(places) > 3000:
        return
    one, key = rng.choice(places)
    match rng.randrange(4):
        case 0 if isinstance(one, dict):
            del one[key]
        case 1 if isinstance(one, dict):
            one[rng.choice(["odd", "n", "stop", "seed", "content", "role", "$ref", "x" * 300])] = odd(rng)
        case 2 if isinstance(one, list):
            one.extend(copy.deepcopy(one[key]) for _ in range(rng.choice([1, 30])))
        case _:
            one[key] = odd(rng)


def spoil(rng, data):
    """Changes bytes."""
    data = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        piece = rng.choice([b"", b"\0", b"\xff", b"\r\n", b"{", b"]", b'"', b",", b"1e999", b"NaN", bytes(rng.randrange(256) for _ in range(8)), bytes(data[at : at + 20])])
        data[at : at + rng.choice([0, 1, 1, 5, 200])] = piece
    return bytes(data)


def hostile_bytes(rng, model):
    """The bytes of one request, whether its framing is whole, and whether it is valid with a format."""
    path, body = valid_body(rng, model)
    plain = json.loads(json.dumps(body))
    if rng.random() < 0.7:
        for _ in range(rng.choice([1, 1, 2, 5])):
            change(rng, body)
    text = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.5:
        if rng.random() < 0.2:
            text = spoil(rng, text)
        held = body == plain and path == "/v1/chat/completions" and "stream" not in body and "stop" not in body and "response_format" in body
        return request("POST", path, text), True, held
    method, path = rng.choice(["GET", "POST", "POST", "PUT", "DELETE", "OPTIONS", "\0", "G" * 50]), rng.choice([path, "/", "/metrics", "/v1/models/" + "x" * 300, "/v1/models/%2e%2e%2f", "//", "*", "http://evil/", "/" + "a" * 9000])
    if method == "DELETE" and path.startswith("/v1/models"):
        path = "/v1/models/none"
    headers = rng.sample(["transfer-encoding: chunked", "content-length: 5", "content-length: -1", "expect: 100-continue", "host: evil.com", "x: " + "y" * 20000, "connection: upgrade",
                          "upgrade: h2c", "origin: http://evil.com", "authorization: Bearer x", "content-type: text/plain", "a b: c", ": d", "x\0: y", "range: bytes=0-1"], rng.randrange(4))  # fmt: skip
    headers += [f"x{index}: y" for index in range(rng.choice([0, 0, 70, 3000]))]
    data = request(method, path, text, headers).replace(b"HTTP/1.1", rng.choice([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9.9", b"PRI"]))
    data = spoil(rng, data) if rng.random() < 0.7 else data
    if rng.random() < 0.1:
        data = bytes(rng.randrange(256) for _ in range(rng.randrange(400)))
    return data * rng.choice([1, 1, 1, 3]), False, False
