"""HiGHS through highspy: the default backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import highspy
import numpy as np
from highspy import HighsModelStatus, HighsStatus

from solver.backends.common import ABSOLUTE_GAP, Outcome, solve
from solver.errors import SolverError
from solver.milp import Termination

if TYPE_CHECKING:
    from solver.milp import Milp, RawSolution, SolveOptions

# https://ergo-code.github.io/HiGHS/stable/structures/enums/#HighsModelStatus
TERMINATION = {
    HighsModelStatus.kOptimal: Termination.OPTIMAL,
    HighsModelStatus.kInfeasible: Termination.INFEASIBLE,
    HighsModelStatus.kUnbounded: Termination.UNBOUNDED,
    HighsModelStatus.kUnboundedOrInfeasible: Termination.UNBOUNDED,
    HighsModelStatus.kTimeLimit: Termination.TIME_LIMIT,
    HighsModelStatus.kUnknown: Termination.ERROR,  # the tolerances were not reached
}


# Integer programs of more columns go without presolve, which does not look at the clock: one of 170,000
# columns was in it for 30 s of a limit of 3 and is solved in 2.4 s without, one of 59,000 for 6 s of 2.
_MOST_PRESOLVED = 30_000

# Relaxations with more columns than so many times their rows go without, too: it takes half of their time.
_WIDE = 2.75


class Highs:
    """Branch and cut, and simplex for relaxations. Takes a start, a seed and a number of threads."""

    name = "highs"

    def solve(self, milp: Milp, options: SolveOptions) -> RawSolution:
        """Solve `milp`; see :class:`solver.milp.Backend`."""
        version = f"{highspy.HIGHS_VERSION_MAJOR}.{highspy.HIGHS_VERSION_MINOR}.{highspy.HIGHS_VERSION_PATCH}"
        return solve(milp, options, _drive, solver="HiGHS", version=version)


def free_threads() -> None:
    """Let the next HiGHS solve of the calling thread choose its number of threads.

    HiGHS keeps one pool of workers for each calling thread, sized by the first solve, and fails a later solve
    that asks for another size. Pools of other threads are not touched.
    """
    highspy.Highs.resetGlobalScheduler(True)


def _drive(milp: Milp, options: SolveOptions) -> Outcome:
    """Run HiGHS once."""
    is_mip = bool(milp.integer.any()) and not options.relax
    presolved = milp.columns <= (_MOST_PRESOLVED if is_mip else _WIDE * milp.rows)
    presolved &= options.presolve
    # A new object each time: HiGHS counts its time limit over all runs of one object.
    highs = highspy.Highs()
    for option, value in (
        ("output_flag", False),
        ("threads", options.threads),
        ("random_seed", options.seed),
        ("time_limit", options.time_limit_s),
        ("mip_rel_gap", options.relative_gap),
        ("mip_abs_gap", ABSOLUTE_GAP),
        # Where a start is given, looking for a first point costs a third to half of a small solve.
        ("mip_heuristic_run_feasibility_jump", options.start is None),
        # Restarts throw away the cuts that prove hard fleets: some of 100 to 300 servers take twice as long.
        ("mip_allow_restart", False),
        ("presolve", "choose" if presolved else "off"),
    ):
        _must(highs.setOptionValue(option, value), f"set {option} = {value}")
    _must(_pass(highs, milp, is_mip), "take the program")
    if is_mip and options.start is not None:
        # HiGHS completes a start with unknown values, and refuses one with a value outside its bounds.
        known = np.flatnonzero(~np.isnan(options.start)).astype(np.int32)
        start = np.clip(options.start, milp.column_lower, milp.column_upper)[known]
        _must(highs.setSolution(len(known), known, start), "take the start")
    free_threads()
    _must(highs.run(), "solve")

    status = highs.getModelStatus()
    if status not in TERMINATION:
        raise SolverError(f"HiGHS answered {status.name}, which its driver does not know")
    info, solution = highs.getInfo(), highs.getSolution()
    feasible = info.primal_solution_status == int(highspy.SolutionStatus.kSolutionStatusFeasible)
    bound = -np.inf
    if is_mip:
        bound = info.mip_dual_bound
    elif status == HighsModelStatus.kOptimal:
        bound = info.objective_function_value
    return Outcome(
        termination=TERMINATION[status],
        x=np.array(solution.col_value) if feasible else None,
        bound=bound,
        row_dual=np.array(solution.row_dual),
        reduced_cost=np.array(solution.col_dual),
        message=status.name,
    )


def _pass(highs: highspy.Highs, milp: Milp, is_mip: bool) -> HighsStatus:
    """Hand over the program as arrays; the fields of a `HighsLp` are copied number by number."""
    kind = np.zeros(milp.columns, dtype=np.int32)
    if is_mip:
        kind[milp.integer] = int(highspy.HighsVarType.kInteger)
    return highs.passModel(
        milp.columns,
        milp.rows,
        len(milp.value),
        int(highspy.MatrixFormat.kRowwise),
        int(highspy.ObjSense.kMinimize),
        milp.offset,
        milp.objective,
        milp.column_lower,
        milp.column_upper,
        milp.row_lower,
        milp.row_upper,
        milp.row_start,
        milp.column,
        milp.value,
        kind,
    )


def _must(status: HighsStatus, what: str) -> None:
    if status == HighsStatus.kError:
        raise SolverError(f"HiGHS failed to {what}")
