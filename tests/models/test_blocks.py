"""Both ways to add up the weights of states: the same sums, also where weights leave the range of floats."""

import math
from collections.abc import Iterator
from decimal import Decimal, localcontext

import numpy as np
import pytest
from numpy.random import default_rng

from models import blocks
from models.blocks import Block, Carried, Exponentials

compiled = pytest.mark.skipif(not blocks.IS_COMPILED, reason="installed without a C compiler")


@pytest.fixture(autouse=True)
def digits() -> Iterator[None]:
    with localcontext() as context:
        context.prec = 50
        yield


KINDS = [pytest.param(Carried, marks=compiled), Exponentials]


def exact(ratio: np.ndarray, load: float) -> tuple[Decimal, Decimal]:
    """Sum of the weights and of n x weight, to 50 digits."""
    weight, plain, moment = Decimal(1), Decimal(0), Decimal(0)
    for n, factor in enumerate(ratio.tolist(), start=1):
        weight *= Decimal(factor) * Decimal(load)
        plain += weight
        moment += n * weight
    return plain, moment


def log(number: Decimal) -> float:
    return float(number.ln())


def block(
    kind: type[Carried | Exponentials], ratio: np.ndarray, states: np.ndarray
) -> tuple[Block, np.ndarray]:
    return kind.of(np.arange(len(ratio)), ratio.copy(), states)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("load", [1e-3, 0.4, 1.0, 1.7, 40.0])
def test_sums_are_exact(kind: type[Carried | Exponentials], load: float) -> None:
    rng = default_rng(int(load * 1000))
    states = np.array([0, 1, 2, 30, 64, 65, 250])
    ratio = np.exp(rng.normal(0.0, 0.5, (7, 250)))
    here, log_full = block(kind, ratio, states)
    log_load, floor = np.full(7, math.log(load)), np.zeros(7)
    anchor, (plain, moment) = here.sums(log_load, floor)
    assert (anchor >= floor).all()
    for i, count in enumerate(states.tolist()):
        product = Decimal(1)
        for factor in ratio[i, :count].tolist():
            product *= Decimal(factor)
        assert log_full[i] == pytest.approx(log(product), abs=1e-11)
        want = exact(ratio[i, :count], math.exp(log_load[i]))
        if count == 0:
            assert (plain[i], moment[i]) == pytest.approx((0.0, 0.0), abs=1e-290)
            continue
        # Weights below exp(-700) of the anchor are as good as none.
        if log(want[0]) - anchor[i] > -600.0:
            assert math.log(plain[i]) + anchor[i] == pytest.approx(log(want[0]), rel=1e-11, abs=1e-11)
            assert math.log(moment[i]) + anchor[i] == pytest.approx(log(want[1]), rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_may_leave_the_range_of_floats_and_come_back(kind: type[Carried | Exponentials]) -> None:
    """Up to 10^600 of the first, down to 10^-900 of it, and up again beyond it."""
    ratio = np.concatenate([np.full(300, 100.0), np.full(750, 0.01), np.full(800, 10.0)])[None]
    here, _ = block(kind, ratio, np.array([ratio.shape[1]]))
    for load in (1.0, 0.5, 2.0):
        anchor, (plain, moment) = here.sums(np.log([load]), np.zeros(1))
        want = exact(ratio[0], load)
        assert math.log(plain[0]) + anchor[0] == pytest.approx(log(want[0]), rel=1e-11)
        assert math.log(moment[0]) + anchor[0] == pytest.approx(log(want[1]), rel=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_the_anchor_is_at_least_the_floor(kind: type[Carried | Exponentials]) -> None:
    here, _ = block(kind, np.ones((2, 5)), np.array([5, 3]))
    anchor, (plain, _) = here.sums(np.zeros(2), np.array([0.0, 900.0]))
    assert anchor[1] >= 900.0
    assert plain[0] * math.exp(anchor[0]) == pytest.approx(5.0)
    assert plain[1] == pytest.approx(0.0, abs=1e-300)


@pytest.mark.parametrize("kind", KINDS)
def test_servers_drop_out_and_states_are_left_out(kind: type[Carried | Exponentials]) -> None:
    rng = default_rng(0)
    ratio, states = rng.uniform(0.5, 2.0, (6, 40)), np.array([40, 3, 17, 8, 9, 1])
    here, _ = block(kind, ratio, states)
    log_load = rng.normal(0.0, 0.3, 6)
    whole = here.sums(log_load, np.zeros(6))
    kept = np.array([4, 0, 3])
    some = here.take(np.arange(3), kept)
    part = some.sums(log_load[kept], np.zeros(3))
    assert part[1] * np.exp(part[0]) == pytest.approx((whole[1] * np.exp(whole[0]))[:, kept], rel=1e-12)
    first = here.first(8).sums(log_load, np.zeros(6))
    for i, count in enumerate(np.minimum(states, 8).tolist()):
        want = exact(ratio[i, :count], math.exp(log_load[i]))
        assert first[1][:, i] * math.exp(first[0][i]) == pytest.approx([float(w) for w in want], rel=1e-12)
