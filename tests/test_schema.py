"""The wire: every generation of the input is read, every mistake is told with the path the user wrote."""

from __future__ import annotations

import copy
import gc
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solver import schema
from solver.errors import InputError, Problem
from solver.schema import parse_system
from solver.wire_parse import Shape

if TYPE_CHECKING:
    from random import Random

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "tests" / "data" / "inferno_sample"

# Every key of the input at least once, with values that differ from the defaults; one profile of each law.
FULL: dict[str, Any] = json.loads("""
{"system": {
  "acceleratorData": {"accelerators": [
    {"name": "H100", "type": "NVIDIA-H100", "multiplicity": 2, "memSize": 80, "memBW": 3350, "cost": 100.5,
     "power": {"idle": 100, "full": 700, "midPower": 400, "midUtil": 0.6}},
    {"name": "A100", "cost": 40}]},
  "capacityData": {
    "count": [{"type": "NVIDIA-H100", "count": 31}, {"type": "A100", "count": 8}],
    "nodes": [{"name": "n1", "type": "A100", "count": 8}]},
  "modelData": {"models": [
    {"name": "m1", "acc": "H100", "accCount": 2, "maxBatchSize": 512, "atTokens": 128, "batchSizes": [8, 64],
     "alpha": 20.58, "beta": 0.41},
    {"name": "m2", "acc": "H100", "decodeParms": {"alpha": 5.47, "beta": 1.5},
     "prefillParms": {"gamma": 20, "delta": 0.1}},
    {"name": "m3", "acc": "A100", "weightSize": 16, "kvBytesPerToken": 131072,
     "queueModel": "moments", "overhead": 12,
     "perfParms": {"alpha": 8, "beta": 0.05, "gamma": 0.00005, "betaPrefill": 0.04, "prefillFloor": 5,
                   "epsilon": 3, "expertFraction": 0.1}},
    {"name": "m4", "acc": "A100", "ratePerReplica": 2.5}]},
  "serviceClassData": {"serviceClasses": [
    {"name": "Premium", "priority": 1, "headroom": {"percentile": 0.9, "dispersion": 3, "window": 30},
     "modelTargets": [
      {"model": "m1", "slo-itl": 24, "slo-ttw": 500, "slo-ttft": 1000, "slo-tps": 2000,
       "slo-percentile": 0.95},
      {"model": "m2", "slo-itl": 30}]}]},
  "serverData": {"servers": [
    {"name": "s1", "class": "Premium", "model": "m1", "keepAccelerator": true, "minNumReplicas": 1,
     "maxNumReplicas": 9, "maxTypes": 2, "replicaLimits": [{"accelerator": "H100", "min": 1, "max": 8}],
     "maxBatchSize": 4, "maxQueueSize": 0, "weight": 2.5,
     "currentAlloc": {
       "accelerator": "H100", "numReplicas": 3, "maxBatch": 256, "cost": 141, "itlAverage": 20.5,
       "ttftAverage": 70.25, "waitAverage": 3.5,
       "load": {"arrivalRate": 37.5, "avgLength": 279, "avgInTokens": 128, "avgOutTokens": 151,
                "arrivalCOV": 1.5, "serviceCOV": 0.5, "throughput": 37,
                "inTokensCOV": 0.8, "outTokensCOV": 0.6, "arrivalDispersion": 2.5},
       "parts": [
         {"accelerator": "H100", "numReplicas": 1, "maxBatch": 8, "cost": 100.5, "itlAverage": 9,
          "ttftAverage": 60, "load": {"arrivalRate": 20}},
         {"accelerator": "A100", "numReplicas": 1}]},
     "desiredAlloc": {}}]},
  "optimizerData": {"optimizer": {
    "unlimited": false, "heterogeneous": true, "milpSolver": true, "useCplex": true,
    "delayedBestEffort": true, "saturationPolicy": "RoundRobin", "backend": "highs", "timeLimit": 12.5,
    "gap": 0.001, "maxTypesPerServer": 2, "sloPercentile": 0.9, "switchingPenalty": 0.25, "burstiness": true,
    "queueModel": "moments", "headroom": {"factor": 1.25}, "verify": "simulation"}}
}}""")

