"""What a scenario expects, held against an answer or along a sweep of answers."""

from __future__ import annotations

import fnmatch
import json
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from solver.analyze import analyze_json
from solver.scenario_changes import SystemDocument, get

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from solver.scenario_document import (
        Across,
        AllocationFields,
        Approximately,
        Expect,
        Json,
        Scalar,
        Trend,
    )

# Costs and shares of one plan computed in two orders differ by rounding alone.
_ROUNDING = 1e-9

# The feasibility tolerance of the solvers: a share below it is none.
_SHARE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Failure:
    """An expectation that does not hold, and what was found instead."""

    expectation: str
    found: str

    def __str__(self) -> str:
        return f"expected {self.expectation}; found {self.found}"


@dataclass(frozen=True)
class Answer:
    """An answer beside the system it is for.

    Attributes
    ----------
    system, response : dict
        The JSON documents.
    """

    system: Json
    response: Json

    @property
    def report(self) -> Json:
        """The report."""
        report: Json = self.response["report"]
        return report

    @property
    def cost(self) -> float:
        """Cost of the plan, cents/h."""
        return float(self.report["cost"])

    @property
    def gap(self) -> float:
        """Relative gap; infinite where nothing is proven."""
        gap = self.report["gap"]
        return math.inf if gap is None else float(gap)

    @cached_property
    def unserved(self) -> dict[str, float]:
        """Unserved share of each server that is not fully served."""
        return {
            row["server"]: float(row["unservedShare"])
            for row in self.report["unserved"]
            if row["unservedShare"] > _SHARE_TOLERANCE
        }

    @cached_property
    def inventory(self) -> dict[str, Json]:
        """The report's row of each GPU type."""
        return {row["type"]: row for row in self.report["inventory"]}

    def used(self, gpu_type: str) -> int:
        """Cards of a type that the plan uses; 0 for a type that nobody knows."""
        return int(self.inventory.get(gpu_type, {"used": 0})["used"])

    def accelerators(self, server: str) -> list[str]:
        """Accelerators that a server runs on, none where it is not allocated."""
        allocation = self.response["allocations"].get(server, {"accelerator": ""})
        parts = allocation.get("parts") or [allocation]
        return [part["accelerator"] for part in parts if part["accelerator"]]

    @cached_property
    def type_of(self) -> dict[str, str]:
        """GPU type of each accelerator."""
        rows = SystemDocument(self.system).accelerators
        return {get(row, "name"): get(row, "type") or get(row, "name") for row in rows}

    @cached_property
    def class_of(self) -> dict[str, str]:
        """Service class of each server."""
        return {get(row, "name"): get(row, "class") for row in SystemDocument(self.system).servers}


def failures(expect: Expect, answer: Answer) -> list[Failure]:
    """Hold every expectation against an answer."""
    result = []
    for name, expected in expect.stated():
        found = _CHECK[name](expected, answer)
        if found:
            result.append(Failure(f"{name}: {_shown(expected)}", found))
    return result


def sweep_failures(across: Across, answers: Sequence[tuple[Scalar, Answer]]) -> list[Failure]:
    """Hold the expectations along a sweep against its values and answers, in order."""
    result = []
    costs = [answer.cost for _, answer in answers]
    if across.cost_monotone:
        # Each cost is within its gap of the least possible one, so that is how far a trend may seem to turn.
        slack = [cost * answer.gap for cost, (_, answer) in zip(costs, answers, strict=True)]
        found = _off_trend(across.cost_monotone, costs, slack)
        result += [Failure(f"cost_monotone: {across.cost_monotone}", found)] if found else []
    if across.unserved_monotone:
        shares = [sum(answer.unserved.values()) for _, answer in answers]
        found = _off_trend(across.unserved_monotone, shares, [_SHARE_TOLERANCE] * len(shares))
        result += [Failure(f"unserved_monotone: {across.unserved_monotone}", found)] if found else []
    for gpu_type, trend in (across.gpus_used_monotone or {}).items():
        cards = [answer.used(gpu_type) for _, answer in answers]
        found = _off_trend(trend, cards, [0.0] * len(cards))
        result += [Failure(f"gpus_used_monotone: {gpu_type}: {trend}", found)] if found else []
    if across.cost_flat_from is not None:
        found = _not_flat(across.cost_flat_from, answers)
        result += [Failure(f"cost_flat_from: {across.cost_flat_from}", found)] if found else []
    return result


