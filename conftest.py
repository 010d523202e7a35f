"""The one pytest option; here, so that it is known wherever pytest starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--backend``."""
    parser.addoption(
        "--backend",
        default="highs",
        help="backend that optimises the scenarios (default: highs)",
        metavar="NAME",
    )
