"""Make a plan of the columns near the best prices: choices that together just use up what there is.

A plan is worth the bound, plus the reduced costs of its columns, plus the slack of the limits at their
prices. So a good plan has columns of little reduced cost whose takes add up to nearly the limits. The
relaxation divides a few servers among columns; these are decided first, then the others may change, the
large ones before the small, so that the last digits are left to the servers that move few cards. A beam
search keeps the partial plans that are best so far.

Reference
---------
P. S. Ow, T. E. Morton (1988), Filtered beam search in scheduling, https://doi.org/10.1080/00207548808947840
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from solver.rows import factors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from solver.milp import BoolArray, FloatArray, IntArray
    from solver.prices import Listed

# Most columns of a server that the relaxation divides; most servers that change beside these, and most
# columns of each. Columns of the least reduced cost, servers that it takes least to change.
_MOST_OF_DIVIDED, _MOST_SERVERS, _MOST_COLUMNS = 2000, 1000, 8

# Price of a unit beyond a limit that has no price, relative to the worth of a usual unit.
_UNPRICED = 0.01

# Excesses that differ by less are equal. Beyond a limit by less is within it: these are sums of fractions.
_EQUAL, _WITHIN = 1.0 / 64.0, 1e-6

# Relative differences below this are rounding.
_TINY = 1e-9


@dataclass(frozen=True)
class Effort:
    """How a search goes.

    Attributes
    ----------
    divided, first : float
        Share of what an excess or a slack is worth that counts while the divided servers are decided, and
        when the first of the others is; it grows to 1 until the last.
    width_divided, width : int
        Partial plans that are kept in these two parts.
    """

    divided: float
    first: float
    width_divided: int
    width: int


@dataclass(frozen=True)
class _Turn:
    """One server: its columns, how each changes what is taken and the value, and how the result is rated."""

    columns: IntArray
    taken: FloatArray
    worth: FloatArray
    share: float
    width: int


def matched(
    listed: Listed,
    reduced: FloatArray,
    duals: FloatArray,
    chosen: IntArray,
    expected: FloatArray,
    split: BoolArray,
    most: float,
    effort: Effort,
    left_s: Callable[[], float],
) -> IntArray | None:
    """Choose one column of each server that together keep the limits.

    Parameters
    ----------
    listed : Listed
        Columns of n servers.
    reduced : (C,) float
        Value of each column at `duals` above the best of its server, >= 0 up to rounding.
    duals : (R,) float
        Prices of the rows, >= 0.
    chosen : (n,) int
        One column of each server.
    expected : (n, R) float
        What each server takes in the relaxation.
    split : (n,) bool
        Servers that the relaxation divides among columns; the others take what `chosen` takes.
    most : float
        A plan worth so much above the bound is good enough.
    effort : Effort
    left_s : callable
        Seconds that are left.

    Returns
    -------
    (n,) int or None
        Columns in the order of `chosen`; the first choice found that is good enough, otherwise the best one
        found. None where none was found.
    """
    reduced = np.maximum(reduced, 0.0)
    # A row without a price counts a little where it is exceeded: a plan must keep it.
    usual = listed.scale / np.maximum(listed.usage.mean(axis=0), _TINY)
    beyond = np.maximum(duals, _UNPRICED * usual)
    either, more = 0.5 * (beyond + duals), 0.5 * (beyond - duals)
    # Equal excesses have equal sums of these.
    factor = factors(len(duals))

    excess = (expected.sum(axis=0) - listed.limits)[None, :]
    above = np.array([reduced[chosen[~split]].sum()])
    steps: list[tuple[IntArray, IntArray, IntArray]] = []
    best, best_at = np.inf, (0, 0)
    undecided = int(split.sum())
    turns = _turns(listed, reduced, beyond, chosen, expected, split, most, effort)
    while left_s() > 0:
        if not undecided:
            total = np.where((excess <= _WITHIN).all(axis=1), above - excess @ duals, np.inf)
            if total.min() < best:
                best, best_at = float(total.min()), (len(steps), int(total.argmin()))
        turn = next(turns, None)
        if best <= most or turn is None:
            break
        choices = len(turn.columns)
        after = (excess[:, None, :] + turn.taken).reshape(-1, len(duals))
        worth = (above[:, None] + turn.worth).ravel()
        rating = worth + turn.share * (np.abs(after) @ either + after @ more)
        kept = np.flatnonzero(worth <= most)
        kept = _least(kept, rating, 2 * turn.width)
        kept = _least(_distinct(kept, after, worth, factor), rating, turn.width)
        if not kept.size:
            break
        excess, above = after[kept], worth[kept]
        steps.append((turn.columns, kept // choices, kept % choices))
        undecided = max(undecided - 1, 0)
    return None if np.isinf(best) else _read(listed, chosen, steps, *best_at)


def _turns(
    listed: Listed,
    reduced: FloatArray,
    beyond: FloatArray,
    chosen: IntArray,
    expected: FloatArray,
    split: BoolArray,
    most: float,
    effort: Effort,
) -> Iterator[_Turn]:
    """Divided servers, then the others that are nearest to changing, in each part the largest first."""
    position = np.full(int(listed.server[-1]) + 1, -1)
    position[listed.server[chosen]] = np.arange(len(chosen))
    mine = position[listed.server]
    near = np.flatnonzero((reduced <= most) & (mine >= 0))
    near = near[np.lexsort((reduced[near], mine[near]))]
    taken = listed.usage[near] - expected[mine[near]]
    moved = np.abs(taken) @ beyond
    own = mine[near]
    for at in _in_order(own[split[own]], (expected @ beyond)[own[split[own]]]):
        first, last = np.searchsorted(own, (at, at + 1))
        which = slice(first, min(last, first + _MOST_OF_DIVIDED))
        yield _Turn(near[which], taken[which], reduced[near[which]], effort.divided, effort.width_divided)

    worth = reduced[near] - reduced[chosen[own]]
    other = np.flatnonzero(~split[own] & (moved > 0))
    near, taken, moved, own, worth = near[other], taken[other], moved[other], own[other], worth[other]
    change = np.full(len(chosen), np.inf)
    np.minimum.at(change, own, worth / moved)
    closest = np.argsort(change, kind="stable")[:_MOST_SERVERS]
    allowed = np.zeros(len(chosen), dtype=bool)
    allowed[closest] = True
    order = _in_order(own[allowed[own]], moved[allowed[own]])
    for rank, at in enumerate(order):
        first, last = np.searchsorted(own, (at, at + 1))
        which = slice(first, min(last, first + _MOST_COLUMNS))
        yield _Turn(
            np.r_[chosen[at], near[which]],
            np.vstack([np.zeros(len(beyond)), taken[which]]),
            np.r_[0.0, worth[which]],
            effort.first ** (1.0 - (rank + 1) / len(order)),
            effort.width,
        )


def _in_order(own: IntArray, size: FloatArray) -> list[int]:
    """Servers that have any of these columns, the one with the largest first."""
    largest = np.zeros(int(own.max(initial=-1)) + 1)
    np.maximum.at(largest, own, size)
    servers = np.unique(own)
    ordered: list[int] = servers[np.argsort(-largest[servers], kind="stable")].tolist()
    return ordered


def _least(which: IntArray, rating: FloatArray, most: int) -> IntArray:
    """Keep the `most` that are rated lowest."""
    return which if len(which) <= most else which[np.argpartition(rating[which], most)[:most]]


def _distinct(which: IntArray, excess: FloatArray, worth: FloatArray, factor: IntArray) -> IntArray:
    """Keep the one worth least of those with equal excesses."""
    with np.errstate(over="ignore"):
        key = np.rint(excess[which] / _EQUAL).astype(np.int64) @ factor
    order = np.lexsort((worth[which], key))
    key = key[order]
    result: IntArray = which[order[np.r_[True, key[1:] != key[:-1]][: len(order)]]]
    return result


def _read(
    listed: Listed, chosen: IntArray, steps: list[tuple[IntArray, IntArray, IntArray]], count: int, state: int
) -> IntArray:
    """Follow the choices back that led to a state after `count` steps."""
    position = np.full(int(listed.server[-1]) + 1, -1)
    position[listed.server[chosen]] = np.arange(len(chosen))
    result = chosen.copy()
    for columns, parent, choice in reversed(steps[:count]):
        column = int(columns[choice[state]])
        result[position[listed.server[column]]] = column
        state = int(parent[state])
    return result
