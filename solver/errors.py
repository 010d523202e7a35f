"""What can go wrong, as types.

::

    FleetoptError
    ├── InputError            the caller's document or option is wrong (HTTP 422, exit 2)
    ├── BackendMissingError   the chosen solver library is not installed (HTTP 503, exit 2)
    ├── NoAnswerError         the deadline passed with no point to return (HTTP 503, exit 3)
    ├── SolverError           a solver library failed or answered a status nobody knows (HTTP 500)
    └── CheckError            an answer broke a rule of ``check.py`` (HTTP 500): a bug in fleetopt

Scarcity is not here: an allocation that leaves demand unserved is an answer.
"""

from __future__ import annotations

from dataclasses import dataclass


class FleetoptError(Exception):
    """Base of every error fleetopt raises on purpose."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input.

    Attributes
    ----------
    path : str
        Where, as a JSON path such as ``$.system.modelData.models[3].alpha``; a query option as
        ``?backend``.
    value : str
        The offending value as JSON text, shortened; empty when the key is missing.
    expected : str
        What would be right, as a phrase.
    """

    path: str
    value: str
    expected: str

    def __str__(self) -> str:
        found = f" (found {self.value})" if self.value else ""
        return f"{self.path}: {self.expected}{found}"


class InputError(FleetoptError):
    """The input is wrong; carries all problems of the document, not only the first.

    Parameters
    ----------
    problems : list of Problem
        At least one.
    """

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))

    def __reduce__(self) -> tuple[type[InputError], tuple[list[Problem]]]:
        return (InputError, (self.problems,))


class BackendMissingError(FleetoptError):
    """A backend's library is not installed; the message says how to install it."""


class NoAnswerError(FleetoptError):
    """The deadline passed and no feasible point was known."""


class SolverError(FleetoptError):
    """A solver library failed, or answered a status that its driver does not know."""


class CheckError(FleetoptError):
    """A plan broke a rule of :mod:`solver.check`; never the caller's fault."""
