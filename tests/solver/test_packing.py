"""Replicas on nodes, against exhaustive placement."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from solver.packing import fits, is_chain, patterns


def _fits_by_trying_everything(pieces: list[int], nodes: tuple[int, ...]) -> bool:
    if not pieces:
        return True
    first, rest = pieces[0], pieces[1:]
    return any(
        free >= first and _fits_by_trying_everything(rest, (*nodes[:i], free - first, *nodes[i + 1 :]))
        for i, free in enumerate(nodes)
    )


@given(
    st.lists(st.integers(1, 5), max_size=6),
    st.lists(st.integers(0, 8), max_size=3).map(tuple),
)
def test_fits_agrees_with_trying_every_placement(pieces: list[int], nodes: tuple[int, ...]) -> None:
    demand = {size: pieces.count(size) for size in set(pieces)}
    assert fits(demand, nodes) == _fits_by_trying_everything(sorted(pieces, reverse=True), nodes)


def test_first_fit_decreasing_alone_would_fail_here() -> None:
    # Decreasing: 3 fills one node to 3 of 4, then 2 and 2 need a node of 4, and 3 has no room.
    assert fits({3: 2, 2: 1}, (4, 5))
    assert not fits({3: 2, 2: 2}, (4, 5))


def test_patterns_are_maximal_and_complete() -> None:
    assert set(patterns(7, (3, 2))) == {(2, 0), (1, 2), (0, 3)}
    for pattern in patterns(11, (5, 3, 2)):
        left = 11 - sum(c * s for c, s in zip(pattern, (5, 3, 2), strict=True))
        assert 0 <= left < 2
    every = [
        c
        for c in itertools.product(range(3), range(4), range(6))
        if sum(n * s for n, s in zip(c, (5, 3, 2), strict=True)) <= 11
    ]
    assert all(
        any(all(n <= m for n, m in zip(c, p, strict=True)) for p in patterns(11, (5, 3, 2))) for c in every
    )


def test_chains() -> None:
    assert is_chain([8, 1, 4, 2])
    assert is_chain([])
    assert not is_chain([2, 3])
    assert not is_chain([1, 4, 6])
