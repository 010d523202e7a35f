"""Snapshot and memory -> system JSON: which variants are one server, what arrives, what there is to choose.

::

    Snapshot -> options of each variant -> groups (= servers) -> load of each group -> schema.System
                  or a Hold                  by model, namespace, class   or a Hold

Variants of one model, namespace and service class share their load, so they are one server of the system,
whose accelerators are those of all of them. A variant that cannot be decided on is held: it keeps what it
runs, its GPUs are not given to others, and its Hold says why. Everything here is pure.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from controller.configmaps import ZeroRule, zero_rule
from controller.crd import SCALE_TO_ZERO_ANNOTATION, Hold
from controller.load import Load, read_loads, read_own_loads
from controller.options import flag, member_of, named_options, runs_on
from controller.stability import GroupKey, Memory, Tokens
from controller.stock import capacity, read_stock, unmatched
from solver import schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from controller.crd import Condition, Variant, VariantKey
    from controller.options import Member, Option
    from controller.snapshot import Snapshot
    from controller.stock import Stock
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
    own_loads : mapping of VariantKey to Load
        What each variant's own pods were seen to do, where series tell them apart.
    """

    key: GroupKey
    server: str
    variants: tuple[Variant, ...]
    options: tuple[Option, ...]
    service_class: ServiceClass
    load: Load
    own_loads: Mapping[VariantKey, Load]


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

    stock, condition = read_stock(snapshot, now_s)
    loads, own_loads = read_loads(members, snapshot, memory), read_own_loads(snapshot)
    groups: list[Group] = []
    for key, its in sorted(members.items()):
        load = loads[key]
        if isinstance(load, Load) and (mismatch := unmatched(its, stock)):
            load = mismatch
        if isinstance(load, Hold):
            holds |= dict.fromkeys((member.variant.key for member in its), load)
            continue
        variants = tuple(member.variant for member in its)
        server = f"{variants[0].key.name}:{key.namespace}"
        options = named_options(its, snapshot)
        # A variant alone has the whole load, also where its series have no pods.
        told_apart = {variants[0].key: load} if len(variants) == 1 else own_loads
        own = {v.key: told_apart[v.key] for v in variants if v.key in told_apart}
        groups.append(Group(key, server, variants, options, its[0].service_class, load, own))

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


def _learnt(memory: Memory, members: Iterable[GroupKey], groups: Sequence[Group], now_s: float) -> Memory:
    """Remember when there was traffic and how large requests were; forget groups that are gone."""
    busy = {group.key for group in groups if group.load.is_busy}
    traffic_at_s = {key: now_s if key in busy else memory.traffic_at_s.get(key, now_s) for key in members}
    tokens = {key: memory.tokens[key] for key in traffic_at_s if key in memory.tokens}
    for group in groups:
        if group.load.arrival_rpm > 0:
            load = group.load
            tokens[group.key] = Tokens(load.input_tokens, load.output_tokens, load.input_cov, load.output_cov)
    return replace(memory, traffic_at_s=traffic_at_s, tokens=tokens)


# --- the system ---


def _system(
    groups: Sequence[Group],
    snapshot: Snapshot,
    stock: Stock | None,
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
    # Only several variants can run on several accelerators at once.
    is_mixed = any(len(group.variants) > 1 for group in groups)
    devices = {option.device for group in groups for option in group.options}
    return schema.System(
        accelerator_data=schema.AcceleratorData(accelerators=[wire[name] for name in sorted(wire)]),
        capacity_data=schema.CapacityData() if stock is None else capacity(stock, snapshot, holds, devices),
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
                queue_model=settings.queue_model,
                backend=settings.backend or None,
            )
        ),
    )


