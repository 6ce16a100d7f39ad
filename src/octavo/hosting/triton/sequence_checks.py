"""What can be wrong with `sequence_batching`. The words are Triton's."""

from collections.abc import Iterator

from octavo.hosting.triton import Config

_IDS = ("TYPE_UINT64", "TYPE_INT64", "TYPE_UINT32", "TYPE_INT32", "TYPE_STRING")
_VALUES = ("int32_false_true", "fp32_false_true", "bool_false_true")
_CORRID = "CONTROL_SEQUENCE_CORRID"


def sequence_troubles(config: Config) -> Iterator[str]:
    """All that is wrong with it."""
    batching, name = config.sequence_batching, config.name
    yield from _control_troubles(batching, name)
    for state in batching.state:
        yield from _state_troubles(state, name)
    inputs = [each.input_name for each in batching.state]
    for repeated in sorted({each for each in inputs if inputs.count(each) > 1}):
        yield f"State input name '{repeated}' specified more than once."
    match batching.WhichOneof("strategy_choice"):
        case "oldest":
            yield from _oldest_troubles(config)
        case _:
            if not 0 <= batching.direct.minimum_slot_utilization <= 1:
                yield f"sequence batching minimum slot utilization must be in range (0.0, 1.0] for {name}"
    if batching.state and config.backend == "python":
        yield "sequence_batching.state is not supported for python: its models keep the states of their sequences"
    if batching.iterative_sequence and config.backend != "python":
        yield f"sequence_batching.iterative_sequence is not supported for {config.backend}"


def _oldest_troubles(config: Config) -> Iterator[str]:
    oldest = config.sequence_batching.oldest
    if oldest.max_candidate_sequences < 0:
        yield f"sequence_batching.oldest.max_candidate_sequences is {oldest.max_candidate_sequences}; give 1 or more"
    for size in oldest.preferred_batch_size:
        if size <= 0:
            yield f"sequence batching preferred batch size must be positive for {config.name}"
        elif size > config.max_batch_size:
            yield f"sequence batching preferred batch size must be <= max batch size for {config.name}"


def _control_troubles(batching: Config, name: str) -> Iterator[str]:
    names: set[str] = set()
    kinds: set[str] = set()
    for each in batching.control_input:
        if not each.name:
            yield f"sequence batching control tensor must have a name for {name}"
        if each.name in names:
            yield (f"sequence batching control tensor '{each.name}' is specified for multiple control kinds for {name}")
        names.add(each.name)
        for control in each.control:
            kind = _name_of(control, "kind")
            if kind in kinds:
                yield f"sequence batching specifies multiple {kind} tensors for {name}"
            kinds.add(kind)
            yield from _value_troubles(control, kind, name)


def _value_troubles(control: Config, kind: str, name: str) -> Iterator[str]:
    given = [each for each in _VALUES if len(getattr(control, each))]
    if kind == _CORRID:
        if given:
            yield (
                "sequence batching must not specify either 'int32_false_true', 'fp32_false_true' or "
                f"'bool_false_true' for {kind} for {name}"
            )
        if _name_of(control, "data_type") not in _IDS:
            yield (
                f"unexpected data type for control {kind} for {name}. Allowed data types are TYPE_UINT64, TYPE_INT64, "
                "TYPE_UINT32, TYPE_INT32 and TYPE_STRING"
            )
    elif not given:
        yield (
            "sequence batching must specify either 'int32_false_true', 'fp32_false_true' or 'bool_false_true' for "
            f"{kind} for {name}"
        )
    elif len(given) > 1:
        yield (
            "sequence batching specifies more than one from 'int32_false_true', 'fp32_false_true' and "
            f"'bool_false_true' for {kind} for {name}"
        )
    elif len(getattr(control, given[0])) != 2:
        yield f"sequence batching control '{given[0]}' must have exactly 2 entries for {kind} for {name}"


def _state_troubles(state: Config, name: str) -> Iterator[str]:
    about = f"state input '{state.input_name}'"
    if not state.input_name or not state.output_name:
        yield f"sequence_batching.state of {name} must specify 'input_name' and 'output_name'"
    if not state.data_type:
        yield f"sequence_batching.state '{state.input_name}' of {name} must specify 'data_type'"
    if len(state.initial_state) > 1:
        yield (
            f"initial_state field for {about} must contain exactly one or zero element. Found "
            f"'{len(state.initial_state)}' elements."
        )
    for initial in state.initial_state:
        if initial.data_type != state.data_type:
            yield (
                f"The data type used for 'initial_state' field of state '{state.input_name}' does not match the state "
                "data type."
            )
        if not initial.name:
            yield f"Field 'name' must be set when using initial_state for {about}."
        if len(initial.dims) != len(state.dims):
            yield (
                "Number of dimensions in 'initial_state' doesn't match the size of 'state' dimensions for "
                f"{about}. {len(initial.dims)} != {len(state.dims)}"
            )
        for own, declared in zip(initial.dims, state.dims, strict=False):
            if own == -1:
                yield f"'initial_state' field for state input name '{state.input_name}' contains variable dimensions."
            elif declared not in (-1, own):
                yield (
                    f"'initial_state' dim for input name '{state.input_name}' doesn't match 'state' dim description. "
                    f"{own} != {declared}"
                )


def _name_of(message: Config, field: str) -> str:
    """What an enum is called."""
    enum = message.DESCRIPTOR.fields_by_name[field].enum_type
    return str(enum.values_by_number[getattr(message, field)].name)
