"""What `solver.milp` promises, asked of every backend."""

from dataclasses import replace

import highspy
import numpy as np
import pytest
from backends.programs import INF, enumerated_optimum, knapsack, market_split, planted_split, program
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.backends import get, highs, listing
from solver.milp import Backend, Milp, RawSolution, SolveOptions, Termination

EXACT = SolveOptions(relative_gap=0.0, time_limit_s=30.0)
RELAX = replace(EXACT, relax=True)
TOLERANCE = 1e-6


def assert_consistent(milp: Milp, solution: RawSolution, *, relaxed: bool = False) -> None:
    """What holds for every answer."""
    assert solution.bound <= solution.objective or np.isnan(solution.objective)
    if solution.x is None:
        assert np.isnan(solution.objective)
    else:
        rules = replace(milp, integer=np.zeros_like(milp.integer)) if relaxed else milp
        assert rules.violation(solution.x) <= TOLERANCE
        assert solution.objective == pytest.approx(milp.objective @ solution.x + milp.offset)
    assert solution.solver
    assert solution.version


def assert_optimal(
    backend: Backend, milp: Milp, expected: float, options: SolveOptions = EXACT
) -> RawSolution:
    solution = backend.solve(milp, options)
    assert_consistent(milp, solution, relaxed=options.relax)
    assert solution.termination is Termination.OPTIMAL
    assert solution.objective == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert solution.bound == pytest.approx(expected, rel=1e-6, abs=1e-6)
    return solution


def assert_infeasible(backend: Backend, milp: Milp, options: SolveOptions = EXACT) -> None:
    solution = backend.solve(milp, options)
    assert solution.termination is Termination.INFEASIBLE
    assert solution.x is None
    assert np.isnan(solution.objective)
    assert solution.bound == INF


# The textbook program: its relaxation is optimal at (3, 1.5) with 21, its integer points at (4, 0) with 20.
TEXTBOOK = program([-5.0, -4.0], [({0: 6.0, 1: 4.0}, -INF, 24.0), ({0: 1.0, 1: 2.0}, -INF, 6.0)])


def test_integer_program_and_its_relaxation(backend: Backend) -> None:
    solution = assert_optimal(backend, TEXTBOOK, -20.0)
    assert solution.x is not None
    assert solution.x == pytest.approx([4.0, 0.0])
    assert solution.row_dual is None
    assert solution.reduced_cost is None
    relaxation = assert_optimal(backend, TEXTBOOK, -21.0, RELAX)
    assert relaxation.row_dual == pytest.approx([-0.75, -0.5])
    assert relaxation.reduced_cost == pytest.approx([0.0, 0.0], abs=1e-7)


def test_the_largest_programs_go_without_presolve(monkeypatch: pytest.MonkeyPatch) -> None:
    presolve = []
    set_option = highspy.Highs.setOptionValue

    def recorded(self: highspy.Highs, option: str, value: object) -> object:
        if option == "presolve":
            presolve.append(value)
        return set_option(self, option, value)

    monkeypatch.setattr(highspy.Highs, "setOptionValue", recorded)
    milp = TEXTBOOK
    answers = [get("highs").solve(milp, EXACT)]
    monkeypatch.setattr(highs, "_MOST_PRESOLVED", milp.columns - 1)
    answers += [get("highs").solve(milp, EXACT), get("highs").solve(milp, RELAX)]
    assert presolve == ["choose", "off", "choose"]
    assert answers[0].objective == pytest.approx(answers[1].objective)


def test_offset_counts_in_objective_and_bound(backend: Backend) -> None:
    assert_optimal(backend, replace(TEXTBOOK, offset=100.0), 80.0)
    assert_optimal(backend, replace(TEXTBOOK, offset=100.0), 79.0, RELAX)


def test_equality_rows(backend: Backend) -> None:
    assert_optimal(backend, program([1.0, 1.0], [({0: 2.0, 1: 3.0}, 12.0, 12.0)], upper=10.0), 4.0)


def test_range_rows(backend: Backend) -> None:
    rows = [({0: 1.0, 1: 1.0}, 2.0, 3.5)]
    assert_optimal(backend, program([1.0, 2.0], rows), 2.0)
    assert_optimal(backend, program([-1.0, -2.0], rows), -6.0)
    assert_optimal(backend, program([-1.0, -2.0], rows), -7.0, RELAX)


