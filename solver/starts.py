"""Plans to start from: what runs now, and the previous answer.

A start is a candidate and nothing more: it is fitted to today's demand, what breaks a rule is taken out, and
the solver keeps it only until it has something better.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from solver.backends.greedy import greedy
from solver.check import score, served_share, violations
from solver.limits import holds
from solver.problem import DEMAND_TOLERANCE, NO_LIMIT, Inventory, Plan
from solver.reduce import keep

if TYPE_CHECKING:
    from collections.abc import Iterable

    from solver.check import Score
    from solver.milp import BoolArray, FloatArray, IntArray
    from solver.problem import AllocationProblem

# Systems whose last answer is remembered; one of 10,000 servers takes about 1 MB.
MOST_SYSTEMS = 8

# Larger than any batch limit.
_BATCHES = 1 << 20

# Values of a level that differ by less, relatively, are equal: the feasibility tolerance of the solvers.
_SAME_VALUE = 1e-6


@dataclass(frozen=True)
class Running:
    """Replicas that run, one row for each server, accelerator and batch limit, every array of shape (n,).

    Attributes
    ----------
    server, accelerator : int
        Indices into the names of a problem.
    batch, replicas : int
    """

    server: IntArray
    accelerator: IntArray
    batch: IntArray
    replicas: IntArray

    @classmethod
    def of(cls, problem: AllocationProblem, plan: Plan) -> Running:
        """Return what a plan runs."""
        used = np.flatnonzero(plan.replicas > 0)
        return cls(
            problem.option_server[used],
            problem.option_accelerator[used],
            problem.option_batch[used],
            plan.replicas[used],
        )


@dataclass(frozen=True)
class _Answer:
    request: bytes
    proven: bool
    running: Running


class Answers:
    """Remembers the last answer for each of a few systems, by the names of their servers and accelerators.

    When there are more than `most` systems the one not asked about for longest is forgotten.

    Parameters
    ----------
    most : int
        >= 1.
    """

    def __init__(self, most: int = MOST_SYSTEMS) -> None:
        self._most = most
        self._answers: OrderedDict[bytes, _Answer] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of systems whose answer is remembered."""
        return len(self._answers)

    def recall(self, problem: AllocationProblem, request: bytes) -> Running | None:
        """Return what the last answer for the same names runs; None where there is none.

        Also None for the request that was answered last, word for word, where that answer was proven: it is
        solved the same way again, so that it has the same answer.
        """
        key = _names(problem)
        found = self._answers.get(key)
        if found is None or (found.proven and found.request == request):
            return None
        self._answers.move_to_end(key)
        return found.running

    def remember(self, problem: AllocationProblem, plan: Plan, request: bytes, *, proven: bool) -> None:
        """Keep an answer in place of the last one for the same names."""
        key = _names(problem)
        self._answers[key] = _Answer(request, proven, Running.of(problem, plan))
        self._answers.move_to_end(key)
        while len(self._answers) > self._most:
            self._answers.popitem(last=False)


def _names(problem: AllocationProblem) -> bytes:
    """Digest of the names that the indices of `Running` refer to."""
    names = (len(problem.servers), problem.servers, problem.accelerators)
    return blake2b(repr(names).encode(), digest_size=16).digest()


def best_start(problem: AllocationProblem, running: Iterable[Running]) -> Plan | None:
    """Return the best plan that any of these leads to; None where none of them runs anything."""
    best: Plan | None = None
    for rows in running:
        plan = fitted(problem, rows)
        if plan is not None and (best is None or is_better(problem, plan, best)):
            best = plan
    return best


def is_better(problem: AllocationProblem, plan: Plan, other: Plan) -> bool:
    """Whether `plan` is better at the first level of the objective at which the two differ."""
    return precedes(score(problem, plan), score(problem, other))


def precedes(score: Score, other: Score) -> bool:
    """Whether a plan of this score is better than one of the other."""
    for mine, theirs in zip(score.levels, other.levels, strict=True):
        if abs(mine - theirs) > _SAME_VALUE * max(1.0, abs(theirs)):
            return mine < theirs
    return False


def fitted(problem: AllocationProblem, running: Running) -> Plan | None:
    """Make a plan for today's demand of what runs.

    Each row becomes the option of the nearest batch limit. A server keeps its accelerators and gets the
    replicas that its demand takes; where the GPUs do not hold all, the least important servers are taken out,
    and served by what is left as the baseline would.

    Parameters
    ----------
    problem : AllocationProblem
    running : Running
        Indices into the names of `problem`.

    Returns
    -------
    Plan or None
        Breaks no rule. None where nothing of what runs is an option, or where the rest breaks a rule.
    """
    option, replicas = _as_options(problem, running)
    if not option.size:
        return None
    option, replicas = _for_demand(problem, option, replicas)
    least = _least(problem, option)
    plan = least.replicas.copy()
    plan[option] = np.maximum(plan[option], np.minimum(replicas, problem.most[option]))
    total = problem.per_server(plan)
    out = total > problem.max_replicas
    if not problem.policy.partial:
        out |= served_share(problem, Plan(plan)) < 1.0
    _take_out(problem, plan, least, out)
    for t in range(len(problem.gpu_types)):
        _make_fit(problem, plan, least, t)
    result = filled(problem, Plan(plan))
    return None if violations(problem, result) else result


