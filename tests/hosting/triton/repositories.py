"""Repositories of models that the tests write."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

BATCH = "batch"


def write_model(repository: Path, name: str, config: str | None = None, **versions: bytes) -> Path:
    """A model's folder: its configuration if there is one, and files by their places, as v1="…" or in FILES."""
    folder = repository / name
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    for version, data in versions.items():
        place = folder / version.removeprefix("v") / "model.onnx"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(data)
    return folder


def onnx_scale(
    factor: float = 2.0,
    shape: Sequence[int | str] = (BATCH, 3),
    *,
    kind: int = TensorProto.FLOAT,
    names: tuple[str, str] = ("x", "y"),
) -> bytes:
    """y = x * factor, of any kind of number."""
    value = helper.make_tensor("factor", kind, [], np.array([factor]).astype(helper.tensor_dtype_to_np_dtype(kind)))
    graph = helper.make_graph(
        [helper.make_node("Mul", [names[0], "factor"], [names[1]])],
        "scale",
        [helper.make_tensor_value_info(names[0], kind, shape)],
        [helper.make_tensor_value_info(names[1], kind, shape)],
        [value],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


SCALE = """
backend: "onnxruntime"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 3 }
output { name: "y" data_type: TYPE_FP32 dims: 3 }
"""
