"""Which replicas fit on which nodes: a replica of k cards needs one node with k free cards."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def is_chain(sizes: Sequence[int]) -> bool:
    """Whether each size divides the next larger one (1, 2, 4, 8; not 2, 3).

    For a chain, counting cards size by size is exact: see `formulate.node_rows`.
    """
    return all(large % small == 0 for small, large in pairwise(sorted(set(sizes))))


@lru_cache(maxsize=4096)
def patterns(free: int, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the maximal ways to fill a node: counts by size, none of which leaves room for one more.

    Parameters
    ----------
    free : int
        Free cards of the node, >= 0.
    sizes : tuple of int
        Distinct replica sizes, each >= 1.
    """

    def fill(index: int, left: int) -> list[tuple[int, ...]]:
        if index == len(sizes):
            return [()]
        size = sizes[index]
        return [
            (count, *rest)
            for count in range(left // size, -1, -1)
            for rest in fill(index + 1, left - count * size)
        ]

    smallest = min(sizes, default=1)
    return tuple(
        pattern
        for pattern in fill(0, free)
        if free - sum(count * size for count, size in zip(pattern, sizes, strict=True)) < smallest
    )


def fits(demand: Mapping[int, int], nodes: Sequence[int]) -> bool:
    """Whether ``demand[k]`` replicas of k cards, for every k, fit on nodes with these free cards.

    First-fit decreasing decides for a chain of sizes, where it is exact; otherwise, where it fails, an
    exhaustive search over the maximal fillings of each node does.
    """
    wanted = {size: count for size, count in demand.items() if count > 0}
    if _first_fit_decreasing(wanted, nodes):
        return True
    if is_chain(list(wanted)):
        return False
    sizes = tuple(sorted(wanted, reverse=True))
    open_demands = {tuple(wanted[size] for size in sizes)}
    for free in sorted(nodes, reverse=True):
        open_demands = {
            tuple(max(left - placed, 0) for left, placed in zip(demand_left, pattern, strict=True))
            for demand_left in open_demands
            for pattern in patterns(free, sizes)
        }
        if (0,) * len(sizes) in open_demands:
            return True
    return False


def _first_fit_decreasing(demand: Mapping[int, int], nodes: Sequence[int]) -> bool:
    left = sorted(nodes, reverse=True)
    for size in sorted(demand, reverse=True):
        count = demand[size]
        for index, free in enumerate(left):
            placed = min(count, free // size)
            left[index] -= placed * size
            count -= placed
        if count > 0:
            return False
    return True
