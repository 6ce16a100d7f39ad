"""Models of repositories with their configurations: completed, compared, reshaped, warmed up."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto

from octavo.errors import ConfigError
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.loaded import Loaded
from octavo.hosting.loading import load_model
from octavo.hosting.start import HostingStart
from octavo.hosting.tensors import Encoded, Tensor
from octavo.hosting.triton.layout import ModelFolder
from octavo.hosting.triton.planning import plan_model
from octavo.hosting.wire import Infer, parts_of
from tests.hosting.triton.repositories import SCALE, onnx_scale, write_model


def loaded(folder: Path, **options: Any) -> Loaded:
    planned = plan_model(ModelFolder(folder.name, folder), **options)
    config = next(iter(planned.versions.values()))
    return load_model(HostingStart(name=folder.name, config=config))


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def compute(model: Loaded, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    encoded = {name: Encoded.of(Tensor(Datatype.of(each.dtype), each)) for name, each in arrays.items()}
    data = b"".join(bytes(each.data) for each in encoded.values())
    task = model.computation.read(Infer(number=0, parts=parts_of(encoded), arrived=time.monotonic()), memoryview(data))
    [answer] = model.computation.compute([task])
    if isinstance(answer, InferenceError):
        raise answer
    return {
        part.name: np.frombuffer(bytes(buffer), part.datatype.dtype).reshape(part.shape)
        for part, buffer in zip(answer.parts, answer.buffers, strict=True)
    }


# --- what is completed ------------------------------------------------------------------------------------------------


def test_a_model_without_a_configuration_gets_triton_s(tmp_path: Path) -> None:
    model = loaded(write_model(tmp_path, "scale", v1=onnx_scale()))
    config = model.info.config
    assert config is not None
    assert (config["backend"], config["platform"]) == ("onnxruntime", "onnxruntime_onnx")
    assert config["max_batch_size"] == 4
    assert config["dynamic_batching"]["preferred_batch_size"] == [4]
    assert config["input"][0] | {"name": "x", "data_type": "TYPE_FP32", "dims": [3]} == config["input"][0]
    assert config["instance_group"][0]["kind"] == "KIND_CPU"
    assert config["instance_group"][0]["count"] == 2
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
    assert model.info.max_batch_size == 4
    np.testing.assert_array_equal(compute(model, x=np.ones((2, 3), np.float32))["y"], np.full((2, 3), 2))


@pytest.mark.parametrize(("sizes", "size"), [({"": 8}, 8), ({"": 8, "onnxruntime": 16}, 16), ({"python": 8}, 4)])
def test_who_serves_says_how_large_batches_are(tmp_path: Path, sizes: dict[str, int], size: int) -> None:
    model = loaded(write_model(tmp_path, "scale", v1=onnx_scale()), batch_sizes=sizes)
    assert model.info.max_batch_size == size


def test_a_fixed_first_dimension_is_no_batch(tmp_path: Path) -> None:
    model = loaded(write_model(tmp_path, "scale", v1=onnx_scale(shape=(2, 3))))
    assert model.info.max_batch_size == 0
    assert model.info.inputs[0].dims == (2, 3)
    message = refused(write_model(tmp_path, "other", "max_batch_size: 4", v1=onnx_scale(shape=(2, 3))))
    assert "autofill failed for model 'other': model does not support batching while non-zero max_batch_size" in message


def test_what_is_written_is_not_completed(tmp_path: Path) -> None:
    model = loaded(write_model(tmp_path, "scale", SCALE.replace("max_batch_size: 8", ""), v1=onnx_scale(shape=(3,))))
    assert model.info.max_batch_size == 0
    assert model.info.config is not None
    assert "dynamic_batching" not in model.info.config


def test_without_completion_it_must_be_written(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "scale", v1=onnx_scale())
    assert "there is no scale/config.pbtxt" in refused(folder, completes=False)
    folder = write_model(tmp_path, "scale", 'backend: "onnxruntime"', v1=onnx_scale())
    assert "must specify one or more 'input' for scale" in refused(folder, completes=False)


# --- what must not differ ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SCALE.replace("dims: 3", "dims: 4"), "tensor 'x': the model expects 2 dimensions (shape [-1,3])"),
        (SCALE.replace("dims: 3", "dims: [1, 3]"), "making complete shape [-1,1,3])"),
        (SCALE.replace("FP32", "FP16", 1), "configuration expects datatype TYPE_FP16 for input 'x', model provides "),
        (SCALE.replace('"x"', '"z"'), "unexpected inference input 'z', allowed inputs are: x"),
        (SCALE.replace('"y"', '"z"'), "unexpected inference output 'z', allowed outputs are: y"),
        (SCALE.replace("max_batch_size: 8", "max_batch_size: -1"), "'max_batch_size' must be non-negative value"),
        (SCALE.replace("onnxruntime", "pytorch"), "there is no file"),
        (SCALE.replace("onnxruntime", "fil"), "backend is 'fil', which is not supported"),
        (SCALE + 'name: "other"', "unexpected directory name 'scale' for model 'other'"),
        (SCALE + 'platform: "pytorch_libtorch"', "unexpected 'platform' and 'backend' pair, got:pytorch_libtorch"),
        (SCALE + "version_policy { specific { versions: 7 } }", "at least one version must be available"),
        (SCALE + "instance_group { kind: KIND_CPU gpus: 0 }", "has kind KIND_CPU but specifies one or more GPUs"),
        (SCALE + "instance_group { passive: true }", "all of them are passive"),
        (SCALE + "batch_input { kind: BATCH_ELEMENT_COUNT }", "batch_input is not supported"),
        (SCALE + 'cc_model_filenames { key: "9.0" value: "x" }', "cc_model_filenames is not supported"),
        (SCALE + 'model_operations { op_library_filename: "x.so" }', "op_library_filename is not supported"),
        (SCALE + 'model_repository_agents { agents { name: "x" } }', "model_repository_agents is not supported"),
        (SCALE + 'model_metrics { metric_control { metric_identifier { family: "x" } } }', "model_metrics is not"),
        (SCALE + 'instance_group { kind: KIND_CPU host_policy: "x" }', "host_policy is not supported"),
        (SCALE + 'instance_group { kind: KIND_CPU profile: "x" }', "profile is not supported"),
        (SCALE + "instance_group { secondary_devices { kind: KIND_NVDLA } }", "secondary_devices is not supported"),
        (SCALE.replace('"x"', '"x" is_shape_tensor: true'), "model input 'x' is_shape_tensor is not supported"),
        (SCALE + 'runtime: "x"', "runtime is 'x', which is not supported"),
        (SCALE + "dynamic_batching { preferred_batch_size: 9 }", "preferred size must be <= max batch size for scale"),
        (SCALE + "dynamic_batching { priority_levels: 2 }", "default priority level must be in range [1, 2] for scale"),
        (SCALE + 'default_model_filename: "../../x"', "which is not in the version's folder"),
        (SCALE.replace('"y"', '"y" label_filename: "no.txt"'), "cannot read the labels of output 'y'"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, config: str, message: str) -> None:
    assert message in refused(write_model(tmp_path, "scale", config, v1=onnx_scale()))


def test_a_batch_of_a_fixed_size_is_none(tmp_path: Path) -> None:
    message = refused(write_model(tmp_path, "scale", SCALE, v1=onnx_scale(shape=(1, 3))))
    assert "the first dimension must be -1; but shape expected by the model is [1,3]" in message


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_clients_see_dims_and_the_model_what_they_are_reshaped_to(tmp_path: Path) -> None:
    config = """
        max_batch_size: 4
        input { name: "x" data_type: TYPE_FP32 dims: [3, 1] reshape { shape: 3 } }
        output { name: "y" data_type: TYPE_FP32 dims: [1, 3] reshape { shape: 3 } }
    """
    model = loaded(write_model(tmp_path, "scale", config, v1=onnx_scale()))
    assert model.info.inputs[0].dims == (3, 1)
    x = np.arange(6, dtype=np.float32).reshape(2, 3, 1)
    np.testing.assert_array_equal(compute(model, x=x)["y"], 2 * x.reshape(2, 1, 3))


def test_dimensions_of_any_size_keep_theirs(tmp_path: Path) -> None:
    config = """
        input { name: "x" data_type: TYPE_FP32 dims: [-1, 4] reshape { shape: [-1, 2, 2] } }
        output { name: "y" data_type: TYPE_FP32 dims: [-1, 4] reshape { shape: [-1, 2, 2] } }
    """
    model = loaded(write_model(tmp_path, "scale", config, v1=onnx_scale(shape=("n", 2, 2))))
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(compute(model, x=x)["y"], 2 * x)


def test_one_number_an_item_is_reshaped_to_none(tmp_path: Path) -> None:
    model = loaded(write_model(tmp_path, "scale", v1=onnx_scale(shape=("batch",))))
    assert model.info.inputs[0].dims == (1,)
    assert model.info.config is not None
    assert model.info.config["input"][0]["reshape"] == {"shape": []}
    np.testing.assert_array_equal(compute(model, x=np.ones((3, 1), np.float32))["y"], np.full((3, 1), 2))


def test_a_scalar_has_one_dimension(tmp_path: Path) -> None:
    config = """
        input { name: "x" data_type: TYPE_FP32 dims: 1 }
        output { name: "y" data_type: TYPE_FP32 dims: 1 }
    """
    model = loaded(write_model(tmp_path, "scale", config, v1=onnx_scale(shape=())))
    np.testing.assert_array_equal(compute(model, x=np.ones(1, np.float32))["y"], [2])


@pytest.mark.parametrize("names", [("INPUT__0", "INPUT__1"), ("a", "b"), ("first", "second")])
def test_inputs_of_torchscript_have_names_numbers_or_an_order(tmp_path: Path, names: tuple[str, str]) -> None:
    class Difference(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a - b

    config = f"""
        platform: "pytorch_libtorch" max_batch_size: 4
        input {{ name: "{names[0]}" data_type: TYPE_FP32 dims: 2 }}
        input {{ name: "{names[1]}" data_type: TYPE_FP32 dims: 2 }}
        output {{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: 2 }}
    """
    folder = write_model(tmp_path, "difference", config)
    (folder / "1").mkdir()
    torch.jit.script(Difference()).save(str(folder / "1" / "model.pt"))
    model = loaded(folder)
    arrays = {names[0]: np.full((1, 2), 5, np.float32), names[1]: np.full((1, 2), 3, np.float32)}
    np.testing.assert_array_equal(compute(model, **arrays)["OUTPUT__0"], [[2, 2]])


# --- versions, files, labels, warmup ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("", [10]),
        ("version_policy { latest { num_versions: 2 } }", [10, 3]),
        ("version_policy { all {} }", [10, 3, 1]),
        ("version_policy { specific { versions: [1, 3, 8] } }", [3, 1]),
    ],
)
def test_version_policies(tmp_path: Path, policy: str, versions: list[int]) -> None:
    folder = write_model(tmp_path, "scale", SCALE + policy, v1=onnx_scale(1), v3=onnx_scale(3), v10=onnx_scale(10))
    for other in ("05", "configs", "warmup", "docs", "__pycache__"):
        (folder / other).mkdir()
    planned = plan_model(ModelFolder("scale", folder))
    assert list(planned.versions) == versions


def test_other_files_and_other_configurations(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "scale", SCALE + 'default_model_filename: "two.onnx"')
    (folder / "1").mkdir()
    (folder / "1" / "two.onnx").write_bytes(onnx_scale(2))
    (folder / "1" / "three.onnx").write_bytes(onnx_scale(3))
    (folder / "configs").mkdir()
    (folder / "configs" / "special.pbtxt").write_text(SCALE + 'default_model_filename: "three.onnx"')
    x = np.ones((1, 3), np.float32)
    assert compute(loaded(folder), x=x)["y"][0, 0] == 2
    assert compute(loaded(folder, config_name="special"), x=x)["y"][0, 0] == 3
    assert compute(loaded(folder, config_name="none"), x=x)["y"][0, 0] == 2


def test_labels(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "scale", SCALE.replace('"y"', '"y" label_filename: "names.txt"'), v1=onnx_scale())
    (folder / "names.txt").write_text("cat\ndog\nowl\n")
    assert loaded(folder).info.outputs[0].labels == ("cat", "dog", "owl")


def warmup(tail: str) -> str:
    return SCALE + f'model_warmup {{ name: "w" {tail} }}'


INPUT = 'inputs { key: "x" value { data_type: TYPE_FP32 dims: 3 '


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (f"batch_size: 2 {INPUT} zero_data: true }} }}", None),
        (f"batch_size: 1 count: 3 {INPUT} random_data: true }} }}", None),
        (f'batch_size: 2 {INPUT} input_data_file: "x" }} }}', None),
        (f'batch_size: 2 {INPUT} input_data_file: "short" }} }}', "input 'x' needs 12 bytes, and"),
        (f'batch_size: 2 {INPUT} input_data_file: "none" }} }}', "model_warmup 'w': cannot read"),
        (f'batch_size: 2 {INPUT} input_data_file: "../config.pbtxt" }} }}', "which is not in"),
        (f"batch_size: 2 {INPUT} }} }}", "input 'x' must specify zero_data, random_data or input_data_file"),
        (f"batch_size: 2 {INPUT.replace('x', 'z')} zero_data: true }} }}", "the model has no input 'z'; it has x"),
        (f"batch_size: 9 {INPUT} zero_data: true }} }}", "batch_size is 9, more than max_batch_size, 8"),
    ],
)
def test_warmup(tmp_path: Path, sample: str, message: str | None) -> None:
    folder = write_model(tmp_path, "scale", warmup(sample), v1=onnx_scale())
    (folder / "warmup").mkdir()
    (folder / "warmup" / "x").write_bytes(np.ones(3, np.float32).tobytes())
    (folder / "warmup" / "short").write_bytes(b"1234")
    if message is None:
        loaded(folder)
    else:
        assert message in refused(folder)


def test_a_model_that_fails_in_its_warmup_is_not_served(tmp_path: Path) -> None:
    sample = warmup(f"batch_size: 1 {INPUT.replace('dims: 3', 'dims: 4')} zero_data: true }} }}")
    assert "model_warmup 'w': Got invalid dimensions for input: x" in refused(
        write_model(tmp_path, "scale", sample, v1=onnx_scale())
    )


# --- how it is served -------------------------------------------------------------------------------------------------


def test_all_of_dynamic_batching(tmp_path: Path) -> None:
    config = (
        SCALE
        + """
        dynamic_batching {
          preferred_batch_size: [2, 4] max_queue_delay_microseconds: 1500 priority_levels: 3 default_priority_level: 2
          default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 2000000 max_queue_size: 7 }
          priority_queue_policy { key: 1 value { allow_timeout_override: true } }
        }
        instance_group [{ count: 2 kind: KIND_CPU }, { count: 1 kind: KIND_MODEL }, { count: 5 passive: true }]
        """
    )
    info = loaded(write_model(tmp_path, "scale", config, v1=onnx_scale())).info
    batching = info.batching
    assert batching is not None
    assert batching.max_batch_size == 8
    assert batching.preferred_batch_sizes == (2, 4)
    assert batching.max_queue_delay == pytest.approx(0.0015)
    assert (batching.priority_levels, batching.default_priority_level) == (3, 2)
    default, urgent = batching.policy(2), batching.policy(1)
    assert (default.delays, default.default_timeout, default.max_queue_size) == (True, 2.0, 7)
    assert default.timeout(0.5) == 2.0, "requests may not override it"
    assert urgent.timeout(0.5) == 0.5
    assert urgent.max_queue_size == 0
    assert info.instances == 3


def test_requests_are_merged_only_where_the_configuration_says_so(tmp_path: Path) -> None:
    alone = loaded(write_model(tmp_path, "alone", SCALE, v1=onnx_scale()))
    merged = loaded(write_model(tmp_path, "merged", SCALE + "dynamic_batching {}", v1=onnx_scale()))
    x = Encoded.of(Tensor(Datatype.FP32, np.ones((1, 3), np.float32)))
    request = Infer(number=0, parts=parts_of({"x": x}), arrived=0.0)

    def kinds(model: Loaded) -> set[Any]:
        return {model.computation.read(request, memoryview(x.data)).kind for _ in range(2)}

    assert len(kinds(alone)) == 2
    assert len(kinds(merged)) == 1


def test_ragged_inputs_share_a_batch(tmp_path: Path) -> None:
    config = """
        backend: "onnxruntime" max_batch_size: 4
        input { name: "x" data_type: TYPE_INT32 dims: -1 allow_ragged_batch: true }
        output { name: "y" data_type: TYPE_INT32 dims: 1 reshape {} }
        dynamic_batching {}
    """
    model = loaded(write_model(tmp_path, "scale", config, v1=onnx_scale(shape=("n",), kind=TensorProto.INT32)))
    assert model.info.inputs[0].ragged
