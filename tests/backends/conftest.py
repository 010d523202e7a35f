from typing import TYPE_CHECKING

import pytest

from solver.backends import get, listing

if TYPE_CHECKING:
    from solver.milp import Backend


@pytest.fixture(scope="session", params=[info.name for info in listing() if info.exact])
def backend(request: pytest.FixtureRequest) -> "Backend":
    """Every exact backend in turn; one that is not installed is reported as skipped."""
    name = request.param
    if not next(info.installed for info in listing() if info.name == name):
        pytest.skip(f"{name} is not installed")
    return get(name)
