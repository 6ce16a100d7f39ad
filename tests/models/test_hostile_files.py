"""Files from strangers: whatever they say, a model loads or is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from octavo.deployments import GenerationDefaults
from octavo.errors import OctavoError
from octavo.models import build
from octavo.text import load_tokenizer
from octavo.weights.checkpoint import open_checkpoint
from tests.models import oracle
from tests.properties import examples
from tests.tiny import write_tiny_model
from tests.weights.gguf_files import tiny_llama

NUMBERS: list[float] = [
    0,
    1,
    -1,
    2,
    3,
    0.5,
    -0.0,
    1e-300,
    1e300,
    float("nan"),
    float("inf"),
    2**31,
    2**63,
    10**30,
    10**400,
]
WORDS = ["", "0", "5", "silu", "full_attention", "yarn", "linear", "llama3", "factors", "\ud800"]
NESTED: list[Any] = [
    [],
    {},
    [[]],
    [{}],
    {"": {}},
    [None] * 3,
    [1.0] * 4,
    {"content": 5},
    {"content": "x"},
    [0, -1, 10**9],
]
ODD = st.one_of(
    st.sampled_from([None, True, False, *NUMBERS, *WORDS, *NESTED]),
    st.recursive(st.integers(-5, 5) | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3), max_leaves=4),
)
ROPE_KEYS = [
    "rope_type", "type", "factor", "rope_theta", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow",
    "original_max_position_embeddings", "attention_factor", "mscale", "mscale_all_dim", "factors", "truncate",
]  # fmt: skip
ROPE = st.dictionaries(st.sampled_from(ROPE_KEYS), ODD, max_size=5)


def one_line(function: Callable[[], object]) -> None:
    said = ""
    try:
        function()
    except OctavoError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 1500


def read_everything(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    model = build(checkpoint.config, str(checkpoint.config_file))
    load_tokenizer(checkpoint, model.vocab_size)
    GenerationDefaults.from_config(checkpoint.generation_config)


@pytest.mark.hypothesis
@pytest.mark.parametrize(
    "name", ["llama", "llama-yarn", "llama-llama3", "mistral", "qwen2-window", "qwen3", "gemma3", "gpt2"]
)
def test_any_config(name: str) -> None:
    config = oracle.make(name).config.to_dict()
    keys = sorted({*config, "rope_scaling", "rope_theta", "sliding_window_pattern", "layer_types", "hidden_activation"})
    scaling = st.fixed_dictionaries({}, optional={"rope_scaling": ROPE, "rope_parameters": ROPE})
    small = {key: ODD.filter(lambda value: not (type(value) is int and 64 < value <= 4096)) for key in keys}

    @examples(40)
    @given(st.fixed_dictionaries({}, optional=small), st.none() | scaling)
    def check(changes: dict[str, Any], rope: dict[str, Any] | None) -> None:
        few = dict(list(changes.items())[:3]) | (rope or {})
        one_line(lambda: build(config | few | {"architectures": config["architectures"]}))

    check()


@pytest.mark.hypothesis
@pytest.mark.parametrize(
    "file", ["config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"]
)
def test_any_small_file(file: str, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    path = folder / file
    whole = json.loads(path.read_text()) if path.exists() else {}
    keys = {*whole, "eos_token_id", "bos_token_id", "bos_token", "eos_token", "add_bos_token", "added_tokens_decoder"}
    keys |= {
        "additional_special_tokens",
        "chat_template",
        "temperature",
        "top_k",
        "min_p",
        "text_config",
        "architectures",
    }

    @given(st.dictionaries(st.sampled_from(sorted(keys)), ODD, min_size=1, max_size=3))
    def check(changes: dict[str, Any]) -> None:
        path.write_text(json.dumps(whole | changes))
        one_line(lambda: read_everything(folder))

    check()


@pytest.mark.hypothesis
def test_any_safetensors_header(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    raw = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    names = sorted(name for name in header if name != "__metadata__")
    sizes = st.sampled_from([0, 1, -1, 2**31, 2**63, 10**30, 1.5, None, "1"])
    entry = st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["F32", "BF16", "I64", 5, None]),
            "shape": st.lists(sizes, max_size=70) | ODD,
            "data_offsets": st.lists(sizes, max_size=3) | ODD,
        },
    )

    @examples(80)
    @given(st.dictionaries(st.sampled_from(names), entry | ODD, max_size=3), st.integers(-2, 2))
    def check(changes: dict[str, Any], longer: int) -> None:
        changed = {
            name: header[name] | change if isinstance(change, dict) and name in header else change
            for name, change in changes.items()
        }
        text = json.dumps(header | changed).encode()
        file = (max(len(text) + longer, 0)).to_bytes(8, "little") + text + data
        (folder / "model.safetensors").write_bytes(file)
        one_line(lambda: read_everything(folder))

    check()


@examples(80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_gguf_file(data: st.DataObject, tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.gguf", tmp_path / "changed.gguf"
    if not whole.exists():
        tiny_llama(whole)
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, min(len(content), 3000) - 1))
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(8, len(content)) | st.just(len(content)))])
    one_line(lambda: read_everything(path))
