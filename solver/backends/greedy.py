"""The greedy baseline: fast, feasible, without a bound; what an exact answer has to beat.

The algorithm is that of the llm-inferno optimizer (Apache-2.0):
https://github.com/llm-inferno/optimizer/blob/main/pkg/solver/greedy.go
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from solver.check import cost_alone_per_h
from solver.packing import is_chain
from solver.problem import DEMAND_TOLERANCE, Plan, SaturationPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from solver.milp import IntArray
    from solver.problem import AllocationProblem


class _Candidate(NamedTuple):
    """One way to serve a server: replicas beside those that run anyway, and what it costs with the switch.

    `replicas` serve the rest of the demand, `most` are allowed.
    """

    option: int
    value: float
    replicas: int
    most: int
    gpu_type: int
    gpus: int


@dataclass(frozen=True)
class _Server:
    """A server and its candidates, cheapest first."""

    index: int
    priority: int
    candidates: tuple[_Candidate, ...]

    def turn(self, at: int) -> tuple[int, float, float, int, int]:
        """Sort key of the server when candidate `at` is its next: priority, regret, value, name."""
        value = self.candidates[at].value
        last = at + 1 == len(self.candidates)
        regret = np.inf if last else self.candidates[at + 1].value - value
        return self.priority, -regret, -value, self.index, at


class _Stock:
    """The GPUs that are left."""

    def __init__(self, problem: AllocationProblem) -> None:
        self._free = [int(cards) for cards in problem.inventory.gpus]
        self._on_nodes = [
            None if nodes is None else _Nodes(nodes, np.unique(problem.gpus[problem.gpu_type == t]).tolist())
            for t, nodes in enumerate(problem.inventory.nodes)
        ]

    def room(self, candidate: _Candidate, wanted: int) -> int:
        """Most replicas of the candidate that fit, at most `wanted`."""
        most = min(wanted, self._free[candidate.gpu_type] // candidate.gpus)
        nodes = self._on_nodes[candidate.gpu_type]
        if nodes is None or nodes.fit(candidate.gpus, most):
            return most
        fitting, too_many = 0, most
        while too_many - fitting > 1:
            middle = (fitting + too_many) // 2
            if nodes.fit(candidate.gpus, middle):
                fitting = middle
            else:
                too_many = middle
        return fitting

    def take(self, gpu_type: int, gpus: int, replicas: int) -> None:
        """Hand out replicas of so many cards that `room` found to fit."""
        self._free[gpu_type] -= replicas * gpus
        nodes = self._on_nodes[gpu_type]
        if nodes is not None:
            nodes.placed[gpus] += replicas


class _Nodes:
    """Replicas placed on the nodes of one GPU type; they may still move, only their numbers count."""

    def __init__(self, nodes: Iterable[int], sizes: list[int]) -> None:
        self.placed: Counter[int] = Counter()
        self._free = Counter(nodes)  # free cards -> number of nodes
        # Cards that replicas of a size or larger can use at all.
        self._usable = {
            size: sum(size * (cards // size) * count for cards, count in self._free.items()) for size in sizes
        }
        self._exact = is_chain(sizes)

    def fit(self, size: int, replicas: int) -> bool:
        """Whether so many more replicas of `size` cards fit; may say no where sizes do not divide."""
        wanted = self.placed + Counter({size: replicas})
        for least, usable in self._usable.items():
            if sum(cards * count for cards, count in wanted.items() if cards >= least) > usable:
                return False
        return self._exact or _first_fit_decreasing(wanted, self._free)


def greedy(problem: AllocationProblem) -> Plan:
    """Serve servers one after the other, each by the cheapest candidate that still fits.

    The next server is that of the highest priority, among those the one that loses most by taking its next
    candidate instead (infinitely much when it has none), among those the one whose candidate is dearest,
    then by name. One whose candidate does not fit queues again with its next one. Servers that no candidate
    serves in full get what the saturation policy leaves them, on one accelerator.

    Parameters
    ----------
    problem : AllocationProblem

    Returns
    -------
    Plan
        A plan without violations (see `solver.check`), one accelerator a server even where a mix is allowed.
    """
    stock = _Stock(problem)
    chosen = _options(problem)
    anyway = np.zeros(len(problem.option_server), dtype=np.int64)
    anyway[chosen] = problem.least[chosen]
    servers = _servers(problem, chosen, anyway)
    for option in np.flatnonzero(anyway).tolist():
        stock.take(int(problem.gpu_type[option]), int(problem.gpus[option]), int(anyway[option]))
    more = np.zeros(len(anyway), dtype=np.int64)
    if problem.policy.delayed_best_effort:
        rounds = [servers]
    else:
        rounds = [list(group) for _, group in groupby(servers, key=lambda server: server.priority)]
    for group in rounds:
        unserved = _serve_in_full(group, stock, more)
        _serve_in_part(unserved, stock, more, problem.policy.saturation)
    return Plan(anyway + more)


def _options(problem: AllocationProblem) -> IntArray:
    """Return one option for each server and accelerator: the cheapest, then the smallest batch limit."""
    value = cost_alone_per_h(problem)
    server, accelerator = problem.option_server, problem.option_accelerator
    by_accelerator = np.lexsort((problem.option_batch, value, accelerator, server))
    pair = np.stack((server, accelerator))[:, by_accelerator]
    first = np.ones(len(by_accelerator), dtype=bool)
    first[1:] = (pair[:, 1:] != pair[:, :-1]).any(axis=0)
    return by_accelerator[first]


def _servers(problem: AllocationProblem, chosen: IntArray, anyway: IntArray) -> list[_Server]:
    """Servers that need something and have an option, by priority and name; a candidate is an accelerator."""
    value = cost_alone_per_h(problem)
    server, accelerator = problem.option_server, problem.option_accelerator
    chosen = chosen[~problem.needs_nothing[server[chosen]]]
    chosen = chosen[np.lexsort((accelerator[chosen], value[chosen], server[chosen]))]
    needed, most = _beside(problem, anyway)
    runs_on = problem.per_server(np.minimum(anyway, 1))

    full = runs_on >= problem.max_types
    chosen = chosen[(anyway[chosen] > 0) | ~full[server[chosen]]]
    fields = (
        chosen,
        value[chosen],
        needed[chosen],
        most[chosen],
        problem.gpu_type[chosen],
        problem.gpus[chosen],
    )
    candidates = list(map(_Candidate._make, zip(*(field.tolist() for field in fields), strict=True)))
    index, first, count = np.unique(server[chosen], return_index=True, return_counts=True)
    rows = zip(*(x.tolist() for x in (index, problem.priority[index], first, first + count)), strict=True)
    servers = [_Server(s, priority, tuple(candidates[start:end])) for s, priority, start, end in rows]
    return sorted(servers, key=lambda entry: (entry.priority, entry.index))


def _beside(problem: AllocationProblem, anyway: IntArray) -> tuple[IntArray, IntArray]:
    """Replicas that each option needs beside those that run anyway, and may have, each of shape (J,)."""
    server = problem.option_server
    capacity_rps = np.where(np.isfinite(problem.capacity_rps), problem.capacity_rps, 0.0)
    rest_rps = np.maximum(problem.arrival_rps - problem.per_server(capacity_rps * anyway), 0.0)
    there = problem.per_server(anyway).astype(np.int64)
    for_load = np.ceil(rest_rps[server] / problem.capacity_rps * (1.0 - DEMAND_TOLERANCE)).astype(np.int64)
    needed = np.maximum(for_load, (problem.min_replicas - there)[server])
    most = np.minimum((problem.max_replicas - there)[server], problem.most - anyway)
    return np.maximum(needed, 0), np.maximum(most, 0)


def _serve_in_full(servers: Iterable[_Server], stock: _Stock, replicas: IntArray) -> list[_Server]:
    """Serve each server fully where possible; return the others in the order they gave up."""
    by_index = {}
    queue = []
    unserved = []
    for server in servers:
        by_index[server.index] = server
        queue.append(server.turn(0))
    heapify(queue)
    while queue:
        *_, index, at = heappop(queue)
        server = by_index[index]
        candidate = server.candidates[at]
        wanted = candidate.replicas
        if wanted <= candidate.most and stock.room(candidate, wanted) == wanted:
            stock.take(candidate.gpu_type, candidate.gpus, wanted)
            replicas[candidate.option] = wanted
        elif at + 1 < len(server.candidates):
            heappush(queue, server.turn(at + 1))
        else:
            unserved.append(server)
    return unserved


def _serve_in_part(
    servers: list[_Server], stock: _Stock, replicas: IntArray, policy: SaturationPolicy
) -> None:
    """Share out what is left among servers sorted by priority, as the policy says."""
    if policy is SaturationPolicy.PRIORITY_EXHAUSTIVE:
        for server in servers:
            _in_turns([server], stock, replicas)
    elif policy is SaturationPolicy.PRIORITY_ROUND_ROBIN:
        for _, group in groupby(servers, key=lambda server: server.priority):
            _in_turns(group, stock, replicas)
    elif policy is SaturationPolicy.ROUND_ROBIN:
        _in_turns(servers, stock, replicas)


def _in_turns(servers: Iterable[_Server], stock: _Stock, replicas: IntArray) -> None:
    """One replica each, again and again; a server stays with the first candidate that had room."""
    turns: deque[tuple[_Server, _Candidate | None]] = deque((server, None) for server in servers)
    while turns:
        server, candidate = turns.popleft()
        choices = (candidate,) if candidate else server.candidates
        candidate = next((c for c in choices if min(c.replicas, c.most) > 0 and stock.room(c, 1)), None)
        if candidate is None:
            continue
        stock.take(candidate.gpu_type, candidate.gpus, 1)
        replicas[candidate.option] += 1
        if replicas[candidate.option] < min(candidate.replicas, candidate.most):
            turns.append((server, candidate))


def _first_fit_decreasing(replicas: Mapping[int, int], nodes: Mapping[int, int]) -> bool:
    """Whether replicas (cards -> number) fit on nodes (free cards -> number) when the largest go first."""
    for size in sorted(replicas, reverse=True):
        left = replicas[size]
        after: Counter[int] = Counter()
        for cards, count in nodes.items():
            each = cards // size
            full = min(count, left // each) if each else 0
            after[cards - each * size] += full
            left -= full * each
            rest = count - full
            if rest and left < each:
                # Fewer replicas are left than one more node takes.
                after[cards - left * size] += 1
                left, rest = 0, rest - 1
            after[cards] += rest
        if left:
            return False
        nodes = after
    return True