@pytest.mark.parametrize(("integer", "expected"), [(False, -19 / 6), (True, -2.0)])
def test_free_columns(backend: Backend, integer: bool, expected: float) -> None:
    rows = [({0: 1.0, 1: 2.0}, -3.5, INF), ({0: 1.0, 1: -1.0}, -2.5, INF)]
    assert_optimal(backend, program([1.0, 1.0], rows, lower=-INF, integer=integer), expected)


def test_negative_lower_bounds(backend: Backend) -> None:
    milp = program([1.0, 1.0], [({0: 1.0, 1: -1.0}, 0.5, INF)], lower=[-3.0, -7.5], upper=[9.0, -1.0])
    assert_optimal(backend, milp, -10.0)


def test_fixed_columns(backend: Backend) -> None:
    milp = program(
        [1.0, 1.0, 1.0],
        [({0: 1.0, 1: 1.0, 2: 1.0}, 4.0, INF)],
        lower=[1.5, 2.0, 0.0],
        upper=[1.5, 2.0, 9.0],
        integer=[False, True, True],
    )
    assert_optimal(backend, milp, 4.5)


def test_columns_in_no_row_and_without_cost_get_a_value_within_their_bounds(backend: Backend) -> None:
    milp = program([1.0, 0.0, 0.0], [({0: 1.0}, 0.5, INF)], lower=[0.0, 2.0, -7.5], upper=[9.0, 3.0, -3.2])
    assert_optimal(backend, milp, 1.0)


def test_no_objective(backend: Backend) -> None:
    assert_optimal(backend, program([0.0, 0.0], [({0: 2.0, 1: 3.0}, 7.0, 7.0)], offset=-1.5), -1.5)


def test_unsorted_entries_and_explicit_zeros(backend: Backend) -> None:
    rows = [({1: 1.0, 0: 1.0}, 2.0, 3.5), ({0: 0.0, 1: 1.0}, -INF, 2.0), ({0: 0.0}, -1.0, 0.0)]
    assert_optimal(backend, program([-1.0, -2.0], rows, integer=[False, True]), -5.5)
    assert_optimal(backend, program([-1.0, -2.0], rows, integer=[False, True]), -5.5, RELAX)


def test_infeasible_integer_program_with_a_feasible_relaxation(backend: Backend) -> None:
    milp = program([1.0, 1.0], [({0: 2.0, 1: 2.0}, 3.0, 3.0)], upper=10.0)
    assert_infeasible(backend, milp)
    assert_optimal(backend, milp, 1.5, RELAX)


@pytest.mark.parametrize("options", [EXACT, RELAX])
def test_infeasible_relaxation(backend: Backend, options: SolveOptions) -> None:
    assert_infeasible(backend, program([1.0, 1.0], [({0: 2.0, 1: 2.0}, 50.0, INF)], upper=10.0), options)
    rows = [({0: 1.0, 1: 1.0}, 5.0, INF), ({0: 1.0, 1: 1.0}, -INF, 4.0)]
    assert_infeasible(backend, program([-1.0, 1.0], rows), options)


def test_infeasible_because_no_integer_lies_between_the_bounds(backend: Backend) -> None:
    assert_infeasible(backend, program([1.0], [({0: 1.0}, -INF, 5.0)], lower=0.2, upper=0.8))


@pytest.mark.parametrize("options", [EXACT, RELAX])
@pytest.mark.parametrize("integer", [True, False])
@pytest.mark.parametrize("rows", [[({0: 1.0, 1: -1.0}, -INF, 3.0)], []])
def test_unbounded(backend: Backend, rows: list, integer: bool, options: SolveOptions) -> None:
    milp = program([-1.0, 0.0], rows, integer=integer)
    solution = backend.solve(milp, options)
    assert_consistent(milp, solution, relaxed=options.relax)
    assert solution.termination is Termination.UNBOUNDED
    assert solution.bound == -INF


def test_infeasible_and_unbounded_are_told_apart(backend: Backend) -> None:
    # Decreasing column 0 has no end, but no point meets the row of column 1.
    milp = program([-1.0, 0.0], [({0: 1.0}, 0.0, INF), ({1: 1.0}, 2.0, INF)], upper=[INF, 1.0])
    assert_infeasible(backend, milp)
    assert_infeasible(backend, milp, RELAX)
    # Its twin has such points.
    twin = replace(milp, column_upper=np.array([INF, 2.0]))
    assert backend.solve(twin, EXACT).termination is Termination.UNBOUNDED
    assert backend.solve(twin, RELAX).termination is Termination.UNBOUNDED


