"""Limits of the replicas of a server on one accelerator, as the document wants them and as the GPUs allow."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from solver.packing import fits
from solver.problem import NO_LIMIT, ReplicaLimit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from solver.problem import AllocationProblem
    from solver.sizing import Fleet


def wanted_limits(fleet: Fleet) -> list[ReplicaLimit]:
    """Limits of the document, by server and accelerator; those that no sized candidate is under stay."""
    index = {name: a for a, name in enumerate(fleet.accelerators)}
    found = [
        ReplicaLimit(s, index[limit.accelerator], limit.min, NO_LIMIT if limit.max is None else limit.max)
        for s, server in enumerate(fleet.wire)
        for limit in server.replica_limits
    ]
    return sorted(found, key=lambda limit: (limit.server, limit.accelerator))


def granted(problem: AllocationProblem, wanted: Iterable[ReplicaLimit]) -> tuple[ReplicaLimit, ...]:
    """Cut the minima to what the GPUs hold together: classes in order, servers by name, accelerators by name.

    Limits of accelerators without an option are dropped: nothing can run there.

    Parameters
    ----------
    problem : AllocationProblem
        Without limits.
    wanted : iterable of ReplicaLimit
    """
    used = [Counter[int]() for _ in problem.gpu_types]
    found: list[ReplicaLimit] = []
    for limit in sorted(wanted, key=lambda x: (problem.priority[x.server], x.server, x.accelerator)):
        under = (problem.option_server == limit.server) & (problem.option_accelerator == limit.accelerator)
        options = np.flatnonzero(under)
        if not options.size:
            continue
        gpu_type, size = int(problem.gpu_type[options[0]]), int(problem.gpus[options[0]])
        least = limit.least
        while least and not holds(problem, gpu_type, used[gpu_type] + Counter({size: least})):
            least -= 1
        used[gpu_type][size] += least
        found.append(ReplicaLimit(limit.server, limit.accelerator, least, limit.most))
    return tuple(sorted(found, key=lambda limit: (limit.server, limit.accelerator)))


def holds(problem: AllocationProblem, gpu_type: int, replicas: Counter[int]) -> bool:
    """Whether the GPUs of a type hold so many replicas by their cards."""
    stock, nodes = problem.inventory.gpus[gpu_type], problem.inventory.nodes[gpu_type]
    cards = sum(size * count for size, count in replicas.items())
    return bool(stock == NO_LIMIT or cards <= stock) and (nodes is None or fits(replicas, nodes))


def limit_warnings(fleet: Fleet, problem: AllocationProblem) -> list[str]:
    """Say which minima of an accelerator the answer does not keep, and why."""
    kept = {(limit.server, limit.accelerator): limit.least for limit in problem.limits}
    found = []
    for limit in wanted_limits(fleet):
        least = kept.get((limit.server, limit.accelerator))
        name, accelerator = problem.servers[limit.server], problem.accelerators[limit.accelerator]
        where = f"{name}: {limit.least} replicas on {accelerator} are wanted"
        if least is None and limit.least:
            found.append(f"{where}, but none meets the targets there")
        elif least is not None and least < limit.least:
            found.append(f"{where}, the GPUs left hold {least}")
    return found
