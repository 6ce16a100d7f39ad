"""What administrators do with deployments while a server runs: loading, replacing and unloading them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from octavo.deployments.control import (
    NOT_CONTROLLED,
    Applied,
    ChangeLogging,
    Describe,
    Description,
    Entry,
    Gather,
    Load,
    LoadModel,
    Outcome,
    Role,
    Unload,
    UnloadModel,
    Wish,
    decode_message,
)
from octavo.deployments.entries import Entries, Refused, hosted_facts
from octavo.deployments.frontends import Frontends
from octavo.deployments.hosted_settings import (
    HOSTED_SETTINGS,
    AnySettings,
    HostedSettings,
    expand,
    is_hosted,
    resolve_hosted,
)
from octavo.deployments.resources import divide
from octavo.deployments.server_log import ServerLog
from octavo.deployments.settings import DEPLOYMENT_SETTINGS, require_distinct_names, resolve_deployment
from octavo.deployments.threads import in_thread
from octavo.deployments.trace_settings import ChangeTracing
from octavo.deployments.tracing import ServerTracing
from octavo.engine.config import ModelInfo
from octavo.errors import ConfigError, OctavoError
from octavo.settings import Source, from_table, require_known
from octavo.worker.control import WorkerState, WorkerStatus, raw

if TYPE_CHECKING:  # with protobuf and numpy, which who serves no repository need not load
    from octavo.deployments.repository import Repository

log = logging.getLogger(__name__)


class DeploymentManager:
    """Does what frontends ask their supervisor for.

    Args:
        entries: what is served. repository: of models, if there is one.
        frontends: what they know. server_log: of all processes. tracing: of requests.
        deployments: from the start on; where their models lie is known.
        sources: the command line and the environment, which hold for deployments that come later, too.
        locate: finds a model on this machine, or fetches it. Called in a thread. Raises OctavoError.
    """

    def __init__(
        self,
        entries: Entries,
        deployments: Sequence[AnySettings],
        *,
        sources: Sequence[Source],
        locate: Callable[[str], Path],
        frontends: Frontends,
        server_log: ServerLog,
        tracing: ServerTracing,
        repository: "Repository | None" = None,
    ) -> None:
        self._entries = entries
        self._repository = repository
        self._frontends = frontends
        self._server_log = server_log
        self._tracing = tracing
        self._sources = [_without_names(source) for source in sources]
        self._locate = locate
        self._changing: str | None = None
        for settings in deployments:
            entries.start(settings, Role.OFFERED)

    # --- what frontends say -------------------------------------------------------------------------------------------

    async def handle(self, frontend: str, payload: msgspec.Raw) -> msgspec.Raw:
        """Answer a frontend."""
        message = decode_message(payload)
        if isinstance(message, Applied):
            await self._entries.note_applied(frontend, message)
            return raw(None)
        if isinstance(message, Gather):
            return raw(await self._frontends.ask_others(frontend, message.what))
        try:
            return raw(await self._fulfil(message))
        except Refused as error:
            return raw(Outcome(error=str(error), status=error.status))
        except OctavoError as error:
            return raw(Outcome(error=str(error), status=400))

    async def _fulfil(self, wish: Wish) -> Outcome:
        if isinstance(wish, LoadModel | UnloadModel):
            await self._control(wish)
            return Outcome()
        if isinstance(wish, ChangeLogging):
            await self._server_log.change(wish)
            return Outcome()
        if isinstance(wish, ChangeTracing):
            await self._tracing.change(wish)
            return Outcome()
        if isinstance(wish, Describe):
            return Outcome(deployments=tuple(map(self._describe, self._entries)))
        if self._changing is not None:
            raise Refused(f"{self._changing} is being changed; wait until that is done", 409)
        self._changing = wish.name
        try:
            match wish:
                case Load():
                    return Outcome(deployments=(await self._load(wish),))
                case Unload(name):
                    return Outcome(deployments=(await self._unload(name),))
        finally:
            self._changing = None

    async def _control(self, wish: LoadModel | UnloadModel) -> None:
        """Raises Refused: the repository does not do it."""
        if self._repository is None:
            raise Refused(NOT_CONTROLLED, 503)
        if isinstance(wish, LoadModel):
            await self._repository.load(wish)
        else:
            await self._repository.unload(wish)

    # --- changes ------------------------------------------------------------------------------------------------------

    async def _load(self, wish: Load) -> Description:
        settings = self._resolve(wish)
        predecessor = self._offered(wish.name)
        offered = [entry.settings for entry in self._entries if entry.role is Role.OFFERED]
        require_distinct_names([*(each for each in offered if each.name != wish.name), settings])
        staying, leaving = self._running(predecessor)
        located: AnySettings
        if isinstance(settings, HostedSettings):
            located = settings.located()
        else:
            path = await in_thread(lambda: self._locate(wish.model))
            [located] = await in_thread(lambda: divide([settings.located(path)], staying, leaving))
        return self._describe(await self._offer(located, predecessor))

    async def _offer(self, settings: AnySettings, predecessor: Entry | None) -> Entry:
        """Load a version and offer it, in the place of another one if there is one. Raises Refused: it cannot be."""
        name = settings.name
        entry = self._entries.start(settings, Role.PREPARED)
        try:
            try:
                await self._entries.loaded(entry)
                self._entries.require_models(entry)
            except Refused as error:
                raise Refused(f"{name} could not be loaded: {error}", 500) from None
            except ConfigError as error:
                raise Refused(f"{name} could not be loaded: {error}", 400) from None
            await self._entries.offer([entry], [] if predecessor is None else [predecessor])
        except Exception:
            await self._entries.discard(entry.worker)
            raise
        log.info("%s is served, version %d: %s", name, entry.version, settings.model)
        return self._entries.get(entry.worker) or entry

    async def reload(self, worker: str) -> bool:
        """Load the code of a hosted model again and offer it in the place of what is there; if it cannot be loaded,
        what is there stays. Returns whether that was tried: not while something else is being changed."""
        entry = self._entries.get(worker)
        if entry is None or entry.role is not Role.OFFERED or self._changing is not None:
            return False
        self._changing = entry.settings.name
        try:
            await self._offer(entry.settings, entry)
        except Refused as error:
            log.error("%s; version %d is still served", error, entry.version)
        finally:
            self._changing = None
        return True

    def sources(self) -> dict[str, dict[str, float]]:
        """The files of the code that is to be loaded again when they change, by the workers that have loaded it, each
        with when it had been written."""
        found = {}
        for entry in self._entries:
            if entry.role is Role.OFFERED and entry.hosted is not None and entry.hosted.hosting.reload:
                status = self._entries.status(entry)
                if status.state is WorkerState.READY:
                    found[entry.worker] = hosted_facts(status)["sources"]
        return found

    def _resolve(self, wish: Load) -> AnySettings:
        written = from_table(wish.settings, "settings.")
        if not is_hosted(wish.model, written):
            require_known(wish.settings, DEPLOYMENT_SETTINGS, "settings.")
            return resolve_deployment(wish.name, wish.model, written, *self._sources)[0]
        require_known(wish.settings, HOSTED_SETTINGS, "settings.")
        [model, *more] = expand(wish.model)
        if more:
            raise Refused(f"{wish.model} has several models: name one of {', '.join([model, *more])}", 400)
        return resolve_hosted(wish.name, model, written, *self._sources)[0]

    async def _unload(self, name: str) -> Description:
        entry = self._offered(name)
        if entry is None:
            raise Refused(f"there is no deployment {name!r}", 404)
        if sum(each.role is Role.OFFERED for each in self._entries) == 1:
            raise Refused(f"{name} is the only deployment; load another one first", 409)
        description = self._describe(self._entries.retire(entry))
        await self._entries.publish()
        log.info("%s is no longer served", name)
        return description

    # --- how things are -----------------------------------------------------------------------------------------------

    def _offered(self, name: str) -> Entry | None:
        found = (each for each in self._entries if each.settings.name == name and each.role is Role.OFFERED)
        return next(found, None)

    def _running(self, predecessor: Entry | None) -> tuple[dict[str, ModelInfo], dict[str, ModelInfo]]:
        """What every engine that is loaded takes: of those that stay, and of those that will end.

        Raises:
            Refused: some are still loading.
        """
        staying: dict[str, ModelInfo] = {}
        leaving: dict[str, ModelInfo] = {}
        for entry in self._entries:
            if entry.language is None:
                continue
            status = self._entries.status(entry)
            if status.state is WorkerState.LOADING:
                raise Refused(f"{entry.worker} is still loading; wait until it is ready", 409)
            if status.state in (WorkerState.READY, WorkerState.RESTARTING):
                stays = entry.role is Role.OFFERED and entry is not predecessor
                (staying if stays else leaving)[entry.worker] = engine_info(status)
        return staying, leaving

    def _describe(self, entry: Entry) -> Description:
        status = self._entries.status(entry)
        loaded = status.state in (WorkerState.READY, WorkerState.RESTARTING)
        state = str(status.state)
        if entry.role is not Role.OFFERED and loaded:
            state = "retiring" if entry.role is Role.RETIRING else "loading"
        return Description(
            name=entry.settings.name,
            names=entry.settings.names,
            model=entry.settings.model,
            version=entry.version,
            state=state,
            progress=status.progress if state == "loading" else None,
            failure=status.failure,
            engine=asdict(engine_info(status)) if loaded and entry.language else None,
            hosting=hosted_facts(status) if loaded and entry.hosted and not entry.composed else None,
        )


def _without_names(source: Source) -> Source:
    """The command line may name one model; further ones are named by whoever loads them."""
    return lambda wanted: None if wanted.name == "served_model_name" else source(wanted)


def engine_info(status: WorkerStatus) -> ModelInfo:
    """What an engine said of itself when it was ready."""
    return msgspec.json.decode(status.payload, type=ModelInfo)
