"""Every rule, broken on purpose, is caught."""

from dataclasses import replace

import numpy as np
import pytest
from oracle import two_by_two

from solver.check import score, served_share, violations
from solver.problem import Inventory, Plan, Policy, SaturationPolicy


def plan(*replicas: int) -> Plan:
    return Plan(np.array(replicas))


def test_a_valid_plan_breaks_nothing() -> None:
    assert violations(two_by_two(Policy()), plan(0, 3, 3, 0)) == []


@pytest.mark.parametrize(
    ("policy", "replicas", "words"),
    [
        (Policy(), (-1, 0, 0, 0), "a on X at batch 8: -1 replicas"),
        (Policy(), (4, 1, 0, 0), "a: 2 accelerators, at most 1 allowed"),
        (Policy(), (0, 0, 6, 0), "b: 6 replicas, at most 5 allowed"),
        (Policy(), (3, 0, 0, 0), "a: 0.750000 of its demand served, all or nothing allowed"),
        (Policy(), (4, 0, 3, 0), "tx: 7 GPUs used, 6 exist"),
        (Policy(), (0, 3, 0, 2), "ty: 10 GPUs used, 6 exist"),
    ],
)
def test_a_broken_rule_is_named(policy: Policy, replicas: tuple[int, ...], words: str) -> None:
    assert words in violations(two_by_two(policy), plan(*replicas))


def test_nodes_are_checked_one_by_one() -> None:
    problem = two_by_two(Policy())
    ample = replace(problem, inventory=Inventory(np.array([6, 6]), (None, (2, 2, 2))))
    split = replace(problem, inventory=Inventory(np.array([6, 6]), (None, (3, 3))))
    assert violations(ample, plan(0, 3, 3, 0)) == []
    assert any("do not fit on the nodes" in v for v in violations(split, plan(0, 3, 3, 0)))


def test_a_plan_of_the_wrong_shape_or_kind_is_refused() -> None:
    problem = two_by_two(Policy())
    assert "4" in violations(problem, plan(1, 2, 3))[0]
    assert "integers" in violations(problem, Plan(np.array([0.0, 3.0, 3.0, 0.0])))[0]  # type: ignore[arg-type]


def test_share_is_the_smaller_of_load_and_minimum() -> None:
    problem = two_by_two(Policy(saturation=SaturationPolicy.PRIORITY_EXHAUSTIVE))
    assert served_share(problem, plan(3, 0, 0, 1)).tolist() == [0.75, 0.5]
    assert served_share(problem, plan(4, 0, 2, 0)).tolist() == pytest.approx([1.0, 4 / 6])


def test_score_counts_cost_penalty_and_shares() -> None:
    problem = two_by_two(Policy(saturation=SaturationPolicy.PRIORITY_ROUND_ROBIN, delayed_best_effort=True))
    worth = score(problem, plan(3, 0, 0, 1))
    # Levels: unmet of each class, then worst and sum of each class, then cost.
    assert worth.levels == pytest.approx((1.0, 2.0, 0.25, 0.25, 0.5, 1.0, 9 + 5 + 0.9 + 0.5))
    assert worth.cost_per_h == 14.0
    assert worth.penalty_per_h == pytest.approx(1.4)
