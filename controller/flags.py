"""The options of ``fleetopt-controller``: its own, and all of the manager whose place it takes.

An option wins over the environment variable of its name (``METRICS_SECURE`` for ``--metrics-secure``), which
wins over the file of ``--config-file``, which wins over the default. What the Workload-Variant-Autoscaler has
is named as there and defaults to the same, but for the times of the Lease, which are Kubernetes' own: the
arguments of its Deployment can stay as they are. Those that mean nothing here are accepted, and named once in
the log.

References
----------
``cmd/main.go`` and ``internal/config/loader.go`` of
https://github.com/llm-d-incubation/workload-variant-autoscaler.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from controller.logs import FORMATS, LEVELS
from controller.serve import address
from controller.settings import parse_duration, parse_flag

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")

# Of the old manager; there is no webhook here, no HTTP/2, and every request has its own time-out.
WITHOUT_EFFECT = (
    "webhook-cert-path",
    "webhook-cert-name",
    "webhook-cert-key",
    "enable-http2",
    "rest-client-timeout",
    "latency-predictor-url",
    "zap-stacktrace-level",
    "zap-time-encoding",
)

# A holder must come to try again before it gives up; the factor is that of the kubernetes package.
_RETRY_JITTER = 1.2


def read_options(argv: Sequence[str], environ: Mapping[str, str], prog: str) -> argparse.Namespace:
    """Read the command line.

    Parameters
    ----------
    argv : sequence of str
    environ : mapping
        Environment variables.
    prog : str
        Name of the program in messages.

    Returns
    -------
    argparse.Namespace
        One attribute for each option; `settings`: the environment over the file of ``--config-file``;
        `unused`: the options given that have no effect.

    Raises
    ------
    SystemExit
        With code 2 where an option is wrong, 0 after ``--help``.
    """
    # Go's own flag package takes one dash as well as two.
    args = [f"-{arg}" if re.match(r"-[a-z][a-z]", arg) else arg for arg in argv]
    first = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    _add_config_file(first)
    path = first.parse_known_args(args)[0].config_file
    try:
        file = _read_file(path) if path else {}
    except (OSError, ValueError) as error:
        first.error(f"argument --config-file: {error}")
    settings = file | {name: text for name, text in environ.items() if text.strip()}
    parser = _parser(prog, settings)
    options = parser.parse_args(args)
    if options.leader_election_lease_duration <= options.leader_election_renew_deadline:
        parser.error("--leader-election-lease-duration must be above --leader-election-renew-deadline")
    if options.leader_election_renew_deadline <= _RETRY_JITTER * options.leader_election_retry_period:
        parser.error(
            f"--leader-election-renew-deadline must be above {_RETRY_JITTER:g} times "
            "--leader-election-retry-period"
        )
    at = options.metrics_bind_address
    if at is not None and at == options.health_probe_bind_address and at[1] != 0:
        parser.error("metrics need an address of their own, not that of the probes")
    options.settings = settings
    options.unused = [f"--{name}" for name in WITHOUT_EFFECT if hasattr(options, name.replace("-", "_"))]
    return options


def _parser(prog: str, settings: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Allocates GPUs to the model servers of a cluster, again and again.",
        allow_abbrev=False,
    )
    add = _Adder(parser, settings)
    parser.add_argument("--kubeconfig", help="file to connect with (default: the pod's account)")
    parser.add_argument("--system-namespace", default="", help="of ConfigMaps and Lease (default: the pod's)")
    parser.add_argument("--once", action="store_true", help="do one pass and print what it decided")
    parser.add_argument("--dry-run", action="store_true", help="write nothing to the cluster")
    parser.add_argument("--actuate", choices=("metrics", "scale"), help="who scales: HPA or KEDA, or this")
    parser.add_argument("--record", metavar="FILE", help="one JSON line for every pass; - is standard output")
    belongs = "whether a variant is made to belong to its target"
    parser.add_argument("--owner-reference", **_FLAG, default=None, help=belongs)
    _add_config_file(parser)

    add("watch-namespace", "", str, "namespace of the variants (default: all)")
    add.flag("leader-elect", "act only while holding the Lease")
    add("leader-election-lease-duration", "15s", _whole_seconds, "how long a Lease counts")
    add("leader-election-renew-deadline", "10s", _whole_seconds, "how long its holder tries to renew it")
    add("leader-election-retry-period", "2s", _whole_seconds, "pause between tries")

    add("metrics-bind-address", "0", _address, "of /metrics and /wake, such as :8443; 0: none")
    add.flag("metrics-secure", "TLS, and only for those whom the cluster allows", default="true")
    add("metrics-cert-path", "", str, "directory of the certificate (default: one signed by itself)")
    add("metrics-cert-name", "tls.crt", str, "its file")
    add("metrics-cert-key", "tls.key", str, "file of its key")
    add("health-probe-bind-address", ":8081", _address, "of /healthz and /readyz; 0: none")

    parser.add_argument("--log-level", choices=LEVELS, help="default: info, or LOG_LEVEL")
    parser.add_argument("--log-format", choices=FORMATS, help="default: text")
    parser.add_argument("--zap-log-level", metavar="LEVEL", help="as --log-level; a number is debug")
    parser.add_argument("--zap-encoder", choices=("console", "json"), help="as --log-format")
    parser.add_argument("--zap-devel", **_FLAG, default=None, help="true: debug, text; false: info, json")
    parser.add_argument("-v", "--v", type=int, default=0, metavar="N", help="from 4 on: debug")
    for name in WITHOUT_EFFECT:
        parser.add_argument(f"--{name}", nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _add_config_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", metavar="FILE", help="YAML file of settings, below the environment")


class _Adder:
    """Adds options whose default is the setting of the same name, where there is one."""

    def __init__(self, parser: argparse.ArgumentParser, settings: Mapping[str, str]) -> None:
        self._parser, self._settings = parser, settings

    def __call__(self, name: str, default: str, read: Any, text: str) -> None:
        given, metavar = self._given(name, default), name.rpartition("-")[2].upper()
        self._parser.add_argument(f"--{name}", type=read, default=given, metavar=metavar, help=text)

    def flag(self, name: str, text: str, default: str = "false") -> None:
        self._parser.add_argument(f"--{name}", **_FLAG, default=self._given(name, default), help=text)

    def _given(self, name: str, default: str) -> str:
        # Read by the option's own reader, as argparse does with every default that is a text.
        return self._settings.get(name.upper().replace("-", "_"), default)


def _read_file(path: str) -> dict[str, str]:
    """Read a file of settings: keys and plain values, as a ConfigMap has them."""
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(document or {}, dict):
        raise ValueError(f"{path} holds no keys and values")
    return {
        str(key): str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in (document or {}).items()
        if value is not None
    }


def _boolean(text: str) -> bool:
    return _readable(parse_flag, text)


def _whole_seconds(text: str) -> int:
    """A Go duration, in seconds from 1; the Lease has no finer ones."""
    return max(math.ceil(_readable(parse_duration, text)), 1)


def _address(text: str) -> tuple[str, int] | None:
    return _readable(address, text)


def _readable(read: Callable[[str], T], text: str) -> T:
    """What a reader makes of a text; argparse shows the reason only of its own kind of error."""
    try:
        return read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


# ``--name`` is true, ``--name=false`` is not.
_FLAG: dict[str, Any] = {"nargs": "?", "const": True, "type": _boolean, "metavar": "true|false"}
