"""Pyomo: a generic model, solved by HiGHS, CBC or GLPK, or written to a file."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from functools import partial
from math import ceil
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyomo.environ as pe
from pyomo.core.expr.numeric_expr import LinearExpression
from pyomo.opt import SolverStatus, TerminationCondition

from solver.backends.common import ABSOLUTE_GAP, INTEGRALITY, Outcome, solve
from solver.backends.highs import free_threads
from solver.errors import InputError, Problem, SolverError
from solver.milp import Termination

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from solver.milp import Milp, RawSolution, SolveOptions

# https://pyomo.readthedocs.io/en/stable/api/pyomo.opt.results.solver.TerminationCondition.html
TERMINATION = {
    TerminationCondition.optimal: Termination.OPTIMAL,
    TerminationCondition.infeasible: Termination.INFEASIBLE,
    TerminationCondition.unbounded: Termination.UNBOUNDED,
    TerminationCondition.infeasibleOrUnbounded: Termination.UNBOUNDED,
    TerminationCondition.maxTimeLimit: Termination.TIME_LIMIT,
    TerminationCondition.intermediateNonInteger: Termination.TIME_LIMIT,  # CBC, without a point
    TerminationCondition.feasible: Termination.TIME_LIMIT,  # GLPK, with a point
    TerminationCondition.other: Termination.ERROR,  # GLPK, solution undefined
}
WITH_POINT = (TerminationCondition.optimal, TerminationCondition.maxTimeLimit, TerminationCondition.feasible)

# CBC prints its bound with six significant digits.
CBC_ROUNDING = 5e-6


class Pyomo:
    """A Pyomo model, solved by ``highs``, ``cbc`` or ``glpk``; none takes the start."""

    def __init__(self, solver: str = "highs") -> None:
        self.name = f"pyomo:{solver}"
        self.solver = solver

    def solve(self, milp: Milp, options: SolveOptions) -> RawSolution:
        """Solve `milp`; see :class:`solver.milp.Backend`."""
        version = ".".join(str(part) for part in pe.SolverFactory(self.solver).version()[:3])
        return solve(
            milp, options, partial(_drive, self.solver), solver=f"{self.solver} (Pyomo)", version=version
        )


def write_model(milp: Milp, path: Path) -> None:
    """Write `milp` to an LP or MPS file, by the suffix of `path`.

    Names keep their letters, digits and ``_``; other characters become ``_``, so does an empty name, and a
    repeated name gets a number. Columns become ``x(name)``, the sides of rows ``lower(name)``,
    ``upper(name)``, ``equal(name)``. Rows without coefficients are left out.

    Raises
    ------
    InputError
        When the suffix is neither ``.lp`` nor ``.mps``.
    """
    if path.suffix not in (".lp", ".mps"):
        raise InputError([Problem("--write-model", f'"{path}"', "a file name that ends in .lp or .mps")])
    columns = _labels(milp.column_names or [f"c{j}" for j in range(milp.columns)])
    rows = _labels(milp.row_names or [f"r{i}" for i in range(milp.rows)])
    _model(milp, columns, rows).write(str(path), io_options={"symbolic_solver_labels": True})


def _drive(solver: str, milp: Milp, options: SolveOptions) -> Outcome:
    """Run a solver of Pyomo once."""
    milp = replace(milp, integer=milp.integer & (not options.relax))
    is_mip = bool(milp.integer.any())
    model = _model(milp, range(milp.columns), range(milp.rows))
    if options.relax:
        model.dual = pe.Suffix(direction=pe.Suffix.IMPORT)
    time_limit_s = options.time_limit_s if np.isfinite(options.time_limit_s) else None
    if solver == "glpk" and time_limit_s is not None:
        time_limit_s = ceil(time_limit_s)  # GLPK takes whole seconds.
    if solver == "highs":
        free_threads()
    started_s = perf_counter()
    try:
        results = pe.SolverFactory(solver).solve(
            model, load_solutions=False, timelimit=time_limit_s, options=_solver_options(solver, options)
        )
    except subprocess.TimeoutExpired:
        return Outcome(Termination.TIME_LIMIT, message="ended by Pyomo after its time limit")
    except Exception as error:  # Pyomo raises whatever reading an unforeseen output ends in.
        raise SolverError(f"Pyomo with {solver} failed: {error}") from error

    condition = results.solver.termination_condition
    if condition not in TERMINATION:
        raise SolverError(f"Pyomo with {solver} answered {condition}, which its driver does not know")
    termination = TERMINATION[condition]
    if solver == "cbc" and termination is Termination.INFEASIBLE:
        termination = Termination.UNBOUNDED  # CBC's presolve does not tell the two apart.
    if solver == "glpk" and not is_mip and time_limit_s and perf_counter() - started_s >= time_limit_s:
        # Pyomo calls any feasible basis of GLPK's simplex optimal, also where the time limit stopped it.
        termination = Termination.TIME_LIMIT

    x = None
    # A linear program that was stopped has a basis, which need not be feasible.
    may_have_point = is_mip or termination is Termination.OPTIMAL
    if may_have_point and condition in WITH_POINT and len(results.solution):
        results.solver.status = SolverStatus.ok  # Pyomo warns about loading a point of a stopped search.
        model.solutions.load_from(results)
        x = np.array([_value(variable) for variable in model.x.values()])
    bound = -np.inf
    if may_have_point and results.problem.lower_bound is not None:
        bound = float(results.problem.lower_bound)
    if solver == "cbc":
        bound -= CBC_ROUNDING * abs(bound)
    if solver == "cbc" and x is not None:
        # A rounded bound can contradict the point, and what CBC calls optimal is within the gap.
        objective = float(milp.objective @ x) + milp.offset
        proven_gap = options.relative_gap * abs(objective) if is_mip else 0.0
        bound = min(bound, objective)
        if termination is Termination.OPTIMAL:
            bound = max(bound, objective - proven_gap)
    outcome = Outcome(termination, x, bound, message=str(condition))
    return _with_duals(outcome, milp, model) if options.relax and x is not None else outcome


def _with_duals(outcome: Outcome, milp: Milp, model: pe.ConcreteModel) -> Outcome:
    """Add up the duals of a row's sides; the reduced costs follow from them."""
    row_dual = np.zeros(milp.rows)
    for side in (model.equal, model.lower, model.upper):
        for row, constraint in side.items():
            row_dual[row] += model.dual[constraint]
    priced = np.bincount(milp.column, milp.value * row_dual[milp.row_of_entry], minlength=milp.columns)
    return replace(outcome, row_dual=row_dual, reduced_cost=milp.objective - priced)


