"""Which requests a server traces, and how clients change that."""

import logging
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import msgspec

from octavo.deployments.entries import Entries, Refused
from octavo.deployments.threads import in_thread
from octavo.deployments.trace_files import TraceState
from octavo.deployments.trace_settings import SPECIFIED, ChangeTracing, TraceSetting, Tracing, invalid_reason
from octavo.errors import ConfigError
from octavo.worker.folder import PrivateFolder

log = logging.getLogger("octavo.server")


class ServerTracing:
    """What is traced, as the supervisor knows it.

    Args:
        tracing: as the operator wants it.

    Raises:
        ConfigError: no file can be written there.
    """

    def __init__(self, entries: Entries, tracing: Tracing) -> None:
        self._entries = entries
        self._default = tracing.common
        self._common: Mapping[str, object] = {}
        self._models: dict[str, Mapping[str, object]] = {}
        self._last = 0
        self._folder = self._state = None
        if tracing.file:
            _check(tracing.file)
            self._folder = PrivateFolder()
            path = str(self._folder.path / "traces")
            self._state = TraceState.create(path)
            tracing = msgspec.structs.replace(tracing, state=path)
        self._tracing = msgspec.structs.replace(tracing, common=self._new(msgspec.structs.asdict(tracing.common)))
        entries.tracing = self._tracing

    async def change(self, wish: ChangeTracing) -> None:
        """Do what a client wants. Raises Refused: nothing can be traced so, and all is as it was."""
        before = self._tracing
        models = dict(before.models)
        if wish.model:
            specified = wish.specified(self._specified(wish.model))
            if specified:
                models[wish.model] = self._made(before.common, specified)
                self._models[wish.model] = specified
            else:
                models.pop(wish.model, None)
                self._models.pop(wish.model, None)
            common = before.common
        else:
            specified = wish.specified(self._specified(""))
            common = self._made(self._default, specified, left=False)
            # What models have not of their own has changed for them.
            others = {name: self._specified(name) for name in models}
            models = {
                name: models[name] if len(own) == len(SPECIFIED) else self._made(common, own)
                for name, own in others.items()
            }
            self._common = specified
        self._tracing = self._entries.tracing = msgspec.structs.replace(before, common=common, models=models)
        await self._entries.publish()
        now = {setting.number for setting in self._tracing.settings}
        await in_thread(partial(self._end, [each for each in before.settings if each.number not in now]))

    def close(self) -> None:
        """Nothing is traced any more: all frontends have ended."""
        if self._state is not None:
            self._end(self._tracing.settings)
            self._state.close()
        if self._folder is not None:
            self._folder.close()

    def _specified(self, model: str) -> Mapping[str, object]:
        """What clients have set for a model, or for all of them, and what there is left of its count."""
        specified = self._models.get(model, {}) if model else self._common
        if "count" not in specified:
            return specified
        return {**specified, "count": self._left(self._tracing.of(model))}

    def _left(self, setting: TraceSetting) -> int:
        return setting.count if self._state is None else self._state.left(setting)

    def _made(self, base: TraceSetting, specified: Mapping[str, object], *, left: bool = True) -> TraceSetting:
        """A new setting. Raises Refused: nothing can be traced so."""
        fields = msgspec.structs.asdict(base)
        if left:
            fields["count"] = self._left(base)
        setting = self._new({**fields, **specified})
        if why := invalid_reason(setting, self._tracing.file):
            raise Refused(f"Attempting to set invalid trace setting :{why}", 400)
        return setting

    def _new(self, fields: Mapping[str, object]) -> TraceSetting:
        self._last += 1
        setting = msgspec.convert({**fields, "number": self._last}, TraceSetting)
        self._begin(setting)
        return setting

    def _begin(self, setting: TraceSetting) -> None:
        if self._state is not None:
            self._state.begin(setting)

    def _end(self, settings: Iterable[TraceSetting]) -> None:
        if self._state is None:
            return
        for each in settings:
            try:
                self._state.end(self._tracing.file, each)
            except OSError as error:
                log.error("traces cannot be written to %s: %s", self._tracing.file, error.strerror)


def _check(file: str) -> None:
    """See that a file could be written; there is none before there is a trace. Raises ConfigError: it cannot."""
    path = Path(file)
    if path.is_dir():
        why = "it is a folder"
    elif not path.parent.is_dir():
        why = f"there is no folder {path.parent}"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        why = "permission denied"
    else:
        return
    raise ConfigError(f"traces cannot be written to {file}: {why} (--trace-config triton,file=...)")
