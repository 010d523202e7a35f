"""Answers verified by simulation: what is chosen is simulated, what misses is cut, and solved again.

::

    Decided -> Task for each option in use -> Simulators -> all hold? -> done
       ^                                          | no
       +------ decide <- capacities cut to the largest rate that holds

A cut only lowers a capacity, so every round rules something out, and a round in which all hold is an answer
whose every option the simulation confirms. Options that the performance model takes for worse than they are
stay so: verification makes an answer safe, not cheaper.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from math import isnan
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models import moments
from models.capacity import Limit
from models.replica import IterationLaw
from models.trial import Service, Verdict
from solver.check import carried_rps
from solver.simulators import Simulators, Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from solver.problem import AllocationProblem, Plan
    from solver.simulators import Finding, Findings
    from solver.sizing import Fleet
    from solver.solve import Solved

# The law whose parameters the simulator takes.
SIMULATED_LAW = 3

# Each round rules options out, so this many are never needed in practice.
MOST_ROUNDS = 50


class Decided(NamedTuple):
    """A problem, what the solver made of it, and the plan."""

    problem: AllocationProblem
    solved: Solved
    plan: Plan


@dataclass(frozen=True)
class Checked:
    """An option in use: candidate, arrival rate at each of its replicas, what the simulation found.

    `finding` is None where there was no time, or where the profile is of a law that is not simulated.
    """

    candidate: int
    rate_rps: float
    finding: Finding | None

    @property
    def verdict(self) -> Verdict:
        """Say whether it holds."""
        return Verdict.OPEN if self.finding is None else self.finding.trial.verdict


@dataclass(frozen=True)
class Verification:
    """How an answer was verified.

    Attributes
    ----------
    rounds : int
        Programs solved.
    checked : tuple of Checked
        The options of the answer that carry load, those of the most important class first.
    cuts : dict of int to (float, float)
        By candidate: the capacity of the performance model and the one that took its place, requests/s.
    """

    rounds: int
    checked: tuple[Checked, ...]
    cuts: dict[int, tuple[float, float]]


def verified(
    fleet: Fleet,
    decided: Decided,
    decide: Callable[[Fleet, float], Decided],
    findings: Findings,
    end_s: float,
    now: Callable[[], float] = time.monotonic,
) -> tuple[Fleet, Decided, Verification]:
    """Simulate, cut and solve again until every option in use holds, or the time is up.

    Parameters
    ----------
    fleet : Fleet
    decided : Decided
        Of the fleet.
    decide : callable
        ``(fleet, limit_s)``: solves with the fleet's capacities.
    findings : Findings
    end_s : float
        By the clock `now`.

    Returns
    -------
    Fleet
        With the capacities as cut.
    Decided
        The last one.
    Verification
    """
    first, rounds = fleet, 1
    with Simulators() as simulators:
        while True:
            checked = _check(fleet, decided, findings, simulators, end_s - now())
            cut = {
                c.candidate: c.finding
                for c in checked
                if c.finding is not None and c.finding.largest_rps is not None
            }
            if not cut or rounds == MOST_ROUNDS or now() >= end_s:
                break
            fleet = _lowered(fleet, cut)
            decided = decide(fleet, end_s - now())
            rounds += 1
    lowered = np.flatnonzero(fleet.capacity_rps < first.capacity_rps)
    cuts = {int(k): (float(first.capacity_rps[k]), float(fleet.capacity_rps[k])) for k in lowered}
    return fleet, decided, Verification(rounds, tuple(checked), cuts)


def _check(
    fleet: Fleet, decided: Decided, findings: Findings, simulators: Simulators, limit_s: float
) -> list[Checked]:
    problem, plan = decided.problem, decided.plan
    carried = carried_rps(problem, plan)
    used = np.flatnonzero((plan.replicas > 0) & (carried > 0))
    # The most important first, in case the time is short.
    used = used[np.argsort(problem.priority[problem.option_server[used]], kind="stable")]
    candidates = fleet.options[used]
    rates = carried[used] / plan.replicas[used]
    able = fleet.law[candidates] == SIMULATED_LAW
    tasks = [
        Task(service_of(fleet, k), rate)
        for k, rate in zip(candidates[able].tolist(), rates[able].tolist(), strict=True)
    ]
    found = iter(findings.of(tasks, simulators, limit_s))
    return [
        Checked(k, rate, next(found) if simulated else None)
        for k, rate, simulated in zip(candidates.tolist(), rates.tolist(), able.tolist(), strict=True)
    ]


def service_of(fleet: Fleet, k: int) -> Service:
    """Return one replica of candidate k, of law 3, as the simulator takes it."""
    c, detail = fleet.candidates, fleet.detail
    percentile = float(c.percentile[k])
    return Service(
        law=IterationLaw(
            float(c.alpha_s[k]),
            float(c.beta_s[k]),
            float(c.gamma_s[k]),
            float(c.beta_prefill_s[k]),
            float(c.prefill_floor_s[k]),
            float(c.epsilon_s[k]),
            float(c.expert_fraction[k]),
        ),
        max_batch=int(c.max_batch[k]),
        in_tokens=float(c.in_tokens[k]),
        out_tokens=float(c.out_tokens[k]),
        in_cov=float(detail.in_cov[k]),
        out_cov=float(detail.out_cov[k]),
        burstiness=float(detail.arrival_burstiness[k]),
        overhead_s=float(detail.overhead_s[k]),
        itl_target_s=float(c.target_itl_s[k]),
        ttft_target_s=float(c.target_ttft_s[k]),
        percentile=None if isnan(percentile) else percentile,
        saturation_rps=float(moments.full_rate_rps(c.take([k]), detail.take([k]))[0]),
    )


def _lowered(fleet: Fleet, cut: dict[int, Finding]) -> Fleet:
    """Return the fleet with the capacities of some candidates cut to what the simulation allows.

    Where it allows none the figures at the lowest rate are those simulated, so that the reason given is true.
    """
    capacity, limit = fleet.capacity_rps.copy(), fleet.sizing.limit.copy()
    itl_s, ttft_s = fleet.sizing.lowest_itl_s.copy(), fleet.sizing.lowest_ttft_s.copy()
    for k, finding in cut.items():
        capacity[k] = min(finding.largest_rps or 0.0, capacity[k])
        if finding.lowest is not None:
            mean = isnan(fleet.candidates.percentile[k])
            itl_s[k] = finding.lowest.itl_s.upper
            ttft_s[k] = finding.lowest.ttft_s.upper if mean else finding.lowest.ttft_p95_s
            limit[k] = Limit.ITL if 0 < fleet.candidates.target_itl_s[k] < itl_s[k] else Limit.TTFT
    sizing = replace(fleet.sizing, limit=limit, lowest_itl_s=itl_s, lowest_ttft_s=ttft_s)
    return replace(fleet, capacity_rps=capacity, sizing=sizing)
