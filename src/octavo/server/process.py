"""A frontend process: HTTP on the socket that it inherits, and the frontend's end of every engine.

Started as `python -m octavo.server.process ADDRESS NAME` by the supervisor, which tells it where the engines stand.
Several of them may accept connections on one socket; none knows of the others.
"""

import ctypes
import gc
import sys
import tempfile
from pathlib import Path

import msgspec
import uvloop

from octavo.errors import OctavoError
from octavo.logs import configure_logging
from octavo.server.launch import FrontendConfiguration
from octavo.worker.control import Failed
from octavo.worker.process import Parent

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Settings of the allocator (mallopt(3))."""

KEPT_BYTES = 128 * 2**20
"""Of freed memory, at most."""

LARGEST_KEPT = 32 * 2**20
"""Bytes of a piece of memory that is kept. The allocator takes no larger number."""


def _import_framework() -> None:
    """Have the framework's models of OpenAPI descriptions made when somebody asks for one: to make them takes as long
    as to import a seventh of all that a frontend is made of."""
    from pydantic import BaseModel

    BaseModel.model_config["defer_build"] = True
    import fastapi  # noqa: F401

    del BaseModel.model_config["defer_build"]


def _keep_freed_memory() -> None:
    """Have the allocator keep what bodies of megabytes leave: to give it back to the system, and take it again page by
    page, would cost each of them more than all that is done with it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # of glibc
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)


def main() -> int:
    """Run a frontend as its supervisor asks. Returns the exit status."""
    gc.disable()  # nearly all that imports make stays; to look through it again and again takes a tenth of the start
    _import_framework()
    from octavo.server.frontend import serve

    parent = Parent()  # from now on signals end nothing
    configuration = msgspec.json.decode(parent.configuration, type=FrontendConfiguration)
    configure_logging(parent.logging)
    _keep_freed_memory()
    # What clients send to be loaded lies with the server's sockets, and goes with it, however it ends.
    tempfile.tempdir = str(Path(sys.argv[1].removeprefix("ipc://")).parent)
    try:
        uvloop.run(serve(parent, configuration))
    except OctavoError as error:
        parent.report(Failed(str(error)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
