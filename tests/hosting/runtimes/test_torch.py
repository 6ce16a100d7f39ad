"""Models that PyTorch writes, against PyTorch called by itself."""

import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.runtime import Runtime, RuntimeOptions
from octavo.hosting.runtimes import load
from octavo.hosting.signature import ANY, TensorSpec
from tests.hosting.runtimes.checks import check_damaged, execute, refusal, run
from tests.hosting.runtimes.pickles import Sabotage
from tests.hosting.runtimes.torch_models import Linear, X, free


@pytest.fixture(autouse=True)
def _no_deprecations() -> Iterator[None]:
    """PyTorch would rather have no TorchScript any more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Pair(NamedTuple):
    """Results with names."""

    left: torch.Tensor
    right: torch.Tensor


class Several(torch.nn.Module):
    """Arguments that may be left out, and several results."""

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None = None, factor: float = 2.0) -> Pair:
        y = x * factor
        if shift is not None:
            y = y + shift
        return Pair(y, y.argmax(-1))


class Tuple(torch.nn.Module):
    """Results without names."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, x.sum(-1)


class Centred(torch.nn.Module):
    """Rows are not independent: no batches."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


class Numbered(torch.nn.Module):
    """Rows know where they are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.arange(x.shape[0]).unsqueeze(-1)


class Embedding(torch.nn.Module):
    """Takes numbers of a vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(5, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.table(ids) * mask.unsqueeze(-1)  # type: ignore[no-any-return]


def scripted(module: torch.nn.Module, folder: Path, **options: Any) -> Runtime:
    path = folder / "model.pt"
    torch.jit.script(module.eval()).save(str(path))
    return load("torch", path, RuntimeOptions(**options))


def traced(module: torch.nn.Module, examples: tuple[torch.Tensor, ...], folder: Path) -> Runtime:
    path = folder / "model.pt"
    torch.jit.trace(module.eval(), examples, check_trace=False).save(str(path))
    return load("torch", path, RuntimeOptions())


def oracle(module: Callable[..., Any], *inputs: NDArray[Any]) -> NDArray[Any]:
    with torch.inference_mode():
        return module(*map(torch.from_numpy, inputs)).numpy()  # type: ignore[no-any-return]


def test_a_script_says_names_and_nothing_else(tmp_path: Path) -> None:
    module = Linear()
    runtime = scripted(module, tmp_path, threads=1)
    assert (runtime.platform, runtime.concurrent, runtime.batches) == ("pytorch_libtorch", True, None)
    assert (runtime.inputs, runtime.outputs) == ((free("x"),), (free("OUTPUT__0"),))
    np.testing.assert_array_equal(run(runtime, x=X)["OUTPUT__0"], oracle(module, X))
    np.testing.assert_array_equal(run(runtime, x=X[0])["OUTPUT__0"], oracle(module, X[0]))


def test_a_script_with_arguments_and_results_of_several_kinds(tmp_path: Path) -> None:
    runtime = scripted(Several(), tmp_path)
    assert runtime.inputs == (free("x"), free("shift", optional=True))
    assert runtime.outputs == (free("OUTPUT__0"), free("OUTPUT__1"))
    given = run(runtime, x=X)
    np.testing.assert_array_equal(given["OUTPUT__0"], X * 2)
    assert given["OUTPUT__1"].dtype == np.int64
    assert list(run(runtime, "OUTPUT__1", x=X)) == ["OUTPUT__1"]
    np.testing.assert_array_equal(run(runtime, x=X, shift=X[:1])["OUTPUT__0"], X * 2 + X[:1])
    runtime = scripted(Tuple(), tmp_path)
    np.testing.assert_allclose(run(runtime, x=X)["OUTPUT__1"], X.sum(-1), rtol=1e-6)


def test_a_traced_model_remembers_its_example(tmp_path: Path) -> None:
    module = Embedding()
    runtime = traced(module, (torch.zeros(2, 7, dtype=torch.int64), torch.ones(2, 7)), tmp_path)
    assert runtime.batches is True
    assert runtime.inputs == (
        TensorSpec(name="ids", datatype=Datatype.INT64, dims=(ANY,)),
        TensorSpec(name="mask", datatype=Datatype.FP32, dims=(ANY,)),
    )
    assert runtime.outputs == (TensorSpec(name="OUTPUT__0", datatype=Datatype.FP32, dims=(ANY, ANY)),)
    ids = np.array([[1, 4, 2]])
    mask = np.array([[1, 0, 1]], np.float32)
    np.testing.assert_array_equal(run(runtime, ids=ids, mask=mask)["OUTPUT__0"], oracle(module, ids, mask))
    with pytest.raises(InferenceError, match="index out of range in self") as caught:
        run(runtime, ids=ids + 1, mask=mask)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("module", "shape", "batches", "dims"),
    [
        (Linear(), (2, 3), True, (ANY,)),
        (Linear(), (3,), False, (ANY,)),
        (Centred(), (2, 3), False, (ANY, ANY)),
        (Numbered(), (2, 3), False, (ANY, ANY)),
        (Tuple(), (2, 3), True, (ANY,)),
    ],
)
def test_batches_of_a_traced_model(
    tmp_path: Path, module: torch.nn.Module, shape: tuple[int, ...], batches: bool, dims: tuple[int, ...]
) -> None:
    """If another row changes nothing for the others, they may share a call."""
    runtime = traced(module, (torch.zeros(shape),), tmp_path)
    assert (runtime.batches, runtime.inputs[0].dims) == (batches, dims)


def test_a_traced_model_that_takes_one_size_alone(tmp_path: Path) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.ones(3, 1)

    assert traced(Fixed(), (torch.zeros(3, 2),), tmp_path).batches is None


def test_a_traced_model_that_does_not_compute_zeros(tmp_path: Path) -> None:
    class Inverse(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.inv(x)

    runtime = traced(Inverse(), (torch.eye(3),), tmp_path)
    assert runtime.inputs == (TensorSpec(name="x", datatype=Datatype.FP32, dims=(ANY, ANY)),)
    assert (runtime.outputs, runtime.batches) == ((free("OUTPUT__0"),), None)
    np.testing.assert_allclose(run(runtime, x=np.eye(3, dtype=np.float32) * 2)["OUTPUT__0"], np.eye(3) / 2)
    with pytest.raises(InferenceError, match="singular"):
        run(runtime, x=np.zeros((3, 3), np.float32))


def test_datatypes_that_a_script_does_not_say(tmp_path: Path) -> None:
    """Those of the request; BF16 is UInt16 in memory, and is meant where the model computes in it."""

    class Same(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

    runtime = scripted(Same(), tmp_path)
    for datatype in Datatype:
        if datatype not in (Datatype.BYTES, Datatype.BF16):
            x = np.array([[0, 1]], datatype.dtype)
            np.testing.assert_array_equal(run(runtime, x=x)["OUTPUT__0"], x)
            assert run(runtime, x=x)["OUTPUT__0"].dtype == datatype.dtype
    with pytest.raises(InferenceError, match="input 'x' is BYTES, and the model takes numbers"):
        run(runtime, x=np.array([b"a"], object))
    module = Linear().to(torch.bfloat16)
    x = torch.from_numpy(X).to(torch.bfloat16)
    with torch.inference_mode():
        right = module(x).float().numpy()
    given = run(scripted(module, tmp_path), x=x.view(torch.uint16).numpy())["OUTPUT__0"]
    np.testing.assert_array_equal(given, right)


CLASSES = """
import torch
class Linear(torch.nn.Module):
    def __init__(self, size=2):
        super().__init__()
        self.linear = torch.nn.Linear(3, size)
    def forward(self, x, shift=None):
        y = self.linear(x)
        return y if shift is None else y + shift
