"""Drop options that no optimal plan needs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from solver.milp import BoolArray, IntArray
    from solver.problem import AllocationProblem

# Capacities that differ by less are equal: the smaller batch limit then wins.
_SAME_CAPACITY = 1e-9

# Pairs of options compared at once; bounds the memory of the comparison to some tens of MB.
_PAIRS_AT_ONCE = 4_000_000


def dominated(problem: AllocationProblem) -> BoolArray:
    """Options that another option of the same server replaces at no loss, shape (J,).

    Option i dominates j when both belong to one server and one GPU type and i has no fewer capacity, no
    more GPUs per replica, no more cost per replica, and does not leave the current accelerator where j
    keeps it. Of equal options the one with the smaller index, so the smaller batch limit, stays.
    """
    count = len(problem.option_server)
    result = np.zeros(count, dtype=bool)
    if count == 0:
        return result
    group = problem.option_server * max(len(problem.gpu_types), 1) + problem.gpu_type
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) != 0])
    sizes = np.diff(np.r_[starts, count])
    for size in np.unique(sizes[sizes > 1]):
        block_starts = starts[sizes == size]
        step = max(1, _PAIRS_AT_ONCE // int(size * size))
        for first in range(0, len(block_starts), step):
            block = order[block_starts[first : first + step, None] + np.arange(size)]
            result[block] = _dominated_in_blocks(problem, block)
    return result


def _dominated_in_blocks(problem: AllocationProblem, block: IntArray) -> BoolArray:
    """`dominated` for blocks of options, shape (blocks, size): each row is one server and GPU type."""
    capacity, gpus = problem.capacity_rps[block], problem.gpus[block]
    cost, current = problem.cost_per_h[block], problem.option_is_current[block]
    size = block.shape[1]

    # Axis 1 is the dominating option i, axis 2 the dominated j. Capacities are infinite without load.
    at_least = capacity[:, :, None] >= capacity[:, None, :] * (1.0 - _SAME_CAPACITY)
    more = capacity[:, :, None] * (1.0 - _SAME_CAPACITY) > capacity[:, None, :]
    fewer, dearer = gpus[:, :, None] < gpus[:, None, :], cost[:, :, None] > cost[:, None, :]
    more_gpus, cheaper = gpus[:, :, None] > gpus[:, None, :], cost[:, :, None] < cost[:, None, :]
    keeps_more = current[:, :, None] & ~current[:, None, :]
    keeps_less = ~current[:, :, None] & current[:, None, :]

    no_worse = at_least & ~more_gpus & ~dearer & ~keeps_less
    better = more | fewer | cheaper | keeps_more
    earlier = np.arange(size)[:, None] < np.arange(size)[None, :]
    off_diagonal = ~np.eye(size, dtype=bool)
    wins: BoolArray = (no_worse & (better | earlier) & off_diagonal).any(axis=1)
    return wins


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
