"""One server with fake hosted models for all tests, which leave them as they found them."""

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.batching import Batching
from octavo.hosting.datatypes import Datatype
from octavo.hosting.info import HostedInfo
from octavo.hosting.signature import TensorSpec
from octavo.hosting.tensors import Encoded, Tensor
from octavo.server.settings import ServerSettings
from tests.server.fake import running
from tests.server.inference.fake import FakeClient, deployed, fake, identity

MAX_BODY = 4 * 2**20


def _make() -> list[HostedDeployment]:
    words = HostedInfo(
        name="words",
        runtime="python",
        platform="python",
        inputs=(
            TensorSpec(name="text_input", datatype=Datatype.BYTES, dims=(1,)),
            TensorSpec(name="count", datatype=Datatype.INT32, dims=(1,), optional=True),
        ),
        outputs=(TensorSpec(name="text_output", datatype=Datatype.BYTES, dims=(1,)),),
        streams=True,
    )
    classes = HostedInfo(
        name="classes",
        runtime="python",
        platform="python",
        inputs=(TensorSpec(name="IN", datatype=Datatype.FP32, dims=(3,)),),
        outputs=(TensorSpec(name="OUT", datatype=Datatype.FP32, dims=(3,), labels=("cat", "dog", "cow")),),
        batching=Batching(max_batch_size=8),
    )
    json_model = HostedInfo(
        name="json", runtime="python", platform="python", inputs=(), outputs=(), body={"type": "object"}
    )
    return [
        *(identity(each.value, {"IN": (each, None)}) for each in Datatype),
        identity(
            "pair", {"IN": (Datatype.FP32, (2,)), "IN2": (Datatype.INT64, (-1,))}, batching=Batching(max_batch_size=4)
        ),
        identity("org/slash.v1-x", {"IN": (Datatype.FP32, (2, -1))}),
        deployed(classes, lambda given: {"OUT": given["IN"]}),
        deployed(words, lambda given: {"text_output": given["text_input"]}),
        deployed(json_model, lambda given: {}),
    ]


@pytest.fixture(scope="session")
def _models() -> dict[str, HostedDeployment]:
    return {each.name: each for each in _make()}


@pytest.fixture(scope="session")
def hosted_url(_models: dict[str, HostedDeployment]) -> Iterator[str]:
    settings = ServerSettings(allow_client_shm=True, max_tensor_body_bytes=MAX_BODY)
    with running(settings, *_models.values()) as url:
        yield url


@pytest.fixture
def models(_models: dict[str, HostedDeployment]) -> Iterator[dict[str, FakeClient]]:
    """The clients by the names of their models."""
    found = {name: fake(each) for name, each in _models.items()}
    yield found
    for each in found.values():
        each.error = each.hold = None
        each.results = 1


@pytest.fixture(scope="session")
def web(hosted_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=hosted_url, timeout=20) as client:
        yield client


@pytest.fixture(scope="session")
def client(hosted_url: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(hosted_url.removeprefix("http://"), concurrency=4) as client:
        yield client


def floats(*values: float) -> Encoded:
    """One row."""
    return Encoded.of(Tensor(Datatype.FP32, np.array([values], "f4")))
