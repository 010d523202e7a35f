import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from solver.backends import EXACT, GREEDY, get, listing
from solver.errors import InputError

ROOT = Path(__file__).parents[2]


def run(code: str, *options: str, **environment: str) -> str:
    """Output of a fresh interpreter that finds the project, with warnings as errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *options, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError) as caught:
        get("cplex")
    problem = caught.value.problems[0]
    assert problem.path == "backend"
    assert problem.value == '"cplex"'
    for name in ("highs", "ortools", "pyomo", "pyomo:cbc", "pyomo:glpk", "greedy"):
        assert name in problem.expected


def test_greedy_is_listed_and_is_no_exact_backend() -> None:
    infos = {info.name: info for info in listing()}
    assert tuple(infos) == (*EXACT, GREEDY)
    assert infos[GREEDY].installed
    assert not infos[GREEDY].exact
    with pytest.raises(InputError):
        get(GREEDY)


def test_highs_comes_with_the_package() -> None:
    highs = listing()[0]
    assert highs.name == "highs"
    assert highs.installed
    assert highs.exact
    assert highs.version


def test_pyomo_alone_means_highs_through_pyomo() -> None:
    pytest.importorskip("pyomo")
    assert get("pyomo").name == get("pyomo:highs").name


def test_listing_imports_no_solver_library() -> None:
    code = "import sys; from solver.backends import listing; listing(); print(*sys.modules)"
    assert not {"highspy", "ortools", "pyomo", "numpy"} & set(run(code).split())


ASK = """
from solver.backends import get, listing
from solver.errors import BackendMissingError
for info in listing():
    if info.exact:
        try:
            get(info.name)
            print(info.name, info.installed, "there")
        except BackendMissingError as error:
            print(info.name, info.installed, error)
"""


def test_missing_library_says_how_to_install_it() -> None:
    # -S hides the installed packages.
    said = run(ASK, "-S").splitlines()
    assert "highs False backend highs needs the package highspy: pip install 'fleetopt'" in said
    assert "ortools False backend ortools needs the package ortools: pip install 'fleetopt[ortools]'" in said
    assert "pyomo False backend pyomo needs the package pyomo: pip install 'fleetopt[pyomo]'" in said


def test_missing_executable_is_named() -> None:
    pytest.importorskip("pyomo")
    said = run(ASK, PATH="/nowhere").splitlines()
    assert "pyomo:cbc False backend pyomo:cbc needs the executable cbc on the PATH" in said
    assert "pyomo:glpk False backend pyomo:glpk needs the executable glpsol on the PATH" in said


SOLVE_ALL = """
import numpy as np
from solver.backends import get
from solver.milp import Milp, SolveOptions
one = np.ones(1)
milp = Milp(one, np.array([0, 1]), np.array([0]), 2 * one, 3 * one, np.inf * one, 0 * one, 9 * one, one > 0)
backends = [get(name) for name in {names}]  # all imported before the first one solves
for backend in [*backends, *backends]:
    assert backend.solve(milp, SolveOptions()).objective == 2.0, backend.name
print("solved")
"""


@pytest.mark.parametrize("names", list(itertools.permutations(["highs", "ortools", "pyomo"])), ids="-".join)
def test_all_libraries_load_and_solve_in_one_process_in_every_order(names: tuple[str, ...]) -> None:
    pytest.importorskip("ortools")
    pytest.importorskip("pyomo")
    assert run(SOLVE_ALL.format(names=names)) == "solved\n"
