"""The states below N of batch servers: their weights, added up for many servers at once.

Compiled (`models.chain`), a weight is the product of the one before it and a factor, which comes from a table
or from a line. Where that is not there, array operations take the exponential of its logarithm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

try:
    from models.chain import IS_COMPILED, line_log_products, line_sums, log_products, sums
except ModuleNotFoundError:
    # Not compiled, and no Cython to run it without.
    IS_COMPILED = False

if TYPE_CHECKING:
    from models.laws import FloatArray, IntArray

# Weights below exp() of this times the anchor are as good as none.
LOWEST_EXPONENT = -700.0
ANCHOR_STRIDE = 64


def is_compiled() -> bool:
    """Whether `Lines` are there."""
    return IS_COMPILED


def block_of(rows: IntArray, ratio: FloatArray, states: IntArray) -> tuple[Block, FloatArray]:
    """Prepare servers of a similar N.

    Parameters
    ----------
    rows : (m,) int
        Which servers of the queue these are.
    ratio : (m, W) float
        mu(N) / mu(n) for n = 1..W. Overwritten.
    states : (m,) int
        N - 1, the columns that count.

    Returns
    -------
    Block
    (m,) float
        log(p(N - 1) / p(0)) at lambda = mu(N).
    """
    return (Carried if IS_COMPILED else Exponentials).of(rows, ratio, states)


@dataclass(frozen=True)
class Block:
    """The states 1..N-1 of servers with a similar N.

    Attributes
    ----------
    rows : (m,) int
        Which servers of the queue these are.
    members : (m,) int
        Their rows in the tables, which are not copied when servers drop out.
    """

    rows: IntArray
    members: IntArray

    def take(self, rows: IntArray, kept: IntArray) -> Self:
        """Return these servers only, which are now `rows` of the queue."""
        return replace(self, rows=rows, members=self.members[kept])

    def first(self, count: int) -> Self:
        """Return the same servers without the states from `count` + 1 on, at most `ANCHOR_STRIDE`."""
        raise NotImplementedError

    def sums(self, log_load: FloatArray, log_floor: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Sum up the weights p(n) / p(0), n = 1..N-1.

        Parameters
        ----------
        log_load : (m,) float
            log(lambda / mu(N)).
        log_floor : (m,) float
            Logarithm of the largest weight outside the block; the anchor is at least that.

        Returns
        -------
        anchor : (m,) float
            A logarithm that divides the weights so that nothing overflows.
        sums : (2, m) float
            The sum of the weights and the sum of n x weight, both divided by exp(anchor).
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Carried(Block):
    """Weights as products.

    Attributes
    ----------
    ratio : (M, W) float
        mu(N) / mu(n) for n = 1..W.
    states : (M,) int
        N - 1.
    """

    ratio: FloatArray
    states: IntArray

    @classmethod
    def of(cls, rows: IntArray, ratio: FloatArray, states: IntArray) -> tuple[Self, FloatArray]:
        """As `block_of`."""
        return cls(rows, np.arange(len(rows)), ratio, states), log_products(ratio, states)

    def first(self, count: int) -> Self:
        """See `Block`."""
        return replace(self, states=np.minimum(self.states, count))

    def sums(self, log_load: FloatArray, log_floor: FloatArray) -> tuple[FloatArray, FloatArray]:
        """See `Block`."""
        return sums(self.ratio, self.members, self.states, log_load, log_floor)


@dataclass(frozen=True)
class Lines(Block):
    """Weights as products of factors that need no table; compiled only.

    Attributes
    ----------
    base, slope : (M,) float
        mu(N) / mu(n) = base / n + slope.
    states : (M,) int
        N - 1.
    """

    base: FloatArray
    slope: FloatArray
    states: IntArray

    @classmethod
    def of(
        cls, rows: IntArray, base: FloatArray, slope: FloatArray, states: IntArray
    ) -> tuple[Self, FloatArray]:
        """As `block_of`."""
        block = cls(rows, np.arange(len(rows)), base, slope, states)
        return block, line_log_products(base, slope, states)

    def first(self, count: int) -> Self:
        """See `Block`."""
        return replace(self, states=np.minimum(self.states, count))

    def sums(self, log_load: FloatArray, log_floor: FloatArray) -> tuple[FloatArray, FloatArray]:
        """See `Block`."""
        return line_sums(self.base, self.slope, self.members, self.states, log_load, log_floor)


@dataclass(frozen=True)
class Exponentials(Block):
    """Weights as exponentials.

    Attributes
    ----------
    log_weight : (M, W) float
        log(p(n) / p(0)) at lambda = mu(N) for n = 1..W; -inf from n = N on.
    sparse : (M, ceil(W / ANCHOR_STRIDE)) float
        Every `ANCHOR_STRIDE`-th column of `log_weight`, side by side in memory.
    basis : (2, W) float
        1 and n for each column.
    filled : int
        So many of the first columns are finite in every row.
    """

    log_weight: FloatArray
    sparse: FloatArray
    basis: FloatArray
    filled: int

    @classmethod
    def of(cls, rows: IntArray, ratio: FloatArray, states: IntArray) -> tuple[Self, FloatArray]:
        """As `block_of`."""
        count = np.arange(1.0, ratio.shape[1] + 1.0)
        np.log(ratio, out=ratio)
        log_weight = np.cumsum(ratio, axis=1, out=ratio)
        log_full = np.where(states > 0, log_weight[np.arange(len(rows)), states - 1], 0.0)
        filled = int(states.min())
        log_weight[:, filled:][count[filled:] > states[:, np.newaxis]] = -np.inf
        sparse = np.ascontiguousarray(log_weight[:, ::ANCHOR_STRIDE])
        basis = np.array((np.ones_like(count), count))
        return cls(rows, np.arange(len(rows)), log_weight, sparse, basis, filled), log_full

    def first(self, count: int) -> Self:
        """See `Block`."""
        return replace(
            self,
            log_weight=self.log_weight[:, :count],
            sparse=self.sparse[:, :1],
            basis=self.basis[:, :count],
            filled=min(self.filled, count),
        )

    def sums(self, log_load: FloatArray, log_floor: FloatArray) -> tuple[FloatArray, FloatArray]:
        """See `Block`; the anchor is the logarithm of about the largest weight."""
        count = self.basis[1]
        # From one state to the next a weight changes by lambda / mu(n), far too little for the largest one to
        # hide from exp()'s range between the states looked at here.
        sparse = log_load[:, np.newaxis] * count[::ANCHOR_STRIDE]
        sparse += self.sparse[self.members]
        anchor = np.maximum(sparse.max(axis=1), log_floor)
        weight = np.array((-anchor, log_load)).T @ self.basis
        weight += self.log_weight[self.members]
        # exp() is slow where it underflows: beyond N, and at the far end of a large batch.
        least = min(weight[:, 0].min(), weight[:, self.filled - 1].min())
        low = weight[:, 0 if least < LOWEST_EXPONENT else self.filled :]
        np.maximum(low, LOWEST_EXPONENT, out=low)
        np.exp(weight, out=weight)
        return anchor, self.basis @ weight.T
