"""One column of each server that together keep the limits, by dynamic programming over the servers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from solver.rows import starts

try:
    from solver.labels import IS_COMPILED, Labels
except ModuleNotFoundError:
    # Not compiled, and no Cython to run it without.
    IS_COMPILED = False

if TYPE_CHECKING:
    from collections.abc import Callable

    from solver.milp import BoolArray, FloatArray, IntArray
    from solver.prices import Listed
    from solver.search import Search

# Servers of a fleet with one type. Up to `_FEW_HELD` ones branch and bound over knapsacks proves more where
# some are not served, and finds more among what their knapsacks leave.
_FEWEST, _MOST, _FEW_HELD = 40, 4_000, 100

# What tells sets of prices from the best ones, as standard deviations of logarithms: when some servers are
# decided, the best prices for the rest are other ones.
_FACTORS = (0.03, 0.3)

# Price of a unit of a limit that has none, relative to the worth of a usual unit: of one beyond it, and in
# the sets where it has one, times the factor.
_UNPRICED = 0.001

# Relative differences below this are rounding.
_TINY = 1e-9


@dataclass(frozen=True)
class _Effort:
    """How to search.

    Attributes
    ----------
    sets : int
        Of prices.
    searches : tuple of (int, float, float)
        One after the other, each with the prices that those before it added: labels of a layer, and what part
        of the worth of an expected excess or lack counts in their rating before the first server is decided,
        and after the last.
    """

    sets: int
    searches: tuple[tuple[int, float, float], ...]


# Where fewer than so many servers are to be decided, more than so many, and in between. Few servers leave no
# room for what is expected.
_FEW, _MANY = 40, 300
_EFFORT_OF_FEW = _Effort(32, ((80, 0.0, 0.0), (160, 0.01, 1.0), (320, 0.1, 0.1)))
_EFFORT_OF_MANY = _Effort(
    16, ((100, 0.01, 1.0), (100, 0.1, 0.1), (100, 0.0, 0.0), (100, 0.01, 1.0), (100, 0.0, 0.0))
)
_EFFORT = _Effort(48, tuple((200, low, high) for _, low, high in _EFFORT_OF_MANY.searches))


def is_compiled() -> bool:
    """Whether `selected` is there."""
    return IS_COMPILED


def is_selected(search: Search, *, serves_all: bool) -> bool:
    """Whether plans are made by dynamic programming, at stages where everything is served or at others."""
    count = search.servers.count
    fewest = _FEWEST if serves_all else _FEW_HELD
    return IS_COMPILED and (search.is_closable if search.mixes else fewest < count <= _MOST)


def selected(
    listed: Listed,
    duals: FloatArray,
    cutoff: float,
    step: float,
    good: float,
    left_s: Callable[[], float],
    expected: FloatArray | None = None,
    *,
    wider: int = 1,
    largest_first: bool | None = None,
    tries: int = 5,
    thorough: bool = False,
) -> tuple[IntArray | None, float]:
    """Find one column of each server that together keep the limits and are worth less than `cutoff`, or near.

    Parameters
    ----------
    listed : Listed
        Columns of n servers.
    duals : (R,) float
        Good prices of the limits, >= 0.
    cutoff : float
    step : float
        Least improvement worth looking for.
    good : float
        A plan worth no more is good enough.
    left_s : callable
        Seconds that are left.
    expected : (n, R) float or None
        What each server takes in the relaxation. None where a proof is wanted more than a plan.
    wider : int
        Times as many labels of a layer as usual.
    largest_first : bool or None
        Whether the first search has the servers that take most first, and the second those that move most, or
        the other way round, and so on in turns; None for those that move most each time.
    tries : int
        Searches at most.
    thorough : bool
        Whether a search of many servers is as wide as one of few, at as many sets of prices.

    Returns
    -------
    plan : (n,) int or None
        Columns, one of each server, in their order.
    bound : float
        No plan of these columns is worth less. At most `cutoff`, and what the plan is worth.
    """
    first, group = listed.groups
    sizes = np.bincount(group)
    only = first[sizes == 1]
    free = np.flatnonzero(sizes[group] > 1)
    if len(only) and len(free):
        rest = replace(listed.take(free), limits=listed.limits - listed.usage[only].sum(axis=0))
        fixed = float(listed.worth[only].sum())
        usage = None if expected is None else expected[sizes > 1]
        found, bound = selected(
            rest,
            duals,
            cutoff - fixed,
            step,
            good - fixed,
            left_s,
            usage,
            wider=wider,
            largest_first=largest_first,
            tries=tries,
            thorough=thorough,
        )
        return None if found is None else np.sort(np.r_[only, free[found]]), bound + fixed
    count = len(sizes)
    is_quick = count > _MANY and not thorough
    effort = _EFFORT_OF_FEW if count < _FEW else _EFFORT_OF_MANY if is_quick else _EFFORT
    usual = listed.scale / np.maximum(listed.usage.mean(axis=0), _TINY)
    beyond = np.maximum(duals, _UNPRICED * usual)
    # Servers that move much come first, those that can be fitted finely last. Few servers gain more from
    # wider layers than from another order.
    spread = np.maximum.reduceat(listed.usage, first) - np.minimum.reduceat(listed.usage, first)
    orders = [np.argsort(-(spread @ beyond) / np.sqrt(sizes), kind="stable")]
    if largest_first is not None and count >= _FEW:
        least = np.minimum.reduceat(listed.usage @ beyond, first)
        orders.insert(0 if largest_first else 1, np.argsort(-least, kind="stable"))
    prices, charge = _around(duals, usual, effort.sets), np.stack([beyond, duals])
    usage = np.zeros((count, len(duals))) if expected is None else expected
    made: list[tuple[Labels, IntArray]] = []
    best: IntArray | None = None
    value, bound = np.inf, -np.inf
    progress = np.arange(1, count + 1) / count
    for turn, (width, low, high) in enumerate(effort.searches[:tries]):
        if turn < len(orders):
            order = orders[turn]
            start = starts(sizes[order])
            which = np.repeat(first[order] - start[:-1], sizes[order]) + np.arange(len(listed.server))
            labels = Labels(
                start, listed.worth[which], listed.usage[which], listed.limits, prices, usage[order], charge
            )
            made.append((labels, which))
        labels, which = made[turn % len(orders)]
        share = np.zeros(count)
        if high > 0 and expected is not None:
            share = high * (low / high) ** (1.0 - progress)
        plan, lowest = labels.search(cutoff, wider * width, share, left_s)
        bound = max(bound, lowest)
        if plan is not None and listed.worth[which[plan]].sum() < value:
            best = np.sort(which[plan])
            value = float(listed.worth[best].sum())
            cutoff = min(cutoff, value)
        if value <= good or cutoff - bound <= step or left_s() <= 0:
            break
    return best, min(bound, cutoff)


def _around(duals: FloatArray, usual: FloatArray, sets: int) -> FloatArray:
    """Return sets of prices around the best ones, these first, shape (K, R)."""
    factor, size, is_moved = _draws(sets, len(duals))
    result: FloatArray = np.where(
        is_moved, np.where(duals > 0, duals * factor, _UNPRICED * usual * size), duals
    )
    result[0] = duals
    return result


@lru_cache(maxsize=8)
def _draws(sets: int, count: int) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Factors of prices, sizes of those where there are none, and which are moved, each of shape (K, R)."""
    rng = np.random.default_rng(0)
    shape = (sets, count)
    low, high = np.log(_FACTORS)
    size = np.exp(np.linspace(low, high, 8))[np.arange(sets) % 8][:, None]
    factor = np.exp(size * rng.normal(size=shape))
    new = size * np.abs(rng.normal(size=shape)) * (rng.random(shape) < 0.5)
    return factor, new, rng.random(shape) < 0.5
