"""The overhead of a fit: what a lone request's TTFT has beyond what the simulator takes for it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from models.arrivals import Requests
from models.fit import Form, fit, predict
from models.measurements import Measurements, from_rows
from models.overhead import lone_ttft_ms, overhead_ms
from models.replica import IterationLaw, Limits, simulate
from solver.catalog import profile_entry
from solver.cli import main

LAW = {"alpha": 8.0, "beta": 0.04, "gamma": 2e-5}
MORE = LAW | {"betaPrefill": 0.06, "epsilon": 6.0, "expertFraction": 0.05, "prefillFloor": 12.0}
SHAPES = ((128, 256), (1024, 128), (4000, 300), (12_000, 600))


def simulated_ttft_ms(parameters, in_tokens):
    """TTFT of one request in an empty replica."""
    law = IterationLaw(
        *(parameters[name] / 1000 for name in ("alpha", "beta", "gamma")),
        beta_prefill_s=parameters.get("betaPrefill", parameters["beta"]) / 1000,
        prefill_floor_s=parameters.get("prefillFloor", 0.0) / 1000,
        epsilon_s=parameters.get("epsilon", 0.0) / 1000,
        expert_fraction=parameters.get("expertFraction", 0.0),
    )
    alone = Requests(np.zeros(1), np.array([in_tokens]), np.array([2]))
    return 1000 * float(simulate(law, Limits(1), alone).ttft_s[0])


def measured(parameters, form, extra_ms, alone=SHAPES):
    """Points at several batch sizes, of which those at concurrency 1 have a TTFT with `extra_ms` more."""
    rows = [
        {"concurrency": n, "in_tokens": a, "out_tokens": b, "itl_ms": 1.0}
        for a, b in SHAPES
        for n in (1, 4, 16, 64)
    ]
    itl_ms, _ = predict(form, parameters, from_rows(rows))
    for row, itl in zip(rows, itl_ms, strict=True):
        row["itl_ms"] = float(itl)
        if row["concurrency"] == 1 and (row["in_tokens"], row["out_tokens"]) in alone:
            row["ttft_ms"] = extra_ms + simulated_ttft_ms(parameters, row["in_tokens"])
    return from_rows(rows)


@pytest.mark.parametrize("parameters", [LAW, MORE])
@pytest.mark.parametrize("in_tokens", [1, 100, 2000, 8192])
def test_a_lone_request_takes_what_the_simulator_takes(parameters, in_tokens):
    found = lone_ttft_ms(parameters, np.array([float(in_tokens)]))[0]
    assert found == pytest.approx(simulated_ttft_ms(parameters, in_tokens), rel=1e-9)


def test_a_long_prompt_is_close_to_its_chunks():
    # Chunks of the budget and a rest in the simulator, equal ones here.
    found = lone_ttft_ms(LAW, np.array([20_000.0]))[0]
    assert found == pytest.approx(simulated_ttft_ms(LAW, 20_000), rel=0.01)


def test_the_overhead_is_fitted_beside_the_law():
    found = fit(measured(LAW, Form.ITERATION, 15.0), forms=(Form.ITERATION,))
    assert found.overhead_ms == pytest.approx(15.0, abs=0.2)
    assert found.overhead_error_ms < 1.0
    assert found.parameters["alpha"] == pytest.approx(8.0, rel=1e-4), "it is not taken for a part of alpha"
    assert found.warnings == ()
    entry = profile_entry(found, model="m", accelerator="a")
    assert entry["overhead"] == pytest.approx(15.0, abs=0.2)
    assert "overhead" not in entry["perfParms"]


def test_no_overhead_is_none():
    found = fit(measured(LAW, Form.ITERATION, 0.0), forms=(Form.ITERATION,))
    assert found.overhead_ms == pytest.approx(0.0, abs=0.05)
    assert "overhead" not in profile_entry(found, model="m", accelerator="a")


def test_without_a_request_alone_there_is_none_to_know():
    points = measured(LAW, Form.ITERATION, 15.0)
    busy = points.take(points.concurrency > 1)
    assert all(math.isnan(value) for value in overhead_ms(LAW, busy))
    assert math.isnan(fit(busy, forms=(Form.ITERATION,)).overhead_ms)


def test_batches_that_start_together_say_nothing_of_it():
    # The law itself is fitted to their TTFT.
    points = measured(LAW, Form.ITERATION, 15.0)
    together = replace(points, together=np.ones(len(points), dtype=bool))
    assert math.isnan(overhead_ms(LAW, together)[0])


def test_one_prompt_length_is_not_enough_and_said():
    found = fit(measured(LAW, Form.ITERATION, 15.0, alone=SHAPES[:1]), forms=(Form.ITERATION,))
    assert found.overhead_ms == pytest.approx(15.0, abs=0.2)
    assert math.isinf(found.overhead_error_ms)
    assert any("overhead" in warning and "is unsure" in warning for warning in found.warnings)


def test_a_ttft_below_the_prefill_has_no_overhead():
    points = measured(LAW, Form.ITERATION, -5.0)
    assert overhead_ms(LAW, points)[0] == 0.0


def test_the_command_shows_and_writes_it(tmp_path, capsys):
    points: Measurements = measured(LAW, Form.ITERATION, 15.0)
    lines = ["concurrency,input_tokens,output_tokens,itl_ms,ttft_ms"]
    for i in range(len(points)):
        ttft = "" if np.isnan(points.ttft_ms[i]) else f"{points.ttft_ms[i]:.6f}"
        lines.append(
            f"{points.concurrency[i]:g},{points.in_tokens[i]:g},{points.out_tokens[i]:g},"
            f"{points.itl_ms[i]:.6f},{ttft}"
        )
    source, target = tmp_path / "measured.csv", tmp_path / "profile.json"
    source.write_text("\n".join(lines) + "\n")
    assert main(["fit", str(source), "--write", str(target)]) == 0
    assert "overhead" in capsys.readouterr().out
    assert json.loads(target.read_text())["overhead"] == pytest.approx(15.0, abs=2.0)
