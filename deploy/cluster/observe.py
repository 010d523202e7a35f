"""The demo's cluster -> Seen: objects and GPUs from the API server, latencies from Prometheus."""

from __future__ import annotations

import json
import math
import urllib.parse
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING, Any

from story import Seen, VariantSeen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cluster import Cluster
    from demo import Demo, Target

_LATENCIES = '{__name__=~"fleetopt_controller_(ttft|itl)_milliseconds"}'


def observe(cluster: Cluster, prometheus: str, demo: Demo) -> Seen:
    """Look at everything once; raises ApiException or OSError."""
    base = f"namespaces/{demo.namespace}"
    variants = cluster.get(f"/apis/llmd.ai/v1alpha1/{base}/variantautoscalings")["items"]
    targets = cluster.get(f"/apis/apps/v1/{base}/deployments")["items"]
    deployments = {target["metadata"]["name"]: target for target in targets}
    latencies = _latencies(prometheus)
    gpus = count_gpus(
        cluster.get("/api/v1/nodes")["items"], cluster.get("/api/v1/pods")["items"], demo.device_of
    )
    return Seen(
        variants={
            name: variant_seen(variant, deployments[name], latencies, demo.targets)
            for variant in variants
            if (name := variant["metadata"]["name"]) in deployments
        },
        gpus=gpus,
        cost_cents_per_h=sum(used * demo.cents_per_h[name] for name, (used, _) in gpus.items()),
    )


def variant_seen(
    variant: Mapping[str, Any],
    deployment: Mapping[str, Any],
    latencies: Mapping[tuple[str, str], Mapping[str, float]],
    targets: Mapping[str, Target],
) -> VariantSeen:
    """Read the objects of a variant.

    Parameters
    ----------
    variant, deployment : objects
    latencies : mapping of (variant, "ttft" or "itl") to mapping of kind to float
    targets : mapping of str to Target
        By model.
    """
    status = variant.get("status") or {}
    name = variant["metadata"]["name"]
    load = (status.get("currentAlloc") or {}).get("load") or {}
    condition: Mapping[str, str] = next(
        (c for c in status.get("conditions") or () if c["type"] == "OptimizationReady"), {}
    )
    model = variant["spec"]["modelID"]
    ttft_ms, itl_ms = latencies.get((name, "ttft"), {}), latencies.get((name, "itl"), {})
    return VariantSeen(
        model=model,
        desired=(status.get("desiredOptimizedAlloc") or {}).get("numReplicas"),
        current=deployment["spec"]["replicas"],
        ready=(deployment.get("status") or {}).get("readyReplicas", 0),
        arrival_rps=float(load.get("arrivalRate", 0)) / 60,
        reason=condition.get("reason", ""),
        message=condition.get("message", ""),
        ttft_ms=ttft_ms,
        itl_ms=itl_ms,
        on_target=ttft_ms.get("observed", math.inf) <= targets[model].ttft_ms
        and itl_ms.get("observed", math.inf) <= targets[model].itl_ms,
    )


def count_gpus(
    nodes: Iterable[Mapping[str, Any]], pods: Iterable[Mapping[str, Any]], device_of: Mapping[str, str]
) -> dict[str, tuple[int, int]]:
    """Count the cards that pods hold and those that there are.

    Parameters
    ----------
    nodes, pods : iterable of objects
    device_of : mapping of str to str
        Accelerator -> what nodes call it.

    Returns
    -------
    dict of str to (int, int)
        By accelerator.
    """
    names = {device: name for name, device in device_of.items()}
    there: Counter[str] = Counter()
    used: Counter[str] = Counter()
    accelerator_at: dict[str, str] = {}
    for node in nodes:
        for label, device in (node["metadata"].get("labels") or {}).items():
            if label.endswith("/gpu.product") and device in names:
                accelerator_at[node["metadata"]["name"]] = names[device]
                there[names[device]] += _cards(node["status"]["allocatable"])
    for pod in pods:
        node_name = pod["spec"].get("nodeName", "")
        if node_name in accelerator_at:
            requests = [(c.get("resources") or {}).get("requests") or {} for c in pod["spec"]["containers"]]
            used[accelerator_at[node_name]] += sum(_cards(request) for request in requests)
    return {name: (used[name], there[name]) for name in sorted(there)}


def _cards(resources: Mapping[str, str]) -> int:
    return sum(int(count) for name, count in resources.items() if name.endswith("/gpu"))


def _latencies(prometheus: str) -> dict[tuple[str, str], dict[str, float]]:
    """Latencies that the controller predicts and observes, by variant and "ttft" or "itl"."""
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': _LATENCIES})}"
    with urllib.request.urlopen(url, timeout=5.0) as answer:
        elements = json.load(answer)["data"]["result"]
    found: dict[tuple[str, str], dict[str, float]] = {}
    for element in elements:
        labels = element["metric"]
        what = "ttft" if "ttft" in labels["__name__"] else "itl"
        found.setdefault((labels["variant_name"], what), {})[labels["kind"]] = float(element["value"][1])
    return found
