"""One cluster for all of these tests: it takes seconds to start, and each test has its own namespace."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "deploy" / "cluster"))


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator["object"]:
    """The product as its chart installs it, in a real cluster with load."""
    from e2e_tools import Fleet

    with Fleet(tmp_path_factory.mktemp("fleet")) as running:
        yield running
