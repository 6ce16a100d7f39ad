"""Fixtures that several rooms share."""

import random
from pathlib import Path

import numpy as np
import pytest

from tests.properties import use_profile
from tests.tiny import write_tiny_model

use_profile()


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """What draws from the shared generators draws the same at every run, whichever tests ran before."""
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete model with random weights; see `tests.tiny`."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
