"""The `octavo` command, in this process or in one of its own.

What most tests of it are about, what it says of what it was given, is the same in both; to start a process takes a
quarter of a second.
"""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from octavo.cli.main import main

Result = subprocess.CompletedProcess[str]


def octavo(*arguments: str, stdin: str = "", **variables: str) -> Result:
    """Run the command to its end in this process, with these variables of Octavo's and no others."""
    given = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OCTAVO_")}
    with (
        mock.patch.dict(os.environ, kept | variables, clear=True),
        mock.patch.multiple(sys, argv=["octavo", *arguments], stdin=given, stdout=out, stderr=err),
        mock.patch("octavo.cli.serve.serve_models", side_effect=AssertionError("a server wants its own process")),
        _signals_as_they_were(),
    ):
        try:
            main()
        except SystemExit as end:
            status = end.code
        else:
            status = 0
        out.flush()
        err.flush()
    assert isinstance(status, int | None), "exits with a number"
    said = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    return Result(list(arguments), status or 0, *said)


@contextmanager
def _signals_as_they_were() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def octavo_process(*arguments: str, stdin: str = "", **variables: str) -> Result:
    """Run the command to its end as a person does: in a process of its own."""
    command = [sys.executable, "-m", "octavo", *arguments]
    environment = os.environ | variables
    return subprocess.run(command, capture_output=True, text=True, timeout=120, input=stdin, env=environment)


def one_line(result: Result) -> str:
    """The single line of a failure."""
    assert result.returncode in (1, 2), result
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("octavo: ")
    return lines[0]
