"""Small GGUF files, written by the reference writer."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from octavo.weights.tensor import Format

SCALES = {
    Format.Q4_0: (0,),
    Format.Q4_1: (0, 2),
    Format.Q5_0: (0,),
    Format.Q5_1: (0, 2),
    Format.Q8_0: (0,),
    Format.Q4_K: (0, 2),
    Format.Q5_K: (0, 2),
    Format.Q6_K: (208,),
}
"""Where each block format keeps its float16 numbers, in bytes from the start of a block."""


def random_rows(form: Format, rows: int, blocks: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Quantised rows with every bit random, but for the scales, which are finite: uint8 [rows, bytes per row]."""
    data = rng.integers(0, 256, (rows * blocks, form.block_bytes), np.uint8)
    for offset in SCALES[form]:
        scale = rng.normal(0, 0.1, len(data)).astype(np.float16)
        data[:, offset : offset + 2] = scale[:, None].view(np.uint8)
    return data.reshape(rows, -1)


def write_gguf(
    path: Path, architecture: str, metadata: dict[str, Any], tensors: dict[str, tuple[NDArray[Any], Format]]
) -> Path:
    """Write arrays as they are (quantised ones as uint8 rows) and metadata; ints become uint32, floats float32."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case list():
                writer.add_array(key, value)
    for name, (data, form) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[form.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_llama(path: Path) -> Path:
    """A whole model of two layers with quantised and plain tensors and a vocabulary, a few kilobytes."""
    rng = np.random.default_rng(0)
    hidden, heads, kv_heads, feed_forward, vocabulary = 64, 4, 2, 64, 6

    def quantised(rows: int, form: Format = Format.Q4_1) -> tuple[NDArray[np.uint8], Format]:
        return random_rows(form, rows, hidden // form.block_size, rng), form

    def norm() -> tuple[NDArray[np.float32], Format]:
        return rng.normal(1, 0.1, hidden).astype(np.float32), Format.F32

    tensors = {"token_embd.weight": quantised(vocabulary, Format.Q8_0), "output_norm.weight": norm()}
    for layer in range(2):
        tensors |= {
            f"blk.{layer}.attn_norm.weight": norm(),
            f"blk.{layer}.attn_q.weight": quantised(hidden),
            f"blk.{layer}.attn_k.weight": quantised(hidden // heads * kv_heads, Format.Q5_0),
            f"blk.{layer}.attn_v.weight": quantised(hidden // heads * kv_heads),
            f"blk.{layer}.attn_output.weight": quantised(hidden),
            f"blk.{layer}.ffn_norm.weight": norm(),
            f"blk.{layer}.ffn_gate.weight": quantised(feed_forward),
            f"blk.{layer}.ffn_up.weight": quantised(feed_forward),
            f"blk.{layer}.ffn_down.weight": quantised(hidden),
        }
    metadata = {
        "llama.block_count": 2,
        "llama.context_length": 128,
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": feed_forward,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": hidden // heads,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "é", "", "日本"],
        "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 1],
        "tokenizer.ggml.scores": [0.0, -1.5, 1.0, 2.0, 3.0, 4.0],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
    }
    return write_gguf(path, "llama", metadata, tensors)
