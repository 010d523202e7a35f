"""The GPUs of a cluster: what nodes have, less what pods of others hold, under the names of the price list.

All functions take Kubernetes objects as JSON and are pure.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from controller.crd import VariantKey

VENDORS = ("nvidia.com", "amd.com", "intel.com")
RESOURCES = tuple(f"{vendor}/gpu" for vendor in VENDORS)
PRODUCT_LABELS = tuple(f"{vendor}/gpu.product" for vendor in VENDORS)

# Parts of a device name that say that a "GPU" of the node is a share of a card: never joined to the card.
_PARTIAL = frozenset(("MIG", "SHARED"))


@dataclass(frozen=True)
class GpuNode:
    """A node with GPUs.

    Attributes
    ----------
    name : str
    device : str
        What the node calls its cards.
    cards : int
        Cards that are there for the variants: allocatable, less those that pods of others hold; >= 0.
    """

    name: str
    device: str
    cards: int


@dataclass(frozen=True)
class Inventory:
    """The GPUs of a cluster at one time.

    Attributes
    ----------
    nodes : tuple of GpuNode
        Ready nodes, by name. One that takes no new pods has the cards that pods of variants hold there.
    held : mapping of VariantKey to (mapping of str to int)
        Cards that the pods of each variant hold, by node; they are part of `GpuNode.cards`.
    at_s : float
        When they were read, on the clock of the pass.
    """

    nodes: tuple[GpuNode, ...]
    held: Mapping[VariantKey, Mapping[str, int]]
    at_s: float


def pod_gpus(pod: Mapping[str, Any]) -> int:
    """Count the GPUs that a pod asks for, as the scheduler does.

    That is the larger of what its containers need together (with sidecars, init containers that stay) and
    what any other init container needs at its turn.
    """
    return spec_gpus(pod.get("spec") or {})


def spec_gpus(spec: Mapping[str, Any]) -> int:
    """As `pod_gpus`, of a pod's specification."""
    together = sum(_container_gpus(container) for container in spec.get("containers") or [])
    at_start = 0
    for container in spec.get("initContainers") or []:
        if container.get("restartPolicy") == "Always":
            together += _container_gpus(container)
        else:
            at_start = max(at_start, _container_gpus(container))
    return max(together, at_start)


def holds_gpus(pod: Mapping[str, Any]) -> bool:
    """Whether a pod occupies its node: it is placed and has not ended."""
    phase = (pod.get("status") or {}).get("phase")
    return bool(pod["spec"].get("nodeName")) and phase not in ("Succeeded", "Failed")


def count_gpus(
    nodes: Iterable[Mapping[str, Any]],
    pods: Iterable[Mapping[str, Any]],
    owner: Callable[[Mapping[str, Any]], VariantKey | None],
    at_s: float,
) -> Inventory:
    """Count the cards that the variants may use, node by node.

    Parameters
    ----------
    nodes, pods : iterable of objects
        All of the cluster.
    owner : callable
        The variant that a pod belongs to; None: it is not ours, and neither are its cards.
    at_s : float
        When they were read.
    """
    foreign: Counter[str] = Counter()
    held: dict[VariantKey, Counter[str]] = {}
    for pod in pods:
        cards = pod_gpus(pod) if holds_gpus(pod) else 0
        if not cards:
            continue
        variant = owner(pod)
        counter = foreign if variant is None else held.setdefault(variant, Counter())
        counter[pod["spec"]["nodeName"]] += cards
    found = []
    for node in nodes:
        name = node["metadata"]["name"]
        device, cards = _cards(node)
        if not cards or not _is_ready(node):
            continue
        left = max(cards - foreign[name], 0)
        if (node.get("spec") or {}).get("unschedulable"):
            # What runs there goes on running until it is drained; taking it for gone would end it now.
            left = min(left, sum(counter[name] for counter in held.values()))
            if not left:
                continue
        found.append(GpuNode(name, device, left))
    return Inventory(tuple(sorted(found, key=lambda node: node.name)), held, at_s)


def canonical(device: str) -> tuple[str, ...]:
    """Break a device name into comparable parts, equal for ``AMD-MI300X-192G`` and ``amd_mi300x_192GB``."""
    parts = re.split(r"[^A-Z0-9.]+", device.upper())
    return tuple(re.sub(r"^(\d+)GI?B?$", r"\1G", part) for part in parts if part)


def join_devices(wanted: Sequence[str], there: Sequence[str]) -> dict[str, str]:
    """Find for device names of nodes those of the price list.

    Names are the same when their parts are, in any order; else a name that has all parts of exactly one name
    of the other side, and more, belongs to it (``NVIDIA-H100`` and ``NVIDIA-H100-80GB-HBM3``). Shares of a
    card (MIG and time slices) are never taken for the card.

    Parameters
    ----------
    wanted : sequence of str
        Devices of the price list.
    there : sequence of str
        Devices of nodes.

    Returns
    -------
    dict of str to str
        Device of a node -> device of the price list; without those that have none.
    """
    by_parts = {frozenset(canonical(name)): name for name in wanted}
    joined: dict[str, str] = {}
    for name in there:
        parts = frozenset(canonical(name))
        if parts in by_parts:
            joined[name] = by_parts[parts]
            continue
        near = [
            target
            for other, target in by_parts.items()
            if (other < parts or parts < other) and len(other & parts) > 1
            if (other & _PARTIAL) == (parts & _PARTIAL)
        ]
        if len(near) == 1:
            joined[name] = near[0]
    return joined


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects something with `labels`; an empty selector selects nothing here."""
    exact, expressions = selector.get("matchLabels") or {}, selector.get("matchExpressions") or []
    if not exact and not expressions:
        return False
    return all(labels.get(key) == value for key, value in exact.items()) and all(
        _expression_holds(expression, labels) for expression in expressions
    )


def _expression_holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, operator = expression["key"], expression["operator"]
    values = expression.get("values") or []
    if operator == "In":
        return labels.get(key) in values
    if operator == "NotIn":
        return labels.get(key) not in values
    return (key in labels) is (operator == "Exists")


def _container_gpus(container: Mapping[str, Any]) -> int:
    resources = container.get("resources") or {}
    asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return sum(int(asked.get(name, 0)) for name in RESOURCES)


def _cards(node: Mapping[str, Any]) -> tuple[str, int]:
    """Device and allocatable cards of a node; without a label the vendor stands for the device."""
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    labels = node["metadata"].get("labels") or {}
    for vendor in VENDORS:
        cards = int(allocatable.get(f"{vendor}/gpu", 0))
        if cards:
            return labels.get(f"{vendor}/gpu.product") or vendor, cards
    return "", 0


def _is_ready(node: Mapping[str, Any]) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or []
    return all(entry.get("status") == "True" for entry in conditions if entry.get("type") == "Ready")
