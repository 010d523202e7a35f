"""The queue model that a document asks for is the one that sizes and that the answer is evaluated with."""

from typing import Any

import numpy as np
import pytest

from models import capacity, moments
from solver import schema
from solver.optimize import RequestOptions, optimize
from solver.sizing import size_fleet


def document(**profile: Any) -> dict[str, Any]:
    law = {"alpha": 7.0, "beta": 0.02, "gamma": 4e-5}
    return {
        "acceleratorData": {"accelerators": [{"name": "H100", "cost": 688}]},
        "modelData": {
            "models": [{"name": "m", "acc": "H100", "maxBatchSize": 128, "perfParms": law} | profile]
        },
        "serviceClassData": {
            "serviceClasses": [
                {"name": "c", "modelTargets": [{"model": "m", "slo-itl": 30, "slo-ttft": 400}]}
            ]
        },
        "serverData": {
            "servers": [
                {
                    "name": "s",
                    "class": "c",
                    "model": "m",
                    "currentAlloc": {
                        "load": {
                            "arrivalRate": 3000,
                            "avgInTokens": 1024,
                            "avgOutTokens": 256,
                            "outTokensCOV": 0.8,
                        }
                    },
                }
            ]
        },
        "optimizerData": {"optimizer": {"unlimited": True}},
    }


def test_absent_means_the_reference() -> None:
    fleet = size_fleet(schema.parse_system(document()).system)
    assert not fleet.by_moments.any()
    np.testing.assert_array_equal(fleet.sizing.capacity_rps, capacity.size(fleet.candidates).capacity_rps)


@pytest.mark.parametrize("where", ["profile", "optimizer"])
def test_moments_size_and_evaluate_where_asked(where: str) -> None:
    asked = document(queueModel="moments") if where == "profile" else document()
    if where == "optimizer":
        asked["optimizerData"]["optimizer"]["queueModel"] = "moments"
    parsed = schema.parse_system(asked, strict=True)
    fleet = size_fleet(parsed.system)
    assert fleet.by_moments.all()
    assert fleet.detail.out_cov.tolist() == [0.8]
    expected = moments.size(fleet.candidates, fleet.detail).capacity_rps
    np.testing.assert_array_equal(fleet.sizing.capacity_rps, expected)
    assert expected != pytest.approx(capacity.size(fleet.candidates).capacity_rps, rel=0.01)
    answer = optimize(parsed, RequestOptions()).allocations["s"]
    rate = np.array([50.0 / answer.num_replicas])
    there = moments.evaluate(fleet.candidates, fleet.detail, rate)
    assert answer.ttft_average_ms == pytest.approx(1000 * there.ttft_s[0])
    assert answer.itl_average_ms == pytest.approx(1000 * there.itl_s[0])


def test_a_profile_wins_over_the_options_and_overhead_adds_to_the_ttft() -> None:
    plain = document(queueModel="reference")
    plain["optimizerData"]["optimizer"]["queueModel"] = "moments"
    assert not size_fleet(schema.parse_system(plain).system).by_moments.any()
    slow = schema.parse_system(document(queueModel="moments", overhead=50))
    quick = schema.parse_system(document(queueModel="moments"))
    ttft_ms = [optimize(p, RequestOptions()).allocations["s"].ttft_average_ms for p in (slow, quick)]
    assert ttft_ms[0] - ttft_ms[1] == pytest.approx(50.0)
