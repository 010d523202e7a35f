"""What all drivers share: a driver translates, this module keeps the contract of `RawSolution`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from solver.errors import SolverError
from solver.milp import RawSolution, Termination

if TYPE_CHECKING:
    from collections.abc import Callable

    from solver.milp import FloatArray, Milp, SolveOptions

# Small enough that the relative gap decides, large enough that the rounding of an objective near 0 does not
# keep a search alive.
ABSOLUTE_GAP = 1e-9

# How far from an integer an integer column may end, as in the libraries.
INTEGRALITY = 1e-6

# A bound above the objective of the point by more than this (relative; absolute below 1) is a contradiction,
# by less it is rounding.
CONTRADICTION = 1e-6


@dataclass(frozen=True)
class Outcome:
    """What a library said, translated and not yet judged.

    Attributes
    ----------
    termination : Termination
        `Termination.UNBOUNDED` also stands for "infeasible or unbounded": libraries differ in what they have
        proven when they say so, hence `solve` finds out. `Termination.ERROR` stands for any failure that the
        library reports by itself.
    x : (n,) float or None
    bound : float
        The library's proven lower bound with the offset; -inf when it has none.
    row_dual, reduced_cost : array or None
        Of a relaxation.
    message : str
        The library's own word.
    """

    termination: Termination
    x: FloatArray | None = None
    bound: float = -np.inf
    row_dual: FloatArray | None = None
    reduced_cost: FloatArray | None = None
    message: str = ""


def solve(
    milp: Milp,
    options: SolveOptions,
    drive: Callable[[Milp, SolveOptions], Outcome],
    *,
    solver: str,
    version: str,
) -> RawSolution:
    """Drive one library and answer in the terms of `RawSolution`.

    Parameters
    ----------
    milp, options
        The program, and how long and how exactly to solve it.
    drive : function
        One run of the library; gets programs with at least one column.
    solver, version : str
        Who solved, for the report.

    Raises
    ------
    SolverError
        When `drive` raises it, when the library failed without a point, or when its bound contradicts its
        point.
    """
    started_s = perf_counter()

    def left() -> SolveOptions:
        return replace(options, time_limit_s=options.time_limit_s - (perf_counter() - started_s), start=None)

    outcome = _without_a_solver(milp, options) or drive(milp, options)
    if outcome.termination is Termination.ERROR and outcome.x is None:
        outcome = _after_failure(milp, left(), drive, outcome, solver)
    if outcome.termination is Termination.UNBOUNDED:
        outcome = _infeasible_or_unbounded(milp, left(), drive)

    x, bound = outcome.x, outcome.bound
    objective = np.nan if x is None else float(milp.objective @ x) + milp.offset
    if outcome.termination is Termination.INFEASIBLE:
        bound = np.inf
    elif bound > objective + CONTRADICTION * max(1.0, abs(objective)):
        raise SolverError(
            f"{solver} {version}: bound {bound} is above the objective {objective} of its point"
        )
    elif bound > objective:
        bound = objective
    has_dual = options.relax and outcome.termination is Termination.OPTIMAL
    return RawSolution(
        termination=outcome.termination,
        x=x,
        objective=objective,
        bound=bound,
        row_dual=outcome.row_dual if has_dual else None,
        reduced_cost=outcome.reduced_cost if has_dual else None,
        solver=solver,
        version=version,
        seconds=perf_counter() - started_s,
        message=outcome.message,
    )


def _without_a_solver(milp: Milp, options: SolveOptions) -> Outcome | None:
    """The outcome where no library is needed, because few of them take such programs.

    A row without coefficients decides by itself, so does an integer column without an integer between its
    bounds, and a program without columns has one point.
    """
    empty = np.bincount(milp.row_of_entry[milp.value != 0], minlength=milp.rows) == 0
    if (empty & ((milp.row_lower > 0) | (milp.row_upper < 0))).any():
        return Outcome(Termination.INFEASIBLE, message="a row without coefficients excludes 0")
    no_integer = np.ceil(milp.column_lower - INTEGRALITY) > np.floor(milp.column_upper + INTEGRALITY)
    if not options.relax and (milp.integer & no_integer).any():
        return Outcome(Termination.INFEASIBLE, message="no integer between the bounds of a column")
    if milp.columns == 0:
        nothing = np.zeros(0)
        return Outcome(Termination.OPTIMAL, nothing, milp.offset, np.zeros(milp.rows), nothing, "no columns")
    return None


def _after_failure(
    milp: Milp,
    options: SolveOptions,
    drive: Callable[[Milp, SolveOptions], Outcome],
    failure: Outcome,
    solver: str,
) -> Outcome:
    """Some libraries fail on an unbounded integer program; its relaxation is unbounded as well."""
    if not options.relax and options.time_limit_s > 0:
        relaxation = drive(milp, replace(options, relax=True))
        if relaxation.termination is Termination.UNBOUNDED:
            return relaxation
    raise SolverError(f"{solver} failed: {failure.message}")


def _infeasible_or_unbounded(
    milp: Milp, options: SolveOptions, drive: Callable[[Milp, SolveOptions], Outcome]
) -> Outcome:
    """Tell the two apart: without its objective the program has a point, or is infeasible."""
    if options.time_limit_s <= 0:
        return Outcome(Termination.TIME_LIMIT, message="infeasible or unbounded")
    outcome = drive(replace(milp, objective=np.zeros(milp.columns), offset=0.0), options)
    if outcome.termination is Termination.OPTIMAL:
        return Outcome(Termination.UNBOUNDED, outcome.x, message="unbounded, with a feasible point")
    if outcome.termination is Termination.UNBOUNDED:  # A program without objective is not unbounded.
        return Outcome(Termination.INFEASIBLE, message=outcome.message)
    return replace(outcome, bound=-np.inf)
