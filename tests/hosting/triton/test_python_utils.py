"""What models import as `triton_python_backend_utils`, without a server."""

import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.triton.python_backend import utils as pb_utils
from octavo.hosting.triton.python_backend.metrics import registry

DTYPES = [np.bool_, *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8", object]


def refused(work: Callable[[], object], kind: type[Exception] = pb_utils.TritonModelException) -> str:
    with pytest.raises(kind) as caught:
        work()
    return str(caught.value)


# --- tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_types_have_numbers_names_and_dtypes(dtype: Any) -> None:
    tensor = pb_utils.Tensor("x", np.zeros((2, 3), dtype))
    number = pb_utils.numpy_to_triton_type(np.dtype(dtype))
    assert tensor.triton_dtype() == number
    assert np.dtype(pb_utils.triton_to_numpy_type(number)) == np.dtype(dtype)
    assert (tensor.name(), tensor.shape(), tensor.is_cpu()) == ("x", [2, 3], True)
    assert tensor.as_numpy().dtype == np.dtype(dtype)


def test_names_of_configurations_are_dtypes() -> None:
    for name, dtype in pb_utils.TRITON_STRING_TO_NUMPY.items():
        assert pb_utils.triton_string_to_numpy(name) is dtype
        datatype = Datatype.BYTES if name == "TYPE_STRING" else Datatype(name.removeprefix("TYPE_"))
        assert np.dtype(dtype) == datatype.dtype


def test_tensors_that_cannot_be() -> None:
    array = np.zeros(2, np.float32)
    assert refused(lambda: pb_utils.Tensor("", array)) == "Tensor name cannot be an empty string."
    assert "NumPy dtype is not supported" in refused(lambda: pb_utils.Tensor("x", np.array(["text"])))
    assert "NumPy dtype is not supported" in refused(lambda: pb_utils.Tensor("x", np.array([1j])))
    refused(lambda: pb_utils.Tensor("x", [1.0]), TypeError)  # type: ignore[arg-type]


def test_arrays_need_not_be_contiguous() -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2]
    part, data = pb_utils.Tensor("x", array).to_part(array)
    assert (part.shape, part.size) == ((3, 2), 24)
    assert np.frombuffer(data, np.int32).tolist() == array.ravel().tolist()


@given(st.lists(st.one_of(st.binary(max_size=9), st.text(max_size=9), st.integers(), st.none()), max_size=6))
def test_elements_of_any_kind_are_bytes_in_the_end(elements: list[Any]) -> None:
    array = np.empty(len(elements), object)
    array[:] = elements
    expected = [each if isinstance(each, bytes) else str(each).encode() for each in elements]
    encoded = pb_utils.serialize_byte_tensor(array)
    if not elements:
        assert encoded == ()
        return
    assert pb_utils.deserialize_bytes_tensor(encoded).tolist() == expected
    _, data = pb_utils.Tensor("x", array).to_part(array)
    assert data == encoded


def test_other_arrays_have_no_form_as_bytes() -> None:
    assert pb_utils.serialize_byte_tensor(np.zeros(2)) is None
    assert pb_utils.serialize_byte_tensor(np.array([b"ab", b"c"])) == b"\2\0\0\0ab\1\0\0\0c"


# --- DLPack -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8])
def test_tensors_of_libraries_share_their_memory(dtype: torch.dtype) -> None:
    theirs = torch.arange(6).reshape(2, 3).to(dtype)
    tensor = pb_utils.Tensor.from_dlpack("x", theirs)
    assert tensor.shape() == [2, 3]
    for back in (torch.from_dlpack(tensor.to_dlpack()), torch.from_dlpack(tensor)):
        assert back.dtype is dtype
        assert torch.equal(back, theirs)
        assert back.data_ptr() == theirs.data_ptr()
    capsule = torch.utils.dlpack.to_dlpack(theirs)
    assert torch.equal(torch.from_dlpack(pb_utils.Tensor.from_dlpack("x", capsule)), theirs)


def test_bfloat16_is_no_array() -> None:
    tensor = pb_utils.Tensor.from_dlpack("x", torch.ones(2, dtype=torch.bfloat16))
    assert "Tensor dtype is BF16 and cannot be converted to NumPy" in refused(tensor.as_numpy)
    part, data = tensor.to_part(tensor.array)
    assert (part.datatype, bytes(data)) == (Datatype.BF16, b"\x80\x3f\x80\x3f")


