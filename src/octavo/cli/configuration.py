"""From command line, environment and file to what is served, and how."""

import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octavo.deployments.hosted_settings import (
    EVERY_SETTING,
    HOSTED_SETTINGS,
    ONE_MODEL,
    AnySettings,
    HostedSettings,
    expand,
    is_hosted,
    resolve_hosted,
)
from octavo.deployments.repository_settings import RepositorySettings
from octavo.deployments.settings import DEPLOYMENT_SETTINGS, require_distinct_names, resolve_deployment
from octavo.errors import ConfigError
from octavo.hosting.config import HostingConfig
from octavo.server.keys import ApiKey, read_named_keys
from octavo.server.settings import ServerSettings
from octavo.settings import (
    Setting,
    Source,
    Value,
    Values,
    from_environment,
    from_flags,
    from_table,
    misspelt_variables,
    require_known,
    resolve,
    setting,
    settings_of,
)
from octavo.weights.catalogue import DEFAULT_MODEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What to serve."""

    model: tuple[str, ...] = setting(
        (), help="Another way to name a model; repeat it for more.", metavar="MODEL", without=DEFAULT_MODEL
    )
    config: str | None = setting(
        None, help="A TOML file with [server] and [deployments.NAME].", metavar="PATH", without="none"
    )


SERVE_SETTINGS: Mapping[str, Setting] = {
    **settings_of(Selection),
    **settings_of(ServerSettings),
    **settings_of(RepositorySettings),
    **EVERY_SETTING,
}
"""Every setting of `octavo serve`, by name."""

OF_REPOSITORIES = ("execution_timeout", "runtime_threads", "trust_pickle")
"""Settings of hosted models that hold for those of repositories, too: nothing in their configurations says it."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything that `octavo serve` is told.

    Attributes:
        server: how the server behaves; the keys that files hold are read. deployments: at least one, or else there is
            a repository.
        repository: where models are that have configurations of their own. hosting: what holds for all of them.
        sources: the command line and the environment, which hold for deployments that come later, too.
        server_values, repository_values, deployment_values: the same, and where each was written; the latter in the
            deployments' order.
        warnings: what is probably not meant.
    """

    server: ServerSettings
    repository: RepositorySettings
    hosting: HostingConfig
    deployments: tuple[AnySettings, ...]
    sources: tuple[Source, ...]
    server_values: Values
    repository_values: Values
    deployment_values: tuple[Values, ...]
    warnings: tuple[str, ...]


def configure(
    models: Sequence[str], flags: Mapping[str, object], environment: Mapping[str, str] = os.environ
) -> Configuration:
    """Everything there is to know before a model is looked for, checked.

    Args:
        models: named on the command line. flags: as they were given there, by setting.

    Raises:
        ConfigError: something cannot work; the message says where it was written.
    """
    sources = (from_flags(flags), from_environment(environment))
    selection = resolve(settings_of(Selection).values(), *sources)
    file = selection["config"].value
    tables = _read_file(file) if file is not None else {}
    where = f"{file}: "
    server, server_values = _server(tables.get("server", {}), f"{where}server.", sources)
    repository, repository_values = _repository(tables.get("repository", {}), f"{where}repository.", sources)
    named = _named_models(models, selection["model"])
    described = {name: _deployment_table(table, where, name) for name, table in tables.get("deployments", {}).items()}
    if not named and not described and not repository.model_repository:
        named = {DEFAULT_MODEL: None}
    if len(named) + len(described) + len(repository.model_repository) != 1 or repository.model_repository:
        _require_one_model(sources)
    deployments: list[tuple[AnySettings, Values]] = []
    for called, origin in named.items():
        deployments += _named_deployments(called, origin, sources)
    for name, table in described.items():
        place = f"{where}deployments.{name}."
        _require_place(table, settings_of(ServerSettings), place, "the server", "[server]")
        require_known(table, (*EVERY_SETTING, "model"), place)
        model = table.get("model")
        if model is None:
            raise ConfigError(f"{place}model is missing; it names the model that this deployment serves")
        if not isinstance(model, str) or not model.strip():
            raise ConfigError(f"{place}model is {model!r:.80}, but must be the name of a model")
        written = from_table(table, place)
        resolve_one = resolve_hosted if is_hosted(model, *sources, written) else resolve_deployment
        settings, values = resolve_one(name, model, *sources, written)
        _require_kind(settings, table, place)
        values["model"] = Value(model, f"{place}model")
        deployments.append((settings, values))
    _require_users(sources[0], [settings for settings, _ in deployments], repository=bool(repository.model_repository))
    require_distinct_names([settings for settings, _ in deployments])
    warnings = [
        f"nothing reads the environment variable {name}; did you mean {match}?"
        for name, match in misspelt_variables(environment, SERVE_SETTINGS.values())
    ]
    return Configuration(
        server,
        repository,
        resolve(settings_of(HostingConfig).values(), *sources).build(HostingConfig, model=""),
        tuple(settings for settings, _ in deployments),
        sources,
        server_values,
        repository_values,
        tuple(values for _, values in deployments),
        tuple(warnings),
    )


def _named_deployments(model: str, origin: str | None, sources: Sequence[Source]) -> list[tuple[AnySettings, Values]]:
    """What a model that is named on the command line is served as; a file of code may have several."""
    file = f"{model.partition(':')[0]}.py"
    if not is_hosted(model, *sources) and Path(file).is_file():
        raise ConfigError(
            f"{model} is no model; did you mean {file}{model[model.find(':') :] if ':' in model else ''}?"
        )
    if not is_hosted(model, *sources):
        found: list[tuple[AnySettings, Values]] = [resolve_deployment(None, model, *sources)]
    else:
        models = expand(model)
        if len(models) > 1:
            _require_one_model(sources)
        found = [resolve_hosted(None, each, *sources) for each in models]
    for settings, values in found:
        values["model"] = Value(settings.model, origin)
    return found


def _require_kind(settings: AnySettings, table: Mapping[str, object], place: str) -> None:
    """Refuse a table's settings that are those of models of the other kind. Raises ConfigError."""
    hosted = isinstance(settings, HostedSettings)
    known = HOSTED_SETTINGS if hosted else DEPLOYMENT_SETTINGS
    for name in table:
        if name != "model" and name not in known:
            raise ConfigError(f"{place}{name} is a setting of {_kind(hosted=not hosted)}, and {settings.model} is none")


