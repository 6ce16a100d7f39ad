"""How a supervisor starts the processes of a hosted model."""

from octavo.hosting.config import HostingConfig
from octavo.hosting.start import HostingStart
from octavo.worker.control import raw
from octavo.worker.launcher import WorkerSpec


def hosting_spec(worker: str, name: str, config: HostingConfig, number: int = 1, rate_limiter: str = "") -> WorkerSpec:
    """A process of the model of that name as a worker. The other arguments are those of `HostingStart`."""
    return WorkerSpec(
        name=worker,
        module="octavo.hosting.process",
        configuration=bytes(raw(HostingStart(name=name, config=config, number=number, rate_limiter=rate_limiter))),
        # Bytecode is taken for that of a file which was written again in the same second.
        environment={"PYTHONDONTWRITEBYTECODE": "1"} if config.reload else {},
        forks=True,
    )


def workers_of(worker: str, processes: int) -> tuple[str, ...]:
    """The names of all processes of a model, the first of which is `worker`."""
    return (worker, *(f"{worker} instance {number}" for number in range(2, processes + 1)))
