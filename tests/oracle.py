"""A brute-force oracle for tiny problems, and random problems for it.

The oracle knows the rules in its own words (no Milp, no `check.py`): every combination of replicas of
every server is enumerated and compared level by level.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from solver.limits import granted
from solver.packing import fits
from solver.problem import (
    NO_LIMIT,
    AllocationProblem,
    Inventory,
    Plan,
    Policy,
    ReplicaLimit,
    SaturationPolicy,
)


@dataclass(frozen=True)
class Best:
    """The lexicographic optimum: the value of each level, and a plan that has it."""

    values: tuple[float, ...]
    plan: Plan


@dataclass(frozen=True)
class _Choice:
    replicas: tuple[int, ...]
    cards: tuple[int, ...]
    sizes: tuple[tuple[int, int, int], ...]  # (type, size, count)
    unserved: float
    cost: float


def best(problem: AllocationProblem) -> Best:
    """Enumerate every plan."""
    choices = [_choices(problem, s) for s in range(len(problem.servers))]
    stock = [None if g == NO_LIMIT else int(g) for g in problem.inventory.gpus]
    winner: tuple[tuple[float, ...], tuple[_Choice, ...]] | None = None
    for combination in itertools.product(*choices):
        cards = [sum(c.cards[t] for c in combination) for t in range(len(stock))]
        if any(limit is not None and used > limit for used, limit in zip(cards, stock, strict=True)):
            continue
        values = _values(problem, [c.unserved for c in combination], sum(c.cost for c in combination))
        rounded = tuple(round(v, 7) for v in values)
        if (winner is None or rounded < winner[0]) and _on_nodes(problem, combination):
            winner = (rounded, combination)
    assert winner is not None, "the empty plan is always there"
    replicas = np.zeros(len(problem.option_server), dtype=np.int64)
    for s, choice in enumerate(winner[1]):
        replicas[problem.option_server == s] = choice.replicas
    return Best(winner[0], Plan(replicas))


def _choices(problem: AllocationProblem, s: int) -> list[_Choice]:
    options = np.flatnonzero(problem.option_server == s).tolist()
    demand, minimum, maximum = problem.arrival_rps[s], problem.min_replicas[s], problem.max_replicas[s]
    current = {
        int(a): float(c)
        for z, a, c in zip(
            problem.current_server, problem.current_accelerator, problem.current_cost_per_h, strict=True
        )
        if z == s
    }
    factor = problem.policy.switching_factor
    ranges = []
    for j in options:
        most = max(int(np.ceil(demand / problem.capacity_rps[j])) if demand > 0 else 0, int(minimum))
        own = [x for x in problem.limits if (x.server, x.accelerator) == (s, problem.option_accelerator[j])]
        least = own[0].least if own else 0
        ranges.append(range(least, max(least, min(most, int(maximum), own[0].most if own else most)) + 1))
    result = []
    for replicas in itertools.product(*ranges):
        used = [(j, n) for j, n in zip(options, replicas, strict=True) if n]
        accelerators = {int(problem.option_accelerator[j]) for j, _ in used}
        if problem.policy.max_types is not None and len(accelerators) > problem.policy.max_types:
            continue
        if len(accelerators) > dict(problem.own_max_types).get(s, len(accelerators)):
            continue
        if len(used) > len(accelerators) or sum(replicas) > maximum:
            continue
        share = 1.0
        if demand > 0:
            share = min(share, sum(problem.capacity_rps[j] * n for j, n in used) / demand)
        if minimum > 0:
            share = min(share, sum(replicas) / minimum)
        if share > 1 - 1e-9:
            share = 1.0
        anyway = sum(limit.least for limit in problem.limits if limit.server == s)
        if problem.policy.saturation is SaturationPolicy.NONE and sum(replicas) > anyway and share < 1:
            continue
        cost = sum(problem.cost_per_h[j] * n for j, n in used)
        cost += factor * sum(c for a, c in current.items() if a not in accelerators)
        if current:
            cost += factor * sum(
                problem.cost_per_h[j] * n
                for j, n in used
                if int(problem.option_accelerator[j]) not in current
            )
        cards = [0] * len(problem.gpu_types)
        for j, n in used:
            cards[problem.gpu_type[j]] += int(problem.gpus[j]) * n
        sizes = tuple((int(problem.gpu_type[j]), int(problem.gpus[j]), n) for j, n in used)
        result.append(_Choice(replicas, tuple(cards), sizes, 1.0 - share, cost))
    return result


def _on_nodes(problem: AllocationProblem, combination: tuple[_Choice, ...]) -> bool:
    for t, nodes in enumerate(problem.inventory.nodes):
        if nodes is None:
            continue
        demand: Counter[int] = Counter()
        for choice in combination:
            for gpu_type, size, count in choice.sizes:
                if gpu_type == t:
                    demand[size] += count
        if not fits(demand, nodes):
            return False
    return True


def _values(problem: AllocationProblem, unserved: list[float], cost: float) -> tuple[float, ...]:
    can = [s for s in range(len(problem.servers)) if (problem.option_server == s).any()]
    classes = [[s for s in can if problem.priority[s] == p] for p in sorted(set(problem.priority.tolist()))]
    classes = [group for group in classes if group]

    def total(group: list[int]) -> float:
        return sum(problem.weight[s] * unserved[s] for s in group)

    def worst(group: list[int]) -> float:
        return max(unserved[s] for s in group)

    def unmet(group: list[int]) -> float:
        return sum(problem.weight[s] for s in group if unserved[s] > 0)

    saturation = problem.policy.saturation
    values: list[float] = []
    if saturation is not SaturationPolicy.NONE and problem.policy.delayed_best_effort:
        values += [unmet(group) for group in classes]
    if saturation is SaturationPolicy.ROUND_ROBIN:
        values += [worst(can), total(can)] if can else []
    else:
        for group in classes:
            if saturation is SaturationPolicy.PRIORITY_ROUND_ROBIN:
                values.append(worst(group))
            values.append(total(group))
    return (*values, cost)


def random_problem(seed: int) -> AllocationProblem:
    """A tiny problem of any kind: both modes, scarce or plenty, priorities, nodes, penalties."""
    rng = np.random.default_rng(seed)
    max_types = (1, 1, 2, None)[int(rng.integers(0, 4))]
    servers, accelerators = (3 if max_types == 1 else 2), 3
    types = int(rng.integers(1, 3))
    chain = rng.random() < 0.7
    sizes = np.array([1, 2, 4] if chain else [1, 2, 3])
    gpu_type = rng.integers(0, types, accelerators)
    gpus = rng.choice(sizes, accelerators)
    price = np.round(rng.uniform(1, 20, accelerators), 2)
    arrival = np.round(rng.uniform(1, 8, servers), 3)
    arrival[rng.random(servers) < 0.15] = 0.0
    minimum = rng.choice([0, 0, 0, 1, 2], servers)
    minimum[(arrival == 0) & (minimum == 0)] = rng.integers(0, 2)
    maximum = np.where(rng.random(servers) < 0.2, np.maximum(minimum, rng.integers(1, 4, servers)), NO_LIMIT)
    rows = [
        (s, a)
        for s in range(servers)
        for a in range(accelerators)
        if rng.random() < 0.8 and (arrival[s] > 0 or minimum[s] > 0)
    ]
    option_server = np.array([s for s, _ in rows], dtype=np.int64)
    option_accelerator = np.array([a for _, a in rows], dtype=np.int64)
    capacity = np.round(rng.uniform(1.2, 8, len(rows)), 3)
    capacity[arrival[option_server] == 0] = np.inf
    stock = np.full(types, NO_LIMIT)
    nodes: list[tuple[int, ...] | None] = [None] * types
    if rng.random() < 0.85:
        stock = rng.integers(0, 12, types)
        for t in range(types):
            if rng.random() < 0.4:
                free = tuple(int(x) for x in rng.integers(0, 5, rng.integers(1, 4)))
                nodes[t], stock[t] = free, sum(free)
    running = rng.random((servers, accelerators)) < 0.2
    current_server, current_accelerator = (index.astype(np.int64) for index in np.nonzero(running))
    return AllocationProblem(
        servers=tuple(f"s{i}" for i in range(servers)),
        accelerators=tuple(f"a{i}" for i in range(accelerators)),
        gpu_types=tuple(f"t{i}" for i in range(types)),
        arrival_rps=arrival,
        min_replicas=minimum.astype(np.int64),
        max_replicas=maximum.astype(np.int64),
        priority=rng.integers(1, 3, servers),
        weight=rng.choice([1.0, 1.0, 2.5], servers),
        option_server=option_server,
        option_accelerator=option_accelerator,
        option_batch=rng.integers(1, 65, len(rows)),
        capacity_rps=capacity,
        gpu_type=gpu_type[option_accelerator],
        gpus=gpus[option_accelerator],
        cost_per_h=(price * gpus)[option_accelerator],
        current_server=current_server,
        current_accelerator=current_accelerator,
        current_cost_per_h=np.round(rng.uniform(0, 30, len(current_server)), 2),
        inventory=Inventory(stock.astype(np.int64), tuple(nodes)),
        policy=Policy(
            max_types=max_types,
            saturation=list(SaturationPolicy)[int(rng.integers(0, 4))],
            delayed_best_effort=bool(rng.random() < 0.4),
            switching_factor=float(rng.choice([0.0, 0.1])),
        ),
    )


def limited(problem: AllocationProblem, seed: int) -> AllocationProblem:
    """`problem` with random limits of replicas on accelerators, and of the accelerators of a server."""
    rng = np.random.default_rng(seed)
    most_types = problem.policy.max_types or len(problem.accelerators)
    wanted: list[ReplicaLimit] = []
    for s, a in zip(problem.option_server.tolist(), problem.option_accelerator.tolist(), strict=True):
        mine = [limit for limit in wanted if limit.server == s]
        room = int(problem.max_replicas[s]) - sum(limit.least for limit in mine)
        may_keep = sum(limit.least > 0 for limit in mine) < most_types
        least = min(int(rng.choice([0, 0, 1, 2])), room) if may_keep else 0
        most = least + int(rng.integers(0, 3)) if rng.random() < 0.4 else NO_LIMIT
        if least or most != NO_LIMIT:
            wanted.append(ReplicaLimit(s, a, least, most))
    keeps = np.bincount([limit.server for limit in wanted if limit.least], minlength=len(problem.servers))
    own = tuple((s, max(int(keeps[s]), 1)) for s in range(len(problem.servers)) if rng.random() < 0.4)
    return replace(problem, limits=granted(problem, wanted), own_max_types=own)


def two_by_two(policy: Policy) -> AllocationProblem:
    """Servers a (10 req/s) and b (6 req/s, on X now); X is 1 card at 3 per h, Y 2 cards at 5 per h."""
    return AllocationProblem(
        servers=("a", "b"),
        accelerators=("X", "Y"),
        gpu_types=("tx", "ty"),
        arrival_rps=np.array([10.0, 6.0]),
        min_replicas=np.array([0, 2]),
        max_replicas=np.array([NO_LIMIT, 5]),
        priority=np.array([1, 2]),
        weight=np.array([1.0, 2.0]),
        option_server=np.array([0, 0, 1, 1]),
        option_accelerator=np.array([0, 1, 0, 1]),
        option_batch=np.array([8, 8, 8, 8]),
        capacity_rps=np.array([2.5, 4.0, 2.0, 8.0]),
        gpu_type=np.array([0, 1, 0, 1]),
        gpus=np.array([1, 2, 1, 2]),
        cost_per_h=np.array([3.0, 5.0, 3.0, 5.0]),
        current_server=np.array([1]),
        current_accelerator=np.array([0]),
        current_cost_per_h=np.array([9.0]),
        inventory=Inventory(np.array([6, 6]), (None, None)),
        policy=policy,
    )
