"""What the server says of itself, of its models and of their state; health and reflection as others ask for them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as client
import tritonclient.utils.shared_memory as shm
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

import octavo.protos
from octavo import __version__
from octavo.hosting.datatypes import Datatype
from octavo.worker.control import WorkerState
from tests.server.grpc.serving import SAMPLES, Served, models, serving
from tests.server.grpc.test_infer import tensor

FOLDER = Path(octavo.protos.__file__).parent


def test_the_compiled_messages_are_those_of_the_files(tmp_path: Path) -> None:
    """`make protos` was run."""
    names = ["inference.proto", "health.proto", "reflection.proto"]
    options = [
        "-m",
        "grpc_tools.protoc",
        f"-I{FOLDER}",
        "--include_imports",
        f"--descriptor_set_out={tmp_path}/compiled",
    ]
    subprocess.run([sys.executable, *options, *names], check=True)
    assert (tmp_path / "compiled").read_bytes() == (FOLDER / "compiled.binpb").read_bytes()


def test_messages_are_those_of_tritons_client() -> None:
    """By their names, fields and numbers, in Triton's own compilation of them."""
    from octavo.protos.messages import pool

    for theirs in service_pb2.DESCRIPTOR.message_types_by_name.values():
        ours = pool.FindMessageTypeByName(theirs.full_name)
        known = {each.name: (each.number, each.type, each.is_repeated) for each in ours.fields}
        assert {
            each.name: (each.number, each.type, each.is_repeated) for each in theirs.fields
        }.items() <= known.items()


def test_the_server(triton: client.InferenceServerClient) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    metadata = triton.get_server_metadata()
    assert metadata.version == __version__
    assert "binary_tensor_data" in metadata.extensions


def test_models(triton: client.InferenceServerClient, served: Served) -> None:
    assert triton.is_model_ready("pair", "1")
    metadata = triton.get_model_metadata("pair")
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [
        ("A", "FP32", [-1, -1]),
        ("B", "INT32", [-1, 2]),
    ]
    config = triton.get_model_config("pair").config
    assert (config.max_batch_size, config.input[1].optional) == (8, True)
    assert triton.get_model_config("count").config.model_transaction_policy.decoupled
    triton.infer("pair", [tensor("A", SAMPLES[Datatype.FP32], "FP32")])
    (stats,) = triton.get_inference_statistics("pair").model_stats
    assert stats.inference_stats.success.count == stats.execution_count > 0
    assert len(triton.get_inference_statistics().model_stats) == len(served.models)
    assert not triton.is_model_ready("nope")
    assert not triton.is_model_ready("pair", "2")
    with pytest.raises(InferenceServerException, match="unknown model: 'nope'"):
        triton.get_model_metadata("nope")
    with pytest.raises(InferenceServerException, match="Unable to find cuda shared memory region: 'nope'"):
        triton.get_cuda_shared_memory_status("nope")


def test_the_repository(triton: client.InferenceServerClient, served: Served) -> None:
    broken = served.models["BOOL"].client
    broken.state, broken.failure = WorkerState.FAILED, "it has no weights"
    try:
        index = {each.name: (each.state, each.reason) for each in triton.get_model_repository_index().models}
        assert index["BOOL"] == ("UNAVAILABLE", "it has no weights")
        assert index["FP32"] == ("READY", "")
        assert not triton.is_model_ready("BOOL")
        assert not triton.is_server_ready()
        with pytest.raises(InferenceServerException, match="it has no weights"):
            triton.get_model_metadata("BOOL")
    finally:
        broken.state, broken.failure = WorkerState.READY, None
    for change in (triton.load_model, triton.unload_model):
        with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed") as refusal:
            change("FP32")
        assert refusal.value.status() == "StatusCode.UNAVAILABLE"


def test_settings_that_are_fixed(triton: client.InferenceServerClient) -> None:
    assert triton.get_trace_settings().settings["trace_level"].value == ["OFF"]
    assert triton.get_log_settings().settings["log_info"].bool_param
    with pytest.raises(InferenceServerException, match="does not support trace"):
        triton.update_trace_settings(settings={"trace_rate": "1"})
    with pytest.raises(InferenceServerException, match="does not support dynamic logging"):
        triton.update_log_settings({"log_info": False})


def test_shared_memory_is_closed_unless_it_is_opened(triton: client.InferenceServerClient) -> None:
    assert not triton.get_system_shared_memory_status().regions
    assert not triton.get_cuda_shared_memory_status().regions
    with pytest.raises(InferenceServerException, match="--allow-client-shm") as refusal:
        triton.register_system_shared_memory("r", "/r", 64)
    assert refusal.value.status() == "StatusCode.UNIMPLEMENTED"
    with pytest.raises(InferenceServerException, match="GPUs not supported"):
        triton.register_cuda_shared_memory("r", b"abcd", 0, 64)


def test_tensors_in_shared_memory() -> None:
    sent = SAMPLES[Datatype.FP32]
    region = shm.create_shared_memory_region("both", "/octest_grpc", 2 * sent.nbytes)
    try:
        shm.set_shared_memory_region(region, [sent])
        with serving(*models(), allow_client_shm=True) as served, served.client() as own:
            own.register_system_shared_memory("both", "/octest_grpc", 2 * sent.nbytes)
            assert own.get_system_shared_memory_status().regions["both"].byte_size == 2 * sent.nbytes
            given = client.InferInput("IN", list(sent.shape), "FP32")
            given.set_shared_memory("both", sent.nbytes)
            wanted = client.InferRequestedOutput("OUT")
            wanted.set_shared_memory("both", sent.nbytes, sent.nbytes)
            result = own.infer("FP32", [given], outputs=[wanted])
            found = shm.get_contents_as_numpy(region, sent.dtype, list(sent.shape), sent.nbytes)
            assert found.tobytes() == sent.tobytes()
            assert result.get_response().raw_output_contents == [b""]
            own.unregister_system_shared_memory()
            with pytest.raises(InferenceServerException, match="Unable to find shared memory region: 'both'"):
                own.infer("FP32", [given])
    finally:
        shm.destroy_shared_memory_region(region)


def test_health(channel: grpc.Channel, served: Served) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    ask = health_pb2.HealthCheckRequest
    for name in ("", "inference.GRPCInferenceService", "FP32"):
        assert stub.Check(ask(service=name)).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as unknown:
        stub.Check(ask(service="nope"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(ask(service="INT8"), timeout=20)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    served.models["INT8"].client.state = WorkerState.RESTARTING
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    served.models["INT8"].client.state = WorkerState.READY
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    assert next(stub.Watch(ask(service="nope"), timeout=20)).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def test_reflection(channel: grpc.Channel) -> None:
    """A client that knows nothing finds the methods and their messages, and calls one."""
    found = ProtoReflectionDescriptorDatabase(channel)
    assert set(found.get_services()) == {
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    }
    pool: Any = DescriptorPool(found)
    method = pool.FindServiceByName("inference.GRPCInferenceService").FindMethodByName("ModelReady")
    asked, answered = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelReady",
        request_serializer=asked.SerializeToString,
        response_deserializer=answered.FromString,
    )
    assert call(asked(name="FP32")).ready
    with pytest.raises(KeyError):
        pool.FindServiceByName("no.such.Service")


def test_methods_that_are_not_there(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary("/inference.GRPCInferenceService/Nothing")(b"", timeout=20)
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    with pytest.raises(grpc.RpcError) as refusal:
        stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(repository_name="other"))
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
