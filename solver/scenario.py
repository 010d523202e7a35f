"""What-if scenarios: a system, changes to it, sweeps over one change, and what must hold of the answers.

::

    scenario.yaml -> load -> Scenario -> build -> [Case] -> run_case    -> [Outcome] -> render
                                                         -> check_sweep ->

``docs/scenarios.md`` documents the file. Costs are those of the input, cents per hour.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml
from rich.console import Console
from rich.table import Table

from solver.backends import GREEDY
from solver.errors import BackendMissingError, FleetoptError, InputError, Problem
from solver.optimize import DEFAULT_BACKEND, RequestOptions, optimize_json
from solver.scenario_changes import apply
from solver.scenario_document import PLAIN, Document, Expect, validate
from solver.scenario_expect import Answer, Failure, better_than_proven, failures, sweep_failures

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from solver.scenario_document import Across, Change, Json, Scalar, SweepSpec

FILE_NAME = "scenario.yaml"


@dataclass(frozen=True)
class Scenario:
    """A scenario file, read and valid.

    Attributes
    ----------
    name : str
        The name of its folder.
    path : Path
        The file.
    document : Document
    """

    name: str
    path: Path
    document: Document


@dataclass(frozen=True)
class Case:
    """One system to optimise.

    Attributes
    ----------
    scenario, name : str
        The plain case is named ``base``, a sweep's cases ``<sweep>=<value>``.
    system : dict
        The system document with all changes made.
    expect : tuple of Expect
    """

    scenario: str
    name: str
    system: Json
    expect: tuple[Expect, ...]


@dataclass(frozen=True)
class Sweep:
    """The cases of a sweep, in the order of its values."""

    scenario: str
    spec: SweepSpec
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a case, or of a sweep as a whole.

    Attributes
    ----------
    scenario, name : str
    backend : str
        The backend that answered; empty for a sweep, or where none did.
    answer : Answer or None
        None for a sweep, or where there was no answer.
    seconds : float
        Of the optimisation as it reports them, 0 without an answer.
    failures : tuple of Failure
    skipped : int
        Expectations left out because the backend proves nothing.
    """

    scenario: str
    name: str
    backend: str
    answer: Answer | None
    seconds: float
    failures: tuple[Failure, ...]
    skipped: int = 0

    @property
    def passed(self) -> bool:
        """Whether every expectation holds."""
        return not self.failures


def find(paths: Iterable[Path]) -> list[Path]:
    """List the scenario files of `paths`: files, scenario folders, and folders of scenario folders.

    Raises
    ------
    InputError
        For a path without any scenario.
    """
    files: list[Path] = []
    for path in paths:
        own = path if path.is_file() else path / FILE_NAME
        found = [own] if own.is_file() else sorted(path.glob(f"*/{FILE_NAME}"))
        if not found:
            raise InputError([Problem(str(path), "", f"a {FILE_NAME}, or a folder that holds some")])
        files += found
    return files


def load(path: Path) -> Scenario:
    """Read a scenario.

    Parameters
    ----------
    path : Path
        A ``scenario.yaml``, or the folder that holds one.

    Raises
    ------
    InputError
        With the path of every key that is wrong, such as ``scenario.yaml: changes[0].set_gpus.H200``.
    """
    file = path / FILE_NAME if path.is_dir() else path
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError([Problem(str(file), "", f"a readable YAML file: {error}")]) from error
    return Scenario(file.resolve().parent.name, file, validate(Document, raw, f"{file}:"))


def build(scenario: Scenario) -> list[Case]:
    """Make the plain case and the named cases of a scenario; its sweeps are apart (`build_sweeps`).

    Raises
    ------
    InputError
        If a base cannot be read, or a change does not fit its system.
    """
    document = scenario.document
    cases = []
    if document.expect is not None:
        cases.append(Case(scenario.name, PLAIN, _system(scenario), (document.expect,)))
    for number, spec in enumerate(document.cases):
        where = f"{scenario.path}: cases[{number}].changes"
        system = apply(_system(scenario, spec.base), _numbered(spec.changes, where))
        cases.append(Case(scenario.name, spec.name, system, (spec.expect,)))
    return cases


def build_sweeps(scenario: Scenario) -> list[Sweep]:
    """Make one case for each value of each sweep.

    Raises
    ------
    InputError
        As `build`, and if a value makes its change invalid.
    """
    sweeps = []
    for number, spec in enumerate(scenario.document.sweeps):
        base = _system(scenario)
        cases = []
        for value in spec.values:
            where = f"{scenario.path}: sweeps[{number}] with {json.dumps(value)}, change"
            system = apply(base, [(where, spec.change_at(value, where))])
            expect = [spec.expect] if spec.expect else []
            expect += [at.expect for at in spec.expect_at if at.value == value]
            cases.append(Case(scenario.name, f"{spec.name}={_text(value)}", system, tuple(expect)))
        sweeps.append(Sweep(scenario.name, spec, tuple(cases)))
    return sweeps


def _text(value: Scalar) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _numbered(changes: Sequence[Change], where: str) -> list[tuple[str, Change]]:
    return [(f"{where}[{number}]", change) for number, change in enumerate(changes)]


