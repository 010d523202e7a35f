"""One cluster for all of these tests: it takes seconds to start, and each has a namespace of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e_tools import Fleet

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "deploy" / "cluster"))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The product as its chart installs it, in a real cluster with load."""
    from e2e_tools import Fleet

    with Fleet(tmp_path_factory.mktemp("fleet")) as running:
        yield running