def _model_names(groups: Sequence[Group]) -> dict[GroupKey, str]:
    """Name of each group's model in the system: its own, or one apart where options differ.

    A server may run on every accelerator that its model has a profile for, so groups of one model share its
    name only where they may run on the same.
    """
    first: dict[str, dict[str, ModelProfile]] = {}
    names: dict[GroupKey, str] = {}
    for group in groups:
        profiles = {option.wire_name: option.profile for option in group.options}
        same = first.setdefault(group.key.model_id, profiles) == profiles
        names[group.key] = group.key.model_id if same else f"{group.key.model_id} of {group.server}"
    return names


def _classes(groups: Sequence[Group], models: Mapping[GroupKey, str]) -> list[ServiceClass]:
    """The classes of the groups, with a target for each name that their models have in the system."""
    targets: dict[str, dict[str, schema.ModelTarget]] = {}
    given: dict[str, dict[str, schema.ModelTarget]] = {}
    classes: dict[str, ServiceClass] = {}
    for group in groups:
        name = group.service_class.name
        if name not in classes:
            classes[name] = group.service_class
            given[name] = {target.model: target for target in group.service_class.model_targets}
        target, wire_model = given[name][group.key.model_id], models[group.key]
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
        min_num_replicas=least,
        max_num_replicas=most,
        max_types=_most_types(group, is_mixed=is_mixed),
        replica_limits=_limits_by_accelerator(group),
        current_alloc=schema.Alloc(
            accelerator=main.accelerator,
            num_replicas=sum(running.values()),
            cost_cents_per_h=sum(cost.values()),
            itl_average_ms=group.load.itl_ms,
            ttft_average_ms=group.load.ttft_ms,
            load=group.load.on_the_wire(),
            parts=parts if len(parts) > 1 else [],
        ),
    )


def _most_types(group: Group, *, is_mixed: bool) -> int | None:
    """Most accelerators of a group: one for each variant, as the pods of a workload are of one kind."""
    names = {option.wire_name for option in group.options}
    return len(group.variants) if is_mixed and len(names) > len(group.variants) else None


def _limits_by_accelerator(group: Group) -> list[schema.ReplicaLimits]:
    """Least and most replicas of variants that share a load, accelerator by accelerator.

    A variant that may run on several has its minimum on none of them: only the group's holds.
    """
    if len(group.variants) == 1:
        return []
    choices = Counter(option.variant for option in group.options)
    variants = {variant.key: variant for variant in group.variants}
    offers: dict[str, list[Variant]] = {}
    for option in group.options:
        offers.setdefault(option.wire_name, []).append(variants[option.variant])
    found = []
    for name, offering in sorted(offers.items()):
        least = sum(v.min_replicas or 0 for v in offering if choices[v.key] == 1)
        limits = [v.max_replicas for v in offering if v.max_replicas is not None]
        most = sum(limits) if len(limits) == len(offering) else None
        if least or most is not None:
            found.append(schema.ReplicaLimits(accelerator=name, min=least, max=most))
    return found


def _replica_limits(group: Group, snapshot: Snapshot, memory: Memory, now_s: float) -> tuple[int, int | None]:
    """Least and most replicas of a group; the last goes only where allowed, after a time without traffic."""
    configuration, key = snapshot.configuration, group.key
    otherwise = ZeroRule(
        enabled=configuration.settings.scale_to_zero,
        retention_s=configuration.settings.scale_to_zero_retention_s,
    )
    rule = zero_rule(key.namespace, key.model_id, configuration.zero_rules, otherwise)
    may_be_zero = all(
        flag(v, SCALE_TO_ZERO_ANNOTATION, bool(rule.enabled) or v.min_replicas == 0) for v in group.variants
    )
    idle_s = now_s - memory.traffic_at_s[key]
    is_idle = not group.load.is_busy and idle_s >= (rule.retention_s or 0.0)
    least = max(sum(v.min_replicas or 0 for v in group.variants), 0 if may_be_zero and is_idle else 1)
    limits = [v.max_replicas for v in group.variants if v.max_replicas is not None]
    if len(limits) < len(group.variants):
        return least, None
    return min(least, sum(limits)), sum(limits)
