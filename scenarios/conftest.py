"""Every scenario.yaml is a test for each of its cases, and one for each of its sweeps as a whole."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import pytest

from solver.errors import FleetoptError, InputError
from solver.scenario import FILE_NAME, build, build_sweeps, check_sweep, load, render, run_case

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from solver.scenario import Case, Outcome, Sweep


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    return ScenarioFile.from_parent(parent, path=file_path) if file_path.name == FILE_NAME else None


class Unmet(Exception):
    """Some expectations do not hold."""


class ScenarioFile(pytest.File):
    def collect(self) -> Iterator[pytest.Item]:
        try:
            scenario = load(self.path)
            cases, sweeps = build(scenario), build_sweeps(scenario)
        except InputError as error:
            raise self.CollectError(str(error)) from error
        for case in cases:
            yield CaseItem.from_parent(self, name=case.name, case=case)
        for sweep in sweeps:
            points = [CaseItem.from_parent(self, name=case.name, case=case) for case in sweep.cases]
            yield from points
            yield SweepItem.from_parent(self, name=sweep.spec.name, sweep=sweep, points=points)


class OutcomeItem(pytest.Item):
    def runtest(self) -> None:
        if not self.outcome.passed:
            raise Unmet

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: str | None = None) -> str:
        if isinstance(excinfo.value, Unmet):
            return f"{self.path.parent.name}: {self.outcome.name}\n\n{self.table()}"
        if isinstance(excinfo.value, FleetoptError):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, f"{self.path.parent.name}: {self.name}"

    def table(self) -> str:
        return render([self.outcome])


class CaseItem(OutcomeItem):
    def __init__(self, *, case: Case, **rest: object) -> None:
        super().__init__(**rest)
        self.case = case

    @cached_property
    def outcome(self) -> Outcome:
        return run_case(self.case, self.config.getoption("--backend"))


class SweepItem(OutcomeItem):
    """Uses the outcomes of its points, and makes those that were not selected."""

    def __init__(self, *, sweep: Sweep, points: list[CaseItem], **rest: object) -> None:
        super().__init__(**rest)
        self.sweep = sweep
        self.points = points

    @cached_property
    def outcome(self) -> Outcome:
        return check_sweep(self.sweep, [point.outcome for point in self.points])

    def table(self) -> str:
        return render([*(point.outcome for point in self.points), self.outcome])
