"""Write an MLP as ONNX: python make_mlp.py PATH WIDTH WIDTH ..."""

import sys
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def make_mlp(widths: Sequence[int]) -> onnx.ModelProto:
    """`x` float32 [batch, first width] to `output` float32 [batch, last width], with random weights."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for layer, (ins, outs) in enumerate(pairwise(widths)):
        last = layer == len(widths) - 2
        weight = rng.normal(0, ins**-0.5, (ins, outs)).astype(np.float32)
        weights += [numpy_helper.from_array(weight, f"w{layer}"), numpy_helper.from_array(weight[0] * 0, f"b{layer}")]
        result = "output" if last else f"sum{layer}"
        nodes.append(helper.make_node("Gemm", [value, f"w{layer}", f"b{layer}"], [result]))
        if not last:
            value = f"relu{layer}"
            nodes.append(helper.make_node("Relu", [result], [value]))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", widths[0]])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", widths[-1]])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


if __name__ == "__main__":
    onnx.save(make_mlp([int(each) for each in sys.argv[2:]]), sys.argv[1])
