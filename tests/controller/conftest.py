"""Makes the modules beside the tests importable, and starts what several of them need."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "deploy" / "cluster"))


@pytest.fixture(scope="session")
def optimizer_url() -> Iterator[str]:
    """The real service with one worker."""
    import uvicorn
    from prometheus_tools import get, wait_until

    from solver.app import REAL_WORK, create_app, listen
    from solver.settings import Settings

    settings = Settings(workers=1)
    listener = listen(settings.host, 0)
    config = uvicorn.Config(create_app(settings, REAL_WORK), log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        wait_until(lambda: bool(get(f"{url}/readyz")))
        yield url
    finally:
        server.should_exit = True
        thread.join()
