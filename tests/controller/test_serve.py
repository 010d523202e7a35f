"""Metrics, health, wake-ups, and the waiting between passes."""

import json
import socket
import threading
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import pytest
from prometheus_client import CollectorRegistry
from prometheus_tools import get

from controller.collect import View
from controller.daemon import Passes
from controller.errors import ClusterError
from controller.health import PASS_LIMIT_S, Health
from controller.loop import Edges, Now, State
from controller.metrics import PassFigures, VariantMetrics
from controller.record import recording
from controller.serve import Signals, address, metric_routes, probe_routes, serving

HERE = ("127.0.0.1", 0)


def status(url: str, method: str = "GET") -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_metrics_and_wake() -> None:
    signals, metrics, registry = Signals(), VariantMetrics(), CollectorRegistry()
    registry.register(metrics)
    metrics.passed(
        PassFigures(ok=True, at_unix_s=5.0, seconds={"collect": 0.5}, held={"ProfileMissing": 2}, gap=0.0)
    )
    with serving(HERE, metric_routes(registry, signals)) as port:
        url = f"http://127.0.0.1:{port}"
        text = get(f"{url}/metrics")
        for line in (
            'fleetopt_controller_passes_total{result="ok"} 1.0',
            'fleetopt_controller_held_variants{reason="ProfileMissing"} 2.0',
            'fleetopt_controller_pass_seconds{stage="collect"} 0.5',
            "fleetopt_controller_last_success_timestamp_seconds 5.0",
            "fleetopt_controller_optimizer_gap 0.0",
        ):
            assert line in text

        assert status(f"{url}/wake?namespace=n", "POST") == 400
        assert status(f"{url}/wake?namespace=n&model=a%2Fb", "POST") == 202
        for elsewhere in ("/elsewhere", "/healthz", "/readyz"):
            assert status(f"{url}{elsewhere}") == status(f"{url}{elsewhere}", "POST") == 404
    woken = signals.take_woken()
    assert woken == {("n", "a/b")}
    assert signals.take_woken() == frozenset()
    signals.keep_woken(woken)
    assert signals.take_woken() == woken


def test_probes() -> None:
    health = Health()
    with serving(HERE, probe_routes(health)) as port:
        url = f"http://127.0.0.1:{port}"
        assert status(f"{url}/healthz") == 200
        assert status(f"{url}/readyz") == 503
        health.become_ready()
        assert status(f"{url}/readyz") == 200
        health.fail("the loop failed")
        assert status(f"{url}/healthz") == 503
        assert status(f"{url}/metrics") == 404


def test_defect_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def defect(_: object) -> NoReturn:
        raise RuntimeError("a defect")

    with serving(HERE, {("GET", "/metrics"): defect}) as port:
        assert status(f"http://127.0.0.1:{port}/metrics") == 500
    assert "GET /metrics failed" in caplog.text


def test_a_client_that_says_nothing_holds_up_nobody() -> None:
    with serving(HERE, probe_routes(Health())) as port, socket.create_connection(("127.0.0.1", port)):
        assert status(f"http://127.0.0.1:{port}/healthz") == 200


def test_every_address_is_of_ipv4_and_of_ipv6_where_there_is_one() -> None:
    with serving(("", 0), probe_routes(Health())) as port:
        assert status(f"http://127.0.0.1:{port}/healthz") == 200
        with socket.socket(socket.AF_INET6) as probe:
            try:
                probe.bind(("::1", 0))
            except OSError:
                return
        assert status(f"http://[::1]:{port}/healthz") == 200
    with serving(("::1", 0), probe_routes(Health())) as port:
        assert status(f"http://[::1]:{port}/healthz") == 200


def test_address_that_is_taken() -> None:
    with (
        serving(HERE, probe_routes(Health())) as port,
        pytest.raises(OSError, match="in use"),
        serving(("127.0.0.1", port), probe_routes(Health())),
    ):
        pass


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_alive_while_a_pass_takes_long_and_not_when_it_hangs() -> None:
    clock = Clock()
    health = Health(clock)
    clock.now_s = 1e6
    assert health.failure == "", "a follower that waits for the lead has promised nothing"
    health.promise(60.0 + PASS_LIMIT_S)
    clock.now_s += 60.0 + PASS_LIMIT_S
    assert health.failure == ""
    clock.now_s += 5.0
    assert health.failure == "the loop is overdue by 5 s"
    health.promise(60.0)
    assert health.failure == ""


class Empty:
    """A cluster without variants, or one that cannot be read."""

    def __init__(self) -> None:
        self.is_down = False

    def read(self) -> View:
        if self.is_down:
            raise ClusterError("the Kubernetes API does not answer")
        return View([], {}, [], [], {})


def test_passes_promise_to_be_back_after_the_interval_of_the_settings(tmp_path: Path) -> None:
    def nobody(*_: object) -> NoReturn:
        raise AssertionError("without variants nobody is asked")

    clock, cluster, metrics = Clock(), Empty(), VariantMetrics()
    health, signals = Health(clock), Signals()
    edges = Edges(cluster, nobody, metrics, nobody, nobody, {"GLOBAL_OPT_INTERVAL": "1h"})  # type: ignore[arg-type]
    now = Now(0.0, datetime(2026, 1, 1, tzinfo=UTC))
    with recording(str(tmp_path / "record")) as write_record:
        passes = Passes(edges, metrics, write_record, signals, health)
        passes.step(State(), now)
        clock.now_s = 3600.0 + PASS_LIMIT_S
        assert health.failure == ""
        clock.now_s += 1.0
        assert "overdue" in health.failure

        # A pass that fails was a sign of life, and leaves wake-ups to the next.
        cluster.is_down = True
        signals.wake("n", "m")
        with pytest.raises(ClusterError):
            passes.step(State(), now)
    assert health.failure == ""
    assert signals.take_woken() == {("n", "m")}
    (line,) = (tmp_path / "record").read_text().splitlines()
    assert json.loads(line)["at"] == "2026-01-01T00:00:00Z"


def test_record_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="directory"), recording(str(tmp_path)):
        pass


def test_record_that_cannot_be_written_costs_its_line_alone(caplog: pytest.LogCaptureFixture) -> None:
    # A device that is always full.
    with recording("/dev/full") as write_record:
        write_record("{}")
    assert "a line is missing in the record /dev/full" in caplog.text


def test_change_ends_the_wait_and_changes_settle_together() -> None:
    signals = Signals()
    signals.change()
    assert signals.wait(60.0, settle_s=0.0) is False
    timer = threading.Timer(0.05, signals.end)
    timer.start()
    assert signals.wait(60.0) is True
    timer.join()
    assert signals.wait(0.0) is True


def test_nothing_happens_and_the_time_is_over() -> None:
    assert Signals().wait(0.01) is False


@pytest.mark.parametrize(
    ("text", "expected"),
    [(":8080", ("", 8080)), ("127.0.0.1:1", ("127.0.0.1", 1)), ("[::1]:2", ("::1", 2)), ("0", None)],
)
def test_addresses(text: str, expected: tuple[str, int] | None) -> None:
    assert address(text) == expected


@pytest.mark.parametrize("text", ["8080", "host", ":http", ""])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        address(text)


def test_follower_shows_nothing_of_variants() -> None:
    metrics = VariantMetrics()
    metrics.clear()
    assert not [
        s for family in metrics.collect() for s in family.samples if s.name.startswith(("inferno", "wva"))
    ]
