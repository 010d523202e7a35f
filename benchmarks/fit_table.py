"""Print how well law 3 and its extensions describe measured hardware, as the table of docs/fit.md.

Usage: ``python benchmarks/fit_table.py [--merge-versions] [DATA]``

Each group of the silicon table, one model on one GPU type, engine, engine version, precision and parallel
layout with at least 3 request shapes and 9 points, is fitted on its own. Columns, in percent:

- error: mean of |predicted / measured - 1| of the ITL over the points fitted;
- worst: the largest of them;
- unseen: mean error at request shapes left out one by one; the law is the one chosen for the whole group;
- blind: the same, with the law chosen anew without the shape left out.

Rows are medians over the groups. ``--merge-versions`` makes one group of all versions of an engine and all
expert-parallel layouts.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from models.catalog.build import FORMS, Group, Size, expected, fit_group, gpus, silicon_groups, sizes
from models.fit import fit, predict
from models.measurements import MeasurementError, Measurements, check

LEAST_SHAPES, LEAST_POINTS = 3, 9


@dataclass(frozen=True)
class Row:
    """One group's errors, as shares."""

    experts: bool
    model: str
    gpu: str
    engine: str
    points: int
    error: float
    worst: float
    unseen: float
    blind: float


def merged(groups: list[Group]) -> list[Group]:
    """One group of all versions and expert-parallel layouts."""
    found: dict[tuple[object, ...], list[Group]] = defaultdict(list)
    for group in groups:
        found[group.path, group.gpu, group.engine, group.cards, group.precision].append(group)
    return [
        replace(
            same[0],
            points=Measurements(
                **{
                    field.name: np.concatenate([getattr(group.points, field.name) for group in same])
                    for field in fields(Measurements)
                }
            ),
        )
        for same in found.values()
    ]


def blind_error(group: Group, size: Size, gpu) -> float:
    """Mean error at shapes that neither the parameters nor the choice of the law have seen."""
    points, _ = check(group.points)
    errors = []
    for shape in range(int(points.shape_index.max()) + 1):
        kept = points.shape_index != shape
        try:
            found = fit(
                points.take(kept),
                expert_fraction=size.expert_fraction,
                expected=expected(group, size, gpu),
                forms=FORMS,
            )
        except MeasurementError:  # One batch size is left.
            continue
        itl_ms, _ = predict(found.form, found.parameters, points.take(~kept))
        errors.append(np.abs(itl_ms / points.itl_ms[~kept] - 1.0))
    return float(np.concatenate(errors).mean())


def rows(data: Path, *, merge_versions: bool) -> list[Row]:
    size_of, gpu_of = sizes(data), {gpu.gpu: gpu for gpu in gpus(data)}
    groups = silicon_groups(data)
    found = []
    for group in merged(groups) if merge_versions else groups:
        if len(group.points) < LEAST_POINTS or int(group.points.shape_index.max()) + 1 < LEAST_SHAPES:
            continue
        size, gpu = size_of[group.path], gpu_of[group.gpu]
        fitted = fit_group(group, size, gpu)
        found.append(
            Row(
                experts=size.expert_fraction is not None,
                model=group.model,
                gpu=group.gpu,
                engine=group.engine,
                points=fitted.points,
                error=fitted.mean_error,
                worst=fitted.worst_error,
                unseen=fitted.held_out_error,
                blind=blind_error(group, size, gpu),
            )
        )
    return found


def line(name: str, some: list[Row]) -> str:
    medians = [
        100 * np.median([getattr(row, key) for row in some]) for key in ("error", "worst", "unseen", "blind")
    ]
    return (
        f"| {name} | {len(some)} | {sum(row.points for row in some)} | "
        + " | ".join(f"{value:.1f}" for value in medians)
        + " |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Errors of the fits of the silicon table.")
    parser.add_argument("data", nargs="?", type=Path, default=Path(__file__).parent.parent / "data")
    parser.add_argument("--merge-versions", action="store_true")
    args = parser.parse_args()
    start_s = time.perf_counter()
    found = rows(args.data, merge_versions=args.merge_versions)
    print("| groups | number | points | error | worst | unseen | blind |\n|---|---|---|---|---|---|---|")
    for experts, name in ((False, "dense"), (True, "mixture of experts")):
        some = [row for row in found if row.experts == experts]
        print(line(f"**{name}**", some))
        for key in ("model", "engine", "gpu"):
            for value in sorted({getattr(row, key) for row in some}):
                print(line(f"{name}: {value}", [row for row in some if getattr(row, key) == value]))
    print(f"\n{len(found)} groups in {time.perf_counter() - start_s:.0f} s")


if __name__ == "__main__":
    main()
