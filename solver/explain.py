"""Why the answer is what it is: options not taken, demand not served, what one more GPU is worth."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from models.capacity import Limit
from solver.check import cost_alone_per_h, served_share, switching_penalty_per_h
from solver.convert import held_gpus, in_ms, in_rpm, needs_something
from solver.problem import NO_LIMIT

if TYPE_CHECKING:
    from solver.convert import Fleet
    from solver.milp import BoolArray, FloatArray, IntArray
    from solver.problem import AllocationProblem, Plan
    from solver.solve import Solved

# Costs that differ by less are equal.
_SAME_COST = 1e-6


class Reason(StrEnum):
    """Why an option is not taken, or a server not served."""

    TARGET_MISSED = "targetMissed"
    INVENTORY = "inventory"
    DOMINATED = "dominated"
    DEARER = "dearer"
    KEEP_ACCELERATOR = "keepAccelerator"
    MAX_REPLICAS = "maxReplicas"
    SWITCHING_PENALTY = "switchingPenalty"
    MEMORY = "memory"


class Shortage(StrEnum):
    """Why a server is not fully served."""

    GPUS = "gpus"
    TARGETS = "targets"
    NO_PROFILE = "noProfile"
    KEEP_ACCELERATOR = "keepAccelerator"
    MAX_REPLICAS = "maxReplicas"


@dataclass(frozen=True)
class NotTaken:
    """A candidate that looks cheaper than what its server got, and why it is not better.

    Attributes
    ----------
    candidate : int
        Index into the fleet's candidates.
    replicas : int
        That would serve the server's whole demand; 0 when no number does.
    cost_per_h : float
        Of those replicas; NaN when no number does.
    """

    candidate: int
    replicas: int
    cost_per_h: float
    reason: Reason
    detail: str


@dataclass(frozen=True)
class NotServed:
    """A server whose demand is not fully served. `unserved_share` in (0, 1]."""

    server: int
    unserved_share: float
    reason: Shortage
    detail: str


@dataclass(frozen=True)
class TypeUse:
    """GPUs of one type. `available` is None when unlimited; values are NaN when not known."""

    gpu_type: int
    used: int
    available: int | None
    binding: bool
    saved_per_h: float
    served_share: float


def in_words(fleet: Fleet, k: int) -> str:
    """Say why candidate k serves no rate: the target it misses even at the lowest one, and by what value."""
    if not fleet.fits[k]:
        tokens = fleet.candidates.in_tokens[k] + fleet.candidates.out_tokens[k]
        return f"its memory does not hold the weights and one request of {tokens:.6g} tokens"
    itl_s, ttft_s = fleet.sizing.lowest_itl_s[k], fleet.sizing.lowest_ttft_s[k]
    if fleet.sizing.limit[k] == Limit.ITL:
        value, target, name = itl_s, fleet.candidates.target_itl_s[k], "ITL"
    elif fleet.sizing.limit[k] == Limit.TTFT:
        value, target, name = (
            ttft_s,
            fleet.candidates.target_ttft_s[k],
            "wait" if fleet.law[k] == 1 else "TTFT",
        )
    else:
        return "it has no tokens to size by"
    return (
        f"{name} is {in_ms(value):.4g} ms even at the lowest rate, the target is {in_ms(target):.4g} ms: "
        "no number of replicas helps"
    )


def not_served(fleet: Fleet, problem: AllocationProblem, plan: Plan) -> list[NotServed]:
    """Every server that is not fully served, with what is missing."""
    share = served_share(problem, plan)
    has_option = np.zeros(len(fleet.wire), dtype=bool)
    has_option[problem.option_server] = True
    found = []
    for s in range(len(fleet.wire)):
        if not has_option[s] and needs_something(fleet, s):
            reason, detail = _no_option(fleet, s)
            found.append(NotServed(s, 1.0, reason, detail))
        elif share[s] < 1.0:
            reason, detail = _short(fleet, problem, plan, s)
            found.append(NotServed(s, 1.0 - float(share[s]), reason, detail))
    return found


def _no_option(fleet: Fleet, s: int) -> tuple[Shortage, str]:
    mine = np.flatnonzero(fleet.server == s)
    model = fleet.wire[s].model
    if not mine.size:
        return Shortage.NO_PROFILE, f"no accelerator has a profile of {model}"
    able = mine[fleet.fits[mine] & (fleet.capacity_rps[mine] > 0)]
    kept = mine[fleet.allowed[mine]]
    current = fleet.wire[s].current_alloc.accelerator
    if able.size and not kept.size:
        return Shortage.KEEP_ACCELERATOR, f"it keeps {current}, which has no profile of {model}"
    words = "; ".join(f"{fleet.accelerators[fleet.accelerator[k]]}: {in_words(fleet, k)}" for k in kept)
    if able.size:
        others = ", ".join(sorted({fleet.accelerators[fleet.accelerator[k]] for k in able}))
        return (
            Shortage.KEEP_ACCELERATOR,
            f"it keeps its accelerator ({words}); {others} would meet the targets",
        )
    return Shortage.TARGETS, words


def _short(fleet: Fleet, problem: AllocationProblem, plan: Plan, s: int) -> tuple[Shortage, str]:
    mine = np.flatnonzero(problem.option_server == s)
    needed, most = problem.replicas_needed[mine], problem.max_replicas[s]
    if problem.policy.max_types == 1 and (needed > most).all():
        return Shortage.MAX_REPLICAS, f"at least {needed.min()} replicas are needed, at most {most} allowed"
    cards = problem.cards(plan)
    own = np.bincount(
        problem.gpu_type[mine], (problem.gpus * plan.replicas)[mine], minlength=len(problem.gpu_types)
    )
    words = []
    for t in np.unique(problem.gpu_type[mine]):
        of_type = mine[problem.gpu_type[mine] == t]
        least = int((problem.replicas_needed * problem.gpus)[of_type].min())
        limit = problem.inventory.gpus[t]
        if limit != NO_LIMIT:
            there = int(limit - cards[t] + own[t])
            words.append(f"{least} {problem.gpu_types[t]} ({there} left by the others)")
    return Shortage.GPUS, "its whole demand needs " + " or ".join(words)


def not_taken(
    fleet: Fleet, problem: AllocationProblem, solved: Solved, plan: Plan
) -> dict[int, list[NotTaken]]:
    """For each server the candidates that look cheaper than what it got, and the runner-up.

    A candidate looks cheaper when its replicas alone would cost less, or one of its replicas costs less
    than one of those taken (less than the whole allocation for one that misses a target).
    """
    got = _Got.of(problem, plan)
    alone = cost_alone_per_h(problem)
    option_of = np.full(len(fleet.server), -1)
    option_of[fleet.options] = np.arange(len(problem.option_server))

    served = got.replicas > 0
    candidate = np.flatnonzero(served[fleet.server] & ~_is_taken(fleet, option_of, plan))
    server, option = fleet.server[candidate], option_of[candidate]
    unit = fleet.cost_per_h[candidate]
    total = np.where(option >= 0, alone[option], np.nan)
    cheaper = total < got.total[server] - _SAME_COST * np.maximum(1.0, got.total[server])
    looks = np.where(option >= 0, cheaper | (unit < got.unit[server]), unit < got.cost[server])
    runner_up = np.zeros(len(candidate), dtype=bool)
    dearer = np.flatnonzero((option >= 0) & ~cheaper)
    order = dearer[np.lexsort((total[dearer], server[dearer]))]
    runner_up[order[np.r_[True, np.diff(server[order]) != 0][: len(order)]]] = True

    found: dict[int, list[NotTaken]] = {}
    for i in np.flatnonzero(looks | runner_up):
        k, s, j = int(candidate[i]), int(server[i]), int(option[i])
        found.setdefault(s, []).append(
            _judge(fleet, problem, solved, k, s, j, got, alone, cheaper=bool(cheaper[i]))
        )
    return found


@dataclass(frozen=True)
class _Got:
    """What each server got: replicas, cost, penalty included, and its cheapest replica, shape (S,)."""

    replicas: FloatArray
    cost: FloatArray
    total: FloatArray
    unit: FloatArray

    @staticmethod
    def of(problem: AllocationProblem, plan: Plan) -> _Got:
        cost = problem.per_server(problem.cost_per_h * plan.replicas)
        unit = np.full(len(cost), np.inf)
        used = plan.replicas > 0
        np.minimum.at(unit, problem.option_server[used], problem.cost_per_h[used])
        total = cost + switching_penalty_per_h(problem, plan)
        return _Got(problem.per_server(plan.replicas), cost, total, unit)


def _is_taken(fleet: Fleet, option_of: IntArray, plan: Plan) -> BoolArray:
    """Candidates on an accelerator that the plan uses for their server, at whatever batch limit."""
    width = max(len(fleet.accelerators), 1)
    pair = fleet.server * width + fleet.accelerator
    used = np.zeros(len(pair), dtype=bool)
    used[option_of >= 0] = plan.replicas[option_of[option_of >= 0]] > 0
    result: BoolArray = np.isin(pair, pair[used])
    return result


def _judge(
    fleet: Fleet,
    problem: AllocationProblem,
    solved: Solved,
    k: int,
    s: int,
    j: int,
    got: _Got,
    alone: FloatArray,
    *,
    cheaper: bool,
) -> NotTaken:
    """Say why candidate k (option j, or -1) of server s is not taken."""
    if not fleet.fits[k]:
        return NotTaken(k, 0, np.nan, Reason.MEMORY, in_words(fleet, k))
    if j < 0 and fleet.capacity_rps[k] > 0:
        current = fleet.wire[s].current_alloc.accelerator
        return NotTaken(k, 0, np.nan, Reason.KEEP_ACCELERATOR, f"the server keeps {current}")
    if j < 0:
        return NotTaken(k, 0, np.nan, Reason.TARGET_MISSED, in_words(fleet, k))
    replicas = int(problem.replicas_needed[j])
    cost = replicas * float(problem.cost_per_h[j])
    more = alone[j] - got.total[s]
    gpu_type = problem.gpu_types[problem.gpu_type[j]]
    if replicas > problem.max_replicas[s]:
        reason, detail = (
            Reason.MAX_REPLICAS,
            f"{replicas} replicas, at most {problem.max_replicas[s]} allowed",
        )
    elif cheaper and problem.inventory.gpus[problem.gpu_type[j]] != NO_LIMIT:
        needs = f"{replicas * int(problem.gpus[j])} {gpu_type}"
        reason = Reason.INVENTORY
        detail = f"alone it would save {-more:.6g} cents/h; its {needs} serve others better, or are not there"
    elif solved.dominated[j]:
        reason, detail = (
            Reason.DOMINATED,
            f"another option on {gpu_type} has no less capacity at no more cost",
        )
    elif cost < got.cost[s] - _SAME_COST * max(1.0, got.cost[s]):
        reason = Reason.SWITCHING_PENALTY
        detail = f"cheaper by {got.cost[s] - cost:.6g} cents/h, less than the penalty of switching"
    else:
        rate = in_rpm(float(problem.capacity_rps[j]))
        dearer = (
            f"dearer by {more:.6g} cents/h" if more > _SAME_COST * max(1.0, got.total[s]) else "no cheaper"
        )
        reason = Reason.DEARER
        detail = f"{dearer}: {replicas} replicas at {rate:.4g} requests/min each"
    return NotTaken(k, replicas, cost, reason, detail)


def memory_warnings(fleet: Fleet, plan: Plan) -> list[str]:
    """Say where the KV cache limits the batch of an option that is used."""
    used = fleet.options[plan.replicas > 0]
    return [
        f"{fleet.wire[fleet.server[k]].name} on {fleet.accelerators[fleet.accelerator[k]]}: the KV cache "
        f"limits the batch to {fleet.candidates.max_batch[k]}"
        for k in used[fleet.memory_limited[used]]
    ]


def type_use(
    fleet: Fleet,
    problem: AllocationProblem,
    solved: Solved,
    plan: Plan,
    reasons: dict[int, list[NotTaken]],
    short: list[NotServed],
) -> list[TypeUse]:
    """GPUs used of each type, whether the row binds, and what one more is worth.

    A row binds when its dual is positive, when a cheaper option was not taken for lack of its GPUs, or when
    a server that is short of GPUs could use them.
    """
    held = held_gpus(fleet)
    cards = problem.cards(plan)
    wanted = {
        int(fleet.gpu_type[n.candidate])
        for group in reasons.values()
        for n in group
        if n.reason is Reason.INVENTORY
    }
    hungry = {n.server for n in short if n.reason is Shortage.GPUS}
    for s in hungry:
        wanted |= set(problem.gpu_type[problem.option_server == s].tolist())
    found = []
    for t in range(len(fleet.gpu_types)):
        limit = problem.inventory.gpus[t]
        limited = limit != NO_LIMIT
        saved, served = solved.value_of_gpu.cost_per_h[t], solved.value_of_gpu.unserved[t]
        binding = limited and (t in wanted or saved > 0 or served > 0)
        available = int(limit + held[t]) if limited else None
        found.append(
            TypeUse(t, int(cards[t] + held[t]), available, bool(binding), float(saved), float(served))
        )
    return found
