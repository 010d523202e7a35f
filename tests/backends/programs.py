"""Small programs, and the truth about them."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from solver.milp import Milp

INF = np.inf
Row = tuple[dict[int, float], float, float]


def program(
    objective: Sequence[float],
    rows: Sequence[Row] = (),
    *,
    lower: Sequence[float] | float = 0.0,
    upper: Sequence[float] | float = INF,
    integer: Sequence[bool] | bool = True,
    offset: float = 0.0,
    column_names: tuple[str, ...] = (),
    row_names: tuple[str, ...] = (),
) -> Milp:
    """A `Milp` from rows of ({column: coefficient}, lower, upper)."""
    n = len(objective)
    return Milp(
        objective=np.array(objective, dtype=float),
        row_start=np.cumsum([0, *(len(entries) for entries, _, _ in rows)]),
        column=np.array([j for entries, _, _ in rows for j in entries], dtype=np.int64),
        value=np.array([v for entries, _, _ in rows for v in entries.values()], dtype=float),
        row_lower=np.array([low for _, low, _ in rows], dtype=float),
        row_upper=np.array([up for _, _, up in rows], dtype=float),
        column_lower=np.broadcast_to(np.asarray(lower, dtype=float), n).copy(),
        column_upper=np.broadcast_to(np.asarray(upper, dtype=float), n).copy(),
        integer=np.broadcast_to(np.asarray(integer, dtype=bool), n).copy(),
        offset=offset,
        column_names=column_names,
        row_names=row_names,
    )


def enumerated_optimum(milp: Milp) -> float | None:
    """Least objective of a pure integer program with finite bounds; None when infeasible."""
    ranges = [
        np.arange(np.ceil(low), np.floor(up) + 1)
        for low, up in zip(milp.column_lower, milp.column_upper, strict=True)
    ]
    points = np.array(list(itertools.product(*ranges)), dtype=float).reshape(-1, milp.columns)
    matrix = np.zeros((milp.rows, milp.columns))
    for i in range(milp.rows):
        entries = slice(milp.row_start[i], milp.row_start[i + 1])
        matrix[i, milp.column[entries]] = milp.value[entries]
    activity = points @ matrix.T
    feasible = ((activity >= milp.row_lower - 1e-9) & (activity <= milp.row_upper + 1e-9)).all(axis=1)
    if not feasible.any():
        return None
    return float((points[feasible] @ milp.objective).min()) + milp.offset


def market_split(rows: int, columns: int, *, slack: bool, seed: int = 1) -> Milp:
    """Split each row's weights into equal halves: tiny, and out of reach of branch and bound.

    With `slack` every point is feasible and the objective is the total deviation.

    References
    ----------
    Cornuéjols and Dawande, "A class of hard small 0-1 programs", https://doi.org/10.1287/ijoc.11.2.205
    """
    weights = np.random.default_rng(seed).integers(0, 100, (rows, columns))
    halves = weights.sum(axis=1) // 2
    entries = [{j: float(w) for j, w in enumerate(row)} for row in weights]
    if slack:
        for i, row in enumerate(entries):
            row |= {columns + i: 1.0, columns + rows + i: -1.0}
    slacks = 2 * rows if slack else 0
    return program(
        [0.0] * columns + [1.0] * slacks,
        [(row, float(half), float(half)) for row, half in zip(entries, halves, strict=True)],
        upper=[1.0] * columns + [INF] * slacks,
        integer=[True] * columns + [False] * slacks,
    )


def planted_split(rows: int, columns: int) -> tuple[Milp, np.ndarray]:
    """A market split without slack that has a solution, and that solution."""
    milp = market_split(rows, columns, slack=False)
    split = np.random.default_rng(2).integers(0, 2, columns).astype(float)
    halves = milp.row_activity(split)
    return replace(milp, row_lower=halves, row_upper=halves), split


def knapsack(sign: float, columns: int = 16, rows: int = 4) -> Milp:
    """Binary choices: `sign` < 0 packs the most worth, `sign` > 0 covers at the least cost."""
    rng = np.random.default_rng(3)
    weights = rng.integers(10, 60, (rows, columns))
    worth = weights.mean(axis=0) + rng.integers(0, 20, columns)
    half = weights.sum(axis=1) / 2
    low, up = (half, [INF] * rows) if sign > 0 else ([-INF] * rows, half)
    return program(
        (sign * worth).tolist(),
        [({j: float(w) for j, w in enumerate(weights[i])}, low[i], up[i]) for i in range(rows)],
        upper=1.0,
    )
