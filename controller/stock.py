"""The GPUs that a pass may give away: those of nodes, by device of the price list, less what is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controller.crd import Condition, Hold
from controller.inventory import join_devices
from solver import schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from controller.crd import Variant, VariantKey
    from controller.inventory import GpuNode, Inventory
    from controller.options import Member
    from controller.snapshot import Configuration, Snapshot, Workload

# Nodes by device of the price list.
Stock = dict[str, list["GpuNode"]]


def read_stock(snapshot: Snapshot, now_s: float) -> tuple[Stock | None, Condition]:
    """Return the nodes, None where GPUs are taken as unlimited, and what to say about it.

    Parameters
    ----------
    snapshot : Snapshot
    now_s : float
        On a clock that does not jump.
    """
    configuration, inventory = snapshot.configuration, snapshot.inventory
    if configuration.settings.unlimited:
        return None, Condition("InventoryKnown", True, "Unlimited", "GPUs are taken as unlimited by setting")
    if inventory is None or now_s - inventory.at_s > configuration.settings.inventory_stale_s:
        return None, Condition(
            "InventoryKnown",
            False,
            "NodesUnreadable",
            "nodes or pods cannot be read: GPUs are taken as unlimited until they can",
        )
    pinned = {workload.pinned_device for workload in snapshot.workloads.values()} - {""}
    wanted = sorted({entry.device for entry in configuration.accelerators} | pinned)
    joined = join_devices(wanted, sorted({node.device for node in inventory.nodes}))
    stock: Stock = {}
    for node in inventory.nodes:
        if node.device in joined:
            stock.setdefault(joined[node.device], []).append(node)
    if not snapshot.nodes_readable:
        return stock, Condition(
            "InventoryKnown",
            False,
            "NodesUnreadable",
            "nodes or pods cannot be read: the last count of their GPUs holds",
        )
    strange = sorted({node.device for node in inventory.nodes} - joined.keys())
    if strange:
        return stock, Condition(
            "InventoryKnown",
            True,
            "DevicesUnmatched",
            f"no entry of accelerator-unit-costs names these devices of nodes: {', '.join(strange)}",
        )
    return stock, Condition("InventoryKnown", True, "NodesRead", f"{len(inventory.nodes)} nodes with GPUs")


def unmatched(members: Sequence[Member], stock: Stock | None) -> Hold | None:
    """Hold a group that runs, though no node has any device of its options: the names do not fit."""
    devices = {option.device for member in members for option in member.options}
    if stock is None or devices & stock.keys() or not any(member.workload.ready for member in members):
        return None
    return Hold(
        "OptimizationReady",
        "DeviceUnmatched",
        f"replicas are ready, but no usable node has {', '.join(sorted(devices))}: "
        "compare accelerator-unit-costs with the gpu.product labels of the nodes",
    )


def capacity(
    stock: Stock, snapshot: Snapshot, holds: Iterable[VariantKey], devices: Iterable[str]
) -> schema.CapacityData:
    """Return the cards for the groups that are decided on: without those that held variants keep.

    Parameters
    ----------
    stock : Stock
    snapshot : Snapshot
    holds : iterable of VariantKey
        Variants that are held: what they run and what they have asked for stays theirs.
    devices : iterable of str
        That the groups may run on.
    """
    assert snapshot.inventory is not None
    held = sorted(holds)
    free = {
        device: {node.name: node.cards for node in stock.get(device, ())} for device in {*stock, *devices}
    }
    before = {device: sum(cards.values()) for device, cards in free.items()}
    for key in held:
        for cards in free.values():
            for node, count in snapshot.inventory.held.get(key, {}).items():
                if node in cards:
                    cards[node] = max(cards[node] - count, 0)
    variants = {variant.key: variant for variant in snapshot.variants}
    for key in held:
        workload = snapshot.workloads.get(key)
        if workload is not None:
            device = _device(variants[key], workload, snapshot.configuration)
            _reserve(free.get(device, {}), workload, _placed(snapshot.inventory, key))
    limits = _limits(snapshot.configuration)
    nodes: list[schema.Node] = []
    counts: list[schema.GpuCount] = []
    for device in sorted(free):
        total = sum(free[device].values())
        nodes += [schema.Node(name=name, type=device, count=cards) for name, cards in free[device].items()]
        # The limit is one for all variants, so what held ones keep counts towards it.
        kept = before[device] - total
        limit = max(limits[device] - kept, 0) if device in limits else total
        counts.append(schema.GpuCount(type=device, count=min(total, limit)))
    return schema.CapacityData(count=counts, nodes=nodes)


def _placed(inventory: Inventory, key: VariantKey) -> int:
    return sum(inventory.held.get(key, {}).values())


def _reserve(free: dict[str, int], workload: Workload, placed: int) -> None:
    """Take from nodes what replicas need that were asked for and have no node yet.

    Each goes where it leaves the least, so that the cards left over are together. One that fits nowhere waits
    for a node that is not there, and keeps nobody from what there is.
    """
    cards = workload.gpus_per_replica
    if not cards:
        return
    for _ in range(max(workload.replicas - placed // cards, 0)):
        node = min((name for name in sorted(free) if free[name] >= cards), key=free.__getitem__, default=None)
        if node is None:
            return
        free[node] -= cards


def _device(variant: Variant, workload: Workload, configuration: Configuration) -> str:
    """Device of the price list that a variant's pods run on; empty: not known."""
    devices = {entry.name: entry.device for entry in configuration.accelerators}
    for name in (workload.pinned_accelerator, variant.accelerator_label):
        if name in devices:
            return devices[name]
    pinned = workload.pinned_device
    return join_devices(sorted(devices.values()), [pinned]).get(pinned, "") if pinned else ""


def _limits(configuration: Configuration) -> Mapping[str, int]:
    """Most cards of a device, by its name or that of an accelerator; the least of several counts."""
    names = {entry.name: entry.device for entry in configuration.accelerators}
    limits: dict[str, int] = {}
    for name, limit in configuration.capacity.items():
        device = names.get(name, name)
        limits[device] = min(limit, limits.get(device, limit))
    return limits
