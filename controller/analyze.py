"""Snapshot and memory -> system JSON: which variants are one server, what arrives, what there is to choose.

::

    Snapshot -> options of each variant -> groups (= servers) -> load of each group -> schema.System
                  or a Hold                  by model, namespace, class   or a Hold

Variants of one model, namespace and service class share their load, so they are one server of the system,
whose accelerators are those of all of them. A variant that cannot be decided on is held: it keeps what it
runs, its GPUs are not given to others, and its Hold says why. Everything here is pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from controller.crd import SCALE_TO_ZERO_ANNOTATION, Condition, Hold
from controller.inventory import join_devices
from controller.load import Load, read_loads
from controller.options import flag, member_of, named_options, runs_on
from controller.stability import GroupKey, Memory, Tokens
from solver import schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from controller.crd import Variant, VariantKey
    from controller.inventory import GpuNode
    from controller.options import Member, Option
    from controller.snapshot import Snapshot
    from solver.schema import ModelProfile, ServiceClass


@dataclass(frozen=True)
class Group:
    """The variants that share a load: one server of the system.

    Attributes
    ----------
    key : GroupKey
    server : str
        Name in the system.
    variants : tuple of Variant
        By key.
    options : tuple of Option
    service_class : ServiceClass
    load : Load
    """

    key: GroupKey
    server: str
    variants: tuple[Variant, ...]
    options: tuple[Option, ...]
    service_class: ServiceClass
    load: Load


@dataclass(frozen=True)
class Analysis:
    """What a pass is going to ask, and what it already knows.

    Attributes
    ----------
    system : System or None
        None: there is no server to decide on.
    groups : tuple of Group
        The servers of the system.
    holds : mapping of VariantKey to Hold
    notes : mapping of VariantKey to tuple of str
        What may not be as meant, in words.
    accelerators : mapping of VariantKey to str
        What each variant runs on now, where that is known.
    inventory : Condition
        Whether the GPUs are known.
    memory : Memory
        What was learnt about traffic; recommendations as before.
    """

    system: schema.System | None
    groups: tuple[Group, ...]
    holds: Mapping[VariantKey, Hold]
    notes: Mapping[VariantKey, tuple[str, ...]]
    accelerators: Mapping[VariantKey, str]
    inventory: Condition
    memory: Memory


def analyze(snapshot: Snapshot, memory: Memory, now_s: float) -> Analysis:
    """Build the system of a pass.

    Parameters
    ----------
    snapshot : Snapshot
    memory : Memory
        Of the pass before.
    now_s : float
        On a clock that does not jump.
    """
    holds: dict[VariantKey, Hold] = {}
    notes: dict[VariantKey, tuple[str, ...]] = {}
    members: dict[GroupKey, list[Member]] = {}
    for variant in snapshot.variants:
        found = member_of(variant, snapshot)
        if isinstance(found, Hold):
            holds[variant.key] = found
            continue
        key = GroupKey(variant.key.namespace, variant.model_id, found.service_class.name)
        members.setdefault(key, []).append(found)
        if remarks := (*variant.problems, *found.remarks):
            notes[variant.key] = remarks

    stock, condition = _stock(snapshot, now_s)
    loads = read_loads(members, snapshot, memory)
    groups: list[Group] = []
    for key, its in sorted(members.items()):
        load = loads[key]
        if isinstance(load, Load) and (unmatched := _unmatched(its, stock)):
            load = unmatched
        if isinstance(load, Hold):
            holds |= dict.fromkeys((member.variant.key for member in its), load)
            continue
        variants = tuple(member.variant for member in its)
        server = f"{variants[0].key.name}:{key.namespace}"
        groups.append(Group(key, server, variants, named_options(its, snapshot), its[0].service_class, load))

    accelerators = {
        member.variant.key: name for its in members.values() for member in its if (name := runs_on(member))
    }
    learnt = _learnt(memory, members, groups, now_s)
    return Analysis(
        system=_system(groups, snapshot, stock, holds, accelerators, learnt, now_s) if groups else None,
        groups=tuple(groups),
        holds=holds,
        notes=notes,
        accelerators=accelerators,
        inventory=condition,
        memory=learnt,
    )


# --- the GPUs that there are ---

_Stock = dict[str, list["GpuNode"]]


def _stock(snapshot: Snapshot, now_s: float) -> tuple[_Stock | None, Condition]:
    """Nodes by device of the price list, None where GPUs are taken as unlimited, and what to say about it."""
    configuration, inventory = snapshot.configuration, snapshot.inventory
    if configuration.settings.unlimited:
        return None, Condition("InventoryKnown", True, "Unlimited", "GPUs are taken as unlimited by setting")
    if inventory is None or now_s - inventory.at_s > configuration.settings.inventory_stale_s:
        return None, Condition(
            "InventoryKnown",
            False,
            "NodesUnreadable",
            "nodes cannot be read: GPUs are taken as unlimited until they can",
        )
    pinned = {workload.pinned_device for workload in snapshot.workloads.values()} - {""}
    wanted = sorted({entry.device for entry in configuration.accelerators} | pinned)
    joined = join_devices(wanted, sorted({node.device for node in inventory.nodes}))
    stock: _Stock = {}
    for node in inventory.nodes:
        if node.device in joined:
            stock.setdefault(joined[node.device], []).append(node)
    if not snapshot.nodes_readable:
        return stock, Condition(
            "InventoryKnown",
            False,
            "NodesUnreadable",
            "nodes cannot be read: the last count of their GPUs holds",
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


def _unmatched(members: Sequence[Member], stock: _Stock | None) -> Hold | None:
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


def _capacity(
    stock: _Stock, snapshot: Snapshot, holds: Iterable[VariantKey], devices: Iterable[str]
) -> schema.CapacityData:
    """Cards for the groups that are decided on: without those that held variants keep."""
    assert snapshot.inventory is not None
    kept: dict[str, int] = {}
    for key in holds:
        for node, cards in snapshot.inventory.held.get(key, {}).items():
            kept[node] = kept.get(node, 0) + cards
    names = {entry.name: entry.device for entry in snapshot.configuration.accelerators}
    limits: dict[str, int] = {}
    for name, limit in snapshot.configuration.capacity.items():
        device = names.get(name, name)
        limits[device] = min(limit, limits.get(device, limit))
    nodes, count = [], []
    for device in sorted({*stock, *devices}):
        free = {node.name: max(node.cards - kept.get(node.name, 0), 0) for node in stock.get(device, ())}
        total = sum(free.values())
        nodes += [schema.Node(name=name, type=device, count=cards) for name, cards in free.items()]
        count.append(schema.GpuCount(type=device, count=min(total, limits.get(device, total))))
    return schema.CapacityData(count=count, nodes=nodes)


def _learnt(memory: Memory, members: Iterable[GroupKey], groups: Sequence[Group], now_s: float) -> Memory:
    """Remember when there was traffic and how large requests were; forget groups that are gone."""
    busy = {group.key for group in groups if group.load.is_busy}
    traffic_at_s = {key: now_s if key in busy else memory.traffic_at_s.get(key, now_s) for key in members}
    tokens = {key: memory.tokens[key] for key in traffic_at_s if key in memory.tokens}
    for group in groups:
        if group.load.arrival_rpm > 0:
            tokens[group.key] = Tokens(group.load.input_tokens, group.load.output_tokens)
    return replace(memory, traffic_at_s=traffic_at_s, tokens=tokens)


# --- the system ---


def _system(
    groups: Sequence[Group],
    snapshot: Snapshot,
    stock: _Stock | None,
    holds: Iterable[VariantKey],
    accelerators: Mapping[VariantKey, str],
    memory: Memory,
    now_s: float,
) -> schema.System:
    settings = snapshot.configuration.settings
    models = _model_names(groups)
    wire = {
        option.wire_name: schema.Accelerator(
            name=option.wire_name,
            type=option.device,
            cost_cents_per_h=option.cost_cents_per_h / option.profile.acc_count,
        )
        for group in groups
        for option in group.options
    }
    profiles = {
        (models[group.key], option.wire_name): option.profile.model_copy(
            update={"name": models[group.key], "acc": option.wire_name}
        )
        for group in groups
        for option in group.options
    }
    # Only several variants can run on several accelerators at once; a workload alone is of one kind.
    is_mixed = any(len(group.variants) > 1 for group in groups)
    devices = {option.device for group in groups for option in group.options}
    return schema.System(
        accelerator_data=schema.AcceleratorData(accelerators=[wire[name] for name in sorted(wire)]),
        capacity_data=schema.CapacityData() if stock is None else _capacity(stock, snapshot, holds, devices),
        model_data=schema.ModelData(models=[profiles[key] for key in sorted(profiles)]),
        service_class_data=schema.ServiceClassData(service_classes=_classes(groups, models)),
        server_data=schema.ServerData(
            servers=[
                _server(group, models[group.key], snapshot, accelerators, is_mixed, memory, now_s)
                for group in groups
            ]
        ),
        optimizer_data=schema.OptimizerData(
            optimizer=schema.Optimizer(
                unlimited=stock is None,
                heterogeneous=is_mixed,
                saturation_policy=settings.saturation_policy,
                backend=settings.backend or None,
            )
        ),
    )


def _model_names(groups: Sequence[Group]) -> dict[GroupKey, str]:
    """Name of each group's model in the system: its own, or one apart where profiles differ."""
    known: dict[tuple[str, str], ModelProfile] = {}
    names: dict[GroupKey, str] = {}
    for group in groups:
        profiles = {(group.key.model_id, option.wire_name): option.profile for option in group.options}
        same = all(known.setdefault(key, profile) == profile for key, profile in profiles.items())
        names[group.key] = group.key.model_id if same else f"{group.key.model_id} of {group.server}"
    return names


