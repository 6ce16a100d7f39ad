"""Engines for a program of one process: supervised in its event loop, and spoken to from there."""

from types import TracebackType

from octavo.engine.client import EngineClient
from octavo.engine.config import EngineConfig
from octavo.engine.launch import engine_spec
from octavo.worker.launcher import LocalLauncher, WorkerSpec
from octavo.worker.supervisor import RestartPolicy, Supervisor
from octavo.worker.thread import ThreadLauncher


class LocalEngines:
    """Engines in processes of their own, or on threads, for as long as the context lasts. Must be made where an event
    loop runs."""

    def __init__(self, *, on_threads: bool = False, policy: RestartPolicy | None = None) -> None:
        self.supervisor = Supervisor(ThreadLauncher() if on_threads else LocalLauncher(), policy=policy)
        self.clients: dict[str, EngineClient] = {}
        self.supervisor.subscribe(lambda status: self.clients[status.name].update(status))

    async def __aenter__(self) -> "LocalEngines":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def start(self, name: str, config: EngineConfig, *, stall_timeout: float = 60.0) -> EngineClient:
        """Start an engine. Returns at once; `EngineClient.ready` waits for it."""
        return self.start_worker(engine_spec(name, config), stall_timeout=stall_timeout)

    def start_worker(self, spec: WorkerSpec, *, stall_timeout: float = 60.0) -> EngineClient:
        """Start what speaks as an engine does."""
        client = EngineClient(stall_timeout=stall_timeout, on_culprit=lambda: self.supervisor.culprit_found(spec.name))
        self.clients[spec.name] = client
        self.supervisor.add(spec)
        return client

    async def end(self, name: str, *, drain_seconds: float = 0.0) -> None:
        """Let an engine's live requests end, at most so long, abort the rest and end its process."""
        if drain_seconds > 0:
            await self.clients[name].drain(drain_seconds)
        await self.supervisor.remove(name)
        del self.clients[name]

    async def stop(self) -> None:
        """End all engines and abort what they are computing."""
        await self.supervisor.stop()
        self.clients.clear()
