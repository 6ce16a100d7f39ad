"""What models say of themselves, read by Triton's own message definitions."""

import json

import pytest
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2, service_pb2

from octavo.deployments import Deployments
from octavo.hosting.batching import Batching, QueuePolicy
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import BatchStatistics
from octavo.server.inference.lookup import find, loaded
from octavo.server.inference.metadata import model_metadata, repository_index, server_metadata
from octavo.server.inference.model_config import model_config
from octavo.server.inference.model_stats import model_stats
from octavo.server.inference.parameters import options
from octavo.worker.control import WorkerState
from tests.server.inference.fake import fake, identity

BATCHING = Batching(
    max_batch_size=8,
    preferred_batch_sizes=(4, 8),
    max_queue_delay=1e-4,
    priority_levels=3,
    default_priority_level=2,
    default_policy=QueuePolicy(delays=True, default_timeout=0.1, max_queue_size=10),
    policies={1: QueuePolicy(max_queue_size=5, allow_timeout_override=False)},
)


def test_a_configuration_is_tritons() -> None:
    model = identity("m", {"IN": (Datatype.BYTES, (-1, 3)), "IN2": (Datatype.FP16, None)}, batching=BATCHING)
    info = loaded(model)
    config = json_format.Parse(json.dumps(model_config(model, info)), model_config_pb2.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("m", "python", 8)
    assert [(each.name, each.data_type, list(each.dims)) for each in config.input] == [
        ("IN", model_config_pb2.TYPE_STRING, [-1, 3]),
        ("IN2", model_config_pb2.TYPE_FP16, [-1]),
    ]
    batching = config.dynamic_batching
    assert list(batching.preferred_batch_size) == [4, 8]
    assert (batching.max_queue_delay_microseconds, batching.priority_levels) == (100, 3)
    assert batching.default_queue_policy.timeout_action == model_config_pb2.ModelQueuePolicy.DELAY
    assert batching.default_queue_policy.default_timeout_microseconds == 100_000
    assert batching.priority_queue_policy[1].max_queue_size == 5
    assert config.instance_group[0].count == 1


@pytest.mark.parametrize("datatype", list(Datatype))
def test_every_datatype_has_a_name_in_configurations(datatype: Datatype) -> None:
    model = identity("m", {"IN": (datatype, (1,))}, streams=True)
    config = json_format.Parse(json.dumps(model_config(model, loaded(model))), model_config_pb2.ModelConfig())
    assert config.input[0].data_type != model_config_pb2.TYPE_INVALID
    assert config.model_transaction_policy.decoupled
    assert not config.HasField("dynamic_batching")


def test_statistics_are_tritons() -> None:
    model = identity("m", {"IN": (Datatype.FP32, (1,))})
    seen = model.client.statistics
    seen.success, seen.failure, seen.inferences, seen.executions, seen.last = 3, 1, 5, 2, 1.5
    seen.success_time, seen.queue, seen.compute = 30, 10, 20
    seen.batches |= {4: BatchStatistics(1, 12), 1: BatchStatistics(1, 8)}
    found = json_format.Parse(
        json.dumps({"model_stats": [model_stats(model, seen)]}), service_pb2.ModelStatisticsResponse()
    ).model_stats[0]
    assert (found.name, found.version, found.last_inference) == ("m", "1", 1500)
    assert (found.inference_count, found.execution_count) == (5, 2)
    stats = found.inference_stats
    assert (stats.success.count, stats.success.ns, stats.fail.count) == (3, 30, 1)
    assert (stats.queue.ns, stats.compute_infer.ns) == (10, 20)
    assert [(each.batch_size, each.compute_infer.ns) for each in found.batch_stats] == [(1, 8), (4, 12)]


def test_metadata_is_the_protocols() -> None:
    model = identity("m", {"IN": (Datatype.INT8, (2, -1))}, batching=BATCHING)
    found = json_format.Parse(json.dumps(model_metadata(model, loaded(model))), service_pb2.ModelMetadataResponse())
    assert (found.name, list(found.versions), found.platform) == ("m", ["1"], "python")
    assert [(each.name, each.datatype, list(each.shape)) for each in found.inputs] == [("IN", "INT8", [-1, 2, -1])]
    json_format.Parse(json.dumps(server_metadata("mine")), service_pb2.ServerMetadataResponse())


def test_the_index_says_why_a_model_is_not_there() -> None:
    well, ill = (identity(name, {"IN": (Datatype.FP32, (1,))}) for name in ("well", "ill"))
    fake(ill).state, fake(ill).failure = WorkerState.FAILED, "no such file"
    assert repository_index([well, ill]) == [
        {"name": "ill", "version": "1", "state": "UNAVAILABLE", "reason": "no such file"},
        {"name": "well", "version": "1", "state": "READY"},
    ]
    assert [each["name"] for each in repository_index([well, ill], ready=True)] == ["well"]
    with pytest.raises(InferenceError, match="not at ready state: no such file") as found:
        loaded(ill)
    assert found.value.code is Code.UNAVAILABLE


def test_models_are_found_by_name_and_version() -> None:
    model = identity("m", {"IN": (Datatype.FP32, (1,))})
    offered = Deployments()
    offered.offer([model])
    assert find(offered, "m") is find(offered, "m", "1") is model
    for name, version, message in (("n", "", "'n' is not found"), ("m", "2", "'m' version 2 is not found")):
        with pytest.raises(InferenceError, match=f"Request for unknown model: {message}") as found:
            find(offered, name, version)
        assert found.value.code is Code.NOT_FOUND
    with pytest.raises(InferenceError, match="version should be an integral value"):
        find(offered, "m", "x")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"triton_x": 1}, "reserved for Triton usage"),
        ({"x": [1]}, "'x' has invalid type"),
        ({"x": None}, "'x' has invalid type"),
        ({"priority": -1}, "Unable to parse 'priority'"),
        ({"priority": True}, "Unable to parse 'priority'"),
        ({"priority": 2**64}, "Unable to parse 'priority'"),
        ({"timeout": "1"}, "Unable to parse 'timeout'"),
        ({"timeout": 1.0}, "Unable to parse 'timeout'"),
        ({"sequence_id": 1.5}, "Unable to parse 'sequence_id'"),
        ({"sequence_start": 1}, "Unable to parse 'sequence_start'"),
    ],
)
def test_parameters_have_the_types_that_they_must(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(InferenceError, match=message):
        options(parameters)


def test_the_timeout_is_microseconds() -> None:
    found = options({"priority": 2, "timeout": 1500, "mine": "x", "sequence_id": "a", "sequence_end": True})
    assert (found.priority, found.timeout) == (2, 0.0015)
