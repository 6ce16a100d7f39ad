"""What one deployment is told: which model, under which names, on what an engine may use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from octavo.engine.config import EngineConfig
from octavo.errors import ConfigError
from octavo.settings import Setting, Source, Values, check, resolve, setting, settings_of

S = TypeVar("S", bound="NamedSettings")

MAX_NAME = 256

# By name, as `octavo.text` has them, which is too heavy for a supervisor.
TOOL_CALL_PARSERS = (
    "deepseek_v3",
    "deepseek_v31",
    "glm45",
    "glm47",
    "granite",
    "harmony",
    "hermes",
    "json",
    "kimi_k2",
    "llama3_json",
    "llama4_json",
    "llama4_pythonic",
    "mistral",
    "openai",
    "openai_gptoss",
    "phi4_mini_json",
    "pythonic",
    "qwen3_coder",
    "qwen3_xml",
)
REASONING_PARSERS = (
    "deepseek_r1",
    "deepseek_v3",
    "glm45",
    "granite",
    "kimi_k2",
    "mistral",
    "qwen3",
    "think",
    "openai_gptoss",
    "harmony",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSettings:
    """What every deployment has.

    Attributes:
        name: in replies, metrics and logs; requests may use it. model: as the user calls it.
    """

    name: str
    model: str
    served_model_name: tuple[str, ...] = setting(
        (), help="Name in requests and replies; repeat it for more names.", metavar="NAME", without="the model's"
    )

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that requests may use, its own first."""
        return tuple(dict.fromkeys((self.name, *self.served_model_name)))

    def validate(self) -> None:
        """Check what can be checked without the model. Raises ConfigError."""
        check(self)
        for name in self.names:
            check_name(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSettings(NamedSettings):
    """A language model's deployment, as it is to be.

    Attributes:
        engine: what computes, and within which bounds; its `model` is where that lies on this machine, empty until that
            is known.
    """

    stall_timeout: float = setting(
        60.0,
        help="Seconds of silence from an engine with work, after which /health answers 503.",
        least=0,
        most=366 * 24 * 3600,
    )
    allow_special_tokens_in_messages: bool = setting(
        False, help="Let a message that contains the text of a special token have the token; without it, it is text."
    )
    trust_request_chat_template: bool = setting(
        False, help="Let requests bring chat templates of their own; without it, they are refused."
    )
    tool_call_parser: str | None = setting(
        None,
        help="How the model writes calls of tools.",
        metavar="NAME",
        choices=TOOL_CALL_PARSERS,
        without="what its chat template shows",
    )
    reasoning_parser: str | None = setting(
        None,
        help="How the model marks what it thinks.",
        metavar="NAME",
        choices=REASONING_PARSERS,
        without="what its chat template shows",
    )
    engine: EngineConfig

    def located(self, path: Path) -> "DeploymentSettings":
        """The same settings, once it is known where on this machine the model lies."""
        return replace(self, engine=replace(self.engine, model=str(path)))

    def validate(self) -> None:
        """Check what can be checked without the model. Raises ConfigError."""
        NamedSettings.validate(self)
        self.engine.validate()


DEPLOYMENT_SETTINGS: Mapping[str, Setting] = {**settings_of(DeploymentSettings), **settings_of(EngineConfig)}
"""Every setting that the deployment of a language model has, by name."""


def check_name(name: str) -> None:
    """Refuse a name that could not be used in a request, a path or a log line. Raises ConfigError."""
    # Clients resolve . and .. in a path (RFC 3986, 5.2.4): such a deployment could not be asked for.
    if name in ("", ".", "..") or name != name.strip() or not name.isprintable() or len(name) > MAX_NAME:
        raise ConfigError(
            f"a deployment cannot be named {name[:MAX_NAME]!r}; give 1 to {MAX_NAME} characters that can be printed, "
            "without space around them, and not only . or .."
        )


def require_distinct_names(deployments: Sequence[NamedSettings]) -> None:
    """Refuse deployments that answer to the same name. Raises ConfigError."""
    owners: dict[str, str] = {}
    for settings in deployments:
        for name in settings.names:
            if name in owners:
                raise ConfigError(f"{name!r} is a name of two deployments: {owners[name]} and {_described(settings)}")
            owners[name] = _described(settings)


def _described(settings: NamedSettings) -> str:
    """For errors."""
    return settings.name if settings.name == settings.model else f"{settings.name} ({settings.model})"


def resolve_deployment(name: str | None, model: str, *sources: Source) -> tuple[DeploymentSettings, Values]:
    """A deployment's settings, checked, and where each was written.

    Args:
        name: None takes the first of `served_model_name`, or else the model's.

    Raises:
        ConfigError: a setting that cannot work.
    """
    values = resolve(DEPLOYMENT_SETTINGS.values(), *sources)
    settings: DeploymentSettings = values.build(
        DeploymentSettings,
        name=chosen_name(name, values, model),
        model=model,
        engine=values.build(EngineConfig, model=""),
    )
    return checked(settings, values), values


def checked(settings: S, values: Values) -> S:
    """Settings that can work. Raises ConfigError: they cannot; with where they were written."""
    try:
        settings.validate()
    except ConfigError as error:
        raise values.explain(error) from None
    return settings


def chosen_name(name: str | None, values: Values, usual: str) -> str:
    """A deployment's name: the one that it has in a file, or else the first that is given for it, or its usual one."""
    names = values["served_model_name"].value
    return name if name is not None else names[0] if names else usual
