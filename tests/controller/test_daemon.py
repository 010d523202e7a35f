"""The process in a cluster: ready, alive, secure, and its end. On a real API server."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from cluster_tools import SYSTEM, Admin, ControlPlane, control_plane, needs_cluster
from controller_tools import va
from prometheus_tools import free_port, get, wait_until
from secure_tools import ask, grant

from controller import kube
from controller.collect import View
from controller.daemon import serve
from controller.flags import read_options
from controller.loop import Edges
from controller.metrics import VariantMetrics

pytestmark = needs_cluster


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane")) as running:
        admin = Admin(running)
        admin.namespace(SYSTEM)
        admin.namespace("monitoring")
        account = {"name": "prometheus", "namespace": "monitoring"}
        admin.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
        grant(
            admin,
            "fleetopt-metrics-reader",
            [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}],
            "prometheus",
        )
        yield running


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put back the handlers of signals."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_process_is_alive_and_secure_at_once_and_ready_when_the_resource_is_there(
    plane: ControlPlane, tmp_path: Path
) -> None:
    metrics, probes = free_port(), free_port()
    reader = plane.token("prometheus", "monitoring")
    command = [
        *(sys.executable, "-m", "controller", "--kubeconfig", str(plane.kubeconfig(tmp_path / "kubeconfig"))),
        *("--system-namespace", SYSTEM, "--leader-elect", "--webhook-cert-path=/w", "--zap-devel=false"),
        f"--metrics-bind-address=127.0.0.1:{metrics}",
        f"--health-probe-bind-address=127.0.0.1:{probes}",
    ]
    # Nothing of this is reached: no variants, no queries.
    environ = {"PROMETHEUS_BASE_URL": "http://127.0.0.1:9", "GLOBAL_OPT_INTERVAL": "1s"}
    process = subprocess.Popen(command, env=os.environ | environ, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: get(f"http://127.0.0.1:{probes}/healthz") == "ok\n")
        with pytest.raises(OSError, match="503"):
            get(f"http://127.0.0.1:{probes}/readyz")
        with pytest.raises(OSError, match="404"):
            get(f"http://127.0.0.1:{probes}/metrics")
        assert ask(f"https://127.0.0.1:{metrics}/metrics")[0] == 401
        # A server that has just started has read a new role a moment later, and a refusal is remembered.
        wait_until(lambda: ask(f"https://127.0.0.1:{metrics}/metrics", reader)[0] == 200, 60.0)
        assert ask(f"https://127.0.0.1:{metrics}/healthz", reader)[0] == 404

        Admin(plane).prepare()
        wait_until(lambda: get(f"http://127.0.0.1:{probes}/readyz") == "ok\n")
        passes = 'fleetopt_controller_passes_total{result="ok"} '
        wait_until(lambda: f"{passes}0.0" not in ask(f"https://127.0.0.1:{metrics}/metrics", reader)[1])
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert '"msg": "without effect here: --webhook-cert-path"' in errors


class Reader:
    """A cluster without variants; reading it does something else as well."""

    def __init__(self, effect: Any) -> None:
        self.effect = effect

    def read(self) -> View:
        self.effect()
        return View([], {}, [], [], {})


def defect() -> NoReturn:
    raise RuntimeError("a defect")


def served(plane: ControlPlane, effect: Any, *more: str) -> int:
    """Serve with this effect of every reading, and return the exit code."""
    admin = Admin(plane)
    admin.prepare()
    options = read_options(["--health-probe-bind-address=0", *more], {}, "test")
    kubernetes, metrics = kube.Kubernetes(plane.api(), SYSTEM), VariantMetrics()
    edges = Edges(Reader(effect), kubernetes, metrics, defect, defect, {})  # type: ignore[arg-type]
    try:
        return serve(options, edges, kubernetes, metrics, lambda line: None)
    finally:
        # Watches that see that it is over; the API server would wait for them when it ends.
        admin.config_map("last", {"time": str(time.monotonic())})
        last = va(namespace=SYSTEM, profiles=[])
        last["metadata"] = {"name": f"last-{time.monotonic_ns()}", "namespace": SYSTEM}
        admin.apply(last)


LEADING = (
    "--leader-elect",
    "--leader-election-lease-duration=3s",
    "--leader-election-renew-deadline=2s",
    "--leader-election-retry-period=1s",
)


@pytest.mark.parametrize("more", [(), LEADING], ids=["alone", "leading"])
@pytest.mark.usefixtures("handlers")
def test_loop_that_fails_ends_the_process(
    more: tuple[str, ...], plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    assert served(plane, defect, *more) == 1
    assert any("the loop failed" in record.getMessage() and record.exc_info for record in caplog.records)


@pytest.mark.parametrize("more", [(), LEADING], ids=["alone", "leading"])
@pytest.mark.usefixtures("handlers")
def test_signal_ends_the_process_in_order(more: tuple[str, ...], plane: ControlPlane) -> None:
    assert served(plane, lambda: os.kill(os.getpid(), signal.SIGTERM), *more) == 0


@pytest.mark.usefixtures("handlers")
def test_certificate_that_is_not_there_is_told(plane: ControlPlane) -> None:
    with pytest.raises(FileNotFoundError, match=r"/nowhere/tls\.crt"):
        served(plane, defect, "--metrics-bind-address=127.0.0.1:0", "--metrics-cert-path=/nowhere")