def test_what_dlpack_cannot_do() -> None:
    from_dlpack = pb_utils.Tensor.from_dlpack
    assert "only contiguous" in refused(lambda: from_dlpack("x", torch.ones(2, 3).T)).lower()
    assert "must be a DLPack capsule" in refused(lambda: from_dlpack("x", [1.0]))
    assert refused(lambda: from_dlpack("", torch.ones(2))) == "Tensor name cannot be an empty string."
    assert "complex64" in refused(lambda: from_dlpack("x", torch.ones(2, dtype=torch.complex64)))
    texts = pb_utils.Tensor("x", np.array([b"a"], object))
    assert refused(texts.to_dlpack) == "DLPack does not have support for string tensors."


# --- requests and responses -------------------------------------------------------------------------------------------


def test_responses() -> None:
    tensor = pb_utils.Tensor("y", np.zeros(1, np.float32))
    response = pb_utils.InferenceResponse([tensor], parameters={"a": 1, "b": "c", "d": True})
    assert response.output_tensors() == [tensor]
    assert not response.has_error()
    assert response.error() is None
    assert json.loads(response.parameters()) == {"a": 1, "b": "c", "d": True}
    assert pb_utils.get_output_tensor_by_name(response, "y") is tensor
    assert pb_utils.get_output_tensor_by_name(response, "z") is None
    assert pb_utils.InferenceResponse().parameters() == "{}"
    message = refused(lambda: pb_utils.InferenceResponse([None]))  # type: ignore[list-item]
    assert message == "Output tensor for inference response should not be empty."
    refused(lambda: pb_utils.InferenceResponse([1]), TypeError)  # type: ignore[list-item]
    refused(lambda: pb_utils.InferenceResponse(error="no"), TypeError)  # type: ignore[arg-type]
    for parameters, about in (({1: 2}, "keys"), ({"a": [1]}, "values"), ({"a": 2**63}, "64 bits")):
        assert about in refused(lambda given=parameters: pb_utils.InferenceResponse([], parameters=given))


def test_errors_have_codes() -> None:
    assert pb_utils.TritonError("why").code() == pb_utils.TritonError.INTERNAL
    for name in ("UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED", "CANCELLED"):
        error = pb_utils.TritonError("why", getattr(pb_utils.TritonError, name))
        assert (error.message(), error.code().name) == ("why", name)
        sent = error.to_inference_error()
        assert pb_utils.TritonError.of(sent).code() is error.code()
    assert pb_utils.TritonError.of(InferenceError("x", Code.UNAVAILABLE)).code() == pb_utils.TritonError.UNAVAILABLE
    refused(lambda: pb_utils.TritonError(5), TypeError)  # type: ignore[arg-type]


def test_requests_of_a_model_s_own() -> None:
    x = pb_utils.Tensor("x", np.zeros(1, np.float32))
    request = pb_utils.InferenceRequest("id", 7, [x], ["y"], b"other", 2, 1, 30, parameters={"a": 1})  # type: ignore[arg-type]
    assert (request.request_id(), request.correlation_id(), request.flags(), request.timeout()) == ("id", 7, 1, 30)
    assert (request.model_name(), request.model_version()) == ("other", 2)
    assert request.requested_output_names() == {"y"}
    assert json.loads(request.parameters()) == {"a": 1}
    assert pb_utils.get_input_tensor_by_name(request, "x") is x
    request.set_flags(pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END)
    assert request.flags() == 2
    assert not request.is_cancelled()
    assert request.trace().get_context() is None
    assert "needs" in refused(lambda: pb_utils.InferenceRequest(inputs=[]), TypeError)
    wrong = {"inputs": [], "requested_output_names": [], "model_name": "m", "correlation_id": 1.5}
    assert refused(lambda: pb_utils.InferenceRequest(**wrong)) == "Correlation ID must be integer or string"
    assert refused(request.exec) == "BLS is only supported during the 'execute' function."


# --- configurations ---------------------------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    "name": "m",
    "max_batch_size": 4,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}],
    "output": [],
}
Y = {"name": "y", "data_type": "TYPE_FP32", "dims": [1]}


