"""Makes tests/fixtures/gguf/encoded.safetensors: values and the blocks that llama.cpp makes of them.

`values` [rows, 256] in f32; for each block format its bytes under llama.cpp's name, such as `q4_k`: those of gguf-py where it
has the format, otherwise those of llama.cpp itself (`ggml_quantize_chunk`, without an importance matrix), which for the
others must be the same. `importance` [256] in f32, and as `q4_k.weighted` the bytes that llama.cpp makes with it as its
importance matrix.

    pip install -r tests/reference/requirements.txt
    python tests/reference/make_encoded.py
"""

import ctypes

import gguf
import numpy as np
import torch
import xllamacpp
from gguf import GGMLQuantizationType as Type
from safetensors.torch import save_file

import tiny

FORMATS = [Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q4_K, Type.Q5_K, Type.Q6_K]
COLUMNS = 256


def values():
    """Rows of many shapes: weights, outliers, equal values, one sign, tiny and large scales, ties."""
    random = np.random.default_rng(77)
    normal = random.standard_normal((24, COLUMNS))
    rows = [*(normal[:10] * 0.05), *(normal[10:14] * 1e-6), *(normal[14:17] * 300)]
    outliers = normal[17] * 0.02
    outliers[::37] *= 40
    stepped = np.round(normal[18] * 8) / 8
    sparse = np.where(random.random(COLUMNS) < 0.9, 0, normal[19])
    rows += [outliers, stepped, sparse, np.abs(normal[20]), -np.abs(normal[21]) - 0.25]
    rows += [np.zeros(COLUMNS), np.full(COLUMNS, 0.75), np.full(COLUMNS, -3.0), np.linspace(-1, 1, COLUMNS)]
    rows += [np.where(np.arange(COLUMNS) < 128, 0, normal[22]), np.where(np.arange(COLUMNS) % 16, 1e-18, 1e-17)]
    rows += [*random.laplace(0, 0.03, (8, COLUMNS)), normal[23] ** 3]
    return np.array(rows, np.float32)


def importance():
    """Mean squares as activations have them: most alike, some columns far larger, one without any."""
    random = np.random.default_rng(78)
    squares = random.chisquare(3, COLUMNS) * 0.1
    squares[::29] *= 500
    squares[5] = 0
    return squares.astype(np.float32)


def encoded_by_llama_cpp(quantize, data, kind, importance=None):
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    out = np.zeros(data.size // block * block_bytes, np.uint8)
    written = quantize(
        int(kind), data.ctypes.data, out.ctypes.data, 0, data.shape[0], data.shape[1], None if importance is None else importance.ctypes.data
    )
    assert written == out.size, (kind, written)
    return out


def main():
    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    quantize = library.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    data = values()
    columns = importance()
    tensors = {"values": torch.from_numpy(data), "importance": torch.from_numpy(columns)}
    for kind in FORMATS:
        blocks = encoded_by_llama_cpp(quantize, data, kind)
        try:
            by_python = gguf.quantize(data, kind).reshape(-1)
            assert (by_python == blocks).all(), f"gguf-py and llama.cpp differ in {kind.name}"
            maker = "gguf-py and llama.cpp"
        except NotImplementedError:
            maker = "llama.cpp"
        tensors[kind.name.lower()] = torch.from_numpy(blocks)
        weighted = encoded_by_llama_cpp(quantize, data, kind, columns)
        tensors[f"{kind.name.lower()}.weighted"] = torch.from_numpy(weighted)
        print(f"{kind.name}: {blocks.size} bytes by {maker}")
    save_file(tensors, tiny.FIXTURES / "gguf" / "encoded.safetensors")


if __name__ == "__main__":
    main()