def better_than_proven(answer: Answer, proven: Answer) -> Failure | None:
    """Hold an answer without proof against a proven one: it must not be better.

    The levels of the objective are compared in their order; one that is worse settles it, and what comes
    after it is free to be better.
    """
    rows = zip(answer.report["levels"], proven.report["levels"], strict=True)
    for found, best in rows:
        tolerance = max(_SHARE_TOLERANCE, _ROUNDING * abs(best["value"]))
        bound = -math.inf if best["bound"] is None else best["bound"]
        if found["value"] < bound - tolerance:
            expectation = f"{best['name']} ({best['kind']}): {bound:.10g}, the proven bound, or more"
            return Failure(expectation, f"{found['value']:.10g}")
        if found["value"] > best["value"] + tolerance:
            return None
    return None


def _shown(expected: Any) -> str:
    """Write an expectation as the document did, on one line."""

    def plain(value: Any) -> Any:
        return value.model_dump(exclude_unset=True) if hasattr(value, "model_dump") else str(value)

    return json.dumps(expected, default=plain)


# --- one answer: each returns what it found where the expectation does not hold -----------------------------


def _cost_at_most(limit: float, answer: Answer) -> str | None:
    return None if answer.cost <= limit * (1 + _ROUNDING) else f"{answer.cost:.10g}"


def _cost_at_least(limit: float, answer: Answer) -> str | None:
    return None if answer.cost >= limit * (1 - _ROUNDING) else f"{answer.cost:.10g}"


def _total_cost_approx(expected: Approximately, answer: Answer) -> str | None:
    near = math.isclose(answer.cost, expected.value, rel_tol=expected.rel)
    return None if near else f"{answer.cost:.10g}"


def _gap_at_most(limit: float, answer: Answer) -> str | None:
    return None if answer.gap <= limit + _ROUNDING else f"{answer.gap:.3g}"


def _nothing_unserved(_: bool, answer: Answer) -> str | None:
    return _shares(answer) if answer.unserved else None


def _unserved(servers: list[str], answer: Answer) -> str | None:
    return None if set(answer.unserved) == set(servers) else _shares(answer)


def _unserved_only_in_class(classes: list[str], answer: Answer) -> str | None:
    hit = {answer.class_of[server] for server in answer.unserved}
    return None if hit and hit <= set(classes) else _shares(answer)


def _shares(answer: Answer) -> str:
    return (
        ", ".join(f"{name} {share:.1%}" for name, share in sorted(answer.unserved.items())) or "all is served"
    )


def _accelerator_of(expected: dict[str, str | list[str]], answer: Answer) -> str | None:
    wrong = []
    for server, given in expected.items():
        patterns = [given] if isinstance(given, str) else given
        found = answer.accelerators(server)
        if not found or not all(any(fnmatch.fnmatchcase(a, p) for p in patterns) for a in found):
            wrong.append(f"{server} on {' and '.join(found) or 'nothing'}")
    return "; ".join(wrong) or None


def _replicas_of(expected: dict[str, int], answer: Answer) -> str | None:
    allocations = answer.response["allocations"]
    found = {server: allocations.get(server, {"numReplicas": 0})["numReplicas"] for server in expected}
    wrong = [f"{server} {count}" for server, count in found.items() if count != expected[server]]
    return ", ".join(wrong) or None


def _allocation(expected: dict[str, AllocationFields], answer: Answer) -> str | None:
    wrong = []
    for server, wanted in expected.items():
        allocation = answer.response["allocations"].get(server, {})
        for name, value in wanted.fields.items():
            found = allocation.get(name)
            if not _agree(found, value, wanted):
                wrong.append(f"{server} {name} {found!r}")
    return ", ".join(wrong) or None


def _agree(found: Any, value: Scalar, within: AllocationFields) -> bool:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (found, value))
    if not numbers:
        return bool(found == value)
    return math.isclose(found, value, rel_tol=within.rel, abs_tol=within.abs)  # type: ignore[arg-type]


