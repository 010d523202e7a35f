"""Make a plan of the columns that prices like best: change the servers that it takes least to change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from solver.milp import FloatArray, IntArray
    from solver.prices import Listed

# Most servers that are changed, to fit and then to better the plan; the least that a change saves then,
# relative to the size of a usual value.
_MOST_CHANGES, _WORTH_SAVING = 300, 0.01

# Relative differences below this are rounding.
_TINY = 1e-9


def repaired(
    listed: Listed,
    reduced: FloatArray,
    duals: FloatArray,
    chosen: IntArray,
    left_s: Callable[[], float],
) -> IntArray | None:
    """Choose one column of each server that together keep the limits.

    First the changes that cost least for the excess that they take away, then those that save most.

    Parameters
    ----------
    listed : Listed
    reduced : (C,) float
        Value of each column at `duals` above the best of its server.
    duals : (R,) float
        Prices of the rows: what an excess is worth.
    chosen : (n,) int
        One column of each server.
    left_s : callable
        Seconds that are left.

    Returns
    -------
    (n,) int or None
        Columns in the order of the servers; None where no change, or no time, was left to take away more of
        the excess.
    """
    of_server = np.zeros(int(listed.server[-1]) + 1, dtype=np.int64)
    of_server[listed.server[chosen]] = chosen
    excess = listed.usage[chosen].sum(axis=0) - listed.limits
    # A row without a price counts a little all the same: a plan must keep it.
    usual = listed.scale / np.maximum(listed.usage.mean(axis=0), _TINY)
    weight = np.maximum(duals, 0.01 * usual)
    for _ in range(_MOST_CHANGES):
        now = of_server[listed.server]
        after = excess + listed.usage - listed.usage[now]
        if (excess > 0).any():
            gain = (np.maximum(excess, 0.0) - np.maximum(after, 0.0)) @ weight
            cost = np.maximum(reduced - reduced[now], 0.0) + _TINY * listed.scale
            rating = np.where(gain > _TINY * listed.scale, gain / cost, 0.0)
        else:
            saved = listed.worth[now] - listed.worth
            rating = np.where((after <= 0).all(axis=1) & (saved > _WORTH_SAVING * listed.scale), saved, 0.0)
        best = int(rating.argmax())
        if rating[best] <= 0 or left_s() <= 0:
            break
        excess = after[best]
        of_server[listed.server[best]] = best
    return None if (excess > 0).any() else of_server[listed.server[chosen]]
