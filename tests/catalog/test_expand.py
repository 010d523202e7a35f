from __future__ import annotations

import copy
import json

import pytest

from models import catalog
from models.fit import Form, fit
from models.measurements import from_rows
from solver import schema
from solver.catalog import expand_catalog, profile_entry, read_system
from solver.errors import InputError

ID = "llama-3.1-70b/h100_sxm/vllm/fp8/tp4/unversioned"


def document(**profile):
    return {
        "system": {
            "acceleratorData": {
                "accelerators": [{"name": "H100", "multiplicity": 2, "catalog": "h100_sxm", "cloud": "aws"}]
            },
            "modelData": {"models": [{"name": "llama", "acc": "H100", "profile": f"catalog:{ID}"} | profile]},
            "serviceClassData": {
                "serviceClasses": [
                    {"name": "c", "priority": 1, "modelTargets": [{"model": "llama", "slo-itl": 40}]}
                ]
            },
            "serverData": {
                "servers": [
                    {
                        "name": "s",
                        "class": "c",
                        "model": "llama",
                        "currentAlloc": {
                            "load": {"arrivalRate": 60, "avgInTokens": 2000, "avgOutTokens": 1024}
                        },
                    }
                ]
            },
            "optimizerData": {"optimizer": {"unlimited": True}},
        }
    }


def entries(expanded):
    system = expanded.get("system", expanded)
    return system["acceleratorData"]["accelerators"][0], system["modelData"]["models"][0]


def problem(given):
    with pytest.raises(InputError) as caught:
        expand_catalog(given)
    (found,) = caught.value.problems
    return found


def test_a_document_without_references_is_returned_as_it_is():
    plain = {"system": {"acceleratorData": {"accelerators": [{"name": "A"}]}, "modelData": {"models": []}}}
    expanded, warnings = expand_catalog(plain)
    assert expanded is plain
    assert warnings == []


@pytest.mark.parametrize(
    "odd", [{}, {"system": None}, {"system": 3}, {"modelData": [1]}, {"modelData": {"models": 1}}]
)
def test_what_is_no_system_is_left_to_the_schema(odd):
    assert expand_catalog(odd) == (odd, [])


def test_the_figures_of_the_catalogue_are_filled_in():
    given = document()
    before = copy.deepcopy(given)
    expanded, warnings = expand_catalog(given)
    assert given == before
    accelerator, profile = entries(expanded)
    assert accelerator == {
        "name": "H100",
        "multiplicity": 2,
        "memSize": pytest.approx(2 * 80 * 1.073741824, rel=1e-4),
        "memBW": 6700,
        "power": {"full": 700},
        "cost": 1376,
    }
    row = next(r for r in catalog.profiles() if r.id == ID)
    assert profile == {
        "name": "llama",
        "acc": "H100",
        "accCount": 2,
        "maxBatchSize": 64,
        "weightSize": 70.6,
        "kvBytesPerToken": 327_680,
        "queueModel": "moments",
        "perfParms": {
            "alpha": row.alpha_ms,
            "beta": row.beta_ms,
            "gamma": row.gamma_ms,
        },
    }
    assert warnings == [
        "catalogue: price of h100_sxm at aws, us-east-1 (p5.48xlarge) is 6.88 USD/h a card, as of 2026-07-20"
    ]


@pytest.mark.parametrize("options", [{"queueModel": "reference"}, {"QUEUEMODEL": "moments"}])
def test_the_options_queue_model_wins_over_the_default(options):
    given = document()
    given["system"]["optimizerData"] = {"Optimizer": options}
    expanded, _ = expand_catalog(given)
    assert "queueModel" not in entries(expanded)[1]


def test_the_expanded_document_is_a_system():
    parsed = schema.parse_system(expand_catalog(document())[0])
    (profile,) = parsed.system.model_data.models
    assert (profile.law, profile.acc_count, profile.max_batch_size) == (3, 2, 64)
    assert parsed.system.accelerator_data.accelerators[0].cost_cents_per_h == 1376


def test_reading_a_system_expands_it():
    parsed = read_system(json.dumps(document()).encode())
    assert parsed.system.model_data.models[0].max_batch_size == 64
    assert any(warning.startswith("catalogue: price of h100_sxm") for warning in parsed.warnings)
    with pytest.raises(InputError, match="an object: the system"):
        read_system(b"[]")
    with pytest.raises(InputError, match=r"\$\.system\.modelData\.models\[0\]\.profile"):
        read_system(document(profile="catalog:nothing"))


def test_keys_in_any_case_and_no_outer_system():
    inner = document()["system"]
    odd = {
        "AcceleratorData": {
            "Accelerators": [{"Name": "H100", "Multiplicity": "2", "Catalog": "H100_SXM", "Cost": 5}]
        },
        "ModelData": {"Models": [{"Name": "llama", "Acc": "H100", "Profile": f"catalog:{ID}"}]},
        "serverData": inner["serverData"],
    }
    expanded, warnings = expand_catalog(odd)
    assert expanded["AcceleratorData"]["Accelerators"][0]["Cost"] == 5
    assert expanded["ModelData"]["Models"][0]["accCount"] == 2
    assert warnings == []


def test_a_replica_takes_whole_units():
    given = document(profile="catalog:llama-3.1-70b/h200_sxm/trtllm/fp8/tp1/unversioned")
    given["system"]["acceleratorData"]["accelerators"][0]["catalog"] = "h200_sxm"
    assert problem(given).expected == "a profile for h200_sxm on a multiple of 2 cards"


