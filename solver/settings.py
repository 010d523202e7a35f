"""How the service is set up: flags over environment variables over defaults.

The table of variables, with their meaning, is in docs/http.md.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from solver.errors import InputError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# A container with a CPU limit still sees every core of its node; a worker takes about 100 MB.
MOST_DEFAULT_WORKERS = 4

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Settings:
    """Settings of ``fleetopt serve``; the variable of each is ``FLEETOPT_`` and the name in `VARIABLES`.

    Attributes
    ----------
    backend : str
        Used where neither the query nor the document names one.
    host : str
        Address to listen on.
    port : int
        0..65535; 0 = any free one.
    workers : int
        Processes that solve, >= 1; each uses one core while it solves.
    time_limit_s : float
        For solves whose request names no limit, > 0.
    max_time_limit_s : float
        Longest limit that a request may name, >= `time_limit_s`.
    grace_s : float
        What a request may spend beyond its time limit on reading, sizing and explaining before its worker is
        killed, > 0.
    max_body_mib : float
        Largest request body, > 0.
    max_waiting : int
        Requests that may wait for a worker, >= 0.
    stop_s : int
        How long running requests may go on after SIGTERM, >= 0.
    log_level : str
        One of `LOG_LEVELS`.

    Raises
    ------
    InputError
        When a value is out of its range.
    """

    backend: str = "highs"
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 2
    time_limit_s: float = 30.0
    max_time_limit_s: float = 300.0
    grace_s: float = 10.0
    max_body_mib: float = 32.0
    max_waiting: int = 32
    stop_s: int = 25
    log_level: str = "info"

    def __post_init__(self) -> None:
        rules = {
            "port": (0 <= self.port <= 65535, "must be 0 to 65535"),
            "workers": (self.workers >= 1, "must be at least 1"),
            "time_limit_s": (0 < self.time_limit_s < math.inf, "must be above 0"),
            "max_time_limit_s": (
                self.time_limit_s <= self.max_time_limit_s < math.inf,
                f"must be at least the default time limit, {self.time_limit_s:g} s",
            ),
            "grace_s": (0 < self.grace_s < math.inf, "must be above 0"),
            "max_body_mib": (0 < self.max_body_mib < math.inf, "must be above 0"),
            "max_waiting": (self.max_waiting >= 0, "must be at least 0"),
            "stop_s": (self.stop_s >= 0, "must be at least 0"),
            "log_level": (self.log_level in LOG_LEVELS, f"must be one of {', '.join(LOG_LEVELS)}"),
        }
        problems = [
            Problem(VARIABLES[name], json.dumps(getattr(self, name)), expected)
            for name, (holds, expected) in rules.items()
            if not holds
        ]
        if problems:
            raise InputError(problems)

    @property
    def max_body_bytes(self) -> int:
        """Largest request body in bytes."""
        return int(self.max_body_mib * 2**20)


VARIABLES = {
    "backend": "FLEETOPT_BACKEND",
    "host": "FLEETOPT_HOST",
    "port": "FLEETOPT_PORT",
    "workers": "FLEETOPT_WORKERS",
    "time_limit_s": "FLEETOPT_TIME_LIMIT",
    "max_time_limit_s": "FLEETOPT_MAX_TIME_LIMIT",
    "grace_s": "FLEETOPT_GRACE",
    "max_body_mib": "FLEETOPT_MAX_BODY_MIB",
    "max_waiting": "FLEETOPT_MAX_WAITING",
    "stop_s": "FLEETOPT_STOP",
    "log_level": "FLEETOPT_LOG_LEVEL",
}


def read_settings(environ: Mapping[str, str], flags: Mapping[str, object]) -> Settings:
    """Return the settings that `flags` and `environ` ask for.

    Parameters
    ----------
    environ : mapping
        Usually ``os.environ``. An empty variable counts as absent. So does a ``FLEETOPT_PORT`` such as
        ``tcp://10.0.0.1:8080``: Kubernetes puts it into every pod beside a Service called ``fleetopt``.
    flags : mapping
        Fields of `Settings`; None = not given.

    Raises
    ------
    InputError
        Naming every variable whose value cannot be read or is out of range.
    """
    readers: dict[str, tuple[Callable[[str], object], str]] = {
        "int": (int, "must be a whole number"),
        "float": (float, "must be a number"),
        "str": (str, "must be a text"),
    }
    values: dict[str, object] = {"workers": default_workers()}
    problems = []
    for field in fields(Settings):
        flag, variable = flags.get(field.name), VARIABLES[field.name]
        text = environ.get(variable, "").strip()
        if flag is not None:
            values[field.name] = flag
        elif text and not (field.name == "port" and text.startswith("tcp://")):
            reader, expected = readers[str(field.type)]
            try:
                values[field.name] = reader(text)
            except ValueError:
                problems.append(Problem(variable, json.dumps(text), expected))
    if problems:
        raise InputError(problems)
    return Settings(**values)  # type: ignore[arg-type]  # each value was read as its field's type


def default_workers() -> int:
    """Return the cores this process may run on, but at most `MOST_DEFAULT_WORKERS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_DEFAULT_WORKERS)