# The mid-2025 form, from the log of an autoscaler's run (25 August 2025): one entry for each (class, model),
# no profile for most accelerators, and a type whose name differs between the cost map and the nodes.
MID_2025: dict[str, Any] = json.loads("""
{"acceleratorData": {"accelerators": [
   {"name": "MI300X", "type": "AMD-MI300X-192GB", "multiplicity": 1, "memSize": 0, "memBW": 0, "cost": 65},
   {"name": "A100", "type": "NVIDIA-A100-PCIE-80GB", "multiplicity": 1, "memSize": 0, "memBW": 0, "cost": 40},
   {"name": "G2", "type": "Intel-Gaudi-2-96GB", "multiplicity": 1, "memSize": 0, "memBW": 0,
    "power": {"idle": 0, "full": 0, "midPower": 0, "midUtil": 0}, "cost": 23}]},
 "capacityData": {"count": [
   {"type": "AMD-MI300X-192G", "count": 2},
   {"type": "Intel-Gaudi-2-96GB", "count": 2},
   {"type": "NVIDIA-A100-PCIE-80GB", "count": 2}]},
 "serviceClassData": {"serviceClasses": [
   {"name": "Freemium", "priority": 10, "model": "ibm/granite-13b",
    "slo-itl": 200, "slo-ttw": 2000, "slo-tps": 0},
   {"name": "Freemium", "priority": 10, "model": "meta/llama0-7b",
    "slo-itl": 150, "slo-ttw": 1500, "slo-tps": 0},
   {"name": "Premium", "priority": 1, "model": "default/default",
    "slo-itl": 24, "slo-ttw": 500, "slo-tps": 0},
   {"name": "Premium", "priority": 1, "model": "meta/llama0-70b",
    "slo-itl": 80, "slo-ttw": 500, "slo-tps": 0}]},
 "modelData": {"models": [
   {"name": "default/default", "acc": "A100", "accCount": 1, "alpha": 20.58, "beta": 0.41, "maxBatchSize": 4,
    "atTokens": 0}]},
 "optimizerData": {"optimizer": {"unlimited": true, "saturationPolicy": "None"}},
 "serverData": {"servers": [
   {"name": "vllme-deployment:llm-d-sim", "class": "Premium", "model": "default/default",
    "keepAccelerator": true, "minNumReplicas": 1, "maxBatchSize": 4,
    "currentAlloc": {
      "accelerator": "A100", "numReplicas": 1, "maxBatch": 256, "cost": 40, "itlAverage": 20,
      "waitAverage": 0, "load": {"arrivalRate": 40, "avgLength": 178, "arrivalCOV": 0, "serviceCOV": 0}},
    "desiredAlloc": {
      "accelerator": "", "numReplicas": 0, "maxBatch": 0, "cost": 0, "itlAverage": 0, "waitAverage": 0,
      "load": {"arrivalRate": 0, "avgLength": 0, "arrivalCOV": 0, "serviceCOV": 0}}}]}
}""")

DROP = object()


def full(*changes: tuple[str, Any]) -> dict[str, Any]:
    """A copy of FULL with the value at each path (``serverData.servers.0.model``) set, or dropped."""
    return changed(FULL, *((f"system.{path}", value) for path, value in changes))