def _cheapest_type(expected: dict[str, str], answer: Answer) -> str | None:
    wrong = []
    body = json.dumps(answer.system).encode()
    for server, gpu_type in expected.items():
        rows = json.loads(analyze_json(body, rate_rpm=None, server=server, accelerator=None))["candidates"]
        costs = {row["accelerator"]: row["cost"] for row in rows if row["feasible"]}
        least = min(costs.values(), default=math.inf)
        types = {answer.type_of[a] for a, cost in costs.items() if cost <= least * (1 + _ROUNDING)}
        if gpu_type not in types:
            wrong.append(f"{server} {' or '.join(sorted(types)) or 'on none'}")
    return ", ".join(wrong) or None


def _gpus_used_at_most(expected: dict[str, int], answer: Answer) -> str | None:
    wrong = [gpu_type for gpu_type, limit in expected.items() if answer.used(gpu_type) > limit]
    return ", ".join(f"{gpu_type} {answer.used(gpu_type)}" for gpu_type in wrong) or None


def _gpus_used_at_least(expected: dict[str, int], answer: Answer) -> str | None:
    wrong = [gpu_type for gpu_type, limit in expected.items() if answer.used(gpu_type) < limit]
    return ", ".join(f"{gpu_type} {answer.used(gpu_type)}" for gpu_type in wrong) or None


def _binding(expected: list[str], answer: Answer) -> str | None:
    found = sorted(gpu_type for gpu_type, row in answer.inventory.items() if row["binding"])
    return None if found == sorted(expected) else ", ".join(found) or "none"


def _value_positive(types: list[str], answer: Answer) -> str | None:
    wrong = [gpu_type for gpu_type in types if not _is_worth(gpu_type, answer)]
    return ", ".join(f"{gpu_type} is worth nothing" for gpu_type in wrong) or None


def _value_zero(types: list[str], answer: Answer) -> str | None:
    wrong = [gpu_type for gpu_type in types if _is_worth(gpu_type, answer)]
    return ", ".join(f"{gpu_type} {json.dumps(_value(gpu_type, answer))}" for gpu_type in wrong) or None


def _is_worth(gpu_type: str, answer: Answer) -> bool:
    return any((value or 0.0) > _ROUNDING for value in _value(gpu_type, answer).values())


def _value(gpu_type: str, answer: Answer) -> Json:
    value: Json = answer.inventory.get(gpu_type, {}).get("valueOfOneMoreGpu") or {}
    return value


_CHECK: dict[str, Callable[[Any, Answer], str | None]] = {
    "cost_at_most": _cost_at_most,
    "cost_at_least": _cost_at_least,
    "total_cost_approx": _total_cost_approx,
    "gap_at_most": _gap_at_most,
    "nothing_unserved": _nothing_unserved,
    "unserved": _unserved,
    "unserved_only_in_class": _unserved_only_in_class,
    "accelerator_of": _accelerator_of,
    "replicas_of": _replicas_of,
    "allocation": _allocation,
    "cheapest_type": _cheapest_type,
    "gpus_used_at_most": _gpus_used_at_most,
    "gpus_used_at_least": _gpus_used_at_least,
    "binding": _binding,
    "value_of_one_more_gpu_positive": _value_positive,
    "value_of_one_more_gpu_zero": _value_zero,
}


# --- along a sweep ------------------------------------------------------------------------------------------


def _off_trend(trend: Trend, values: Sequence[float], slack: Sequence[float]) -> str | None:
    """Say what breaks a trend: a step back beyond the slack there, or no step at all."""
    sign = 1.0 if trend == "increasing" else -1.0
    rises = [sign * (b - a) for a, b in pairwise(values)]
    back = any(rise < -max(a, b) - _ROUNDING for rise, (a, b) in zip(rises, pairwise(slack), strict=True))
    if back or sum(rises) <= max(slack):
        return ", ".join(f"{value:.8g}" for value in values)
    return None


def _not_flat(start: Scalar, answers: Sequence[tuple[Scalar, Answer]]) -> str | None:
    """Say what breaks a cost that is flat from `start` on, and another one before it."""
    values = [value for value, _ in answers]
    at = values.index(start)
    flat = answers[at][1]
    costs = [answer.cost for _, answer in answers]

    def apart(answer: Answer) -> bool:
        within = max(answer.cost * answer.gap, flat.cost * flat.gap) + _ROUNDING * flat.cost
        return abs(answer.cost - flat.cost) > within

    if any(apart(answer) for _, answer in answers[at:]) or not apart(answers[at - 1][1]):
        return ", ".join(f"{cost:.8g}" for cost in costs)
    return None
