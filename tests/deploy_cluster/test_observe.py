import pytest
from demo import Target
from observe import count_gpus, variant_seen

TARGETS = {"m": Target("Premium", 500.0, 24.0)}


def node(name: str, product: str, resource: str, count: str = "8"):
    return {
        "metadata": {"name": name, "labels": {resource.replace("gpu", "gpu.product"): product}},
        "status": {"allocatable": {resource: count, "cpu": "8"}},
    }


def pod(resource: str, on: str = ""):
    spec = {"containers": [{"resources": {"requests": {resource: "2", "cpu": "1"}}}, {}]}
    return {"spec": {**spec, "nodeName": on} if on else spec}


def test_cards_are_counted_by_accelerator_and_a_pending_pod_holds_none():
    nodes = [
        node("a", "NVIDIA-H100", "nvidia.com/gpu"),
        node("b", "NVIDIA-H100", "nvidia.com/gpu", "4"),
        node("c", "AMD-MI300X", "amd.com/gpu"),
        node("d", "other", "nvidia.com/gpu"),
    ]
    pods = [pod("nvidia.com/gpu", "a"), pod("nvidia.com/gpu", "b"), pod("amd.com/gpu", "c")]
    pods += [pod("nvidia.com/gpu"), pod("nvidia.com/gpu", "d")]
    found = count_gpus(nodes, pods, {"H100": "NVIDIA-H100", "MI300X": "AMD-MI300X"})
    assert found == {"H100": (4, 12), "MI300X": (2, 8)}


def test_a_variant_without_a_status_is_seen_without_a_decision():
    variant = {"metadata": {"name": "v"}, "spec": {"modelID": "m"}}
    seen = variant_seen(variant, {"spec": {"replicas": 2}}, {}, TARGETS)
    assert (seen.desired, seen.current, seen.ready, seen.arrival_rps, seen.reason) == (None, 2, 0, 0.0, "")


def test_a_status_is_read_as_the_controller_writes_it():
    variant = {
        "metadata": {"name": "v"},
        "spec": {"modelID": "m"},
        "status": {
            "currentAlloc": {"load": {"arrivalRate": "90.00"}},
            "desiredOptimizedAlloc": {"numReplicas": 3},
            "conditions": [
                {"type": "MetricsAvailable", "reason": "MetricsFound"},
                {"type": "OptimizationReady", "reason": "DemandUnserved", "message": "more H100"},
            ],
        },
    }
    target = {"spec": {"replicas": 3}, "status": {"readyReplicas": 2}}
    seen = variant_seen(variant, target, {("v", "ttft"): {"observed": 80.0}}, TARGETS)
    assert (seen.desired, seen.current, seen.ready, seen.arrival_rps) == (3, 3, 2, 1.5)
    assert (seen.reason, seen.message) == ("DemandUnserved", "more H100")
    assert (seen.ttft_ms, seen.itl_ms) == ({"observed": 80.0}, {})


@pytest.mark.parametrize(
    ("ttft_ms", "itl_ms", "on_target"),
    [
        (500.0, 24.0, True),
        (501.0, 20.0, False),
        (80.0, 24.1, False),
        (None, 20.0, False),
        (80.0, None, False),
    ],
)
def test_targets_are_met_when_both_latencies_are_known_and_within_them(ttft_ms, itl_ms, on_target):
    found = {"ttft": ttft_ms, "itl": itl_ms}
    latencies = {
        ("v", what): {"observed": ms, "predicted": 1.0} for what, ms in found.items() if ms is not None
    }
    variant = {"metadata": {"name": "v"}, "spec": {"modelID": "m"}}
    assert variant_seen(variant, {"spec": {"replicas": 1}}, latencies, TARGETS).on_target is on_target
