"""One program of the decomposition: a level of the objective, with the earlier ones held."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from solver.pricing import Prices
from solver.problem import NO_LIMIT
from solver.rows import Rows, factors

if TYPE_CHECKING:
    from solver.milp import BoolArray, FloatArray, IntArray
    from solver.pricing import Columns, Servers
    from solver.problem import AllocationProblem

# Relative rounding error of an unserved share.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Coupling:
    """The rows that couple servers: ``usage.T @ replicas <= limit``.

    Attributes
    ----------
    usage : (J, R) sparse
        Cards that a replica of each option takes of each row.
    limit : (R,) float
    row_type : (R,) int
        GPU type of each row.
    counts_cards : (R,) bool
        Rows where one more card of the type is one more unit: the inventory and nodes for single cards.
    """

    usage: Rows
    limit: FloatArray
    row_type: IntArray
    counts_cards: BoolArray

    @cached_property
    def tally(self) -> IntArray:
        """Number of each option, shape (J,): replicas with equal sums of these take the same of every row."""
        return self.usage.hashed(factors(len(self.limit)))

    @classmethod
    def of(cls, problem: AllocationProblem) -> Coupling:
        """Inventory rows, and node rows of each replica size: see `formulate`."""
        masks, limits, types, cards = [], [], [], []
        for t, stock in enumerate(problem.inventory.gpus.tolist()):
            mine = problem.gpu_type == t
            if not mine.any():
                continue
            if stock != NO_LIMIT:
                masks.append(mine)
                limits.append(float(stock))
                types.append(t)
                cards.append(True)
            nodes = problem.inventory.nodes[t]
            if nodes is None:
                continue
            free = np.array(nodes, dtype=np.int64)
            for size in np.unique(problem.gpus[mine]).tolist():
                masks.append(mine & (problem.gpus >= size))
                limits.append(float(size * (free // size).sum()))
                types.append(t)
                cards.append(size == 1)
        rows = np.stack(masks) if masks else np.zeros((0, len(problem.gpus)), dtype=bool)
        option, row = np.nonzero(rows.T)
        return cls(
            Rows.of(option, row, problem.gpus[option].astype(np.float64), (len(problem.gpus), len(rows))),
            np.array(limits),
            np.array(types, dtype=np.int64),
            np.array(cards, dtype=bool),
        )


@dataclass(frozen=True)
class Held:
    """An earlier level: ``unserved @ u + unmet @ (u > 0) <= limit`` with coefficients of each server."""

    unserved: FloatArray
    unmet: FloatArray
    limit: float


@dataclass(frozen=True)
class Stage:
    """One program: a level of the objective with the earlier ones held.

    Attributes
    ----------
    servers : Servers
    coupling : Coupling
    unserved, unmet : (S,) float
        Coefficients of the unserved share, and of any share unserved, in the objective.
    money : float
        Coefficient of the cost: 1 at the cost level. At the others so small that it only chooses between
        plans that serve the same; their bounds leave it out.
    held : tuple of Held
    largest_unserved : (S,) float
        Limit on each server's unserved share.
    active : (S,) bool
        Servers to decide about; the others get nothing.
    reached : tuple of float or None
        Values of the earlier levels; None where every server is served in full.
    """

    servers: Servers
    coupling: Coupling
    unserved: FloatArray
    unmet: FloatArray
    money: float
    held: tuple[Held, ...]
    largest_unserved: FloatArray
    active: BoolArray
    reached: tuple[float, ...] | None

    @cached_property
    def limits(self) -> FloatArray:
        """Limits of the coupling rows, then of the held levels, shape (R + H,)."""
        return np.concatenate([self.coupling.limit, [held.limit for held in self.held]])

    def prices(self, duals: FloatArray) -> Prices:
        """Return what replicas and unserved shares are charged at duals of `limits`."""
        rows = len(self.coupling.limit)
        unserved, unmet = self.unserved.copy(), self.unmet.copy()
        for held, dual in zip(self.held, duals[rows:], strict=True):
            unserved += dual * held.unserved
            unmet += dual * held.unmet
        replica = self.money * self.servers.replica_cost_per_h + self.coupling.usage.times(duals[:rows])
        return Prices(replica, self.money, unserved, unmet)

    def usage(self, columns: Columns) -> FloatArray:
        """Take of each column of each limit, shape (C, R + H)."""
        usage = columns.replicas.times_rows(self.coupling.usage)
        if not self.held:
            return usage
        server, short = columns.server, columns.unserved > 0
        held = [h.unserved[server] * columns.unserved + h.unmet[server] * short for h in self.held]
        return np.column_stack([usage, *held])

    def worth(self, columns: Columns) -> FloatArray:
        """Objective of each column, shape (C,)."""
        return columns.value(self.prices(np.zeros(len(self.limits))))

    def service(self, columns: Columns) -> FloatArray:
        """Objective of each column without money, shape (C,)."""
        server = columns.server
        result: FloatArray = self.unserved[server] * columns.unserved + self.unmet[server] * (
            columns.unserved > 0
        )
        return result

    def allowed(self, columns: Columns) -> Columns:
        """Return the columns that a plan of this stage may have."""
        server = columns.server
        return columns.take(
            self.active[server] & (columns.unserved <= self.largest_unserved[server] + _ROUNDING)
        )
