"""The models of Triton repositories: which of them are served, and how that changes while a server runs."""

import asyncio
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from octavo.deployments.control import NOT_CONTROLLED, UNLOADED, Entry, Listed, LoadModel, Role, UnloadModel
from octavo.deployments.entries import Entries, Refused
from octavo.deployments.hosted_settings import HostedSettings
from octavo.deployments.repository_models import LOADING, Found, ModelState, Round
from octavo.deployments.repository_settings import ALL, RepositorySettings
from octavo.deployments.resizing import resize, same_files
from octavo.deployments.threads import in_thread
from octavo.errors import ConfigError, OctavoError
from octavo.hosting.config import HostingConfig
from octavo.hosting.triton.layout import ModelFolder, find_model, models_of, require_model_name
from octavo.hosting.triton.model_config import config_from_json
from octavo.hosting.triton.planning import PlannedModel, plan_model

log = logging.getLogger("octavo.server")

TWICE = "model appears in two or more repositories"
"""Triton's reason for what no one can know which of two is meant by."""


class Repository:
    """Loads models and keeps what is served while they change: a version is offered until its successor is ready.

    Args:
        base: settings that hold for all models.

    Raises:
        ConfigError: a repository is no folder.
    """

    def __init__(self, entries: Entries, settings: RepositorySettings, base: HostingConfig) -> None:
        self._entries = entries
        entries.loading = True  # who asks a frontend before the folders are read is not to hear that all is there
        self._settings = settings
        self._base = base
        self._places = settings.places
        self._models: dict[str, ModelState] = {}
        self._slots = asyncio.Semaphore(settings.model_load_thread_count)

    @property
    def counts(self) -> tuple[int, int]:
        """How many models are served, of how many."""
        return sum(bool(each.entries) for each in self._models.values()), len(self._models)

    # --- what is asked for --------------------------------------------------------------------------------------------

    async def start(self) -> list[str]:
        """Load what is to be there from the start. Returns why some models are not, and the log says so at once."""
        there, twice = await in_thread(partial(models_of, self._places))
        names = list(there)
        if self._settings.model_control_mode == "explicit":
            names = names if self._settings.load_model == (ALL,) else list(self._settings.load_model)
        self._note_all(there, twice)
        failures = await self._load_all(names)
        self._entries.loading = False
        await self._entries.publish()  # who is told that the server is ready may ask for what is not, too
        return failures

    async def load(self, wish: LoadModel) -> None:
        """Load a model, with the models that it asks; of one that is there, what has changed.

        Raises:
            OctavoError: it cannot be loaded, and what was served is still.
        """
        try:
            self._require_control()
            require_model_name(wish.name)
            await self._load(wish)
        finally:
            model = self._models.get(wish.name)
            if model is None or model.folder != wish.folder:
                await _remove(wish.folder)

    async def unload(self, wish: UnloadModel) -> None:
        """Offer a model no longer. Raises Refused: clients do not control this repository."""
        self._require_control()
        model = self._models.get(wish.name)
        if model is None:
            return  # as Triton has it: what is not there need not go
        await self._unload(model, UNLOADED)
        if wish.dependents:
            for step in model.steps:
                other = self._models.get(step)
                if other is not None and other.entries and not other.wanted and not self._asked_by_others(step):
                    await self.unload(UnloadModel(name=step, dependents=True))

    async def poll(self) -> None:
        """Follow what happens in the folders, for ever."""
        while True:
            await asyncio.sleep(self._settings.repository_poll_secs)
            try:
                await self._look()
            except OctavoError as error:
                log.error("%s", error)
            except Exception:  # a defect of ours is no reason to look no more
                log.exception("cannot look at the model repository")

    # --- looking ------------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Load what is new or has changed, and unload what is gone."""
        there, twice = await in_thread(partial(models_of, self._places))
        self._note_all(there, twice)
        gone = [model for name, model in self._models.items() if name not in there and model.entries]
        for model in gone:
            await self._unload(model, TWICE if model.name in twice else UNLOADED)
        changed = []
        for name, folder in there.items():
            if await in_thread(folder.stamps) != self._model(name).seen:
                changed.append(name)
        await self._load_all(changed)

    def _note_all(self, there: Mapping[str, ModelFolder], twice: Sequence[str]) -> None:
        for name in there:
            self._model(name)
        for name in twice:
            model = self._model(name)
            if "" not in model.trouble:
                log.error("failed to poll model '%s': not unique across all model repositories", name)
            model.trouble = {"": ("UNAVAILABLE", TWICE)}
        for name in [each for each, model in self._models.items() if each not in there and each not in twice]:
            if not self._models[name].entries:
                del self._models[name]
        self._list()

    def _model(self, name: str) -> ModelState:
        return self._models.setdefault(name, ModelState(name))

    def _asked_by_others(self, name: str) -> bool:
        return any(name in model.steps and model.entries for model in self._models.values())

    def _require_control(self) -> None:
        if self._settings.model_control_mode != "explicit":
            raise Refused(NOT_CONTROLLED, 503)

    # --- loading ------------------------------------------------------------------------------------------------------

    async def _load_all(self, names: Sequence[str]) -> list[str]:
        """Load models side by side. Returns why some are not."""
        round_ = Round()
        for name in names:
            self._begin(round_, LoadModel(name=name), wanted=True)
        await asyncio.gather(*round_.tasks.values(), return_exceptions=True)
        return [f"{name}: {why}" for name in names if (why := await _failure(round_.tasks[name]))]

    async def _load(self, wish: LoadModel) -> None:
        """Raises OctavoError: it cannot be loaded."""
        await self._begin(Round(), wish, wanted=True)

    def _begin(self, round_: Round, wish: LoadModel, *, wanted: bool) -> asyncio.Task[None]:
        """Load a model, once in a round."""
        if wish.name not in round_.tasks:
            model = self._model(wish.name)
            model.wanted = model.wanted or wanted
            if not model.entries:
                model.trouble = LOADING
                self._list()
            round_.tasks[wish.name] = asyncio.create_task(self._follow(round_, model, wish))
        return round_.tasks[wish.name]

    async def _follow(self, round_: Round, model: ModelState, wish: LoadModel) -> None:
        """Raises OctavoError: it cannot be loaded; the log says so, too."""
        try:
            found = await self._read(model, wish)
            for step in found.planned.steps if found.planned else self._missing_steps(model):
                await self._load_step(round_, model, step)
            async with model.changing:
                await self._replace(model, found, wish)
        except OctavoError as error:
            log.error("model %s cannot be loaded: %s%s", model.name, error, _rest(model))
            if model.trouble is LOADING:
                self._note_trouble(model, "", str(error))
            raise
        finally:
            self._list()

    def _missing_steps(self, model: ModelState) -> list[str]:
        """What an ensemble that is there lacks: a client has unloaded it since."""
        return [each for each in model.steps if not self._model(each).entries]

    async def _load_step(self, round_: Round, model: ModelState, step: str) -> None:
        """Raises Refused: an ensemble's model cannot be loaded, and is not there."""
        if round_.leads(step, model.name):
            raise self._refused(model, f"circular dependency between ensembles: {model.name} -> {step}")
        round_.waits[model.name] = step
        try:
            await self._begin(round_, LoadModel(name=step), wanted=False)
        except OctavoError as error:
            if not self._model(step).entries:
                why = f"ensemble '{model.name}' depends on '{step}' which has no loaded version. "
                why += f"Model '{step}' loading failed with error: {error}"
                raise self._refused(model, why) from None
        finally:
            del round_.waits[model.name]

    async def _replace(self, model: ModelState, found: Found, wish: LoadModel) -> None:
        """Serve what was found in the place of what is there. Raises OctavoError: it cannot be."""
        planned = found.planned
        changes = wish.config is not None or wish.folder is not None or found.stamps != model.stamps
        if planned is None or (model.entries and not changes):
            return
        if any(entry.hosted is None or entry.hosted.hosting.repository is None for entry in self._named(model.name)):
            raise ConfigError(f"{model.name} is the name of another model that this server has")
        if not model.entries:
            model.trouble = {str(version): ("LOADING", "") for version in planned.versions}
            self._list()
        began = time.monotonic()
        same = model.folder is None and wish.folder is None and same_files(model.read, found.stamps)
        if model.entries and same and await resize(self._entries, model.entries, planned.versions):
            entries, done = model.entries, "goes on with other instances"
        else:
            entries, done = await self._started(model, planned), "is served"
            for entry in entries.values():
                if entry.composed:
                    await self._check_steps(model, entry)
            await self._entries.offer(list(entries.values()), list(model.entries.values()))
        model.entries, model.steps, model.trouble = entries, planned.steps, {}
        model.stamps = {} if wish.config is not None or wish.folder is not None else found.stamps
        model.read = found.stamps
        replaced, model.folder = model.folder, wish.folder
        await _remove(replaced if replaced != wish.folder else None)
        versions = ", ".join(map(str, entries))
        log.info("model %s version %s %s, loaded in %.1f s", model.name, versions, done, time.monotonic() - began)

    async def _check_steps(self, model: ModelState, entry: Entry) -> None:
        """See that an ensemble fits the models that it asks. Raises Refused: it does not."""
        from octavo.deployments.step_check import ensemble_info  # with numpy

        assert entry.hosted is not None
        offered = {each.name: each.entries for each in self._models.values()}
        try:
            await in_thread(partial(ensemble_info, entry.hosted, offered, self._entries.status))
        except ConfigError as error:
            await self._entries.discard(entry.worker)
            raise self._refused(model, str(error)) from None

    async def _read(self, model: ModelState, wish: LoadModel) -> Found:
        """What is to be served of a model. Raises ConfigError: its folder does not say that, or there is none."""
        served = model.entries and wish.config is None and wish.folder is None

        def read() -> Found:
            folder = (
                find_model(self._places, model.name)
                if wish.folder is None
                else ModelFolder(model.name, Path(wish.folder))
            )
            if folder is None:
                raise ConfigError(f"there is no folder {model.name} in {', '.join(map(str, self._places))}")
            stamps = folder.stamps()
            if served and stamps == model.stamps:
                return Found(stamps, None)
            model.seen = stamps
            override = None if wish.config is None else config_from_json(wish.config, "the config of the request")
            planned = plan_model(
                folder,
                base=self._base,
                config_name=self._settings.model_config_name or "",
                completes=not self._settings.disable_auto_complete_config,
                batch_sizes=self._settings.default_batch_sizes,
                override=override,
            )
            return Found(stamps, planned)

        try:
            return await in_thread(read)
        except ConfigError as error:
            if await in_thread(partial(_is_there, self._places, model.name)):
                self._note_trouble(model, "", str(error))
            elif not model.entries:
                self._models.pop(model.name, None)
            raise ConfigError(f"failed to load '{model.name}', failed to poll from model repository: {error}") from None

    def _refused(self, model: ModelState, why: str) -> Refused:
        """The error of a model whose folder says something that cannot be."""
        self._note_trouble(model, "", why)
        return Refused(why, 400)

    def _note_trouble(self, model: ModelState, version: str, why: str) -> None:
        if not model.entries:
            model.trouble = {version: ("UNAVAILABLE", why)}

    async def _started(self, model: ModelState, planned: PlannedModel) -> dict[int, Entry]:
        """The versions, loaded, but not offered. Raises Refused: one of them cannot be, and so none is."""
        results = await asyncio.gather(
            *(self._start(planned.name, config) for config in planned.versions.values()), return_exceptions=True
        )
        found = dict(zip(planned.versions, results, strict=True))
        failed = {version: each for version, each in found.items() if isinstance(each, BaseException)}
        if not failed:
            return {version: each for version, each in found.items() if isinstance(each, Entry)}
        for each in found.values():
            if isinstance(each, Entry):
                await self._entries.discard(each.worker)
        for each in failed.values():
            if not isinstance(each, OctavoError):
                raise each
        if not model.entries:
            model.trouble = {str(version): ("UNAVAILABLE", str(why)) for version, why in failed.items()}
        reasons = " ".join(f"version {version} is at UNAVAILABLE state: {why};" for version, why in failed.items())
        raise Refused(f"load failed for model '{model.name}': {reasons}", 400)

    async def _start(self, name: str, config: HostingConfig) -> Entry:
        """A version, loaded. Raises Refused: it cannot be, however often it is tried."""
        for left in range(self._settings.model_load_retry_count, -1, -1):
            async with self._slots:
                settings = HostedSettings(name=name, model=config.model, hosting=config)
                entry = self._entries.start(settings, Role.PREPARED)
                try:
                    await self._entries.loaded(entry)
                except BaseException as error:
                    await self._entries.discard(entry.worker)
                    if isinstance(error, Refused) and left:
                        log.warning("model %s cannot be loaded, trying again: %s", name, error)
                        continue
                    raise
                return entry
        raise AssertionError("the last try returns or raises")

    # --- unloading ----------------------------------------------------------------------------------------------------

    async def _unload(self, model: ModelState, reason: str) -> None:
        async with model.changing:
            for entry in model.entries.values():
                self._entries.retire(entry)
            model.trouble = {str(version): ("UNAVAILABLE", reason) for version in model.entries}
            served, model.entries, model.wanted = bool(model.entries), {}, False
            model.stamps = model.seen = {}
            self._list()
            await self._entries.publish()
            if served:
                log.info("model %s is no longer served", model.name)
            folder, model.folder = model.folder, None
            await _remove(folder)

    # --- how things are -----------------------------------------------------------------------------------------------

    def _named(self, name: str) -> list[Entry]:
        return [entry for entry in self._entries if entry.role is Role.OFFERED and name in entry.settings.names]

    def _list(self) -> None:
        """Say which models there are that are not offered; frontends hear of it with the next table."""
        listed = []
        for name, model in sorted(self._models.items()):
            listed += [
                Listed(name=name, version=version, state=state, reason=reason)
                for version, (state, reason) in model.trouble.items()
            ]
            if not model.trouble and not model.entries:
                listed.append(Listed(name=name))
        if tuple(listed) != self._entries.listed:
            self._entries.listed = tuple(listed)
            self._entries.announce()


def _is_there(places: Sequence[Path], name: str) -> bool:
    return any((place / name).is_dir() for place in places)


async def _remove(folder: str | None) -> None:
    """Remove files that a client has sent."""
    if folder is not None:
        await in_thread(partial(shutil.rmtree, folder, ignore_errors=True))


async def _failure(task: asyncio.Task[None]) -> str:
    """Why a model could not be loaded; empty if it could."""
    try:
        await task
    except OctavoError as error:
        return str(error)
    return ""


def _rest(model: ModelState) -> str:
    versions = ", ".join(map(str, model.entries))
    return f"; version {versions} is still served" if versions else ""
