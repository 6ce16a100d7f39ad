"""How a supervisor starts the processes of a hosted model."""

from collections.abc import Iterable

from octavo.hosting.config import HostingConfig
from octavo.hosting.start import HostingStart
from octavo.worker.control import raw
from octavo.worker.launcher import WorkerSpec


def hosting_spec(worker: str, name: str, config: HostingConfig, number: int = 1, rate_limiter: str = "") -> WorkerSpec:
    """A process of the model of that name as a worker. The other arguments are those of `HostingStart`."""
    return spec_of(worker, HostingStart(name=name, config=config, number=number, rate_limiter=rate_limiter))


def spec_of(worker: str, start: HostingStart) -> WorkerSpec:
    """A process of a model as a worker."""
    return WorkerSpec(
        name=worker,
        module="octavo.hosting.process",
        configuration=bytes(raw(start)),
        # Bytecode is taken for that of a file which was written again in the same second.
        environment={"PYTHONDONTWRITEBYTECODE": "1"} if start.config.reload else {},
        forks=True,
    )


def worker_of(worker: str, number: int) -> str:
    """The name of a model's process of a number, the first of which is `worker`."""
    return worker if number == 1 else f"{worker} instance {number}"


def workers_of(worker: str, numbers: Iterable[int]) -> tuple[str, ...]:
    """The names of several."""
    return tuple([worker_of(worker, number) for number in numbers])
