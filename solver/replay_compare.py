"""What differs between two answers to one system."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from solver.optimize import DEFAULT_GAP
from solver.units import in_dollars

if TYPE_CHECKING:
    from collections.abc import Sequence

    from solver.schema import Allocation, AllocPart, Level, Response

# Two figures that agree to this share of the larger are the same but for rounding.
_ROUNDING = 1e-6


class Verdict(StrEnum):
    """What became of a pass when it was solved again."""

    SAME = "same"
    TIE = "tie"  # another allocation, and no level of the objective differs by more than its gap
    DIFFERS = "differs"
    FAILED = "failed"  # there was an answer, and there is none now
    SKIPPED = "skipped"  # nothing to compare with


@dataclass(frozen=True)
class Comparison:
    """What solving a pass again came to.

    Attributes
    ----------
    verdict : Verdict
    summary : str
        In words; empty when there is nothing to say.
    details : tuple of str
        One for each server with another allocation.
    cost_before_cents_per_h, cost_now_cents_per_h : float
        0 where there is no answer to compare.
    """

    verdict: Verdict
    summary: str = ""
    details: tuple[str, ...] = ()
    cost_before_cents_per_h: float = 0.0
    cost_now_cents_per_h: float = 0.0


def compare(before: Response, now: Response) -> Comparison:
    """Compare two answers to one system.

    Answers of which the allocation alone differs are a tie when at each level of the objective their values
    are no further apart than one of them may be from the optimum. A gap differs when it is proven in one
    answer only, or by more than solvers are asked for.
    """
    servers = before.allocations.keys() | now.allocations.keys()
    details = []
    for name in sorted(servers):
        old, new = (_text(answer.allocations.get(name)) for answer in (before, now))
        if old != new:
            details.append(f"{name}: {old} -> {new}")
    costs = before.report.cost_cents_per_h, now.report.cost_cents_per_h
    gaps = before.report.gap, now.report.gap
    levels = _apart(_levels(before), _levels(now))
    if not details and not levels and not _gap_differs(*gaps):
        return Comparison(Verdict.SAME, "", (), *costs)
    says = [] if _close(*costs) else [f"cost {dollars(costs[0])} -> {dollars(costs[1])} $/h"]
    if _gap_differs(*gaps):
        says.append(f"gap {_percent(gaps[0])} -> {_percent(gaps[1])}")
    if levels or not details or _gap_differs(*gaps):
        return Comparison(Verdict.DIFFERS, ", ".join([*levels, *says]), tuple(details), *costs)
    widest = _percent(max(gap or 0.0 for gap in gaps))
    text = f"another allocation of the same objective within the gap ({widest})"
    return Comparison(Verdict.TIE, ", ".join([text, *says]), tuple(details), *costs)


def _text(allocation: Allocation | None) -> str:
    """What a server runs on, in words."""
    if allocation is None:
        return "nothing said"
    parts: Sequence[Allocation | AllocPart] = allocation.parts or [allocation]
    running = [f"{p.num_replicas} {p.accelerator} (batch {p.max_batch})" for p in parts if p.num_replicas]
    return " + ".join(sorted(running)) or "none"


@dataclass(frozen=True)
class _Reached:
    """The value of a level of the objective, and how far it may be from the best one."""

    value: float
    slack: float


def _levels(response: Response) -> dict[str, _Reached]:
    """The levels of an answer; of one without them the objective alone."""
    report = response.report
    known = {_name(level): (level.value, level.bound) for level in report.levels}
    known = known or {"objective": (report.objective, report.bound)}
    return {
        name: _Reached(value, 0.0 if bound is None else value - bound)
        for name, (value, bound) in known.items()
        if value is not None
    }


def _name(level: Level) -> str:
    return level.kind if level.kind == level.name else f"{level.kind} of {level.name}"


def _apart(before: dict[str, _Reached], now: dict[str, _Reached]) -> list[str]:
    """Name the levels whose values differ by more than either may be from the best."""
    found = [f"{name} is in one answer only" for name in before.keys() ^ now.keys()]
    for name in before.keys() & now.keys():
        old, new = before[name], now[name]
        if abs(old.value - new.value) > max(old.slack, new.slack) and not _close(old.value, new.value):
            found.append(f"{name} {old.value:g} -> {new.value:g}")
    return sorted(found)


def _gap_differs(before: float | None, now: float | None) -> bool:
    if before is None or now is None:
        return before is not now
    return abs(before - now) > DEFAULT_GAP + _ROUNDING


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= _ROUNDING * max(abs(one), abs(other), 1.0)


def dollars(cents: float) -> str:
    """Write cents as dollars, to the cent."""
    return f"{in_dollars(cents):.2f}"


def _percent(share: float | None) -> str:
    return "not proven" if share is None else f"{100.0 * share:.3g} %"
