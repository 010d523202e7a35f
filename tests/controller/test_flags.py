"""Options: those of the manager whose place this takes, with its defaults, and our own."""

import argparse
import json
import logging
from pathlib import Path

import pytest

from controller.flags import WITHOUT_EFFECT, read_options
from controller.logs import JsonLines, chosen_style

# Arguments of the container of each generation, as its Deployment, kustomization or chart has them
# (github.com/llm-d-incubation/workload-variant-autoscaler, Apache-2.0: facts).
MID_2025 = "--metrics-bind-address=:8080 --metrics-secure=false --leader-elect=true"
CHART_2025 = "--leader-elect=true --health-probe-bind-address=:8081 --metrics-bind-address=:8443"
EARLY_2026 = (
    "--leader-elect=true --health-probe-bind-address=:8081 --watch-namespace=llm "
    "--latency-predictor-url=http://epp.default.svc.cluster.local:8001 --leader-election-lease-duration=60s "
    "--leader-election-renew-deadline=50s --leader-election-retry-period=10s --rest-client-timeout=60s"
)
BASE_2026 = (
    "--leader-elect=true --health-probe-bind-address=:8081 --config-file={file} "
    "--metrics-bind-address=:8443 --metrics-secure=true"
)
EVERY_OTHER = (
    "--webhook-cert-path=/w --webhook-cert-name=c --webhook-cert-key=k --enable-http2 --zap-devel=false "
    "--zap-encoder=json --zap-log-level=5 --zap-stacktrace-level=panic --zap-time-encoding=iso8601 --v=2 "
    "--metrics-cert-path=/m --metrics-cert-name=c --metrics-cert-key=k"
)


def options(text: str = "", **environ: str) -> argparse.Namespace:
    return read_options(text.split(), environ, "fleetopt-controller")


def test_defaults_are_those_of_the_manager() -> None:
    given = options()
    assert given.metrics_bind_address is None
    assert given.metrics_secure is True
    assert given.health_probe_bind_address == ("", 8081)
    assert given.leader_elect is False
    assert (given.metrics_cert_path, given.metrics_cert_name, given.metrics_cert_key) == (
        "",
        "tls.crt",
        "tls.key",
    )
    assert given.watch_namespace == ""
    assert given.owner_reference is None
    assert given.unused == []


def test_manager_of_2025_as_it_was_deployed() -> None:
    plain, chart = options(MID_2025), options(CHART_2025)
    assert (plain.metrics_bind_address, plain.metrics_secure) == (("", 8080), False)
    assert (chart.metrics_bind_address, chart.metrics_secure) == (("", 8443), True)
    assert plain.leader_elect is chart.leader_elect is True


def test_manager_of_2026_as_it_was_deployed(tmp_path: Path) -> None:
    early = options(EARLY_2026)
    assert early.watch_namespace == "llm"
    times = (
        early.leader_election_lease_duration,
        early.leader_election_renew_deadline,
        early.leader_election_retry_period,
    )
    assert times == (60, 50, 10)
    assert early.unused == ["--rest-client-timeout", "--latency-predictor-url"]

    file = tmp_path / "config.yaml"
    file.write_text(
        'PROMETHEUS_BASE_URL: "https://p:9090"\nGLOBAL_OPT_INTERVAL: 15s\nWVA_SCALE_TO_ZERO: true\n'
    )
    base = options(BASE_2026.format(file=file), GLOBAL_OPT_INTERVAL="30s", WVA_LIMITED_MODE="")
    assert base.settings == {
        "PROMETHEUS_BASE_URL": "https://p:9090",
        "GLOBAL_OPT_INTERVAL": "30s",
        "WVA_SCALE_TO_ZERO": "true",
    }


def test_every_other_argument_of_theirs_is_taken() -> None:
    given = options(EVERY_OTHER)
    assert given.metrics_cert_path == "/m"
    assert given.unused == [
        f"--{name}" for name in WITHOUT_EFFECT if name not in ("rest-client-timeout", "latency-predictor-url")
    ]


def test_one_dash_as_go_takes_it() -> None:
    given = options("-leader-elect -metrics-secure=false -v=4")
    assert (given.leader_elect, given.metrics_secure, given.v) == (True, False, 4)


def test_option_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text('LEADER_ELECT: true\nMETRICS_BIND_ADDRESS: ":1"\nMETRICS_SECURE: false\n')
    given = options(
        f"--config-file {file} --metrics-bind-address=:3", METRICS_BIND_ADDRESS=":2", LEADER_ELECT="f"
    )
    assert given.metrics_bind_address == ("", 3)
    assert given.leader_elect is False
    assert given.metrics_secure is False


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "--metrics-bind-address=8443",
            "argument --metrics-bind-address: '8443' is no address such as :8080",
        ),
        ("--metrics-secure=perhaps", "argument --metrics-secure: 'perhaps' is neither true nor false"),
        ("--leader-election-lease-duration=soon", "'soon' is no duration"),
        ("--leader-election-lease-duration=5s", "must be above --leader-election-renew-deadline"),
        ("--leader-election-retry-period=9s", "must be above 1.2 times --leader-election-retry-period"),
        ("--metrics-bind-address=:8081", "an address of their own"),
        ("--config-file=/nowhere", "argument --config-file: [Errno 2] No such file or directory: '/nowhere'"),
        ("--metric", "unrecognized arguments: --metric"),
    ],
)
def test_what_is_wrong_is_named(text: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        options(text)
    assert end.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "text"])
def test_config_file_that_is_none(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file := tmp_path / "config.yaml").write_text(content)
    with pytest.raises(SystemExit):
        options(f"--config-file={file}")
    assert str(file) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("", "", ("info", "text")),
        ("", "DEBUG", ("debug", "text")),
        ("", "warn", ("warning", "text")),
        ("", "nonsense", ("info", "text")),
        ("--v=4", "error", ("debug", "text")),
        ("--v=3", "error", ("error", "text")),
        ("--zap-devel", "", ("debug", "text")),
        ("--zap-devel=false", "", ("info", "json")),
        ("--zap-devel --zap-log-level=error --zap-encoder=json", "", ("error", "json")),
        ("--zap-log-level=3", "error", ("debug", "text")),
        (
            "--log-level=warning --log-format=text --zap-log-level=3 --zap-encoder=json",
            "",
            ("warning", "text"),
        ),
    ],
)
def test_log_options(text: str, environment: str, expected: tuple[str, str]) -> None:
    assert chosen_style(options(text, LOG_LEVEL=environment)) == expected


def test_json_lines() -> None:
    record = logging.LogRecord("fleetopt.controller", logging.WARNING, "", 0, "%s is\nheld", ("n/v",), None)
    record.created = 1.5
    assert json.loads(JsonLines().format(record)) == {
        "level": "warning",
        "ts": "1970-01-01T00:00:01.500+00:00",
        "logger": "fleetopt.controller",
        "msg": "n/v is\nheld",
    }
