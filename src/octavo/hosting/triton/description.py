"""What a model's process knows of its configuration: the parts of `ModelConfig` that it works with, read from JSON.

The process has no use for protobuf, whose import would take as long as all the rest.
"""

from typing import Any

import msgspec

from octavo.hosting.batching import Batching, QueuePolicy
from octavo.hosting.datatypes import Datatype

_MICROSECONDS = 1e-6


class Reshape(msgspec.Struct, frozen=True, kw_only=True):
    """The dimensions that the model itself has."""

    shape: tuple[int, ...] = ()


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output. Dimensions are without that of the batch, -1 for those of any size."""

    name: str
    data_type: str
    dims: tuple[int, ...] = ()
    reshape: Reshape | None = None
    allow_ragged_batch: bool = False
    optional: bool = False
    label_filename: str = ""

    @property
    def datatype(self) -> Datatype:
        """As the protocol names it."""
        return datatype_of(self.data_type)

    @property
    def own_dims(self) -> tuple[int, ...]:
        """Those that the model itself has."""
        return self.dims if self.reshape is None else self.reshape.shape


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelQueuePolicy`."""

    timeout_action: str = "REJECT"
    default_timeout_microseconds: int = 0
    allow_timeout_override: bool = False
    max_queue_size: int = 0

    def queue_policy(self) -> QueuePolicy:
        """As the batcher has it."""
        return QueuePolicy(
            max_queue_size=self.max_queue_size,
            default_timeout=self.default_timeout_microseconds * _MICROSECONDS,
            allow_timeout_override=self.allow_timeout_override,
            delays=self.timeout_action == "DELAY",
        )


class DynamicBatching(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelDynamicBatching`."""

    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority_level: int = 0
    default_queue_policy: Policy = Policy()
    priority_queue_policy: dict[int, Policy] = {}

    def batching(self, max_batch_size: int) -> Batching:
        """As the batcher has it."""
        return Batching(
            max_batch_size=max_batch_size,
            preferred_batch_sizes=self.preferred_batch_size,
            max_queue_delay=self.max_queue_delay_microseconds * _MICROSECONDS,
            priority_levels=self.priority_levels,
            default_priority_level=self.default_priority_level,
            default_policy=self.default_queue_policy.queue_policy(),
            policies={level: policy.queue_policy() for level, policy in self.priority_queue_policy.items()},
            preserve_ordering=self.preserve_ordering,
        )


class GroupResource(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelRateLimiter.Resource`."""

    name: str = ""
    is_global: bool = msgspec.field(default=False, name="global")
    count: int = 0


class GroupLimiter(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelRateLimiter`."""

    resources: tuple[GroupResource, ...] = ()
    priority: int = 0


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelInstanceGroup`."""

    name: str = ""
    kind: str = "KIND_AUTO"
    count: int = 0
    rate_limiter: GroupLimiter | None = None
    gpus: tuple[int, ...] = ()
    passive: bool = False


class WarmupInput(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelWarmup.Input`: one of the last three is there."""

    data_type: str
    dims: tuple[int, ...] = ()
    zero_data: bool = False
    random_data: bool = False
    input_data_file: str = ""


class Warmup(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelWarmup`."""

    name: str = ""
    batch_size: int = 0
    inputs: dict[str, WarmupInput] = {}
    count: int = 0


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelParameter`."""

    string_value: str = ""


class Transactions(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelTransactionPolicy`."""

    decoupled: bool = False


class ResponseCaching(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelResponseCache`."""

    enable: bool = False


class Accelerator(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelOptimizationPolicy.ExecutionAccelerators.Accelerator`."""

    name: str = ""


class Accelerators(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelOptimizationPolicy.ExecutionAccelerators`."""

    gpu_execution_accelerator: tuple[Accelerator, ...] = ()


class Optimization(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelOptimizationPolicy`."""

    execution_accelerators: Accelerators = Accelerators()


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelConfig`, as far as its model's process works with it."""

    name: str
    platform: str = ""
    backend: str = ""
    max_batch_size: int = 0
    input: tuple[Tensor, ...] = ()
    output: tuple[Tensor, ...] = ()
    dynamic_batching: DynamicBatching | None = None
    sequence_batching: dict[str, Any] | None = None
    instance_group: tuple[Group, ...] = ()
    parameters: dict[str, Parameter] = {}
    model_warmup: tuple[Warmup, ...] = ()
    model_transaction_policy: Transactions = Transactions()
    optimization: Optimization = Optimization()
    response_cache: ResponseCaching = ResponseCaching()

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Description":
        """Read from `ModelConfig` as JSON."""
        return msgspec.convert(config, cls, strict=False)

    @property
    def merges(self) -> bool:
        """Whether requests are computed together: only where the configuration says so."""
        return (self.dynamic_batching or self.sequence_batching) is not None and self.max_batch_size > 0

    def batching(self) -> Batching:
        """How its requests wait and are brought together."""
        return (self.dynamic_batching or DynamicBatching()).batching(max(self.max_batch_size, 1))


def datatype_of(data_type: str) -> Datatype:
    """The datatype of a `DataType`."""
    return Datatype.BYTES if data_type == "TYPE_STRING" else Datatype(data_type.removeprefix("TYPE_"))


def data_type_of(datatype: Datatype) -> str:
    """A datatype's `DataType`."""
    return "TYPE_STRING" if datatype is Datatype.BYTES else f"TYPE_{datatype.value}"