def filled(problem: AllocationProblem, plan: Plan) -> Plan:
    """Give servers that a plan leaves with nothing what is left of the GPUs, as the baseline would.

    Worsens no level of service. Types known node by node are left as they are.
    """
    stock = problem.inventory.gpus
    nothing = (problem.per_server(plan.replicas) == 0) & ~problem.needs_nothing
    idle = np.flatnonzero(nothing[problem.option_server])
    if not idle.size:
        return plan
    left = np.where(stock == NO_LIMIT, NO_LIMIT, stock - problem.cards(plan))
    left[[nodes is not None for nodes in problem.inventory.nodes]] = 0
    rest = replace(keep(problem, idle), inventory=Inventory(left, (None,) * len(left)))
    replicas = plan.replicas.copy()
    replicas[idle] += greedy(rest).replicas
    return Plan(replicas)


def _as_options(problem: AllocationProblem, running: Running) -> tuple[IntArray, IntArray]:
    """Options and replicas: of each (server, accelerator) the nearest batch limit, the smaller of two."""
    width = max(len(problem.accelerators), 1)
    there = running.replicas > 0
    # A server that runs two batch limits on one accelerator goes on with the first.
    pair, first, which = np.unique(
        (running.server * width + running.accelerator)[there], return_index=True, return_inverse=True
    )
    batch = running.batch[there][first]
    replicas = np.bincount(which, running.replicas[there], minlength=len(pair)).astype(np.int64)
    of_option = problem.option_server * width + problem.option_accelerator
    spot = np.searchsorted(of_option * _BATCHES + problem.option_batch, pair * _BATCHES + batch)
    beyond = len(of_option)
    distance = np.full((2, len(pair)), _BATCHES)
    for side, j in enumerate((spot - 1, spot)):
        inside = (j >= 0) & (j < beyond)
        inside[inside] = of_option[j[inside]] == pair[inside]
        distance[side, inside] = np.abs(problem.option_batch[j[inside]] - batch[inside])
    option = np.where(distance[0] <= distance[1], spot - 1, spot)
    found = distance.min(axis=0, initial=_BATCHES) < _BATCHES
    return option[found], replicas[found]


def _for_demand(
    problem: AllocationProblem, option: IntArray, replicas: IntArray
) -> tuple[IntArray, IntArray]:
    """Keep the accelerators that a server may use, and fit the replicas to its demand.

    Of a mix one option changes: the one whose replicas, more or fewer, cost least.
    """
    server = problem.option_server[option]
    loaded = problem.arrival_rps[server] > 0
    each_rps = np.where(loaded, problem.capacity_rps[option], 0.0)
    order = np.lexsort((option, -each_rps * replicas, server))
    rank = np.arange(len(server)) - np.searchsorted(server, server)
    order = order[rank < problem.max_types[server]]
    option, replicas, server, each_rps = option[order], replicas[order], server[order], each_rps[order]

    def of_others(values: FloatArray) -> FloatArray:
        sums = np.bincount(server, values, minlength=len(problem.servers))
        result: FloatArray = sums[server] - values
        return result

    rest_rps = np.maximum(problem.arrival_rps[server] - of_others(each_rps * replicas), 0.0)
    share = np.divide(rest_rps, each_rps, out=np.zeros(len(server)), where=each_rps > 0)
    for_load = np.ceil(share * (1.0 - DEMAND_TOLERANCE))
    missing = problem.min_replicas[server] - of_others(replicas.astype(np.float64))
    wanted = np.maximum(np.maximum(for_load, missing), 0.0).astype(np.int64)
    order = np.lexsort((option, (wanted - replicas) * problem.cost_per_h[option], server))
    changed = order[np.r_[True, np.diff(server[order]) != 0]]
    replicas[changed] = wanted[changed]
    return option, replicas


def _least(problem: AllocationProblem, option: IntArray) -> Plan:
    """Replicas that run in every plan, on these options where they are of the accelerator."""
    replicas = np.zeros(len(problem.option_server), dtype=np.int64)
    used = np.zeros(len(replicas), dtype=bool)
    used[option] = True
    for limit in problem.limits:
        if limit.least:
            mine = np.flatnonzero(
                (problem.option_server == limit.server) & (problem.option_accelerator == limit.accelerator)
            )
            replicas[mine[np.argmax(used[mine])]] = limit.least
    return Plan(replicas)


def _take_out(problem: AllocationProblem, plan: IntArray, least: Plan, servers: BoolArray) -> None:
    """Leave these servers with the least that runs in every plan."""
    mine = servers[problem.option_server]
    plan[mine] = least.replicas[mine]


def _make_fit(problem: AllocationProblem, plan: IntArray, least: Plan, gpu_type: int) -> None:
    """Take out servers until the GPUs of a type hold the rest.

    The least important go first, of equal ones those whose share of the objective takes most cards.
    """
    mine = np.flatnonzero((problem.gpu_type == gpu_type) & (plan > least.replicas))
    cards = np.bincount(problem.option_server[mine], (problem.gpus * plan)[mine], len(problem.servers))
    servers = np.flatnonzero(cards)
    order = servers[
        np.lexsort((servers, -cards[servers] / problem.weight[servers], -problem.priority[servers]))
    ]

    def without(count: int) -> IntArray:
        out = np.zeros(len(problem.servers), dtype=bool)
        out[order[:count]] = True
        rest = plan.copy()
        _take_out(problem, rest, least, out)
        return rest

    def fits(count: int) -> bool:
        rest = without(count)
        there = np.flatnonzero((problem.gpu_type == gpu_type) & (rest > 0))
        sizes, which = np.unique(problem.gpus[there], return_inverse=True)
        replicas = np.bincount(which, rest[there], len(sizes)).astype(np.int64)
        return holds(problem, gpu_type, Counter(dict(zip(sizes.tolist(), replicas.tolist(), strict=True))))

    few, enough = 0, len(order)
    while few < enough:
        middle = (few + enough) // 2
        few, enough = (few, middle) if fits(middle) else (middle + 1, enough)
    plan[:] = without(few)
