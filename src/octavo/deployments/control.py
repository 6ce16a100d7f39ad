"""What a server's processes tell each other about its deployments.

The supervisor keeps the table of all deployments and sends it to every frontend whenever it changes. A frontend says
what it has made of it: which deployments it has opened or is still using. What an administrator wants goes from the
frontend that was asked to the supervisor.
"""

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any

import msgspec

from octavo.deployments.hosted_settings import AnySettings, HostedSettings
from octavo.deployments.settings import DeploymentSettings
from octavo.deployments.trace_settings import ChangeTracing, Tracing
from octavo.hosting.config import ENSEMBLE

NOT_CONTROLLED = "explicit model load / unload is not allowed if polling is enabled"
"""Why no model is loaded or unloaded, in Triton's words for a repository that clients do not control."""


UNLOADED = "unloaded"
"""Triton's reason for what clients have unloaded."""


class Role(StrEnum):
    """What frontends do with a deployment."""

    PREPARED = "prepared"
    """They open it, so that they can offer it at once."""

    OFFERED = "offered"
    """New requests may come to it."""

    RETIRING = "retiring"
    """Only requests that have begun go on."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a deployment.

    Attributes:
        worker: the name of what computes it, or of the first of several processes that do.
        version: counted from 1 for every name.
        language, hosted: its settings, one of the two.
    """

    worker: str
    version: int
    role: Role
    language: DeploymentSettings | None = None
    hosted: HostedSettings | None = None

    @property
    def settings(self) -> AnySettings:
        """Of whichever kind it is."""
        settings = self.language or self.hosted
        assert settings is not None
        return settings

    @property
    def composed(self) -> bool:
        """Whether it is made of other deployments, and has no process of its own."""
        return self.hosted is not None and self.hosted.hosting.runtime == ENSEMBLE

    @classmethod
    def of(cls, worker: str, version: int, role: Role, settings: AnySettings) -> "Entry":
        """An entry of either kind."""
        if isinstance(settings, HostedSettings):
            return cls(worker=worker, version=version, role=role, hosted=settings)
        return cls(worker=worker, version=version, role=role, language=settings)


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A model of a repository that is not offered, or a version of one.

    Attributes:
        version: empty for all. state: by Triton's names; empty if nobody has wanted it yet. reason: why it is so.
    """

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """All deployments, those first that were there first. The revision grows with every change.

    Attributes:
        listed: the models of repositories that are not among them.
        loading: whether the repositories' models that are to be there from the start are still being loaded.
        tracing: which requests are traced.
    """

    revision: int
    entries: tuple[Entry, ...]
    listed: tuple[Listed, ...] = ()
    loading: bool = False
    tracing: Tracing = Tracing()


class Applied(msgspec.Struct, frozen=True, tag="applied", kw_only=True):
    """A frontend has done what a table says.

    Attributes:
        workers: of the deployments that it has opened and may still use. failures: why it could not open others.
    """

    revision: int
    workers: tuple[str, ...]
    failures: dict[str, str]


class Load(msgspec.Struct, frozen=True, tag="load", kw_only=True):
    """Load a deployment, or a newer version of one. The settings are those of a file's table [deployments.NAME]."""

    name: str
    model: str
    settings: dict[str, Any]


class Unload(msgspec.Struct, frozen=True, tag="unload"):
    """Offer a deployment no longer, and end it when its last request has ended."""

    name: str


class LoadModel(msgspec.Struct, frozen=True, tag="load_model", kw_only=True):
    """Load a model of a repository, or load it again.

    Attributes:
        config: a `ModelConfig` as JSON in the place of its own. folder: one with files in the place of its own; whoever
            loads the model removes it.
    """

    name: str
    config: str | None = None
    folder: str | None = None


class UnloadModel(msgspec.Struct, frozen=True, tag="unload_model", kw_only=True):
    """Offer a model of a repository no longer. Attributes: dependents: and those that its ensemble asks, neither."""

    name: str
    dependents: bool = False


class ChangeLogging(msgspec.Struct, frozen=True, tag="change_logging", kw_only=True, forbid_unknown_fields=True):
    """Log in another way, with all processes. Attributes: those of `octavo.logs.LogSettings`; None stays as it is."""

    info: bool | None = None
    warning: bool | None = None
    error: bool | None = None
    verbose: int | None = None
    format: str | None = None


class Gather(msgspec.Struct, frozen=True, tag="gather"):
    """Ask the other frontends for something that each of them knows alone. The answer is a list of what they say."""

    what: str


class Describe(msgspec.Struct, frozen=True, tag="describe"):
    """Say which deployments there are."""


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment, as an administrator sees it.

    Attributes:
        state: "loading", "ready", "restarting", "failed" or "retiring". progress: of loading, as (done, total).
        engine: what the engine of a language model came to (`octavo.engine.config.ModelInfo`), once it is loaded.
        hosting: what a hosted model is (`octavo.hosting.info.HostedInfo`), once it is loaded.
    """

    name: str
    names: tuple[str, ...]
    model: str
    version: int
    state: str
    progress: tuple[int, int] | None = None
    failure: str | None = None
    engine: dict[str, Any] | None = None
    hosting: dict[str, Any] | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: the deployments concerned, or an error with its HTTP status."""

    deployments: tuple[Description, ...] = ()
    error: str | None = None
    status: int = 200


Wish = Load | Unload | Describe | LoadModel | UnloadModel | ChangeLogging | ChangeTracing
Message = Applied | Gather | Wish

Administer = Callable[[Wish], Awaitable[Outcome]]
"""Does what somebody wishes, and says what came of it."""

_messages: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
_tables: msgspec.json.Decoder[Table] = msgspec.json.Decoder(Table)
_gathered: msgspec.json.Decoder[list[msgspec.Raw]] = msgspec.json.Decoder(list[msgspec.Raw])
_outcomes: msgspec.json.Decoder[Outcome] = msgspec.json.Decoder(Outcome)


def decode_message(data: msgspec.Raw) -> Message:
    """What a frontend said. Raises msgspec.DecodeError."""
    return _messages.decode(data)


def decode_table(data: msgspec.Raw) -> Table:
    """What the supervisor said. Raises msgspec.DecodeError."""
    return _tables.decode(data)


def decode_gathered(data: msgspec.Raw) -> list[msgspec.Raw]:
    """What other frontends have said. Raises msgspec.DecodeError."""
    return _gathered.decode(data)


def decode_outcome(data: msgspec.Raw) -> Outcome:
    """What the supervisor answered. Raises msgspec.DecodeError."""
    return _outcomes.decode(data)
