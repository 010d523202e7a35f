"""Prices of the coupling rows that are good for listed columns, by Newton's method on a smoothed bound.

At prices ``pi`` the bound is the sum over the servers of ``min (worth + usage @ pi)`` less ``limits @ pi``:
concave, with a kink wherever a server changes its column. A soft minimum, ``-t log sum exp(-value / t)``,
makes it smooth; its second derivatives are the covariances of what each server's columns take. t falls by
steps. The steps are compiled (`solver.smoothed`); where that is not there, array operations do the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

try:
    from solver.smoothed import IS_COMPILED, Smoothed
except ModuleNotFoundError:
    # Not compiled, and no Cython to run it without.
    IS_COMPILED = False

if TYPE_CHECKING:
    from collections.abc import Callable

    from solver.milp import BoolArray, FloatArray, IntArray

# Newton steps at one smoothing, and the relative excess or lack of a limit that is good enough.
_NEWTON_STEPS = 20
_BALANCED = 1e-4

# The smoothing falls by this factor each time, down to the last one, relative to the scale of the values.
_FALL, _SHARPEST = 0.25, 1e-5

# Columns that take part: those within so many times the smoothing, and those that so small a relative change
# of prices makes best.
_NO_WEIGHT, _PRICE_CHANGE = 20.0, 0.03

# Most tries at one smoothing to find the columns that matter at the prices it leads to.
_MOST_TRIES = 6

# Logarithms of the lengths that a search along a line looks at, below the largest, and of its last step.
_WIDEST, _NEAR_ENOUGH = 40.0, 0.02

# The larger part of a golden section.
_GOLDEN = 0.5 * (5.0**0.5 - 1.0)

# A mixture may exceed limits by this share when they are this share lower than they are: Newton's method only
# comes near to where they balance.
_ROOM = 2.0 * _BALANCED

# A bound above 0 by so much, relative to the worth of the limits, is one for more columns like those as well.
_CLEARLY = 0.01

# Relative differences below this are rounding.
_TINY = 1e-9


@dataclass(frozen=True)
class Listed:
    """Columns of servers and the limits on what they take together.

    Attributes
    ----------
    server : (C,) int
        Rising.
    worth : (C,) float
        Value without prices.
    usage : (C, R) float
        What a column takes of each row, >= 0.
    limits : (R,) float
    scale : float
        Size of a usual value, > 0.
    """

    server: IntArray
    worth: FloatArray
    usage: FloatArray
    limits: FloatArray
    scale: float

    @cached_property
    def groups(self) -> tuple[IntArray, IntArray]:
        """First column of each server that has one, and each column's position among these servers."""
        is_first = np.ones(len(self.server), dtype=bool)
        np.not_equal(self.server[1:], self.server[:-1], out=is_first[1:])
        return np.flatnonzero(is_first), np.cumsum(is_first) - 1

    def take(self, which: BoolArray | IntArray) -> Listed:
        """Return these columns only."""
        return Listed(self.server[which], self.worth[which], self.usage[which], self.limits, self.scale)

    def bound(self, duals: FloatArray) -> tuple[float, FloatArray]:
        """Lagrangian bound, and the value of each column above the best of its server, shape (C,)."""
        first, group = self.groups
        charged = self.worth + self.usage @ duals
        least = np.minimum.reduceat(charged, first)
        return float(least.sum() - duals @ self.limits), charged - least[group]

    def distance(self, duals: FloatArray, reduced: FloatArray, main: IntArray) -> FloatArray:
        """Relative change of prices that makes each column as good as its server's in `main`, shape (C,).

        The reduced cost over the worth of what the column takes or gives back of the rows; -inf for `main`.
        Servers without a column in `main` compare with nothing taken.
        """
        taken = np.zeros((int(self.server[-1]) + 1, self.usage.shape[1]))
        taken[self.server[main]] = self.usage[main]
        moved = np.abs(self.usage - taken[self.server]) @ duals
        distance: FloatArray = np.maximum(reduced, 0.0) / (moved + _TINY)
        distance[main] = -np.inf
        return distance


