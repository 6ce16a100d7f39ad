"""Regions that clients have made: what can be wrong with them, and that nothing of the server's is reached by them."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.hosting.errors import InferenceError
from octavo.server.inference.shared_memory import FOLDER, SharedMemory

SIZE = 100
CONTENT = bytes(range(SIZE))


@pytest.fixture(scope="module")
def key() -> Iterator[str]:
    name = f"test-{os.getpid()}"
    (FOLDER / name).write_bytes(CONTENT)
    yield f"/{name}"
    (FOLDER / name).unlink()


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory(allowed=True)
    yield memory
    memory.close()


def test_what_is_written_is_read(memory: SharedMemory, key: str) -> None:
    memory.register("r", key, 10, 80)
    assert memory.status("r") == [{"name": "r", "key": key, "offset": 10, "byte_size": 80}]
    assert memory.window("r", 5, 4).read() == CONTENT[15:19]
    memory.window("r", 79, 1).write("OUT", b"x")
    assert (FOLDER / key[1:]).read_bytes()[89:90] == b"x"
    with pytest.raises(InferenceError, match=r"\(3 bytes\) should be at least 4 bytes"):
        memory.window("r", 0, 3).write("OUT", b"1234")


@given(offset=st.integers(-2, 2**65), size=st.integers(-2, 2**65))
def test_a_region_lies_within_its_file(key: str, offset: int, size: int) -> None:
    memory = SharedMemory(allowed=True)
    fits = offset >= 0 and size > 0 and offset + size <= SIZE
    if fits:
        memory.register("r", key, offset, size)
    else:
        with pytest.raises(InferenceError, match="failed to register shared memory region 'r': invalid args"):
            memory.register("r", key, offset, size)
    memory.close()


@given(offset=st.integers(-2, 2**64), size=st.integers(-2, 2**64))
def test_a_window_lies_within_its_region(key: str, offset: int, size: int) -> None:
    memory = SharedMemory(allowed=True)
    memory.register("r", key, 20, 40)
    if 0 <= offset < 40 and 0 <= size <= 40 - offset:
        assert memory.window("r", offset, size).read() == CONTENT[20 + offset : 20 + offset + size]
    else:
        with pytest.raises(InferenceError, match="Invalid offset"):
            memory.window("r", offset, size)
    memory.close()


@pytest.mark.parametrize(
    "wrong", ["", "/", "..", "/..", "a/b", "../../etc/passwd", "/../etc/passwd", "a\0b", "x" * 256]
)
def test_keys_name_files_of_one_folder(memory: SharedMemory, wrong: str) -> None:
    with pytest.raises(InferenceError, match="cannot register shared memory region 'r' - invalid shm key"):
        memory.register("r", wrong, 0, 10)


def test_our_own_regions_are_not_clients(memory: SharedMemory) -> None:
    with pytest.raises(InferenceError, match="reserved prefix 'octavo'"):
        memory.register("r", "/octavo-run-x", 0, 10)


def test_links_and_pipes_are_no_regions(memory: SharedMemory, key: str) -> None:
    link, pipe = FOLDER / f"{key[1:]}-link", FOLDER / f"{key[1:]}-pipe"
    link.symlink_to("/etc/hostname")
    os.mkfifo(pipe)
    try:
        for each in (link, pipe):
            with pytest.raises(InferenceError, match=r"Unable to open|invalid args"):
                memory.register("r", each.name, 0, 1)
    finally:
        link.unlink()
        pipe.unlink()


def test_a_region_that_a_client_shortens_is_an_error(memory: SharedMemory, key: str) -> None:
    short = FOLDER / f"{key[1:]}-short"
    short.write_bytes(CONTENT)
    try:
        memory.register("r", short.name, 0, SIZE)
        window = memory.window("r", 0, SIZE)
        os.truncate(short, 10)
        with pytest.raises(InferenceError, match="has become shorter"):
            window.read()
        memory.unregister("r")
        with pytest.raises(InferenceError, match="unregistered"):
            window.write("OUT", b"x")
    finally:
        short.unlink()


def test_names_are_taken_once_and_given_back(memory: SharedMemory, key: str) -> None:
    before = len(os.listdir("/dev/fd"))
    memory.register("r", key, 0, 1)
    with pytest.raises(InferenceError, match="already in manager"):
        memory.register("r", key, 0, 1)
    with pytest.raises(InferenceError, match="Unable to find system shared memory region"):
        memory.status("s")
    memory.register("s", key, 0, 1)
    memory.unregister("s")
    memory.unregister("s")
    memory.unregister()
    assert memory.status() == []
    assert len(os.listdir("/dev/fd")) == before
    with pytest.raises(InferenceError, match="Unable to find shared memory region"):
        memory.window("r", 0, 1)


def test_nothing_is_registered_unless_it_is_allowed(key: str) -> None:
    memory = SharedMemory(allowed=False)
    for refused in (
        lambda: memory.register("r", key, 0, 1),
        memory.unregister,
        lambda: memory.window("r", 0, 1),
    ):
        with pytest.raises(InferenceError, match="--allow-client-shm"):
            refused()
    assert memory.status() == []
