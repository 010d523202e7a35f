"""What a Deployment says about its replicas."""

from typing import Any

import pytest

from controller.snapshot import workload_of


def deployment(
    *, args: list[str] | None = None, command: list[str] | None = None, gpus: int = 1, **pod_spec: Any
) -> dict[str, Any]:
    resources = {"requests": {"nvidia.com/gpu": str(gpus)}, "limits": {"nvidia.com/gpu": str(gpus)}}
    container = {"name": "vllm", "args": args or [], "command": command or [], "resources": resources}
    return {
        "metadata": {"name": "vllm", "uid": "u"},
        "spec": {"replicas": 3, "template": {"spec": {"containers": [container], **pod_spec}}},
        "status": {"readyReplicas": 2},
    }


def test_replicas_asked_for_and_ready() -> None:
    found = workload_of(deployment(gpus=4), frozenset({"p"}))
    assert (found.replicas, found.ready, found.gpus_per_replica, found.uid) == (3, 2, 4, "u")
    assert found.pods == {"p"}
    assert (found.max_num_seqs, found.tensor_parallel, found.pinned_accelerator) == (None, None, "")


@pytest.mark.parametrize(
    "args",
    [
        ["m", "--max-num-seqs", "64", "--tensor-parallel-size", "2"],
        ["m", "--max-num-seqs=64", "--tensor-parallel-size=2"],
        ["m", "--max_num_seqs=64", "-tp", "2"],
        ["vllm serve m --max-num-seqs 64 -tp 2 --dtype float16"],
        ["--max-num-seqs", "8", "--max-num-seqs", "64", "-tp=2", "--kv-transfer-config", '{"a": "b c"}'],
        ["it's --max-num-seqs 1", "--max-num-seqs=64", "-tp=2"],
    ],
)
def test_arguments_of_vllm(args: list[str]) -> None:
    found = workload_of(deployment(args=args, command=["/bin/sh", "-c"]))
    assert (found.max_num_seqs, found.tensor_parallel) == (64, 2)


@pytest.mark.parametrize("args", [["--max-num-seqs"], ["--max-num-seqs", "auto"], ["--max-num-seqs=0"]])
def test_arguments_that_say_nothing(args: list[str]) -> None:
    assert workload_of(deployment(args=args)).max_num_seqs is None


def test_pins() -> None:
    product = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert workload_of(deployment(nodeSelector=product)).pinned_device == "NVIDIA-H100-80GB-HBM3"

    labelled = deployment()
    labelled["spec"]["template"]["metadata"] = {"labels": {"inference.optimization/acceleratorName": "H100"}}
    assert workload_of(labelled).pinned_accelerator == "H100"


@pytest.mark.parametrize(("values", "device"), [(["X"], "X"), (["X", "Y"], "")])
def test_required_affinity_pins_when_it_leaves_one_device(values: list[str], device: str) -> None:
    expression = {"key": "nvidia.com/gpu.product", "operator": "In", "values": values}
    required = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    assert workload_of(deployment(affinity=affinity)).pinned_device == device
    required["nodeSelectorTerms"].append({"matchExpressions": []})
    assert workload_of(deployment(affinity=affinity)).pinned_device == ""