def test_a_configuration_is_completed() -> None:
    config = pb_utils.ModelConfig(json.dumps(CONFIG))
    config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [4], "optional": True})
    config.add_output(dict(Y))
    config.set_max_batch_size(8)
    config.set_dynamic_batching()
    config.set_model_transaction_policy({"decoupled": True})
    found = config.as_dict()
    assert found["max_batch_size"] == 8
    assert found["dynamic_batching"] == {}
    assert pb_utils.using_decoupled_model_transaction_policy(found)
    x = pb_utils.get_input_config_by_name(found, "x")
    assert x is not None
    assert x["optional"] is True
    assert pb_utils.get_output_config_by_name(found, "y") == Y
    assert pb_utils.get_output_config_by_name(found, "z") is None
    assert not pb_utils.using_decoupled_model_transaction_policy(CONFIG)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda c: c.set_max_batch_size(2), "configuration specified max_batch_size 4, but in auto-complete-config"),
        (lambda c: c.add_input({"name": "x"}), "input 'x' in auto-complete-config function for model 'm' is missing"),
        (lambda c: c.add_input({"data_type": "TYPE_FP32"}), "is missing 'name' property."),
        (
            lambda c: c.add_output({**Y, "optional": True}),
            "contains property other than 'name', 'data_type' and 'dims'",
        ),
        (
            lambda c: c.add_input({"name": "x", "data_type": "TYPE_INT8", "dims": [4]}),
            "configuration expects datatype TYPE_FP32 for input 'x', model provides TYPE_INT8",
        ),
        (
            lambda c: c.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [5]}),
            "the model expects dims [5] but the model configuration specifies dims [4]",
        ),
        (lambda c: c.set_model_transaction_policy({"other": 1}), "contains property other than 'decoupled'."),
    ],
)
def test_what_a_model_may_not_complete(act: Callable[[pb_utils.ModelConfig], None], message: str) -> None:
    config = pb_utils.ModelConfig(json.dumps(CONFIG))
    assert message in refused(lambda: act(config), ValueError)
    assert config.as_dict() == CONFIG


def test_schedulers_and_policies_that_are_there_stay() -> None:
    config = pb_utils.ModelConfig(
        json.dumps({**CONFIG, "sequence_batching": {}, "model_transaction_policy": {"decoupled": False}})
    )
    assert "'sequence_batching'" in refused(config.set_dynamic_batching, ValueError)
    policy = {"decoupled": True}
    assert "already set to 'False'" in refused(lambda: config.set_model_transaction_policy(policy), ValueError)


# --- figures, and the log ---------------------------------------------------------------------------------------------


def test_figures() -> None:
    family = pb_utils.MetricFamily("things", "Some.", pb_utils.MetricFamily.COUNTER)
    count = family.Metric(labels={"a": "b"})
    count.increment(2)
    count.increment(0.5)
    assert count.value() == 2.5
    again = family.Metric(labels={"a": "b"})
    again.increment(1)
    assert count.value() == again.value() == 3.5
    assert family.Metric(labels={"a": "c"}).value() == 0
    assert "does not support negative increments" in refused(lambda: count.increment(-1))
    assert "Unsupported" in refused(lambda: count.set(1))
    assert "Unsupported" in refused(lambda: count.observe(1))
    gauge = pb_utils.MetricFamily("level", "Of it.", pb_utils.MetricFamily.GAUGE)
    level = gauge.Metric()
    level.set(5)
    level.increment(-7)
    assert level.value() == -2
    sizes = pb_utils.MetricFamily("sizes", "Of all.", pb_utils.MetricFamily.HISTOGRAM)
    size = sizes.Metric(buckets=[1, 2])
    size.observe(2)
    assert "Unsupported" in refused(size.value)
    shown = {each.name: each.samples[0] for each in registry.collect() if each.name in ("things", "level", "sizes")}
    assert shown["things"].labels == {"a": "b"}
    assert shown["sizes"].buckets == (0, 1, 0)
    del family
    assert "should be deleted AFTER" in refused(count.value)
    assert "things" not in {each.name for each in registry.collect()}


def test_figures_that_cannot_be() -> None:
    kinds = pb_utils.MetricFamily
    refused(lambda: kinds("no name", "", kinds.GAUGE))
    family = kinds("twice", "", kinds.GAUGE)
    assert "is a GAUGE" in refused(lambda: kinds("twice", "", kinds.COUNTER))
    assert "Unexpected buckets" in refused(lambda: family.Metric(buckets=[1]))
    histogram = kinds("histogram", "", kinds.HISTOGRAM)
    assert "Must specify buckets" in refused(histogram.Metric)
    assert "do not rise" in refused(lambda: histogram.Metric(buckets=[2, 1]))
    assert "no label" in refused(lambda: family.Metric(labels={"a b": "c"}))


def test_the_log(caplog: pytest.LogCaptureFixture) -> None:
    logger = pb_utils.Logger
    with caplog.at_level(logging.DEBUG, "octavo.model"):
        logger.log("plain 100%")
        logger.log("warned", logger.WARNING)
        logger.log_info("info")
        logger.log_warn("warn")
        logger.log_error("error")
        logger.log_verbose("verbose")
    levels = [logging.INFO, logging.WARNING, logging.INFO, logging.WARNING, logging.ERROR, logging.DEBUG]
    assert [each.levelno for each in caplog.records] == levels
    assert caplog.records[0].getMessage() == "plain 100%"
