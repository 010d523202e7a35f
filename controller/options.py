"""What a variant may run on: its accelerators, with the cards, batch limit and cost that it really has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from controller.configmaps import class_of
from controller.crd import KEEP_ACCELERATOR_ANNOTATION, Hold
from controller.inventory import join_devices
from controller.settings import parse_flag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controller.crd import Variant, VariantKey
    from controller.snapshot import Snapshot, Workload
    from solver.schema import ModelProfile, ServiceClass


@dataclass(frozen=True)
class Option:
    """An accelerator that a variant may run on.

    Attributes
    ----------
    variant : VariantKey
    accelerator : str
        Name in the price list.
    wire_name : str
        Name in the system: that of the price list, or one of its own where the variant's price or profile
        differs from that of another variant.
    device : str
        What nodes call its cards.
    cost_cents_per_h : float
        Of one replica.
    profile : ModelProfile
        With the cards and the batch limit that the workload really has.
    """

    variant: VariantKey
    accelerator: str
    wire_name: str
    device: str
    cost_cents_per_h: float
    profile: ModelProfile


@dataclass(frozen=True)
class Member:
    """A variant that can be decided on, as far as it alone tells.

    Attributes
    ----------
    variant : Variant
    workload : Workload
    service_class : ServiceClass
    options : tuple of Option
        At least one.
    remarks : tuple of str
        What may not be as meant, in words.
    """

    variant: Variant
    workload: Workload
    service_class: ServiceClass
    options: tuple[Option, ...]
    remarks: tuple[str, ...]


def member_of(variant: Variant, snapshot: Snapshot) -> Member | Hold:
    """Find the class and the options of a variant, or why it cannot be decided on."""
    if not variant.model_id:
        return Hold("OptimizationReady", "SpecInvalid", "; ".join(variant.problems))
    workload = snapshot.workloads.get(variant.key)
    if workload is None:
        return Hold(
            "TargetResolved", "TargetNotFound", f"there is no {variant.target} in {variant.key.namespace}"
        )
    configuration = snapshot.configuration
    service_class = class_of(variant.model_id, variant.class_ref, configuration.classes)
    if service_class is None:
        return Hold(
            "OptimizationReady", "ClassMissing", f"no service class lists the model {variant.model_id}"
        )
    profiles = variant.profiles or tuple(p for p in configuration.profiles if p.name == variant.model_id)
    pinned = _pinned(variant, workload, snapshot)
    usable = [profile for profile in profiles if not pinned or profile.acc == pinned]
    if not usable:
        where = f" on {pinned}" if pinned else ""
        there = ", ".join(sorted(p.acc for p in profiles)) or "none at all"
        return Hold(
            "OptimizationReady",
            "ProfileMissing",
            f"{variant.model_id} has no profile{where}: neither modelProfile nor ConfigMap model-profiles "
            f"has one (there: {there})",
        )
    options: list[Option] = []
    remarks: list[str] = []
    for profile in usable:
        option = _option(variant, workload, profile, snapshot, remarks)
        if option is not None:
            options.append(option)
    if not options:
        names = ", ".join(profile.acc for profile in usable)
        return Hold(
            "OptimizationReady",
            "AcceleratorUnknown",
            f"ConfigMap accelerator-unit-costs has no usable entry for {names}",
        )
    return Member(variant, workload, service_class, tuple(options), tuple(remarks))


def _pinned(variant: Variant, workload: Workload, snapshot: Snapshot) -> str:
    """Name of the only accelerator that the variant's pods can run on; empty: several.

    Scaling a workload does not move it to other hardware. So where neither the workload nor its node selector
    says what it is, the variant stays on what its label names unless it was allowed to move.
    """
    if workload.pinned_accelerator:
        return workload.pinned_accelerator
    if workload.pinned_device:
        devices = [entry.device for entry in snapshot.configuration.accelerators]
        device = join_devices(devices, [workload.pinned_device]).get(workload.pinned_device)
        names = [e.name for e in snapshot.configuration.accelerators if e.device == device]
        named = [name for name in names if name == variant.accelerator_label]
        return next(iter(named or names), variant.accelerator_label or workload.pinned_device)
    keep = flag(variant, KEEP_ACCELERATOR_ANNOTATION, snapshot.configuration.settings.keep_accelerator)
    return variant.accelerator_label if keep or not variant.profiles else ""


def _option(
    variant: Variant, workload: Workload, profile: ModelProfile, snapshot: Snapshot, remarks: list[str]
) -> Option | None:
    """Return the option with what the workload really has, or None where its accelerator has no price."""
    price = next((e for e in snapshot.configuration.accelerators if e.name == profile.acc), None)
    device = price.device if price else workload.pinned_device
    cards = workload.gpus_per_replica or workload.tensor_parallel or profile.acc_count
    if workload.tensor_parallel and workload.gpus_per_replica % workload.tensor_parallel:
        remarks.append(
            f"vLLM wants {workload.tensor_parallel} GPUs and the pod asks for {workload.gpus_per_replica}"
        )
    if cards != profile.acc_count:
        remarks.append(
            f"the profile on {profile.acc} is for {profile.acc_count} GPUs a replica, a pod has {cards}"
        )
        profile = profile.model_copy(update={"acc_count": cards})
    batch = workload.max_num_seqs
    if batch and batch != profile.max_batch_size:
        remarks.append(
            f"the profile on {profile.acc} is for batches up to {profile.max_batch_size}, vLLM takes {batch}"
        )
        profile = profile.model_copy(
            update={"max_batch_size": min(batch, 65_536), "at_tokens": 0, "batch_sizes": []}
        )
    if variant.cost_cents_per_h is not None:
        cost = variant.cost_cents_per_h
    elif price is not None:
        cost = price.cost_cents_per_h * cards
    else:
        return None
    return Option(variant.key, profile.acc, profile.acc, device, cost, profile) if device else None


def named_options(members: Sequence[Member], snapshot: Snapshot) -> tuple[Option, ...]:
    """Give options of one accelerator names of their own in the system where they differ."""
    prices = {entry.name: entry.cost_cents_per_h for entry in snapshot.configuration.accelerators}
    first: dict[str, Option] = {}
    named: list[Option] = []
    for option in (option for member in members for option in member.options):
        same = first.setdefault(option.accelerator, option)
        listed = prices.get(option.accelerator)
        costs_the_same = listed is not None and option.cost_cents_per_h == listed * option.profile.acc_count
        if not costs_the_same or option.profile != same.profile:
            option = replace(option, wire_name=f"{option.accelerator} of {option.variant}")
        named.append(option)
    return tuple(named)


def runs_on(member: Member) -> str:
    """Accelerator that a variant runs on now; empty: not known."""
    if len(member.options) == 1:
        return member.options[0].accelerator
    names = {option.accelerator for option in member.options}
    status = (member.variant.status.get("currentAlloc") or {}).get("accelerator", "")
    return next((name for name in (member.variant.accelerator_label, status) if name in names), "")


def option_of(options: Sequence[Option], variant: VariantKey, accelerator: str) -> Option | None:
    """Option of a variant on an accelerator, by its name in the price list."""
    return next((o for o in options if o.variant == variant and o.accelerator == accelerator), None)


def flag(variant: Variant, annotation: str, default: bool) -> bool:
    """Annotation of a variant that says yes or no; one that says neither counts as absent."""
    try:
        return parse_flag(variant.annotations[annotation])
    except (KeyError, ValueError):
        return default