def test_what_the_document_gives_wins():
    accelerator, profile = entries(
        expand_catalog(
            {
                "acceleratorData": {
                    "accelerators": [{"name": "x", "catalog": "h100_sxm", "cost": 7, "memSize": 80}]
                },
                "modelData": {
                    "models": [
                        {
                            "name": "m",
                            "acc": "x",
                            "profile": f"catalog:{ID}",
                            "maxBatchSize": 16,
                            "weightSize": 40,
                        }
                    ]
                },
            }
        )[0]
    )
    assert (accelerator["cost"], accelerator["memSize"]) == (7, 80)
    assert (profile["maxBatchSize"], profile["weightSize"], profile["accCount"]) == (16, 40, 4)


def test_a_short_reference_takes_the_best_that_fits_the_accelerator():
    expanded, warnings = expand_catalog(document(profile="catalog:llama-3.1-70b"))
    # The accelerator is of two H100; those on H200 and B200 do not fit it.
    fitting = [
        row
        for row in catalog.profiles()
        if row.model == "llama-3.1-70b" and row.gpu == "h100_sxm" and row.cards % 2 == 0
    ]
    best = min(fitting, key=lambda row: row.held_out_error)
    assert entries(expanded)[1]["accCount"] == best.cards // 2
    assert (
        f"{len(fitting)} profiles are meant by catalog:llama-3.1-70b; catalog:{best.id} was taken"
        in warnings[1]
    )


def test_a_given_unit_count_chooses_among_profiles():
    expanded, _ = expand_catalog(document(profile="catalog:llama-3.1-70b", accCount=4))
    assert entries(expanded)[1]["perfParms"]["alpha"] == next(
        r.alpha_ms for r in catalog.profiles() if r.id == "llama-3.1-70b/h100_sxm/vllm/fp8/tp8/unversioned"
    )


def test_a_use_outside_the_measured_range_is_said():
    given = document(maxBatchSize=256)
    given["system"]["serverData"]["servers"][0]["currentAlloc"]["load"]["avgOutTokens"] = 50
    _, warnings = expand_catalog(given)
    assert warnings[1:] == [
        "$.system.modelData.models[0].maxBatchSize: 256 is outside the measured range 4 to 64 "
        f"of catalog:{ID}",
        f"server s on H100: output tokens 50 is outside the measured range 1024 to 8192 of catalog:{ID}",
    ]


def test_spot_prices():
    given = document()
    given["system"]["acceleratorData"]["accelerators"][0] |= {"cloud": "nebius", "spot": True}
    expanded, warnings = expand_catalog(given)
    accelerator, _ = entries(expanded)
    assert accelerator["cost"] == 250
    assert "spot" not in accelerator
    assert warnings[0].startswith("catalogue: spot price of h100_sxm at nebius, eu-north1")
    assert warnings[0].endswith("USD/h a card, undated")


def test_no_cloud_and_no_cost_is_said():
    given = document()
    del given["system"]["acceleratorData"]["accelerators"][0]["cloud"]
    assert expand_catalog(given)[1] == [
        "$.system.acceleratorData.accelerators[0]: no cost, and no cloud whose price to take: "
        "it counts as free"
    ]


def test_an_unknown_gpu():
    given = document()
    given["system"]["acceleratorData"]["accelerators"][0]["catalog"] = "h100_sxn"
    found = problem(given)
    assert found.path == "$.system.acceleratorData.accelerators[0].catalog"
    assert "did you mean 'h100_sxm'?" in found.expected


def test_a_cloud_without_the_gpu():
    given = document()
    given["system"]["acceleratorData"]["accelerators"][0]["cloud"] = "gcp"
    found = problem(given)
    assert found.path == "$.system.acceleratorData.accelerators[0].cloud"
    assert "aws, azure" in found.expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"profile": "catalog:llama-3.1-70c"}, "did you mean 'catalog:llama-3.1-70b'?"),
        ({"profile": "llama-3.1-70b"}, "catalog: and the id"),
        ({"profile": "catalog:llama-3.1-70b/h200_sxm"}, "a profile for h100_sxm on a multiple of 2 cards"),
        ({"accCount": 3}, "a profile for h100_sxm on 6 cards"),
        ({"perfParms": {"alpha": 1}}, "either a profile or perfParms, not both"),
    ],
)
def test_a_profile_that_does_not_fit(change, expected):
    found = problem(document(**change))
    assert found.path == "$.system.modelData.models[0].profile"
    assert expected in found.expected


def fitted(form, itl_ms, **more):
    return fit(
        from_rows(
            {
                "concurrency": n,
                "in_tokens": a,
                "out_tokens": b,
                "itl_ms": itl_ms(n, a, b),
                **{k: f(n, a, b) for k, f in more.items()},
            }
            for n in (1, 2, 8, 32)
            for a, b in ((100, 100), (200, 400), (400, 100))
        ),
        forms=[form],
    )


@pytest.mark.parametrize(
    ("form", "law"), [(Form.DECODE_LINEAR, 1), (Form.PREFILL_DECODE, 2), (Form.ITERATION, 3)]
)
def test_a_fit_becomes_a_profile_that_the_schema_takes(form, law):
    more = {} if form is Form.DECODE_LINEAR else {"ttft_ms": lambda n, a, b: 30 + 0.01 * a * n}
    entry = profile_entry(
        fitted(form, lambda n, a, b: 10 + 0.5 * n, **more), model="m", accelerator="x", units=2
    )
    profile = schema.ModelProfile.model_validate(entry)
    assert (profile.law, profile.acc_count, profile.max_batch_size) == (law, 2, 32)
    assert profile.queue_model == ("moments" if law == 3 else None)
    if law == 2:
        assert profile.decode_parms.alpha_ms == pytest.approx(10)
        assert profile.prefill_parms.delta_ms == pytest.approx(0.01)