def _system(scenario: Scenario, base: str | None = None, above: tuple[Path, ...] = ()) -> Json:
    """Read the base of a scenario, or `base` in its place, and make the scenario's own changes."""
    base = base or scenario.document.base
    folder = scenario.path.resolve().parent

    def wrong(expected: str) -> InputError:
        return InputError([Problem(f"{scenario.path}: base", json.dumps(base) if base else "", expected)])

    if base is None:
        raise wrong("a base: another scenario builds on this one")
    if base.endswith(".json"):
        try:
            system = json.loads((folder / base).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise wrong(f"a readable JSON file: {error}") from error
        if not isinstance(system, dict):
            raise wrong("a file that holds a JSON object")
    else:
        other = folder.parent / base / FILE_NAME
        if other in (*above, folder / FILE_NAME):
            raise wrong("a scenario that does not build on this one")
        if not other.is_file():
            raise wrong("the path of a .json file, or the name of a scenario beside this one")
        system = _system(load(other), above=(*above, folder / FILE_NAME))
    return apply(system, _numbered(scenario.document.changes, f"{scenario.path}: changes"))


def run_case(case: Case, backend: str | None = None) -> Outcome:
    """Optimise a case and hold its expectations against the answer.

    Parameters
    ----------
    case : Case
    backend : str or None
        None: the one that the system names, or the default.

    Raises
    ------
    InputError
        If the changed system is not valid.
    BackendMissingError
    """
    body = json.dumps(case.system).encode()
    try:
        answered = optimize_json(body, RequestOptions(backend=backend))
    except InputError as error:
        at = f"{case.scenario}, {case.name}: "
        raise InputError([Problem(at + p.path, p.value, p.expected) for p in error.problems]) from error
    except BackendMissingError:
        raise
    except FleetoptError as error:
        failure = Failure("an answer", f"{type(error).__name__}: {error}")
        return Outcome(case.scenario, case.name, "", None, 0.0, (failure,))
    answer = Answer(case.system, json.loads(answered.body))
    held = [expect for expect in case.expect if answered.backend != GREEDY or not expect.exact_only]
    found = [failure for expect in held for failure in failures(expect, answer)]
    if answered.backend == GREEDY:
        proven = optimize_json(body, RequestOptions(backend=DEFAULT_BACKEND))
        better = better_than_proven(answer, Answer(case.system, json.loads(proven.body)))
        found += [better] if better else []
    skipped = _stated(case.expect) - _stated(held)
    seconds = answered.seconds["total"]
    return Outcome(case.scenario, case.name, answered.backend, answer, seconds, tuple(found), skipped)


def _stated(expectations: Sequence[Expect | Across]) -> int:
    return sum(len(expect.stated()) for expect in expectations)


def check_sweep(sweep: Sweep, outcomes: Sequence[Outcome]) -> Outcome:
    """Hold what must hold along a sweep against the outcomes of its cases, in their order."""
    answers = [outcome.answer for outcome in outcomes if outcome.answer is not None]
    across = [sweep.spec.across] if sweep.spec.across else []
    held = [a for a in across if not (a.exact_only and any(o.backend == GREEDY for o in outcomes))]
    found: list[Failure] = []
    if len(answers) < len(sweep.cases):
        missing = [outcome.name for outcome in outcomes if outcome.answer is None]
        found.append(Failure("an answer for every value", f"none for {', '.join(missing)}"))
    else:
        points = list(zip(sweep.spec.values, answers, strict=True))
        found += [failure for expect in held for failure in sweep_failures(expect, points)]
    skipped = _stated(across) - _stated(held)
    return Outcome(sweep.scenario, f"{sweep.spec.name} (sweep)", "", None, 0.0, tuple(found), skipped)


def run_paths(paths: Iterable[Path], backend: str | None = None) -> list[Outcome]:
    """Run every case and every sweep of the scenarios in `paths` (see `find`), in order.

    Raises
    ------
    InputError, BackendMissingError
        As `find`, `load`, `build`, `build_sweeps` and `run_case`.
    """
    outcomes = []
    for file in find(paths):
        scenario = load(file)
        cases, sweeps = build(scenario), build_sweeps(scenario)
        outcomes += [run_case(case, backend) for case in cases]
        for sweep in sweeps:
            swept = [run_case(case, backend) for case in sweep.cases]
            outcomes += [*swept, check_sweep(sweep, swept)]
    return outcomes


def render(outcomes: Sequence[Outcome], width: int = 160) -> str:
    """Write outcomes as a table, and below it every expectation that does not hold.

    Parameters
    ----------
    outcomes : sequence of Outcome
    width : int
        Most columns of text.
    """
    table = Table(box=None, pad_edge=False, header_style="")
    for heading in ("scenario", "case"):
        table.add_column(heading, overflow="fold")
    for heading in ("cost cents/h", "unserved", "gap"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("GPUs used", overflow="fold")
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("expectations", no_wrap=True)
    for outcome in outcomes:
        table.add_row(outcome.scenario, outcome.name, *_figures(outcome), _verdict(outcome))
    text = io.StringIO()
    console = Console(file=text, width=width, color_system=None, highlight=False, markup=False, emoji=False)
    console.print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    lines += [f"{o.scenario}, {o.name}: {failure}" for o in outcomes for failure in o.failures]
    return "\n".join(lines) + "\n"


def _verdict(outcome: Outcome) -> str:
    text = "hold" if outcome.passed else f"{len(outcome.failures)} FAILED"
    return f"{text}, {outcome.skipped} skipped" if outcome.skipped else text


def _figures(outcome: Outcome) -> tuple[str, str, str, str, str]:
    """Cost, unserved, gap, GPUs by type and seconds of an outcome as text."""
    answer = outcome.answer
    if answer is None:
        return "", "", "", "", ""
    used = ", ".join(
        f"{gpu_type} {answer.used(gpu_type)}" for gpu_type in answer.inventory if answer.used(gpu_type)
    )
    unserved = f"{len(answer.unserved)} ({sum(answer.unserved.values()):.2f})" if answer.unserved else "0"
    gap = "" if answer.report["gap"] is None else f"{answer.gap:.2%}"
    return f"{answer.cost:,.2f}", unserved, gap, used or "none", f"{outcome.seconds:.2f}"