class Two(Linear):
    def forward(self, x) -> tuple[torch.Tensor, torch.Tensor]:
        return self.linear(x), x
class Needy(Linear):
    def __init__(self, size): super().__init__(size)
class Three(Linear):
    def forward(self, x): return [x, x, x]
class Many(Linear):
    def forward(self, *x): return x
class Dictionary(Linear):
    def forward(self, x) -> dict: return {"x": x}
def other(): return 7
def large(): return Linear(5)
"""


@pytest.fixture
def classes(tmp_path: Path) -> str:
    path = tmp_path / "classes.py"
    path.write_text(CLASSES)
    return str(path)


@pytest.mark.parametrize("kind", ["saved", "legacy", "within", "parallel", "safetensors"])
def test_weights_and_a_class(tmp_path: Path, classes: str, kind: str) -> None:
    module = Linear().eval()
    weights: dict[str, Any] = module.state_dict()
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        save_file(weights, path)
    else:
        if kind == "within":
            weights = {"epoch": 3, "state_dict": weights}
        if kind == "parallel":
            weights = {f"module.{name}": each for name, each in weights.items()}
        torch.save(weights, path, _use_new_zipfile_serialization=kind != "legacy")
    runtime = load("torch", path, RuntimeOptions(model_class=f"{classes}:Linear"))
    assert (runtime.inputs, runtime.batches) == ((free("x"), free("shift", optional=True)), None)
    np.testing.assert_array_equal(run(runtime, x=X)["OUTPUT__0"], oracle(module, X))
    assert f"{path} has weights alone: --model-class" in refusal("torch", path)
    runtime = load("torch", path, RuntimeOptions(model_class=f"{classes}:Two"))
    assert [spec.name for spec in runtime.outputs] == ["OUTPUT__0", "OUTPUT__1"]
    np.testing.assert_array_equal(run(runtime, x=X)["OUTPUT__1"], X)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Needy", "cannot be called: TypeError"),
        ("other", "makes a int, not a torch.nn.Module"),
        ("large", "size mismatch for linear.weight"),
        ("Many", "forward takes *x, which has no name in a request"),
        ("Dictionary", "whose tensors have neither names nor a number"),
        ("Missing", "Missing"),
    ],
)
def test_classes_that_do_not_fit(tmp_path: Path, classes: str, name: str, message: str) -> None:
    torch.save(Linear().state_dict(), tmp_path / "w.pt")
    assert message in refusal("torch", tmp_path / "w.pt", RuntimeOptions(model_class=f"{classes}:{name}"))


def test_a_class_that_gives_something_else_than_it_says(tmp_path: Path, classes: str) -> None:
    torch.save(Linear().state_dict(), tmp_path / "w.pt")
    runtime = load("torch", tmp_path / "w.pt", RuntimeOptions(model_class=f"{classes}:Three"))
    assert list(execute(runtime, {"x": X}, "OUTPUT__0")) == ["OUTPUT__0"]
    with pytest.raises(TypeError, match="forward gives OUTPUT__0, OUTPUT__1, OUTPUT__2, and no OUTPUT__3"):
        runtime.execute({"x": X}, ["OUTPUT__3"])


def test_pickles_are_refused(tmp_path: Path) -> None:
    module, path = Linear().eval(), tmp_path / "whole.pt"
    torch.save(module, path)
    message = refusal("torch", path)
    assert "runs whatever code its author put there" in message
    assert "--trust-pickle" in message
    runtime = load("torch", path, RuntimeOptions(trust_pickle=True))
    np.testing.assert_array_equal(run(runtime, x=X)["OUTPUT__0"], oracle(module, X))
    mark = tmp_path / "mark"
    torch.save({"weight": Sabotage(mark)}, path)
    assert "--trust-pickle" in refusal("torch", path)
    path.write_bytes(pickle.dumps(Sabotage(mark), protocol=2))
    assert "--trust-pickle" in refusal("torch", path)
    assert not mark.exists()


def test_scripts_that_cannot_be_served(tmp_path: Path) -> None:
    class Dictionary(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": x}

    class Numbers(torch.nn.Module):
        def forward(self, x: torch.Tensor, count: int) -> torch.Tensor:
            return x * count

    path = tmp_path / "model.pt"
    torch.jit.script(Dictionary()).save(str(path))
    assert "forward gives a Dict[str, Tensor], whose tensors have neither names nor a number" in refusal("torch", path)
    torch.jit.script(Numbers()).save(str(path))
    assert "forward's argument 'count' is a int, and requests have tensors" in refusal("torch", path)
    # What a dictionary has can be found out with an example.
    torch.jit.trace(Dictionary(), torch.zeros(2, 3), strict=False, check_trace=False).save(str(path))
    runtime = load("torch", path, RuntimeOptions())
    assert runtime.outputs == (TensorSpec(name="x", datatype=Datatype.FP32, dims=(ANY,)),)


def test_inputs_that_are_to_blame(tmp_path: Path) -> None:
    runtime = scripted(Linear(), tmp_path)
    for wrong, message in (
        (X[:, :2], r"^mat1 and mat2 shapes cannot be multiplied \(4x2 and 3x2\)$"),
        (X.astype(np.float64), "^mat1 and mat2 must have the same dtype"),
        (X.astype(np.int64), "^mat1 and mat2 must have the same dtype"),
    ):
        with pytest.raises(InferenceError, match=message) as caught:
            run(runtime, x=wrong)
        assert caught.value.code is Code.INVALID_ARGUMENT


def test_too_little_memory_is_not_the_fault_of_inputs(tmp_path: Path) -> None:
    class Huge(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros([1 << 60]) + x

    runtime = scripted(Huge(), tmp_path)
    with pytest.raises(RuntimeError, match="allocate memory"):
        run(runtime, x=X)


@pytest.mark.parametrize("kind", ["script", "traced", "weights", "safetensors"])
def test_damaged_files(tmp_path: Path, classes: str, kind: str) -> None:
    module = Linear().eval()
    good = tmp_path / ("good.safetensors" if kind == "safetensors" else "good.pt")
    if kind == "script":
        torch.jit.script(module).save(str(good))
    elif kind == "traced":
        torch.jit.trace(module, torch.zeros(2, 3), check_trace=False).save(str(good))
    elif kind == "weights":
        torch.save(module.state_dict(), good)
    else:
        save_file(module.state_dict(), good)
    check_damaged("torch", good, tmp_path / "bad", RuntimeOptions(model_class=f"{classes}:Linear"), most=1)


def test_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.jit.script(Linear()).save(str(tmp_path / "model.pt"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    load("torch", tmp_path / "model.pt", RuntimeOptions(device="cpu"))
    message = refusal("torch", tmp_path / "model.pt", RuntimeOptions(device="cuda:1"))
    assert "device is 'cuda:1', and the installed PyTorch" in message
    assert "finds no GPUs: --device cpu needs none" in message
    assert "give auto, cpu" in refusal("torch", tmp_path / "model.pt", RuntimeOptions(device="tensorrt"))
