from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models import catalog
from models.catalog import GPUS, PRICES, PROFILES, build
from models.fit import Form, predict
from solver.catalog import law_3_parameters

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rebuilt():
    return build.texts(ROOT / "data")


@pytest.mark.parametrize("name", [GPUS, PRICES])
def test_the_shipped_tables_are_made_from_the_shipped_data(rebuilt, name):
    assert (ROOT / "models" / "catalog" / name).read_text(encoding="utf-8") == rebuilt[name]


def test_the_shipped_profiles_are_the_fits_of_the_shipped_data(rebuilt):
    shipped = (ROOT / "models" / "catalog" / PROFILES).read_text(encoding="utf-8").splitlines()
    made = rebuilt[PROFILES].splitlines()
    assert len(shipped) == len(made)
    for one, other in zip(csv.reader(shipped), csv.reader(made), strict=True):
        for cell, same in zip(one, other, strict=True):
            try:
                # Another build of the linear algebra rounds the last digit otherwise.
                assert float(cell) == pytest.approx(float(same), rel=1e-3, abs=1e-4)
            except ValueError:
                assert cell == same


def test_every_row_says_where_it_is_from():
    for row in (*catalog.profiles(), *catalog.gpus(), *catalog.prices()):
        assert row.source
        assert row.licence


def test_ids_are_unique_and_sorted():
    ids = [row.id for row in catalog.profiles()]
    assert ids == sorted(set(ids))
    assert len(ids) > 100


def test_every_profile_is_a_law_with_an_error_and_a_range():
    known = {row.gpu for row in catalog.gpus()}
    for row in catalog.profiles():
        assert row.gpu in known
        assert row.alpha_ms + row.beta_ms > 0
        assert min(law_3_parameters(row).values()) >= 0
        assert 0 < row.mean_error <= row.worst_error
        assert 0 < row.held_out_error <= 0.25
        assert 1 <= row.batch_low < row.batch_high
        assert row.in_low <= row.in_high
        assert row.out_low <= row.out_high
        assert row.weights_gb > 0
        assert row.kv_bytes_per_token > 0


def test_a_shipped_profile_predicts_what_was_measured():
    # TensorRT-LLM, two H200: 27.0 ms at 128 requests of 1024 / 1024 tokens, 108.0 ms of 8192 / 1024.
    row = next(r for r in catalog.profiles() if r.id == "llama-3.1-70b/h200_sxm/trtllm/fp8/tp2/unversioned")
    group = next(g for g in build.silicon_groups(ROOT / "data") if g.id == row.id)
    itl_ms, _ = predict(Form(row.form), law_3_parameters(row), group.points)
    np.testing.assert_allclose(itl_ms, group.points.itl_ms, rtol=row.worst_error + 1e-3)
    at_128 = group.points.concurrency == 128
    assert sorted(group.points.itl_ms[at_128]) == pytest.approx([27.0071, 29.4923, 108.0291])


def test_a_law_with_experts_has_their_share():
    for row in catalog.profiles():
        assert np.isnan(row.epsilon_ms) == np.isnan(row.expert_fraction) == ("experts" not in row.form)


def test_matching_takes_the_first_parts_of_an_id():
    rows = catalog.profiles()
    assert [row.id for row in catalog.matching(rows, rows[7].id)] == [rows[7].id]
    found = catalog.matching(rows, "Llama-3.1-70B/H100_SXM")
    assert {(row.model, row.gpu) for row in found} == {("llama-3.1-70b", "h100_sxm")}
    assert [row.held_out_error for row in found] == sorted(row.held_out_error for row in found)
    assert catalog.matching(rows, "llama-3.1") == []


def test_the_cheapest_of_the_newest_prices():
    rows = catalog.prices()
    price = catalog.cheapest(rows, gpu="h100_sxm", cloud="AWS")
    assert (price.usd_per_gpu_h, price.as_of) == (6.88, "2026-07-20")
    spot = catalog.cheapest(rows, gpu="h100_sxm", cloud="nebius", spot=True)
    assert spot.spot_usd_per_gpu_h == 1.25
    assert catalog.cheapest(rows, gpu="h100_sxm", cloud="aws", spot=True) is None
    assert catalog.cheapest(rows, gpu="h100_sxm", cloud="aws", region="eu-central-1") is None


def test_an_old_price_does_not_count_however_cheap():
    price = next(row for row in catalog.prices() if row.cloud == "aws" and row.gpu == "h100_sxm")
    rows = [price, replace(price, usd_per_gpu_h=1.0, as_of="2024-01-01")]
    assert catalog.cheapest(rows, gpu="h100_sxm", cloud="aws") == price
    assert catalog.cheapest(rows[1:], gpu="h100_sxm", cloud="aws") == rows[1]


def test_implausible_prices_are_left_out():
    assert all(row.cloud != "dataoorts" for row in catalog.prices())
    for row in catalog.prices():
        assert 0.1 < row.usd_per_gpu_h < 40


def test_rows_that_repeat_a_point_count_once():
    for group in build.silicon_groups(ROOT / "data"):
        points = {
            (n, a, b)
            for n, a, b in zip(
                group.points.concurrency, group.points.in_tokens, group.points.out_tokens, strict=True
            )
        }
        assert len(points) == len(group.points)


def test_no_replica_has_more_cards_than_an_8_card_node():
    # Some dumps give 64 for 8 x 8 tensor and expert parallelism on 8 cards.
    per_node = {row.gpu: row.per_node for row in catalog.gpus()}
    assert max(row.cards for row in catalog.profiles() if per_node[row.gpu] == 8) == 8
