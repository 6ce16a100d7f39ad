"""`octavo serve` with its port for gRPC: shared by the processes that speak HTTP, taken before anything is loaded."""

import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as client

from octavo.server.listener import bind
from tests.cli.command import octavo_process, one_line
from tests.hosting.served import APP
from tests.server.conftest import eventually
from tests.server.grpc.test_infer import tensor
from tests.worker.servers import serving

SENT = np.array([[1.5, -2.0]], np.float32)


def answers(address: str) -> bool:
    """Whether a client that has just come gets back what it sends."""
    with client.InferenceServerClient(address) as own:
        return own.infer("identity", [tensor("x", SENT, "FP32")]).as_numpy("output").tolist() == SENT.tolist()


def test_frontends_share_the_port() -> None:
    """Whichever answers; and if one dies, its heir listens there again."""
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    with serving(f"{APP}:identity", "--grpc-port", port, "--api-workers", 2) as server:
        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(answers, [address] * 16))
        before = server.frontends
        before[0].kill()
        eventually(lambda: bool(set(server.frontends) - set(before)), 30)
        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(answers, [address] * 16))
        server.process.terminate()
        assert server.process.wait(30) == 0


def test_a_port_in_use_is_one_line() -> None:
    with bind("127.0.0.1", 0) as other:
        port = str(other.getsockname()[1])
        said = one_line(octavo_process("serve", f"{APP}:identity", "--port", "0", "--grpc-port", port))
        assert f"cannot listen on 127.0.0.1 port {port} for gRPC: Address already in use" in said
        assert "choose another with --grpc-port; 0 is none" in said


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_large_requests_is_used_again() -> None:
    """Memory that is given back to the system, and taken again page by page, would cost more than the request."""
    large = np.arange(2**20, dtype=np.float32)[None]
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    with serving(f"{APP}:identity", "--grpc-port", port) as server:
        [frontend] = server.frontends
        with client.InferenceServerClient(f"127.0.0.1:{port}") as own:

            def faults(requests: int) -> int:
                before = int(Path(f"/proc/{frontend.pid}/stat").read_text().rpartition(")")[2].split()[7])
                for _ in range(requests):
                    own.infer("identity", [tensor("x", large, "FP32")])
                return int(Path(f"/proc/{frontend.pid}/stat").read_text().rpartition(")")[2].split()[7]) - before

            faults(10)
            assert faults(20) < 20 * large.nbytes / resource.getpagesize() / 2
