"""What the deployment of a hosted model is told, and which models are hosted ones."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from octavo.deployments.settings import DEPLOYMENT_SETTINGS, DeploymentSettings, NamedSettings, checked, chosen_name
from octavo.errors import ConfigError
from octavo.hosting.code_names import models_in, names_code
from octavo.hosting.config import HostingConfig
from octavo.hosting.runtimes import runtime_of
from octavo.settings import Setting, Source, Values, resolve, settings_of


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedSettings(NamedSettings):
    """A hosted model's deployment, as it is to be.

    Attributes:
        hosting: how it is served; its `model` is where that lies on this machine, empty until that is known.
    """

    hosting: HostingConfig

    def located(self) -> "HostedSettings":
        """The same settings, once it is seen that there is such a model. Raises ConfigError: there is none."""
        if self.hosting.search_path:  # a module, which is found when it is imported
            return replace(self, hosting=replace(self.hosting, model=self.model))
        place = Path(self.model.partition(":")[0] if names_code(self.model) else self.model).expanduser()
        if not place.exists():
            if self.hosting.task is None or len(place.parts) != 2:
                raise ConfigError(f"there is no file {place}")
            return replace(self, hosting=replace(self.hosting, model=self.model))  # a repository's id
        rest = self.model.partition(":")[2] if names_code(self.model) else ""
        located = f"{place.resolve()}:{rest}" if rest else str(place.resolve())
        return replace(self, hosting=replace(self.hosting, model=located))

    def validate(self) -> None:
        """Check what can be checked without the model. Raises ConfigError."""
        NamedSettings.validate(self)
        self.hosting.validate()


HOSTED_SETTINGS: Mapping[str, Setting] = {**settings_of(HostedSettings), **settings_of(HostingConfig)}
"""Every setting that the deployment of a hosted model has, by name."""

ONE_MODEL = ("served_model_name", "runtime", "task", "model_class")
"""Settings that are about one model."""

EVERY_SETTING: Mapping[str, Setting] = {**DEPLOYMENT_SETTINGS, **HOSTED_SETTINGS}
"""Of deployments of either kind."""

AnySettings = DeploymentSettings | HostedSettings


def is_hosted(model: str, *sources: Source) -> bool:
    """Whether a model is no language model, as far as that can be seen without reading it."""
    if any(source(HOSTED_SETTINGS[name]) for source in sources for name in ("runtime", "task")):
        return True
    if names_code(model):
        return True
    path = Path(model).expanduser()
    return (path.is_dir() or bool(path.suffix)) and runtime_of(path) is not None


def expand(model: str) -> dict[str, str]:
    """The models that a name stands for, each with what it is called: a file of code may have several.

    Raises:
        ConfigError: it has none, or cannot be read.
    """
    if names_code(model):
        return models_in(model)
    return {model: Path(model).stem if Path(model).exists() else model}


def resolve_hosted(name: str | None, model: str, *sources: Source) -> tuple[HostedSettings, Values]:
    """A deployment's settings, checked, and where each was written.

    Args:
        name: None takes the first of `served_model_name`, or else the model's.

    Raises:
        ConfigError: a setting that cannot work.
    """
    values = resolve(HOSTED_SETTINGS.values(), *sources)
    settings: HostedSettings = values.build(
        HostedSettings,
        name=chosen_name(name, values, next(iter(expand(model).values()))),
        model=model,
        hosting=values.build(HostingConfig, model=""),
    )
    return checked(settings, values), values
