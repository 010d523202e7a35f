"""What an answer means: whether it can be followed, and what each variant of a group gets of it.

::

    Response -> checked -> Allocation of a group -> Share of each variant, or a Hold
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from controller.crd import Hold
from controller.errors import OptimizerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from controller.analyze import Analysis, Group
    from controller.crd import Variant, VariantKey
    from controller.options import Option
    from controller.snapshot import Workload
    from solver.schema import Alloc, Allocation, Response, Unserved

# Demand that replicas cannot serve: fewer of them would be no better.
_HOPELESS = {
    "targets": "TargetsUnreachable",
    "noProfile": "ProfileMissing",
    "keepAccelerator": "TargetsUnreachable",
}

# Of a quotient of rates that have been through JSON and back: less is no further replica.
_ROUNDING = 1e-6


def check_answer(analysis: Analysis, response: Response) -> None:
    """Refuse an answer that cannot be acted on.

    A server that is absent keeps what it runs, so the GPUs of that are not there for the others.

    Raises
    ------
    OptimizerError
        When it has an accelerator that the server has no option for, a negative number, or more GPUs of a
        type than there are.
    """
    if analysis.system is None:
        return
    used: dict[str, int] = {}
    kept: dict[str, int] = {}
    running = {server.name: server.current_alloc for server in analysis.system.server_data.servers}
    for group in analysis.groups:
        allocation = response.allocations.get(group.server)
        options = {option.wire_name: option for option in group.options}
        if allocation is None:
            for name, replicas in _replicas_by_name(running[group.server]).items():
                its = options[name]
                kept[its.device] = kept.get(its.device, 0) + replicas * its.profile.acc_count
            continue
        for name, replicas in _replicas_by_name(allocation).items():
            option = options.get(name)
            if option is None or replicas < 0:
                raise OptimizerError(f"the answer has {replicas} replicas of {group.server} on {name!r}")
            used[option.device] = used.get(option.device, 0) + replicas * option.profile.acc_count
    if analysis.system.optimizer_data.optimizer.unlimited:
        return
    there = {entry.type: entry.count for entry in analysis.system.capacity_data.count}
    for device, cards in used.items():
        left = max(there.get(device, 0) - kept.get(device, 0), 0)
        if cards > left:
            absent = f" without the {kept[device]} of servers that it leaves out" if kept.get(device) else ""
            raise OptimizerError(f"the answer takes {cards} {device}, there are {left}{absent}")


def split(replicas: int, variants: Sequence[Variant], workloads: Mapping[VariantKey, Workload]) -> list[int]:
    """Share replicas of one kind among the variants that offer it.

    Each gets its minimum, then what it runs already, then the rest in order, none more than its maximum. What
    no maximum leaves room for is left out.

    Parameters
    ----------
    replicas : int
    variants : sequence of Variant
    workloads : mapping of VariantKey to Workload

    Returns
    -------
    list of int
        One for each variant.
    """
    most = [replicas if v.max_replicas is None else v.max_replicas for v in variants]
    given = [min(v.min_replicas or 0, limit) for v, limit in zip(variants, most, strict=True)]
    running = [min(workloads[v.key].replicas, limit) for v, limit in zip(variants, most, strict=True)]
    for limits in (running, most):
        for index, limit in enumerate(limits):
            more = min(max(limit - given[index], 0), max(replicas - sum(given), 0))
            given[index] += more
    return given


def _replicas_by_name(allocation: Allocation | Alloc) -> dict[str, int]:
    """Replicas by the name of the accelerator in the system."""
    if allocation.parts:
        return {part.accelerator: part.num_replicas for part in allocation.parts}
    return {allocation.accelerator: allocation.num_replicas} if allocation.num_replicas else {}


@dataclass(frozen=True)
class Share:
    """What one variant gets of an answer.

    Attributes
    ----------
    replicas : int
    option : Option or None
        What they run on; None: there are none.
    """

    replicas: int
    option: Option | None


def shares_of(
    group: Group,
    allocation: Allocation | None,
    shortage: Unserved | None,
    workloads: Mapping[VariantKey, Workload],
    accelerators: Mapping[VariantKey, str],
) -> dict[VariantKey, Share] | Hold:
    """Break an answer down to the variants of a group, or say why it cannot be followed.

    Parameters
    ----------
    group : Group
    allocation : Allocation or None
        The answer about it; None: there is none.
    shortage : Unserved or None
        What of its demand the answer does not serve.
    workloads : mapping of VariantKey to Workload
    accelerators : mapping of VariantKey to str
        What each variant runs on now, where that is known; its pods stay there if they can.
    """
    if shortage is not None and shortage.reason in _HOPELESS:
        why = "no batch size meets the targets: " if shortage.reason == "targets" else ""
        return Hold("OptimizationReady", _HOPELESS[shortage.reason], why + shortage.detail)
    if allocation is None:
        return Hold("OptimizationReady", "NotInAnswer", f"the answer says nothing about {group.server}")
    by_name = _replicas_by_name(allocation)
    offers: dict[str, list[Option]] = {}
    for option in group.options:
        if by_name.get(option.wire_name):
            offers.setdefault(option.wire_name, []).append(option)
    kinds = _one_kind_each(offers, accelerators)
    if kinds is None:
        names = ", ".join(sorted(offers))
        return Hold(
            "OptimizationReady",
            "MixedAnswer",
            f"the answer has {group.server} on {names}: its workloads are fewer, each of one kind",
        )
    variants = {variant.key: variant for variant in group.variants}
    shares = {key: Share(0, None) for key in variants}
    for name, options in sorted(offers.items()):
        offering = [option for option in options if kinds[option.variant] is option]
        counts = split(by_name[name], [variants[option.variant] for option in offering], workloads)
        for option, count in zip(offering, counts, strict=True):
            if count:
                shares[option.variant] = Share(count, option)
    return shares


def _one_kind_each(
    offers: Mapping[str, Sequence[Option]], accelerators: Mapping[VariantKey, str]
) -> dict[VariantKey, Option] | None:
    """Choose one option for each variant so that each kind has a variant; None: there is no such choice.

    It is a matching of kinds and variants by augmenting paths that tries first where pods can stay; variants
    that are left over stay where they are, else take the first kind by name.
    """
    chosen: dict[VariantKey, Option] = {}

    def stays(option: Option) -> bool:
        return accelerators.get(option.variant) == option.accelerator

    def place(name: str, tried: set[VariantKey]) -> bool:
        for option in sorted(offers[name], key=stays, reverse=True):
            if option.variant in tried:
                continue
            tried.add(option.variant)
            before = chosen.get(option.variant)
            if before is None or place(before.wire_name, tried):
                chosen[option.variant] = option
                return True
        return False

    if not all(place(name, set()) for name in sorted(offers)):
        return None
    left_over = [option for _, options in sorted(offers.items()) for option in options]
    for option in sorted(left_over, key=stays, reverse=True):
        chosen.setdefault(option.variant, option)
    return chosen


def remedy_of(group: Group, allocation: Allocation | None, shortage: Unserved) -> list[str]:
    """Say what would serve the rest of a demand: so many more cards of one kind, for this group.

    A replica of a group that is short serves as much as it can, so what the answer's replicas serve tells how
    many more are needed. Where there is none the answer's own words have to do. No kind is named of which its
    variants may have no more replicas.

    Parameters
    ----------
    group : Group
    allocation : Allocation or None
        The answer about it.
    shortage : Unserved
        What of its demand the answer does not serve.

    Returns
    -------
    list of str
        A clause, or nothing.
    """
    if shortage.reason == "maxReplicas":
        return ["a larger maxReplicas would serve it"]
    if shortage.reason != "gpus" or allocation is None:
        return []
    parts = allocation.parts or (allocation,)
    missing_rpm = group.load.arrival_rpm - sum(part.load.arrival_rate_rpm for part in parts)
    missing = sum(v.min_replicas or 0 for v in group.variants) - sum(part.num_replicas for part in parts)
    ways = []
    for part in parts:
        if not part.num_replicas:
            continue
        served_rpm = part.load.arrival_rate_rpm / part.num_replicas
        for_load = math.ceil(missing_rpm / served_rpm - _ROUNDING) if served_rpm else 0
        more = max(for_load, missing)
        if part.num_replicas + more <= _most(group, part.accelerator):
            ways.append(_in_cards(group, part.accelerator, more))
    return [f"{' or '.join(ways)} would serve it"] if ways else []


def _most(group: Group, wire_name: str) -> float:
    """Most replicas of a kind that the variants of a group may have together; infinite: any number."""
    offering = {option.variant for option in group.options if option.wire_name == wire_name}
    limits = [variant.max_replicas for variant in group.variants if variant.key in offering]
    return sum(math.inf if limit is None else limit for limit in limits)


def _in_cards(group: Group, wire_name: str, replicas: int) -> str:
    option = next(option for option in group.options if option.wire_name == wire_name)
    cards = option.profile.acc_count
    on_a_node = f" ({cards} on a node)" if cards > 1 else ""
    return f"{cards * replicas} more {option.accelerator}{on_a_node}"
