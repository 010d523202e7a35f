"""System -> answer over HTTP: one try, with a limit of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import requests
from pydantic import ValidationError

from controller.errors import OptimizerError
from solver.schema import AnalyzeResponse, ErrorResponse, Response, SystemRequest

if TYPE_CHECKING:
    from solver.schema import System

Answer = TypeVar("Answer", Response, AnalyzeResponse)

# What of an error's text goes into a condition.
_MOST_TEXT = 500


@dataclass(frozen=True)
class HttpOptimizer:
    """The optimizer service.

    Attributes
    ----------
    url : str
        Base URL of the service.
    timeout_s : float
        Longest silence that is waited for, > 0; the service itself ends a solve that takes too long.
    """

    url: str
    timeout_s: float

    def optimize(self, system: System) -> Response:
        """Ask for the allocation of a system.

        Raises
        ------
        OptimizerError
            When there is no answer in time, or it is none.
        """
        return self._ask("optimize", system, Response)

    def analyze(self, system: System) -> AnalyzeResponse:
        """Ask what one replica does at the load of its server; raises as `optimize`."""
        return self._ask("analyze", system, AnalyzeResponse)

    def _ask(self, path: str, system: System, kind: type[Answer]) -> Answer:
        body = SystemRequest(system=system).model_dump_json(exclude_none=True)
        try:
            answer = requests.post(
                f"{self.url}/{path}",
                data=body,
                headers={"Content-Type": "application/json"},
                timeout=self.timeout_s,
            )
        except requests.RequestException as error:
            raise OptimizerError(f"the optimizer at {self.url} does not answer: {error}") from error
        if answer.status_code != requests.codes.ok:
            raise OptimizerError(
                f"the optimizer at {self.url} answers {answer.status_code}: {_reason(answer.text)}"
            )
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise OptimizerError(f"the answer of {self.url} is malformed: {where}: {first['msg']}") from error


def _reason(text: str) -> str:
    try:
        error = ErrorResponse.model_validate_json(text)
    except ValidationError:
        return text[:_MOST_TEXT]
    return "; ".join([error.error, *(f"{p.path}: {p.expected}" for p in error.problems)])[:_MOST_TEXT]
