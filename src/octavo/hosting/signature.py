"""What a model takes and gives, and whether a request keeps to it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from octavo.errors import ConfigError
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.tensors import Encoded, Tensor, written

ANY = -1
"""A dimension of any size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor that a model takes or gives.

    Attributes:
        datatype: None if the model does not say: it may be any, and so may that of each answer.
        dims: without the batch dimension; `ANY` for those of any size; None if there may be any number of them.
        optional: whether a request may leave it out; of an output, whether only those get it who name it.
        ragged: whether requests with other sizes may share a batch.
        labels: what the classes are called that an output's values are for, in their order; none if nobody said.
        value: what Python has in the place of one item's tensor: "str", "list[str]", "json", …
            (`octavo.hosting.values.codec_named`); empty for an array.
    """

    name: str
    datatype: Datatype | None
    dims: tuple[int, ...] | None
    optional: bool = False
    ragged: bool = False
    labels: tuple[str, ...] = ()
    value: str = ""

    def admits(self, dims: Sequence[int]) -> bool:
        """Whether a tensor of such dimensions is one."""
        return self.dims is None or (
            len(dims) == len(self.dims)
            and all(size in (ANY, given) for size, given in zip(self.dims, dims, strict=True))
        )


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives.

    Attributes:
        model: its name. max_batch_size: requests have a batch dimension in front, of this size at most; 0 for none.
    """

    model: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = 0

    @cached_property
    def _inputs(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self.inputs}

    @cached_property
    def _outputs(self) -> frozenset[str]:
        return frozenset(spec.name for spec in self.outputs)

    @cached_property
    def _required(self) -> int:
        return sum(not spec.optional for spec in self.inputs)

    def require_distinct_names(self) -> None:
        """Raises ConfigError: two tensors of one name."""
        for kind, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [each.name for each in specs]
            if len(set(names)) != len(names):
                raise ConfigError(f"the model {self.model} has two {kind} of one name: {', '.join(names)}")

    def full_dims(self, spec: TensorSpec) -> tuple[int, ...]:
        """A tensor's dimensions with that of the batch. One of any size stands for those that may be any number."""
        dims = (ANY,) if spec.dims is None else spec.dims
        return (ANY, *dims) if self.max_batch_size else dims

    def check(self, inputs: Mapping[str, Tensor | Encoded], outputs: Sequence[str] = ()) -> int:
        """The items of a request: the size of its batch dimension, 1 without one.

        Args:
            outputs: that are asked for; none for all.

        Raises:
            InferenceError: it does not keep to this.
        """
        for name in outputs:
            if name not in self._outputs:
                raise InferenceError(f"unexpected inference output '{name}' for model '{self.model}'")
        self._check_names(inputs)
        items = self._items(inputs) if self.max_batch_size else 1
        for name, tensor in inputs.items():
            self._check_tensor(self._inputs[name], tensor)
        return items

    def _check_names(self, inputs: Mapping[str, Tensor | Encoded]) -> None:
        for name in inputs:
            if name not in self._inputs:
                raise InferenceError(f"unexpected inference input '{name}' for model '{self.model}'")
        missing = [name for name, spec in self._inputs.items() if not spec.optional and name not in inputs]
        if missing:
            most, least = len(self.inputs), self._required
            between = f"number of inputs between {least} and {most}"
            expected = f"expected {most} inputs" if most == least else f"expected {between}"
            raise InferenceError(
                f"{expected} but got {len(inputs)} inputs for model '{self.model}'. Got input(s) {_quoted(inputs)}, "
                f"but missing required input(s) {_quoted(missing)}. Please provide all required input(s)."
            )

    def _items(self, inputs: Mapping[str, Tensor | Encoded]) -> int:
        items: int | None = None
        for name, tensor in inputs.items():
            if not tensor.shape:
                raise InferenceError(
                    f"input '{name}' has no shape but model requires batch dimension for '{self.model}'"
                )
            if items is not None and tensor.shape[0] != items:
                raise InferenceError(f"input '{name}' batch size does not match other inputs for '{self.model}'")
            items = tensor.shape[0]
        if not items:
            raise InferenceError(f"inference request batch-size must be >= 1 for '{self.model}'")
        if items > self.max_batch_size:
            raise InferenceError(
                f"inference request batch-size must be <= {self.max_batch_size} for '{self.model}', and is {items}"
            )
        return items

    def _check_tensor(self, spec: TensorSpec, tensor: Tensor | Encoded) -> None:
        if spec.datatype not in (None, tensor.datatype):
            raise InferenceError(
                f"inference input '{spec.name}' data-type is '{tensor.datatype}', but model '{self.model}' expects "
                f"'{spec.datatype}'"
            )
        shape = tensor.shape
        if not spec.admits(shape[1:] if self.max_batch_size else shape):
            note = " The first dimension is that of the batch." if self.max_batch_size else ""
            raise InferenceError(
                f"unexpected shape for input '{spec.name}' for model '{self.model}'. Expected "
                f"{written(self.full_dims(spec))}, got {written(shape)}.{note}"
            )


def first_dims_are_free(specs: Iterable[TensorSpec]) -> bool | None:
    """Whether the first dimension of all tensors may be of any size, as that of a batch; None if nobody knows."""
    first = [None if spec.dims is None else spec.dims[:1] == (ANY,) for spec in specs]
    return False if False in first else None if None in first else True


def without_batch(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The same without their first dimension."""
    return tuple(replace(spec, dims=None if spec.dims is None else spec.dims[1:]) for spec in specs)


def _quoted(names: Mapping[str, object] | Sequence[str]) -> str:
    return "[" + ",".join(f"'{name}'" for name in names) + "]"
