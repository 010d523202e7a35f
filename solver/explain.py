"""Why the answer is what it is: options not taken, demand not served, what one more GPU is worth."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from models.capacity import Limit
from solver.check import cost_alone_per_h, served_share, switching_penalty_per_h
from solver.convert import held_gpus
from solver.problem import NO_LIMIT
from solver.units import in_ms, in_rpm

if TYPE_CHECKING:
    from solver.milp import BoolArray, FloatArray, IntArray
    from solver.problem import AllocationProblem, Plan
    from solver.sizing import Fleet
    from solver.solve import Solved

# Costs that differ by less are equal.
_SAME_COST = 1e-6


# Numbers of GPUs that differ by less are equal.
_SAME_NUMBER = 1e-4


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


REASONS = tuple(Reason)


class Shortage(StrEnum):
    """Why a server is not fully served."""

    GPUS = "gpus"
    TARGETS = "targets"
    NO_PROFILE = "noProfile"
    KEEP_ACCELERATOR = "keepAccelerator"
    MAX_REPLICAS = "maxReplicas"


@dataclass(frozen=True)
class NotTaken:
    """Candidates that look cheaper than what their servers got, and why they are not better; shape (n,).

    Attributes
    ----------
    candidate : int
        Indices into the fleet's candidates, rising.
    replicas : int
        That would serve the server's whole demand; 0 when no number does.
    cost_per_h : float
        Of those replicas; NaN when no number does.
    reason : int
        Indices into `REASONS`.
    more_per_h : float
        What the server would pay more, penalty included: negative when less, 0 when about as much, NaN when
        no number of replicas serves it.
    less_per_h : float
        What it would pay less without the penalty of switching; NaN when no number of replicas serves it.
    """

    candidate: IntArray
    replicas: IntArray
    cost_per_h: FloatArray
    reason: IntArray
    more_per_h: FloatArray
    less_per_h: FloatArray


@dataclass(frozen=True)
class NotServed:
    """A server whose demand is not fully served. `unserved_share` in (0, 1]."""

    server: int
    unserved_share: float
    reason: Shortage
    detail: str


@dataclass(frozen=True)
class TypeUse:
    """GPUs of one type. `available` is None when unlimited; values are NaN when not known.

    The ranges are the least and the largest number of GPUs of the type for which the value is what it is;
    None where that is not known.
    """

    gpu_type: int
    used: int
    available: int | None
    binding: bool
    saved_per_h: float
    served_share: float
    saved_range: tuple[int, int] | None = None
    served_range: tuple[int, int] | None = None


def in_words(fleet: Fleet, k: int) -> str:
    """Say why candidate k serves no rate: the target it misses even at the lowest one, and by what value."""
    return _in_words(fleet, np.array([k]))[0]


def _in_words(fleet: Fleet, which: IntArray) -> list[str]:
    """`in_words` of many candidates."""
    candidates, sizing = fleet.candidates, fleet.sizing
    tokens = (candidates.in_tokens + candidates.out_tokens)[which]
    itl, ttft = Limit.ITL.value, Limit.TTFT.value
    words = []
    for fits, limit, law, tokens_, itl_s, itl_target_s, ttft_s, ttft_target_s in zip(
        fleet.fits[which].tolist(),
        sizing.limit[which].tolist(),
        fleet.law[which].tolist(),
        tokens.tolist(),
        sizing.lowest_itl_s[which].tolist(),
        candidates.target_itl_s[which].tolist(),
        sizing.lowest_ttft_s[which].tolist(),
        candidates.target_ttft_s[which].tolist(),
        strict=True,
    ):
        if not fits:
            words.append(f"its memory does not hold the weights and one request of {tokens_:.6g} tokens")
        elif limit == itl:
            words.append(_missed("ITL", itl_s, itl_target_s))
        elif limit == ttft:
            words.append(_missed("wait" if law == 1 else "TTFT", ttft_s, ttft_target_s))
        else:
            words.append("it has no tokens to size by")
    return words


def _missed(name: str, value_s: float, target_s: float) -> str:
    return (
        f"{name} is {in_ms(value_s):.4g} ms even at the lowest rate, the target is {in_ms(target_s):.4g} ms: "
        "no number of replicas helps"
    )


def not_served(fleet: Fleet, problem: AllocationProblem, plan: Plan) -> list[NotServed]:
    """Every server that is not fully served, with what is missing."""
    share = served_share(problem, plan)
    without = fleet.needing & ~fleet.has_option
    short = _Short.of(problem, plan)
    first = np.searchsorted(fleet.server, np.arange(len(fleet.wire) + 1))
    found = []
    for s in np.flatnonzero(without | (share < 1.0)).tolist():
        if without[s]:
            reason, detail = _no_option(fleet, s, np.arange(first[s], first[s + 1]))
            found.append(NotServed(s, 1.0, reason, detail))
        else:
            reason, detail = short.because(s)
            found.append(NotServed(s, 1.0 - float(share[s]), reason, detail))
    return found


def _no_option(fleet: Fleet, s: int, mine: IntArray) -> tuple[Shortage, str]:
    model = fleet.wire[s].model
    if not mine.size:
        return Shortage.NO_PROFILE, f"no accelerator has a profile of {model}"
    able = mine[fleet.fits[mine] & (fleet.capacity_rps[mine] > 0)]
    kept = mine[fleet.allowed[mine]]
    current = fleet.wire[s].current_alloc.accelerator
    if able.size and not kept.size:
        return Shortage.KEEP_ACCELERATOR, f"it keeps {current}, which has no profile of {model}"
    names = [fleet.accelerators[a] for a in fleet.accelerator[kept].tolist()]
    words = "; ".join(f"{name}: {why}" for name, why in zip(names, _in_words(fleet, kept), strict=True))
    if able.size:
        others = ", ".join(sorted({fleet.accelerators[fleet.accelerator[k]] for k in able}))
        return (
            Shortage.KEEP_ACCELERATOR,
            f"it keeps its accelerator ({words}); {others} would meet the targets",
        )
    return Shortage.TARGETS, words


@dataclass(frozen=True)
class _Short:
    """What says why a server with options is short of replicas.

    Attributes
    ----------
    problem : AllocationProblem
    plan : Plan
    first : (S + 1,) int
        The options of server s are those from `first[s]` to `first[s + 1]`.
    left : (T,) int
        GPUs that the plan leaves.
    """

    problem: AllocationProblem
    plan: Plan
    first: IntArray
    left: IntArray

    @staticmethod
    def of(problem: AllocationProblem, plan: Plan) -> _Short:
        first = np.searchsorted(problem.option_server, np.arange(len(problem.servers) + 1))
        return _Short(problem, plan, first, problem.inventory.gpus - problem.cards(plan))

    def because(self, s: int) -> tuple[Shortage, str]:
        """Say what server s lacks."""
        problem, mine = self.problem, slice(*self.first[s : s + 2].tolist())
        needed, most = problem.replicas_needed[mine], problem.most[mine]
        if problem.max_types[s] == 1 and (needed > most).all():
            detail = f"at least {needed.min()} replicas are needed, at most {most.max()} allowed"
            return Shortage.MAX_REPLICAS, detail
        least: dict[int, int] = {}
        own: dict[int, int] = {}
        for t, cards, replicas_needed, replicas in zip(
            problem.gpu_type[mine].tolist(),
            problem.gpus[mine].tolist(),
            needed.tolist(),
            self.plan.replicas[mine].tolist(),
            strict=True,
        ):
            least[t] = min(least.get(t, NO_LIMIT), cards * replicas_needed)
            own[t] = own.get(t, 0) + cards * replicas
        words = [
            f"{least[t]} {problem.gpu_types[t]} ({self.left[t] + own[t]} left by the others)"
            for t in sorted(least)
            if problem.inventory.gpus[t] != NO_LIMIT
        ]
        return Shortage.GPUS, "its whole demand needs " + " or ".join(words)


def not_taken(fleet: Fleet, problem: AllocationProblem, solved: Solved, plan: Plan) -> NotTaken:
    """For each server the candidates that look cheaper than what it got, and the runner-up.

    A candidate looks cheaper when its replicas alone would cost less, or one of its replicas costs less
    than one of those taken (less than the whole allocation for one that misses a target).
    """
    got = _Got.of(problem, plan)
    alone = cost_alone_per_h(problem)
    option_of = np.full(len(fleet.server), -1)
    option_of[fleet.options] = np.arange(len(problem.option_server))

    served = got.replicas > 0
    candidate = np.flatnonzero(served[fleet.server] & ~_is_taken(fleet, plan))
    server, option = fleet.server[candidate], option_of[candidate]
    unit = fleet.cost_per_h[candidate]
    total = np.where(option >= 0, np.append(alone, np.nan)[option], np.nan)
    cheaper = total < got.total[server] - _tolerance(got.total[server])
    looks = np.where(option >= 0, cheaper | (unit < got.unit[server]), unit < got.cost[server])
    runner_up = np.zeros(len(candidate), dtype=bool)
    dearer = np.flatnonzero((option >= 0) & ~cheaper)
    order = dearer[np.lexsort((total[dearer], server[dearer]))]
    runner_up[order[np.r_[True, np.diff(server[order]) != 0][: len(order)]]] = True

    told = looks | runner_up
    return _judged(fleet, problem, solved, got, candidate[told], option[told], total[told])


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


def _is_taken(fleet: Fleet, plan: Plan) -> BoolArray:
    """Candidates on an accelerator that the plan uses for their server, at whatever batch limit."""
    result: BoolArray = np.isin(fleet.pair, fleet.pair[fleet.options[plan.replicas > 0]])
    return result


def _judged(
    fleet: Fleet,
    problem: AllocationProblem,
    solved: Solved,
    got: _Got,
    candidate: IntArray,
    option: IntArray,
    total_per_h: FloatArray,
) -> NotTaken:
    """Say why candidates, which are these options or -1, are not taken: the first reason that holds."""
    server, is_option = fleet.server[candidate], option >= 0
    j = option[is_option]

    def of_options(values: BoolArray | IntArray | FloatArray, otherwise: float) -> FloatArray:
        """Spread values of the options among the candidates."""
        column = np.full(len(candidate), otherwise)
        column[is_option] = values
        return column

    replicas = of_options(problem.replicas_needed[j], 0).astype(np.int64)
    too_many = of_options(problem.replicas_needed[j] > problem.most[j], 0) > 0
    cost_per_h = of_options(problem.replicas_needed[j] * problem.cost_per_h[j], np.nan)
    limited = of_options(problem.inventory.gpus[problem.gpu_type[j]] != NO_LIMIT, 0) > 0
    dominated = of_options(solved.dominated[j], 0) > 0
    more = total_per_h - got.total[server]
    more[np.abs(more) <= _tolerance(got.total[server])] = 0.0
    less = got.cost[server] - cost_per_h
    holds = {
        Reason.MEMORY: ~fleet.fits[candidate],
        Reason.KEEP_ACCELERATOR: ~is_option & (fleet.capacity_rps[candidate] > 0),
        Reason.TARGET_MISSED: ~is_option,
        Reason.MAX_REPLICAS: too_many,
        Reason.INVENTORY: (more < 0) & limited,
        Reason.DOMINATED: dominated,
        Reason.SWITCHING_PENALTY: less > _tolerance(got.cost[server]),
    }
    reason = np.select(list(holds.values()), [REASONS.index(r) for r in holds], REASONS.index(Reason.DEARER))
    return NotTaken(candidate, replicas, cost_per_h, reason, more, less)


def _tolerance(cost_per_h: FloatArray) -> FloatArray:
    return _SAME_COST * np.maximum(1.0, cost_per_h)


def _coded(reasons: NotTaken, reason: Reason) -> BoolArray:
    result: BoolArray = reasons.reason == REASONS.index(reason)
    return result


def details(fleet: Fleet, problem: AllocationProblem, reasons: NotTaken) -> list[str]:
    """Say each reason in words, with figures."""
    k = reasons.candidate
    server = fleet.server[k]
    misses = iter(_in_words(fleet, k[_coded(reasons, Reason.MEMORY) | _coded(reasons, Reason.TARGET_MISSED)]))
    words = []
    most_of = np.full(len(fleet.server), NO_LIMIT)
    most_of[fleet.options] = problem.most
    for reason, s, t, cards, replicas, most, more, less, rate_rps in zip(
        [REASONS[code] for code in reasons.reason.tolist()],
        server.tolist(),
        fleet.gpu_type[k].tolist(),
        (reasons.replicas * fleet.gpus[k]).tolist(),
        reasons.replicas.tolist(),
        most_of[k].tolist(),
        reasons.more_per_h.tolist(),
        reasons.less_per_h.tolist(),
        fleet.capacity_rps[k].tolist(),
        strict=True,
    ):
        if reason is Reason.DEARER:
            dearer = f"dearer by {more:.6g} cents/h" if more > 0 else "no cheaper"
            words.append(f"{dearer}: {replicas} replicas at {in_rpm(rate_rps):.4g} requests/min each")
        elif reason is Reason.TARGET_MISSED or reason is Reason.MEMORY:
            words.append(next(misses))
        elif reason is Reason.INVENTORY:
            needs = f"{cards} {fleet.gpu_types[t]}"
            words.append(
                f"alone it would save {-more:.6g} cents/h; its {needs} serve others better, or are not there"
            )
        elif reason is Reason.DOMINATED:
            words.append(f"another option on {fleet.gpu_types[t]} has no less capacity at no more cost")
        elif reason is Reason.SWITCHING_PENALTY:
            words.append(f"cheaper by {less:.6g} cents/h, less than the penalty of switching")
        elif reason is Reason.MAX_REPLICAS:
            words.append(f"{replicas} replicas, at most {most} allowed")
        else:
            words.append(f"the server keeps {fleet.wire[s].current_alloc.accelerator}")
    return words


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
    reasons: NotTaken,
    short: list[NotServed],
) -> list[TypeUse]:
    """GPUs used of each type, whether the row binds, and what one more is worth.

    A row binds when its dual is positive, when a cheaper option was not taken for lack of its GPUs, or when
    a server that is short of GPUs could use them.
    """
    held = held_gpus(fleet)
    cards = problem.cards(plan)
    wanted = np.zeros(len(fleet.gpu_types), dtype=bool)
    wanted[fleet.gpu_type[reasons.candidate[_coded(reasons, Reason.INVENTORY)]]] = True
    hungry = np.zeros(len(fleet.wire), dtype=bool)
    hungry[[n.server for n in short if n.reason is Shortage.GPUS]] = True
    wanted[problem.gpu_type[hungry[problem.option_server]]] = True
    found = []
    for t in range(len(fleet.gpu_types)):
        limit = problem.inventory.gpus[t]
        limited = limit != NO_LIMIT
        saved, served = solved.value_of_gpu.cost_per_h[t], solved.value_of_gpu.unserved[t]
        binding = limited and (wanted[t] or saved > 0 or served > 0)
        available = int(limit + held[t]) if limited else None
        found.append(
            TypeUse(
                t,
                int(cards[t] + held[t]),
                available,
                bool(binding),
                float(saved),
                float(served),
                _whole_gpus(solved.value_of_gpu.cost_range[t], int(held[t])),
                _whole_gpus(solved.value_of_gpu.unserved_range[t], int(held[t])),
            )
        )
    return found


def _whole_gpus(ends: FloatArray, held: int) -> tuple[int, int] | None:
    """Return the whole numbers of GPUs between these ends, those that are held added; None for NaN."""
    if np.isnan(ends).any():
        return None
    least, most = np.ceil(ends[0] - _SAME_NUMBER), np.floor(ends[1] + _SAME_NUMBER)
    return int(least) + held, int(most) + held
