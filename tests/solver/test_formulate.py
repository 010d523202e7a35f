"""The program, written by hand for two servers and two accelerators, and its shapes and tightness."""

from dataclasses import replace

import numpy as np
import oracle
import pytest
from oracle import two_by_two

from solver import backends
from solver.formulate import formulate, is_whole, program
from solver.milp import SolveOptions, Termination
from solver.problem import Plan, Policy, SaturationPolicy


def dense(formulation_milp):  # type: ignore[no-untyped-def]
    matrix = np.zeros((formulation_milp.rows, formulation_milp.columns))
    for row in range(formulation_milp.rows):
        span = slice(formulation_milp.row_start[row], formulation_milp.row_start[row + 1])
        matrix[row, formulation_milp.column[span]] = formulation_milp.value[span]
    return matrix


def test_whole_program_is_the_one_on_paper() -> None:
    problem = two_by_two(Policy())
    formulation = formulate(problem, serve_all=False)
    # r = ceil(10/2.5), ceil(10/4), max(ceil(6/2), 2), max(ceil(6/8), 2)
    assert problem.replicas_needed.tolist() == [4, 3, 3, 2]
    milp = program(formulation, 2)
    # Columns y[a,X] y[a,Y] y[b,X] y[b,Y] u[a] u[b].
    np.testing.assert_allclose(
        dense(milp),
        [
            [1, 1, 0, 0, 1, 0],
            [0, 0, 1, 1, 0, 1],
            [4, 0, 3, 0, 0, 0],
            [0, 6, 0, 4, 0, 0],
        ],
    )
    assert milp.row_lower.tolist() == [1, 1, -np.inf, -np.inf]
    assert milp.row_upper.tolist() == [1, 1, 6, 6]
    assert milp.integer.tolist() == [True] * 4 + [False] * 2
    # Leaving X costs b 0.1 x 9; Y is new for b and pays 0.1 of its own 10 as well.
    np.testing.assert_allclose(milp.objective, [12, 15, 9 - 0.9, 10 + 1.0, 0, 0])
    assert milp.offset == pytest.approx(0.9)
    assert [o.level.name for o in formulation.objectives] == ["priority 1", "priority 2", "cost"]
    np.testing.assert_allclose(formulation.objectives[1].cost, [0, 0, 0, 0, 0, 2])


def test_integer_program_is_the_one_on_paper() -> None:
    formulation = formulate(two_by_two(Policy(max_types=None)), serve_all=True)
    milp = program(formulation, 2)
    # Columns n[a,X] n[a,Y] n[b,X] n[b,Y] u[a] u[b] left[b,X].
    np.testing.assert_allclose(
        dense(milp),
        [
            [0.25, 0.4, 0, 0, 1, 0, 0],
            [0, 0, 2 / 6, 1, 0, 1, 0],
            [0, 0, 0.5, 0.5, 0, 1, 0],
            [0, 0, 1, 1, 0, 0, 0],
            [1, 0, 1, 0, 0, 0, 0],
            [0, 2, 0, 2, 0, 0, 0],
            [0, 0, 1, 0, 0, 0, 1],
        ],
    )
    np.testing.assert_allclose(milp.row_lower, [1, 1, 1, -np.inf, -np.inf, -np.inf, 1], rtol=1e-8)
    np.testing.assert_allclose(milp.row_upper, [np.inf, np.inf, np.inf, 5, 6, 6, np.inf])
    np.testing.assert_allclose(milp.column_upper, [4, 3, 3, 2, 0, 0, 1])
    np.testing.assert_allclose(milp.objective, [3, 5, 3, 5.5, 0, 0, 0.9])
    assert milp.integer.tolist() == [True] * 4 + [False] * 3


def test_shapes() -> None:
    assert is_whole(two_by_two(Policy()), serve_all=False)
    assert not is_whole(two_by_two(Policy(max_types=2)), serve_all=True)
    partial = Policy(saturation=SaturationPolicy.ROUND_ROBIN)
    assert is_whole(two_by_two(partial), serve_all=True)
    assert not is_whole(two_by_two(partial), serve_all=False)


def test_names_cover_every_column_and_row() -> None:
    for seed in range(60):
        problem = oracle.random_problem(seed)
        if not len(problem.option_server):
            continue
        milp = formulate(problem, serve_all=False, names=True).milp
        assert len(milp.column_names) == milp.columns
        assert len(milp.row_names) == milp.rows


def test_a_held_level_is_a_row() -> None:
    formulation = formulate(two_by_two(Policy()), serve_all=False)
    milp = program(formulation, 2, (0.0, 2.0))
    assert milp.rows == 6
    assert milp.row_upper[-2:].tolist() == [0.0, 2.0]


def test_whole_relaxation_is_tighter_than_the_integer_one() -> None:
    highs = backends.get("highs")
    relax = SolveOptions(relax=True)
    problem = two_by_two(Policy())
    whole = highs.solve(program(formulate(problem, serve_all=True), 2), relax)
    mixed = replace(problem, policy=Policy(max_types=None))
    loose = highs.solve(program(formulate(mixed, serve_all=True), 2), relax)
    assert whole.termination is loose.termination is Termination.OPTIMAL
    assert whole.objective > loose.objective


def test_a_plan_survives_the_way_to_a_point_and_back() -> None:
    problem = two_by_two(Policy())
    formulation = formulate(problem, serve_all=False)
    plan = Plan(np.array([4, 0, 0, 2]))
    assert formulation.read_plan(np.nan_to_num(formulation.point(plan))).replicas.tolist() == [4, 0, 0, 2]


def test_float_ceilings() -> None:
    problem = two_by_two(Policy())
    exact = replace(problem, arrival_rps=np.array([40.0, 6.0]), capacity_rps=np.array([0.4, 4.0, 2.0, 8.0]))
    assert exact.replicas_needed[0] == 100
    thirds = replace(problem, arrival_rps=np.array([1.0, 6.0]), capacity_rps=np.array([1 / 3, 4.0, 2.0, 8.0]))
    assert thirds.replicas_needed[0] == 3
