"""Corners of the direct method that random problems seldom reach."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from oracle import best, two_by_two

from solver import backends
from solver.check import score, violations
from solver.milp import RawSolution, SolveOptions, Termination
from solver.problem import NO_LIMIT, AllocationProblem, Inventory, Plan, Policy
from solver.solve import Solved, prefer_small_batches, solve


def solved(problem: AllocationProblem) -> Solved:
    return solve(problem, backends.get("highs"), SolveOptions(relative_gap=1e-9))


def test_nothing_is_kept_just_to_dodge_the_penalty_of_leaving() -> None:
    """Without the rows of all or nothing one idle replica would be cheaper than leaving X."""
    problem = replace(
        two_by_two(Policy(max_types=None)),
        inventory=Inventory(np.array([2, 0]), (None, None)),
        current_cost_per_h=np.array([1000.0]),
    )
    answer = solved(problem)
    assert violations(problem, answer.plan) == []
    assert answer.plan.replicas.tolist() == [0, 0, 0, 0]
    assert score(problem, answer.plan).levels == pytest.approx(best(problem).values)


def test_sizes_that_do_not_divide_each_other_are_placed_node_by_node() -> None:
    """Two replicas of 3 cards and one of 2 are 8 cards, and do not fit on two nodes of 4."""
    problem = replace(
        two_by_two(Policy()),
        gpu_types=("t",),
        gpu_type=np.array([0, 0, 0, 0]),
        gpus=np.array([3, 2, 3, 2]),
        capacity_rps=np.array([5.0, 0.1, 0.1, 6.0]),
        min_replicas=np.array([0, 0]),
        inventory=Inventory(np.array([8]), ((4, 4),)),
    )
    answer = solved(problem)
    assert violations(problem, answer.plan) == []
    assert score(problem, answer.plan).levels == pytest.approx(best(problem).values)
    assert answer.levels[1].value == 2.0
    roomy = replace(problem, inventory=Inventory(np.array([9]), ((4, 5),)))
    assert solved(roomy).levels[1].value == 0.0


def test_a_deadline_gives_the_best_known_plan_and_a_true_bound() -> None:
    class Stopped:
        """A solver that is always out of time, with no point and no bound."""

        name = "stopped"

        def solve(self, milp: object, options: SolveOptions) -> RawSolution:
            return RawSolution(Termination.TIME_LIMIT, None, np.nan, -np.inf, "stopped", "", 0.0)

    problem = two_by_two(Policy())
    answer = solve(problem, Stopped(), SolveOptions(time_limit_s=0.1))
    assert violations(problem, answer.plan) == []
    assert answer.termination is Termination.TIME_LIMIT
    # The baseline serves both servers here; nothing is proven of the cost.
    assert answer.levels[-1].value == score(problem, answer.plan).levels[-1]
    assert answer.levels[-1].bound == -np.inf


def test_after_the_time_limit_no_more_levels_are_begun() -> None:
    """A solver that overruns its limit by far is not asked for every level that is left."""
    clock_s = 0.0

    class Slow:
        """Takes 20 s whatever the limit, and finds nothing."""

        name = "slow"
        calls = 0

        def solve(self, milp: object, options: SolveOptions) -> RawSolution:
            nonlocal clock_s
            clock_s += 20.0
            self.calls += 1
            return RawSolution(Termination.TIME_LIMIT, None, np.nan, -np.inf, "slow", "", 20.0)

    problem = replace(two_by_two(Policy()), inventory=Inventory(np.array([2, 0]), (None, None)))
    slow = Slow()
    answer = solve(problem, slow, SolveOptions(time_limit_s=10.0), now=lambda: clock_s)
    in_time = solve(problem, backends.get("highs"), SolveOptions())
    # The relaxation, the program in which everything is served, and the first level.
    assert slow.calls == 3
    assert [r.level.name for r in answer.levels] == [r.level.name for r in in_time.levels]
    assert answer.termination is Termination.TIME_LIMIT
    assert violations(problem, answer.plan) == []
    assert np.isnan(answer.value_of_gpu.cost_per_h).all()


def test_of_equal_plans_the_smallest_batch_that_carries_the_load_wins() -> None:
    problem = replace(
        two_by_two(Policy()),
        option_accelerator=np.array([0, 0, 0, 1]),
        option_server=np.array([0, 0, 0, 1]),
        option_batch=np.array([8, 16, 64, 8]),
        capacity_rps=np.array([2.0, 3.5, 4.0, 8.0]),
        gpu_type=np.array([0, 0, 0, 1]),
        gpus=np.array([1, 1, 1, 2]),
        cost_per_h=np.array([3.0, 3.0, 3.0, 5.0]),
    )
    # 10 requests/s over 3 replicas need 3.34 each: the batch of 16 carries that, the one of 8 does not.
    assert prefer_small_batches(problem, Plan(np.array([0, 0, 3, 1]))).replicas.tolist() == [0, 3, 0, 1]
    assert prefer_small_batches(problem, Plan(np.array([0, 0, 5, 1]))).replicas.tolist() == [5, 0, 0, 1]


def test_no_server_at_all() -> None:
    problem = two_by_two(Policy())
    empty = replace(
        problem,
        **{
            name: getattr(problem, name)[:0]
            for name in (
                "option_server",
                "option_accelerator",
                "option_batch",
                "capacity_rps",
                "gpu_type",
                "gpus",
                "cost_per_h",
            )
        },
    )
    answer = solved(empty)
    assert answer.termination is Termination.OPTIMAL
    # Server b leaves X, which costs a tenth of 9.
    assert answer.levels[-1].value == pytest.approx(0.9)


def one_server(**changes: Any) -> AllocationProblem:
    """Return 10 requests/s on many small replicas, or on a few large ones, which are dearer."""
    problem = replace(
        two_by_two(Policy()),
        servers=("a",),
        gpu_types=("t",),
        arrival_rps=np.array([10.0]),
        min_replicas=np.array([0]),
        max_replicas=np.array([NO_LIMIT]),
        priority=np.array([1]),
        weight=np.array([1.0]),
        option_server=np.array([0, 0]),
        option_accelerator=np.array([0, 1]),
        option_batch=np.array([8, 8]),
        capacity_rps=np.array([1.0, 5.0]),
        gpu_type=np.array([0, 0]),
        gpus=np.array([1, 8]),
        cost_per_h=np.array([1.0, 10.0]),
        current_server=np.array([], dtype=np.int64),
        current_accelerator=np.array([], dtype=np.int64),
        current_cost_per_h=np.array([]),
        inventory=Inventory(np.array([100]), (None,)),
    )
    return replace(problem, **changes)


def test_a_cheaper_option_that_needs_more_replicas_than_allowed_replaces_nothing() -> None:
    highs = backends.get("highs")
    assert solve(one_server(), highs, SolveOptions()).plan.replicas.tolist() == [10, 0]
    few = one_server(max_replicas=np.array([3]))
    assert solve(few, highs, SolveOptions()).plan.replicas.tolist() == [0, 2]


def test_smaller_replicas_that_fit_worse_on_the_nodes_replace_nothing() -> None:
    """Three replicas of 2 cards or two of 3, on two nodes of 3 cards."""
    problem = one_server(
        capacity_rps=np.array([3.5, 5.0]),
        gpus=np.array([2, 3]),
        inventory=Inventory(np.array([6]), ((3, 3),)),
    )
    assert solve(problem, backends.get("highs"), SolveOptions()).plan.replicas.tolist() == [0, 2]
