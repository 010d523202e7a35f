"""Remembered sizings are the same figures, whatever else the call holds."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import capacity
from models.capacity import Sizing
from solver import schema
from solver.curves import Curves
from solver.optimize import RequestOptions, optimize_json
from solver.sizing import Fleet, size_fleet

SAMPLE = Path(__file__).parents[1] / "data" / "inferno_sample" / "law3-small.system.json"


def system(**changes: Any) -> schema.System:
    document = json.loads(SAMPLE.read_text())
    for server in document["system"]["serverData"]["servers"]:
        server["currentAlloc"]["load"].update(changes)
    return schema.parse_system(document).system


def same(one: Fleet, other: Fleet) -> bool:
    return all(
        np.array_equal(getattr(one.sizing, f.name), getattr(other.sizing, f.name), equal_nan=True)
        for f in fields(Sizing)
    )


def test_a_second_call_remembers_everything_and_answers_the_same() -> None:
    curves = Curves()
    fresh = size_fleet(system())
    assert same(size_fleet(system(), curves), fresh)
    sized = curves.misses
    assert (curves.hits, sized) == (0, len(fresh.server))
    assert same(size_fleet(system(), curves), fresh)
    assert (curves.hits, curves.misses) == (sized, sized)


def test_the_arrival_rate_does_not_matter_and_the_tokens_do() -> None:
    curves = Curves()
    size_fleet(system(), curves)
    sized = curves.misses
    busy = size_fleet(system(arrivalRate=999), curves)
    assert curves.misses == sized
    assert same(busy, size_fleet(system(arrivalRate=999)))
    longer = size_fleet(system(AvgOutTokens=333), curves)
    assert curves.misses == 2 * sized
    assert same(longer, size_fleet(system(AvgOutTokens=333)))


def test_equal_candidates_of_one_call_are_sized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    document = json.loads(SAMPLE.read_text())
    servers = document["system"]["serverData"]["servers"]
    alone = size_fleet(schema.parse_system(document).system)
    servers += [server | {"name": f"{server['name']}-again"} for server in servers]
    sized: list[int] = []
    size = capacity.size
    monkeypatch.setattr(capacity, "size", lambda rows: sized.append(len(rows)) or size(rows))
    curves = Curves()
    twice = size_fleet(schema.parse_system(document).system, curves)
    assert sized == [len(alone.server)]
    assert (curves.hits, curves.misses) == (len(alone.server), len(alone.server))
    first = twice.candidates.take(np.array([not s.name.endswith("-again") for s in twice.wire])[twice.server])
    assert len(first) == len(alone.server)
    assert sorted(twice.capacity_rps) == sorted([*alone.capacity_rps, *alone.capacity_rps])


@pytest.mark.parametrize("most", [1, 10])
def test_memory_is_bounded_and_forgetting_is_harmless(most: int) -> None:
    curves = Curves(most=most)
    fresh = size_fleet(system())
    for call in range(1, 4):
        assert same(size_fleet(system(), curves), fresh)
        assert curves.misses == call * len(fresh.server) - (call - 1) * most


def test_when_there_are_too_many_those_of_the_last_call_stay() -> None:
    count = len(size_fleet(system()).server)
    curves = Curves(most=count + 1)
    for _ in range(2):
        size_fleet(system(), curves)
    assert curves.misses == count
    other = size_fleet(system(AvgOutTokens=333), curves)
    sized = curves.misses
    assert same(size_fleet(system(AvgOutTokens=333), curves), other)
    assert curves.misses == sized
    size_fleet(system(), curves)
    assert curves.misses == sized + count


@pytest.mark.parametrize("sample", ["law1-small", "law2-small", "law3-small"])
def test_every_figure_that_a_capacity_depends_on_is_part_of_what_is_remembered(sample: str) -> None:
    """Change one figure of the candidates at a time: the answer must not be that of the old one."""
    parsed = schema.parse_system((SAMPLE.parent / f"{sample}.system.json").read_bytes())
    fleet = size_fleet(parsed.system)
    curves = Curves()
    moment = fleet.law == 3
    for by_moments in (np.zeros(len(moment), dtype=bool), moment):
        for whole in (fleet.candidates, fleet.detail):
            for name in (f.name for f in fields(whole) if f.name != "law"):
                column = getattr(whole, name)
                other = ~column if column.dtype == bool else np.nan_to_num(column, nan=0.4) + 1
                if name in ("percentile", "expert_fraction"):
                    other = np.full(len(column), 0.9)
                changed = replace(whole, **{name: other})
                pair = (changed, fleet.detail) if whole is fleet.candidates else (fleet.candidates, changed)
                curves.size(fleet.candidates, fleet.detail, by_moments)
                remembered, fresh = curves.size(*pair, by_moments), Curves().size(*pair, by_moments)
                for figure in fields(Sizing):
                    was, is_now = getattr(fresh, figure.name), getattr(remembered, figure.name)
                    assert np.array_equal(was, is_now, equal_nan=True), (name, figure.name)


def test_an_answer_says_how_many_were_remembered() -> None:
    curves = Curves()
    body = SAMPLE.read_bytes()
    first = optimize_json(body, RequestOptions(), curves=curves)
    second = optimize_json(body, RequestOptions(), curves=curves)
    assert (first.curve_hits, second.curve_misses) == (0, 0)
    assert first.curve_misses == second.curve_hits > 0
    assert json.loads(first.body)["allocations"] == json.loads(second.body)["allocations"]
