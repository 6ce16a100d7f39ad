"""The engine can be tested and measured on a machine that has numpy and nothing else."""

import subprocess
import sys

import pytest

BLOCK = """
import importlib, sys

class OnlyNumpy:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if path is None and top not in {"octavo", "numpy"} and top not in sys.stdlib_module_names:
            raise ImportError(f"{name} is not numpy")

sys.meta_path.insert(0, OnlyNumpy())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""

ROOMS = [
    "octavo.engine.engine",
    "octavo.engine.config",
    "octavo.engine.loader",
    "octavo.backends.protocol",
    "octavo.backends.reference.executor",
    "octavo.graph.cost",
    "octavo.models",
    "octavo.weights.checkpoint",
]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_with_numpy_alone(room: str) -> None:
    subprocess.run([sys.executable, "-c", BLOCK, room], check=True, timeout=60)


def test_the_block_blocks() -> None:
    found = subprocess.run([sys.executable, "-c", BLOCK, "octavo.engine.wire"], capture_output=True, timeout=60)
    assert b"msgspec is not numpy" in found.stderr


def test_the_supervisor_of_a_server_is_light() -> None:
    heavy = {"numpy", "zmq", "fastapi", "uvicorn", "uvloop", "tokenizers", "huggingface_hub", "httpx", "jinja2", "rich"}
    code = f"import sys, octavo.cli.serve; print(*({heavy!r} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == []


def test_a_frontend_imports_no_checkpoints_before_there_is_a_language_model() -> None:
    heavy = {"octavo.deployments.loading", "octavo.models", "octavo.graph", "octavo.weights.checkpoint", "rich"}
    code = f"import sys, octavo.server.frontend; print(*({heavy!r} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == []
