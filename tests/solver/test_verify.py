"""Verified answers: what is chosen holds in a simulation of its own, and what cannot be verified is said."""

import json
from typing import Any

import numpy as np
import pytest

from models.arrivals import Requests, lognormal_tokens, poisson_s
from models.replica import IterationLaw, Limits, simulate
from solver import schema
from solver.cli import main
from solver.optimize import Defaults, RequestOptions, optimize, optimize_json
from solver.scenario import Case, run_case
from solver.scenario_document import Expect

# Law 3 on means takes these for better than they are: long prompts and short answers, at a tight ITL.
LAW = {"alpha": 14.0, "beta": 0.074, "gamma": 2e-5}
IN_TOKENS, OUT_TOKENS, OUT_COV = 2100, 26, 0.5
ITL_MS, TTFT_MS = 37.0, 450.0


def document(**optimizer: Any) -> dict[str, Any]:
    load = {
        "arrivalRate": 3000,
        "avgInTokens": IN_TOKENS,
        "avgOutTokens": OUT_TOKENS,
        "outTokensCOV": OUT_COV,
    }
    return {
        "acceleratorData": {
            "accelerators": [{"name": "H100", "cost": 688}, {"name": "2xH100", "type": "H100", "cost": 1600}]
        },
        "modelData": {
            "models": [
                {"name": "m", "acc": "H100", "maxBatchSize": 128, "perfParms": LAW},
                {
                    "name": "m",
                    "acc": "2xH100",
                    "maxBatchSize": 128,
                    "perfParms": LAW | {"alpha": 10.0, "beta": 0.04},
                },
            ]
        },
        "serviceClassData": {
            "serviceClasses": [
                {"name": "c", "modelTargets": [{"model": "m", "slo-itl": ITL_MS, "slo-ttft": TTFT_MS}]}
            ]
        },
        "serverData": {
            "servers": [{"name": "s", "class": "c", "model": "m", "currentAlloc": {"load": load}}]
        },
        "optimizerData": {"optimizer": {"unlimited": True} | optimizer},
    }


def answer(system: dict[str, Any], options: RequestOptions | None = None) -> schema.Response:
    return optimize(schema.parse_system(system, strict=True), options or RequestOptions())


def simulated_itl_ms(profile: dict[str, Any], rate_rps: float, seed: int) -> float:
    """An independent simulation, with other seeds and many more requests than the verification takes."""
    count = 60_000
    law = profile["perfParms"]
    outcome = simulate(
        IterationLaw(*(law[key] / 1000 for key in ("alpha", "beta", "gamma"))),
        Limits(profile["maxBatchSize"]),
        Requests(
            poisson_s(rate_rps, count, seed),
            np.full(count, IN_TOKENS),
            lognormal_tokens(OUT_TOKENS, OUT_COV, count, seed + 1),
        ),
    )
    return 1000 * outcome.summary(warmup=count // 10).itl_mean_s


@pytest.fixture(scope="module")
def plain() -> schema.Response:
    return answer(document())


@pytest.fixture(scope="module")
def safe() -> schema.Response:
    return answer(document(verify="simulation"))


def test_an_answer_that_misses_its_target_is_cut_until_it_holds(
    plain: schema.Response, safe: schema.Response
) -> None:
    profiles = {profile["acc"]: profile for profile in document()["modelData"]["models"]}
    before, after = plain.allocations["s"], safe.allocations["s"]
    rate = 50.0 / before.num_replicas
    assert simulated_itl_ms(profiles[before.accelerator], rate, 7) > ITL_MS, "the case must need it"
    rate = 50.0 / after.num_replicas
    assert simulated_itl_ms(profiles[after.accelerator], rate, 7) < ITL_MS
    assert safe.report.cost_cents_per_h > plain.report.cost_cents_per_h
    assert plain.report.verification is None


def test_the_report_has_the_simulated_figures_beside_the_models(safe: schema.Response) -> None:
    found = safe.report.verification
    assert found is not None and found.rounds >= 2 and found.confidence == 0.95
    (option,) = found.options
    after = safe.allocations["s"]
    assert (option.server, option.accelerator, option.verdict) == ("s", after.accelerator, "met")
    assert option.arrival_rate_per_replica_rpm == pytest.approx(3000 / after.num_replicas)
    assert option.model.ttft_average_ms == pytest.approx(after.ttft_average_ms)
    assert option.model.itl_average_ms == pytest.approx(after.itl_average_ms)
    assert option.simulated is not None and option.itl_half_width_ms is not None
    assert (option.simulated.itl_average_ms or 0) + option.itl_half_width_ms <= ITL_MS
    assert (option.simulated.ttft_p95_ms or 0) > (option.simulated.ttft_average_ms or 0)
    assert (option.simulated.ttft_average_ms or 0) <= TTFT_MS
    assert found.cuts and all(0 < cut.simulated_rpm < cut.capacity_rpm for cut in found.cuts)
    assert safe.report.warnings == []
    assert "verify" in safe.report.seconds
    text = safe.model_dump_json()
    assert schema.Response.model_validate_json(text).model_dump_json() == text


def test_a_percentile_is_verified_as_one() -> None:
    plain, safe = (answer(document(sloPercentile=0.95, **more)) for more in ({}, {"verify": "simulation"}))
    assert safe.report.verification is not None
    (option,) = safe.report.verification.options
    assert option.simulated is not None
    assert (option.simulated.ttft_p95_ms or 0) <= TTFT_MS
    assert "of the requests have a TTFT above 450 ms, of at most 5 %" in option.detail
    assert safe.report.cost_cents_per_h >= plain.report.cost_cents_per_h


def test_what_holds_at_once_is_left_as_it_is() -> None:
    lax = document(verify="simulation")
    lax["serviceClassData"]["serviceClasses"][0]["modelTargets"][0] |= {"slo-ttft": 60_000, "slo-itl": 500}
    lax["serverData"]["servers"][0]["minNumReplicas"] = 12
    found = answer(lax).report.verification
    assert found is not None
    assert (found.rounds, found.cuts, found.options[0].verdict) == (1, [], "met")


def test_a_target_that_no_rate_meets_is_unserved_with_the_simulated_figure() -> None:
    # The reference's queue model leaves the overhead out; a measured TTFT has it.
    system = document(verify="simulation")
    system["modelData"]["models"] = [
        {"name": "m", "acc": "H100", "maxBatchSize": 64, "overhead": 450, "perfParms": LAW}
    ]
    found = answer(system)
    (short,) = found.report.unserved
    assert short.reason == "targets"
    assert "TTFT is 6" in short.detail and "even at the lowest rate, the target is 450 ms" in short.detail


@pytest.mark.parametrize(
    ("law", "name"),
    [
        ({"alpha": 7.0, "beta": 0.02}, "law 1"),
        (
            {
                "decodeParms": {"alpha": 7, "beta": 0.02},
                "prefillParms": {"gamma": 1, "delta": 0.001},
            },
            "law 2",
        ),
        ({"ratePerReplica": 5}, "a measured rate (ratePerReplica)"),
    ],
)
def test_what_cannot_be_simulated_is_said(law: dict[str, Any], name: str) -> None:
    system = document(verify="simulation")
    system["modelData"]["models"] = [{"name": "m", "acc": "H100", "maxBatchSize": 64} | law]
    system["serverData"]["servers"][0]["currentAlloc"]["load"]["avgLength"] = 256
    found = answer(system).report
    assert found.verification is not None
    (option,) = found.verification.options
    assert (option.verdict, option.simulated, option.requests) == ("unverified", None, 0)
    text = f"s on H100: not verified by simulation: its profile is {name}; only law 3 (perfParms) can be"
    assert any(warning.startswith(text) for warning in found.warnings)


def test_at_the_deadline_what_is_unverified_is_said() -> None:
    body = json.dumps(document(verify="simulation")).encode()
    answered = optimize_json(body, RequestOptions(), Defaults(time_limit_s=1e-6))
    report = json.loads(answered.body)["report"]
    (option,) = report["verification"]["options"]
    assert (option["verdict"], option["simulated"]) == ("unverified", None)
    assert any("no time was left to simulate it" in warning for warning in report["warnings"])


def test_of_many_warnings_the_first_are_told_and_the_most_important_come_first() -> None:
    system = document(verify="simulation")
    system["modelData"]["models"] = [{"name": "m", "acc": "H100", "ratePerReplica": 50}]
    server = system["serverData"]["servers"][0]
    system["serverData"]["servers"] = [server | {"name": f"s{i:02}"} for i in range(30)]
    target = system["serviceClassData"]["serviceClasses"][0] | {"name": "first", "priority": 1}
    system["serviceClassData"]["serviceClasses"].append(target)
    system["serverData"]["servers"][-1]["class"] = "first"
    report = answer(system).report
    assert report.verification is not None and len(report.verification.options) == 30
    assert report.verification.options[0].server == "s29"
    told = [warning for warning in report.warnings if "not verified" in warning]
    assert len(told) == 20 and told[0].startswith("s29 on H100")
    assert "verification: the same of 10 more options" in report.warnings


def test_a_server_without_load_needs_no_verification() -> None:
    system = document(verify="simulation")
    server = system["serverData"]["servers"][0]
    server["minNumReplicas"], server["currentAlloc"]["load"]["arrivalRate"] = 2, 0
    found = answer(system)
    assert found.allocations["s"].num_replicas == 2
    assert found.report.verification is not None and found.report.verification.options == []


def test_headroom_is_part_of_the_load_that_is_verified() -> None:
    found = answer(document(verify="simulation", headroom=1.5))
    assert found.report.verification is not None
    (option,) = found.report.verification.options
    rate = 1.5 * 3000 / found.allocations["s"].num_replicas
    assert option.arrival_rate_per_replica_rpm == pytest.approx(rate)


def test_the_command_line_verifies_and_shows_it(
    tmp_path, capsys: pytest.CaptureFixture[str], safe: schema.Response
) -> None:
    path = tmp_path / "system.json"
    path.write_text(json.dumps(document()))
    assert main(["optimize", str(path), "--verify", "simulation", "--output", "json"]) == 0
    shown = schema.Response.model_validate_json(capsys.readouterr().out)
    assert shown.report.verification == safe.report.verification
    assert main(["optimize", str(path), "--verify", "simulation"]) == 0
    text = capsys.readouterr().out
    assert "Simulated" in text and "met" in text and "cut from" in text


def test_a_scenario_verifies(safe: schema.Response) -> None:
    expect = Expect(cost_at_least=safe.report.cost_cents_per_h, nothing_unserved=True)
    outcome = run_case(Case("x", "base", document(verify="simulation"), (expect,)))
    assert outcome.passed


def test_a_word_that_is_no_way_to_verify_is_refused() -> None:
    with pytest.raises(schema.InputError, match=r"optimizer\.verify: one of 'simulation'"):
        schema.parse_system(document(verify="guessing"))
