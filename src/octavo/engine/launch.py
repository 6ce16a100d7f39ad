"""How a supervisor starts an engine."""

from octavo.engine.config import EngineConfig
from octavo.worker.control import raw
from octavo.worker.launcher import WorkerSpec


def engine_spec(name: str, config: EngineConfig) -> WorkerSpec:
    """An engine as a worker of that name."""
    return WorkerSpec(
        name=name,
        module="octavo.engine.process",
        configuration=bytes(raw(config)),
        # Backends have threads of their own; those of a BLAS contend with them, and their number changes the last bits.
        environment={"OPENBLAS_NUM_THREADS": "1"},
    )