def test_no_columns(backend: Backend) -> None:
    solution = assert_optimal(backend, program([], [({}, -1.0, 1.0)], offset=2.0), 2.0)
    assert solution.x is not None
    assert solution.x.shape == (0,)
    relaxation = assert_optimal(backend, program([], [({}, -1.0, 1.0)], offset=2.0), 2.0, RELAX)
    assert relaxation.row_dual == pytest.approx([0.0])
    assert_infeasible(backend, program([], [({}, 1.0, 2.0)]))
    assert_optimal(backend, program([]), 0.0)


def test_no_rows(backend: Backend) -> None:
    milp = program([1.0, -1.0], lower=[-2.0, 0.0], upper=[5.0, 3.5], offset=1.0)
    assert_optimal(backend, milp, -4.0)
    relaxation = assert_optimal(backend, milp, -4.5, RELAX)
    assert relaxation.row_dual is not None
    assert relaxation.row_dual.shape == (0,)
    assert relaxation.reduced_cost == pytest.approx([1.0, -1.0])


def test_rows_without_entries(backend: Backend) -> None:
    rows = [({}, -1.0, 1.0), ({0: 1.0}, 1.0, 4.0), ({}, -INF, INF)]
    milp = program([1.0, -1.0], rows, upper=3.5)
    assert_optimal(backend, milp, -2.0)
    relaxation = assert_optimal(backend, milp, -2.5, RELAX)
    assert relaxation.row_dual == pytest.approx([0.0, 1.0, 0.0])
    assert_infeasible(backend, program([1.0, -1.0], [*rows, ({}, 0.5, INF)], upper=3.5))


def test_duals_are_the_slope_of_the_objective_in_the_row_bounds(backend: Backend) -> None:
    # One row of each kind: >=, <=, =, and a range that binds above. Column 4 is at its lower bound.
    milp = program(
        [5.0, -5.0, 1.0, -1.0, 1.0],
        [
            ({0: -1.0, 1: -1.0, 2: -3.0, 3: 3.0}, -5.0, INF),
            ({0: 3.0, 1: -1.0, 2: 3.0, 3: 3.0}, -INF, 19.0),
            ({0: -1.0, 1: -3.0, 2: 1.0}, -16.0, -16.0),
            ({0: -2.0, 1: -1.0, 4: 1.0}, -16.0, -10.0),
        ],
        upper=10.0,
        integer=False,
        offset=5.0,
    )
    solution = backend.solve(milp, RELAX)
    assert solution.termination is Termination.OPTIMAL
    assert solution.row_dual is not None
    assert solution.reduced_cost is not None
    step = 1e-2

    def slope(shifted: Milp, other: Milp) -> float:
        high, low = backend.solve(shifted, RELAX), backend.solve(other, RELAX)
        return (high.objective - low.objective) / (2 * step)

    for i in range(milp.rows):
        shift = np.zeros(milp.rows)
        shift[i] = step
        up = replace(milp, row_lower=milp.row_lower + shift, row_upper=milp.row_upper + shift)
        down = replace(milp, row_lower=milp.row_lower - shift, row_upper=milp.row_upper - shift)
        assert solution.row_dual[i] == pytest.approx(slope(up, down), abs=1e-4)
    for j in range(milp.columns):
        shift = np.zeros(milp.columns)
        shift[j] = step
        up = replace(milp, column_lower=milp.column_lower + shift, column_upper=milp.column_upper + shift)
        down = replace(milp, column_lower=milp.column_lower - shift, column_upper=milp.column_upper - shift)
        assert solution.reduced_cost[j] == pytest.approx(slope(up, down), abs=1e-4)
    assert solution.row_dual[0] > 0.2
    assert solution.row_dual[1] < -0.2
    assert abs(solution.row_dual[2]) > 0.2
    assert solution.row_dual[3] < -0.2
    assert solution.reduced_cost[4] > 0.2


def test_time_limit_with_a_point(backend: Backend) -> None:
    milp = market_split(5, 40, slack=True)
    solution = backend.solve(milp, replace(EXACT, time_limit_s=1.0))
    assert_consistent(milp, solution)
    assert solution.termination is Termination.TIME_LIMIT
    assert solution.bound <= TOLERANCE  # no proof of anything above the relaxation is in reach


