"""The report of an answer, as wire types."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from solver import schema
from solver.explain import REASONS
from solver.milp import Termination

if TYPE_CHECKING:
    from solver.check import Score
    from solver.explain import NotServed, NotTaken, TypeUse
    from solver.sizing import Fleet
    from solver.solve import Solved

# Thousands of objects are validated in one call: one by one takes twice as long.
_EXPLANATIONS = TypeAdapter(list[schema.Explanation])

BASIS = "dual of the inventory row in the linear relaxation of the last program"


@dataclass(frozen=True)
class Judged:
    """What `check` and `explain` say of a plan; `details` has the words of each of `reasons`."""

    unserved: list[NotServed]
    reasons: NotTaken | None
    details: list[str]
    types: list[TypeUse]
    warnings: list[str]
    score: Score


def relative_gap(value: float, bound: float) -> float | None:
    """(value - bound) / value for 0 <= bound <= value; 0 when both are 0; None when nothing is proven."""
    if not np.isfinite(bound):
        return None
    return (value - bound) / value if value > bound else 0.0


def to_report(
    parsed: schema.Parsed,
    fleet: Fleet,
    solved: Solved,
    judged: Judged,
    backend: str,
    seconds: dict[str, float],
) -> schema.Report:
    """Write the report."""
    priority = {c.name: c.priority for c in parsed.system.service_class_data.service_classes}
    objective = judged.score.levels[-1]
    # The solver's bound may exceed the value of its own point by rounding.
    bound = min(solved.levels[-1].bound, objective)
    unproven = [r for r in solved.levels[:-1] if r.termination is not Termination.OPTIMAL]
    warnings = list(parsed.warnings)
    if unproven and solved.termination is not Termination.FEASIBLE:
        names = ", ".join(f"{r.level.kind} of {r.level.name}" for r in unproven)
        warnings.append(
            f"not proven optimal in time: {names}; bound and gap of the cost hold for the values reached"
        )
    warnings += judged.warnings
    return schema.Report(
        termination=str(solved.termination),
        backend=backend,
        solver=solved.solver,
        version=solved.version,
        objective=objective,
        bound=bound,
        gap=relative_gap(objective, bound),
        cost_cents_per_h=judged.score.cost_per_h,
        switching_penalty_cents_per_h=judged.score.penalty_per_h,
        levels=[
            schema.Level(name=r.level.name, kind=str(r.level.kind), value=value, bound=min(r.bound, value))
            for r, value in zip(solved.levels, judged.score.levels, strict=True)
        ],
        seconds=seconds,
        unserved=[
            schema.Unserved(
                server=fleet.wire[n.server].name,
                service_class=fleet.wire[n.server].class_name,
                priority=priority[fleet.wire[n.server].class_name],
                unserved_share=n.unserved_share,
                reason=n.reason.value,
                detail=n.detail,
            )
            for n in judged.unserved
        ],
        inventory=[_use(fleet, use) for use in judged.types],
        explanations={} if judged.reasons is None else _explanations(fleet, judged.reasons, judged.details),
        warnings=warnings,
    )


def _use(fleet: Fleet, use: TypeUse) -> schema.InventoryUse:
    value = schema.ValueOfOneMoreGpu(
        cost_per_hour=use.saved_per_h,
        unserved_share=use.served_share,
        cost_range=_card_range(use.saved_range),
        unserved_range=_card_range(use.served_range),
    )
    return schema.InventoryUse(
        type=fleet.gpu_types[use.gpu_type],
        used=use.used,
        available=use.available,
        binding=use.binding,
        value_of_one_more_gpu=value,
        basis=BASIS,
    )


def _card_range(ends: tuple[int, int] | None) -> schema.CardRange | None:
    return None if ends is None else schema.CardRange(least=ends[0], most=ends[1])


def _explanations(fleet: Fleet, reasons: NotTaken, details: list[str]) -> dict[str, list[schema.Explanation]]:
    """Write the explanations, by server."""
    k = reasons.candidate
    codes = [reason.value for reason in REASONS]
    explanations = _EXPLANATIONS.validate_python(
        [
            {
                "accelerator": fleet.accelerators[accelerator],
                "max_batch": max_batch,
                "num_replicas": replicas or None,
                "cost_cents_per_h": cost_per_h,
                "reason": codes[code],
                "detail": detail,
            }
            for accelerator, max_batch, replicas, cost_per_h, code, detail in zip(
                fleet.accelerator[k].tolist(),
                fleet.candidates.max_batch[k].tolist(),
                reasons.replicas.tolist(),
                reasons.cost_per_h.tolist(),
                reasons.reason.tolist(),
                details,
                strict=True,
            )
        ]
    )
    server = fleet.server[k]
    bounds = np.flatnonzero(np.diff(server, prepend=-1, append=-1)).tolist()
    return {fleet.wire[server[begin]].name: explanations[begin:end] for begin, end in pairwise(bounds)}
