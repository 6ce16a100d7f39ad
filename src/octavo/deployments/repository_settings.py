"""What a server is told about Triton's model repositories, under the names of Triton's flags."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from octavo.deployments.backend_config import default_batch_sizes
from octavo.errors import ConfigError
from octavo.hosting.rate_limits import Available
from octavo.settings import check, setting, shown

ALL = "*"
"""For --load-model: every model of the repositories."""

MAX_SECONDS = 366 * 24 * 3600

OFF, EXECUTION_COUNT = "off", "execution_count"

MAX_COUNT = 2**31 - 1
"""Of a resource."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositorySettings:
    """Repositories, and how their models are loaded."""

    model_repository: tuple[str, ...] = setting(
        (),
        help="A Triton model repository to serve; repeat it for more.",
        metavar="DIR",
        aliases=("--model-store",),
        without="none",
    )
    model_control_mode: str = setting(
        "none",
        help="Which models of a repository are loaded: all, at the start (none); all, as their folders change (poll); "
        "those that clients want (explicit).",
        choices=("none", "poll", "explicit"),
    )
    load_model: tuple[str, ...] = setting(
        (),
        help="A model to load at the start in the explicit mode; repeat it for more, * is all.",
        metavar="NAME",
        without="none",
    )
    repository_poll_secs: float = setting(
        15.0, help="Seconds between two looks at a repository in the poll mode.", above=0, most=MAX_SECONDS
    )
    model_load_thread_count: int = setting(
        4, help="Models of a repository that are loaded at the same time.", least=1, most=1024
    )
    model_load_retry_count: int = setting(
        0, help="How often a model of a repository is tried again that cannot be loaded.", least=0, most=1000
    )
    exit_on_error: bool = setting(False, help="End if a model of a repository cannot be loaded at the start.")
    disable_auto_complete_config: bool = setting(
        False,
        help="Take nothing from models that their configurations do not say.",
        aliases=("--strict-model-config",),
    )
    model_config_name: str | None = setting(
        None,
        help="Of the configurations to take where a model has it, configs/NAME.pbtxt.",
        metavar="NAME",
        without="config.pbtxt",
    )

    rate_limit: str = setting(
        OFF,
        help="Whether instances wait for the resources that their groups name (execution_count), or compute as soon as "
        "they can (off).",
        choices=(OFF, EXECUTION_COUNT),
    )
    rate_limit_resource: tuple[str, ...] = setting(
        (),
        help="How many of a resource there are, on one device or on each; repeat it for more.",
        metavar="NAME:COUNT[:DEVICE]",
        without="as many as the instance needs that needs the most",
    )
    backend_config: tuple[str, ...] = setting(
        (),
        help="A setting of a backend's, as BACKEND,SETTING=VALUE; of Triton's there is default-max-batch-size.",
        metavar="SETTING",
        without="none",
    )

    def validate(self) -> None:
        """Check what can be checked without the repositories. Raises ConfigError."""
        check(self)
        _ = self.resources
        default_batch_sizes(self.backend_config)
        if self.load_model and self.model_control_mode != "explicit":
            raise ConfigError(
                f"load_model is for model_control_mode explicit, and it is {self.model_control_mode}",
                "load_model",
                "model_control_mode",
            )
        if ALL in self.load_model and len(self.load_model) > 1:
            raise ConfigError("load_model has * and names; give * alone, or names", "load_model")

    @property
    def limits(self) -> bool:
        """Whether instances wait for resources."""
        return self.rate_limit == EXECUTION_COUNT

    @property
    def resources(self) -> list[Available]:
        """How many there are, where that is said. Raises ConfigError: it is not said so that it can be understood."""
        return [_resource(each) for each in self.rate_limit_resource]

    @property
    def default_batch_sizes(self) -> Mapping[str, int]:
        """`max_batch_size` of models whose configurations do not say it, by backend; of the others under ""."""
        return default_batch_sizes(self.backend_config)

    @property
    def places(self) -> list[Path]:
        """The repositories. Raises ConfigError: one of them is no folder."""
        for each in self.model_repository:
            if "://" in each:
                why = "is not on this machine; fetch it first, or mount it"
                raise ConfigError(f"the model repository {each} {why}", "model_repository")
        found = [Path(each).expanduser().resolve() for each in self.model_repository]
        for place in found:
            if not place.is_dir():
                what = "is no folder" if place.exists() else "does not exist"
                raise ConfigError(f"the model repository {place} {what}", "model_repository")
        return found


def _resource(written: str) -> Available:
    name, *numbers = (part.strip() for part in written.split(":"))
    if (
        not name
        or len(numbers) not in (1, 2)
        or not all(each.isdecimal() and int(each) <= MAX_COUNT for each in numbers)
    ):
        raise ConfigError(
            f"rate_limit_resource is {shown(written)}, but must be <resource_name>:<count>:<device> or "
            "<resource_name>:<count>, as in R1:4 or R1:4:0",
            "rate_limit_resource",
        )
    count, *devices = map(int, numbers)
    return Available(name, count, devices[0] if devices else None)
