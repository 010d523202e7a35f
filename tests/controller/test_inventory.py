"""GPUs from nodes and pods, and names that do not quite fit."""

from typing import Any

import pytest

from controller.crd import VariantKey
from controller.inventory import canonical, count_gpus, join_devices, matches, pod_gpus

OURS = VariantKey("llm-d-sim", "vllm")


def node(name: str, device: str, cards: int, vendor: str = "nvidia.com", **spec: Any) -> dict[str, Any]:
    ready = spec.pop("ready", "True")
    return {
        "metadata": {"name": name, "labels": {f"{vendor}/gpu.product": device} if device else {}},
        "spec": spec,
        "status": {
            "allocatable": {f"{vendor}/gpu": str(cards), "cpu": "8"},
            "conditions": [{"type": "Ready", "status": ready}, {"type": "DiskPressure", "status": "False"}],
        },
    }


def pod(
    on: str, gpus: int, phase: str = "Running", vendor: str = "nvidia.com", **labels: str
) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "namespace": "n", "labels": labels},
        "spec": {"nodeName": on, "containers": [_container(gpus, vendor)]},
        "status": {"phase": phase},
    }


def _container(gpus: int, vendor: str = "nvidia.com", **more: Any) -> dict[str, Any]:
    return {"resources": {"limits": {f"{vendor}/gpu": str(gpus), "cpu": "1"}}, **more}


def owner(pod: dict[str, Any]) -> VariantKey | None:
    return OURS if pod["metadata"]["labels"].get("app") == "vllm" else None


def test_gpus_of_others_are_not_ours() -> None:
    nodes = [node("b", "NVIDIA-H100-80GB-HBM3", 8), node("a", "AMD-MI300X-192G", 8, "amd.com")]
    pods = [
        pod("b", 2, app="vllm"),
        pod("b", 3, app="training"),
        pod("b", 4, phase="Succeeded", app="training"),
        pod("", 1, phase="Pending", app="training"),
        pod("a", 1, vendor="amd.com", app="training"),
    ]
    inventory = count_gpus(nodes, pods, owner, 5.0)

    assert [(n.name, n.device, n.cards) for n in inventory.nodes] == [
        ("a", "AMD-MI300X-192G", 7),
        ("b", "NVIDIA-H100-80GB-HBM3", 5),
    ]
    assert inventory.held == {OURS: {"b": 2}}
    assert inventory.at_s == 5.0


def test_nodes_that_cannot_be_used_do_not_count() -> None:
    nodes = [
        node("cordoned", "NVIDIA-H100-80GB-HBM3", 8, unschedulable=True),
        node("down", "NVIDIA-H100-80GB-HBM3", 8, ready="Unknown"),
        node("without", "", 0),
        node("unlabelled", "", 4, "intel.com"),
    ]
    assert [(n.name, n.device, n.cards) for n in count_gpus(nodes, [], owner, 0.0).nodes] == [
        ("unlabelled", "intel.com", 4)
    ]


def test_what_runs_on_a_cordoned_node_is_still_there() -> None:
    """Else a node's maintenance would end replicas before it is drained."""
    nodes = [node("cordoned", "X", 8, unschedulable=True), node("down", "X", 8, ready="False")]
    pods = [pod("cordoned", 3, app="vllm"), pod("cordoned", 2, app="training"), pod("down", 4, app="vllm")]
    assert [(n.name, n.cards) for n in count_gpus(nodes, pods, owner, 0.0).nodes] == [("cordoned", 3)]


def test_more_gpus_held_than_allocatable_leave_none() -> None:
    inventory = count_gpus([node("a", "X", 2)], [pod("a", 4, app="other")], owner, 0.0)
    assert inventory.nodes[0].cards == 0


def test_gpus_of_a_pod_as_the_scheduler_counts_them() -> None:
    spec = {
        "containers": [_container(1), _container(2)],
        "initContainers": [_container(1, restartPolicy="Always"), _container(5)],
    }
    assert pod_gpus({"spec": spec}) == 5
    spec["initContainers"][1] = _container(1)
    assert pod_gpus({"spec": spec}) == 4


def test_parts_of_a_name() -> None:
    assert canonical("amd_mi300x_192GB") == canonical("AMD-MI300X-192G") == ("AMD", "MI300X", "192G")


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ("AMD-MI300X-192G", "AMD-MI300X-192GB"),
        ("NVIDIA-A100-PCIE-80GB", "NVIDIA-A100-PCIE-80GB"),
        ("nvidia_a100_80gb_pcie", "NVIDIA-A100-PCIE-80GB"),
        ("NVIDIA-H100", "NVIDIA-H100-80GB-HBM3"),
        ("NVIDIA-A100-PCIE-40GB", None),
        ("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", None),
        ("NVIDIA-H100-80GB-HBM3-SHARED", None),
        ("AMD-RX-7800-XT", None),
        ("NVIDIA", None),
    ],
)
def test_devices_are_joined_tolerantly(there: str, wanted: str | None) -> None:
    prices = ["NVIDIA-A100-PCIE-80GB", "NVIDIA-H100-80GB-HBM3", "AMD-MI300X-192GB", "Intel-Gaudi-2-96GB"]
    assert join_devices(prices, [there]) == ({there: wanted} if wanted else {})


def test_a_name_that_could_be_two_is_neither() -> None:
    assert join_devices(["NVIDIA-A100-PCIE-80GB", "NVIDIA-A100-SXM4-80GB"], ["NVIDIA-A100-80GB"]) == {}


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({}, False),
        ({"matchLabels": {"app": "vllm"}}, True),
        ({"matchLabels": {"app": "vllm", "role": "decode"}}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "vllm"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["vllm"]}]}, False),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, False),
        ({"matchExpressions": [{"key": "role", "operator": "DoesNotExist"}]}, True),
    ],
)
def test_selectors(selector: dict[str, Any], expected: bool) -> None:
    assert matches(selector, {"app": "vllm"}) is expected
