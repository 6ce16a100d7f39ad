from collections.abc import Iterator

import grpc
import pytest
import tritonclient.grpc as client

from tests.server.grpc.serving import Served, models, serving


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    with serving(*models()) as found:
        yield found


@pytest.fixture(scope="session")
def triton(served: Served) -> Iterator[client.InferenceServerClient]:
    with client.InferenceServerClient(served.address) as found:
        yield found


@pytest.fixture(scope="session")
def channel(served: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(served.address) as found:
        yield found
