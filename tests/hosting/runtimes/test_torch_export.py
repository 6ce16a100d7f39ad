"""Exported programs and compiled packages, against PyTorch called by itself.

To import what exports takes a dozen seconds: only `make runtimes` does.
"""

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.runtime import Runtime, RuntimeOptions
from octavo.hosting.runtimes import load
from octavo.hosting.runtimes.pytorch import Content, content_of
from octavo.hosting.signature import TensorSpec
from tests.hosting.runtimes.checks import check_damaged, everything_is_installed, refusal, run
from tests.hosting.runtimes.pickles import Sabotage
from tests.hosting.runtimes.torch_models import Linear, X, free

pytestmark = pytest.mark.skipif(not everything_is_installed(), reason="slow: make runtimes")


def exported(module: torch.nn.Module, examples: tuple[Any, ...], shapes: Any, folder: Path) -> Runtime:
    path = folder / "model.pt2"
    torch.export.save(torch.export.export(module.eval(), examples, dynamic_shapes=shapes), path)
    return load("torch", path, RuntimeOptions())


def test_every_datatype_that_an_exported_program_has(tmp_path: Path) -> None:
    # PyTorch has no strings, and computes little with those unsigned integers.
    others = (Datatype.BYTES, Datatype.UINT16, Datatype.UINT32, Datatype.UINT64)
    for datatype in (each for each in Datatype if each not in others):
        names = {"FP16": "float16", "BF16": "bfloat16", "FP32": "float32", "FP64": "float64"}
        dtype = getattr(torch, names.get(datatype, datatype.lower()))

        dim = torch.export.Dim("n")

        class Flip(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x.flip(-1)

        runtime = exported(Flip(), (torch.zeros(2, 3, dtype=dtype),), ({0: dim},), tmp_path)
        assert runtime.inputs == (TensorSpec(name="x", datatype=datatype, dims=(3,)),)
        bits = 2 if datatype is Datatype.BOOL else 100
        x = np.random.default_rng(0).integers(0, bits, (4, 3)).astype(datatype.dtype)
        np.testing.assert_array_equal(run(runtime, x=x)["OUTPUT__0"], x[:, ::-1])


def test_an_exported_program(tmp_path: Path) -> None:
    class Nested(torch.nn.Module):
        def forward(self, both: dict[str, torch.Tensor], factor: float, *, shift: torch.Tensor) -> dict[str, Any]:
            return {"sum": both["a"] + both["b"] * factor, "shifted": both["a"] + shift}

    dim = torch.export.Dim("n")
    path = tmp_path / "model.pt2"
    one, two, three = torch.zeros(3, 2, 3)
    shapes = {"both": {"a": {0: dim}, "b": {0: dim}}, "factor": None, "shift": {0: dim}}
    program = torch.export.export(Nested(), ({"a": one, "b": two}, 3.0), {"shift": three}, dynamic_shapes=shapes)
    torch.export.save(program, path)
    runtime = load("torch", path, RuntimeOptions())
    assert runtime.batches is True
    assert [(spec.name, spec.dims) for spec in runtime.inputs] == [("both_a", (3,)), ("both_b", (3,)), ("shift", (3,))]
    assert [(spec.name, spec.dims) for spec in runtime.outputs] == [("sum", (3,)), ("shifted", (3,))]
    given = run(runtime, both_a=X, both_b=X + 1, shift=X + 2)
    np.testing.assert_allclose(given["sum"], X + (X + 1) * 3, rtol=1e-6)
    np.testing.assert_allclose(given["shifted"], X + X + 2, rtol=1e-6)


def test_an_exported_program_of_one_size_and_with_buffers(tmp_path: Path) -> None:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls.add_(1)
            return x * 2

    runtime = exported(Counter(), (torch.zeros(4, 3),), None, tmp_path)
    assert runtime.batches is False
    assert [spec.dims for spec in (*runtime.inputs, *runtime.outputs)] == [(4, 3), (4, 3)]
    np.testing.assert_array_equal(run(runtime, x=X)["OUTPUT__0"], X * 2)
    with pytest.raises(InferenceError, match="Guard failed"):
        run(runtime, x=X[:2])


def test_a_compiled_package(tmp_path: Path) -> None:
    class Scale(torch.nn.Module):
        def forward(self, x: torch.Tensor, *, y: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": x + y, "product": x * y}

    (one, two), dim, path = torch.zeros(2, 2, 3), torch.export.Dim("n"), tmp_path / "model.pt2"
    program = torch.export.export(Scale(), (one,), {"y": two}, dynamic_shapes={"x": {0: dim}, "y": {0: dim}})
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    assert "is machine code (AOTInductor)" in refusal("torch", path)
    runtime = load("torch", path, RuntimeOptions(trust_pickle=True))
    assert runtime.inputs == (free("INPUT__0"), free("y"))
    assert runtime.outputs == (free("sum"), free("product"))
    given = run(runtime, INPUT__0=X, y=X + 1)
    np.testing.assert_allclose(given["sum"], X + X + 1, rtol=1e-6)
    np.testing.assert_allclose(given["product"], X * (X + 1), rtol=1e-6)
    for wrong in (X[:, :2], X.astype(np.float64), X.ravel()):
        with pytest.raises(InferenceError):
            run(runtime, INPUT__0=wrong, y=wrong)


def test_pickles_within_are_refused(tmp_path: Path) -> None:
    mark, path, archive = tmp_path / "mark", tmp_path / "sample.pt", tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Linear().eval(), (torch.zeros(2, 3),)), archive)
    torch.save(((Sabotage(mark),), {}), path)
    replaced(archive, "data/sample_inputs/model.pt", path)
    assert "--trust-pickle" in refusal("torch", archive)
    assert not mark.exists()
    load("torch", archive, RuntimeOptions(trust_pickle=True))
    assert mark.exists()


def replaced(archive: Path, name: str, content: Path) -> None:
    """Put another file into an archive."""
    with zipfile.ZipFile(archive) as old:
        entries = {each: old.read(each) for each in old.namelist()}
    with zipfile.ZipFile(archive, "w") as new:
        for each, data in entries.items():
            new.writestr(each, content.read_bytes() if each.endswith(name) else data)


def test_what_a_file_is(tmp_path: Path) -> None:
    """Whatever it is called."""
    module = Linear().eval()
    made = {
        Content.SCRIPT: lambda path: torch.jit.script(module).save(str(path)),
        Content.EXPORTED: lambda path: torch.export.save(torch.export.export(module, (torch.zeros(2, 3),)), path),
        Content.PICKLE: lambda path: torch.save(module.state_dict(), path),
        Content.SAFETENSORS: lambda path: save_file(module.state_dict(), path),
    }
    for content, make in made.items():
        make(tmp_path / "made.pt2")
        shutil.move(tmp_path / "made.pt2", tmp_path / "file.pt")
        assert content_of(tmp_path / "file.pt") is content


def test_damaged_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = tmp_path / "good.pt2"
    torch.export.save(torch.export.export(Linear().eval(), (torch.zeros(2, 3),)), good)
    capfd.readouterr()
    check_damaged("torch", good, tmp_path / "bad")
    assert not capfd.readouterr().err
