import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

HERE = Path(__file__).parent

# Workers are fresh interpreters with the sys.path of this process; they find service_workloads by it.
sys.path.insert(0, str(HERE))


@pytest.fixture(scope="session")
def service() -> Iterator[httpx.Client]:
    """The real service with one worker."""
    from service_tools import running

    from solver.settings import Settings

    with running(Settings(workers=1)) as client:
        yield client


@pytest.fixture(scope="session")
def sample_file() -> Path:
    return HERE.parent / "data" / "inferno_sample" / "law2-small.system.json"


@pytest.fixture(scope="session")
def sample(sample_file: Path) -> bytes:
    return sample_file.read_bytes()
