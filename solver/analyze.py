"""What one replica of every candidate does, with no decision: the figures behind the program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from models.capacity import Limit
from solver import schema
from solver.catalog import read_system
from solver.errors import InputError, Problem
from solver.explain import in_words
from solver.problem import DEMAND_TOLERANCE
from solver.profiles import MEASURED
from solver.sizing import metrics_at, size_fleet
from solver.units import from_rpm, in_ms, in_rpm

if TYPE_CHECKING:
    from solver.milp import FloatArray, IntArray
    from solver.sizing import Fleet


def analyze_json(
    body: bytes,
    *,
    rate_rpm: float | None = None,
    server: str | None = None,
    accelerator: str | None = None,
    strict: bool = False,
) -> bytes:
    """Answer ``POST /analyze``: metrics of every candidate at a rate.

    Parameters
    ----------
    body : bytes
        System JSON.
    rate_rpm : float or None
        Requests per minute at one replica; None: the server's load over the replicas it needs.
    server, accelerator : str or None
        Only candidates of this name.
    strict : bool
        An unknown key is an error.

    Raises
    ------
    InputError
        The document is wrong, or it has no such server or accelerator.
    """
    parsed = read_system(body, strict=strict)
    return (
        analyze(parsed, rate_rpm=rate_rpm, server=server, accelerator=accelerator).model_dump_json().encode()
    )


def size_json(
    body: bytes, *, server: str | None = None, accelerator: str | None = None, strict: bool = False
) -> bytes:
    """Answer ``POST /size``: as `analyze_json`, each replica at the largest rate that meets the targets."""
    parsed = read_system(body, strict=strict)
    fleet = size_fleet(parsed.system)
    which = _which(fleet, server, accelerator)
    return _table(fleet, which, fleet.sizing.arrival_rps[which]).model_dump_json().encode()


def analyze(
    parsed: schema.Parsed,
    *,
    rate_rpm: float | None = None,
    server: str | None = None,
    accelerator: str | None = None,
) -> schema.AnalyzeResponse:
    """As `analyze_json`, from a parsed system to the response object."""
    fleet = size_fleet(parsed.system)
    which = _which(fleet, server, accelerator)
    if rate_rpm is not None:
        return _table(fleet, which, np.full(len(which), from_rpm(rate_rpm)))
    replicas = np.maximum(_replicas(fleet)[which], 1)
    return _table(fleet, which, fleet.arrival_rps[fleet.server[which]] / replicas)


def _which(fleet: Fleet, server: str | None, accelerator: str | None) -> IntArray:
    chosen = np.ones(len(fleet.server), dtype=bool)
    for name, names, column, path in (
        (server, tuple(s.name for s in fleet.wire), fleet.server, "?server"),
        (accelerator, fleet.accelerators, fleet.accelerator, "?accelerator"),
    ):
        if name is None:
            continue
        if name not in names:
            raise InputError([Problem(path, f'"{name}"', f"one of {', '.join(names)}")])
        chosen &= column == names.index(name)
    return np.flatnonzero(chosen)


def _replicas(fleet: Fleet) -> IntArray:
    """Replicas that serve each candidate's server alone, shape (K,); 0 where no number does."""
    able = fleet.fits & (fleet.capacity_rps > 0)
    load = np.zeros(len(able))
    np.divide(fleet.arrival_rps[fleet.server], fleet.capacity_rps, out=load, where=able)
    needed = np.ceil(load * (1.0 - DEMAND_TOLERANCE)).astype(np.int64)
    minimum = np.array([s.least_replicas for s in fleet.wire], dtype=np.int64)[fleet.server]
    return np.where(able, np.maximum(needed, minimum), 0)


def _table(fleet: Fleet, which: IntArray, arrival_rps: FloatArray) -> schema.AnalyzeResponse:
    metrics = metrics_at(fleet, which, arrival_rps)
    replicas = _replicas(fleet)
    rows = []
    for i, k in enumerate(which.tolist()):
        feasible = bool(fleet.fits[k] and fleet.capacity_rps[k] > 0)
        law = int(fleet.law[k])
        rows.append(
            schema.Candidate(
                server=fleet.wire[fleet.server[k]].name,
                accelerator=fleet.accelerators[fleet.accelerator[k]],
                max_batch=int(fleet.candidates.max_batch[k]),
                max_queue=int(fleet.candidates.max_queue[k]),
                law=law,
                capacity_rpm=in_rpm(float(fleet.capacity_rps[k])),
                num_replicas=int(replicas[k]) if feasible else None,
                cost_cents_per_h=float(replicas[k] * fleet.cost_per_h[k]) if feasible else None,
                feasible=feasible,
                limit="measured" if law == MEASURED else Limit(fleet.sizing.limit[k]).name.lower(),
                reason=_reason(fleet, k),
                arrival_rate_per_replica_rpm=in_rpm(float(arrival_rps[i])),
                itl_average_ms=in_ms(metrics.itl_s[i]),
                ttft_average_ms=in_ms(metrics.ttft_s[i]),
                wait_average_ms=in_ms(metrics.wait_s[i]),
                throughput_rpm=in_rpm(metrics.throughput_rps[i]),
                occupancy=metrics.occupancy[i],
                utilization=1.0 - metrics.idle_probability[i],
                loss_probability=metrics.loss_probability[i],
            )
        )
    return schema.AnalyzeResponse(candidates=rows)


def _reason(fleet: Fleet, k: int) -> str:
    if not fleet.fits[k]:
        return in_words(fleet, k)
    if fleet.law[k] == MEASURED:
        return "a measured capacity: latencies are not modelled"
    if not fleet.loaded[fleet.server[k]]:
        return "the server has no load"
    if fleet.capacity_rps[k] == 0:
        return in_words(fleet, k)
    sets = {
        Limit.STABILITY: "no target binds before the queue becomes unstable",
        Limit.ITL: "the ITL target sets the capacity",
        Limit.TTFT: "the wait target sets the capacity"
        if fleet.law[k] == 1
        else "the TTFT target sets the capacity",
        Limit.THROUGHPUT: "the throughput target sets the capacity",
    }
    return sets[Limit(fleet.sizing.limit[k])]
