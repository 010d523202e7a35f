"""The baseline, by hand on small fleets and by rule on random ones."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solver.backends.greedy import greedy
from solver.check import cost_alone_per_h, score, violations
from solver.packing import fits
from solver.problem import NO_LIMIT, AllocationProblem, Inventory, Policy, SaturationPolicy

INF = np.inf
NONE, EXHAUSTIVE, IN_CLASS, ALL = SaturationPolicy


def fleet(
    capacity_rps: Sequence[Sequence[float]],
    *,
    arrival_rps: Sequence[float],
    cost_per_h: Sequence[float],
    stock: Sequence[int],
    gpus: Sequence[int] | None = None,
    nodes: Sequence[tuple[int, ...] | None] | None = None,
    priority: Sequence[int] | None = None,
    min_replicas: Sequence[int] | None = None,
    max_replicas: Sequence[int] | None = None,
    current: Sequence[tuple[int, int, float]] = (),
    policy: Policy | None = None,
) -> AllocationProblem:
    """Servers a, b, ... by accelerators X, Y, ..., each of its own GPU type; capacity 0 = no option."""
    table = np.array(capacity_rps, dtype=float)
    count, width = table.shape
    server, accelerator = np.nonzero(table)
    cards = np.ones(width, dtype=np.int64) if gpus is None else np.array(gpus)
    kept = np.array(current, dtype=float).reshape(-1, 3)
    return AllocationProblem(
        servers=tuple("abcdefgh"[:count]),
        accelerators=tuple("XYZ"[:width]),
        gpu_types=tuple("xyz"[:width]),
        arrival_rps=np.array(arrival_rps, dtype=float),
        min_replicas=np.zeros(count, dtype=np.int64) if min_replicas is None else np.array(min_replicas),
        max_replicas=np.full(count, NO_LIMIT) if max_replicas is None else np.array(max_replicas),
        priority=np.ones(count, dtype=np.int64) if priority is None else np.array(priority),
        weight=np.ones(count),
        option_server=server,
        option_accelerator=accelerator,
        option_batch=np.full(len(server), 8),
        capacity_rps=table[server, accelerator],
        gpu_type=accelerator,
        gpus=cards[accelerator],
        cost_per_h=np.array(cost_per_h, dtype=float)[accelerator],
        current_server=kept[:, 0].astype(np.int64),
        current_accelerator=kept[:, 1].astype(np.int64),
        current_cost_per_h=kept[:, 2],
        inventory=Inventory(np.array(stock), tuple(nodes or (None,) * width)),
        policy=policy or Policy(),
    )


def chosen(problem: AllocationProblem) -> dict[str, str]:
    """Server -> accelerator x replicas."""
    plan = greedy(problem)
    assert violations(problem, plan) == []
    return {
        problem.servers[problem.option_server[j]]: (
            f"{problem.accelerators[problem.option_accelerator[j]]}{plan.replicas[j]}"
        )
        for j in np.flatnonzero(plan.replicas)
    }


# a: 4 X (4/h) or 4 Y (8/h), regret 4. b: 3 X (3/h) or 6 Y (12/h), regret 9.
TWO = fleet([[1.0, 1.0], [1.0, 0.5]], arrival_rps=[4, 3], cost_per_h=[1, 2], stock=[7, 10])


def test_with_enough_of_everything_each_server_gets_its_cheapest() -> None:
    assert chosen(TWO) == {"a": "X4", "b": "X3"}


def test_the_larger_regret_goes_first() -> None:
    scarce = replace(TWO, inventory=Inventory(np.array([4, 10]), (None, None)))
    assert chosen(scarce) == {"a": "Y4", "b": "X3"}


def test_priority_goes_before_regret() -> None:
    scarce = replace(TWO, inventory=Inventory(np.array([4, 10]), (None, None)), priority=np.array([1, 2]))
    assert chosen(scarce) == {"a": "X4", "b": "Y6"}


def test_equal_regrets_go_by_value_then_by_name() -> None:
    # Both lose nothing by taking Y; b is dearer, so it has the first choice of the one that fits.
    one_each = fleet([[1, 1], [0.5, 0.5]], arrival_rps=[2, 2], cost_per_h=[1, 1], stock=[4, 9])
    assert chosen(one_each) == {"a": "Y2", "b": "X4"}
    twins = fleet([[1, 1], [1, 1]], arrival_rps=[2, 2], cost_per_h=[1, 1], stock=[2, 9])
    assert chosen(twins) == {"a": "X2", "b": "Y2"}


def test_three_by_three() -> None:
    # Cost alone on X, Y, Z: a 2, 6, 9; b 3, 4, 12; c 4, 10, 6. Regrets 4, 1, 2: a, c, b.
    problem = fleet(
        [[1, 2 / 3, 2 / 3], [1, 1.5, 0.75], [1, 0.8, 2]],
        arrival_rps=[2, 3, 4],
        cost_per_h=[1, 2, 3],
        stock=[6, 1, 9],
    )
    assert cost_alone_per_h(problem) == pytest.approx([2, 6, 9, 3, 4, 12, 4, 10, 6])
    # a and c take all of X. b wants 2 Y of 1, then comes back for 4 Z: 2 + 4 + 12.
    assert chosen(problem) == {"a": "X2", "b": "Z4", "c": "X4"}
    # The optimum is 2 + 3 + 6: what the baseline leaves to be gained.
    assert oracle.best(problem).values[-1] == pytest.approx(11)


def test_moving_pays_a_penalty() -> None:
    # a runs on Y for 4/h. X costs 3.8/h, and 0.1 (4 + 3.8) for the move.
    arguments = {"arrival_rps": [2], "cost_per_h": [1.9, 2.0], "stock": [9, 9]}
    assert chosen(fleet([[1, 1]], **arguments)) == {"a": "X2"}
    assert chosen(fleet([[1, 1]], **arguments, current=[(0, 1, 4.0)])) == {"a": "Y2"}
    free = Policy(switching_factor=0.0)
    assert chosen(fleet([[1, 1]], **arguments, current=[(0, 1, 4.0)], policy=free)) == {"a": "X2"}


def test_limits_of_replicas() -> None:
    problem = fleet([[1, 2]], arrival_rps=[4], cost_per_h=[1, 9], stock=[9, 9], max_replicas=[2])
    assert chosen(problem) == {"a": "Y2"}
    at_least = fleet([[1]], arrival_rps=[2], cost_per_h=[1], stock=[9], min_replicas=[5])
    assert chosen(at_least) == {"a": "X5"}


def test_no_load_needs_nothing_but_its_minimum() -> None:
    problem = fleet([[INF], [INF]], arrival_rps=[0, 0], cost_per_h=[1], stock=[9], min_replicas=[0, 2])
    assert chosen(problem) == {"b": "X2"}


def test_of_several_batch_limits_the_smallest_of_the_cheapest() -> None:
    problem = replace(
        fleet([[1, 2, 2]], arrival_rps=[4], cost_per_h=[1, 1, 1], stock=[9, 0, 0]),
        option_accelerator=np.zeros(3, dtype=np.int64),
        gpu_type=np.zeros(3, dtype=np.int64),
        option_batch=np.array([8, 64, 32]),
    )
    assert greedy(problem).replicas.tolist() == [0, 0, 2]


def test_nothing_to_decide() -> None:
    problem = fleet([[0.0]], arrival_rps=[1], cost_per_h=[1], stock=[1])
    assert greedy(problem).replicas.tolist() == []


# Four replicas each of one accelerator that has five (a and b alike, c in a class of its own).
@pytest.mark.parametrize(
    ("policy", "stock", "expected"),
    [
        (Policy(saturation=NONE), 5, {"a": "X4"}),
        (Policy(saturation=EXHAUSTIVE), 5, {"a": "X4", "b": "X1"}),
        (Policy(saturation=NONE), 3, {}),
        (Policy(saturation=EXHAUSTIVE), 3, {"a": "X3"}),
        (Policy(saturation=IN_CLASS), 3, {"a": "X2", "b": "X1"}),
        (Policy(saturation=IN_CLASS), 7, {"a": "X4", "b": "X3"}),
        (Policy(saturation=ALL), 3, {"a": "X2", "b": "X1"}),
        (Policy(saturation=IN_CLASS, delayed_best_effort=True), 3, {"a": "X2", "b": "X1"}),
        (Policy(saturation=ALL, delayed_best_effort=True), 3, {"a": "X1", "b": "X1", "c": "X1"}),
        (Policy(saturation=EXHAUSTIVE), 10, {"a": "X4", "b": "X4", "c": "X2"}),
    ],
)
def test_saturation_policies(policy: Policy, stock: int, expected: dict[str, str]) -> None:
    problem = fleet(
        [[1], [1], [1]],
        arrival_rps=[4, 4, 4],
        cost_per_h=[1],
        stock=[stock],
        priority=[1, 1, 2],
        policy=policy,
    )
    assert chosen(problem) == expected


def test_delayed_best_effort_serves_others_in_full_first() -> None:
    arguments = {"arrival_rps": [4, 3], "cost_per_h": [1], "stock": [3], "priority": [1, 2]}
    at_once = Policy(saturation=EXHAUSTIVE)
    assert chosen(fleet([[1], [1]], **arguments, policy=at_once)) == {"a": "X3"}
    delayed = replace(at_once, delayed_best_effort=True)
    assert chosen(fleet([[1], [1]], **arguments, policy=delayed)) == {"b": "X3"}


def test_partial_service_stays_on_one_accelerator_within_its_limit() -> None:
    policy = Policy(saturation=EXHAUSTIVE)
    problem = fleet([[1, 1]], arrival_rps=[5], cost_per_h=[1, 2], stock=[2, 3], policy=policy)
    assert chosen(problem) == {"a": "X2"}
    assert chosen(replace(problem, max_replicas=np.array([1]))) == {"a": "X1"}
    assert chosen(replace(problem, max_replicas=np.array([0]))) == {}


def test_replicas_need_room_on_one_node() -> None:
    policy = Policy(saturation=EXHAUSTIVE)
    problem = fleet(
        [[1]], arrival_rps=[2], cost_per_h=[1], stock=[4], gpus=[2], nodes=[(3, 1)], policy=policy
    )
    assert chosen(problem) == {"a": "X1"}
    assert chosen(replace(problem, inventory=Inventory(np.array([4]), ((2, 2),)))) == {"a": "X2"}


def test_replicas_placed_early_may_move() -> None:
    # Best fit would put a's card on the node of two, and b would find 3 + 1 free: room for one pair only.
    problem = replace(
        fleet([[1, 0], [0, 1]], arrival_rps=[1, 2], cost_per_h=[1, 2], stock=[5, 0], priority=[1, 2]),
        gpu_type=np.array([0, 0]),
        gpus=np.array([1, 2]),
        inventory=Inventory(np.array([5, 0]), ((3, 2), None)),
    )
    assert chosen(problem) == {"a": "X1", "b": "Y2"}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_plan_is_valid_and_none_beats_the_optimum(seed: int) -> None:
    problem = oracle.random_problem(seed)
    plan = greedy(problem)
    assert violations(problem, plan) == []
    used = plan.replicas > 0
    assert len(set(problem.option_server[used].tolist())) == used.sum()
    found, best = score(problem, plan).levels, oracle.best(problem).values
    for value, least in zip(found, best, strict=True):
        if value > least + 1e-6:
            break
        assert value == pytest.approx(least, abs=1e-5)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_unlimited_inventory_gives_each_server_its_cheapest_option(seed: int) -> None:
    drawn = oracle.random_problem(seed)
    types = len(drawn.gpu_types)
    problem = replace(
        drawn,
        inventory=Inventory(np.full(types, NO_LIMIT), (None,) * types),
        max_replicas=np.full(len(drawn.servers), NO_LIMIT),
    )
    replicas, alone = greedy(problem).replicas, cost_alone_per_h(problem)
    for s in np.flatnonzero(~problem.needs_nothing):
        options = np.flatnonzero(problem.option_server == s)
        if len(options):
            (mine,) = options[replicas[options] > 0]
            assert alone[mine] == alone[options].min()
            assert replicas[mine] == problem.replicas_needed[mine]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    nodes=st.lists(st.integers(0, 8), min_size=1, max_size=4),
    wanted=st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(1, 4)), min_size=1, max_size=4),
)
def test_nothing_that_fits_is_refused_where_sizes_divide(
    nodes: list[int], wanted: list[tuple[int, int]]
) -> None:
    # One server a size, each in its own class, on one GPU type: greedy takes the most that fits, in turn.
    count = len(wanted)
    problem = replace(
        fleet(
            [[1.0]] * count,
            arrival_rps=[replicas for _, replicas in wanted],
            cost_per_h=[1],
            stock=[sum(nodes)],
            nodes=[tuple(nodes)],
            priority=list(range(1, count + 1)),
            policy=Policy(saturation=EXHAUSTIVE),
        ),
        gpus=np.array([size for size, _ in wanted]),
    )
    placed: dict[int, int] = {}
    for (size, most), given_ in zip(wanted, greedy(problem).replicas, strict=True):
        expected = next(
            n for n in range(most, -1, -1) if fits(placed | {size: placed.get(size, 0) + n}, nodes)
        )
        assert given_ == expected
        placed[size] = placed.get(size, 0) + expected
