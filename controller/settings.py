"""Settings of the controller: environment over ConfigMap over default, key by key.

A value that cannot be read costs that key alone: the next source is asked, and the problem is reported. The
table of keys with their meaning is in docs/controller.md. Durations are Go's (``60s``, ``1m30s``).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

SaturationPolicy = Literal["None", "PriorityExhaustive", "PriorityRoundRobin", "RoundRobin"]
Actuation = Literal["metrics", "scale"]
QueueModel = Literal["reference", "moments"]

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")

_TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_FALSE = frozenset(("0", "f", "F", "FALSE", "false", "False"))


@dataclass(frozen=True)
class Prometheus:
    """How to reach Prometheus.

    Attributes
    ----------
    base_url : str
        http or https.
    skip_verify : bool
        Whether the server's certificate is taken unseen.
    ca_cert_path, client_cert_path, client_key_path : str
        PEM files; empty: the system's authorities, no client certificate.
    server_name : str
        Name that the server's certificate must have; empty: that of the URL.
    bearer_token : str
    token_path : str
        File with the token; read again for every pass, because tokens rotate. It wins over `bearer_token`.
    timeout_s : float
        For each query, > 0.
    """

    base_url: str = "http://prometheus-operated.monitoring.svc.cluster.local:9090"
    skip_verify: bool = False
    ca_cert_path: str = ""
    client_cert_path: str = ""
    client_key_path: str = ""
    server_name: str = ""
    bearer_token: str = ""
    token_path: str = ""
    timeout_s: float = 10.0


@dataclass(frozen=True)
class Settings:
    """What a pass goes by.

    Attributes
    ----------
    prometheus : Prometheus
    interval_s : float
        Between the starts of two passes, > 0.
    rate_window : str
        Range of the rates, as a PromQL duration.
    metrics_stale_s : float
        Age at which a signal is no longer believed, > 0.
    arrival_query : str
        PromQL for arrivals in requests/s by ``model_name`` (and ``namespace``); ``$models`` and
        ``$namespaces`` are replaced by regular expressions. Empty: completions and the growth of the queue.
    optimizer_url : str
        Base URL of the service.
    optimizer_timeout_s : float
        For the whole request, > 0.
    backend : str
        Solver backend; empty: the service's.
    unlimited : bool
        Whether GPUs are without limit; otherwise the nodes are counted.
    inventory_stale_s : float
        How long the last inventory counts where nodes cannot be read, >= 0.
    saturation_policy : str
        As in the system JSON.
    keep_accelerator : bool
        Whether a variant stays on the accelerator that its label names.
    scale_to_zero : bool
    scale_to_zero_retention_s : float
        Time without traffic before the last replica goes, >= 0.
    scale_down_window_s : float
        A variant goes down to the highest recommendation of this time only, >= 0.
    max_step_up, max_step_down : int
        Replicas that one pass may add or take away; 0 = any number.
    min_gain : float
        Share of the replicas that a scale-down must save, 0..1.
    default_input_tokens, default_output_tokens : float
        Of a request, for demand before the first request was seen, >= 0.
    queue_model : {"reference", "moments"}
        Queue model of law 3, for profiles that name none.
    shape_window : str
        Range over which the variation of request lengths is counted, as a PromQL duration.
    owner_reference : bool
        Whether a variant gets its target as its owner, so that it is deleted with it.
    settle_s : float
        Time in which changes of objects are gathered before the pass that they wake, >= 0.
    actuate : {"metrics", "scale"}
        Whether the controller only publishes, or scales the target itself.
    """

    prometheus: Prometheus = Prometheus()
    interval_s: float = 60.0
    rate_window: str = "1m"
    metrics_stale_s: float = 120.0
    arrival_query: str = ""
    optimizer_url: str = "http://localhost:8080"
    optimizer_timeout_s: float = 30.0
    backend: str = ""
    unlimited: bool = False
    inventory_stale_s: float = 900.0
    saturation_policy: SaturationPolicy = "PriorityExhaustive"
    keep_accelerator: bool = True
    scale_to_zero: bool = False
    scale_to_zero_retention_s: float = 600.0
    scale_down_window_s: float = 300.0
    max_step_up: int = 0
    max_step_down: int = 0
    min_gain: float = 0.0
    default_input_tokens: float = 512.0
    default_output_tokens: float = 256.0
    queue_model: QueueModel = "reference"
    shape_window: str = "10m"
    owner_reference: bool = False
    settle_s: float = 1.0
    actuate: Actuation = "metrics"


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A value, and what of its source could not be used, in words."""

    value: T
    problems: tuple[str, ...] = ()


def parse_duration(text: str) -> float:
    """Read a Go duration in seconds, such as ``60s``, ``1m30s`` or ``0``.

    Raises
    ------
    ValueError
        When it is none, or negative.
    """
    stripped = text.strip().removeprefix("+")
    if stripped == "0":
        return 0.0
    total_s, end = 0.0, 0
    for match in _DURATION.finditer(stripped):
        if match.start() != end:
            break
        total_s += float(match[1]) * _SECONDS[match[2]]
        end = match.end()
    if not stripped or end != len(stripped):
        raise ValueError(f"{text!r} is no duration such as 60s or 1m30s")
    return total_s


def window_seconds(window: str) -> float:
    """Return the seconds of a PromQL duration such as ``1m`` or ``1d12h``."""
    units = {**_SECONDS, "d": 86_400.0}
    return sum(float(count) * units[unit] for count, unit in re.findall(r"(\d+)(ms|s|m|h|d)", window))


