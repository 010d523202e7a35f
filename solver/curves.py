"""Sizing kept between calls: the capacity of a replica does not depend on how much arrives."""

from __future__ import annotations

from dataclasses import fields
from itertools import islice, repeat
from typing import TYPE_CHECKING, cast

import numpy as np

from models import capacity, moments
from models.capacity import Sizing
from solver.simulators import Findings

if TYPE_CHECKING:
    from models.laws import Candidates
    from solver.milp import BoolArray, FloatArray, IntArray

# An entry takes about 0.4 kB, so this many take about 100 MB; a system of 10,000 servers on 21 accelerators
# has 210,000.
MOST_ENTRIES = 250_000

_FIGURES = tuple(field.name for field in fields(Sizing))


class Curves:
    """Sizes candidates, and remembers the figures of those it has seen.

    A candidate is known by all that its capacity depends on: profile, request shape, targets, limits. Equal
    candidates are sized once. When more than `most` are remembered all but those of the last call are
    forgotten.

    Attributes
    ----------
    hits, misses : int
        Candidates that were remembered, from an earlier call or from the same, and that had to be sized,
        since it was made.
    findings : Findings
        What was simulated to verify answers.
    """

    def __init__(self, most: int = MOST_ENTRIES) -> None:
        self.hits = 0
        self.misses = 0
        self._most = most
        self._row: dict[bytes, int] = {}
        self._figures = np.empty((0, len(_FIGURES)))
        self.findings = Findings()

    def size(self, candidates: Candidates, detail: moments.Detail, by_moments: BoolArray) -> Sizing:
        """Size candidates: by the law on moments where `by_moments`, by the reference's laws elsewhere."""
        keys = _keys(candidates, detail, by_moments)
        row = np.fromiter(map(self._row.get, keys, repeat(-1)), np.int64, len(keys))
        missing = np.flatnonzero(row < 0)
        new: dict[bytes, int] = {}
        for i in missing.tolist():
            new.setdefault(keys[i], i)
        self.hits += len(keys) - len(new)
        self.misses += len(new)
        if new:
            sized = _size(candidates, detail, by_moments, np.array(list(new.values())))
            self._row.update(zip(new, range(len(self._figures), len(self._figures) + len(new)), strict=True))
            self._figures = np.concatenate((self._figures, sized))
            row[missing] = [self._row[keys[i]] for i in missing.tolist()]
        table = self._figures[row].T
        if len(self._row) > self._most:
            self._forget_all_but(keys)
        named = {name: column.copy() for name, column in zip(_FIGURES, table, strict=True)}
        return Sizing(limit=named.pop("limit").astype(np.int64), **named)

    def _forget_all_but(self, keys: list[bytes]) -> None:
        kept = list(islice(dict.fromkeys(keys), self._most))
        self._figures = self._figures[[self._row[key] for key in kept]]
        self._row = {key: row for row, key in enumerate(kept)}


def _size(
    candidates: Candidates, detail: moments.Detail, by_moments: BoolArray, which: IntArray
) -> FloatArray:
    """Figures of the candidates at these indices, in the order of `_FIGURES`, shape (n, 5)."""
    table = np.empty((len(which), len(_FIGURES)))
    for moment in (False, True):
        mine = np.flatnonzero(by_moments[which] == moment)
        if mine.size:
            rows = candidates.take(which[mine])
            figures = moments.size(rows, detail.take(which[mine])) if moment else capacity.size(rows)
            table[mine] = np.column_stack([getattr(figures, name) for name in _FIGURES])
    return table


def _keys(candidates: Candidates, detail: moments.Detail, by_moments: BoolArray) -> list[bytes]:
    """Everything that the sizing of each candidate depends on, as bytes."""
    columns = [getattr(candidates, field.name).astype(np.float64) for field in fields(candidates)]
    columns += [np.where(by_moments, getattr(detail, field.name), 0.0) for field in fields(detail)]
    table = np.ascontiguousarray(np.column_stack([*columns, by_moments]))
    rows = table.view(np.dtype((np.void, table.itemsize * table.shape[1]))).ravel()
    return cast("list[bytes]", rows.tolist())
