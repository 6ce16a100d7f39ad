"""From a model's folder to what is to be served of it, before anything starts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import orjson

from octavo.errors import ConfigError
from octavo.hosting.config import ENSEMBLE, REPOSITORY_BATCH_SIZE, HostingConfig, RepositoryModel
from octavo.hosting.triton import Config
from octavo.hosting.triton.backends import backend_named, complete_backend, model_file
from octavo.hosting.triton.checks import check_config
from octavo.hosting.triton.labels import read_labels
from octavo.hosting.triton.layout import ModelFolder, chosen_versions
from octavo.hosting.triton.model_config import config_to_json, read_config
from octavo.protos.messages import ModelConfig

_NOTHING = HostingConfig(model="")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedModel:
    """A model of a repository, as it is to be served.

    Attributes:
        config: its `ModelConfig`, with what the folder says in place of what is not written.
        versions: how each version is served, the highest first.
        steps: the models that an ensemble asks.
    """

    name: str
    config: Config
    versions: Mapping[int, HostingConfig]
    steps: tuple[str, ...] = ()


def plan_model(
    folder: ModelFolder,
    *,
    base: HostingConfig = _NOTHING,
    config_name: str = "",
    completes: bool = True,
    batch_sizes: Mapping[str, int] = MappingProxyType({}),
    override: Config | None = None,
) -> PlannedModel:
    """Read what a folder says.

    Args:
        base: what holds for all models, whatever their folders say.
        config_name: of the configuration among its `configs` that is meant, if there is one.
        completes: whether what a configuration leaves open is taken from the model; without it, it must be written.
        batch_sizes: `max_batch_size` where it is left open, by backend; of the others under "".
        override: a configuration in the place of the folder's.

    Raises:
        ConfigError: the folder has no model that can be served; the message is one line that says why.
    """
    config = written_config(folder, config_name, completes=completes) if override is None else override
    complete_backend(config, folder)
    check_config(config)
    if not completes:
        _require_tensors(config)
    written = orjson.dumps(config_to_json(config)).decode()
    labels = {}
    if config.platform == ENSEMBLE:
        labels = {each.name: read_labels(each.name, each.label_filename, folder.path) for each in config.output}
    versions = {}
    for number in chosen_versions(folder, config):
        model = RepositoryModel(
            folder=str(folder.path),
            version=str(number),
            config=written,
            completes=completes,
            batch_size=batch_sizes.get(config.backend, batch_sizes.get("", REPOSITORY_BATCH_SIZE)),
            labels=labels,
        )
        if config.platform == ENSEMBLE:
            versions[number] = replace(base, model=str(folder.path), runtime=ENSEMBLE, repository=model)
        else:
            file = model_file(config, folder.version(number))
            runtime = backend_named(config.backend).runtime
            versions[number] = replace(base, model=str(file), runtime=runtime, repository=model)
    steps = tuple(dict.fromkeys(each.model_name for each in config.ensemble_scheduling.step))
    return PlannedModel(name=folder.name, config=config, versions=versions, steps=steps)


def written_config(folder: ModelFolder, config_name: str, *, completes: bool) -> Config:
    """The configuration of a folder; an empty one if there is none. Raises ConfigError: it cannot be read."""
    file = folder.config_file(config_name)
    where = _short(file, folder)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        if completes:
            return ModelConfig()
        raise ConfigError(f"there is no {where}, and configurations are not completed") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {where}: {getattr(error, 'strerror', None) or 'it is no UTF-8'}") from None
    return read_config(text, where)


def _short(file: Path, folder: ModelFolder) -> str:
    """A file as people know it: from its repository on."""
    return str(file.relative_to(folder.path.parent))


def _require_tensors(config: Config) -> None:
    for kind, tensors in (("input", config.input), ("output", config.output)):
        if not tensors:
            raise ConfigError(f"model configuration must specify one or more '{kind}' for {config.name}")