def _classes(groups: Sequence[Group], models: Mapping[GroupKey, str]) -> list[ServiceClass]:
    """The classes of the groups, with a target for each name that their models have in the system."""
    targets: dict[str, dict[str, schema.ModelTarget]] = {}
    classes: dict[str, ServiceClass] = {}
    for group in groups:
        name = group.service_class.name
        classes[name] = group.service_class
        target = next(t for t in group.service_class.model_targets if t.model == group.key.model_id)
        wire_model = models[group.key]
        targets.setdefault(name, {})[wire_model] = target.model_copy(update={"model": wire_model})
    return [
        classes[name].model_copy(update={"model_targets": list(targets[name].values())})
        for name in sorted(classes)
    ]


def _server(
    group: Group,
    model: str,
    snapshot: Snapshot,
    accelerators: Mapping[VariantKey, str],
    is_mixed: bool,
    memory: Memory,
    now_s: float,
) -> schema.Server:
    running: dict[str, int] = {}
    cost: dict[str, float] = {}
    for option in group.options:
        replicas = snapshot.workloads[option.variant].replicas
        if replicas and accelerators.get(option.variant) == option.accelerator:
            running[option.wire_name] = running.get(option.wire_name, 0) + replicas
            cost[option.wire_name] = cost.get(option.wire_name, 0.0) + replicas * option.cost_cents_per_h
    load = schema.Load(
        arrival_rate_rpm=group.load.arrival_rpm,
        avg_in_tokens=group.load.input_tokens,
        avg_out_tokens=group.load.output_tokens,
    )
    parts = [
        schema.AllocPart(accelerator=name, num_replicas=running[name], cost_cents_per_h=cost[name])
        for name in sorted(running)
    ]
    main = max(parts, key=lambda part: part.num_replicas, default=schema.Alloc())
    least, most = _replica_limits(group, snapshot, memory, now_s)
    return schema.Server(
        name=group.server,
        class_name=group.service_class.name,
        model=model,
        keep_accelerator=is_mixed and len(group.variants) == 1 and bool(main.accelerator),
        min_num_replicas=least,
        max_num_replicas=most,
        current_alloc=schema.Alloc(
            accelerator=main.accelerator,
            num_replicas=sum(running.values()),
            cost_cents_per_h=sum(cost.values()),
            itl_average_ms=group.load.itl_ms,
            ttft_average_ms=group.load.ttft_ms,
            load=load,
            parts=parts if len(parts) > 1 else [],
        ),
    )


def _replica_limits(group: Group, snapshot: Snapshot, memory: Memory, now_s: float) -> tuple[int, int | None]:
    """Least and most replicas of a group; the last goes only where allowed, after a time without traffic."""
    settings = snapshot.configuration.settings
    may_be_zero = all(
        flag(v, SCALE_TO_ZERO_ANNOTATION, settings.scale_to_zero or v.min_replicas == 0)
        for v in group.variants
    )
    idle_s = now_s - memory.traffic_at_s[group.key]
    is_idle = not group.load.is_busy and idle_s >= settings.scale_to_zero_retention_s
    least = max(sum(v.min_replicas or 0 for v in group.variants), 0 if may_be_zero and is_idle else 1)
    limits = [v.max_replicas for v in group.variants if v.max_replicas is not None]
    if len(limits) < len(group.variants):
        return least, None
    return min(least, sum(limits)), sum(limits)
