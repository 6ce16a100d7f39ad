"""Hosted models for a program of one process: supervised in its event loop, and spoken to from there."""

from dataclasses import dataclass
from types import TracebackType

from octavo.hosting.calls import Calls
from octavo.hosting.client import HostedClient
from octavo.hosting.config import HostingConfig
from octavo.hosting.ensemble import EnsembleStep
from octavo.hosting.ensemble_client import Models, StepModel, Use
from octavo.hosting.launch import hosting_spec, workers_of
from octavo.worker.control import WorkerStatus
from octavo.worker.launcher import LocalLauncher
from octavo.worker.supervisor import RestartPolicy, Supervisor


class LocalModels:
    """Hosted models in processes, for as long as the context lasts. Must be made where an event loop runs.

    Args:
        models: that those may ask; None for these themselves.
    """

    def __init__(self, models: Models | None = None, *, policy: RestartPolicy | None = None) -> None:
        self._asked = models or self
        self.supervisor = Supervisor(LocalLauncher(), policy=policy)
        self._models: dict[str, tuple[HostedClient, HostingConfig]] = {}
        self._first: dict[str, str] = {}
        self.supervisor.subscribe(self._note)

    async def __aenter__(self) -> "LocalModels":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.supervisor.stop()
        for client, _ in self._models.values():
            client.close()

    def start(self, name: str, config: HostingConfig) -> HostedClient:
        """Start a model. Returns at once; `HostedClient.ready` waits for it."""
        client = HostedClient(on_culprit=self.supervisor.culprit_found, calls=Calls(self._asked))
        self._models[name] = client, config
        self._add(name, name)
        return client

    def find(self, step: EnsembleStep) -> "LocalModel | None":
        """A model that another one asks. As `octavo.hosting.ensemble_client.Models`, as `hold` is."""
        found = self._models.get(step.model)
        return None if found is None else LocalModel(found[0])

    def hold(self, model: StepModel) -> Use:
        """They stay for as long as the context."""
        return Held()

    def _add(self, worker: str, first: str) -> None:
        client, config = self._models[first]
        self._first[worker] = first
        client.add(worker)
        self.supervisor.add(hosting_spec(worker, first, config))

    def _note(self, status: WorkerStatus) -> None:
        first = self._first[status.name]
        client, _ = self._models[first]
        client.update(status)
        if client.info is not None:  # which says how many processes there are to be
            for worker in workers_of(first, client.info.process_numbers):
                if worker not in self._first:
                    self._add(worker, first)


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model that another one asks."""

    client: HostedClient


class Held:
    """A hold on a model that stays in any case."""

    def end(self) -> None:
        """Let go of it."""
