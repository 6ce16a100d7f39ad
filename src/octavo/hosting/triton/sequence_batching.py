"""`ModelSequenceBatching`, as a model's process works with it."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from octavo.errors import ConfigError
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.sequence_computation import State
from octavo.hosting.sequence_inputs import Control, ControlKind, SequenceInputs
from octavo.hosting.sequencing import DEFAULT_IDLE_SECONDS, Sequencing
from octavo.hosting.tensors import Place, from_bytes
from octavo.hosting.triton.description import Description, Tensor, data_type_of, datatype_of

_MICROSECONDS = 1e-6

STATE_FOLDER = "initial_state"
"""In a model's folder: the files of states."""


class ControlValue(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelSequenceBatching.Control`."""

    kind: ControlKind = ControlKind.START
    int32_false_true: tuple[int, ...] = ()
    fp32_false_true: tuple[float, ...] = ()
    bool_false_true: tuple[bool, ...] = ()
    data_type: str = "TYPE_INVALID"

    def control(self, name: str) -> Control:
        """As requests get it."""
        if self.kind is ControlKind.CORRID:
            return Control(name=name, kind=self.kind, datatype=datatype_of(self.data_type))
        for datatype, values in (
            (Datatype.INT32, self.int32_false_true),
            (Datatype.FP32, self.fp32_false_true),
            (Datatype.BOOL, self.bool_false_true),
        ):
            if values:
                false, true = values
                return Control(name=name, kind=self.kind, datatype=datatype, values=(false, true))
        raise AssertionError("a configuration without values is refused before it is loaded")


class ControlInput(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelSequenceBatching.ControlInput`."""

    name: str
    control: tuple[ControlValue, ...] = ()


class InitialState(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelSequenceBatching.InitialState`."""

    data_type: str
    dims: tuple[int, ...] = ()
    zero_data: bool = False
    data_file: str = ""


class StateTensor(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelSequenceBatching.State`."""

    input_name: str
    output_name: str
    data_type: str
    dims: tuple[int, ...] = ()
    initial_state: tuple[InitialState, ...] = ()

    def state(self, folder: Path, *, batched: bool) -> State:
        """As it is kept. Raises ConfigError: its file cannot be read, or is another one."""
        datatype = datatype_of(self.data_type)
        initial = self.initial_state[0] if self.initial_state else None
        dims = tuple(max(size, 1) for size in (self.dims if initial is None else initial.dims))
        if initial is None or not initial.data_file:
            array = np.full(dims, b"", object) if datatype is Datatype.BYTES else np.zeros(dims, datatype.dtype)
        else:
            file = folder / STATE_FOLDER / initial.data_file
            if not file.resolve().is_relative_to(folder.resolve()):
                raise ConfigError(f"initial_state: data_file is '{initial.data_file:.200}', which is not in its folder")
            try:
                data = memoryview(file.read_bytes())
                array = from_bytes(datatype, dims, data, Place(self.input_name, folder.name)).array
            except OSError as error:
                raise ConfigError(f"failed to read the initial state of '{self.input_name}': {error}") from None
            except InferenceError as error:
                raise ConfigError(f"{file}: {error}") from None
        return State(
            input=self.input_name,
            output=self.output_name,
            datatype=datatype,
            initial=array[np.newaxis] if batched else array,
        )


class Direct(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelSequenceBatching.StrategyDirect`."""

    max_queue_delay_microseconds: int = 0
    minimum_slot_utilization: float = 0.0


class Oldest(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelSequenceBatching.StrategyOldest`."""

    max_candidate_sequences: int = 0
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0


class SequenceBatching(msgspec.Struct, frozen=True, kw_only=True):
    """`ModelSequenceBatching`."""

    max_sequence_idle_microseconds: int = 0
    direct: Direct | None = None
    oldest: Oldest | None = None
    control_input: tuple[ControlInput, ...] = ()
    state: tuple[StateTensor, ...] = ()
    iterative_sequence: bool = False

    def sequencing(self, max_batch_size: int) -> Sequencing:
        """As the scheduler has it."""
        size = max(max_batch_size, 1)
        idle = self.max_sequence_idle_microseconds * _MICROSECONDS or DEFAULT_IDLE_SECONDS
        common = Sequencing(max_batch_size=size, slots=size, max_idle=idle, iterative=self.iterative_sequence)
        if self.oldest is not None:
            return replace(
                common,
                oldest=True,
                slots=self.oldest.max_candidate_sequences or size,
                preferred_batch_sizes=self.oldest.preferred_batch_size,
                max_queue_delay=self.oldest.max_queue_delay_microseconds * _MICROSECONDS,
            )
        direct = self.direct or Direct()
        return replace(
            common,
            max_queue_delay=direct.max_queue_delay_microseconds * _MICROSECONDS,
            minimum_slot_utilization=direct.minimum_slot_utilization,
        )

    @property
    def controls(self) -> list[Control]:
        """The control tensors."""
        return [value.control(each.name) for each in self.control_input for value in each.control]

    def inputs(self, max_batch_size: int) -> SequenceInputs:
        """What makes them."""
        return SequenceInputs(self.controls, batched=max_batch_size > 0)


def sequence_batching_of(config: dict[str, object]) -> SequenceBatching | None:
    """How a configuration has sequences computed, if it does."""
    found = config.get("sequence_batching")
    return None if found is None else msgspec.convert(found, SequenceBatching, strict=False)


def with_sequence_tensors(description: Description, batching: SequenceBatching | None) -> Description:
    """A configuration with the tensors that the model has beside those of requests."""
    if batching is None:
        return description
    outputs = {each.name for each in description.output}
    added = [Tensor(name=each.name, data_type=data_type_of(each.datatype), dims=(1,)) for each in batching.controls]
    added += [Tensor(name=each.input_name, data_type=each.data_type, dims=each.dims) for each in batching.state]
    states = [
        Tensor(name=each.output_name, data_type=each.data_type, dims=each.dims)
        for each in batching.state
        if each.output_name not in outputs
    ]
    return msgspec.structs.replace(
        description, input=(*description.input, *added), output=(*description.output, *states)
    )