def ascend(
    listed: Listed,
    duals: FloatArray,
    most: FloatArray,
    smoothing: float,
    left_s: Callable[[], float],
    sharpest: float = _SHARPEST,
) -> FloatArray:
    """Raise the Lagrangian bound over listed columns.

    Parameters
    ----------
    listed : Listed
    duals : (R,) float
        Prices to start from.
    most : (R,) float
        Largest price of each row.
    smoothing : float
        Where t starts, relative to the scale: the smaller the nearer `duals` are thought to be.
    left_s : callable
        Seconds that are left.
    sharpest : float
        Where t ends, relative to the scale.

    Returns
    -------
    (R,) float
        The best prices seen, within 0..`most`.
    """
    search = _Search(listed, duals, smoothing)
    while search.t >= sharpest and left_s() > 0:
        search.step(most, left_s)
    return search.best


def along(listed: Listed, direction: FloatArray, most: FloatArray) -> FloatArray:
    """Return the prices in a direction with the best Lagrangian bound, or nearly.

    Parameters
    ----------
    listed : Listed
    direction : (R,) float
        >= 0, not all 0.
    most : (R,) float
        Largest price of each row.
    """
    used = direction > 0
    high = np.log(float((most[used] / direction[used]).min()))
    low = high - _WIDEST

    def bound(place: float) -> float:
        return listed.bound(np.exp(place) * direction)[0]

    # The bound is concave along a line, so it has one peak in the logarithm of the length too: a search by
    # golden sections.
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = bound(left), bound(right)
    while high - low > _NEAR_ENOUGH:
        if at_left < at_right:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = bound(right)
        else:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = bound(left)
    result: FloatArray = np.exp(0.5 * (low + high)) * direction
    return result


def parted(
    listed: Listed, duals: FloatArray, most: FloatArray, smoothing: float, left_s: Callable[[], float]
) -> FloatArray | None:
    """Look for prices with a Lagrangian bound above 0, over listed columns.

    Of columns that are worth nothing such prices prove that no mixture of them keeps the limits.

    Parameters
    ----------
    listed, duals, most, smoothing, left_s
        As in `ascend`.

    Returns
    -------
    (R,) float or None
        None where some mixture of the columns keeps the limits, or no such prices were found.
    """
    search = _Search(replace(listed, limits=(1.0 - _ROOM) * listed.limits), duals, smoothing)
    while search.t >= _SHARPEST and left_s() > 0:
        if search.best_value > _CLEARLY * float(search.best @ listed.limits):
            break
        if search.step(most, left_s):
            return None
    return search.best if search.best_value > 0 else None


class _Search:
    """The ascent: prices, and the smoothing that is next."""

    def __init__(self, listed: Listed, duals: FloatArray, smoothing: float) -> None:
        self._scale, self._duals, self.t = listed.scale, duals, smoothing
        self._bound = (_compiled if IS_COMPILED else _Arrays)(listed)
        self.best, self.best_value = duals, self._bound.bound(duals)

    def step(self, most: FloatArray, left_s: Callable[[], float]) -> bool:
        """Maximise at one smoothing; whether a mixture of columns on the way nearly keeps the limits."""
        bound, t = self._bound, self.t * self._scale
        bound.look(_NO_WEIGHT * t, _PRICE_CHANGE)
        for _ in range(_MOST_TRIES):
            trial, fits = bound.maximise(self._duals, most, t, left_s)
            value = bound.bound(trial)
            # Where columns left out are better at the new prices than those in, the way there was wrong.
            if not bound.widen(_NO_WEIGHT * t, value):
                break
        self._duals = trial
        if value > self.best_value:
            self.best, self.best_value = trial, value
        self.t *= _FALL
        return fits


class _Bound(Protocol):
    """The bound over listed columns, as it is and with a soft minimum over some: `Smoothed` or `_Arrays`."""

    def bound(self, duals: FloatArray) -> float:
        """Lagrangian bound at these prices."""

    def look(self, reach: float, change: float) -> None:
        """Let the columns take part that matter at the prices last looked at, and those of the first call.

        Those no farther than `reach` above the best of their server, those that a relative change of prices
        of less than `change` makes best, and those that take nothing.
        """

    def widen(self, reach: float, value: float) -> bool:
        """Let those take part, too, that are no farther than `reach` at the prices last looked at.

        Whether any were missed: none where those that take part give the bound, `value`, nearly.
        """

    def maximise(
        self, duals: FloatArray, most: FloatArray, t: float, left_s: Callable[[], float]
    ) -> tuple[FloatArray, bool]:
        """Return the best prices within 0..`most` that a few projected Newton steps from `duals` reach.

        And whether a mixture of columns on the way nearly keeps the limits.
        """


