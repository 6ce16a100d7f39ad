"""Files of traces: which traces are in which, whoever writes them, and what is in them at any moment."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from octavo.deployments.trace_files import TraceState
from octavo.deployments.trace_settings import TraceSetting, read_trace_config
from octavo.errors import ConfigError


@pytest.fixture
def states(tmp_path: Path) -> Iterator[tuple[TraceState, TraceState]]:
    """Those of two frontends."""
    (tmp_path / "private").mkdir()
    path = str(tmp_path / "private" / "state")
    made = TraceState.create(path), TraceState(path)
    yield made
    for each in made:
        each.close()


def setting(state: TraceState, number: int = 1, count: int = -1, frequency: int = 0) -> TraceSetting:
    made = TraceSetting(number=number, levels=("TIMESTAMPS",), rate=1, count=count, log_frequency=frequency)
    state.begin(made)
    return made


def traces(*names: int) -> list[bytes]:
    return [b'{"id":%d},{"id":%d}' % (name, name) for name in names]


def files(folder: Path) -> dict[str, list[int]]:
    """What each has, a number for each trace."""
    return {
        each.name.removeprefix("trace"): [entry["id"] for entry in json.loads(each.read_text())][::2]
        for each in sorted(folder.glob("trace*"))
    }


def test_one_file_has_all_and_is_whole_after_each(tmp_path: Path, states: tuple[TraceState, TraceState]) -> None:
    one, other = states
    made, file = setting(one), str(tmp_path / "trace")
    Path(file).write_text("of an earlier server")
    one.write(file, made, traces(1))
    assert files(tmp_path) == {"": [1]}
    other.write(file, made, traces(2, 3))
    one.write(file, made, traces(4))
    one.end(file, made)
    assert files(tmp_path) == {"": [1, 2, 3, 4]}
    Path(file).unlink()
    other.write(file, made, traces(5))
    assert files(tmp_path) == {"": [5]}, "somebody has taken the file away"


def test_files_with_numbers_have_as_many_as_was_said(tmp_path: Path, states: tuple[TraceState, TraceState]) -> None:
    one, other = states
    made, file = setting(one, frequency=3), str(tmp_path / "trace")
    one.write(file, made, traces(1, 2))
    assert files(tmp_path) == {".part1": [1, 2]}
    other.write(file, made, traces(3, 4, 5, 6, 7))
    assert files(tmp_path) == {".0": [1, 2, 3], ".1": [4, 5, 6], ".part1": [7]}
    one.end(file, made)
    assert files(tmp_path) == {".0": [1, 2, 3], ".1": [4, 5, 6], ".2": [7]}
    other.write(file, made, traces(8))
    assert files(tmp_path)[""] == [8], "it was still going on"


def test_a_count_is_used_up_by_all_together_and_then_there_is_a_file(
    tmp_path: Path, states: tuple[TraceState, TraceState]
) -> None:
    one, other = states
    made, file = setting(one, count=3), str(tmp_path / "trace")
    assert [each.take(made) for each in (one, other, one, other)] == [True, True, True, False]
    assert other.left(made) == 0
    other.give_back(made)
    assert one.left(made) == 1
    assert one.take(made)
    one.write(file, made, traces(1, 2))
    assert files(tmp_path) == {".part1": [1, 2]}
    other.write(file, made, traces(3))
    assert files(tmp_path) == {".0": [1, 2, 3]}


def test_what_a_count_has_left_at_the_end_is_with_the_others(
    tmp_path: Path, states: tuple[TraceState, TraceState]
) -> None:
    one, _ = states
    made, usual, file = setting(one, 1, count=3), setting(one, 2), str(tmp_path / "trace")
    one.write(file, usual, traces(1))
    one.write(file, made, traces(2))
    one.end(file, made)
    assert files(tmp_path) == {"": [1, 2]}
    assert one.take(usual)
    assert one.left(usual) == -1


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Files can have so many bytes, as on a disk that is full then."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


@pytest.mark.parametrize("count", [-1, 100])
def test_a_full_disk_costs_traces_and_leaves_files_whole(
    tmp_path: Path, states: tuple[TraceState, TraceState], count: int
) -> None:
    one, other = states
    made, file = setting(one, count=count), str(tmp_path / "trace")
    with room_for(40), pytest.raises(OSError, match="File too large"):
        one.write(file, made, traces(100, 200, 300, 400, 500) if count < 0 else [b",".join(traces(1, 2, 3))])
    assert files(tmp_path) == {}
    one.write(file, made, traces(1))
    with room_for(40), pytest.raises(OSError, match="File too large"):
        other.write(file, made, [b",".join(traces(2, 3))])
    assert list(files(tmp_path).values()) == [[1]]
    other.write(file, made, traces(4))
    assert list(files(tmp_path).values()) == [[1, 4]]


def test_numbers_are_nobody_else_s(states: tuple[TraceState, TraceState]) -> None:
    one, other = states
    assert [one.numbers(3), other.numbers(1), one.numbers(2)] == [1, 4, 5]


# --- --trace-config ---------------------------------------------------------------------------------------------------


def test_flags_are_triton_s() -> None:
    found = read_trace_config(
        ["triton,file=/tmp/a,b", "triton,log-frequency=50", "rate=100", "level=tensors", "level=min", "count=7"]
    )
    assert found.file == "/tmp/a,b"
    assert found.common == TraceSetting(levels=("TIMESTAMPS", "TENSORS"), rate=100, count=7, log_frequency=50)
    assert read_trace_config(["triton", "file=x", "level=TIMESTAMPS"]).file == "x", "as a variable of the environment"
    assert read_trace_config(["level=OFF", "level=TIMESTAMPS", "mode=triton"]).common.levels == ()
    assert read_trace_config([]).common == TraceSetting()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("rate", "'rate' is not of the form <mode>,<setting>=<value> or <setting>=<value>"),
        (",rate=1", "is not of the form"),
        ("rate=", "is not of the form"),
        ("opentelemetry,url=x", "is about the mode 'opentelemetry'; there is triton, which writes files"),
        ("mode=opentelemetry", "mode is 'opentelemetry'; there is triton"),
        ("file=x", "'file=x' sets what there is not; there is triton,file, triton,log-frequency, level"),
        ("triton,rate=1", "'triton,rate=1' sets what there is not"),
        ("rate=-1", "rate is '-1', but must be a whole number from 0 to 2147483647"),
        ("count=-2", "count is '-2', but must be a whole number from -1 to"),
        ("count=many", "count is 'many'"),
        ("level=ALL", "level is 'ALL'; give TIMESTAMPS, TENSORS or OFF"),
        ("level=TIMESTAMPS", "trace file name is not given; --trace-config triton,file=PATH says it"),
    ],
)
def test_flags_that_cannot_be(written: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_trace_config([written])
    assert message in str(caught.value)
