"""The table of `make bench`: what is measured, and that an interrupted run is not lost."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from solver import backends, schema
from solver.check import violations
from solver.decompose import decompose
from solver.milp import SolveOptions, Termination

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("fleet")
    sys.path.remove(str(FOLDER))
    for name in {"fleet", "sizing"} - before:
        del sys.modules[name]


@pytest.fixture
def results(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "RESULTS.md"
    monkeypatch.setattr(bench, "RESULTS", path)
    return path


def test_a_fleet_is_the_same_every_time_and_has_priorities(bench: ModuleType) -> None:
    body = bench.with_inventory(bench.fleet(100, mix=True), 2.5)
    assert body == bench.with_inventory(bench.fleet(100, mix=True), 2.5)
    plain = json.loads(bench.with_inventory(bench.fleet(100, mix=True), 1))
    system = schema.parse_system(body).system
    assert len({s.name for s in system.server_data.servers}) == 100
    priority = {c.name: c.priority for c in system.service_class_data.service_classes}
    assert {priority[s.class_name] for s in system.server_data.servers} == {1, 2, 3}
    assert system.optimizer_data.optimizer.heterogeneous
    for mine, given in zip(system.capacity_data.count, plain["system"]["capacityData"]["count"], strict=True):
        assert mine.count == -(-given["count"] * 5 // 2)


def test_the_least_inventory_serves_everything_and_less_does_not(bench: ModuleType) -> None:
    document = bench.fleet(20, mix=False)
    need = bench.needed_by(json.dumps(document).encode())
    least = bench.needed_by(bench.with_inventory(document, 4 * need))
    assert need > 0
    # Cards are whole, so four times the inventory is a little more than four times.
    assert 0.2 < least <= 0.25


def test_a_row_says_everything_that_its_columns_promise(bench: ModuleType) -> None:
    document = bench.fleet(5, mix=False)
    body = bench.with_inventory(document, bench.needed_by(json.dumps(document).encode()) * 2)
    row = bench.key(5, "one", 2.0) | bench.in_own_process(bench.measure, body, 1e-3, 1)
    assert set(bench.HEADER) - set(row) == {"goal s", "goal gap"}
    assert (row["servers"], row["proven"], row["unserved"]) == ("5 x 21", "yes", "0")
    assert float(row["peak MB"]) > 30
    assert float(row["greedy cost"]) >= 1.0


def test_rows_written_are_read_back_in_order_unless_something_else_changed(
    bench: ModuleType, results: Path
) -> None:
    assert bench.written("a machine", 5) == []
    rows = [
        dict.fromkeys(bench.HEADER, "1") | bench.key(*case)
        for case in ((1000, "mix", 0.7), (27, "one", 1.25), (27, "one", 0.7), (5, "one", 1.0))
    ]
    rows[3]["goal s"] = ""
    bench.write(rows, "a machine", 5, {"law 1": 0.1})
    assert bench.written("a machine", 5) == [rows[1], rows[2], rows[0], rows[3]]
    assert bench.written("another", 5) == []
    assert bench.written("a machine", 3) == []
    results.write_text(results.read_text().replace("| peak MB |", "| peak |"))
    assert bench.written("a machine", 5) == []


@pytest.mark.parametrize(("mix", "factor"), [(True, 1.05), (True, 0.7), (False, 1.05)])
def test_a_small_fleet_on_tight_inventory_is_proven(bench: ModuleType, mix: bool, factor: float) -> None:
    """The gap of the prices alone is several times wider: what closes it are the columns near the bound."""
    need = bench.needed_by(json.dumps(bench.fleet(27, mix=False)).encode())
    problem = bench.to_problem_of(bench.with_inventory(bench.fleet(27, mix=mix), need * factor))
    limit = SolveOptions(relative_gap=1e-3, time_limit_s=120.0)
    solved = decompose(problem, backends.get("highs"), limit)
    assert solved.termination is Termination.OPTIMAL
    assert violations(problem, solved.plan) == []
    cost = solved.levels[-1]
    assert 0.999 * cost.value <= cost.bound <= cost.value