def test_time_limit_without_a_point(backend: Backend) -> None:
    milp = market_split(6, 50, slack=False)
    solution = backend.solve(milp, replace(EXACT, time_limit_s=1.0))
    assert_consistent(milp, solution)
    assert solution.termination is Termination.TIME_LIMIT
    assert solution.x is None
    assert solution.bound <= TOLERANCE


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("gap", [0.3, 0.02, 0.0])
def test_gap_is_honoured_and_bound_is_true(backend: Backend, sign: float, gap: float) -> None:
    milp = knapsack(sign)
    optimum = enumerated_optimum(milp)
    assert optimum is not None
    solution = backend.solve(milp, replace(EXACT, relative_gap=gap))
    assert_consistent(milp, solution)
    assert solution.termination is Termination.OPTIMAL
    tolerance = TOLERANCE * abs(optimum)
    assert solution.bound <= optimum + tolerance
    assert solution.objective >= optimum - tolerance
    assert solution.objective - solution.bound <= gap * abs(solution.objective) + tolerance


@pytest.mark.parametrize(
    "start",
    [
        [4.0, 0.0],  # optimal
        [1.0, 1.0],  # feasible
        [4.0, np.nan],  # known in part
        [np.nan, np.nan],
        [9.0, 9.0],  # infeasible
        [-1.0, 2.5],  # neither in the bounds nor integer
    ],
)
def test_start_is_only_a_hint(backend: Backend, start: list[float]) -> None:
    assert_optimal(backend, TEXTBOOK, -20.0, replace(EXACT, start=np.array(start)))


@pytest.mark.parametrize("name", ["highs", "ortools"])
def test_start_is_used(name: str) -> None:
    # Without it no point is found in this time (see above); with it the best point is known.
    milp, split = planted_split(5, 45)
    if not next(info.installed for info in listing() if info.name == name):
        pytest.skip(f"{name} is not installed")
    options = replace(EXACT, time_limit_s=2.0, start=split)
    solution = get(name).solve(milp, options)
    assert_consistent(milp, solution)
    assert solution.x is not None


def test_coefficients_over_six_orders_of_magnitude(backend: Backend) -> None:
    rng = np.random.default_rng(11)
    for _ in range(5):
        cost = 10.0 ** rng.uniform(-3, 3, 4)
        matrix = 10.0 ** rng.uniform(-3, 3, (3, 4))
        rows = [(dict(enumerate(row)), float(row.sum()) * 2.3, INF) for row in matrix]
        milp = program(cost.tolist(), rows, upper=6.0)
        optimum = enumerated_optimum(milp)
        assert optimum is not None
        assert_optimal(backend, milp, optimum)


def test_same_seed_same_answer(backend: Backend) -> None:
    milp = market_split(2, 14, slack=True)
    first, second = (backend.solve(milp, replace(EXACT, seed=7)) for _ in range(2))
    assert first.termination is Termination.OPTIMAL
    assert first.x is not None
    assert second.x is not None
    assert (first.x == second.x).all()
    assert first.bound == second.bound


def test_threads_may_change_between_solves_of_one_process(backend: Backend) -> None:
    milp = knapsack(1.0)
    optimum = enumerated_optimum(milp)
    assert optimum is not None
    for threads in (1, 2, 1):
        assert_optimal(backend, milp, optimum, replace(EXACT, threads=threads))


numbers = st.integers(-5, 5).map(float)
sides = st.one_of(st.integers(-8, 8).map(float), st.none())


@st.composite
def small_programs(draw: st.DrawFn) -> Milp:
    n = draw(st.integers(1, 4))
    rows = []
    for _ in range(draw(st.integers(0, 4))):
        entries = draw(st.dictionaries(st.integers(0, n - 1), numbers, max_size=n))
        low, up = draw(sides), draw(sides)
        low, up = -INF if low is None else low, INF if up is None else up
        rows.append((entries, min(low, up), max(low, up)))
    lower = draw(st.lists(st.integers(-3, 2), min_size=n, max_size=n))
    width = draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    return program(
        draw(st.lists(numbers, min_size=n, max_size=n)),
        rows,
        lower=[float(low) for low in lower],
        upper=[float(low + extra) for low, extra in zip(lower, width, strict=True)],
        offset=draw(numbers),
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(milp=small_programs())
def test_random_integer_programs_against_enumeration(backend: Backend, milp: Milp) -> None:
    optimum = enumerated_optimum(milp)
    if optimum is None:
        assert_infeasible(backend, milp)
    else:
        assert_optimal(backend, milp, optimum)
        assert backend.solve(milp, RELAX).objective <= optimum + TOLERANCE
