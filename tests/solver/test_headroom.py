"""Whose headroom counts, and that what is planned for has it."""

from typing import Any

import numpy as np
import pytest

from models.headroom import percentile_rps
from solver import schema
from solver.errors import InputError
from solver.optimize import RequestOptions, optimize
from solver.sizing import size_fleet

RATES_RPM = {"gold": 60.0, "silver": 120.0, "silver bursts": 120.0, "idle": 0.0}


def document(general: Any = None, silver: Any = None, **optimizer: Any) -> dict[str, Any]:
    """Three loaded servers and one without load, each replica good for 1 request/s; two classes."""
    servers = [
        {
            "name": name,
            "class": name.split()[0].replace("idle", "gold"),
            "model": "m",
            "currentAlloc": {"load": {"arrivalRate": rate, "avgInTokens": 10, "avgOutTokens": 10}},
        }
        for name, rate in RATES_RPM.items()
    ]
    servers[2]["currentAlloc"]["load"]["arrivalDispersion"] = 9
    classes = [{"name": name, "modelTargets": []} for name in ("gold", "silver")]
    if silver is not None:
        classes[1]["headroom"] = silver
    if general is not None:
        optimizer["headroom"] = general
    return {
        "acceleratorData": {"accelerators": [{"name": "A", "cost": 100}]},
        "modelData": {"models": [{"name": "m", "acc": "A", "ratePerReplica": 1.0}]},
        "serviceClassData": {"serviceClasses": classes},
        "serverData": {"servers": servers},
        "optimizerData": {"optimizer": {"unlimited": True} | optimizer},
    }


def planned(system: dict[str, Any]) -> dict[str, float]:
    fleet = size_fleet(schema.parse_system(system, strict=True).system)
    return {server.name: float(rps) for server, rps in zip(fleet.wire, fleet.arrival_rps, strict=True)}


def at_percentile(
    rate_rps: float, dispersion: float, percentile: float = 0.95, window_s: float = 60
) -> float:
    columns = (np.array([float(x)]) for x in (rate_rps, percentile, dispersion, window_s))
    return float(percentile_rps(*columns)[0])


def test_none_is_the_demand_itself() -> None:
    assert planned(document()) == {"gold": 1.0, "silver": 2.0, "silver bursts": 2.0, "idle": 0.0}


@pytest.mark.parametrize("form", [1.5, "1.5", {"factor": 1.5}])
def test_a_factor_multiplies_every_demand(form: Any) -> None:
    assert planned(document(form)) == {"gold": 1.5, "silver": 3.0, "silver bursts": 3.0, "idle": 0.0}


def test_a_class_wins_over_the_options() -> None:
    found = planned(document(1.5, {"percentile": 0.95, "dispersion": 4, "window": 30}))
    assert found["gold"] == 1.5
    assert found["silver"] == pytest.approx(at_percentile(2.0, 4.0, window_s=30))
    # The load's own dispersion wins over the class's.
    assert found["silver bursts"] == pytest.approx(at_percentile(2.0, 9.0, window_s=30))
    assert found["idle"] == 0.0
    assert planned(document(1.5, 1))["silver"] == 2.0


def test_the_default_is_a_poisson_process_in_a_minute() -> None:
    found = planned(document({"percentile": 0.95}))
    assert found["gold"] == pytest.approx(at_percentile(1.0, 1.0))
    assert found["silver bursts"] == pytest.approx(at_percentile(2.0, 9.0))


def test_replicas_and_the_load_of_the_answer_have_it() -> None:
    answer = optimize(schema.parse_system(document(1.5)), RequestOptions())
    gold = answer.allocations["gold"]
    assert gold.num_replicas == 2
    assert gold.load.arrival_rate_rpm == pytest.approx(90.0)


def test_headroom_counts_towards_what_is_not_served() -> None:
    reports = []
    for general in (None, 1.5):
        scarce = document(general, saturationPolicy="PriorityExhaustive", unlimited=False)
        scarce["capacityData"] = {"count": [{"type": "A", "count": 6}]}
        reports.append(optimize(schema.parse_system(scarce), RequestOptions()).report)
    assert [bool(report.unserved) for report in reports] == [False, True]


@pytest.mark.parametrize(
    ("form", "path"),
    [
        (0.9, "headroom: a factor on the demand, of at least 1"),
        (True, "headroom: a factor on the demand, of at least 1"),
        ("much", "headroom: a factor on the demand, of at least 1"),
        ([1.5], "headroom: a factor on the demand, of at least 1"),
        ({}, "headroom: a factor on the demand, of at least 1"),
        ({"factor": 1.5, "percentile": 0.9}, "headroom: a factor on the demand, of at least 1"),
        ({"factor": 0.5}, "headroom.factor: a number of at least 1"),
        ({"percentile": 95}, "headroom.percentile: a number of at most 0.999"),
        ({"percentile": 0.9, "dispersion": 0}, "headroom.dispersion: a number above 0"),
        ({"percentile": 0.9, "window": "nan"}, "headroom.window: a finite number"),
    ],
)
def test_what_is_no_headroom_is_refused_with_its_place(form: Any, path: str) -> None:
    for system, where in (
        (document(form), "$.optimizerData.optimizer."),
        (document(silver=form), "$.serviceClassData.serviceClasses[1]."),
    ):
        with pytest.raises(InputError) as caught:
            schema.parse_system(system)
        assert str(caught.value).startswith(where + path)


def test_entries_of_a_class_agree() -> None:
    system = document()
    classes = system["serviceClassData"]["serviceClasses"]
    classes[:] = [{"name": "gold", "headroom": 1.2}, {"name": "silver"}, {"name": "gold", "headroom": "1.2"}]
    assert planned(system)["gold"] == pytest.approx(1.2)
    classes[2]["headroom"] = {"percentile": 0.9}
    with pytest.raises(InputError, match=r"serviceClasses\[2\]\.headroom: one headroom for a class; 'gold'"):
        schema.parse_system(system)
