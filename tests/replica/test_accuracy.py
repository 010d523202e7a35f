"""A small part of the accuracy study, held to the goals that the study states."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "accuracy.py"
GRID = [
    ("Llama-3.1-8B, H100", "fixed", (1024, 128), 64),
    ("Llama-3.1-70B FP8, 4 x H200", "lognormal", (512, 512), 64),
    ("Qwen3-32B FP8, H100", "lognormal", (128, 1024), 512),
    ("Llama-3.1-70B FP8, 4 x H200", "fixed", (4000, 300), 512),
    ("Llama-3.1-8B, H100", "fixed", (2048, 28), 8),
    ("Qwen3-32B FP8, H100", "Azure conversation", (0, 0), 512),
]


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("accuracy", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["accuracy"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["accuracy"]


@pytest.fixture(scope="module")
def rows(study):
    cases = [study.Case(*cell, "Poisson", (0.3, 0.6, 0.8)) for cell in GRID]
    return [row for case in cases for row in study.study(case)]


def test_up_to_60_percent(study, rows):
    itl, ttft, *_ = study.mean_error([row for row in rows if row.load < 0.7], "moments")
    assert itl < 0.02
    assert ttft < 0.05


def test_at_80_percent(study, rows):
    itl, ttft, p95, *_ = study.mean_error([row for row in rows if row.load > 0.7], "moments")
    assert itl < 0.04
    assert ttft < 0.15
    assert p95 < 0.20


def test_capacity(study, rows):
    assert study.mean_error(rows, "moments")[3] < 0.03


def test_the_moments_are_needed(study, rows):
    spread = [row for row in rows if row.case.lengths == "lognormal"]
    means, moments = study.mean_error(spread, "law 3"), study.mean_error(spread, "moments")
    assert np.all(np.array(means) > 2 * np.array(moments))


def test_the_report_names_every_law_and_range(study, rows):
    text = study.report(rows)
    for name in (*study.LAWS, *study.FIGURES, "up to 60 %", "60-90 %"):
        assert name in text
    assert "nan" not in text


def test_the_grid_covers_what_the_documentation_says(study):
    cases = study.cases()
    poisson = [case for case in cases if case.arrivals == "Poisson"]
    assert {case.max_batch for case in poisson} == {1, 8, 64, 512}
    assert {case.shape for case in poisson} >= {(128, 1024), (2048, 28), (4000, 300)}
    assert {case.arrivals for case in cases} == {"Poisson", "Gamma 4", "Gamma 16", "recorded"}
    assert np.ptp([load for case in poisson for load in case.loads]) == pytest.approx(0.85)
