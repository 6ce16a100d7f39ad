"""The settings of one hosted model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from octavo.hosting.batching import MAX_PRIORITY_LEVELS, Batching, QueuePolicy
from octavo.hosting.options import MAX_INSTANCES, ModelOptions
from octavo.settings import check, setting

if TYPE_CHECKING:
    from octavo.hosting.runtime import RuntimeOptions

LONGEST = 366 * 24 * 3600.0
"""Seconds."""

DEFAULT_BATCH_SIZE = 32

REPOSITORY_BATCH_SIZE = 4
"""`max_batch_size` of models of repositories that can be computed in batches, where nothing says it, as in Triton."""

PYTHON = "python"
"""The runtime of somebody's own code."""

ENSEMBLE = "ensemble"
"""The runtime of what other models compute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryModel:
    """One version of a model of a Triton repository, whose configuration says how it is served.

    Attributes:
        folder: of the model. version: the name of its folder there.
        config: its `ModelConfig` as JSON, with what its folder says in place of what is not written.
        completes: whether what is missing besides is taken from the model itself. batch_size: where that says nothing
            of it, but can be computed in batches.
        labels: of the outputs of an ensemble, by name. Frontends get them with it, whatever becomes of the files.
    """

    folder: str
    version: str
    config: str
    completes: bool = True
    batch_size: int = REPOSITORY_BATCH_SIZE
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostingConfig:
    """What is served (`model` is "file.py:Name", "module:Name", a file or a folder) and how.

    Names are those of Triton's model configurations where the meaning is the same; times are seconds.

    Attributes:
        search_path: where modules are looked for beside the usual places.
        repository: what a repository says, instead of the settings below.
    """

    model: str
    search_path: tuple[str, ...] = ()
    repository: RepositoryModel | None = None
    runtime: str | None = setting(
        None, help="What computes a hosted model.", metavar="NAME", without="what its file shows"
    )
    max_batch_size: int | None = setting(
        None,
        help="Items that are computed in one call; 0 computes each request alone.",
        least=0,
        most=2**20,
        without=f"what the code says, or {DEFAULT_BATCH_SIZE} for files with a free first dimension",
    )
    instances: int | None = setting(
        None,
        help="Of the model, which compute at the same time.",
        least=1,
        most=MAX_INSTANCES,
        without="what the code says, or 1",
    )
    max_queue_delay: float | None = setting(
        None,
        help="Seconds that a request waits for others to be computed with.",
        least=0,
        most=LONGEST,
        without="found out while serving",
    )
    preferred_batch_size: tuple[int, ...] = setting(
        (), help="A batch size to wait for; repeat it for more.", without="any"
    )
    latency_target: float = setting(
        0.0,
        help="Seconds from arrival to reply beyond which nobody waits for others; 0 for none.",
        least=0,
        most=LONGEST,
    )
    max_queue_size: int = setting(
        1024, help="Requests that may wait; more are refused with Retry-After. 0 for any number.", least=0, most=2**31
    )
    queue_timeout: float = setting(0.0, help="Seconds that a request may wait; 0 for ever.", least=0, most=LONGEST)
    queue_timeout_action: str = setting(
        "reject", help="What becomes of one that waited too long.", choices=("reject", "delay")
    )
    priority_levels: int = setting(
        0, help="Of requests, 1 being the most urgent; 0 for none.", least=0, most=MAX_PRIORITY_LEVELS
    )
    default_priority_level: int = setting(
        0, help="Of requests that name none; 0 for the middle one.", least=0, most=MAX_PRIORITY_LEVELS
    )
    preserve_ordering: bool = setting(False, help="Reply in the order of the requests.")
    response_cache: bool | None = setting(
        None,
        help="Give whoever asks the same again the same answer, from the cache that --cache-config makes.",
        without="what the code says, or false",
    )
    execution_timeout: float = setting(
        300.0,
        help="Seconds that one call may take; then its process is ended and started again. 0 for any time.",
        least=0,
        most=LONGEST,
    )
    device: str = setting(
        "auto", help="Where a hosted model computes: auto, cpu, cuda, cuda:1; ONNX also on tensorrt.", metavar="NAME"
    )
    runtime_threads: int | None = setting(
        None, help="Threads that one call computes with.", least=1, most=1024, without="what the runtime finds best"
    )
    reload: bool = setting(
        False, help="Load code again when its files change; requests in flight end on what they began with."
    )
    trust_pickle: bool = setting(False, help="Load files that run code of their own when they are loaded.")
    task: str | None = setting(
        None,
        help="Of a Hugging Face pipeline, such as text-classification; serves the model as one.",
        metavar="NAME",
        without="none",
    )
    model_class: str | None = setting(
        None, help="file.py:Class of the model whose weights a file holds.", metavar="NAME", without="none"
    )

    @property
    def version(self) -> str:
        """A number, as the Open Inference Protocol has it: "1" where nothing says another."""
        return self.repository.version if self.repository is not None else "1"

    def validate(self) -> None:
        """Check what can be checked without the model. Raises ConfigError."""
        check(self)
        self.batching(max(self.max_batch_size or 1, *self.preferred_batch_size, 1)).validate()

    def with_options(self, options: ModelOptions) -> "HostingConfig":
        """The same, with what code says of itself where nothing else is said."""
        return replace(
            self,
            max_batch_size=options.max_batch_size if self.max_batch_size is None else self.max_batch_size,
            instances=options.instances if self.instances is None else self.instances,
            max_queue_delay=options.max_queue_delay if self.max_queue_delay is None else self.max_queue_delay,
            response_cache=options.response_cache if self.response_cache is None else self.response_cache,
        )

    def batching(self, max_batch_size: int) -> Batching:
        """How requests are brought together, so many at most."""
        return Batching(
            max_batch_size=max_batch_size,
            preferred_batch_sizes=self.preferred_batch_size,
            max_queue_delay=self.max_queue_delay,
            latency_target=self.latency_target,
            priority_levels=self.priority_levels,
            default_priority_level=self.default_priority_level or (self.priority_levels + 1) // 2,
            default_policy=QueuePolicy(
                max_queue_size=self.max_queue_size,
                default_timeout=self.queue_timeout,
                delays=self.queue_timeout_action == "delay",
            ),
            preserve_ordering=self.preserve_ordering,
        )

    @property
    def runtime_options(self) -> "RuntimeOptions":
        """What a runtime is told."""
        from octavo.hosting.runtime import RuntimeOptions  # with numpy, which a supervisor need not load

        return RuntimeOptions(
            threads=self.runtime_threads,
            device=self.device,
            trust_pickle=self.trust_pickle,
            task=self.task or "",
            model_class=self.model_class or "",
        )
