"""The toys: two experiments that only the tests of the runner know."""

from pathlib import Path

import pytest

from experiments.runner import discover


@pytest.fixture
def toys() -> Path:
    """The folder that holds them."""
    return Path(__file__).parent / "toys"


@pytest.fixture
def descent(toys):
    """Runs once per seed, with two loops."""
    return discover.load("toy/descent", toys)


@pytest.fixture
def walk(toys):
    """Runs with its seeds as one vmap."""
    return discover.load("toy/walk", toys)
