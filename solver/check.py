"""The rules and the worth of a plan, with no solver in sight.

This is the specification that `formulate` must express and that every answer passes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from solver.packing import fits
from solver.problem import NO_LIMIT, LevelKind

if TYPE_CHECKING:
    from solver.milp import FloatArray
    from solver.problem import AllocationProblem, Plan

# A share this close to 1 is full service. Solvers meet a row to 1e-6; the demand rows are scaled to 1.
SHARE_TOLERANCE = 2e-6


@dataclass(frozen=True)
class Score:
    """What a plan is worth.

    Attributes
    ----------
    levels : tuple of float
        Value of each of `problem.levels`, most important first; smaller is better, compared in order.
    cost_per_h, penalty_per_h : float
        The two parts of the last level.
    served_share : (S,) float
        In [0, 1]; 1 also for servers that need nothing.
    """

    levels: tuple[float, ...]
    cost_per_h: float
    penalty_per_h: float
    served_share: FloatArray


def served_share(problem: AllocationProblem, plan: Plan) -> FloatArray:
    """Share of each server's demand that the plan serves, shape (S,), in [0, 1].

    The smaller of served load over arrival rate and replicas over the minimum of replicas.
    """
    served_rps = problem.per_server(_capacity_rps(problem) * plan.replicas)
    total = problem.per_server(plan.replicas)
    share: FloatArray = np.ones(len(problem.servers))
    loaded = problem.arrival_rps > 0
    share[loaded] = served_rps[loaded] / problem.arrival_rps[loaded]
    floor = problem.min_replicas > 0
    share[floor] = np.minimum(share[floor], total[floor] / problem.min_replicas[floor])
    return np.where(share >= 1.0 - SHARE_TOLERANCE, 1.0, share)


def carried_rps(problem: AllocationProblem, plan: Plan) -> FloatArray:
    """Load that each option's replicas carry together, shape (J,): all of a server's replicas equally used.

    Under scarcity every replica carries its full capacity.
    """
    capacity_rps = _capacity_rps(problem) * plan.replicas
    total = problem.per_server(capacity_rps)
    share: FloatArray = np.ones(len(problem.servers))
    np.divide(problem.arrival_rps, total, out=share, where=total > 0)
    result: FloatArray = capacity_rps * np.minimum(share, 1.0)[problem.option_server]
    return result


def _capacity_rps(problem: AllocationProblem) -> FloatArray:
    """Capacity of each option, 0 where there is no load to carry, shape (J,)."""
    return np.where(np.isfinite(problem.capacity_rps), problem.capacity_rps, 0.0).astype(np.float64)


def switching_penalty_per_h(problem: AllocationProblem, plan: Plan) -> FloatArray:
    """Return each server's switching penalty, shape (S,).

    ``switching_factor`` times the cost of the accelerators left plus the cost of those newly taken up; a
    server that runs on nothing now pays nothing.
    """
    count, width = len(problem.servers), max(len(problem.accelerators), 1)
    used = plan.replicas > 0
    taken = np.zeros(count * width, dtype=bool)
    taken[problem.option_server[used] * width + problem.option_accelerator[used]] = True
    left = ~taken[problem.current_server * width + problem.current_accelerator]
    cost = problem.cost_per_h * plan.replicas
    left_cost = np.bincount(problem.current_server[left], problem.current_cost_per_h[left], minlength=count)
    penalty: FloatArray = problem.policy.switching_factor * (
        left_cost + problem.per_server(cost * problem.option_is_new)
    )
    return penalty


def cost_alone_per_h(problem: AllocationProblem) -> FloatArray:
    """Cost of each option serving its server alone, with the switching penalty, shape (J,)."""
    width = max(len(problem.accelerators), 1)
    cost = problem.cost_per_h * problem.replicas_needed
    current = problem.current_server * width + problem.current_accelerator
    option = problem.option_server * width + problem.option_accelerator
    order = np.argsort(current)
    spot = np.minimum(np.searchsorted(current[order], option), max(len(current) - 1, 0))
    kept = np.zeros(len(cost))
    if len(current):
        found = current[order][spot] == option
        kept[found] = problem.current_cost_per_h[order][spot[found]]
    all_left = np.bincount(problem.current_server, problem.current_cost_per_h, minlength=len(problem.servers))
    penalty = all_left[problem.option_server] - kept + np.where(problem.option_is_new, cost, 0.0)
    result: FloatArray = cost + problem.policy.switching_factor * penalty
    return result


def score(problem: AllocationProblem, plan: Plan) -> Score:
    """Value of every level of the objective for `plan`."""
    share = served_share(problem, plan)
    unserved = 1.0 - share
    cost = float(problem.cost_per_h @ plan.replicas)
    penalty = float(switching_penalty_per_h(problem, plan).sum())
    values: list[float] = []
    for level in problem.levels:
        mask = level.servers
        if level.kind is LevelKind.COST:
            values.append(cost + penalty)
        elif level.kind is LevelKind.WORST_SHARE:
            values.append(float(unserved[mask].max()))
        elif level.kind is LevelKind.UNMET:
            values.append(float(problem.weight[mask & (unserved > 0)].sum()))
        else:
            values.append(float((problem.weight * unserved)[mask].sum()))
    return Score(tuple(values), cost, penalty, share)


def violations(problem: AllocationProblem, plan: Plan) -> list[str]:
    """Every rule the plan breaks, as a sentence that names the place; empty for a valid plan."""
    replicas = plan.replicas
    if replicas.shape != problem.option_server.shape:
        return [f"the plan has {replicas.shape} replicas for {problem.option_server.shape} options"]
    if not np.issubdtype(replicas.dtype, np.integer):
        return [f"replicas must be integers, not {replicas.dtype}"]
    found = [f"{_option(problem, j)}: {replicas[j]} replicas" for j in np.flatnonzero(replicas < 0).tolist()]
    found += _server_violations(problem, plan)
    found += _inventory_violations(problem, plan)
    return found


def _option(problem: AllocationProblem, j: int) -> str:
    server = problem.servers[problem.option_server[j]]
    accelerator = problem.accelerators[problem.option_accelerator[j]]
    return f"{server} on {accelerator} at batch {problem.option_batch[j]}"


def _server_violations(problem: AllocationProblem, plan: Plan) -> list[str]:
    used = plan.replicas > 0
    count = len(problem.servers)
    found: list[str] = []
    pairs = {
        (int(s), int(a))
        for s, a in zip(problem.option_server[used], problem.option_accelerator[used], strict=True)
    }
    types = Counter(s for s, _ in pairs)
    batches = np.bincount(problem.option_server[used], minlength=count)
    total = problem.per_server(plan.replicas)
    share = served_share(problem, plan)
    anyway = np.zeros(count, dtype=np.int64)
    for limit in problem.limits:
        here = (problem.option_server == limit.server) & (problem.option_accelerator == limit.accelerator)
        replicas = int(plan.replicas[here].sum())
        anyway[limit.server] += limit.least
        where = f"{problem.servers[limit.server]} on {problem.accelerators[limit.accelerator]}"
        if replicas > limit.most:
            found.append(f"{where}: {replicas} replicas, at most {limit.most} allowed")
        if replicas < limit.least:
            found.append(f"{where}: {replicas} replicas, at least {limit.least} wanted")
    for s, name in enumerate(problem.servers):
        if types[s] > problem.max_types[s]:
            found.append(f"{name}: {types[s]} accelerators, at most {problem.max_types[s]} allowed")
        if batches[s] > types[s]:
            found.append(f"{name}: two batch limits on one accelerator")
        if problem.max_replicas[s] != NO_LIMIT and total[s] > problem.max_replicas[s]:
            found.append(f"{name}: {int(total[s])} replicas, at most {problem.max_replicas[s]} allowed")
        if not problem.policy.partial and total[s] > anyway[s] and share[s] < 1:
            found.append(f"{name}: {share[s]:.6f} of its demand served, all or nothing allowed")
    return found


def _inventory_violations(problem: AllocationProblem, plan: Plan) -> list[str]:
    found: list[str] = []
    cards = problem.cards(plan)
    for t, name in enumerate(problem.gpu_types):
        limit = problem.inventory.gpus[t]
        if limit != NO_LIMIT and cards[t] > limit:
            found.append(f"{name}: {int(cards[t])} GPUs used, {limit} exist")
        nodes = problem.inventory.nodes[t]
        if nodes is None:
            continue
        demand: Counter[int] = Counter()
        for j in np.flatnonzero((problem.gpu_type == t) & (plan.replicas > 0)):
            demand[int(problem.gpus[j])] += int(plan.replicas[j])
        if not fits(demand, nodes):
            found.append(f"{name}: replicas of {dict(demand)} GPUs do not fit on the nodes' free GPUs")
    return found
