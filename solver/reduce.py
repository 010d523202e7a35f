"""Drop options that no optimal plan needs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from solver.check import cost_alone_per_h
from solver.packing import is_chain
from solver.problem import Plan

if TYPE_CHECKING:
    from solver.milp import BoolArray, FloatArray, IntArray
    from solver.problem import AllocationProblem

# Pairs of options compared at once; bounds the memory of the comparison to some tens of MB.
_PAIRS_AT_ONCE = 4_000_000


def dominated(problem: AllocationProblem, *, whole: bool = False) -> BoolArray:
    """Options that another option of the same server and GPU type replaces at no loss, shape (J,).

    Replica by replica: option i dominates j when it has no less capacity, no more GPUs and no more cost per
    replica, and j is on no current accelerator, or on the same one as i. Options on an accelerator with
    limits of replicas compare with those on the same one only. Of equal options the one with the smaller
    index, so the smaller batch limit, stays.

    Parameters
    ----------
    problem : AllocationProblem
    whole : bool
        Compare the replicas that serve the whole demand instead: total GPUs, GPUs per replica, and total cost
        with the switching penalty. Drops more; valid where a server is served by one option or not at all.
    """
    keys: tuple[FloatArray, ...]
    if whole:
        needed, gpus = problem.replicas_needed, problem.gpus.astype(np.float64)
        # One that needs more replicas than are allowed replaces nothing.
        total = np.where(needed <= problem.most, needed * gpus, np.inf)
        odd = np.array([_is_odd(problem, t) for t in range(len(problem.gpu_types))], dtype=bool)
        same_size = np.where(odd[problem.gpu_type], -gpus, 0.0)
        keys = (total, gpus, same_size, cost_alone_per_h(problem))
    else:
        # Both keys are ordered between two current accelerators only where they are the same one.
        current, accelerator = problem.option_is_current, problem.option_accelerator + 1.0
        keeps = (np.where(current, accelerator, np.inf), np.where(current, -accelerator, np.inf))
        limited = (problem.least > 0) | (problem.most < problem.max_replicas[problem.option_server])
        alone = (np.where(limited, accelerator, 0.0), np.where(limited, -accelerator, 0.0))
        keys = (-problem.capacity_rps, problem.gpus.astype(np.float64), problem.cost_per_h, *keeps, *alone)
    return _not_smallest(problem.option_server * max(len(problem.gpu_types), 1) + problem.gpu_type, keys)


def _is_odd(problem: AllocationProblem, gpu_type: int) -> bool:
    """Whether replicas of fewer cards may fit on the nodes worse: three of 2 need more than two of 3."""
    sizes = np.unique(problem.gpus[problem.gpu_type == gpu_type]).tolist()
    return problem.inventory.nodes[gpu_type] is not None and not is_chain(sizes)


def _not_smallest(group: IntArray, keys: tuple[FloatArray, ...]) -> BoolArray:
    """Items that another item of their group equals or undercuts in every key, shape (J,)."""
    count = len(group)
    result = np.zeros(count, dtype=bool)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) != 0][:count])
    sizes = np.diff(np.r_[starts, count])
    for size in np.unique(sizes[sizes > 1]):
        same_size = starts[sizes == size]
        step = max(1, _PAIRS_AT_ONCE // int(size * size))
        for first in range(0, len(same_size), step):
            block = order[same_size[first : first + step, None] + np.arange(size)]
            # Axis 1 is the item i that wins, axis 2 the item j that goes.
            no_worse = np.ones((len(block), size, size), dtype=bool)
            better = np.zeros((len(block), size, size), dtype=bool)
            for key in keys:
                winner, loser = key[block][:, :, None], key[block][:, None, :]
                no_worse &= winner <= loser
                better |= winner < loser
            earlier = np.arange(size)[:, None] < np.arange(size)[None, :]
            result[block] = (no_worse & (better | earlier)).any(axis=1)
    return result


def keep(problem: AllocationProblem, options: IntArray) -> AllocationProblem:
    """`problem` with these options only; `options` are rising indices."""
    return replace(
        problem,
        option_server=problem.option_server[options],
        option_accelerator=problem.option_accelerator[options],
        option_batch=problem.option_batch[options],
        capacity_rps=problem.capacity_rps[options],
        gpu_type=problem.gpu_type[options],
        gpus=problem.gpus[options],
        cost_per_h=problem.cost_per_h[options],
    )


def onto(problem: AllocationProblem, kept: IntArray, plan: Plan, *, whole: bool = False) -> Plan:
    """Return `plan` over the kept options: where it uses a dominated one, the one that replaces it.

    Parameters
    ----------
    problem : AllocationProblem
    kept : (K,) int
        Options that are not dominated, rising.
    plan : Plan
    whole : bool
        As for `dominated`; every server is then on one option that serves it in full, or on none.
    """
    replicas = plan.replicas.copy()
    if whole:
        replicas = np.where(replicas > 0, problem.replicas_needed, 0)
        needed = problem.replicas_needed
        total, cost = needed * problem.gpus, cost_alone_per_h(problem)
    for j in np.setdiff1d(np.flatnonzero(replicas), kept):
        mine = kept[slice(*np.searchsorted(problem.option_server[kept], problem.option_server[j] + [0, 1]))]
        better = (problem.gpu_type[mine] == problem.gpu_type[j]) & (problem.gpus[mine] <= problem.gpus[j])
        if whole:
            better &= (
                (total[mine] <= total[j]) & (cost[mine] <= cost[j]) & (needed[mine] <= problem.most[mine])
            )
        else:
            same = problem.option_accelerator[mine] == problem.option_accelerator[j]
            better &= (
                (problem.capacity_rps[mine] >= problem.capacity_rps[j])
                & (problem.cost_per_h[mine] <= problem.cost_per_h[j])
                & (same | ~problem.option_is_current[j])
            )
        to = mine[better][0]
        replicas[to] += needed[to] if whole else replicas[j]
        replicas[j] = 0
    return Plan(replicas[kept])
