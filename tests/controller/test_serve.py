"""Metrics, health, wake-ups, and the waiting between passes."""

import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry
from prometheus_tools import get

from controller.metrics import PassFigures, VariantMetrics
from controller.serve import Signals, address, serving


def status(url: str, method: str = "GET") -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_probes_metrics_and_wake() -> None:
    signals, metrics, registry = Signals(), VariantMetrics(), CollectorRegistry()
    registry.register(metrics)
    metrics.passed(
        PassFigures(ok=True, at_unix_s=5.0, seconds={"collect": 0.5}, held={"ProfileMissing": 2}, gap=0.0)
    )
    with serving(("127.0.0.1", 0), registry, signals) as port:
        url = f"http://127.0.0.1:{port}"
        assert status(f"{url}/healthz") == 200
        assert status(f"{url}/readyz") == 503
        signals.ready.set()
        assert status(f"{url}/readyz") == 200
        assert status(f"{url}/elsewhere") == status(f"{url}/elsewhere", "POST") == 404

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
    woken = signals.take_woken()
    assert woken == {("n", "a/b")}
    assert signals.take_woken() == frozenset()
    signals.keep_woken(woken)
    assert signals.take_woken() == woken


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
