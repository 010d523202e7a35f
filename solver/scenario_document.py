"""``scenario.yaml`` as types: what a scenario may say, and the errors when it says something else."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from solver.errors import InputError, Problem

# Stands in the change of a sweep where each value belongs.
VALUE = "$value"

# The name of the plain case, made of the document's own base, changes and expectations.
PLAIN = "base"

Json = dict[str, Any]
Scalar = bool | int | float | str | None
Trend = Literal["increasing", "decreasing"]

_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0)]
_Names = Annotated[list[str], Field(min_length=1)]
_Model = TypeVar("_Model", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Expectations(_Strict):
    """Expectations; a document that states none of them shows nothing.

    `exact_only`: skip them where the backend proves nothing. Such a backend must still answer within the
    rules, and no better than the proven optimum.
    """

    exact_only: bool = True

    @model_validator(mode="after")
    def _some(self) -> _Expectations:
        if not self.stated():
            names = sorted(set(type(self).model_fields) - {"exact_only"})
            raise ValueError(f"state at least one of {', '.join(names)}")
        return self

    def stated(self) -> list[tuple[str, Any]]:
        """List name and value of each expectation that the document states."""
        return [
            (name, value)
            for name in type(self).model_fields
            if name != "exact_only" and (value := getattr(self, name)) is not None
        ]


class ScaleLoad(_Strict):
    """Multiply the arrival rate of the servers that all three patterns match."""

    factor: _Amount
    server: str = "*"
    class_name: str = Field("*", alias="class")
    model: str = "*"


class PriceChange(_Strict):
    """Unit costs, by pattern of accelerator names: new ones (`set`, cents/h), or factors (`scale`)."""

    set: dict[str, _Amount] = Field(default_factory=dict)
    scale: dict[str, _Amount] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _some(self) -> PriceChange:
        if not self.set and not self.scale:
            raise ValueError("give at least one of set, scale")
        return self


class Change(_Strict):
    """One change to a system; exactly one key is given."""

    scale_load: ScaleLoad | None = None
    set_load: dict[str, Json] | None = None
    add_gpus: dict[str, int] | None = None
    set_gpus: dict[str, _Count] | None = None
    withdraw_accelerator: _Names | None = None
    price: PriceChange | None = None
    optimizer: Json | None = None
    server: dict[str, Json] | None = None

    @model_validator(mode="after")
    def _one(self) -> Change:
        if sum(value is not None for _, value in self) != 1:
            raise ValueError(f"give exactly one of {', '.join(sorted(type(self).model_fields))}")
        return self


class Approximately(_Strict):
    """A number, and the relative distance within which another one agrees with it."""

    value: float
    rel: _Amount = 1e-6


class AllocationFields(_Strict):
    """Fields of an allocation: numbers agree within `rel` or `abs`, everything else exactly."""

    fields: dict[str, Scalar] = Field(min_length=1)
    rel: _Amount = 1e-4
    abs: _Amount = 1e-3


class Expect(_Expectations):
    """What must hold of one answer; ``docs/scenarios.md`` says what each key means."""

    cost_at_most: _Amount | None = None
    cost_at_least: _Amount | None = None
    total_cost_approx: Approximately | None = None
    gap_at_most: _Amount | None = None
    nothing_unserved: Literal[True] | None = None
    unserved: _Names | None = None
    unserved_only_in_class: _Names | None = None
    accelerator_of: dict[str, str | _Names] | None = None
    replicas_of: dict[str, _Count] | None = None
    allocation: dict[str, AllocationFields] | None = None
    cheapest_type: dict[str, str] | None = None
    gpus_used_at_most: dict[str, _Count] | None = None
    gpus_used_at_least: dict[str, _Count] | None = None
    binding: list[str] | None = None
    value_of_one_more_gpu_positive: _Names | None = None
    value_of_one_more_gpu_zero: _Names | None = None


class Across(_Expectations):
    """What must hold along a sweep, in the order of its values.

    A trend never turns back, and its end differs from its start: a constant is no trend.
    """

    cost_monotone: Trend | None = None
    unserved_monotone: Trend | None = None
    gpus_used_monotone: dict[str, Trend] | None = None
    cost_flat_from: Scalar = None


class CaseSpec(_Strict):
    """A named variant: another base, more changes, and what must hold."""

    name: str = Field(min_length=1)
    base: str | None = None
    changes: list[Change] = Field(default_factory=list)
    expect: Expect


class ExpectAt(_Strict):
    """What must hold at one value of a sweep."""

    value: Scalar
    expect: Expect


class SweepSpec(_Strict):
    """One optimisation for each value, which stands where the change says ``$value``."""

    name: str = Field(min_length=1)
    change: Json
    values: Annotated[list[Scalar], Field(min_length=2)]
    expect: Expect | None = None
    expect_at: list[ExpectAt] = Field(default_factory=list)
    across: Across | None = None

    @model_validator(mode="after")
    def _meaningful(self) -> SweepSpec:
        if self.expect is None and self.across is None and not self.expect_at:
            raise ValueError("give at least one of expect, expect_at, across")
        if _substitute(self.change, self.values[0]) == self.change:
            raise ValueError(f'the change must say "{VALUE}" where the value belongs')
        for at in self.expect_at:
            if at.value not in self.values:
                raise ValueError(f"expect_at names {at.value!r}, which is not among the values")
        flat_from = self.across.cost_flat_from if self.across else None
        if flat_from is not None and flat_from not in self.values[1:-1]:
            raise ValueError(f"cost_flat_from is {flat_from!r}, which is not an inner value of the sweep")
        return self

    def change_at(self, value: Scalar, where: str) -> Change:
        """Build the change for one value.

        Raises
        ------
        InputError
            If that is no valid change.
        """
        return validate(Change, _substitute(self.change, value), where)


class Document(_Strict):
    """``scenario.yaml``."""

    description: str = Field(min_length=1)
    base: str | None = None
    changes: list[Change] = Field(default_factory=list)
    expect: Expect | None = None
    cases: list[CaseSpec] = Field(default_factory=list)
    sweeps: list[SweepSpec] = Field(default_factory=list)

    @model_validator(mode="after")
    def _meaningful(self) -> Document:
        if self.expect is None and not self.cases and not self.sweeps:
            raise ValueError(
                "give at least one of expect, cases, sweeps: without them a scenario shows nothing"
            )
        if self.base is None and (self.expect or self.sweeps or any(c.base is None for c in self.cases)):
            raise ValueError("base is missing, and not every case has its own")
        names = [case.name for case in self.cases] + [sweep.name for sweep in self.sweeps]
        for name, count in Counter([PLAIN, *names]).items():
            if count > 1:
                raise ValueError(f'the name "{name}" is given twice ("{PLAIN}" is the plain case)')
        return self


def validate(model: type[_Model], raw: object, where: str) -> _Model:
    """Validate `raw`.

    Parameters
    ----------
    model : type
    raw : object
        What the YAML says.
    where : str
        Starts the path of every problem; ends in a colon where a path within a file follows.

    Raises
    ------
    InputError
        With all problems.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problems = []
        for entry in error.errors(include_url=False):
            value = entry["input"]
            shown = "" if isinstance(value, dict) else json.dumps(value, default=str)
            shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
            expected = str(entry["msg"]).removeprefix("Value error, ")
            problems.append(Problem(_join(where, entry["loc"]), shown, expected))
        raise InputError(problems) from error


def _join(where: str, location: tuple[int | str, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return f"{where} {path.removeprefix('.')}".rstrip() if where.endswith(":") else where + path


def _substitute(node: Any, value: Scalar) -> Any:
    if isinstance(node, dict):
        return {key: _substitute(child, value) for key, child in node.items()}
    if isinstance(node, list):
        return [_substitute(child, value) for child in node]
    return value if node == VALUE else node
