"""Folders of sockets: private, and removed by the next server when their owner was killed."""

import multiprocessing
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo.worker.folder import PrivateFolder

MAKE = "from octavo.worker.folder import PrivateFolder; f = PrivateFolder(); print(f.path, flush=True); input()"


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for temporary files, with a path that is short, unlike pytest's."""
    tmp_path_factory.getbasetemp()  # which must not lie in this one
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        monkeypatch.setenv("TMPDIR", path)
        monkeypatch.setattr("tempfile.tempdir", path)
        yield Path(path)


def test_a_folder_is_private_and_goes_when_it_is_closed(temporary: Path) -> None:
    folder = PrivateFolder()
    (folder.path / "socket").touch()
    assert folder.path.parent == temporary
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.close()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_uses_is_not(temporary: Path) -> None:
    other = temporary / "octavo-run-of-nobody"
    other.mkdir()
    (temporary / "octavo-chat-of-somebody").mkdir()
    killed, living = (
        subprocess.Popen([sys.executable, "-c", MAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    paths = []
    for process in (killed, living):
        assert process.stdout is not None
        paths.append(Path(process.stdout.readline().strip()))
        (paths[-1] / "socket").touch()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    with killed, living:
        folder = PrivateFolder()
        assert set(temporary.iterdir()) == {folder.path, paths[1], temporary / "octavo-chat-of-somebody"}
        assert (paths[1] / "socket").exists()
        folder.close()
        living.kill()


def test_where_no_folder_can_be_made_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/no/such/place")
    with pytest.raises(ConfigError, match="cannot make a temporary folder: No such file or directory; TMPDIR names"):
        PrivateFolder()


def test_a_link_of_that_name_is_left_alone(temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "precious").touch()
    (temporary / "octavo-run-link").symlink_to(elsewhere)
    PrivateFolder().close()
    assert (elsewhere / "precious").exists()


def test_a_long_temporary_folder_leaves_room_for_a_sockets_name(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = temporary / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    folder = PrivateFolder()
    assert len(str(folder.path)) <= 90
    assert list(long.iterdir()) == []
    folder.close()


def _make_many(count: int) -> int:
    made = 0
    for _ in range(count):
        folder = PrivateFolder()
        made += folder.path.is_dir()
        folder.close()
    return made


def test_servers_that_start_at_once_do_not_sweep_each_other(temporary: Path) -> None:
    """Four processes make folders as fast as they can; a folder is there from when it is made until it is closed."""
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(_make_many, [100] * 4) == [100] * 4
    assert list(temporary.iterdir()) == []
