"""Sizing kept between calls: the capacity of a replica does not depend on how much arrives."""

from __future__ import annotations

from dataclasses import fields
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from models import capacity, moments
from models.capacity import Sizing
from solver.simulators import Findings

if TYPE_CHECKING:
    from models.laws import Candidates
    from solver.milp import BoolArray

# An entry takes about 0.5 kB, so this many take about 50 MB.
MOST_ENTRIES = 100_000


class Curves:
    """Sizes candidates, and remembers the figures of those it has seen.

    A candidate is known by all that its capacity depends on: profile, request shape, targets, limits. When
    `most` are remembered the older half is forgotten.

    Attributes
    ----------
    hits, misses : int
        Candidates that were remembered, and that had to be sized, since it was made.
    findings : Findings
        What was simulated to verify answers.
    """

    def __init__(self, most: int = MOST_ENTRIES) -> None:
        self.hits = 0
        self.misses = 0
        self._most = most
        self._known: dict[bytes, tuple[float, ...]] = {}
        self.findings = Findings()

    def size(self, candidates: Candidates, detail: moments.Detail, by_moments: BoolArray) -> Sizing:
        """Size candidates: by the law on moments where `by_moments`, by the reference's laws elsewhere."""
        count = len(candidates)
        keys = _keys(candidates, detail, by_moments)
        found: list[tuple[float, ...] | None] = [self._known.get(key) for key in keys]
        missing = np.array([i for i, figures in enumerate(found) if figures is None], dtype=np.int64)
        self.hits += count - len(missing)
        self.misses += len(missing)
        for mine, moment in ((missing[~by_moments[missing]], False), (missing[by_moments[missing]], True)):
            if mine.size:
                rows = candidates.take(mine)
                figures = moments.size(rows, detail.take(mine)) if moment else capacity.size(rows)
                columns = [getattr(figures, field.name).tolist() for field in fields(Sizing)]
                for i, row in zip(mine.tolist(), zip(*columns, strict=True), strict=True):
                    found[i] = self._known[keys[i]] = row
        self._forget()
        table = np.array(found, dtype=np.float64).reshape(count, len(fields(Sizing))).T
        named = {field.name: column.copy() for field, column in zip(fields(Sizing), table, strict=True)}
        return Sizing(limit=named.pop("limit").astype(np.int64), **named)

    def _forget(self) -> None:
        if len(self._known) > self._most:
            older = list(islice(self._known, len(self._known) - self._most // 2))
            for key in older:
                del self._known[key]


def _keys(candidates: Candidates, detail: moments.Detail, by_moments: BoolArray) -> list[bytes]:
    """Everything that the sizing of each candidate depends on, as bytes."""
    columns = [getattr(candidates, field.name).astype(np.float64) for field in fields(candidates)]
    columns += [np.where(by_moments, getattr(detail, field.name), 0.0) for field in fields(detail)]
    table = np.ascontiguousarray(np.column_stack([*columns, by_moments]))
    rows = table.view(np.dtype((np.void, table.itemsize * table.shape[1]))).ravel()
    return [bytes(row) for row in rows.tolist()]
