"""One column of each server that together keep the limits, by dynamic programming over the servers."""

from __future__ import annotations

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

    from solver.milp import FloatArray, IntArray
    from solver.prices import Listed
    from solver.search import Search

# Labels of a layer.
_WIDTH = 200

# Searches one after the other, each with the prices that those before it added: what part of the worth of an
# expected excess or lack counts when the first server was decided; it grows to that at the last one. Few
# servers leave no room for what is expected.
_CHARGED = ((0.01, 1.0), (0.1, 0.1), (0.0, 0.0))
_CHARGED_OF_FEW, _FEW = ((0.0, 0.0), (0.01, 1.0), (0.1, 0.1)), 40

# Sets of prices, and the factors that tell them from the best ones, as standard deviations of logarithms:
# when some servers are decided the best prices for the rest are other ones.
_SETS = 48
_FACTORS = (0.03, 0.3)

# Price of a unit of a limit that has none, relative to the worth of a usual unit: of one beyond it, and in
# the sets where it has one, times the factor.
_UNPRICED = 0.001

# Relative differences below this are rounding.
_TINY = 1e-9


def is_selected(search: Search) -> bool:
    """Whether plans are made by dynamic programming: with a mix, in small fleets."""
    return IS_COMPILED and search.mixes and search.is_closable


def selected(
    listed: Listed,
    duals: FloatArray,
    cutoff: float,
    step: float,
    good: float,
    left_s: Callable[[], float],
    expected: FloatArray | None = None,
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

    Returns
    -------
    plan : (n,) int or None
        Columns, one of each server, in their order.
    bound : float
        No plan of these columns is worth less than the lesser of this and `cutoff`; inf where there is none.
    """
    first = np.flatnonzero(np.r_[True, np.diff(listed.server) != 0])
    sizes = np.diff(np.r_[first, len(listed.server)])
    count = len(sizes)
    usual = listed.scale / np.maximum(listed.usage.mean(axis=0), _TINY)
    beyond = np.maximum(duals, _UNPRICED * usual)
    spread = np.maximum.reduceat(listed.usage, first) - np.minimum.reduceat(listed.usage, first)
    # Servers that move much come first, those that can be fitted finely last.
    order = np.argsort(-(spread @ beyond) / np.sqrt(sizes), kind="stable")
    sizes = sizes[order]
    start = starts(sizes)
    which = np.repeat(first[order] - start[:-1], sizes) + np.arange(len(listed.server))
    worth = listed.worth[which]
    labels = Labels(
        start,
        worth,
        listed.usage[which],
        listed.limits,
        _around(duals, usual),
        np.zeros((count, len(duals))) if expected is None else expected[order],
        np.stack([beyond, duals]),
    )
    best, value, bound = None, np.inf, -np.inf
    progress = np.arange(1, count + 1) / count
    for low, high in _CHARGED_OF_FEW if count < _FEW else _CHARGED:
        share = np.zeros(count)
        if high > 0 and expected is not None:
            share = high * (low / high) ** (1.0 - progress)
        plan, lowest = labels.search(cutoff, _WIDTH, share, left_s)
        bound = max(bound, lowest)
        if plan is not None and worth[plan].sum() < value:
            best, value = plan, float(worth[plan].sum())
            cutoff = min(cutoff, value)
        if cutoff <= good or cutoff - bound <= step or left_s() <= 0:
            break
    return None if best is None else np.sort(which[best]), bound


def _around(duals: FloatArray, usual: FloatArray) -> FloatArray:
    """Return sets of prices around the best ones, these first, shape (K, R)."""
    rng = np.random.default_rng(0)
    shape = (_SETS, len(duals))
    low, high = np.log(_FACTORS)
    size = np.exp(np.linspace(low, high, 8))[np.arange(_SETS) % 8][:, None]
    moved = duals * np.exp(size * rng.normal(size=shape))
    new = _UNPRICED * usual * size * np.abs(rng.normal(size=shape)) * (rng.random(shape) < 0.5)
    result: FloatArray = np.where(rng.random(shape) < 0.5, np.where(duals > 0, moved, new), duals)
    result[0] = duals
    return result