def _solver_options(solver: str, options: SolveOptions) -> dict[str, Any]:
    """The options in the solver's own words, apart from the time limit."""
    gap = options.relative_gap
    if solver == "highs":
        return {
            "threads": options.threads,
            "random_seed": options.seed,
            "mip_rel_gap": gap,
            "mip_abs_gap": ABSOLUTE_GAP,
        }
    if solver == "cbc":
        return {
            "randomSeed": options.seed + 1,  # 0 would be the time of day.
            "randomCbcSeed": options.seed + 1,
            # CBC's gap is relative to the larger of objective and bound, ours to the objective.
            "ratioGap": gap / (1.0 + gap),
            "allowableGap": ABSOLUTE_GAP,
            "threads": 0 if options.threads == 1 else 100 + options.threads,  # 100 + n search repeatably.
        }
    # GLPK proves optimality whatever the gap: Pyomo cannot tell its gap from its time limit. Its LP presolve
    # would not say which of infeasible and unbounded it found.
    return {"seed": options.seed} | ({"nopresol": None} if options.relax else {})


def _model(milp: Milp, columns: Iterable[Any], rows: Iterable[Any]) -> pe.ConcreteModel:
    """Build `milp` with these indices; a row is ``equal``, or ``lower`` and ``upper`` where it has a side."""
    model = pe.ConcreteModel(name="fleetopt")
    model.x = pe.Var(list(columns))
    x = list(model.x.values())
    for j, variable in enumerate(x):
        lower, upper = milp.column_lower[j], milp.column_upper[j]
        if milp.integer[j]:
            # GLPK refuses fractional bounds of integer columns.
            variable.domain = pe.Integers
            lower, upper = np.ceil(lower - INTEGRALITY), np.floor(upper + INTEGRALITY)
        variable.setlb(lower if np.isfinite(lower) else None)
        variable.setub(upper if np.isfinite(upper) else None)
    model.cost = pe.Objective(
        expr=LinearExpression(constant=milp.offset, linear_coefs=milp.objective.tolist(), linear_vars=x)
    )
    sides: dict[str, dict[Any, Any]] = {"equal": {}, "lower": {}, "upper": {}}
    for i, row in enumerate(rows):
        entries = slice(milp.row_start[i], milp.row_start[i + 1])
        terms = [(v, x[j]) for v, j in zip(milp.value[entries], milp.column[entries], strict=True) if v != 0]
        if not terms:
            continue  # Pyomo does not take a row without variables; it excludes nothing here.
        body = LinearExpression(linear_coefs=[float(v) for v, _ in terms], linear_vars=[c for _, c in terms])
        lower, upper = float(milp.row_lower[i]), float(milp.row_upper[i])
        if lower == upper:
            sides["equal"][row] = body == lower
            continue
        if np.isfinite(lower):
            sides["lower"][row] = body >= lower
        if np.isfinite(upper):
            sides["upper"][row] = body <= upper
    for side, expressions in sides.items():
        model.add_component(
            side, pe.Constraint(list(expressions), rule=lambda _, row, of=expressions: of[row])
        )
    return model


def _value(variable: Any) -> float:
    """The value of a column; one that nothing refers to gets no value from Pyomo and takes that nearest 0."""
    if variable.value is not None:
        return float(variable.value)
    lower, upper = variable.bounds
    return float(np.clip(0.0, -np.inf if lower is None else lower, np.inf if upper is None else upper))


def _labels(names: Sequence[str]) -> list[str]:
    """The names with ``_`` for what a file format would not take, each once."""
    labels: dict[str, None] = {}
    for name in names:
        plain = label = re.sub(r"\W", "_", name, flags=re.ASCII) or "_"
        number = 1
        while label in labels:
            number += 1
            label = f"{plain}_{number}"
        labels[label] = None
    return list(labels)