def _require_users(flags: Source, deployments: Sequence[AnySettings], *, repository: bool) -> None:
    """Refuse flags that no deployment uses. Raises ConfigError.

    Args:
        repository: whether there is one, whose models use some.
    """
    for hosted, own, others in (
        (True, HOSTED_SETTINGS, DEPLOYMENT_SETTINGS),
        (False, DEPLOYMENT_SETTINGS, HOSTED_SETTINGS),
    ):
        if any(isinstance(each, HostedSettings) is hosted for each in deployments):
            continue
        for name, described in own.items():
            if name in others or (repository and hosted and name in OF_REPOSITORIES) or not (found := flags(described)):
                continue
            if repository and hosted:
                raise ConfigError(f"{found[1]} is not about models of a repository: their configurations say it")
            raise ConfigError(f"{found[1]} is about {_kind(hosted=hosted)}, and none is served")


def _kind(*, hosted: bool) -> str:
    return "models that are no language models" if hosted else "language models"


def _named_models(arguments: Sequence[str], option: Value) -> dict[str, str | None]:
    """The models named beside the file, each with where. Raises ConfigError: one of them is named twice."""
    for given in (arguments, option.value):
        for model in given:
            if given.count(model) > 1:
                raise ConfigError(
                    f"{model} is named twice, and two deployments cannot have one name; to serve it twice, give each "
                    "its name in a file, as [deployments.NAME] with model"
                )
    named: dict[str, str | None] = {_named(model): "MODELS" for model in arguments}
    return named | {model: option.origin for model in option.value if model not in named}


def choose_model(argument: str | None, option: str | None = None) -> str:
    """The model named in either way, or the default one. Raises ConfigError."""
    if argument is not None and option is not None and argument != option:
        raise ConfigError(f"two models were named, {argument!r} and {option!r} (--model); name one")
    given = argument if option is None else option
    return DEFAULT_MODEL if given is None else _named(given)


