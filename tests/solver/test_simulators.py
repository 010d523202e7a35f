"""Trials in child processes: the same findings as here, remembered, and no time lost on what is over."""

import os
from dataclasses import replace

import pytest

from models.replica import IterationLaw
from models.trial import Service, Verdict
from solver import simulators
from solver.errors import SolverError
from solver.simulators import Findings, Simulators, Task, carry_out

# M/D/1: service 0.1 s.
ONE = Service(IterationLaw(0.01, 0.0, 0.0), max_batch=1, in_tokens=50, out_tokens=10, ttft_target_s=0.2)
TASKS = [Task(ONE, 2.0), Task(ONE, 9.5), Task(replace(ONE, ttft_target_s=0.001), 3.0)]
LONG_S = 600.0


def test_children_find_what_this_process_finds() -> None:
    with Simulators(2) as several:
        found = several.run(TASKS, LONG_S)
        again = several.run(TASKS[:2], LONG_S)
    assert found == [carry_out(task, LONG_S) for task in TASKS]
    assert again == found[:2]
    first, second, third = found
    assert first is not None and second is not None and third is not None
    assert (first.trial.verdict, first.largest_rps) == (Verdict.MET, None)
    assert second.trial.verdict is Verdict.MISSED and 5.0 < (second.largest_rps or 0.0) < 9.5
    assert third.largest_rps == 0.0 and third.lowest is not None and third.lowest.rate_rps == 0.03


def test_nothing_is_begun_when_the_time_is_over() -> None:
    with Simulators(2) as several:
        assert several.run(TASKS, 0.0) == [None, None, None]
    assert carry_out(TASKS[0], 0.0) is None


def test_children_end_with_the_block() -> None:
    with Simulators(2) as several:
        several.run(TASKS[:2], LONG_S)
        pids = [child.pid for child in several._children]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_child_that_dies_is_an_error_and_no_hang() -> None:
    with Simulators(2) as several:
        several.run(TASKS[:2], LONG_S)
        several._children[0].kill()
        several._children[0].wait()
        with pytest.raises(SolverError, match="ended with exit code -9"):
            several.run(TASKS, LONG_S)


def test_children_take_the_packages_of_this_process_and_none_of_the_working_directory(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "solver").mkdir()
    (tmp_path / "solver" / "__init__.py").write_text("raise ImportError('of another project')")
    monkeypatch.chdir(tmp_path)
    with Simulators(2) as several:
        assert None not in several.run(TASKS[:2], LONG_S)


class Counting(Simulators):
    """Counts the tasks that are carried out."""

    def __init__(self) -> None:
        super().__init__(1)
        self.carried_out = 0

    def run(self, tasks, limit_s):
        self.carried_out += len(tasks)
        return super().run(tasks, limit_s)


def test_findings_are_remembered_and_equal_tasks_are_one() -> None:
    findings, several = Findings(), Counting()
    first = findings.of([TASKS[0], TASKS[0], TASKS[1]], several, LONG_S)
    assert several.carried_out == 2 and first[0] is first[1]
    assert findings.of(TASKS[:2], several, LONG_S) == [first[0], first[2]]
    assert several.carried_out == 2


def test_what_was_not_finished_is_not_remembered() -> None:
    findings, several = Findings(), Counting()
    assert findings.of(TASKS[:1], several, 0.0) == [None]
    assert findings.of(TASKS[:1], several, LONG_S) != [None]


def test_memory_is_bounded() -> None:
    findings, several = Findings(most=2), Counting()
    tasks = [Task(ONE, rate) for rate in (0.5, 0.6, 0.7)]
    for task in tasks:
        findings.of([task], several, LONG_S)
    findings.of(tasks[1:], several, LONG_S)
    assert several.carried_out == 4, "of three the older half was forgotten, to leave one"


def test_as_many_children_as_tasks_at_most() -> None:
    with Simulators(8) as several:
        several.run(TASKS[:2], LONG_S)
        assert len(several._children) == 2
    assert Simulators()._most <= simulators.MOST_PROCESSES
