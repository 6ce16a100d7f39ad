"""Fixtures that several rooms share."""

from pathlib import Path

import pytest

from tests.tiny import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete model with random weights; see `tests.tiny`."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