def _compiled(listed: Listed) -> _Bound:
    start = np.append(listed.groups[0], len(listed.server))
    usage, limits, scale = listed.usage, listed.limits, listed.scale
    return Smoothed(start, listed.worth, usage, limits, scale, _NEWTON_STEPS, _BALANCED, _ROOM, _TINY)


class _Arrays:
    """The bound by array operations."""

    def __init__(self, listed: Listed) -> None:
        self._listed = self._few = listed
        self._always = self._part = np.zeros(len(listed.server), dtype=bool)
        self._is_first = True

    def bound(self, duals: FloatArray) -> float:
        value, self._reduced = self._listed.bound(duals)
        self._duals = duals
        return value

    def look(self, reach: float, change: float) -> None:
        listed, reduced = self._listed, self._reduced
        best = np.flatnonzero(reduced <= 0)
        best = best[np.r_[True, np.diff(listed.server[best]) != 0]]
        close = listed.distance(self._duals, reduced, best) < change
        # Columns that take nothing are the way out where the others take too much.
        self._part = close | (reduced < reach) | ~listed.usage.any(axis=1) | self._always
        if self._is_first:
            self._always, self._is_first = self._part, False
        self._few = listed.take(self._part)

    def widen(self, reach: float, value: float) -> bool:
        missed = ~self._part & (self._reduced <= reach)
        if not missed.any() or self._few.bound(self._duals)[0] - value <= _BALANCED * abs(value):
            return False
        self._part |= missed
        self._few = self._listed.take(self._part)
        return True

    def maximise(
        self, duals: FloatArray, most: FloatArray, t: float, left_s: Callable[[], float]
    ) -> tuple[FloatArray, bool]:
        few, fits = self._few, False
        first, group = few.groups
        # Worth of a column for each unit that a column takes of a row: the scale of its price.
        usual = few.scale / np.maximum(few.usage.mean(axis=0), _TINY)

        def soft(duals: FloatArray) -> tuple[float, FloatArray]:
            """Smoothed bound, and the share of each column in its server, shape (C,)."""
            charged = few.worth + few.usage @ duals
            least = np.minimum.reduceat(charged, first)
            weight = np.exp((least[group] - charged) / t)
            total = np.add.reduceat(weight, first)
            value = float((least - t * np.log(total)).sum() - duals @ few.limits)
            return value, weight / total[group]

        value, share = soft(duals)
        for _ in range(_NEWTON_STEPS):
            mean = np.add.reduceat(share[:, None] * few.usage, first, axis=0)
            slope = mean.sum(axis=0) - few.limits
            fits |= bool((slope <= _ROOM * few.limits).all())
            free = ~(((duals <= 0) & (slope < 0)) | ((duals >= most) & (slope > 0)))
            off = np.abs(slope) > _BALANCED * np.maximum(few.limits, 1.0)
            if left_s() <= 0 or not off[free].any():
                break
            curve = ((few.usage.T * share) @ few.usage - mean.T @ mean)[np.ix_(free, free)] / t
            # A row that no server hesitates about has no curvature: its price moves by `usual`.
            ridge = np.abs(slope[free]) / usual[free] + _TINY * np.diag(curve).max(initial=0.0) + _TINY**9
            step = np.zeros(len(duals))
            step[free] = np.linalg.solve(curve + np.diag(ridge), slope[free])
            length = 1.0
            while True:
                trial = np.clip(duals + length * step, 0.0, most)
                trial_value, trial_share = soft(trial)
                if trial_value >= value + 1e-4 * float(slope @ (trial - duals)):
                    break
                length *= 0.3
                if length < 1e-5:
                    return duals, fits
            duals, value, share = trial, trial_value, trial_share
        return duals, fits
