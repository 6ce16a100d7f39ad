"""The Python that a model's code runs in, where its configuration names one."""

import sys
import tarfile
import venv
from pathlib import Path

import numpy as np
import pytest

from octavo.hosting.errors import InferenceError
from tests.hosting.triton.running import infer, running

CODE = """
import sys

import numpy as np
import triton_python_backend_utils as pb_utils

import only_here


class TritonPythonModel:
    def execute(self, requests):
        where = np.array([f"{only_here.WORD} {sys.prefix}"], object)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", where)]) for _ in requests]
"""

CONFIG = """
backend: "python"
input {{ name: "x" data_type: TYPE_FP32 dims: 1 }}
output {{ name: "y" data_type: TYPE_STRING dims: 1 }}
instance_group {{ kind: KIND_CPU count: {count} }}
parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{path}" }} }}
"""


def model(repository: Path, path: str, count: int = 1) -> Path:
    folder = repository / "elsewhere"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(CODE)
    (folder / "config.pbtxt").write_text(CONFIG.format(path=path, count=count))
    return folder


def environment(folder: Path) -> None:
    """An environment of this Python, which has nothing but a module of its own."""
    venv.create(folder, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "lib" / version / "site-packages" / "only_here.py").write_text('WORD = "here"\n')


def said(repository: Path) -> str:
    with running(repository) as models:
        client = models.model("elsewhere")
        return str(models.run(infer(client, {"x": np.zeros(1, np.float32)}))["y"][0].decode())


def test_code_runs_in_the_environment_that_is_named(tmp_path: Path) -> None:
    environment(tmp_path / "environment")
    model(tmp_path / "repository", str(tmp_path / "environment"))
    assert said(tmp_path / "repository") == f"here {tmp_path / 'environment'}"


def test_an_environment_may_be_an_archive_in_the_model_s_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    environment(tmp_path / "environment")
    folder = model(tmp_path / "repository", "$$TRITON_MODEL_DIRECTORY/packed.tar.gz", count=2)
    with tarfile.open(folder / "packed.tar.gz", "w:gz") as packed:
        packed.add(tmp_path / "environment", ".")
    for _ in range(2):  # from the cache, then
        word, place = said(tmp_path / "repository").split()
        assert word == "here"
        assert Path(place).parent == tmp_path / "cache" / "octavo" / "environments"
    assert len([each for each in (tmp_path / "cache" / "octavo" / "environments").iterdir() if each.is_dir()]) == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere/at/all", "EXECUTION_ENV_PATH is /nowhere/at/all, and there is no /nowhere/at/all"),
        ("$$TRITON_MODEL_DIRECTORY/../..", "is not in the model's folder"),
        ("$$TRITON_MODEL_DIRECTORY/1", "is no environment of Python: it has no bin/python that runs"),
        ("$$TRITON_MODEL_DIRECTORY/1/model.py", "cannot be unpacked: file could not be opened successfully"),
    ],
)
def test_what_is_no_environment_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model(tmp_path, path)
    with running(tmp_path) as models, pytest.raises(InferenceError) as caught:
        models.model("elsewhere")
    assert message in str(caught.value)


def test_one_that_is_too_old_is_refused_with_its_version(tmp_path: Path) -> None:
    python = tmp_path / "old" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 3 8\n")
    python.chmod(0o755)
    model(tmp_path / "repository", str(tmp_path / "old"))
    with (
        running(tmp_path / "repository") as models,
        pytest.raises(InferenceError, match=r"has Python 3\.8, and"),
    ):
        models.model("elsewhere")
