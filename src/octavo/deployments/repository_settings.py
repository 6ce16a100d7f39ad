"""What a server is told about Triton's model repositories, under the names of Triton's flags."""

from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ConfigError
from octavo.settings import check, setting

ALL = "*"
"""For --load-model: every model of the repositories."""

MAX_SECONDS = 366 * 24 * 3600


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
        False, help="Take nothing from models that their configurations do not say."
    )
    model_config_name: str | None = setting(
        None,
        help="Of the configurations to take where a model has it, configs/NAME.pbtxt.",
        metavar="NAME",
        without="config.pbtxt",
    )

    def validate(self) -> None:
        """Check what can be checked without the repositories. Raises ConfigError."""
        check(self)
        if self.load_model and self.model_control_mode != "explicit":
            raise ConfigError(
                f"load_model is for model_control_mode explicit, and it is {self.model_control_mode}",
                "load_model",
                "model_control_mode",
            )
        if ALL in self.load_model and len(self.load_model) > 1:
            raise ConfigError("load_model has * and names; give * alone, or names", "load_model")

    @property
    def places(self) -> list[Path]:
        """The repositories. Raises ConfigError: one of them is no folder."""
        found = [Path(each).expanduser().resolve() for each in self.model_repository]
        for place in found:
            if not place.is_dir():
                what = "is no folder" if place.exists() else "does not exist"
                raise ConfigError(f"the model repository {place} {what}", "model_repository")
        return found
