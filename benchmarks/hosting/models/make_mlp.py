"""Write an MLP as ONNX: python make_mlp.py PATH. Its weights do not fit into a core's caches, so that batches pay."""

import sys
from itertools import pairwise

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZES = (784, 2048, 2048, 10)


def make_mlp() -> onnx.ModelProto:
    """`x` float32 [batch, 784] to `output` float32 [batch, 10], with random weights."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for layer, (ins, outs) in enumerate(pairwise(SIZES)):
        last = layer == len(SIZES) - 2
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
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", SIZES[0]])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", SIZES[-1]])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


if __name__ == "__main__":
    onnx.save(make_mlp(), sys.argv[1])