def changed(document: dict[str, Any], *changes: tuple[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(document)
    for path, value in changes:
        *way, last = (int(step) if step.isdigit() else step for step in path.split("."))
        holder: Any = result
        for step in way:
            holder = holder[step]
        if value is DROP:
            del holder[last]
        elif isinstance(holder, list) and last == len(holder):
            holder.append(value)
        else:
            holder[last] = value
    return result


def problems(document: Any, *, strict: bool = False) -> list[Problem]:
    with pytest.raises(InputError) as caught:
        parse_system(document, strict=strict)
    return caught.value.problems


def rebuilt(value: Any, key: Any = lambda key: key, leaf: Any = lambda leaf: leaf) -> Any:
    """The JSON value with each key and each leaf replaced."""
    if isinstance(value, dict):
        return {key(k): rebuilt(v, key, leaf) for k, v in value.items()}
    if isinstance(value, list):
        return [rebuilt(v, key, leaf) for v in value]
    return leaf(value)


def keys_of(shape: Shape) -> set[str]:
    return set(shape.keys).union(*(keys_of(inner) for inner in shape.nested.values()))


# --- what is read ---


@pytest.mark.parametrize("law", [1, 2, 3])
@pytest.mark.parametrize(("size", "servers", "accelerators"), [("small", 15, 6), ("large", 27, 21)])
def test_public_samples_of_every_generation_are_read_without_a_warning(
    law: int, size: str, servers: int, accelerators: int
) -> None:
    parsed = parse_system((SAMPLES / f"law{law}-{size}.system.json").read_bytes(), strict=True)
    system = parsed.system
    assert parsed.warnings == []
    assert len(system.server_data.servers) == servers
    assert len(system.accelerator_data.accelerators) == accelerators
    assert {profile.law for profile in system.model_data.models} == {law}
    load = system.server_data.servers[0].current_alloc.load
    assert load.length_tokens == 1024
    if law > 1:  # These files write AvgInTokens and AvgOutTokens.
        assert load.in_out_tokens == (128, 1024)


def test_values_arrive_under_their_names() -> None:
    system = parse_system(FULL).system
    h100, a100 = system.accelerator_data.accelerators
    assert (h100.type, h100.multiplicity, h100.mem_size_gb, h100.mem_bw_gb_per_s) == (
        "NVIDIA-H100",
        2,
        80,
        3350,
    )
    assert (h100.power.idle_w, h100.power.full_w, h100.power.mid_power_w, h100.power.mid_util) == (
        100,
        700,
        400,
        0.6,
    )
    assert (h100.cost_cents_per_h, a100.type, a100.multiplicity) == (100.5, "A100", 1)
    m1, m2, m3, m4 = system.model_data.models
    assert [profile.law for profile in (m1, m2, m3, m4)] == [1, 2, 3, 0]
    assert (m1.alpha_ms, m1.beta_ms, m1.acc_count, m1.batch_sizes) == (20.58, 0.41, 2, [8, 64])
    assert m2.decode_parms is not None and m2.prefill_parms is not None and m3.perf_parms is not None
    assert (m2.decode_parms.alpha_ms, m2.prefill_parms.delta_ms) == (5.47, 0.1)
    assert (m3.perf_parms.gamma_ms, m4.rate_per_replica_rps) == (0.00005, 2.5)
    target = system.service_class_data.service_classes[0].model_targets[0]
    assert (target.slo_itl_ms, target.slo_ttw_ms, target.slo_ttft_ms, target.slo_tps) == (24, 500, 1000, 2000)
    server = system.server_data.servers[0]
    assert (server.class_name, server.max_num_replicas, server.max_queue_size, server.weight) == (
        "Premium",
        9,
        0,
        2.5,
    )
    alloc = server.current_alloc
    assert (alloc.cost_cents_per_h, alloc.wait_average_ms, alloc.load.arrival_rate_rpm) == (141, 3.5, 37.5)
    assert (alloc.load.arrival_cov, alloc.load.service_cov, alloc.parts[0].itl_average_ms) == (1.5, 0.5, 9)
    optimizer = system.optimizer_data.optimizer
    assert (optimizer.time_limit_s, optimizer.max_types_per_server, optimizer.slo_percentile) == (
        12.5,
        2,
        0.9,
    )


def test_an_autoscalers_log_of_mid_2025_is_read_and_its_classes_are_joined() -> None:
    parsed = parse_system(MID_2025, strict=True)
    assert parsed.warnings == []
    classes = parsed.system.service_class_data.service_classes
    assert [(c.name, c.priority, [t.model for t in c.model_targets]) for c in classes] == [
        ("Freemium", 10, ["ibm/granite-13b", "meta/llama0-7b"]),
        ("Premium", 1, ["default/default", "meta/llama0-70b"]),
    ]
    assert (classes[1].model_targets[0].slo_itl_ms, classes[1].model_targets[0].slo_ttw_ms) == (24, 500)


def test_inline_targets_and_nested_targets_make_the_same_class() -> None:
    inline = [
        {"name": "Premium", "priority": 1, "model": "m1", "slo-tpot": 24},
        {"name": "Premium", "model": "m2", "slo-itl": 30, "modelTargets": None},
    ]
    nested = [
        {
            "name": "Premium",
            "priority": 1,
            "modelTargets": [{"model": "m1", "slo-itl": 24}, {"model": "m2", "slo-tpot": 30}],
        }
    ]
    assert (
        parse_system(full(("serviceClassData.serviceClasses", inline))).system
        == parse_system(full(("serviceClassData.serviceClasses", nested))).system
    )


def test_the_outer_system_may_be_left_out() -> None:
    assert parse_system(FULL["system"]).system == parse_system(FULL).system


def test_bytes_text_and_mapping_are_the_same() -> None:
    text = json.dumps(FULL)
    assert parse_system(text) == parse_system(text.encode()) == parse_system(FULL)
    assert parse_system(b"\xef\xbb\xbf" + text.encode()) == parse_system(FULL)


def test_the_mapping_of_the_caller_is_left_alone() -> None:
    mine = full(("foo", 1), ("optimizerData.optimizer.gap", None))
    before = copy.deepcopy(mine)
    parse_system(mine)
    assert mine == before


def test_null_is_absent() -> None:
    nulls = full(
        ("capacityData.nodes", None),
        ("serverData.servers.0.maxNumReplicas", None),
        ("serverData.servers.0.currentAlloc", None),
        ("serverData.servers.0.keepAccelerator", None),
        ("optimizerData.optimizer.saturationPolicy", None),
    )
    absent = full(
        ("capacityData.nodes", DROP),
        ("serverData.servers.0.maxNumReplicas", DROP),
        ("serverData.servers.0.currentAlloc", DROP),
        ("serverData.servers.0.keepAccelerator", DROP),
        ("optimizerData.optimizer.saturationPolicy", DROP),
    )
    assert parse_system(nulls) == parse_system(absent)


def test_a_count_of_zero_is_one_where_it_cannot_be_zero() -> None:
    system = parse_system(
        full(("acceleratorData.accelerators.0.multiplicity", 0), ("modelData.models.0.accCount", "0"))
    ).system
    assert system.accelerator_data.accelerators[0].multiplicity == 1
    assert system.model_data.models[0].acc_count == 1


@pytest.mark.parametrize(
    ("given", "meant"),
    [("", "None"), ("roundrobin", "RoundRobin"), ("PRIORITYEXHAUSTIVE", "PriorityExhaustive")],
)
def test_saturation_policy_in_any_case(given: str, meant: str) -> None:
    system = parse_system(full(("optimizerData.optimizer.saturationPolicy", given))).system
    assert system.optimizer_data.optimizer.saturation_policy == meant


@pytest.mark.parametrize(
    ("load", "length", "in_out"),
    [
        ({"avgLength": 100}, 100, (0, 100)),
        ({"avgInTokens": 30, "avgOutTokens": 70}, 70, (30, 70)),
        ({"avgLength": 100, "avgInTokens": 30, "avgOutTokens": 70}, 100, (30, 70)),
        ({"avgLength": 0, "avgInTokens": 30, "avgOutTokens": 70}, 70, (30, 70)),
        ({"avgInTokens": 30}, 0, (30, 0)),
        ({}, 0, (0, 0)),
    ],
)
def test_tokens_for_each_law_from_either_generation_of_load(
    load: dict[str, float], length: float, in_out: tuple[float, float]
) -> None:
    read = schema.Load.model_validate(load)
    assert (read.length_tokens, read.in_out_tokens) == (length, in_out)


def test_the_full_document_has_every_key() -> None:
    found: set[str] = set()
    rebuilt(FULL, key=lambda key: found.add(key) or key)
    assert keys_of(Shape.of(schema.SystemRequest)) == found


@given(st.randoms(use_true_random=False))
def test_keys_in_any_case_mean_the_same(random: Random) -> None:
    def spelled(key: str) -> str:
        return "".join(random.choice((letter.upper(), letter.lower())) for letter in key)

    assert parse_system(json.dumps(rebuilt(FULL, key=spelled)), strict=True) == parse_system(FULL)


@given(st.randoms(use_true_random=False))
def test_numbers_may_be_strings(random: Random) -> None:
    def text(value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return str(value) if is_number and random.random() < 0.5 else value

    assert parse_system(rebuilt(FULL, leaf=text)) == parse_system(FULL)


def test_a_system_survives_being_written_and_read() -> None:
    system = parse_system(FULL).system
    text = schema.SystemRequest(system=system).model_dump_json()
    assert parse_system(text, strict=True) == schema.Parsed(system, parse_system(FULL).warnings)


def test_a_system_can_be_built_by_attribute_names_only_in_python() -> None:
    node = schema.Node(name="n", type="A100", count=8)
    assert json.loads(node.model_dump_json()) == {"name": "n", "type": "A100", "count": 8}
    # On the wire the name of an attribute is an unknown key.
    found = problems(
        full(("serverData.servers.0.class", DROP), ("serverData.servers.0.class_name", "Premium"))
    )
    assert [p.path for p in found] == ["$.system.serverData.servers[0].class"]


# --- what is refused ---

SERVER = "serverData.servers.0"
LOAD = f"{SERVER}.currentAlloc.load"
CLASS = "serviceClassData.serviceClasses.0"
OPTIMIZER = "optimizerData.optimizer"

# A value that is wrong by itself: the path of a value, what is put there, part of what is expected.
BAD_VALUES: list[tuple[str, Any, str]] = [
    ("acceleratorData", DROP, "required"),
    ("modelData", DROP, "required"),
    ("serviceClassData", DROP, "required"),
    ("serverData", DROP, "required"),
    ("serverData", [], "an object"),
    (
        "capacityData",
        DROP,
        "required: the GPUs there are, or $.system.optimizerData.optimizer.unlimited true",
    ),
    ("serverData.servers", {}, "a list"),
    (SERVER, 7, "an object"),
    (f"{SERVER}.name", DROP, "required: name of the server"),
    (f"{SERVER}.name", "", "a string that is not empty"),
    (f"{SERVER}.name", 5, "a string"),
    (f"{SERVER}.name", True, "a string"),
    (f"{SERVER}.model", "m9", "the name of a model that has a profile"),
    (f"{SERVER}.class", "", "a string that is not empty"),
    (f"{SERVER}.class", "premium", "the name of a service class; did you mean 'Premium'?"),
    (f"{SERVER}.currentAlloc.accelerator", "H200", "the name of an accelerator; did you mean 'H100'?"),
    (f"{SERVER}.currentAlloc.parts.1.accelerator", "TPU", "the name of an accelerator"),
    (f"{SERVER}.minNumReplicas", 10, "at most 9, the maxNumReplicas"),
    (f"{SERVER}.minNumReplicas", 1.5, "a whole number"),
    (f"{SERVER}.minNumReplicas", 10**12, "a number of at most 1e+09"),
    (f"{SERVER}.maxBatchSize", 100_000, "a number of at most 65536"),
    (f"{SERVER}.maxQueueSize", math.nan, "a finite number"),
    (f"{SERVER}.weight", 0, "a number of at least 1e-06"),
    (f"{SERVER}.keepAccelerator", "maybe", "true or false"),
    (f"{SERVER}.desiredAlloc", "H100", "an object"),
    (f"{LOAD}.arrivalRate", -1, "a number of at least 0"),
    (f"{LOAD}.arrivalRate", math.nan, "a finite number"),
    (f"{LOAD}.arrivalRate", math.inf, "a finite number"),
    (f"{LOAD}.arrivalRate", "inf", "a finite number"),
    (f"{LOAD}.arrivalRate", "many", "a number"),
    (f"{LOAD}.arrivalRate", True, "a number"),
    (f"{LOAD}.arrivalRate", [], "a number"),
    ("acceleratorData.accelerators.0.cost", -3, "a number of at least 0"),
    ("acceleratorData.accelerators.0.type", "", "not empty"),
    ("acceleratorData.accelerators.0.power", 3, "an object"),
    ("capacityData.nodes.0.name", DROP, "required: name of the node"),
    ("capacityData.count.0.count", "x", "a whole number"),
    ("modelData.models.0.alpha", -1, "a number of at least 0"),
    ("modelData.models.0.beta", DROP, "required: alpha and beta come together"),
    ("modelData.models.0.batchSizes.1", 0, "a number of at least 1"),
    ("modelData.models.1.decodeParms", DROP, "required: decodeParms and prefillParms come together"),
    ("modelData.models.1.prefillParms", DROP, "required: decodeParms and prefillParms come together"),
    ("modelData.models.2.perfParms.gamma", DROP, "required: time to read one token"),
    ("modelData.models.2.perfParms", {"alpha": 0, "beta": 0, "gamma": 1}, "a token takes time"),
    ("modelData.models.3.ratePerReplica", 0, "a number of at least 1e-09"),
    ("modelData.models.3", {"name": "m4", "acc": "A100"}, "exactly one of: alpha and beta; decodeParms and"),
    (
        "modelData.models.3",
        {"name": "m4", "acc": "A100", "alpha": 1, "beta": 1, "ratePerReplica": 2},
        "exactly",
    ),
    (f"{CLASS}.priority", math.nan, "a finite number"),
    (f"{CLASS}.priority", "high", "a whole number"),
    (f"{CLASS}.modelTargets.0.slo-itl", -1, "a number of at least 0"),
    (f"{CLASS}.modelTargets.0.slo-percentile", 95, "a number of at most 0.999"),
    (f"{CLASS}.modelTargets.0.model", DROP, "required: name of the model"),
    (f"{OPTIMIZER}.saturationPolicy", "fair", "one of 'None', 'PriorityExhaustive', 'PriorityRoundRobin' or"),
    (f"{OPTIMIZER}.saturationPolicy", 3, "one of 'None', 'PriorityExhaustive', 'PriorityRoundRobin' or"),
    (f"{OPTIMIZER}.timeLimit", 0, "a number above 0"),
    (f"{OPTIMIZER}.gap", -0.1, "a number of at least 0"),
    (f"{OPTIMIZER}.maxTypesPerServer", 0, "a number of at least 1"),
    (f"{OPTIMIZER}.unlimited", 3, "true or false"),
]


def user_path(path: str) -> str:
    return "$.system." + re.sub(r"\.(\d+)", r"[\1]", path)


@pytest.mark.parametrize(("path", "value", "expected"), BAD_VALUES)
def test_a_wrong_value_is_told_with_its_path_and_what_is_right(path: str, value: Any, expected: str) -> None:
    (found,) = problems(full((path, value)))
    assert found.path == user_path(path)
    assert found.value == ("" if value is DROP else json.dumps(value))
    assert expected in found.expected


# A value that does not go with another: what is added, the path that is told, what is expected.
CLASHES: list[tuple[str, Any, str, str]] = [
    (
        "acceleratorData.accelerators.2",
        {"name": "A100"},
        "acceleratorData.accelerators.2.name",
        "$.system.acceleratorData.accelerators[1].name has the same",
    ),
    (
        "capacityData.count.2",
        {"type": "A100", "count": 1},
        "capacityData.count.2.type",
        "$.system.capacityData.count[1].type has the same",
    ),
    (
        "capacityData.nodes.1",
        {"name": "n1", "type": "A100", "count": 1},
        "capacityData.nodes.1.name",
        "$.system.capacityData.nodes[0].name has the same",
    ),
    (
        "modelData.models.4",
        {"name": "m1", "acc": "H100", "alpha": 1, "beta": 1},
        "modelData.models.4.acc",
        "$.system.modelData.models[0].acc has the same",
    ),
    (
        "serverData.servers.1",
        {"name": "s1", "class": "Premium", "model": "m2"},
        "serverData.servers.1.name",
        "$.system.serverData.servers[0].name has the same",
    ),
    (
        "serviceClassData.serviceClasses.1",
        {"name": "Premium", "model": "m2"},
        "serviceClassData.serviceClasses.1.model",
        "$.system.serviceClassData.serviceClasses[0].modelTargets[1].model has the same",
    ),
    (
        "serviceClassData.serviceClasses.1",
        {"name": "Premium", "priority": "2", "model": "m3"},
        "serviceClassData.serviceClasses.1.priority",
        "'Premium' has 1 at $.system.serviceClassData.serviceClasses[0].priority",
    ),
    (
        "serviceClassData.serviceClasses.1",
        {"name": "X", "model": "m1", "Slo-TPOT": "fast"},
        "serviceClassData.serviceClasses.1.Slo-TPOT",
        "a number",
    ),
    (
        "serviceClassData.serviceClasses.1",
        {"name": "X", "slo-itl": 3},
        "serviceClassData.serviceClasses.1.model",
        "required: name of the model",
    ),
    (
        "acceleratorData.accelerators.2",
        {"cost": 3},
        "acceleratorData.accelerators.2.name",
        "required: name of the accelerator",
    ),
    (f"{SERVER}.Model", "m2", f"{SERVER}.Model", "'model' and 'Model' are the same"),
    (
        f"{CLASS}.modelTargets.0.slo-tpot",
        3,
        f"{CLASS}.modelTargets.0.slo-tpot",
        "'slo-itl' and 'slo-tpot' are the same",
    ),
    ("modelData.models.2.perfParms.alpha", 0, "modelData.models.2.perfParms", "a token takes time"),
]


@pytest.mark.parametrize(("path", "value", "told", "expected"), CLASHES)
def test_a_value_that_clashes_with_another_is_told_at_one_of_the_two(
    path: str, value: Any, told: str, expected: str
) -> None:
    (found,) = problems(full((path, value), ("modelData.models.2.perfParms.beta", 0)))
    assert found.path == user_path(told)
    assert expected in found.expected


def test_all_mistakes_are_told_at_once() -> None:
    # One of each object, so that none hides another: an object with a wrong value is not asked further.
    places = {path.rsplit(".", 1)[0]: (path, value) for path, value, _ in BAD_VALUES if path.count(".") == 3}
    told = {problem.path for problem in problems(full(*places.values()))}
    assert len(places) > 7
    assert told == {user_path(path) for path, _ in places.values()}


def test_paths_have_the_users_spelling_and_no_system_where_there_was_none() -> None:
    document = rebuilt(FULL["system"], key=str.upper)
    document["SERVERDATA"]["SERVERS"][0]["CURRENTALLOC"]["LOAD"]["ARRIVALRATE"] = -1
    document["SERVERDATA"]["SERVERS"][0]["CLASS"] = "nobody"
    assert {p.path for p in problems(document)} == {
        "$.SERVERDATA.SERVERS[0].CURRENTALLOC.LOAD.ARRIVALRATE",
        "$.SERVERDATA.SERVERS[0].CLASS",
    }


@pytest.mark.parametrize(
    ("body", "value", "expected"),
    [
        ('{"a": 1,\n "b" 2}', '"2}"', "line 2 column 6"),
        (b"", "", "line 1 column 1"),
        (b"\xff{}", "", "UTF-8"),
        ("[" * 200_000, "", "nested less deeply"),
        ('{"system": ' + "9" * 5000 + "}", "", "fewer digits"),
        ("[1]", "[1]", "an object"),
        ("NaN", "NaN", "an object"),
        ('{"servers": 1, "servers": 2}', '"servers"', "each key once"),
    ],
)
def test_what_is_no_object_of_json_is_one_problem_at_the_root(
    body: bytes | str, value: str, expected: str
) -> None:
    (found,) = problems(body)
    assert (found.path, found.value) == ("$", value)
    assert expected in found.expected


KEYS = sorted(keys_of(Shape.of(schema.SystemRequest)))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)


@given(
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    )
)
def test_any_json_is_an_answer_or_an_input_error(value: Any) -> None:
    try:
        parse_system(json.dumps({"system": value}))
    except InputError as error:
        assert error.problems
        assert all(problem.path.startswith("$") and problem.expected for problem in error.problems)


@pytest.mark.parametrize(("path", "value"), [(f"{SERVER}.model", "x" * 500), (f"{CLASS}.priority", 10**400)])
def test_a_long_value_is_cut(path: str, value: Any) -> None:
    (found,) = problems(full((path, value)))
    assert len(found.value) == 80
    assert json.dumps(value).startswith(found.value.removesuffix("…"))


def test_ten_thousand_mistakes_are_all_told_the_first_ones_with_a_hint() -> None:
    servers = [{"name": f"s{i}", "class": f"Premium-{i}", "model": "m1"} for i in range(10_000)]
    found = problems(full(("serverData.servers", servers)))
    assert len(found) == 10_000
    assert sum("did you mean 'Premium'?" in problem.expected for problem in found) == 20


def test_empty_names_are_not_told_as_used_twice() -> None:
    servers = [{"name": "", "class": "Premium", "model": "m1"}] * 2
    assert [p.path for p in problems(full(("serverData.servers", servers)))] == [
        "$.system.serverData.servers[0].name",
        "$.system.serverData.servers[1].name",
    ]


def test_the_garbage_collector_runs_again_after_an_error() -> None:
    assert gc.isenabled()
    problems("{")
    assert gc.isenabled()


# --- what is only remarked ---


def warnings_of(*changes: tuple[str, Any]) -> list[str]:
    return parse_system(full(*changes)).warnings


def test_the_full_document_is_read_without_a_warning() -> None:
    assert warnings_of() == []


def test_an_unknown_key_is_a_warning_for_each_pattern_and_an_error_when_strict() -> None:
    servers = [
        {"name": f"s{i}", "class": "Premium", "model": "m1", "maxBatchsSize": 4, "currentAlloc": {"Fo o": 1}}
        for i in range(3)
    ]
    document = full(
        ("serverData.Servers", servers), ("serverData.servers", DROP), ("capacityData.count.1.foo", None)
    )
    document["bar"] = 1
    assert parse_system(document).warnings == [
        "$.bar: unknown key, ignored",
        "$.system.capacityData.count[*].foo: unknown key, ignored",
        "$.system.serverData.Servers[*].maxBatchsSize: unknown key, ignored (3 times); "
        "did you mean 'maxBatchSize'?",
        "$.system.serverData.Servers[*].currentAlloc['Fo o']: unknown key, ignored (3 times)",
    ]
    assert [problem.path for problem in problems(document, strict=True)] == [
        "$.bar",
        "$.system.capacityData.count[*].foo",
        "$.system.serverData.Servers[*].maxBatchsSize",
        "$.system.serverData.Servers[*].currentAlloc['Fo o']",
    ]


def test_many_unknown_keys_are_counted_together_after_the_first_hundred() -> None:
    found = warnings_of(
        (
            "capacityData.nodes.0",
            {"name": "n", "type": "A100", "count": 1} | {f"x{i}": i for i in range(1000)},
        )
    )
    assert len(found) == 101
    assert found[-1] == "$.system.capacityData.nodes[*].*: unknown key, ignored (900 times)"


@pytest.mark.parametrize("priority", [0, 101, -1])
def test_a_priority_outside_the_range_counts_as_the_least(priority: int) -> None:
    parsed = parse_system(full(("serviceClassData.serviceClasses.0.priority", priority)))
    assert parsed.system.service_class_data.service_classes[0].priority == 100
    assert parsed.warnings == [
        "$.system.serviceClassData.serviceClasses[0].priority: "
        f"priority {priority} is outside 1..100: counted as 100"
    ]


def test_an_absent_priority_is_the_least_and_needs_no_warning() -> None:
    parsed = parse_system(full(("serviceClassData.serviceClasses.0.priority", DROP)))
    assert parsed.system.service_class_data.service_classes[0].priority == 100
    assert parsed.warnings == []


def test_profiles_of_an_accelerator_that_is_not_there_are_one_warning() -> None:
    extra = [{"name": name, "acc": "H200", "ratePerReplica": 1} for name in ("m1", "m2")]
    assert warnings_of(("modelData.models.4", extra[0]), ("modelData.models.5", extra[1])) == [
        "$.system.modelData.models[*].acc: no accelerator 'H200': profile unused; "
        "did you mean 'H100'? (2 times)"
    ]


@pytest.mark.parametrize("target", [DROP, {"model": "m1", "slo-itl": 0}])
def test_a_server_without_targets_is_a_warning(target: Any) -> None:
    assert warnings_of(("serviceClassData.serviceClasses.0.modelTargets.0", target)) == [
        "$.system.serverData.servers[0].model: class 'Premium' has no targets for 'm1': "
        "only stability limits its rate"
    ]


def test_a_type_that_is_not_counted_is_a_warning_unless_there_is_no_limit() -> None:
    parsed = parse_system(changed(MID_2025, ("optimizerData.optimizer.unlimited", False)))
    assert parsed.warnings == [
        "$.acceleratorData.accelerators[0].type: type 'AMD-MI300X-192GB' is not in capacityData: "
        "counted as 0 GPUs; did you mean 'AMD-MI300X-192G'?"
    ]
    assert parse_system(MID_2025).warnings == []


def test_a_type_that_only_nodes_have_is_counted() -> None:
    assert warnings_of(("capacityData.count.1", DROP)) == []


def test_a_load_of_the_other_generation_is_a_warning() -> None:
    load = {"arrivalRate": 1, "avgInTokens": 10, "avgOutTokens": 20}
    assert warnings_of((f"{SERVER}.currentAlloc.load", load)) == [
        "$.system.serverData.servers[0].currentAlloc.load: no avgLength: law 1 takes avgOutTokens"
    ]
    changes = (
        (f"{SERVER}.model", "m2"),
        (f"{SERVER}.currentAlloc.load", {"arrivalRate": 1, "avgLength": 20}),
    )
    assert warnings_of(*changes) == [
        "$.system.serverData.servers[0].currentAlloc.load: no avgInTokens and avgOutTokens: "
        "laws 2 and 3 take avgLength as output, no input"
    ]


def test_a_load_of_both_generations_is_no_warning() -> None:
    assert warnings_of((f"{SERVER}.model", "m2")) == []


def test_without_capacity_an_unlimited_system_is_sound() -> None:
    assert warnings_of(("capacityData", DROP), ("optimizerData.optimizer.unlimited", "true")) == []


# --- what is written ---


def allocation(**changes: Any) -> schema.Allocation:
    values: dict[str, Any] = {
        "accelerator": "H100",
        "num_replicas": 2,
        "max_batch": 8,
        "cost_cents_per_h": 200.0,
        "itl_average_ms": 7.5,
        "ttft_average_ms": 40.0,
        "load": schema.Load.model_validate({"arrivalRate": 60, "avgInTokens": 10, "avgOutTokens": 20}),
    }
    return schema.Allocation(**values | changes)


def response(**changes: Any) -> schema.Response:
    report: dict[str, Any] = {
        "termination": "optimal",
        "backend": "highs",
        "solver": "HiGHS",
        "version": "1.13.1",
        "objective": 200.0,
        "bound": 200.0,
        "gap": 0.0,
        "cost_cents_per_h": 200.0,
        "switching_penalty_cents_per_h": 0.0,
    }
    return schema.Response(allocations={"s1": allocation()}, report=schema.Report(**report | changes))


def test_an_allocation_has_the_references_keys_and_the_load_that_came() -> None:
    published = json.loads((SAMPLES / "law2-small.published-solution.json").read_bytes())["allocations"]
    written = json.loads(response().model_dump_json())["allocations"]["s1"]
    theirs = published["Bronze-granite_13b"]
    assert list(written) == list(theirs)
    assert list(written["load"]) == list(theirs["load"])


def test_an_allocation_of_the_first_generation_has_the_wait_and_the_length() -> None:
    published = json.loads((SAMPLES / "law1-small.published-solution.json").read_bytes())["allocations"]
    theirs = published["Bronze-granite_13b"]
    load = schema.Load.model_validate(theirs["load"])
    written = json.loads(allocation(wait_average_ms=3.0, load=load).model_dump_json())
    assert set(theirs) <= set(written)
    assert written["load"] == theirs["load"]


def test_parts_are_written_only_where_there_are_some() -> None:
    part = schema.AllocPart(accelerator="A100", num_replicas=1)
    assert "parts" not in json.loads(allocation().model_dump_json())
    (written,) = json.loads(allocation(parts=[part]).model_dump_json())["parts"]
    assert list(written) == [
        "accelerator",
        "numReplicas",
        "maxBatch",
        "cost",
        "itlAverage",
        "ttftAverage",
        "load",
    ]


def test_no_answer_has_nan_or_infinity() -> None:
    answer = response(objective=math.nan, bound=-math.inf, gap=math.inf, seconds={"solve": math.nan})
    text = answer.model_dump_json()
    assert not re.search("NaN|Infinity", text)
    report = json.loads(text)["report"]
    assert (report["objective"], report["bound"], report["gap"], report["seconds"]["solve"]) == (None,) * 4


def test_the_report_has_its_keys() -> None:
    value = schema.ValueOfOneMoreGpu(cost_per_hour=12.5, unserved_share=None)
    use = schema.InventoryUse(
        type="A100", used=3, available=None, binding=False, value_of_one_more_gpu=value, basis="dual"
    )
    why = schema.Explanation(
        accelerator="L4",
        max_batch=4,
        num_replicas=None,
        cost_cents_per_h=None,
        reason="targetMissed",
        detail="...",
    )
    report = json.loads(response(inventory=[use], explanations={"s1": [why]}).model_dump_json())["report"]
    assert set(report) == {
        "termination", "backend", "solver", "version", "objective", "bound", "gap", "cost",
        "switchingPenalty", "levels", "seconds", "unserved", "inventory", "explanations", "warnings",
    }  # fmt: skip
    assert report["inventory"][0] == {
        "type": "A100",
        "used": 3,
        "available": None,
        "binding": False,
        "valueOfOneMoreGpu": {"costPerHour": 12.5, "unservedShare": None},
        "basis": "dual",
    }
    assert report["explanations"]["s1"][0]["numReplicas"] is None


# --- what is documented ---


def described(part: dict[str, Any]) -> bool:
    return all(p.get("description") for p in part.get("properties", {}).values())


@pytest.mark.parametrize(
    "model",
    [schema.SystemRequest, schema.Response, schema.AnalyzeResponse, schema.ErrorResponse],
    ids=lambda m: m.__name__,
)
def test_the_json_schema_describes_every_key(model: type[schema.Wire]) -> None:
    made = schema.json_schema(model, ref_template="#/components/schemas/{model}")
    parts = [made, *made["$defs"].values()]
    assert all(described(part) for part in parts)
    references = re.findall(r'"\$ref": "([^"]+)"', json.dumps(made))
    assert references
    assert {r.removeprefix("#/components/schemas/") for r in references} <= set(made["$defs"])


@pytest.mark.parametrize(
    "model", [schema.SystemRequest, schema.Response, schema.AnalyzeResponse, schema.ErrorResponse]
)
def test_the_document_of_the_wire_names_every_key(model: type[schema.Wire]) -> None:
    text = (ROOT / "docs" / "wire.md").read_text()
    tables = re.sub(r"```.*?```", "", text, flags=re.S)
    named = set(re.findall(r"[\w-]+", " ".join(re.findall(r"`([^`]+)`", tables))))
    missing = keys_of(Shape.of(model)) - named
    assert not missing


def test_the_examples_of_the_document_of_the_wire_are_sound() -> None:
    text = (ROOT / "docs" / "wire.md").read_text()
    examples = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.S)]
    requests = [example for example in examples if "system" in example]
    answers = [example for example in examples if "allocations" in example]
    assert len(requests) >= 1 and len(answers) >= 1
    for request in requests:
        assert parse_system(request, strict=True).warnings == []
    for answer in answers:
        schema.Response.model_validate(answer)


def test_the_schema_needs_no_solver() -> None:
    heavy = "{'numpy', 'highspy', 'ortools', 'pyomo'}"
    check = f"import sys, solver.schema; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0
