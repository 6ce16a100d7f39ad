"""Programs of `torch.export`, and packages that AOTInductor has compiled of them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError
from octavo.hosting.runtime import RuntimeOptions
from octavo.hosting.runtimes.files import untrusted
from octavo.hosting.runtimes.torch_module import OUTPUT, Callee, datatype_of, heard, named, wants_code
from octavo.hosting.signature import ANY, TensorSpec, first_dims_are_free, without_batch

INPUT = "INPUT__{}"
"""As Triton names inputs that have no names."""


def load_exported(torch: Any, path: Path, options: RuntimeOptions, device: Any) -> Callee:
    """An exported program, which says all of its inputs and outputs."""
    with heard("torch.export", "torch._export.serde.serialize") as errors:
        try:
            program = torch.export.load(path)
        except Exception as error:  # whatever its parsers raise
            cause = errors[-1] if errors else error
            if not options.trust_pickle and wants_code(cause):
                raise untrusted(path, "has pickles of more than weights", "export it without them") from error
            raise cause from error
    if device.type != "cpu":
        program = torch.export.passes.move_to_device_pass(program, device)
    tree = torch.utils._pytree
    given = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    # In the order of the call; what is no tensor is what it was when the program was exported.
    arguments = {name: given[name] for name in program.graph_signature.user_inputs if isinstance(name, str)}
    leaves = [given.get(name) if isinstance(name, str) else name for name in program.graph_signature.user_inputs]
    inputs = [_spec(path, name, each) for name, each in arguments.items() if isinstance(each, torch.Tensor)]
    places = [place for place, each in enumerate(leaves) if isinstance(each, torch.Tensor)]
    output = next(node for node in program.graph.nodes if node.op == "output")
    results = [getattr(each, "meta", {}).get("val", each) for each in output.args[0]]
    results = results[len(results) - len(program.graph_signature.user_outputs) :]  # after what it writes to its buffers
    outputs = [
        _spec(path, name, each)
        for name, each in named(torch, tree.tree_unflatten(results, program.call_spec.out_spec)).items()
    ]
    module = program.module()

    def call(*tensors: Any) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        args, kwargs = tree.tree_unflatten(filled, program.call_spec.in_spec)
        return module(*args, **kwargs)

    batches = first_dims_are_free([*inputs, *outputs])
    return Callee(
        call=call,
        inputs=without_batch(inputs) if batches else tuple(inputs),
        outputs=without_batch(outputs) if batches else tuple(outputs),
        batches=batches,
    )


def _spec(path: Path, name: str, tensor: Any) -> TensorSpec:
    datatype = datatype_of(tensor.dtype)
    if datatype is None:
        raise ConfigError(f"{path}: '{name}' is a tensor of {tensor.dtype}, which no request and no response can have")
    dims = tuple(size if isinstance(size, int) else ANY for size in tensor.shape)
    return TensorSpec(name=name, datatype=datatype, dims=dims)


def load_compiled(torch: Any, path: Path, options: RuntimeOptions, device: Any) -> Callee:
    """A compiled package. It is machine code, and has kept of its inputs and outputs how many there are."""
    if not options.trust_pickle:
        raise untrusted(path, "is machine code (AOTInductor)", "export it with torch.export.save")
    # Unless they are asked to, packages do not look at the sizes and dtypes that they are called with.
    os.environ["AOTI_RUNTIME_CHECK_INPUTS"] = "1"
    model = torch._inductor.aoti_load_package(str(path), device_index=-1 if device.index is None else device.index)
    built_for = model.get_metadata().get("AOTI_DEVICE_KEY", device.type)
    if built_for != device.type:
        raise ConfigError(f"{path} was compiled for {built_for}, and is to be computed on {device.type}", "device")
    given, gives = (json.loads(each)[1] for each in model.loader.get_call_spec())
    args, kwargs = given["children_spec"]
    names = [INPUT.format(number) for number in range(_leaves(args))]
    names += json.loads(kwargs["context"])
    if _leaves(given) != len(names):
        raise ConfigError(f"{path} takes tensors within others by name, which have no names of their own here")
    inputs = tuple(TensorSpec(name=name, datatype=None, dims=None) for name in names)
    outputs = tuple(TensorSpec(name=name, datatype=None, dims=None) for name in _names(gives))
    tree = torch.utils._pytree
    in_spec = tree.treespec_loads(model.loader.get_call_spec()[0])

    def call(*tensors: Any) -> Any:
        args, kwargs = tree.tree_unflatten(tensors, in_spec)
        return model(*args, **kwargs)

    # A package computes one call at a time, and holds the GIL meanwhile.
    return Callee(call=call, inputs=inputs, outputs=outputs, batches=None, concurrent=False)


def _leaves(spec: Mapping[str, Any]) -> int:
    return sum(map(_leaves, spec["children_spec"])) if spec["type"] else 1


def _names(spec: Mapping[str, Any]) -> list[str]:
    """Of the results of a call."""
    if spec["type"] == "builtins.dict":
        return [str(key) for key in json.loads(spec["context"])]
    return [OUTPUT.format(number) for number in range(_leaves(spec))]
