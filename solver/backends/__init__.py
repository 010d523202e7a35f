"""The solvers by name. A library is imported when its backend is asked for, not before."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, cast

from solver.errors import BackendMissingError, InputError, Problem

if TYPE_CHECKING:
    from pathlib import Path

    from solver.milp import Backend, Milp


@dataclass(frozen=True)
class BackendInfo:
    """A backend for display.

    Attributes
    ----------
    name : str
    installed : bool
    version : str
        Of the library; empty where it is not installed.
    exact : bool
        Whether answers carry a proven bound.
    description : str
    """

    name: str
    installed: bool
    version: str
    exact: bool
    description: str


@dataclass(frozen=True)
class _Entry:
    """Where a backend lives: module and class with arguments, package, executable and pip extra it needs."""

    description: str
    module: str
    factory: str
    arguments: tuple[str, ...]
    package: str
    executable: str | None = None
    extra: str | None = None


_ENTRIES = {
    "highs": _Entry("HiGHS: branch and cut", "highs", "Highs", (), "highspy"),
    "ortools": _Entry("SCIP through OR-Tools MathOpt", "ortools", "OrTools", (), "ortools", extra="ortools"),
    "pyomo": _Entry("HiGHS through Pyomo", "pyomo", "Pyomo", ("highs",), "pyomo", extra="pyomo"),
    "pyomo:cbc": _Entry("CBC through Pyomo", "pyomo", "Pyomo", ("cbc",), "pyomo", "cbc", "pyomo"),
    "pyomo:glpk": _Entry("GLPK through Pyomo", "pyomo", "Pyomo", ("glpk",), "pyomo", "glpsol", "pyomo"),
}
_ALIASES = {"pyomo:highs": "pyomo"}

GREEDY = "greedy"
EXACT = tuple(_ENTRIES)


def get(name: str) -> Backend:
    """Return the backend of that name.

    Parameters
    ----------
    name : str
        One of `EXACT`; ``pyomo:highs`` is ``pyomo``.

    Raises
    ------
    InputError
        When no exact backend has that name.
    BackendMissingError
        When its library or its executable is not installed.
    """
    entry = _ENTRIES.get(_ALIASES.get(name, name))
    if entry is None:
        raise InputError([Problem("backend", f'"{name}"', f"one of {', '.join((*EXACT, GREEDY))}")])
    missing = _missing(entry)
    if missing:
        raise BackendMissingError(f"backend {name} needs {missing}")
    module = import_module(f"{__name__}.{entry.module}")
    return cast("Backend", getattr(module, entry.factory)(*entry.arguments))


def listing() -> list[BackendInfo]:
    """All backends and the greedy baseline, installed or not; imports no solver library."""
    infos = [
        BackendInfo(
            name, not _missing(entry), _version(entry.package), exact=True, description=entry.description
        )
        for name, entry in _ENTRIES.items()
    ]
    greedy = BackendInfo(
        GREEDY,
        installed=True,
        version=_version("fleetopt"),
        exact=False,
        description="by priority, largest regret first; no bound",
    )
    return [*infos, greedy]


def write_model(milp: Milp, path: Path) -> None:
    """Write `milp` to an LP or MPS file; see :func:`solver.backends.pyomo.write_model`.

    Raises
    ------
    InputError
        When the suffix is neither ``.lp`` nor ``.mps``.
    BackendMissingError
        When Pyomo is not installed.
    """
    missing = _missing(_ENTRIES["pyomo"])
    if missing:
        raise BackendMissingError(f"writing a model needs {missing}")
    import_module(f"{__name__}.pyomo").write_model(milp, path)


def _missing(entry: _Entry) -> str:
    """What the entry needs and this system lacks, with the remedy; empty when nothing."""
    if not _version(entry.package):
        extra = f"fleetopt[{entry.extra}]" if entry.extra else "fleetopt"
        return f"the package {entry.package}: pip install '{extra}'"
    if entry.executable and not shutil.which(entry.executable):
        return f"the executable {entry.executable} on the PATH"
    return ""


@cache
def _version(package: str) -> str:
    """Version of an installed package, else an empty string; read once, for every request asks."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