def parse_flag(text: str) -> bool:
    """Read a truth value as Go does: 1, t, true, 0, f, false in the usual cases.

    Raises
    ------
    ValueError
        When it is none of them.
    """
    stripped = text.strip()
    if stripped in _TRUE:
        return True
    if stripped in _FALSE:
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def _positive_duration(text: str) -> float:
    duration_s = parse_duration(text)
    if duration_s <= 0:
        raise ValueError(f"{text!r} is not above 0")
    return duration_s


def _promql_duration(text: str) -> str:
    if not re.fullmatch(r"([1-9]\d*(ms|s|m|h|d))+", text.strip()):
        raise ValueError(f"{text!r} is no PromQL duration such as 1m")
    return text.strip()


def _amount(text: str) -> float:
    value = float(text)
    if not (0 <= value < math.inf):
        raise ValueError(f"{text!r} is not a number from 0")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not (0 <= value <= 1):
        raise ValueError(f"{text!r} is not a share between 0 and 1")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(f"{text!r} is negative")
    return value


def _url(text: str) -> str:
    if not re.match(r"https?://[^/\s]", text.strip()):
        raise ValueError(f"{text!r} is no http or https URL")
    return text.strip().rstrip("/")


def _one_of(*names: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        for name in names:
            if text.strip().lower() == name.lower():
                return name
        raise ValueError(f"{text!r} is none of {', '.join(names)}")

    return read


# Key -> field of `Settings` and how its text is read.
KEYS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "GLOBAL_OPT_INTERVAL": ("interval_s", _positive_duration),
    "WVA_SCALE_TO_ZERO": ("scale_to_zero", parse_flag),
    "ARRIVAL_QUERY": ("arrival_query", str.strip),
    "FLEETOPT_RATE_WINDOW": ("rate_window", _promql_duration),
    "FLEETOPT_METRICS_STALE": ("metrics_stale_s", _positive_duration),
    "FLEETOPT_OPTIMIZER_URL": ("optimizer_url", _url),
    "FLEETOPT_OPTIMIZER_TIMEOUT": ("optimizer_timeout_s", _positive_duration),
    "FLEETOPT_OPTIMIZER_BACKEND": ("backend", str.strip),
    "FLEETOPT_UNLIMITED": ("unlimited", parse_flag),
    "FLEETOPT_INVENTORY_STALE": ("inventory_stale_s", parse_duration),
    "FLEETOPT_SATURATION_POLICY": (
        "saturation_policy",
        _one_of("None", "PriorityExhaustive", "PriorityRoundRobin", "RoundRobin"),
    ),
    "FLEETOPT_KEEP_ACCELERATOR": ("keep_accelerator", parse_flag),
    "FLEETOPT_SCALE_TO_ZERO_RETENTION": ("scale_to_zero_retention_s", parse_duration),
    "FLEETOPT_SCALE_DOWN_WINDOW": ("scale_down_window_s", parse_duration),
    "FLEETOPT_MAX_STEP_UP": ("max_step_up", _count),
    "FLEETOPT_MAX_STEP_DOWN": ("max_step_down", _count),
    "FLEETOPT_MIN_GAIN": ("min_gain", _share),
    "FLEETOPT_DEFAULT_INPUT_TOKENS": ("default_input_tokens", _amount),
    "FLEETOPT_DEFAULT_OUTPUT_TOKENS": ("default_output_tokens", _amount),
    "FLEETOPT_QUEUE_MODEL": ("queue_model", _one_of("reference", "moments")),
    "FLEETOPT_SHAPE_WINDOW": ("shape_window", _promql_duration),
    "FLEETOPT_OWNER_REFERENCE": ("owner_reference", parse_flag),
    "FLEETOPT_SETTLE": ("settle_s", parse_duration),
    "FLEETOPT_ACTUATE": ("actuate", _one_of("metrics", "scale")),
}

# The same for `Prometheus`.
PROMETHEUS_KEYS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "PROMETHEUS_BASE_URL": ("base_url", _url),
    "PROMETHEUS_TLS_INSECURE_SKIP_VERIFY": ("skip_verify", parse_flag),
    "PROMETHEUS_CA_CERT_PATH": ("ca_cert_path", str.strip),
    "PROMETHEUS_CLIENT_CERT_PATH": ("client_cert_path", str.strip),
    "PROMETHEUS_CLIENT_KEY_PATH": ("client_key_path", str.strip),
    "PROMETHEUS_SERVER_NAME": ("server_name", str.strip),
    "PROMETHEUS_BEARER_TOKEN": ("bearer_token", str.strip),
    "PROMETHEUS_TOKEN_PATH": ("token_path", str.strip),
    "FLEETOPT_PROMETHEUS_TIMEOUT": ("timeout_s", _positive_duration),
}


def load_settings(
    environ: Mapping[str, str], config: Mapping[str, str], default: Settings | None = None
) -> Loaded[Settings]:
    """Read the settings.

    Parameters
    ----------
    environ : mapping
        Environment variables.
    config : mapping
        Data of the ConfigMap.
    default : Settings, optional
        What counts where neither has a usable value.
    """
    sources = (("environment", environ), ("ConfigMap", config))
    problems: list[str] = []

    def chosen(keys: Mapping[str, tuple[str, Callable[[str], Any]]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, (attribute, read) in keys.items():
            for source, values in sources:
                # An empty variable is how a manifest says that there is none.
                if not values.get(key, "").strip():
                    continue
                try:
                    found[attribute] = read(values[key])
                    break
                except ValueError as error:
                    problems.append(f"{key} of the {source} is not used: {error}")
        return found

    base = default or Settings()
    prometheus = replace(base.prometheus, **chosen(PROMETHEUS_KEYS))
    settings = replace(base, prometheus=prometheus, **chosen(KEYS))
    return Loaded(settings, tuple(problems))