def environment_of_a_model(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables for a server of our own with one model: without those that say what to serve, where and to whom."""
    others = {**settings_of(Selection), **settings_of(ServerSettings), **settings_of(RepositorySettings)}
    names = {each.variable for each in others.values()} | {DEPLOYMENT_SETTINGS["served_model_name"].variable}
    return {name: value for name, value in environment.items() if name not in names}


def _named(model: str) -> str:
    if not model.strip():
        raise ConfigError("the model's name is empty; leave it out for the default model")
    return model


def _server(table: object, where: str, sources: Sequence[Source]) -> tuple[ServerSettings, Values]:
    table = _table(table, where.rstrip("."))
    known = settings_of(ServerSettings)
    _require_place(table, EVERY_SETTING, where, "a deployment", "[deployments.NAME]")
    require_known(table, (*known, "keys"), where)
    values = resolve(known.values(), *sources, from_table(table, where))
    try:
        keys: tuple[ApiKey, ...] = ()
        if "keys" in table:
            keys = read_named_keys(_table(table["keys"], f"{where}keys", keep=True), f"{where}keys.")
        settings: ServerSettings = replace(values.build(ServerSettings), keys=keys).with_keys()
        settings.validate()
    except ConfigError as error:
        raise values.explain(error) from None
    return settings, values


def _repository(table: object, where: str, sources: Sequence[Source]) -> tuple[RepositorySettings, Values]:
    table = _table(table, where.rstrip("."))
    known = settings_of(RepositorySettings)
    require_known(table, known, where)
    values = resolve(known.values(), *sources, from_table(table, where))
    settings: RepositorySettings = values.build(RepositorySettings)
    try:
        settings.validate()
    except ConfigError as error:
        raise values.explain(error) from None
    return settings, values


def _read_file(path: str) -> dict[str, Any]:
    try:
        tables = tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8-sig"))
    except (OSError, RuntimeError, ValueError) as error:  # a TOMLDecodeError is a ValueError
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot read {path}: {reason}") from None
    require_known(tables, ("server", "repository", "deployments"), f"{path}: ")
    if not isinstance(tables.get("deployments", {}), dict):
        raise ConfigError(f"{path}: deployments must be tables, [deployments.NAME]")
    return tables


def _require_place(
    table: Mapping[str, object], others: Mapping[str, Setting], where: str, owner: str, place: str
) -> None:
    """Refuse settings that belong into another table. Raises ConfigError."""
    for name in table:
        if name in others:
            raise ConfigError(f"{where}{name} is a setting of {owner}; write it under {place}")


def _deployment_table(value: object, where: str, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(
            f"{where}deployments.{name} must be a table; a deployment's settings stand under its name: "
            f"[deployments.NAME], and then {name} = …"
        )
    return _table(value, f"{where}deployments.{name}")


def _table(value: object, where: str, *, keep: bool = False) -> dict[str, Any]:
    """A table with its keys written with underscores, unless they are names."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a table")
    table: dict[str, Any] = {}
    for key, item in value.items():
        name = key if keep else key.replace("-", "_")
        if name in table:
            raise ConfigError(f"{where} has {name} twice, with dashes and with underscores")
        table[name] = item
    return table


def _require_one_model(sources: Sequence[Source]) -> None:
    for source in sources:
        for name in ONE_MODEL:
            if found := source(EVERY_SETTING[name]):
                what = "names" if name == "served_model_name" else "is about"
                raise ConfigError(
                    f"{name} {what} one deployment, and there are several; give each its own in a file, as "
                    f"[deployments.NAME] ({found[1]})"
                )


# --- showing ----------------------------------------------------------------------------------------------------------


def show(configuration: Configuration) -> Iterator[str]:
    """The effective settings as the lines of a TOML file, each with where it was written. Keys are not shown."""
    yield from _show_table("[server]", settings_of(ServerSettings), configuration.server_values)
    if configuration.repository.model_repository:
        yield ""
        yield from _show_table("[repository]", settings_of(RepositorySettings), configuration.repository_values)
    for settings, values in zip(configuration.deployments, configuration.deployment_values, strict=True):
        yield ""
        own = HOSTED_SETTINGS if isinstance(settings, HostedSettings) else DEPLOYMENT_SETTINGS
        known = {"model": settings_of(Selection)["model"], **own}
        yield from _show_table(f"[deployments.{json.dumps(settings.name)}]", known, values)


def _show_table(heading: str, known: Mapping[str, Setting], values: Mapping[str, Value]) -> Iterator[str]:
    yield heading
    for name, described in known.items():
        value, origin = values[name].value, values[name].origin
        origin = "default" if origin is None else origin
        if value in (None, ()):
            yield f"# {name}: {described.without}  ({origin})"
        elif described.secret:
            yield f"# {name}: not shown  ({origin})"
        else:
            yield f"{name} = {_toml(value)}  # {origin}"


def _toml(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
