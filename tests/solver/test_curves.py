"""Remembered sizings are the same figures, whatever else the call holds."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

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


def test_memory_is_bounded_and_forgetting_is_harmless() -> None:
    curves = Curves(most=10)
    fresh = size_fleet(system())
    for _ in range(3):
        assert same(size_fleet(system(), curves), fresh)
    assert curves.misses > len(fresh.server)


def test_an_answer_says_how_many_were_remembered() -> None:
    curves = Curves()
    body = SAMPLE.read_bytes()
    first = optimize_json(body, RequestOptions(), curves=curves)
    second = optimize_json(body, RequestOptions(), curves=curves)
    assert (first.curve_hits, second.curve_misses) == (0, 0)
    assert first.curve_misses == second.curve_hits > 0
    assert json.loads(first.body)["allocations"] == json.loads(second.body)["allocations"]
