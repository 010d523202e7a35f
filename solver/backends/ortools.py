"""OR-Tools through MathOpt: SCIP for integer programs, GLOP for relaxations.

Not CP-SAT: it rounds continuous columns to multiples of a step and scales coefficients to integers, so its
bound is that of a nearby program. SCIP is a branch and cut on the program itself.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import ortools
from ortools.math_opt import model_pb2
from ortools.math_opt.python import mathopt

from solver.backends.common import ABSOLUTE_GAP, Outcome, solve
from solver.errors import SolverError
from solver.milp import Termination

if TYPE_CHECKING:
    from solver.milp import Milp, RawSolution, SolveOptions

# https://github.com/google/or-tools/blob/stable/ortools/math_opt/result.proto (TerminationReasonProto)
TERMINATION = {
    mathopt.TerminationReason.OPTIMAL: Termination.OPTIMAL,
    mathopt.TerminationReason.INFEASIBLE: Termination.INFEASIBLE,
    mathopt.TerminationReason.UNBOUNDED: Termination.UNBOUNDED,
    mathopt.TerminationReason.INFEASIBLE_OR_UNBOUNDED: Termination.UNBOUNDED,
    mathopt.TerminationReason.FEASIBLE: Termination.TIME_LIMIT,
    mathopt.TerminationReason.NO_SOLUTION_FOUND: Termination.TIME_LIMIT,
    mathopt.TerminationReason.IMPRECISE: Termination.ERROR,
    mathopt.TerminationReason.NUMERICAL_ERROR: Termination.ERROR,
}


class OrTools:
    """SCIP on one thread (this build has no parallel search); takes a start and a seed."""

    name = "ortools"

    def solve(self, milp: Milp, options: SolveOptions) -> RawSolution:
        """Solve `milp`; see :class:`solver.milp.Backend`."""
        solver = "GLOP (OR-Tools)" if options.relax else "SCIP (OR-Tools)"
        return solve(milp, options, _drive, solver=solver, version=ortools.__version__)


def _drive(milp: Milp, options: SolveOptions) -> Outcome:
    """Run MathOpt once."""
    model = mathopt.Model.from_model_proto(_proto(milp, options.relax))
    columns, rows = list(model.variables()), list(model.linear_constraints())
    limited = np.isfinite(options.time_limit_s)
    parameters = mathopt.SolveParameters(
        time_limit=timedelta(seconds=options.time_limit_s) if limited else None,
        relative_gap_tolerance=options.relative_gap,
        absolute_gap_tolerance=ABSOLUTE_GAP,
        threads=1,
        random_seed=options.seed,
    )
    # SCIP counts processor seconds by default, which pass slowly on a busy machine; 2 = wall clock.
    parameters.gscip.int_params["timing/clocktype"] = 2
    hints = []
    if options.start is not None and not options.relax:
        known = np.flatnonzero(~np.isnan(options.start)).tolist()
        hints = [mathopt.SolutionHint(variable_values={columns[j]: float(options.start[j]) for j in known})]
    solver = mathopt.SolverType.GLOP if options.relax else mathopt.SolverType.GSCIP
    model_parameters = mathopt.ModelSolveParameters(solution_hints=hints)
    try:
        result = mathopt.solve(model, solver, params=parameters, model_params=model_parameters)
    except Exception as error:  # The binding's own error type is not public, and 9.15 fails to wrap it.
        return Outcome(Termination.ERROR, message=str(error.__context__ or error))
    ended = result.termination
    if ended.reason not in TERMINATION or ended.limit not in (None, mathopt.Limit.TIME):
        raise SolverError(f"OR-Tools answered {ended.reason}, {ended.limit}: {ended.detail}")
    with_duals = options.relax and result.has_dual_feasible_solution()
    return Outcome(
        termination=TERMINATION[ended.reason],
        x=np.array(result.variable_values(columns)) if result.has_primal_feasible_solution() else None,
        bound=result.dual_bound(),
        row_dual=np.array(result.dual_values(rows)) if with_duals else None,
        reduced_cost=np.array(result.reduced_costs(columns)) if with_duals else None,
        message=f"{ended.reason.name} {ended.detail}".strip(),
    )


def _proto(milp: Milp, relax: bool) -> model_pb2.ModelProto:
    """Build the model in bulk: adding columns and entries one by one takes four times as long."""
    proto = model_pb2.ModelProto()
    proto.objective.offset = milp.offset
    cost = np.flatnonzero(milp.objective)
    proto.objective.linear_coefficients.ids.extend(cost.tolist())
    proto.objective.linear_coefficients.values.extend(milp.objective[cost].tolist())

    proto.variables.ids.extend(range(milp.columns))
    proto.variables.lower_bounds.extend(milp.column_lower.tolist())
    proto.variables.upper_bounds.extend(milp.column_upper.tolist())
    proto.variables.integers.extend((milp.integer & (not relax)).tolist())

    proto.linear_constraints.ids.extend(range(milp.rows))
    proto.linear_constraints.lower_bounds.extend(milp.row_lower.tolist())
    proto.linear_constraints.upper_bounds.extend(milp.row_upper.tolist())

    row = milp.row_of_entry
    order = np.lexsort((milp.column, row))  # MathOpt wants each row sorted by column
    order = order[milp.value[order] != 0]
    proto.linear_constraint_matrix.row_ids.extend(row[order].tolist())
    proto.linear_constraint_matrix.column_ids.extend(milp.column[order].tolist())
    proto.linear_constraint_matrix.coefficients.extend(milp.value[order].tolist())
    return proto
