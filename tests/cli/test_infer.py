"""`octavo infer`, with a server that has fake hosted models."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from octavo.server.settings import ServerSettings
from tests.cli.command import Result, octavo, one_line
from tests.server.fake import running
from tests.server.inference.conftest import _make
from tests.server.inference.fake import fake


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    models = _make()
    next(fake(each) for each in models if each.name == "words").results = 2
    with running(ServerSettings(api_key=("secret",)), *models) as address:
        yield address


@pytest.fixture
def infer(url: str):  # type: ignore[no-untyped-def]
    def run(*arguments: str) -> Result:
        return octavo("infer", *arguments, "--url", url, OCTAVO_API_KEY="secret")

    return run


def test_values_and_files_go_and_come(infer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    sent, found = tmp_path / "in.npy", tmp_path / "out.npy"
    array = np.arange(6.0).reshape(3, 2)
    np.save(sent, array)
    result = infer("pair", "--input", f"IN=@{sent}", "-i", "IN2=[[1],[2],[3]]", "-o", f"OUT=@{found}", "-o", "OUT2")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "OUT2 INT64 [3,1]\n[[1],\n [2],\n [3]]\n"
    np.testing.assert_array_equal(np.load(found), array.astype(np.float32))


@pytest.mark.parametrize(
    ("model", "value", "shown"),
    [
        ("BYTES", "hé you", "OUT BYTES [1]\nhé you\n"),
        ("BYTES", "12", "OUT BYTES [1]\n12\n"),
        ("BYTES", '[["a"], ["b"]]', 'OUT BYTES [2,1]\n[["a"], ["b"]]\n'),
        ("BF16", "[1.5]", "OUT BF16 [1]\n[1.5]\n"),
        ("BOOL", "true", "OUT BOOL [1]\n[ True]\n"),
        ("classes", "[3, 1, 2]", "OUT FP32 [1,3]\n[[3., 1., 2.]]\n"),
    ],
)
def test_values_are_the_models(infer, model: str, value: str, shown: str) -> None:  # type: ignore[no-untyped-def]
    assert infer(model, "--input", f"IN={value}").stdout == shown


def test_every_result_of_a_stream_is_shown(infer) -> None:  # type: ignore[no-untyped-def]
    assert infer("words", "-i", "text_input=a").stdout == "text_output BYTES [1]\na\n" * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nope", "-i", "IN=1"), "Request for unknown model: 'nope' is not found"),
        (("FP32", "-i", "IN"), "not NAME=VALUE"),
        (("FP32", "-i", "IN=[1]", "-o", "OUT=x"), "neither NAME nor NAME=@FILE"),
        (("FP32", "-i", "IN=abc"), "non-number as double"),
        (("FP32", "-i", "IN=[[1],[2,3]]"), "rows of different lengths"),
        (("FP32", "-i", "X=[1]"), "unexpected inference input 'X'"),
        (("FP32", "-i", "IN=@/nowhere.npy"), "No such file"),
        (("FP32", "-i", "IN=@/proc/self/status"), "expects 'FP32'"),
    ],
)
def test_what_cannot_be_is_one_line(infer, arguments: tuple[str, ...], message: str) -> None:  # type: ignore[no-untyped-def]
    assert message in one_line(infer(*arguments))


def test_no_server_is_one_line() -> None:
    assert "no server answers" in one_line(octavo("infer", "m", "-i", "a=1", "--url", "http://127.0.0.1:9"))
