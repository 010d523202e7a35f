"""A mixed-integer linear program as arrays, and what a solver says about it.

This is the only thing a backend sees: no server, no GPU, no unit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]
    BoolArray = NDArray[np.bool_]


class Termination(StrEnum):
    """Why a solver stopped. Says nothing about whether there is a point (see `RawSolution.x`)."""

    OPTIMAL = "optimal"  # proven to the requested gap
    INFEASIBLE = "infeasible"  # proven
    UNBOUNDED = "unbounded"  # proven, or "infeasible or unbounded" for a program with a feasible point
    TIME_LIMIT = "time_limit"
    FEASIBLE = "feasible"  # a heuristic ended with a point and proves nothing
    ERROR = "error"


@dataclass(frozen=True)
class Milp:
    """Minimise ``objective @ x + offset`` over ``row_lower <= A x <= row_upper``, bounds and integrality.

    Attributes
    ----------
    objective : (n,) float
        Cost of each column, finite.
    row_start : (m + 1,) int
        ``A`` by rows: entries of row i are ``row_start[i]:row_start[i + 1]``.
    column : (nnz,) int
        Column index of each entry, 0..n-1, no column twice in a row.
    value : (nnz,) float
        Coefficient of each entry, finite.
    row_lower, row_upper : (m,) float
        ``-inf`` or ``inf`` where a row has one side only.
    column_lower, column_upper : (n,) float
    integer : (n,) bool
    offset : float
        Constant of the objective.
    column_names, row_names : tuple of str
        Empty, or one name a column / row (used when a model is written to a file).

    Raises
    ------
    ValueError
        On shapes that do not fit, indices out of range, NaN or infinite coefficients, or lower > upper.
    """

    objective: FloatArray
    row_start: IntArray
    column: IntArray
    value: FloatArray
    row_lower: FloatArray
    row_upper: FloatArray
    column_lower: FloatArray
    column_upper: FloatArray
    integer: BoolArray
    offset: float = 0.0
    column_names: tuple[str, ...] = ()
    row_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n, m = self.columns, self.rows
        for name, array, length in (
            ("row_start", self.row_start, m + 1),
            ("row_upper", self.row_upper, m),
            ("column_lower", self.column_lower, n),
            ("column_upper", self.column_upper, n),
            ("integer", self.integer, n),
            ("value", self.value, len(self.column)),
        ):
            if array.shape != (length,):
                raise ValueError(f"Milp.{name} has shape {array.shape}, expected ({length},)")
        if (
            self.row_start[0] != 0
            or self.row_start[-1] != len(self.column)
            or (np.diff(self.row_start) < 0).any()
        ):
            raise ValueError("Milp.row_start must rise from 0 to the number of entries")
        if len(self.column) and not (self.column.min() >= 0 and self.column.max() < n):
            raise ValueError("Milp.column has an index out of range")
        if not (
            np.isfinite(self.objective).all() and np.isfinite(self.value).all() and np.isfinite(self.offset)
        ):
            raise ValueError("Milp has a coefficient that is NaN or infinite")
        for what, lower, upper in (
            ("row", self.row_lower, self.row_upper),
            ("column", self.column_lower, self.column_upper),
        ):
            if np.isnan(lower).any() or np.isnan(upper).any() or (lower > upper).any():
                raise ValueError(f"Milp has a {what} whose bounds are NaN or crossed")
        for what, names, count in (("column", self.column_names, n), ("row", self.row_names, m)):
            if names and len(names) != count:
                raise ValueError(f"Milp.{what}_names has {len(names)} entries, expected 0 or {count}")

    @property
    def columns(self) -> int:
        """Number of columns."""
        return len(self.objective)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.row_lower)

    @property
    def row_of_entry(self) -> IntArray:
        """Row of each entry of the matrix, shape (nnz,)."""
        return np.repeat(np.arange(self.rows), np.diff(self.row_start))

    def row_activity(self, x: FloatArray) -> FloatArray:
        """``A x``, shape (m,)."""
        activity = np.bincount(self.row_of_entry, self.value * x[self.column], minlength=self.rows)
        return activity.astype(np.float64)

    def violation(self, x: FloatArray) -> float:
        """Largest violation of a row, a bound or integrality by x, shape (n,); 0 when feasible."""
        activity = self.row_activity(x)
        parts = (
            self.row_lower - activity,
            activity - self.row_upper,
            self.column_lower - x,
            x - self.column_upper,
            np.abs(x - np.round(x))[self.integer],
        )
        return max((float(part.max()) for part in parts if part.size), default=0.0)


@dataclass(frozen=True)
class SolveOptions:
    """How long and how exactly to solve.

    Attributes
    ----------
    time_limit_s : float
        Wall-clock seconds, > 0. May be infinite.
    relative_gap : float
        Stop when (objective - bound) / |objective| is at most this, >= 0.
    relax : bool
        Drop integrality, solve the linear program, return row duals.
    start : (n,) float or None
        A point to start from, NaN where a value is not known; a hint that a backend may ignore.
    presolve : bool
        Whether a backend may reduce a program before it solves it; a hint that it may ignore.
    seed : int
    threads : int
    """

    time_limit_s: float = np.inf
    relative_gap: float = 1e-4
    relax: bool = False
    start: FloatArray | None = None
    presolve: bool = True
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class RawSolution:
    """What a solver said.

    Attributes
    ----------
    termination : Termination
    x : (n,) float or None
        A point whose violation is within the solver's tolerances; None when there is none, whatever the
        termination.
    objective : float
        Value of `x` with the offset; NaN when `x` is None.
    bound : float
        Proven lower bound on the optimal value with the offset; -inf when nothing is proven, inf when
        infeasible.
    row_dual : (m,) float or None
        For `SolveOptions.relax` solves that ended optimal: d objective / d row bound (<= 0 for a binding
        ``<=`` row of a minimisation). None otherwise.
    reduced_cost : (n,) float or None
        As `row_dual`, for columns.
    solver, version : str
        The library that solved, for the report.
    seconds : float
    """

    termination: Termination
    x: FloatArray | None
    objective: float
    bound: float
    solver: str
    version: str
    seconds: float
    row_dual: FloatArray | None = None
    reduced_cost: FloatArray | None = None
    message: str = field(default="")


class Backend(Protocol):
    """A thin driver of one solver library; solver objects live inside one `solve` call."""

    name: str

    def solve(self, milp: Milp, options: SolveOptions) -> RawSolution:
        """Solve `milp`; never raises for infeasible, unbounded or time limit.

        Raises
        ------
        SolverError
            When the library fails or answers a status the driver does not know.
        """
        ...
