"""What a verification found, for the report: as wire types and in words."""

from __future__ import annotations

from dataclasses import replace
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np

from models.trial import CONFIDENCE, Verdict
from solver import schema
from solver.profiles import MEASURED
from solver.sizing import metrics_at
from solver.units import in_ms, in_rpm
from solver.verify import SIMULATED_LAW, service_of

if TYPE_CHECKING:
    from models.trial import Estimate
    from solver.sizing import Fleet
    from solver.verify import Checked, Verification

MOST_WARNINGS = 20


def to_wire(fleet: Fleet, verification: Verification) -> schema.Verification:
    """Write the verification for the report."""
    which = np.array([c.candidate for c in verification.checked], dtype=np.int64)
    at_95 = replace(fleet.candidates, percentile=np.full(len(fleet.server), 0.95))
    rates = np.array([c.rate_rps for c in verification.checked])
    metrics = metrics_at(replace(fleet, candidates=at_95), which, rates)
    figures = np.column_stack([metrics.itl_s, metrics.ttft_s, metrics.ttft_percentile_s])
    return schema.Verification(
        rounds=verification.rounds,
        confidence=CONFIDENCE,
        options=[
            _option(fleet, checked, _latencies(*row))
            for checked, row in zip(verification.checked, figures.tolist(), strict=True)
        ],
        cuts=[
            schema.Cut(
                **_named(fleet, k), capacity_rpm=in_rpm(model_rps), simulated_rpm=in_rpm(simulated_rps)
            )
            for k, (model_rps, simulated_rps) in verification.cuts.items()
        ],
    )


def _option(fleet: Fleet, checked: Checked, model: schema.Latencies) -> schema.VerifiedOption:
    trial = checked.finding.trial if checked.finding is not None else None
    return schema.VerifiedOption(
        **_named(fleet, checked.candidate),
        arrival_rate_per_replica_rpm=in_rpm(checked.rate_rps),
        verdict=checked.verdict.value,
        detail=in_words(fleet, checked),
        model=model,
        simulated=_latencies(trial.itl_s.mean, trial.ttft_s.mean, trial.ttft_p95_s) if trial else None,
        itl_half_width_ms=_known(in_ms(trial.itl_s.half_width)) if trial else None,
        ttft_half_width_ms=_known(in_ms(trial.ttft_s.half_width)) if trial else None,
        requests=trial.requests if trial else 0,
    )


def _named(fleet: Fleet, k: int) -> dict[str, Any]:
    return {
        "server": fleet.wire[fleet.server[k]].name,
        "accelerator": fleet.accelerators[fleet.accelerator[k]],
        "max_batch": int(fleet.candidates.max_batch[k]),
    }


def _latencies(itl_s: float, ttft_s: float, ttft_p95_s: float) -> schema.Latencies:
    itl, ttft, p95 = (_known(in_ms(value)) for value in (itl_s, ttft_s, ttft_p95_s))
    return schema.Latencies(itl_average_ms=itl, ttft_average_ms=ttft, ttft_p95_ms=p95)


def _known(value: float) -> float | None:
    return None if isnan(value) else value


def in_words(fleet: Fleet, checked: Checked) -> str:
    """Say how an option did, with figures."""
    k = checked.candidate
    if checked.finding is None:
        if fleet.law[k] == SIMULATED_LAW:
            return "no time was left to simulate it"
        law = "a measured rate (ratePerReplica)" if fleet.law[k] == MEASURED else f"law {fleet.law[k]}"
        return f"its profile is {law}; only law 3 (perfParms) can be simulated"
    trial, service = checked.finding.trial, service_of(fleet, k)
    words = []
    if service.itl_target_s > 0 and not isnan(trial.itl_s.mean):
        words.append(f"ITL {_interval(trial.itl_s)} ms of at most {in_ms(service.itl_target_s):.4g}")
    if service.ttft_target_s > 0 and service.percentile is None:
        words.append(f"TTFT {_interval(trial.ttft_s)} ms of at most {in_ms(service.ttft_target_s):.4g}")
    if service.ttft_target_s > 0 and service.percentile is not None:
        share, allowed = 100 * trial.beyond.mean, 100 * (1 - service.percentile)
        words.append(
            f"{share:.3g} +- {100 * trial.beyond.half_width:.2g} % of the requests have a TTFT above "
            f"{in_ms(service.ttft_target_s):.4g} ms, of at most {allowed:.3g} %"
        )
    if not trial.settled:
        words.append("too close to saturation: the queue does not settle")
    return "; ".join(words) or "no target"


def _interval(estimate: Estimate) -> str:
    return f"{in_ms(estimate.mean):.4g} +- {in_ms(estimate.half_width):.2g}"


def warnings(fleet: Fleet, verification: Verification) -> list[str]:
    """Say what of the answer the simulation does not confirm; of many the first ones, and how many more."""
    lines = []
    for checked in verification.checked:
        if checked.verdict is Verdict.MET:
            continue
        what = "not verified by simulation"
        if checked.verdict is Verdict.MISSED:
            what = "misses its targets in the simulation, and was not solved again in time"
        named = _named(fleet, checked.candidate)
        lines.append(f"{named['server']} on {named['accelerator']}: {what}: {in_words(fleet, checked)}")
    more = len(lines) - MOST_WARNINGS
    return lines if more <= 0 else [*lines[:MOST_WARNINGS], f"verification: the same of {more} more options"]
